"""Rates: what each pattern stands for, tables that must be complete, that frozen means frozen, the schedule by its formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from affinage.errors import AffinageError
from affinage.net import Net
from affinage.rates import decayed, freeze, groups, match, resolve, share, train_mode
from affinage.types import Stage

from .zoo import FAMILIES


def make(name: str) -> tuple[Net, dict[str, torch.Tensor]]:
    model, batch = FAMILIES[name].make()
    return Net.of(model, batch), batch


@pytest.fixture(scope="module")
def bert() -> Net:
    return make("bert")[0]


@pytest.mark.parametrize(
    ("pattern", "addresses"),
    [
        ("stem", ["stem"]),
        ("head", ["head"]),
        ("blocks", ["blocks.0", "blocks.1", "blocks.2"]),
        ("blocks.1", ["blocks.1"]),
        ("blocks.-1", ["blocks.2"]),
        ("blocks.-3", ["blocks.0"]),
        ("blocks.-2:", ["blocks.1", "blocks.2"]),
        ("blocks.:2", ["blocks.0", "blocks.1"]),
        ("blocks.:-1", ["blocks.0", "blocks.1"]),
        ("blocks.1:2", ["blocks.1"]),
        ("*", ["stem", "blocks.0", "blocks.1", "blocks.2", "head"]),
    ],
)
def test_an_address_stands_for_its_parameters(bert: Net, pattern: str, addresses: list[str]) -> None:
    groups_ = bert.addresses()
    assert set(match(bert, pattern)) == {name for address in addresses for name in groups_[address]}


def test_a_glob_stands_for_parameter_names(bert: Net) -> None:
    found = match(bert, "*.LayerNorm.*")
    assert len(found) == 2 * (1 + 3 * 2)
    assert found == [name for name, _ in bert.model.named_parameters() if ".LayerNorm." in name]


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("heads", "head"),
        ("blocks.7", "blocks.2'"),
        ("blocks.-9", "blocks.0'"),
        ("blocks.3:", "blocks.2:'"),
        ("blocks.9:12", "blocks.2:'"),
        ("blocks.2:1", "blocks.2:'"),
        ("clasifier.weight", "classifier.weight"),
        ("Stem", "stem"),
    ],
)
def test_a_pattern_that_matches_nothing_names_the_nearest(bert: Net, pattern: str, near: str) -> None:
    with pytest.raises(AffinageError, match=rf"'{pattern}' matches no parameter, the nearest is '{near}") as caught:
        match(bert, pattern)
    assert "\n" not in str(caught.value)


def test_the_first_row_that_matches_wins(bert: Net) -> None:
    table = resolve(bert, (("*.bias", 3e-3), ("head", 1e-3), ("blocks.-1", 2e-5), ("*", None)))
    assert list(table) == [name for name, _ in bert.model.named_parameters()]
    assert table["classifier.bias"] == 3e-3
    assert table["classifier.weight"] == 1e-3
    assert table["bert.pooler.dense.weight"] == 2e-5
    assert table["bert.encoder.layer.1.output.dense.weight"] is None


def test_a_table_must_cover_everything_with_positive_rates(bert: Net) -> None:
    with pytest.raises(AffinageError, match=r"no row .*bert.embeddings.*end the table with \('\*', None\)"):
        resolve(bert, (("head", 1e-3), ("blocks", 1e-5)))
    for rate in (0.0, -1e-3, float("nan"), float("inf")):
        with pytest.raises(AffinageError, match="rate of 'head'"):
            resolve(bert, (("head", rate), ("*", None)))


def test_decayed(bert: Net) -> None:
    assert decayed(bert, 1e-4, 0.5, 1e-3) == (
        ("head", 1e-3), ("blocks.-1", 1e-4), ("blocks.-2", 5e-5), ("blocks.-3", 2.5e-5), ("*", None))  # fmt: skip
    assert decayed(bert, 1e-4, 0.5, 1e-3, "everything")[-2:] == (("stem", 1.25e-5), ("*", None))
    assert decayed(bert, 1e-4, 0.5, 1e-3, 0) == decayed(bert, 1e-4, 0.5, 1e-3, "head") == (("head", 1e-3), ("*", None))
    assert decayed(bert, 1e-4, 0.5, 1e-3, "stem") == (("head", 1e-3), ("stem", 1e-4), ("*", None))
    assert decayed(bert, 1e-4, 0.5, 1e-3, 2) == decayed(bert, 1e-4, 0.5, 1e-3, "blocks.-2:")
    assert decayed(bert, 1e-4, 0.5, None, "blocks.0") == (("head", None), ("blocks.-3", 2.5e-5), ("*", None))
    for wrong in (4, -1, "blocks.8", "steam"):
        with pytest.raises(AffinageError, match="blocks"):
            decayed(bert, 1e-4, 0.5, 1e-3, wrong)


def test_decayed_of_a_network_without_blocks() -> None:
    net, _ = make("albert_shares_one_block")
    with pytest.raises(AffinageError, match="no chain of two or more blocks"):
        decayed(net, 1e-4, 0.5, 1e-3)
    assert decayed(net, 1e-4, 0.5, 1e-3, "everything") == (("head", 1e-3), ("stem", 1e-4), ("*", None))


def test_freeze_gives_gradients_to_those_that_learn_alone(bert: Net) -> None:
    net, batch = make("bert")
    net.model(**batch).logits.sum().backward()
    table = resolve(net, decayed(net, 1e-4, 0.5, 1e-3, 1))
    freeze(net, table)
    assert all((p.grad is not None) <= (table[n] is not None) for n, p in net.model.named_parameters())
    net.model.zero_grad()
    net.model(**batch).logits.sum().backward()
    assert {n for n, p in net.model.named_parameters() if p.grad is not None} == set(match(net, "head") + match(net, "blocks.-1"))


def test_groups_are_by_rate_and_kind(bert: Net) -> None:
    table = resolve(bert, decayed(bert, 1e-4, 0.5, 1e-3, 2))
    found = groups(bert, table)
    assert sorted((g["lr"], "weight_decay" in g) for g in found) == [(r, d) for r in (5e-5, 1e-4, 1e-3) for d in (False, True)]
    assert sorted(n for g in found for n in g["names"]) == sorted(n for n, rate in table.items() if rate is not None)
    named = dict(bert.model.named_parameters())
    for g in found:
        assert all(p is named[n] and table[n] == g["lr"] for n, p in zip(g["names"], g["params"], strict=True))
        assert all(("LayerNorm" in n or n.endswith("bias")) == ("weight_decay" in g) for n in g["names"])
    optimizer = torch.optim.AdamW(found, weight_decay=0.1)
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.1}


# ------------------------------------------------------------------------------------------------------------- frozen
@pytest.mark.parametrize("name", ["resnet", "regnet", "mobilenet_v2", "efficientnet"])
@pytest.mark.parametrize("dropout", [True, False])
def test_statistics_move_where_everything_learns_and_nowhere_else(name: str, dropout: bool) -> None:
    net, batch = make(name)
    table = resolve(net, decayed(net, 1e-4, 0.5, 1e-3, 1))
    freeze(net, table)
    train_mode(net, table, dropout)
    before = {n: b.clone() for n, b in net.model.named_buffers() if "running" in n}
    net.model(**batch)
    moved = {n for n, b in net.model.named_buffers() if n in before and not torch.equal(b, before[n])}
    norms = {n.rpartition(".")[0] for n in before}
    learning = {n for n in norms if all(table[f"{n}.{p}"] is not None for p, _ in net.model.get_submodule(n).named_parameters())}
    assert 0 < len(learning) < len(norms)
    assert {n.rpartition(".")[0] for n in moved} == learning


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if not f.slow and f.blocks])
def test_dropout_of_frozen_blocks_is_off(name: str) -> None:
    """The output of the last frozen block is the same twice, and is that of eval mode."""
    net, batch = make(name)
    for module in net.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.5
    table = resolve(net, decayed(net, 1e-4, 0.5, 1e-3, 1))
    train_mode(net, table)
    seen: list[torch.Tensor] = []
    frozen = net.model.get_submodule(net.blocks[-2])
    hook = frozen.register_forward_hook(lambda m, a, o: seen.append(o[0] if isinstance(o, tuple) else o))
    with torch.no_grad():
        net.model(**batch)
        net.model(**batch)
        net.model.eval()
        net.model(**batch)
    hook.remove()
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert", "gpt2", "deberta_v2"])
def test_dropout_of_learning_blocks_is_on_unless_told_otherwise(name: str) -> None:
    net, batch = make(name)
    for module in net.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    table = resolve(net, decayed(net, 1e-4, 0.5, 1e-3, 1))

    def twice(dropout: bool) -> bool:
        train_mode(net, table, dropout)
        with torch.no_grad():
            return torch.equal(net.model(**batch).logits, net.model(**batch).logits)

    assert not twice(True)
    assert twice(False)


def test_attention_reads_the_flag_of_its_own_module(bert: Net) -> None:
    table = resolve(bert, decayed(bert, 1e-4, 0.5, 1e-3, 1))
    train_mode(bert, table)
    attention = [m.training for n, m in bert.model.named_modules() if n.endswith("attention.self")]
    assert attention == [False, False, True]
    assert bert.model.dropout.training  # before the classifier, after the last block, which learns
    assert not bert.model.bert.embeddings.dropout.training

    train_mode(bert, resolve(bert, (("head", 1e-3), ("*", None))))  # the head alone: its input is what was computed once
    assert [n for n, m in bert.model.named_modules() if m.training] == ["classifier"]
    train_mode(bert, resolve(bert, (("*.LayerNorm.*", 1e-3), ("*", None))))
    assert {n.rpartition(".")[2] for n, m in bert.model.named_modules() if m.training} == {"LayerNorm"}
    train_mode(bert, resolve(bert, (("*", 1e-3),)))
    assert all(m.training for m in bert.model.modules())
    train_mode(bert, resolve(bert, (("*", 1e-3),)), dropout=False)
    assert not any(m.training for m in bert.model.modules())


@pytest.mark.parametrize(
    ("address", "near"),
    [("blocks.9", "blocks.{last}"), ("blocks.-7", "blocks.0"), ("block.-2:", "blocks.-2:"), ("al", "all"), ("zzz", None)],
)
def test_an_address_of_no_block_names_the_nearest(bert: Net, address: str, near: str | None) -> None:
    last = len(bert.blocks) - 1
    with pytest.raises(AffinageError, match=f"'{address}' stands for none of the {last + 1} blocks") as caught:
        decayed(bert, 1e-4, 1e-3, 1.0, address)
    if near is None:
        assert "did you mean" not in str(caught.value)
    else:
        assert f", did you mean '{near.format(last=last)}'?" in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- schedule
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_share_by_its_formula(schedule: Any, warmup: float) -> None:
    steps = 40
    warm = round(warmup * steps)
    stage = Stage("body", "fit", (("*", 1e-3),), epochs=2, schedule=schedule, warmup=warmup)
    found = [share(stage, step, steps) for step in range(steps)]
    for step, value in enumerate(found):
        left = (step - warm) / (steps - warm)
        after = {"cosine": math.cos(math.pi * left / 2) ** 2, "linear": 1 - left, "constant": 1.0}[schedule]
        assert value == pytest.approx((step + 1) / (warm + 1) if step < warm else after, abs=1e-12)
    assert max(found) == found[warm] == 1.0 and min(found) > 0
    assert found[:warm] == sorted(found[:warm]) and found[warm:] == sorted(found[warm:], reverse=True)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_share_of_few_steps(steps: int) -> None:
    """One step with warm-up takes half the rate, and no step takes none."""
    assert all(0 < share(Stage("body", "fit", (("*", 1e-3),)), step, steps) <= 1 for step in range(steps))
