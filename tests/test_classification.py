"""What tasks with classes share: what is written of each row, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from affinage import labels
from affinage.classification import probabilities
from affinage.errors import AffinageError
from affinage.tasks.text_classification import task
from affinage.types import Split


def test_probabilities() -> None:
    logits = np.random.default_rng(0).normal(0, 30, (5, 4))
    found = probabilities(logits)
    assert np.allclose(found.sum(1), 1) and (found.argmax(1) == logits.argmax(1)).all()
    assert np.allclose(np.log(found[:, 0] / found[:, 1]), logits[:, 0] - logits[:, 1])


def test_known_labels() -> None:
    assert task.known(["b", "x", "a"], ["a", "b"], "s").tolist() == [1, -1, 0]
    with pytest.raises(AffinageError, match=r"no label of s is one that this run knows \(a, b"):
        task.known(["x"], ["a", "b"], "s")


def test_a_table_in_parts_has_every_row() -> None:
    count = 2_500
    logits = np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32)
    split = Split([f"t{i}" for i in range(count)], np.arange(count) % 2, [str(i) for i in range(count)])
    parts = list(task.table(logits, split, ("a", "b")))
    assert [len(part["text"]) for part in parts] == [1024, 1024, 452]
    assert [label for part in parts for label in part["label"]] == ["a", "b"] * (count // 2)
    assert parts[0]["thumbnail"] == [None] * 1024


def test_groups_take_the_place_of_targets() -> None:
    """Transcripts that are all different have no class: rows are drawn from all of them alike."""
    split = Split(list("abcdefgh"), [f"said {i}" for i in range(8)], [str(i) for i in range(8)])
    assert len(labels.few(split, 3, 0)) == 8 and len(labels.few(split, 3, 0, ["row"] * 8)) == 3
    rest, held = labels.holdout(split, 0.25, 0, groups=["row"] * 8)
    assert len(rest) == 6 and len(held) == 2 and not set(rest.ids) & set(held.ids)
