"""A progress bar with the time left, on a terminal only; where output is piped only what is noted. Times in words."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class Bar:
    """One line on standard error: what is being done, how far, how long still."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._shown = not quiet and sys.stderr.isatty()
        self._progress: Any = None
        self._job: Any = None

    def __enter__(self) -> Bar:
        if self._shown:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            parts = (
                "{task.description}",
                BarColumn(),
                "{task.percentage:>3.0f}%",
                TimeElapsedColumn(),
                "left",
                TimeRemainingColumn(),
            )
            columns = [TextColumn(p) if isinstance(p, str) else p for p in parts]
            self._progress = Progress(*columns, TextColumn("{task.fields[words]}"), console=Console(stderr=True))
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress is not None:
            if error is None:
                self._done()
            self._progress.stop()

    def start(self, what: str, total: int) -> None:
        """A new line for `total` rows of work; the one before it is done."""
        self._next(what, total)

    def say(self, what: str) -> None:
        """A new line for work whose length is not known; the one before it is done."""
        self._next(what, None)

    def note(self, line: str) -> None:
        """A line that stays, above the bar or in a log."""
        if self._progress is not None:
            self._progress.console.print(f"affinage: {line}", markup=False, highlight=False)
        elif not self._quiet:
            print(f"affinage: {line}", file=sys.stderr)

    def advance(self, rows: int, words: str) -> None:
        if self._progress is not None and self._job is not None:
            self._progress.update(self._job, advance=rows, words=words)

    def _next(self, what: str, total: int | None) -> None:
        if self._progress is not None:
            self._done()
            self._job = self._progress.add_task(what, total=total, words="")

    def _done(self) -> None:
        """Stop the clock of the current line; work of unknown length is then whole."""
        if self._job is not None:
            if self._progress.tasks[self._job].total is None:
                self._progress.update(self._job, total=1, completed=1)
            self._progress.stop_task(self._job)
            self._job = None


def duration(seconds: float | None) -> str:
    """95.2 as "1 min 35 s"."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
