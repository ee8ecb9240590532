"""Ahead: on a GPU the rows of the next update are read, and travel, while the card computes this one."""

from __future__ import annotations

import numpy as np
import torch

from affinage.types import Batch, Rows


class Ahead:
    """One batch, read before it is asked for, on a stream of its own: what the card is computing is not waited for."""

    def __init__(self, where: torch.device) -> None:
        self.where, self.device = where, torch.get_device_module(where)
        self.stream = self.device.Stream()
        self._kept: tuple[np.ndarray, Batch] | None = None

    def read(self, rows: Rows, numbers: np.ndarray | None) -> None:
        """Read these rows, or none."""
        self._kept = None
        if numbers is not None:
            with self.device.stream(self.stream):
                self._kept = numbers, {name: value.to(self.where) for name, value in rows.batch(numbers).items()}

    def taken(self, numbers: np.ndarray) -> Batch | None:
        """The batch of these rows, if they are those that were read; then it is gone."""
        kept, self._kept = self._kept, None
        if kept is None or not np.array_equal(kept[0], numbers):
            return None
        here = self.device.current_stream()
        here.wait_stream(self.stream)
        for value in kept[1].values():
            if value.is_cuda:
                value.record_stream(here)  # its memory is not given to the next batch before this one is over
        return kept[1]
