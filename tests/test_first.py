"""A block of which one token is read computes that one, to the same logits and gradients; whoever reads more gets all."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from affinage import pooling
from affinage.cut import _Arithmetic
from affinage.first import First, attention
from affinage.instead import untouched
from affinage.net import Net

from . import tiny
from .test_fit import STAGE, fitting, run, tensors
from .zoo import FAMILIES

READ_THE_FIRST = {
    "bert", "roberta", "distilbert", "modernbert", "deberta_v2", "electra", "mpnet", "vit", "deit", "dinov3_vit",
}  # fmt: skip


def some(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow if FAMILIES[name].slow else ()) for name in names]


def made(name: str) -> tuple[Net, dict[str, torch.Tensor], First]:
    torch.manual_seed(0)
    model, batch = FAMILIES[name].make()
    net = Net.of(model.eval(), batch)
    return net, batch, First(net, batch)


@pytest.mark.parametrize("name", some(FAMILIES))
def test_which_networks_read_the_first_token_alone(name: str) -> None:
    net, _, first = made(name)
    assert bool(first) == (name in READ_THE_FIRST)
    assert all(untouched(module) for module in net.model.modules())


def gradients(net: Net, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    net.model.zero_grad(set_to_none=True)
    logits = net.model(**batch).logits
    (logits.square().sum() + logits[:, 0].sum()).backward()
    return logits.detach(), {n: p.grad.clone() for n, p in net.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", some(sorted(READ_THE_FIRST)))
def test_the_same_logits_and_gradients_for_less(name: str) -> None:
    """In fp32, for rows of different lengths; the last block multiplies less."""
    net, batch, first = made(name)
    want, slopes = gradients(net, batch)
    with first.cut_short({}):
        got, short = gradients(net, batch)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    assert short.keys() == slopes.keys()
    for parameter, slope in slopes.items():
        assert not slope.numel() or (short[parameter] - slope).abs().max() <= 1e-4 * slope.abs().max() + 1e-7, parameter
    counts = []
    for how in (False, True):
        with torch.no_grad(), _Arithmetic() as counted:
            if how:
                with first.cut_short({}):
                    net.model(**batch)
            else:
                net.model(**batch)
        counts.append(counted.total)
    of_blocks = counts[0] / len(net.blocks)  # at most: the stem counts too
    assert counts[0] - counts[1] > 0.15 * of_blocks  # of five tokens, or beside attention of its own, no more is saved


def test_all_is_as_it_was_afterwards() -> None:
    net, batch, first = made("bert")
    model = net.model
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    with pytest.raises(KeyError), first.cut_short({}):
        assert not untouched(first.layers[0])
        raise KeyError
    assert all(untouched(module) for module in model.modules())
    assert [m.config for m in model.modules() if hasattr(m, "config")] == configs
    assert all(a is b for a, b in zip(configs, (m.config for m in model.modules() if hasattr(m, "config")), strict=True))
    assert model.config._attn_implementation in ("eager", "sdpa")
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        again, drawn = First(net, batch), torch.rand(1)
        torch.manual_seed(1)
        assert again and drawn == torch.rand(1) and model.training


def test_attention_of_the_first_token() -> None:
    """As transformers' own, with either kind of mask."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 4) for _ in range(3))
    keep = torch.rand(2, 1, 7, 7) < 0.7
    keep[..., 0] = True
    module = nn.Identity()
    for mask in (None, keep, torch.zeros(2, 1, 7, 7).masked_fill(~keep, -1e9)):
        want = sdpa_attention_forward(module, q, k, v, mask, is_causal=False)[0]
        got = attention(module, q, k, v, mask)[0]
        assert got.shape == want.shape and torch.allclose(got[:, 0], want[:, 0], atol=1e-6)
    with pytest.raises(ValueError, match="grouped"):
        attention(module, q, k[:, :1], v[:, :1], None)
    with pytest.raises(ValueError, match="position_bias"):
        attention(module, q, k, v, None, position_bias=torch.zeros(3, 7, 7))  # no logit changes yet, but it may learn
    attention(module, q, k, v, None, output_attentions=False, position_ids=torch.arange(7))


def test_a_mean_reads_every_token(tmp_path: Path) -> None:
    """A pooling block behind the last one, and an encoder with the bare first token read."""
    import transformers as T

    batch = {"input_ids": torch.randint(5, 15, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    for how, reads in (("mean", False), ("first", True)):
        model = T.AutoModelForSequenceClassification.from_pretrained(tiny.bert(tmp_path / how)).eval()
        pooling.install(model, how)
        assert bool(First(Net.of(model, batch), batch)) == reads


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stage_learns_the_same(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without, but for rounding: the loop, products of our own, named word embeddings."""
    stage = replace(STAGE, dropout=False, epochs=1)
    short = fitting("bert", stage, precision=precision)
    monkeypatch.setattr(sys.modules["affinage.fit"].First, "of", lambda *args: None)
    plain = fitting("bert", stage, precision=precision)
    assert short.first and not plain.first
    for i, one in enumerate((plain, short)):
        run(one, tmp_path / str(i))
    left = tensors(short)
    for name, value in tensors(plain).items():
        if value.is_floating_point():
            assert (left[name] - value).abs().max() <= (1e-4 if precision == "fp32" else 5e-3), name


def test_tasks_that_read_more_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> None:
        raise AssertionError

    made = fitting("bert", STAGE)
    monkeypatch.setattr(sys.modules["affinage.fit"].First, "of", never)
    made.task = copy.copy(made.task)
    object.__setattr__(made.task, "classifies", False)
    again = type(made)(
        made.net, STAGE, made.task, made.rows, made.aims, seed=0, precision="fp32", weights=None
    )  # fmt: skip
    assert again.first is None
