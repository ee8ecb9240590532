"""The cut: what runs above it gives the logits and gradients of the whole network, bit by bit, for many architectures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T
from torch import nn

from affinage import pooling, rates
from affinage.cut import CAPTURED, Cut, Resumed
from affinage.entry import frozen_parameters, lowest
from affinage.layout import Uncuttable
from affinage.net import Net
from affinage.tasks.text_classification import TokenRows
from affinage.types import Batch

from .zoo import FAMILIES, tokens
from .zoo_wide import WIDE

ALL = {**FAMILIES, **WIDE}
CUTTABLE = [pytest.param(name, marks=pytest.mark.slow if family.slow else ()) for name, family in ALL.items() if family.blocks]
QUICK = {"bert", "gpt2", "vit", "resnet", "wav2vec2", "detr"}
TEXT = ["bert", "roberta", "distilbert", "modernbert", "deberta_v2", "gpt2"]


class Given:
    """The rows of a batch of the zoo; a row's padding is left out where no longer row stands beside it."""

    def __init__(self, batch: Batch) -> None:
        self.whole = batch
        first = next(iter(batch.values()))
        self.lengths = batch["attention_mask"].sum(1).numpy() if "attention_mask" in batch else np.ones(len(first), np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: np.ndarray) -> Batch:
        taken = {name: tensor[torch.as_tensor(rows)] for name, tensor in self.whole.items()}
        longest = int(self.lengths[rows].max())
        return {name: t[:, :longest].contiguous() if "attention_mask" in taken else t for name, t in taken.items()}


def sentences(count: int = 12, left: bool = False) -> TokenRows:
    draw = np.random.default_rng(0)
    starts = np.concatenate([[0], np.cumsum(draw.integers(3, 15, count))]).astype(np.int64)
    return TokenRows(draw.integers(5, 90, starts[-1]).astype(np.int32), starts, 0, left)


def beside(cut: Cut, batch: Batch) -> Batch:
    """The batch with what was captured of it, as it comes from the store."""
    cut.model.eval()
    return {**batch, **{f"{CAPTURED}{i}": units for i, units in enumerate(cut.packed(cut.placed(batch)))}}


def alike(one: torch.Tensor, other: torch.Tensor, allowed: float) -> bool:
    """Bit by bit; where rounding is allowed, no value by more."""
    return torch.equal(one, other) if allowed == 0 else torch.allclose(one, other, rtol=0, atol=allowed)


def hooks(model: nn.Module) -> list[Any]:
    """Whatever hangs on the modules of a model: hooks, and a forward of their own."""
    return [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in m.__dict__) for m in model.modules()]


# ------------------------------------------------------------------------------------------------------------ families
def few(net: Net) -> set[int]:
    """The first, the middle and the last block."""
    return {0, len(net.blocks) // 2, len(net.blocks) - 1}


def made(name: str) -> tuple[Net, Batch]:
    """A network of the zoo as it is trained, and its batch."""
    model, batch = ALL[name].make()
    if hasattr(model.config, "layerdrop"):
        model.config.layerdrop = 0.0  # blocks left out at random
    net = Net.of(model, batch)
    if "pixel_values" in batch:
        batch["pixel_values"] = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
        model.to(memory_format=torch.channels_last)
    return net, batch


def looks_the_same(net: Net, batch: Batch, k: int, allowed: float) -> None:
    """Cut at k, as captured and as stored: logits, gradients under dropout, and who is frozen."""
    model, clean = net.model, hooks(net.model)
    parameters = dict(model.named_parameters())
    mask = batch.get("attention_mask")
    buffers = {n: b.clone() for n, b in model.named_buffers()}

    def logits(output: Any) -> torch.Tensor:
        """Those of padding have no meaning, and padding is not stored."""
        return output.logits[mask.bool()] if mask is not None and output.logits.dim() == 3 else output.logits

    cut = Cut(net, k, Given(batch))
    ways = [
        lambda: model(**batch),
        lambda: cut.resume(batch, values),
        lambda: Resumed(cut)(**kept),
    ]
    with torch.no_grad():
        values, kept = cut.capture(batch), beside(cut, batch)
        assert torch.equal(ways[1]().logits, ways[0]().logits)
        assert torch.equal(logits(ways[2]()), logits(ways[0]()))

    frozen = set(frozen_parameters(net, k))
    table = {n: None if n in frozen else 1e-3 for n in net.parameters}
    assert lowest(net, table) == k
    rates.freeze(net, table)
    rates.train_mode(net, table)
    found = []
    for way in ways:
        model.zero_grad()
        torch.manual_seed(1)
        logits(way()).square().sum().backward()
        found.append({n: p.grad.clone() for n, p in parameters.items() if p.grad is not None})
    scale = max(float(g.abs().max()) for g in found[0].values())
    for others, apart in zip(found[1:], (allowed, 1e-6), strict=True):  # what was stored lies elsewhere: kernels go by that, too
        assert found[0].keys() == others.keys() and len(others) > 0
        assert all(alike(gradient, others[n], apart * scale) for n, gradient in found[0].items())
    assert hooks(model) == clean

    model.eval()
    with torch.no_grad():  # what is captured hangs on all that is frozen, and on nothing else
        for spoiled, same in ((set(parameters) - frozen, True), (frozen, False)):
            before = {n: parameters[n].clone() for n in spoiled}
            for n in spoiled:
                parameters[n].add_(torch.randn_like(parameters[n]))
            assert all(alike(a, b, allowed) for a, b in zip(cut.capture(batch), values, strict=True)) == same
            for n, value in before.items():
                parameters[n].copy_(value)
        # those of two pictures are hardly wide: rounding, which differs by processor, would be blown up at the next cut
        for n, b in model.named_buffers():
            b.copy_(buffers[n])


@pytest.mark.parametrize("name", CUTTABLE)
def test_family(name: str) -> None:
    """At the first, the middle and the last block."""
    net, batch = made(name)
    for k in sorted(few(net)):
        looks_the_same(net, batch, k, 1e-6 if ALL[name].rounds else 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, family in ALL.items() if family.blocks])
