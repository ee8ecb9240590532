"""Boxes are clipped, dropped and counted; what is left lies in the picture and has an area."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from affinage.boxes import BROKEN, CLIPPED, EMPTY, OUTSIDE, cleaned, relative

NUMBER = st.floats(-300, 300) | st.sampled_from([math.nan, math.inf, -math.inf])


def test_each_fault_is_counted_once() -> None:
    boxes = [
        [10, 10, 20, 30],
        [-5, 10, 20, 30],  # leaves the picture
        [10, 10, 10, 30],  # no width
        [30, 10, 20, 30],  # the wrong way round
        [200, 10, 220, 30],  # beside the picture
        [math.nan, 0, 5, 5],
        [0, 0, 100.3, 50],  # rounding
    ]
    found = cleaned(list("abcdefg"), boxes, (100, 50), [False] * 6 + [True])
    assert found.classes.tolist() == ["a", "b", "g"] and found.crowd.tolist() == [False, False, True]
    assert found.boxes.tolist() == [[10, 10, 20, 30], [0, 10, 20, 30], [0, 0, 100, 50]]
    assert dict(found.faults) == {BROKEN: 1, EMPTY: 2, OUTSIDE: 1, CLIPPED: 1}


@given(st.lists(st.tuples(NUMBER, NUMBER, NUMBER, NUMBER), max_size=8))
def test_whatever_comes_in(boxes: list[tuple[float, ...]]) -> None:
    found = cleaned(["x"] * len(boxes), boxes, (64, 48))
    assert np.isfinite(found.boxes).all()
    assert (found.boxes >= 0).all() and (found.boxes <= [64, 48, 64, 48]).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    dropped = sum(count for what, count in found.faults if what != CLIPPED)
    assert len(found) + dropped == len(boxes)
    shares = found.relative()
    assert shares.dtype == np.float32 and (shares >= 0).all() and (shares <= 1 + 1e-6).all()


def test_none_is_a_picture_too() -> None:
    found = cleaned([], [], (10, 10))
    assert len(found) == 0 and found.boxes.shape == (0, 4) and found.relative().shape == (0, 4) and not found.faults


def test_numbers_and_text() -> None:
    found = cleaned(["b", "a", "z"], [[0, 0, 1, 1]] * 3, (4, 4))
    numbered = found.numbered({"a": 0, "b": 1})
    assert numbered.classes.tolist() == [1, 0, -1] and numbered.classes.dtype == np.int64
    assert str(found) == str(cleaned(["b", "a", "z"], [[0, 0, 1, 1]] * 3, (4, 4))) != str(numbered)
    assert relative(np.array([[0.0, 0, 50, 100]]), (100, 100)).tolist() == [[0.25, 0.5, 0.5, 1.0]]
