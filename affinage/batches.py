"""Which rows go together: rows of similar length, so that padding costs next to nothing."""

from __future__ import annotations

import numpy as np

from affinage.types import Rows


def by_tokens(lengths: np.ndarray, budget: int, most: int = 256) -> list[np.ndarray]:
    """Every row once, longest first, in batches of at most `budget` padded tokens (or `most` rows); for passes without learning.

    Longest first: what does not fit in memory fails at once and not after an hour.
    """
    order = np.argsort(-lengths, kind="stable")
    batches: list[np.ndarray] = []
    start = 0
    while start < len(order):
        size = int(np.clip(budget // max(int(lengths[order[start]]), 1), 1, most))
        batches.append(order[start : start + size])
        start += size
    return batches


def aligned(rows: Rows, multiple: int) -> Rows:
    """The rows, padded to lengths that are multiples of it where they know how: few shapes then come again and again."""
    return rows.aligned(multiple) if hasattr(rows, "aligned") else rows


def shuffled(lengths: np.ndarray, size: int, seed: int, epoch: int, window: int = 50) -> list[np.ndarray]:
    """The batches of one epoch, a pure function of (seed, epoch), so that a resumed run sees the same ones.

    Rows are shuffled, sorted by length inside windows of `window` batches, cut into batches of `size`, and the batches shuffled:
    a batch holds rows of like length, and which rows meet changes with every epoch. The last, smaller batch is kept.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), size * window):
        rows = order[start : start + size * window]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [rows[i : i + size] for i in range(0, len(rows), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def pieces(lengths: np.ndarray, budget: int, least: int = 1) -> list[np.ndarray]:
    """The rows of one update, by their place in it, in as few pieces as hold `budget` padded tokens each, and at least `least`.

    A row longer than the budget is a piece of its own. Where everything fits into one piece the rows keep their order.
    """
    count = len(lengths)
    if count * int(lengths.max(initial=1)) <= budget and least == 1:
        return [np.arange(count)]
    order = np.argsort(lengths, kind="stable")
    most = max(1, count // least)  # rows a piece
    found: list[np.ndarray] = []
    start = 0
    while start < count:
        stop = start + 1
        while stop < count and stop - start < most and (stop + 1 - start) * int(lengths[order[stop]]) <= budget:
            stop += 1
        found.append(order[start:stop])
        start = stop
    return found