def test_every_other_cut_of_a_family(name: str) -> None:
    """At all blocks between, and before the layer of the logits, where that can learn alone."""
    net, batch = made(name)
    last = len(net.blocks)
    alone = lowest(net, dict.fromkeys(set(net.parameters) - set(frozen_parameters(net, last)), 1e-3)) == last
    assert alone == (net.parameters.get(f"{net.head_name}.weight") == "head"), "else its weights are read elsewhere, too"
    for k in sorted(set(range(last + alone)) - few(net)):
        looks_the_same(net, batch, k, 1e-6 if ALL[name].rounds else 0.0)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n, f in ALL.items() if f.blocks]
)
def test_a_later_cut_goes_on_from_an_earlier_one(name: str) -> None:
    """The same bits, and no block below the earlier one runs again."""
    net, batch = made(name)
    rows, last = Given(batch), len(net.blocks) - 1
    earlier, later = Cut(net, last // 2, rows), Cut(net, last, rows)
    want, brought, clean = later.packed(batch), beside(earlier, batch), hooks(net.model)
    assert later.after(earlier, rows, "fp32")
    first, ran = net.model.get_submodule(net.blocks[0]), []
    parts = [part.register_forward_hook(lambda *called: ran.append(called)) for part in first.modules() if part is not first]
    got = later.packed(brought)
    assert len(want) == len(got) and all(map(torch.equal, got, want))
    assert not ran or last // 2 == 0 or name == "t5"  # whose first block makes the table of positions anew
    later.packed(batch)
    assert ran
    for hook in parts:
        hook.remove()
    assert hooks(net.model) == clean
    if last // 2 < last:
        assert not earlier.after(later, rows, "fp32") and earlier.below is None


def test_an_earlier_cut_that_rounds_is_no_ground() -> None:
    """What is not there to the bit is not gone on from: here the earlier cut has lost some of it."""
    net, batch = made("bert")
    earlier, later = Cut(net, 1, Given(batch)), Cut(net, 2, Given(batch))
    packed = earlier.packed
    earlier.packed = lambda batch: [units.to(torch.bfloat16) for units in packed(batch)]  # type: ignore[method-assign]
    assert not later.after(earlier, Given(batch), "fp32") and later.below is None


@pytest.mark.parametrize("name", TEXT)
def test_rows_in_other_company(name: str) -> None:
    """Rows captured one by one or in any batch, without their padding, resume in any other: rounding apart, the same logits.

    Bit by bit they need not be: kernels sum in another order where a batch has another shape.
    """
    model, batch = FAMILIES[name].make()
    rows = sentences()
    cut = Cut(Net.of(model, batch), 2, rows)
    units: dict[int, list[torch.Tensor]] = {}
    for batch_of in np.array_split(np.random.default_rng(1).permutation(len(rows)), 5):
        packed = cut.packed(rows.batch(batch_of))
        parts = [torch.split(column, rows.lengths[batch_of].tolist()) for column in packed]
        units |= {int(row): [column[i] for column in parts] for i, row in enumerate(batch_of)}
    above = Resumed(cut)
    with torch.no_grad():
        for chosen in (np.arange(len(rows)), np.asarray([3, 0, 7]), np.asarray([5])):
            columns = zip(*(units[int(row)] for row in chosen), strict=True)
            inputs = rows.batch(chosen) | {f"{CAPTURED}{i}": torch.cat(list(c)) for i, c in enumerate(columns)}
            want = model(**rows.batch(chosen)).logits
            assert (above(**inputs).logits - want).abs().max() <= 2e-6 * max(1.0, want.abs().max().item())


def test_the_mean_over_tokens_stands_above_the_cut() -> None:
    """Mean pooling reads the mask, not the padding that the store has left out."""
    model, batch = FAMILIES["bert"].make()
    pooling.install(model, "mean")
    net = Net.of(model, batch)
    rows = sentences()
    for k in range(len(net.blocks)):
        cut = Cut(net, k, rows)
        inputs = rows.batch(np.asarray([4, 2, 9]))
        with torch.no_grad():
            assert torch.equal(Resumed(cut)(**beside(cut, inputs)).logits, model(**inputs).logits)


@pytest.mark.parametrize("name", ["bert", "resnet", "vit"])
def test_bf16(name: str) -> None:
    """Under autocast what is kept has the type that the network leaves there, and the logits are the same bits."""
    model, batch = FAMILIES[name].make()
    net = Net.of(model, batch)
    cut = Cut(net, len(net.blocks) - 1, Given(batch), "bf16")
    inputs = cut.placed(batch)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        left = cut.capture(inputs)
        assert [layout.dtype for layout in cut.layouts()] == [tensor.dtype for tensor in left]
        assert torch.equal(Resumed(cut)(**beside(cut, batch)).logits, model(**inputs).logits)
    assert cut.layouts()[0].dtype == (torch.bfloat16 if name == "resnet" else torch.float32)


def test_no_random_number_is_drawn() -> None:
    model, batch = FAMILIES["bert"].make()
    net = Net.of(model, batch)
    before = torch.get_rng_state()
    Cut(net, 1, Given(batch)).capture(batch)
    assert torch.equal(torch.get_rng_state(), before)


# -------------------------------------------------------------------------------------------------- what cannot be cut
class Row(nn.Module):
    """Three blocks of two layers; `mix` lets the rows of a batch see each other, `write` writes into what a block has left."""

    def __init__(self, mix: bool = False, write: bool = False) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_labels=3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(3))
        self.head = nn.Linear(8, 3)
        self.mix, self.write = mix, write

    def forward(self, x: torch.Tensor) -> SimpleNamespace:
        for block in self.blocks:
            x = block(x)
            if self.mix:
                x = x - x.mean(0)
            if self.write:
                x += 1.0
        return SimpleNamespace(logits=self.head(x))


