"""From class names to numbers, and the two ways to take rows out of a split class by class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .errors import AffinageError
from .types import Data, Split


def encode(data: Data) -> tuple[Data, tuple[str, ...]]:
    """The data with int64 targets (N,), and the C class names in the order of those numbers.

    The order is the one that the source declares, else that of the training split, sorted, as numbers if all are integers.
    A label that only validation or test has becomes -1.

    Raises:
        AffinageError: fewer than two classes in train, or a label outside the declared classes.
    """
    found = set(data.train.targets)
    if len(found) < 2:
        only = f" ('{next(iter(found))}')" if found else ""
        raise AffinageError(f"the training split of {data.source} has {len(found)} class{only}; expected two or more")
    integers = all(re.fullmatch(r"[+-]?\d+", label) for label in found)
    classes = data.classes or tuple(sorted(found, key=lambda label: (int(label), label) if integers else (0, label)))
    number = {label: i for i, label in enumerate(classes)}
    unknown = sorted(found - number.keys())
    if unknown:
        raise AffinageError(f"{data.source} declares {len(classes)} classes, and '{unknown[0]}' in train is none of them")
    splits: dict[str, Any] = {}
    for name, split in data.splits():
        targets: Any = np.fromiter((number.get(label, -1) for label in split.targets), np.int64, len(split))
        splits[name] = Split(split.inputs, targets, split.ids)
    return replace(data, classes=classes, **splits), classes


def holdout(
    split: Split, share: float, seed: int, leaders: np.ndarray | None = None, groups: Sequence[Any] | None = None
) -> tuple[Split, Split]:
    """(rest, held): of each class with two rows or more, `share` is held, at least one and never all; rows keep their order.

    `groups` (N,): what each row is one of, where that is not its target (`Task.groups`).

    `leaders` (N,): the number of the row with which each one goes, its own for most; copies of a row go with the first of them.
    Then the share is kept but roughly, and a class that has nothing but copies of one row stays in the rest.

    Raises:
        AffinageError: `share` is not between 0 and 1, or no class has two rows.
    """
    if not 0 < share < 1:
        raise AffinageError(f"a held-out share of {share} is not between 0 and 1")
    groups = split.targets if groups is None else groups
    rank, size = _ranks(groups, seed)
    quota = np.where(size > 1, np.clip(np.floor(share * size + 0.5), 1, np.maximum(size - 1, 1)), 0)
    held = rank < quota
    if leaders is not None:
        held = held[leaders]
        left = {group for group, gone in zip(groups, held.tolist(), strict=True) if not gone}
        held &= np.fromiter((group in left for group in groups), bool, len(split))
    if not held.any():
        raise AffinageError("no class of the training split has two rows, so none can be held out for validation")
    return split.take(np.flatnonzero(~held)), split.take(np.flatnonzero(held))


def few(split: Split, per_class: int, seed: int, groups: Sequence[Any] | None = None) -> Split:
    """At most `per_class` rows of each class (or group), in their order; with one seed, fewer rows are a subset of more.

    Raises:
        AffinageError: `per_class` is below 1.
    """
    if per_class < 1:
        raise AffinageError(f"{per_class} rows a class; expected one or more")
    return split.take(np.flatnonzero(_ranks(split.targets if groups is None else groups, seed)[0] < per_class))


def spread(split: Split, most: int, seed: int) -> np.ndarray:
    """(M,) sorted numbers of about `most` rows: of each class its share, but 20 where it has as many. All, if they are fewer."""
    if len(split) <= most:
        return np.arange(len(split))
    rank, size = _ranks(split.targets, seed)
    return np.flatnonzero(rank < np.maximum(np.ceil(size * (most / len(split))), np.minimum(size, 20)))


def _ranks(groups: Sequence[Any], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """For each row: its place (from 0) in a drawn order of its class, and the number of rows of its class; (N,) int64 each."""
    number = {name: i for i, name in enumerate(sorted(set(groups)))}
    group = np.fromiter((number[name] for name in groups), np.int64, len(groups))  # an array of names would be large
    drawn = np.random.default_rng(seed).permutation(len(groups))
    order = drawn[np.argsort(group[drawn], kind="stable")]  # class by class, in drawn order within each
    counts = np.bincount(group)
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(groups), np.int64)
    rank[order] = np.arange(len(groups)) - starts[group[order]]
    return rank, counts[group]
