"""Batches: every row once, little padding, and a pure function of seed and epoch."""

from __future__ import annotations

import numpy as np
import pytest

from affinage.batches import by_tokens, pieces, shuffled


@pytest.fixture
def lengths() -> np.ndarray:
    return np.random.default_rng(0).integers(3, 120, 1003)


@pytest.mark.parametrize("rows", [0, 1, 5, 1003])
@pytest.mark.parametrize("size", [1, 16, 2000])
def test_every_row_once(rows: int, size: int, lengths: np.ndarray) -> None:
    for batches in (shuffled(lengths[:rows], size, seed=0, epoch=0), by_tokens(lengths[:rows], size, most=40)):
        assert sorted(np.concatenate(batches).tolist() if batches else []) == list(range(rows))
        assert all(len(batch) for batch in batches)


def test_sizes(lengths: np.ndarray) -> None:
    assert sorted(map(len, shuffled(lengths, 16, 0, 0))) == [11, *[16] * 62]
    for batch in by_tokens(lengths, 512, most=10):
        assert len(batch) * lengths[batch].max() <= 512 and len(batch) <= 10
    assert [len(batch) for batch in by_tokens(np.array([900, 4]), 512)] == [
        1,
        128 // 128,
    ]  # a row longer than the budget goes alone


def test_longest_first(lengths: np.ndarray) -> None:
    order = lengths[np.concatenate(by_tokens(lengths, 512))]
    assert (np.diff(order) <= 0).all()


@pytest.mark.parametrize("budget", [64, 512, 4096])
@pytest.mark.parametrize("least", [1, 2, 7, 16])
def test_pieces_of_one_update(lengths: np.ndarray, budget: int, least: int) -> None:
    rows = lengths[:16]
    found = pieces(rows, budget, least)
    assert sorted(np.concatenate(found).tolist()) == list(range(16)) and len(found) >= least
    for part in found:
        assert len(part) == 1 or len(part) * rows[part].max() <= budget
    if least == 1 and 16 * rows.max() <= budget:
        assert found[0].tolist() == list(range(16))  # as they were drawn: nothing changes where nothing must


def test_pure_function_of_seed_and_epoch(lengths: np.ndarray) -> None:
    def flat(seed: int, epoch: int) -> list[int]:
        np.random.seed(len(drawn))  # the global generator has no say
        drawn.append(np.random.rand())
        return np.concatenate(shuffled(lengths, 16, seed, epoch)).tolist()

    drawn: list[float] = []
    assert flat(0, 0) == flat(0, 0)
    assert len({tuple(flat(seed, epoch)) for seed in (0, 1, 2) for epoch in (0, 1, 2)}) == 9


def test_like_lengths_meet(lengths: np.ndarray) -> None:
    """Padding of the windowed order against that of a plain shuffle, as a share of the tokens."""

    def padding(batches: list[np.ndarray]) -> float:
        return sum(len(b) * lengths[b].max() for b in batches) / lengths.sum() - 1

    order = np.random.default_rng(0).permutation(len(lengths))
    plain = [order[i : i + 16] for i in range(0, len(order), 16)]
    assert padding(shuffled(lengths, 16, 0, 0)) < 0.05 < 0.5 < padding(plain)


def test_batches_come_in_no_order_of_length(lengths: np.ndarray) -> None:
    means = [lengths[batch].mean() for batch in shuffled(lengths, 16, 0, 0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.35
