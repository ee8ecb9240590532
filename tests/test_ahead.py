"""Read ahead: what is asked for next is there, and nothing else is ever taken for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from affinage.ahead import Ahead

from .test_fit import STAGE, fitting, run, tensors

HERE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_only_the_rows_that_are_asked_for() -> None:
    rows, ahead = fitting("bert", STAGE).rows, Ahead(HERE)
    ahead.read(rows, np.arange(5))
    found, want = ahead.taken(np.arange(5)), rows.batch(np.arange(5))
    assert found is not None and found.keys() == want.keys()
    assert all(torch.equal(found[name].cpu(), value) for name, value in want.items())
    assert ahead.taken(np.arange(5)) is None  # it is gone
    ahead.read(rows, np.arange(5))
    assert ahead.taken(np.arange(4)) is None
    ahead.read(rows, np.arange(5))
    ahead.read(rows, None)
    assert ahead.taken(np.arange(5)) is None


def test_the_loop_learns_the_same(tmp_path: Path) -> None:
    """Every batch of an epoch but the first was read while the one before was computed; no batch is read twice."""
    stage = replace(STAGE, dropout=False)
    plain, other = fitting("bert", stage), fitting("bert", stage)
    other.ahead = Ahead(HERE)
    asked: list[bool] = []
    taken = other.ahead.taken

    def watching(numbers: np.ndarray) -> object:
        found = taken(numbers)
        asked.append(found is not None)
        return found

    other.ahead.taken = watching  # type: ignore[method-assign, assignment]
    for i, one in enumerate((plain, other)):
        run(one, tmp_path / str(i))
    assert asked == [False, True, True] * STAGE.epochs
    left = tensors(other)
    assert all(torch.equal(value, left[name]) for name, value in tensors(plain).items())
