"""Card: rows that were computed once in a GPU's own memory, where a batch of them is picked without leaving it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from affinage.ragged import Column, Entry, Order

SHARE = 0.25  # most of the card's free memory that rows may take: what learns from them needs the rest
PART = 2**26  # bytes of an entry that travel at once


def room(where: torch.device, size: int) -> bool:
    """Whether so many bytes of rows may stay there: on a GPU with memory to spare."""
    if where.type != "cuda":
        return False
    held = torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where)  # by torch, for whatever comes
    return size <= SHARE * (torch.cuda.mem_get_info(where)[0] + held)


def now(where: torch.device) -> float:
    """Seconds of the clock, once the device has done what it was given."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    return time.perf_counter()


class OnCard:
    """N rows, column by column, on a device; read as `ragged.Entry` is, but into tensors there."""

    def __init__(self, columns: Sequence[Column], lengths: np.ndarray, where: torch.device) -> None:
        """Room for rows of these lengths.

        Raises:
            torch.OutOfMemoryError: there is none.
        """
        self.columns, self.order, self.where = tuple(columns), Order(lengths), where
        self.lengths = self.order.lengths
        self.values = [
            torch.empty((c.units(self.lengths), *c.shape), dtype=getattr(torch, c.dtype), device=where) for c in self.columns
        ]

    @classmethod
    def of(cls, entry: Entry, where: torch.device) -> OnCard:
        """What an entry holds, copied there part by part."""
        made = cls(entry.columns, entry.lengths, where)
        made.order.starts = entry.starts
        for mine, theirs in zip(made.values, entry.values, strict=True):
            step = max(1, PART // max(1, theirs[:1].nbytes))
            for start in range(0, len(theirs), step):
                part = torch.from_numpy(theirs[start : start + step].copy())
                mine[start : start + step] = part.view(mine.dtype)
        return made

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, rows: np.ndarray, values: Sequence[torch.Tensor]) -> None:
        """(units, *shape) of each column for the given rows, row after row: each row once."""
        for mine, column, new in zip(self.values, self.columns, values, strict=True):
            at = self.order.at(column)
            mine[at : at + column.units(self.lengths[rows])] = new
        self.order.add(rows)

    def read(self, column: int, rows: np.ndarray) -> torch.Tensor:
        """(units, *shape), there: a copy of the given rows' values, row after row."""
        if not self.columns[column].ragged:
            units = self.order.starts[rows, 1]
        else:
            counts = self.lengths[rows]
            before = np.cumsum(counts) - counts
            units = np.repeat(self.order.starts[rows, 0] - before, counts) + np.arange(counts.sum())
        return self.values[column].index_select(0, torch.from_numpy(units).to(self.where))
