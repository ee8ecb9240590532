"""Record: one measured fact. Appended as JSON lines; reports and verdicts are pure functions of records."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple


class Record(NamedTuple):
    """`name` = `value`, measured on `split` in `stage` after `step` optimizer steps, `seconds` after the stage began."""

    stage: str
    step: int
    split: str
    name: str
    value: float
    seconds: float


class Records:
    """The run's `records.jsonl`: append only, one JSON object a line, written through at each `flush`."""

    def __init__(self, path: Path | None, keep: int | None = None) -> None:
        """Open `path`; with `keep`, drop all lines after the first `keep` (those written after a checkpoint).

        None: nothing is written (another process of the same run does).
        """
        self.path = path
        self.count = 0
        self._file: IO[str] | None = None
        if path is None:
            return
        if keep is not None and path.exists():
            lines = path.read_text(encoding="utf8").splitlines(keepends=True)[:keep]
            path.write_text("".join(lines), encoding="utf8")
            self.count = len(lines)
        self._file = path.open("a" if keep is not None else "w", encoding="utf8")

    def add(self, record: Record) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record._asdict()) + "\n")
            self.count += 1

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write through and close; a second call does nothing."""
        if self._file is not None and not self._file.closed:
            self.flush()
            self._file.close()


def read(path: Path) -> Iterator[Record]:
    """The records of a run, in the order in which they were measured."""
    with path.open(encoding="utf8") as lines:
        for line in lines:
            yield Record(**json.loads(line))