class Numbers(Given):
    def __init__(self) -> None:
        super().__init__({"x": torch.randn(6, 8, generator=torch.Generator().manual_seed(0))})


def test_rows_that_see_each_other() -> None:
    rows = Numbers()
    torch.manual_seed(0)
    assert Cut(Net.of(Row(), rows.whole), 1, rows).share == pytest.approx(2 * 8 * 8 / (6 * 8 * 8 + 8 * 3))
    net = Net.of(Row(mix=True), rows.whole)
    with pytest.raises(Uncuttable, match="depends on the rows beside it"):
        Cut(net, 2, rows)
    assert not any(any(found) for found in hooks(net.model))


def test_what_a_module_left_is_written_into() -> None:
    """By the code that stands between two blocks: what is kept is what the module gave."""
    rows = Numbers()
    torch.manual_seed(0)
    model = Row(write=True)
    cut = Cut(Net.of(model, rows.whole), 2, rows)
    with torch.no_grad():
        assert torch.equal(Resumed(cut)(**beside(cut, rows.whole)).logits, model(**rows.whole).logits)
        values = cut.capture(rows.whole)
        for _ in range(2):
            assert torch.equal(cut.resume(rows.whole, values).logits, model(**rows.whole).logits)


def test_padding_that_counts() -> None:
    """GPT-2 counts positions from the left: padded there, a token's place hangs on the longest row."""
    model, batch = FAMILIES["gpt2"].make()
    net = Net.of(model, batch)
    Cut(net, 1, sentences())
    with pytest.raises(Uncuttable, match="padding"):
        Cut(net, 1, sentences(left=True))


