"""The state that a run carries from stage to stage, and that its checkpoints hold."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from affinage import checkpoint
from affinage.fit import Fitting
from affinage.frozen import Frozen
from affinage.inputs import Inputs
from affinage.record import Records
from affinage.types import Batch, Outcome, Rows

# the names under which tensors stand in a checkpoint: what the stages so far changed, and the state of the one that goes on
CARRIED, STAGE = "carried.", "stage."


class Story:
    """The state that a run carries from stage to stage, and that its checkpoints hold."""

    def __init__(self, inputs: Inputs, out: Path, header: dict[str, Any]) -> None:
        self.inputs, self.out, self.header = inputs, out, header
        self.outcomes: list[Outcome] = []
        self.carried: dict[str, torch.Tensor] = {}  # what the stages so far changed, by parameter name
        self.kept = "base"
        self.order = 0  # of the last checkpoint
        self.stage = 0  # that comes next
        self.cuts: dict[str, dict[str, Any]] = {}  # by stage: where it was cut, what that took, or why it was not
        self.frozen: dict[str, Frozen] = {}  # by stage: what an earlier one computed for it on its own way
        self.records: Records
        self.base_features: np.ndarray | None = None

    def save(self, fitting: Fitting | None = None) -> None:
        tensors, state = fitting.state() if fitting else ({}, {})
        self.order += 1
        self.records.flush()
        whole = {CARRIED + n: t for n, t in self.carried.items()} | {STAGE + n: t for n, t in tensors.items()}
        checkpoint.save(
            self.out / "checkpoints",
            self.order,
            whole,
            {
                "stage": self.stage,
                "outcomes": [asdict(o) for o in self.outcomes],
                "kept": self.kept,
                "cuts": self.cuts,
                "records": self.records.count,
                "fitting": state if fitting else None,
                "fingerprint": self.inputs.fingerprint,
            },
        )

    def put(self) -> None:
        """The carried weights into the network."""
        own = {**dict(self.inputs.model.named_parameters()), **dict(self.inputs.model.named_buffers())}
        with torch.no_grad():
            for name, value in self.carried.items():
                own[name].copy_(value)


class Some:
    """Some of the rows, in the given order."""

    def __init__(self, rows: Rows, chosen: np.ndarray) -> None:
        self.rows, self.chosen = rows, chosen
        self.lengths = rows.lengths[chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def batch(self, rows: np.ndarray) -> Batch:
        return self.rows.batch(self.chosen[rows])


def sample_of(rows: Rows, most: int = 512) -> Rows:
    """Up to 512 training rows, evenly taken, on which drift is measured."""
    return Some(rows, np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64))
