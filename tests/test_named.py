"""Rows of a table that no training text names do not learn, and nothing else is changed by leaving them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from transformers.modeling_outputs import SequenceClassifierOutput

from affinage import named
from affinage.fit import Fitting
from affinage.named import Named
from affinage.tasks.text_classification import TokenRows

from .test_fit import STAGE, fitting, run, tensors

FAMILIES = ["bert", "roberta", "distilbert", "electra", "gpt2", "modernbert"]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the table is."""
    monkeypatch.setattr(named, "PAYS", 1)


def rows(*texts: list[int], padding: int = 0) -> TokenRows:
    return TokenRows(np.concatenate(texts).astype(np.int32), np.cumsum([0, *map(len, texts)]).astype(np.int64), padding)


def both(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Fitting]) -> tuple[Fitting, Fitting]:
    """The same stage with the named rows alone, and with the whole table."""
    found = []
    for pays in (1, 1 << 40):
        monkeypatch.setattr(named, "PAYS", pays)
        found.append(make())
    assert found[0].named.parts and not found[1].named.parts
    return found[0], found[1]


@pytest.mark.parametrize("name", FAMILIES)
def test_it_learns_what_the_whole_table_learns(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Dropout too: the same draws, losses, weights to rounding; the norm that clips adds up the same numbers in another order."""
    few, whole = both(monkeypatch, lambda: fitting(name, replace(STAGE, average=0.5)))
    before = tensors(few)
    for number, made in enumerate((few, whole)):
        torch.manual_seed(1)  # of dropout
        run(made, tmp_path / str(number))
        made.join()
    found, expected = tensors(few), tensors(whole)
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-5, msg=key)
    (table,) = [n for n, t in before.items() if t.shape == (99, 32)]
    moved = (found[table] != before[table]).any(1)
    assert 0 < moved.sum() < 99 and moved.sum() == (expected[table] != before[table]).any(1).sum()
    assert few.trained.keys() == whole.trained.keys() and few.trained[table].shape == (99, 32) and not few.named.parts


def test_rows_that_no_text_names_stay_to_the_bit_where_weights_decay(always: None, tmp_path: Any) -> None:
    made = fitting("bert", replace(STAGE, weight_decay=0.1))
    before = tensors(made)["bert.embeddings.word_embeddings.weight"]
    run(made, tmp_path / "records.jsonl")
    ids = named.named(made.rows)
    others = torch.ones(99, dtype=torch.bool)
    others[ids] = False
    after = tensors(made)["bert.embeddings.word_embeddings.weight"]
    assert after[others].equal(before[others])
    moved = (after != before).any(1)
    assert moved[ids].tolist() == [i != 0 for i in ids]  # padding has no gradient, and is zero
    assert made.named.counts() == {"bert.embeddings.word_embeddings.weight": [len(ids), 99]}


def test_the_state_is_that_of_the_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of either goes on as the other: weights, averages and moments."""
    few, whole = both(monkeypatch, lambda: fitting("bert", replace(STAGE, average=0.5)))
    for made in (few, whole):
        torch.manual_seed(1)
        for step in range(3):
            made.step(np.arange(8) + step)
    ours, theirs = few.state(), whole.state()
    assert ours[1]["trained"] == theirs[1]["trained"] and ours[0].keys() == theirs[0].keys()
    for key, tensor in theirs[0].items():
        torch.testing.assert_close(ours[0][key], tensor, rtol=1e-4, atol=1e-5, msg=key)
    crossed = both(monkeypatch, lambda: fitting("bert", replace(STAGE, average=0.5)))
    for made, (state, facts) in zip(crossed, (theirs, ours), strict=True):
        made.restore({k: t.clone() for k, t in state.items()}, facts)
        torch.manual_seed(1)
        made.step(np.arange(8))
    for key, tensor in crossed[1].state()[0].items():
        torch.testing.assert_close(crossed[0].state()[0][key], tensor, rtol=1e-4, atol=1e-5, msg=key)


def test_padding_is_named_by_batches_that_are_padded() -> None:
    assert named.named(rows([5, 6], [7, 8])).tolist() == [5, 6, 7, 8]
    assert named.named(rows([5, 6], [7])).tolist() == [0, 5, 6, 7]
    assert named.named(rows([5, 6], [7], padding=9)).tolist() == [5, 6, 7, 9]


def test_one_long_text_among_many_of_one_length_pads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches for looking hold rows of like length; those that teach may not."""
    monkeypatch.setattr(named, "TOKENS", 4)
    assert named.named(rows([5, 6, 7, 8], *[[3, 4]] * 5)).tolist() == [0, 3, 4, 5, 6, 7, 8]


def test_a_text_that_was_not_looked_at_is_refused(always: None) -> None:
    made = fitting("bert", STAGE)
    ids = named.named(made.rows)
    unknown = next(i for i in range(99) if i not in ids)
    forward = next(iter(made.named.forwards.values()))
    assert forward(ids[:2]).shape == (2, 32)
    with pytest.raises(IndexError):
        forward(torch.tensor([unknown]))


class Toy(nn.Module):
    """Reads its table as it is told."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.table, self.head, self.how = nn.Embedding(50, 4), nn.Linear(4, 2), how
        self.other = nn.Embedding(50, 4)
        if how == "tied":
            self.other.weight = self.table.weight

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SequenceClassifierOutput:
        ids = input_ids.flip(1) if self.how == "other ids" else input_ids
        hidden = self.table(ids).mean(1)
        if self.how == "weight":
            hidden = hidden + linear(hidden, self.table.weight).mean(1, keepdim=True)
        return SequenceClassifierOutput(logits=self.head(hidden))


@pytest.mark.parametrize(("how", "taken"), [("", True), ("other ids", False), ("weight", False), ("tied", False)])
def test_a_table_that_is_read_in_another_way_learns_whole(how: str, taken: bool, always: None) -> None:
    model = Toy(how).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    data = rows([5, 6, 7], [8, 9])
    found = Named(model, dict(model.named_parameters()), data, model)
    assert list(found.parts) == (["table.weight"] if taken else [])
    assert model.table.weight.requires_grad is not taken and model.training
    assert all(v.equal(before[k]) for k, v in model.state_dict().items()) and "forward" not in model.table.__dict__
    found.undo()
    assert model.table.weight.requires_grad


@pytest.mark.parametrize("change", ["hook", "forward", "frozen", "scale_grad_by_freq", "max_norm"])
def test_a_table_that_does_more_learns_whole(change: str, always: None) -> None:
    model = Toy("")
    learning = dict(model.named_parameters())
    if change == "hook":
        model.table.register_forward_hook(lambda layer, args, out: out)
    elif change == "forward":
        model.table.forward = model.table.forward
    elif change == "frozen":
        del learning["table.weight"]
    else:
        setattr(model.table, change, 1.0 if change == "max_norm" else True)
    assert not Named(model, learning, rows([5, 6], [7]), model).parts


def test_small_tables_are_left_alone() -> None:
    assert not fitting("bert", STAGE).named.parts