def test_tables_of_tokens_by_tokens() -> None:
    """T5 hands its position bias, with the mask in it, from the first block to all others: it is made again, not kept."""
    sizes = dict(vocab_size=99, d_model=32, d_kv=16, d_ff=64, num_layers=3, num_heads=2, decoder_start_token_id=0)
    torch.manual_seed(0)
    model = T.T5EncoderModel(T.T5Config(**sizes))
    head = nn.Linear(32, 3)

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config, self.body, self.head = model.config, model, head

        def forward(self, **batch: Any) -> SimpleNamespace:
            return SimpleNamespace(logits=self.head(self.body(**batch).last_hidden_state[:, 0]))

    net = Net.of(Whole(), tokens())
    rows = sentences()
    shares = []
    for k in range(3):
        cut = Cut(net, k, rows)
        assert [layout.unit for layout in cut.layouts()] == [(32,)]  # no table is kept
        shares.append(cut.share)
        for chosen in ([1, 4, 9], [4]):
            inputs = rows.batch(np.asarray(chosen))
            with torch.no_grad():
                assert torch.equal(Resumed(cut)(**beside(cut, inputs)).logits, net.model(**inputs).logits)
    assert shares[:2] == [0, 0] and shares[2] > 0.3  # the first block is run again for its table
    assert cut.spared == pytest.approx(0.5) and Cut(Net.of(*FAMILIES["bert"].make()), 2, rows).spared == 1


def test_a_table_made_of_another() -> None:
    """The first block makes it of what a module before it has left; both are made anew, and what the row holds alone is kept."""

    class Near(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor, mask: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if table.shape[-1] == 1:
                table = table.squeeze(-1).tanh()
            return self.second(torch.relu(self.first(table @ (x * mask[..., None])))), table

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(num_labels=3)
            self.embed, self.near = nn.Embedding(99, 8), nn.Embedding(30, 1)
            self.blocks = nn.ModuleList(Near() for _ in range(3))
            self.head = nn.Linear(8, 3)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
            x, places = self.embed(input_ids), torch.arange(input_ids.shape[1])
            table = self.near((places[:, None] - places).abs())
            for block in self.blocks:
                x, table = block(x, attention_mask, table)
            return SimpleNamespace(logits=self.head(x[:, 0]))

    torch.manual_seed(0)
    net = Net.of(Whole(), tokens())
    rows = sentences()
    cut = Cut(net, 2, rows)
    assert [layout.unit for layout in cut.layouts()] == [(8,)]
    assert {call.name for call in cut.left if call.again} == {"near", "blocks.1"}
    inputs = rows.batch(np.asarray([1, 4, 9]))
    with torch.no_grad():
        assert torch.equal(Resumed(cut)(**beside(cut, inputs)).logits, net.model(**inputs).logits)


def test_no_blocks_no_rows() -> None:
    model, batch = FAMILIES["albert_shares_one_block"].make()
    with pytest.raises(Uncuttable, match="no chain of two or more blocks found in Albert"):
        Cut(Net.of(model, batch), 0, Given(batch))
    model, batch = FAMILIES["bert"].make()
    with pytest.raises(Uncuttable, match="there are no rows"):
        Cut(Net.of(model, batch), 0, sentences(0))


def test_a_forward_that_fails_leaves_nothing_behind() -> None:
    model, batch = FAMILIES["bert"].make()
    cut = Cut(Net.of(model, batch), 1, Given(batch))
    broken = {"attention_mask": batch["attention_mask"]}
    for call in (lambda: cut.capture(broken), lambda: cut.resume(broken, cut.capture(batch))):
        with pytest.raises(Exception):  # noqa: B017 (what a broken batch raises is the model's own affair)
            call()
        assert not any(any(found) for found in hooks(model))


def test_minilm(minilm: Any) -> None:
    """A real model at each of its blocks, in one batch: bit by bit, and ragged."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=2, attn_implementation="eager")
    rows = sentences()
    net = Net.of(model, rows.batch(np.arange(2)))
    for k in (0, 5):
        cut = Cut(net, k, rows)
        inputs = rows.batch(np.asarray([1, 4]))
        with torch.no_grad():
            assert torch.equal(Resumed(cut)(**beside(cut, inputs)).logits, model(**inputs).logits)
