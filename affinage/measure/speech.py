"""Scores of a transcript against what was said: word and character error rate, and which word became which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

DRAWS = 1000  # bootstrap resamples: the 2.5 % point then rests on 25 draws


def edits(said: Sequence[Any], heard: Sequence[Any]) -> int:
    """The fewest insertions, deletions and substitutions that make `heard` of `said` (Levenshtein 1966)."""
    return int(_table(said, heard)[-1, -1])


def alignment(said: Sequence[str], heard: Sequence[str]) -> list[tuple[str | None, str | None]]:
    """Pairs in order: (word, word), equal or not; (word, None) where it was missed, (None, word) where it was added."""
    table = _table(said, heard)
    i, j = len(said), len(heard)
    pairs: list[tuple[str | None, str | None]] = []
    while i or j:
        if i and j and table[i, j] == table[i - 1, j - 1] + (said[i - 1] != heard[j - 1]):
            i, j = i - 1, j - 1
            pairs.append((said[i], heard[j]))
        elif i and table[i, j] == table[i - 1, j] + 1:
            i -= 1
            pairs.append((said[i], None))
        else:
            j -= 1
            pairs.append((None, heard[j]))
    return pairs[::-1]


def _table(said: Sequence[Any], heard: Sequence[Any]) -> np.ndarray:
    """(len(said) + 1, len(heard) + 1): the distance of every two beginnings."""
    numbers = {thing: i for i, thing in enumerate(dict.fromkeys([*said, *heard]))}
    a = np.fromiter((numbers[x] for x in said), np.int64, len(said))
    b = np.fromiter((numbers[x] for x in heard), np.int64, len(heard))
    table = np.empty((len(a) + 1, len(b) + 1), np.int64)
    table[0], table[:, 0] = np.arange(len(b) + 1), np.arange(len(a) + 1)
    places = np.arange(len(b) + 1)
    for i, x in enumerate(a):
        row = np.empty(len(b) + 1, np.int64)
        row[0] = i + 1
        row[1:] = np.minimum(table[i, 1:] + 1, table[i, :-1] + (b != x))
        # insertions walk along the row: the least of (value left of here + distance) at once
        table[i + 1] = np.minimum.accumulate(row - places) + places
    return table


def scores(heard: Sequence[str], said: Sequence[str]) -> dict[str, Any]:
    """What a report says about N transcripts, as plain floats that JSON can hold.

    `wer` and `cer`: edits of all utterances over the words (characters, spaces among them) that were said, each with a 95 %
    `_interval` (percentile bootstrap over utterances); `exact`: the share of utterances without an edit; and `n`. Where nothing
    was said at all the rates are 0 if nothing was heard, else 1. N = 0 gives `{"n": 0}`.
    """
    if not len(said):
        return {"n": 0}
    words = np.array([[edits(s.split(), h.split()), len(s.split())] for s, h in zip(said, heard, strict=True)])
    letters = np.array([[edits(s, h), len(s)] for s, h in zip(said, heard, strict=True)])
    draws = np.random.default_rng(0).multinomial(len(said), np.full(len(said), 1 / len(said)), size=DRAWS)
    found: dict[str, Any] = {}
    for name, counts in (("wer", words), ("cer", letters)):
        found[name] = _rate(*counts.sum(0))
        wrong, total = (draws @ counts).T
        every = np.where(total > 0, wrong / np.maximum(total, 1), wrong > 0)
        found[f"{name}_interval"] = [float(q) for q in np.percentile(every, [2.5, 97.5])]
    return {**found, "exact": float((letters[:, 0] == 0).mean()), "n": len(said)}


def _rate(wrong: int, total: int) -> float:
    return float(wrong / total) if total else float(bool(wrong))
