"""Standing: which epoch was the best, and when it is enough."""

from __future__ import annotations

from dataclasses import replace

from affinage.standing import Progress
from affinage.types import Stage

STAGE = Stage("body", "fit", (("*", 1e-3),), epochs=99)


def judged(stage: Stage, scores: list[list[float] | None], losses: list[float]) -> tuple[Progress, list[bool]]:
    """Where a stage stands after these epochs, or those until it was over; whether each was the best so far."""
    progress, better = Progress(), []
    for score, loss in zip(scores, losses, strict=True):
        if progress.done:
            break
        progress.epoch += 1
        better.append(progress.judge(score, loss, stage))
    return progress, better


def test_best_epoch_and_patience() -> None:
    """Higher is better, the second number where the first is the same; the first of equals stays."""
    scores: list[list[float] | None] = [[0.5, -1.0], [0.7, -1.0], [0.7, -0.9], [0.7, -0.9], [0.6, 0.0], [0.9, 0.0]]
    progress, better = judged(replace(STAGE, patience=2), scores, [1.0] * 6)
    assert better == [True, True, True, False, False]
    assert progress.done and (progress.best_epoch, progress.best) == (3, [0.7, -0.9])
    patient, _ = judged(replace(STAGE, patience=0), scores, [1.0] * 6)
    assert not patient.done and patient.best_epoch == 6


def test_without_validation_the_last_epoch_counts() -> None:
    progress, better = judged(replace(STAGE, patience=1), [None] * 4, [1.0, 2.0, 3.0, 4.0])
    assert better == [True] * 4 and progress.best_epoch == 4 and not progress.done


def test_training_loss_that_no_longer_falls() -> None:
    """A tenth less than the least so far is a gain; two epochs without one are enough."""
    stage = replace(STAGE, patience=2, tolerance=0.1)
    progress, _ = judged(stage, [None] * 6, [1.0, 0.95, 0.8, 0.75, 0.79, 0.1])
    assert progress.done and progress.epoch == 5 and progress.least_loss == 0.75
