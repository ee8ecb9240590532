"""Class numbers, and rows taken out class by class."""

from __future__ import annotations

import numpy as np
import pytest

from affinage import labels
from affinage.errors import AffinageError
from affinage.types import Data, Split


def split(targets: list[str]) -> Split:
    return Split([f"text {i}" for i in range(len(targets))], targets, [f"row:{i}" for i in range(len(targets))])


@pytest.mark.parametrize(
    ("targets", "declared", "order"),
    [
        (["b", "a", "c"], None, ("a", "b", "c")),
        (["10", "9", "-1"], None, ("-1", "9", "10")),  # as numbers
        (["10", "9", "x"], None, ("10", "9", "x")),
        (["a", "b"], ("z", "b", "a"), ("z", "b", "a")),  # declared wins, also with a class without rows
    ],
)
def test_order(targets: list[str], declared: tuple[str, ...] | None, order: tuple[str, ...]) -> None:
    data, classes = labels.encode(Data("text", "s", split(targets), classes=declared))
    assert classes == order == data.classes
    assert isinstance(data.train.targets, np.ndarray)
    assert data.train.targets.dtype == np.int64
    assert [classes[i] for i in data.train.targets] == targets


def test_a_label_unknown_to_train_is_minus_one() -> None:
    data, classes = labels.encode(Data("text", "s", split(["a", "b"]), split(["b"]), split(["c", "a"])))
    assert classes == ("a", "b")
    assert data.validation is not None
    assert data.test is not None
    assert (data.validation.targets.tolist(), data.test.targets.tolist()) == ([1], [-1, 0])  # type: ignore[attr-defined]


def test_errors() -> None:
    with pytest.raises(AffinageError, match=r"1 class \('a'\); expected two"):
        labels.encode(Data("text", "s", split(["a", "a"])))
    with pytest.raises(AffinageError, match="'c' in train is none of them"):
        labels.encode(Data("text", "s", split(["a", "c"]), classes=("a", "b")))
    with pytest.raises(AffinageError, match="not between"):
        labels.holdout(split(["a", "b"]), 1.0, 0)
    with pytest.raises(AffinageError, match="no class"):
        labels.holdout(split(["a", "b"]), 0.5, 0)
    with pytest.raises(AffinageError, match="expected one or more"):
        labels.few(split(["a", "b"]), 0, 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_holdout(seed: int, share: float) -> None:
    whole = split(["a"] * 100 + ["b"] * 2 + ["c"] + ["d"] * 7)
    rest, held = labels.holdout(whole, share, seed)
    assert sorted([*rest.ids, *held.ids]) == sorted(whole.ids)
    count = {name: list(held.targets).count(name) for name in "abcd"}
    assert count == {"a": round(100 * share), "b": 1, "c": 0, "d": min(max(round(7 * share), 1), 6)}
    again = labels.holdout(whole, share, seed)[1]
    assert list(again.ids) == list(held.ids)
    assert list(held.ids) == sorted(held.ids, key=lambda row: int(row[4:]))


def test_holdout_depends_on_the_seed() -> None:
    whole = split(["a"] * 100 + ["b"] * 100)
    assert list(labels.holdout(whole, 0.2, 0)[1].ids) != list(labels.holdout(whole, 0.2, 1)[1].ids)


@pytest.mark.parametrize("seed", range(5))
def test_few_is_nested(seed: int) -> None:
    whole = split([name for i in range(100) for name in ("abc" if i < 5 else "ab")])
    sets = [set(labels.few(whole, n, seed).ids) for n in (1, 8, 64, 1000)]
    assert [len(s) for s in sets] == [3, 8 + 8 + 5, 64 + 64 + 5, 205]
    assert sets[0] < sets[1] < sets[2] < sets[3]


def test_numbers_and_names_are_drawn_alike() -> None:
    whole = split(["a", "b"] * 50)
    encoded = labels.encode(Data("text", "s", whole))[0].train
    assert list(labels.few(whole, 8, 0).ids) == list(labels.few(encoded, 8, 0).ids)


@pytest.mark.parametrize("seed", range(5))
def test_copies_are_held_out_together(seed: int) -> None:
    """Rows 0, 1, 2 and 20 are one, and so are 5 and 6; a class of nothing but copies stays whole in train."""
    whole = split([*["a", "b"] * 20, "c", "c"])
    leaders = np.arange(42)
    leaders[[1, 2, 20]], leaders[6], leaders[41] = 0, 5, 40
    rest, held = labels.holdout(whole, 0.2, seed, leaders)
    assert sorted([*rest.ids, *held.ids]) == sorted(whole.ids) and 4 <= len(held) <= 12
    for group in ((0, 1, 2, 20), (5, 6), (40, 41)):
        assert len({f"row:{i}" in set(held.ids) for i in group}) == 1
    assert list(rest.targets).count("c") == 2
