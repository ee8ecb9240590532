"""Standing: how far a stage has come, what its best epoch was, and whether it is over."""

from __future__ import annotations

from dataclasses import dataclass, field

from affinage.types import Stage


@dataclass
class Progress:
    """Where a stage stands: all that the next step depends on, beside the weights."""

    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    step: int = 0
    loss_sum: float = 0.0  # of this epoch, over its rows
    rows: int = 0
    best: list[float] = field(default_factory=list)  # [metric, -log loss] of the best epoch so far
    best_epoch: int = -1
    least_loss: float | None = None  # mean training loss of the best epoch, where nothing else tells
    bad_epochs: int = 0
    least_pieces: int = 1  # of an update; doubled each time that memory did not suffice
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    done: bool = False

    def judge(self, score: list[float] | None, loss: float, stage: Stage) -> bool:
        """Of the epoch that is over, whether it is the best so far; and whether the stage is done.

        `score`: higher is better, or None without a validation split; `loss`: the mean one of the epoch.
        """
        stalled = self.bad_epochs
        better = score is None or not self.best or score > self.best
        if better:
            self.best, self.best_epoch, self.bad_epochs = score or [], self.epoch, 0
        else:
            self.bad_epochs += 1
        if score is None and stage.tolerance:  # it goes on as long as it gets better at what it is taught
            least = self.least_loss
            flat = least is not None and loss > least * (1 - stage.tolerance)
            self.bad_epochs = stalled + 1 if flat else 0
            self.least_loss = loss if least is None else min(loss, least)
        self.done = bool(stage.patience) and self.bad_epochs >= stage.patience
        return better
