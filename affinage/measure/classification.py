"""Scores of a classifier: (N, C) logits against (N,) targets. A target of -1 is a class that the model never saw."""

from __future__ import annotations

from typing import Any

import numpy as np

from affinage.measure.interval import wilson

DRAWS = 1000  # bootstrap resamples: the 2.5 % point then rests on 25 draws
BINS = 15  # of the calibration error (Guo et al. 2017)


def scores(logits: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """What a report says about logits (N, C) and targets (N,), as plain floats that JSON can hold.

    `accuracy`, `macro_f1` (mean over the classes that occur, as scikit-learn), each with a 95 % `_interval` (Wilson; percentile
    bootstrap over rows), `log_loss` (nats), `ece` (15 equal bins of the largest probability) and `n`. A target of -1 counts as
    wrong everywhere but in `log_loss`, which is over the known ones and left out where there are none. N = 0 gives `{"n": 0}`.

    Raises:
        ValueError: shapes that do not fit, a target outside -1..C-1, or logits that are not finite.
    """
    logits, targets = np.asarray(logits, dtype=np.float64), np.asarray(targets)
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(f"expected logits (N, C) and targets (N,), found {logits.shape} and {targets.shape}")
    n, classes = logits.shape
    if n == 0:
        return {"n": 0}
    if not np.isfinite(logits).all():
        raise ValueError(f"{int((~np.isfinite(logits)).any(axis=1).sum())} of {n} rows have logits that are not finite")
    predictions = logits.argmax(axis=1)
    table = confusion(predictions, targets, classes)
    right = predictions == targets
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    confidence = np.exp(log_probabilities.max(axis=1))
    known = targets >= 0
    result: dict[str, Any] = {
        "accuracy": float(right.mean()),
        "accuracy_interval": list(wilson(int(right.sum()), n)),
        "macro_f1": float(_macro_f1(table.diagonal(), table.sum(axis=0), table.sum(axis=1)[:classes])),
        "macro_f1_interval": _macro_f1_interval(table),
    }
    if known.any():
        result["log_loss"] = float(-log_probabilities[known, targets[known]].mean())
    return result | {"ece": calibration_error(confidence, right), "n": n}


def confusion(predictions: np.ndarray, targets: np.ndarray, classes: int) -> np.ndarray:
    """(C + 1, C) int64 counts, truth down, prediction across. The last row counts the rows whose target is -1.

    Raises:
        ValueError: a prediction outside 0..C-1 or a target outside -1..C-1.
    """
    predictions, targets = np.asarray(predictions, dtype=np.int64), np.asarray(targets, dtype=np.int64)
    for what, values, low in (("prediction", predictions, 0), ("target", targets, -1)):
        if len(values) and (values.min() < low or values.max() >= classes):
            raise ValueError(f"a {what} of {values.min()}..{values.max()} is outside {low}..{classes - 1}")
    rows = np.where(targets < 0, classes, targets)
    return np.bincount(rows * classes + predictions, minlength=(classes + 1) * classes).reshape(classes + 1, classes)


def per_class(predictions: np.ndarray, targets: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """`precision`, `recall`, `f1` (C,) float64, 0 where undefined, and `support` (C,) int64: rows whose target it is."""
    table = confusion(predictions, targets, classes)
    hits, predicted, support = table.diagonal(), table.sum(axis=0), table[:classes].sum(axis=1)
    return {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(support, 1),
        "f1": 2 * hits / np.maximum(predicted + support, 1),
        "support": support,
    }


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean confidence, share right, rows), each (bins,), of the equal bins (0, 1/b], (1/b, 2/b], ...; 0 where empty."""
    confidence, right = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    which = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    rows = np.bincount(which, minlength=bins)
    some = np.maximum(rows, 1)
    return np.bincount(which, confidence, bins) / some, np.bincount(which, right, bins) / some, rows


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: the mean over rows of their bin's |share right - mean confidence| (Guo et al. 2017)."""
    stated, observed, rows = calibration(confidence, right, bins)
    return float((rows * np.abs(observed - stated)).sum() / max(int(rows.sum()), 1))


def _macro_f1(hits: np.ndarray, predicted: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Mean F1 over the last axis (C), over the classes that occur as a target or a prediction."""
    both = predicted + support
    return (2 * hits / np.maximum(both, 1)).sum(axis=-1) / np.maximum((both > 0).sum(axis=-1), 1)


def _macro_f1_interval(table: np.ndarray) -> list[float]:
    """95 % percentile interval of macro F1 when the rows are drawn again, with replacement.

    Resampling rows is a multinomial draw over the filled cells of the confusion table, so its cost does not grow with N.
    """
    classes, n = table.shape[1], int(table.sum())
    truth, predicted = np.nonzero(table)
    generator = np.random.default_rng(0)
    values = []
    for start in range(0, DRAWS, 100):  # 100 at a time: with 200 classes a draw may have 40,000 cells
        draws = generator.multinomial(n, table[truth, predicted] / n, size=min(100, DRAWS - start))
        hits, across, down = (np.zeros((len(draws), classes + 1), dtype=np.int64) for _ in range(3))
        for i in range(classes + 1):
            down[:, i] = draws[:, truth == i].sum(axis=1)
            across[:, i] = draws[:, predicted == i].sum(axis=1)
        same = truth == predicted
        hits[:, truth[same]] = draws[:, same]
        values.append(_macro_f1(hits[:, :classes], across[:, :classes], down[:, :classes]))
    return [float(q) for q in np.percentile(np.concatenate(values), [2.5, 97.5])]
