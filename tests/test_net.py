"""Net: the blocks of many families, every parameter at one address, a head whose output is the logits, an untouched model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from affinage.net import Net

from .zoo import FAMILIES
from .zoo_wide import WIDE

ALL = {**FAMILIES, **WIDE}
EVERY = [pytest.param(name, marks=pytest.mark.slow if family.slow else ()) for name, family in ALL.items()]


@pytest.mark.parametrize("name", EVERY)
def test_family(name: str) -> None:
    """The blocks and the head written down by hand in the zoo; each parameter at one address; the order of the forward."""
    family = ALL[name]
    model, batch = family.make()
    net = Net.of(model, batch)
    assert list(net.blocks) == family.blocks
    assert bool(net.why) == (not family.blocks)
    assert net.head_name == family.head

    addresses = net.addresses()
    assert list(addresses) == ["stem", *(f"blocks.{k}" for k in range(len(family.blocks))), "head"]
    assert sorted(n for names in addresses.values() for n in names) == sorted(n for n, _ in model.named_parameters())
    assert sum(row["parameters"] for row in net.anatomy()) == sum(p.numel() for p in model.parameters())
    for k, block in enumerate(family.blocks):
        inside = {n for n, _ in model.named_parameters() if n.startswith(block + ".")}
        assert inside <= set(addresses[f"blocks.{k}"])


@pytest.mark.parametrize("name", EVERY)
def test_what_enters_a_block_depends_on_what_stands_before_it_alone(name: str) -> None:
    """Spoiling everything from block k on leaves the input of block k as it was; spoiling what stands before changes it."""
    model, batch = ALL[name].make()
    net = Net.of(model, batch)
    model.eval()
    addresses, parameters = net.addresses(), dict(model.named_parameters())
    for k in sorted({0, len(net.blocks) // 2, len(net.blocks) - 1} if net.blocks else ()):
        early = ["stem", *(f"blocks.{i}" for i in range(k))]
        late = [a for a in addresses if a not in early]
        entered: list[torch.Tensor] = []
        hook = model.get_submodule(net.blocks[k]).register_forward_pre_hook(
            lambda m, a, kw, to=entered: to.append(next(t for t in (*a, *kw.values()) if torch.is_tensor(t)).clone()),
            with_kwargs=True,
        )
        with torch.no_grad():
            model(**batch)
            for spoiled in (late, early):
                kept = {n: parameters[n].clone() for a in spoiled for n in addresses[a]}
                for n in kept:
                    parameters[n].add_(torch.randn_like(parameters[n]))
                model(**batch)
                for n, value in kept.items():
                    parameters[n].copy_(value)
        hook.remove()
        assert torch.equal(entered[0], entered[1])
        assert not torch.equal(entered[0], entered[2])


@pytest.mark.parametrize("name", EVERY)
def test_head_linear_gives_the_logits(name: str) -> None:
    model, batch = ALL[name].make()
    net = Net.of(model, batch)
    if ALL[name].head is None:
        assert net.head_linear is None
        return
    assert net.head_linear is not None
    outputs: list[torch.Tensor] = []
    hook = net.head_linear.register_forward_hook(lambda m, a, o: outputs.append(o))
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    hook.remove()
    if outputs[-1].shape == logits.shape:
        assert torch.equal(outputs[-1], logits)
    else:  # GPT-2: a row for each token, of which the last that is no padding is taken
        last = batch["attention_mask"].sum(1) - 1
        assert torch.equal(outputs[-1][torch.arange(len(last)), last], logits)


def test_where_the_edges_are() -> None:
    def address(name: str) -> dict[str, str]:
        return Net.of(*ALL[name].make()).parameters

    assert address("bert")["bert.pooler.dense.weight"] == "blocks.2"
    assert address("vit")["vit.layernorm.weight"] == "blocks.2"
    assert address("roberta")["classifier.dense.weight"] == "head"
    assert address("dinov2")["dinov2.embeddings.mask_token"] == "stem"  # never read
    assert address("deberta_v2")["deberta.encoder.rel_embeddings.weight"] == "stem"  # one table for all blocks
    assert address("swin")["swin.encoder.layers.0.downsample.reduction.weight"] == "blocks.0"  # between blocks 0 and 1
    both = [n for n, a in address("deit_two_heads").items() if a == "head"]
    assert both == [f"{head}_classifier.{p}" for head in ("cls", "distillation") for p in ("weight", "bias")]


def test_a_dropout_stands_where_it_is_called() -> None:
    """It takes no time in eval mode: the one that ends the stem must not pass for the beginning of block 0."""
    assert Net.of(*FAMILIES["gpt2"].make()).places["transformer.drop"] == "stem"
    places = Net.of(*FAMILIES["vit"].make()).places
    assert places["vit.embeddings.dropout"] == "stem" and places["vit.layers.1"] == "blocks.1"


def test_the_model_is_left_as_it_was() -> None:
    model, batch = FAMILIES["resnet"].make()
    model.train()
    model.resnet.embedder.eval()
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    Net.of(model, batch)
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())

    batch["pixel_values"] = torch.randn(2, 3)  # a forward that fails leaves nothing behind either
    with pytest.raises(Exception):  # noqa: B017 (what a broken batch raises is the model's own affair)
        Net.of(model, batch)
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Plain(nn.Module):
    """Two layers: nothing to cut."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_labels=3)
        self.one = nn.Linear(8, 16)
        self.two = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.two(self.one(x).relu()))


def test_a_network_without_blocks_is_a_stem_and_a_head() -> None:
    net = Net.of(Plain(), {"x": torch.randn(2, 8)})
    assert net.blocks == () and "Plain" in net.why
    assert net.addresses() == {"stem": ["one.weight", "one.bias"], "head": ["two.weight", "two.bias"]}


def test_minilm(minilm: Path) -> None:
    """A checkpoint read from a file (weights may share storage) has its architecture's addresses; so has one without a head."""
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    batch = dict(AutoTokenizer.from_pretrained(minilm)(["a good film", "bad"], padding=True, return_tensors="pt"))
    net = Net.of(AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=4), batch)
    assert list(net.blocks) == [f"bert.encoder.layer.{i}" for i in range(6)]
    # closed form: 30522+512+2 rows and a norm of 384; a layer; 384*384+384 of the pooler in the last one; 384*4+4
    layer = 4 * (384 * 384 + 384) + 2 * 384 + (384 * 1536 + 1536) + (1536 * 384 + 384) + 2 * 384
    want = [31036 * 384 + 768, *[layer] * 5, layer + 384 * 384 + 384, 384 * 4 + 4]
    assert [row["parameters"] for row in net.anatomy()] == want

    bare = Net.of(AutoModel.from_pretrained(minilm), batch)
    assert bare.head_linear is None and bare.addresses()["head"] == [] and len(bare.blocks) == 6
