"""COCO's numbers: equal to those of pycocotools on the same boxes; misses and hits counted as one would by hand."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest

from affinage.boxes import Boxes, cleaned
from affinage.errors import AffinageError
from affinage.measure import detection
from affinage.measure.detection import best, curves, matched, overlaps, scores

from ..detectors import pycoco

pytest.importorskip("faster_coco_eval", reason="pip install 'affinage[detection]' for the scores of detectors")

SIZE = (200, 100)


def made(count: int, seed: int, crowd: bool = True) -> tuple[list[dict[str, Any]], list[Boxes]]:
    """Pictures with up to eight things of three classes, and answers that are near, far, doubled or of another class."""
    draw = np.random.default_rng(seed)
    answers, targets = [], []
    for _ in range(count):
        n = int(draw.integers(0, 9))
        low = draw.uniform(0, [150, 70], (n, 2))
        boxes = np.concatenate([low, low + draw.uniform(8, 48, (n, 2))], 1)
        kinds = draw.integers(0, 3, n)
        targets.append(
            cleaned([str(k) for k in kinds], boxes, SIZE, draw.random(n) < 0.15 * crowd).numbered({"0": 0, "1": 1, "2": 2})
        )
        truth = targets[-1]
        pick = draw.integers(0, max(len(truth), 1), 2 * len(truth))
        said = truth.boxes[pick] + draw.normal(0, 3, (len(pick), 4)) if len(truth) else np.zeros((0, 4))
        far = draw.uniform(0, [100, 50, 100, 50], (3, 4)) + np.array([0, 0, 20, 20])
        said = np.concatenate([said, far])
        said[:, 2:] = np.maximum(said[:, 2:], said[:, :2] + 1)
        kinds = np.concatenate([np.where(draw.random(len(pick)) < 0.85, truth.classes[pick], 1), draw.integers(0, 3, 3)])
        answers.append(
            {
                "boxes": (said / [*SIZE, *SIZE]).tolist(),
                "scores": draw.random(len(said)).round(2).tolist(),
                "classes": kinds.astype(int).tolist(),
            }
        )
    return answers, targets


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_pycocotools(seed: int) -> None:
    answers, targets = made(25, seed)
    theirs, ours = pycoco(answers, targets, 3), scores(answers, targets)
    for name, value in (("map", theirs.stats[0]), ("map50", theirs.stats[1]), ("map75", theirs.stats[2])):
        assert abs(ours[name] - value) < 1e-9, name
    precision = theirs.eval["precision"]
    for k in range(3):
        assert abs(ours["ap"][k] - precision[:, :, k, 0, 2].mean()) < 1e-9
        assert abs(ours["ap50"][k] - precision[0, :, k, 0, 2].mean()) < 1e-9
        assert np.allclose(curves(answers, targets)[k], precision[0, :, k, 0, 2])
    for name in ("map", "map50"):
        low, high = ours[f"{name}_interval"]
        assert low < ours[name] < high and high - low < 0.5
    assert ours["n"] == 25 and scores(answers, targets) == ours


def test_a_perfect_answer_and_none() -> None:
    _, targets = made(10, 0, crowd=False)
    right = [
        {"boxes": (t.boxes / [*SIZE, *SIZE]).tolist(), "scores": [0.9] * len(t), "classes": t.classes.tolist()} for t in targets
    ]
    found = scores(right, targets)
    assert found["map"] == found["map50"] == found["f1"] == 1.0 and found["map_interval"] == [1.0, 1.0]
    silent = [{"boxes": [], "scores": [], "classes": []} for _ in targets]
    found = scores(silent, targets)
    assert found["map"] == found["f1"] == 0.0 and found["n"] == 10
    assert scores([], []) == {"n": 0}


def test_a_class_that_the_model_never_saw_counts() -> None:
    targets = [cleaned(["a", "z"], [[0, 0, 50, 50], [60, 0, 90, 50]], SIZE).numbered({"a": 0})]
    answers = [{"boxes": [[0, 0, 0.25, 0.5]], "scores": [0.9], "classes": [0]}]
    found = scores(answers, targets)
    assert found["map"] == 0.5 and found["ap"] == [1.0] and found["recall"] == 0.5 and found["precision"] == 1.0


def test_pictures_without_things() -> None:
    """All are negatives: nothing can be found, and whatever is said is false."""
    empty = [cleaned([], [], SIZE)] * 3
    said = [{"boxes": [[0, 0, 0.5, 0.5]], "scores": [0.9], "classes": [0]}] * 3
    assert scores(said, empty)["map"] == 0.0 and scores(said, empty)["ap"] == [None]


def test_matching_by_hand() -> None:
    truth = cleaned(["0", "0", "1"], [[0, 0, 50, 50], [100, 0, 150, 50], [0, 50, 40, 90]], SIZE, [False, False, True])
    truth = truth.numbered({"0": 0, "1": 1})
    answer = {
        "boxes": [[0, 0, 0.25, 0.5], [0.01, 0, 0.25, 0.5], [0.5, 0, 0.75, 0.5], [0, 0.5, 0.2, 0.9], [0.5, 0, 0.75, 0.5]],
        "scores": [0.6, 0.9, 0.8, 0.7, 0.1],
        "classes": [0, 0, 1, 1, 0],
    }
    right, found = matched(answer, truth)
    # the surer of two on one thing has it; one of another class; one on a crowd; the last thing is found by an unsure one
    assert right.tolist() == [0, 1, 0, -1, 1] and found.tolist() == [1, 1, -1]
    right, found = matched(answer, truth, least=0.5)
    assert right.tolist() == [0, 1, 0, -1, -1] and found.tolist() == [1, 0, -1]
    told = best([answer], [truth])
    # one right and none wrong at 0.9, two right and two wrong at 0.1: the same, and the surer wins
    assert told["threshold"] == 0.9 and told["recall"] == 0.5 and told["precision"] == 1.0 and abs(told["f1"] - 2 / 3) < 1e-12


def test_overlaps_by_hand() -> None:
    one, other = np.array([[0.0, 0, 10, 10]]), np.array([[5.0, 0, 15, 10], [20, 20, 30, 30], [0, 0, 10, 10]])
    assert np.allclose(overlaps(one, other), [[1 / 3, 0, 1]])


def test_without_the_library_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("faster_coco_eval"):
            raise ImportError(name)
        return usual(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(AffinageError, match=r"pip install 'affinage\[detection\]'"):
        detection.needed()
