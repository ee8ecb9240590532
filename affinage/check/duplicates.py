"""Rows that stand twice: across splits (leaks), within train, and under two labels."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import numpy as np

from affinage.types import Data, Finding, Split

from .content import Seen

# Measured: of the photographs of hymenoptera, scaled and saved anew as JPEG of quality 60, 6 bits find 99 % (2 bits: 76 %),
# and the greys differ by at most 5; of 52 million pairs of different images (CIFAR-10, Tiny ImageNet) none passes both bounds.
CLOSE = 6  # of the 64 bits of two images' difference hashes that may differ
GREY = 6.0  # of 255: mean difference of two images' 16x16 greys that may remain; without it, plain backgrounds look alike
DUPLICATE = "duplicate-across-splits"
REPEATED, NEARLY_REPEATED = "duplicate-in-train", "near-duplicate-in-train"

Row = tuple[str, str, str, str]  # (split, id, other split, other id)


# ----------------------------------------------------------------------------------------------------------- duplicates
def across(data: Data, seen: dict[str, Seen]) -> list[Finding]:
    """Rows of a later split that stand in an earlier one: exactly (a leak), or nearly (a warning)."""
    found = []
    splits = dict(data.splits())
    for one, two in combinations(splits, 2):
        ids, others = splits[one].ids, splits[two].ids
        pairs = _same(seen[one].exact, seen[two].exact)
        if pairs:
            message = f"{len({j for _, j in pairs})} of {len(others)} rows of {two} stand in {one} as well"
            found.append(Finding(DUPLICATE, "leak", message, tuple((one, ids[i], two, others[j]) for i, j in pairs)))
        near = _close(seen[one], seen[two]) if data.kind == "image" else _same(seen[one].near, seen[two].near)
        here, there = seen[one].exact, seen[two].exact  # what is equal was told above, what is unreadable is like nothing
        told = np.isin(there[[j for _, j in near]], here)
        near = [(i, j) for (i, j), was in zip(near, told.tolist(), strict=True) if here[i] and there[j] and not was]
        if near:
            message = f"{len({j for _, j in near})} of {len(others)} rows of {two} nearly stand in {one}"
            named = tuple((one, ids[i], two, others[j]) for i, j in near)
            found.append(Finding("near-duplicate-across-splits", "warning", message, named))
    return found


def _same(one: np.ndarray, two: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of equal keys: each row of either side that has a partner stands in one at least, so that they stay few."""
    both = np.intersect1d(np.unique(one[one != 0]), np.unique(two[two != 0]), assume_unique=True)
    first_one: dict[int, int] = {}
    first_two: dict[int, int] = {}
    for first, keys in ((first_one, one), (first_two, two)):
        for i in np.flatnonzero(np.isin(keys, both)).tolist():
            first.setdefault(int(keys[i]), i)
    pairs = {(i, first_two[int(one[i])]) for i in np.flatnonzero(np.isin(one, both)).tolist()}
    pairs |= {(first_one[int(two[j])], j) for j in np.flatnonzero(np.isin(two, both)).tolist()}
    return sorted(pairs)


def _close(one: Seen, two: Seen) -> list[tuple[int, int]]:
    """For each image of the second split that has one, its nearest look-alike in the first; all pairs, in blocks of numpy."""
    assert one.grey is not None and two.grey is not None
    best: dict[int, tuple[float, int]] = {}
    block = max(1, 2**22 // max(len(one.near), 1))  # 4M pairs, 32 MB, at a time
    for start in range(0, len(two.near), block):
        bits = np.bitwise_count(two.near[start : start + block, None] ^ one.near[None, :])
        later, earlier = np.nonzero(bits <= CLOSE)
        for at in range(0, len(later), 2**14):
            j, i = later[at : at + 2**14] + start, earlier[at : at + 2**14]
            apart = np.abs(one.grey[i].astype(np.int16) - two.grey[j].astype(np.int16)).mean(1)
            order = np.lexsort((i, apart, j))  # the nearest of each j first
            for row in order[np.unique(j[order], return_index=True)[1]]:
                candidate = (float(apart[row]), int(i[row]))
                if apart[row] <= GREY and candidate < best.get(int(j[row]), (np.inf, 0)):
                    best[int(j[row])] = candidate
    return sorted((i, j) for j, (_, i) in best.items())


def within(data: Data, seen: dict[str, Seen]) -> list[Finding]:
    """Repeats within train, and equal content under different labels anywhere."""
    keys = np.sort(np.concatenate([one.exact for one in seen.values()]))
    twice = np.unique(keys[1:][(keys[1:] == keys[:-1]) & (keys[1:] != 0)])  # the others need no look
    repeats: list[Row] = []
    conflicts: list[Row] = []
    met: dict[int, tuple[str, str, str]] = {}
    for name, split in data.splits():
        first: dict[int, int] = {}
        for i in np.flatnonzero(np.isin(seen[name].exact, twice)).tolist():
            digest, label, row = int(seen[name].exact[i]), str(split.targets[i]), split.ids[i]
            if name == "train" and first.setdefault(digest, i) != i:
                repeats.append((name, row, name, split.ids[first[digest]]))
            label_then, split_then, row_then = met.setdefault(digest, (label, name, row))
            if label_then != label:
                conflicts.append((name, row, split_then, row_then))
    found = []
    if data.kind == "text":  # of pictures, all pairs would have to be looked at
        alike = _near_repeats(data.train, seen["train"])
        if alike:
            message = f"{len(alike)} rows of train nearly repeat an earlier one"
            found.append(Finding(NEARLY_REPEATED, "warning", message, tuple(alike)))
    if repeats:
        message = f"{len(repeats)} of {len(data.train)} rows of train repeat an earlier one"
        found.append(Finding(REPEATED, "warning", message, tuple(repeats)))
    if conflicts:
        message = f"{len(conflicts)} rows have the content of another row, but another label"
        found.append(Finding("conflicting-labels", "warning", message, tuple(conflicts)))
    return found


def _near_repeats(train: Split, seen: Seen) -> list[Row]:
    """Texts of train that fold to an earlier row's, each with the first of its kind; those that equal one are left out."""
    order, first = np.unique(seen.near, return_index=True)
    leader = first[np.searchsorted(order, seen.near)]
    _, equal = np.unique(seen.exact, return_index=True)
    new = np.zeros(len(train), bool)
    new[equal] = True  # the first of its content
    found = np.flatnonzero(new & (seen.near != 0) & (leader != np.arange(len(train))))
    return [("train", train.ids[i], "train", train.ids[leader[i]]) for i in found.tolist()]


def leaders(split: Split, findings: Iterable[Finding]) -> np.ndarray | None:
    """(N,) for each of train's rows, or some of them, the number of the first that it repeats, else its own; None: none do.

    `findings` are those of `check` on the whole of train.
    """
    root = {row: first for f in findings if f.kind in (REPEATED, NEARLY_REPEATED) for _, row, _, first in f.rows}
    if not root:
        return None
    found, seen = np.arange(len(split)), dict[str, int]()
    for i, row in enumerate(split.ids):
        while row in root:
            row = root[row]
        found[i] = seen.setdefault(row, i)
    return found
