"""Scores agree with scikit-learn; the bootstrap with one over rows; -1 is always wrong."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from affinage.measure.classification import calibration, calibration_error, confusion, per_class, scores

metrics = pytest.importorskip("sklearn.metrics")


def drawn(n: int, classes: int, seed: int = 0, unseen: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right more often than not; the first `unseen` targets are -1."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, classes, n)
    logits = generator.normal(size=(n, classes)) + 1.5 * np.eye(classes)[targets]
    targets[:unseen] = -1
    return logits, targets


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("n", "classes"), [(1, 2), (50, 2), (300, 7), (500, 200)])
def test_scores_are_scikit_learns(n: int, classes: int) -> None:
    logits, targets = drawn(n, classes)
    found, predictions = scores(logits, targets), logits.argmax(axis=1)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(targets, predictions))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(targets, predictions, average="macro"))
    assert found["log_loss"] == pytest.approx(metrics.log_loss(targets, softmax(logits), labels=range(classes)))
    assert found["n"] == n
    for name in ("accuracy", "macro_f1"):
        low, high = found[f"{name}_interval"]
        assert 0 <= low <= high <= 1
    json.dumps(found, allow_nan=False)


def test_unseen_targets_are_wrong_but_not_in_the_log_loss() -> None:
    logits, targets = drawn(200, 5, unseen=40)
    found, predictions = scores(logits, targets), logits.argmax(axis=1)
    assert found["accuracy"] == pytest.approx((predictions == targets).mean())
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(targets, predictions, labels=range(5), average="macro"))
    assert found["log_loss"] == pytest.approx(scores(logits[40:], targets[40:])["log_loss"])
    only = scores(logits[:40], targets[:40])
    assert only["accuracy"] == only["macro_f1"] == 0 and "log_loss" not in only


def test_empty_and_bad() -> None:
    assert scores(np.zeros((0, 3)), np.zeros(0, dtype=int)) == {"n": 0}
    with pytest.raises(ValueError, match="not finite"):
        scores(np.array([[0.0, np.nan]]), np.array([0]))
    with pytest.raises(ValueError, match="expected logits"):
        scores(np.zeros((2, 3)), np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match=r"outside -1\.\.2"):
        scores(np.zeros((1, 3)), np.array([3]))


def test_large_logits_do_not_overflow() -> None:
    found = scores(np.array([[1e4, 0.0], [0.0, 1e4]]), np.array([0, 0]))
    assert found["accuracy"] == 0.5 and found["log_loss"] == 5000.0 and found["ece"] == 0.5


def test_a_shift_of_the_logits_changes_nothing() -> None:
    logits, targets = drawn(100, 4)
    moved, found = scores(logits + 37.0, targets), scores(logits, targets)
    for name, value in found.items():
        assert moved[name] == pytest.approx(value), name


def test_macro_f1_interval_is_the_bootstrap_over_rows() -> None:
    logits, targets = drawn(400, 3)
    predictions, generator = logits.argmax(axis=1), np.random.default_rng(1)
    values = []
    for _ in range(400):
        rows = generator.integers(0, 400, 400)
        values.append(metrics.f1_score(targets[rows], predictions[rows], average="macro"))
    found = scores(logits, targets)["macro_f1_interval"]
    assert found == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.01)  # the two draws differ by chance alone
    assert found == scores(logits, targets)["macro_f1_interval"]


def test_many_classes_are_quick() -> None:
    logits, targets = drawn(10_000, 200)
    start = time.process_time()
    scores(logits, targets)
    assert time.process_time() - start < 6


def test_confusion_and_per_class_are_scikit_learns() -> None:
    logits, targets = drawn(300, 6, unseen=10)
    predictions, known = logits.argmax(axis=1), targets >= 0
    table = confusion(predictions, targets, 6)
    assert table.sum() == 300 and table[6].sum() == 10
    assert (table[:6] == metrics.confusion_matrix(targets[known], predictions[known], labels=range(6))).all()
    found = per_class(predictions, targets, 6)
    reference = metrics.precision_recall_fscore_support(targets, predictions, labels=range(6), zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), reference, strict=True):
        assert found[name] == pytest.approx(values)


def test_per_class_of_a_class_that_never_occurs_is_zero() -> None:
    found = per_class(np.array([0, 0]), np.array([0, 1]), 3)
    assert found["f1"].tolist() == pytest.approx([2 / 3, 0, 0]) and found["support"].tolist() == [1, 1, 0]


def test_calibration_by_hand() -> None:
    # two bins: 0.4 (right) in (0, 0.5]; 0.9 and 0.7 (one right) in (0.5, 1]
    stated, observed, rows = calibration(np.array([0.4, 0.9, 0.7]), np.array([1, 1, 0]), bins=2)
    assert stated.tolist() == pytest.approx([0.4, 0.8]) and observed.tolist() == [1, 0.5] and rows.tolist() == [1, 2]
    assert calibration_error(np.array([0.4, 0.9, 0.7]), np.array([1, 1, 0]), bins=2) == pytest.approx((0.6 + 2 * 0.3) / 3)
    assert calibration_error(np.array([1.0, 1.0]), np.array([1, 1])) == 0
