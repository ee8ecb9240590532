"""Ragged: rows of any length, column by column: an entry of the store, on disk through a map or in memory.

In a folder it is a file of values a column, `rows.npy` (where each row begins, and how long it is), and `entry.json`, which says
of what type and shape they are.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SEEN = 256 * 2**20  # most bytes of a larger entry that are held mapped: memory stays flat over any number of rows
AROUND = 2**21  # most that the kernel maps around a row that is looked at: a huge page


@dataclass(frozen=True)
class Column:
    """One value a row, or one a token of each row (`ragged`). Values are arrays of `shape` and `dtype`.

    bfloat16, which NumPy lacks, travels as its bits in int16.
    """

    dtype: str  # of NumPy, or "bfloat16"
    shape: tuple[int, ...]
    ragged: bool

    @property
    def plain(self) -> np.dtype[Any]:
        return np.dtype("int16" if self.dtype == "bfloat16" else self.dtype)

    def units(self, lengths: np.ndarray) -> int:
        return int(lengths.sum()) if self.ragged else len(lengths)

    def size(self, lengths: np.ndarray) -> int:
        """Bytes of rows of the given lengths."""
        return self.units(lengths) * math.prod(self.shape) * self.plain.itemsize


class Order:
    """Where each of N rows lies among those that were added: each once, in any order, a batch at a time."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.lengths = np.asarray(lengths, np.int64)
        self.starts = np.full((len(lengths), 2), -1, np.int64)  # of each row: in tokens, in rows
        self.tokens = self.rows = 0  # that were added

    def add(self, rows: np.ndarray) -> None:
        """These come next, row after row."""
        self.starts[rows, 0] = self.tokens + np.concatenate([[0], np.cumsum(self.lengths[rows])[:-1]])
        self.starts[rows, 1] = self.rows + np.arange(len(rows))
        self.tokens += int(self.lengths[rows].sum())
        self.rows += len(rows)

    def at(self, column: Column) -> int:
        """Where the next row of a column begins, in units."""
        return self.tokens if column.ragged else self.rows

    def whole(self) -> None:
        """Make sure that none is missing.

        Raises:
            ValueError: a row was never added.
        """
        if (self.starts < 0).any():
            raise ValueError(f"{int((self.starts[:, 0] < 0).sum())} of {len(self.starts)} rows were never added")


class Entry:
    """N rows, column by column: on disk through a map, or in memory."""

    def __init__(self, columns: Sequence[Column], values: Sequence[Any], starts: np.ndarray, lengths: np.ndarray) -> None:
        """`values`: a buffer a column, rows in the order in which they were written; `starts`: of each row's tokens, (N, 2)."""
        self.columns, self.starts, self.lengths = tuple(columns), starts, lengths
        self.maps = [v for v in values if isinstance(v, mmap.mmap)]
        self.values = [
            np.frombuffer(v, c.plain).reshape(c.units(lengths), *c.shape) if len(v) else np.empty((0, *c.shape), c.plain)
            for c, v in zip(columns, values, strict=True)
        ]
        self.nbytes = sum(v.nbytes for v in self.values)
        self._seen = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, column: int, rows: np.ndarray) -> np.ndarray:
        """(units, *shape): a copy of the given rows' values, row after row."""
        values, ragged = self.values[column], self.columns[column].ragged
        starts = self.starts[rows, 0 if ragged else 1].tolist()
        counts = self.lengths[rows].tolist() if ragged else [1] * len(starts)
        found = np.empty((sum(counts), *values.shape[1:]), values.dtype)
        at = 0
        for start, count in zip(starts, counts, strict=True):
            found[at : at + count] = values[start : start + count]
            at += count
            if self.nbytes > SEEN:
                self._looked(found[at - count : at].nbytes)
        return found

    def _looked(self, size: int) -> None:
        """Give the pages of the maps back now and then: they stay in the kernel's cache, but are no longer ours."""
        self._seen += size + AROUND
        if self._seen > SEEN and hasattr(mmap, "MADV_DONTNEED"):
            self._seen = 0
            for pages in self.maps:
                pages.madvise(mmap.MADV_DONTNEED)


def opened(folder: Path) -> Entry:
    """The entry in a folder, unchecked.

    Raises:
        OSError, ValueError, KeyError: it is not one.
    """
    told = json.loads((folder / "entry.json").read_text(encoding="utf8"))
    columns = [Column(c["dtype"], tuple(c["shape"]), c["ragged"]) for c in told["columns"]]
    table = np.load(folder / "rows.npy", allow_pickle=False)
    starts, lengths = np.ascontiguousarray(table[:, :2]), np.ascontiguousarray(table[:, 2])
    maps: list[Any] = []
    for i, column in enumerate(columns):
        with (folder / f"{i}.bin").open("rb") as file:
            if os.fstat(file.fileno()).st_size != column.size(lengths):
                raise ValueError(f"{i}.bin is truncated")
            maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if column.size(lengths) else b"")
    return Entry(columns, maps, starts, lengths)
