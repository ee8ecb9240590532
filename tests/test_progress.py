"""The progress bar: silent when piped, and a line stops its clock when the next begins."""

from __future__ import annotations

import io
import sys

import pytest

from affinage.progress import Bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(bar: Bar) -> None:
    bar.say("encoding")
    bar.start("training", 10)
    bar.advance(4, "loss 0.5")
    bar.say("solving")


def test_nothing_is_said_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, quiet in ((io.StringIO(), False), (Terminal(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        with Bar(quiet=quiet) as bar:
            work(bar)
        assert stream.getvalue() == ""


def test_a_line_is_done_when_the_next_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm-256color")
    with Bar() as bar:
        work(bar)
        encoding, training, solving = bar._progress.tasks
        assert encoding.finished and encoding.stop_time is not None
        assert training.stop_time is not None and training.percentage == 40  # an early stop is not told as a whole
        assert solving.stop_time is None
    assert solving.stop_time is not None and "training" in sys.stderr.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("bar", [False, True], ids=["piped", "terminal"])
def test_a_note_stays(bar: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for quiet in (False, True):
        monkeypatch.setattr(sys, "stderr", Terminal() if bar else io.StringIO())
        with Bar(quiet=quiet) as shown:
            work(shown)
            shown.note("long work [3 h]")
        assert ("affinage: long work [3 h]" in sys.stderr.getvalue()) == (not quiet)  # type: ignore[attr-defined]
