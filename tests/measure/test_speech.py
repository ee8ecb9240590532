"""Word and character error rates, equal to jiwer's; alignments that spell both sides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from affinage.measure.speech import alignment, edits, scores

WORDS = st.lists(st.sampled_from(["one", "two", "three", "four", "five", "six"]), max_size=8).map(" ".join)


@given(st.lists(st.tuples(WORDS.filter(bool), WORDS), min_size=1, max_size=6))
def test_rates_are_those_of_jiwer(pairs: list[tuple[str, str]]) -> None:
    jiwer = pytest.importorskip("jiwer")
    said, heard = [a for a, _ in pairs], [b for _, b in pairs]
    found = scores(heard, said)
    assert found["wer"] == pytest.approx(jiwer.wer(said, heard))
    assert found["cer"] == pytest.approx(jiwer.cer(said, heard))
    assert found["n"] == len(pairs) and found["exact"] == np.mean([a == b for a, b in pairs])
    assert found["wer_interval"][0] <= found["wer"] + 1e-9 and found["wer"] - 1e-9 <= found["wer_interval"][1]


@given(WORDS, WORDS)
def test_an_alignment_spells_both_sides(said: str, heard: str) -> None:
    pairs = alignment(said.split(), heard.split())
    assert [a for a, _ in pairs if a is not None] == said.split() and [b for _, b in pairs if b is not None] == heard.split()
    assert sum(a != b for a, b in pairs) == edits(said.split(), heard.split()) == edits(heard.split(), said.split())


def test_known_distances() -> None:
    assert edits("kitten", "sitting") == 3 and edits("", "abc") == 3 and edits("abc", "") == 3 and edits("", "") == 0
    assert alignment(["a", "b", "c"], ["a", "c"]) == [("a", "a"), ("b", None), ("c", "c")]


def test_nothing_said() -> None:
    assert scores([], []) == {"n": 0}
    assert scores([""], [""])["wer"] == 0 and scores(["one"], [""])["wer"] == 1


def test_the_interval_holds_what_it_should() -> None:
    """Of 200 sets of 60 utterances with a known error rate, about 95 % have it within their interval."""
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        heard = ["one" if draw.random() < 0.8 else "two" for _ in range(60)]
        low, high = scores(heard, ["one"] * 60)["wer_interval"]
        held += low <= 0.2 <= high
    assert 176 <= held <= 199
