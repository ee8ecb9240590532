"""Rows on a card are read as those of an entry are; here the CPU stands for it, and tests/test_gpu.py has a real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from affinage import card, store
from affinage.card import OnCard
from affinage.ragged import Column, Entry

CPU = torch.device("cpu")
COLUMNS = [Column("float32", (3,), True), Column("bfloat16", (2, 2), True), Column("float32", (5,), False)]
LENGTHS = np.array([4, 1, 7, 2, 3])
ORDER = ((2, 0), (4,), (3, 1))


def values(rows: np.ndarray) -> list[torch.Tensor]:
    """Of each column, told by the row and the place in it."""
    found = []
    for column in COLUMNS:
        counts = LENGTHS[rows] if column.ragged else np.ones(len(rows), int)
        units = np.concatenate([100 * row + np.arange(count) for row, count in zip(rows, counts, strict=True)])
        wide = torch.from_numpy(units).float().reshape(-1, *(1 for _ in column.shape))
        found.append(wide.expand(-1, *column.shape).to(getattr(torch, column.dtype)))
    return found


def written(folder: Path) -> Entry:
    with store.Store(folder, 10**9).write("a" * 64, COLUMNS, LENGTHS) as writer:
        for rows in map(np.array, ORDER):
            plain = [v.view(torch.int16) if v.dtype == torch.bfloat16 else v for v in map(torch.Tensor.contiguous, values(rows))]
            writer.add(rows, [v.numpy() for v in plain])
        return writer.done({})


def added() -> OnCard:
    made = OnCard(COLUMNS, LENGTHS, CPU)
    for rows in map(np.array, ORDER):
        made.add(rows, values(rows))
    return made


@pytest.mark.parametrize("how", ["added", "copied", "copied part by part"])
def test_rows_are_read_in_any_order(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "copied part by part":
        monkeypatch.setattr(card, "PART", 20)
    there = added() if how == "added" else OnCard.of(written(tmp_path), CPU)
    assert len(there) == 5
    for chosen in ([0], [4, 2, 2], [3, 1, 0, 2, 4], []):
        rows = np.array(chosen, int)
        for i, want in enumerate(values(rows) if chosen else []):
            found = there.read(i, rows)
            assert found.dtype == want.dtype and torch.equal(found, want)
        if not chosen:
            assert there.read(0, rows).shape == (0, 3)


def test_what_is_read_is_a_copy() -> None:
    there = added()
    there.read(0, np.array([1]))[:] = -1
    assert (there.read(0, np.array([1])) == 100).all()


def test_a_processor_is_no_card() -> None:
    assert not card.room(CPU, 1)


def test_a_card_keeps_most_of_its_memory_for_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch holds without using it counts as free."""
    for name, found in (("mem_get_info", (600, 1000)), ("memory_reserved", 300), ("memory_allocated", 100)):
        monkeypatch.setattr(torch.cuda, name, lambda where, found=found: found)
    assert card.room(torch.device("cuda"), 200) and not card.room(torch.device("cuda"), 201)
