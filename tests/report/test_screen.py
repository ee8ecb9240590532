"""The screen: one screen, plain when piped, and a label cannot speak to the terminal."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from affinage.report import screen
from affinage.report.folder import facts


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_piped_it_is_plain_and_fits_a_screen(reviews_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    screen.show(reviews_run)
    out = capsys.readouterr().out
    assert "\x1b" not in out and len(out.splitlines()) <= 30
    assert "blocks.0–2: 5.32 M parameters, frozen" in out and "test accuracy: " in out


def test_on_a_terminal_it_says_the_same(
    reviews_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr(sys, "stdout", terminal)
    screen.show(reviews_run)
    accuracy = screen.summary(json.loads((reviews_run / "run.json").read_text()))[0][1][0][1]
    assert accuracy.split("  ")[0] in terminal.getvalue() and "\x1b[" in terminal.getvalue()


def test_a_label_cannot_move_the_cursor(made_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    screen.show(made_run(["\x1b[2J", "[red]x[/red]"]))
    out = capsys.readouterr().out
    assert "\x1b" not in out and "[red]x[/red]" in out


def test_nothing_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text('{"status": "running", "task": "text-classification", "settings": {}, "data": {}}')
    screen.show(tmp_path)
    assert "status: running" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["drop", "allow"])
def test_rows_that_leaked_and_were_left_out_are_said_to_be(how: str, reviews_run: Path) -> None:
    known = json.loads((reviews_run / "run.json").read_text())
    known["settings"]["leaks"] = how
    (leak,) = [text for name, text in dict(screen.summary(known))["data"] if name == "leak"]
    assert leak == "8 test rows are also in train" + ("; these were left out of training" if how == "drop" else "")


def test_what_compiling_took_is_said(reviews_run: Path) -> None:
    known = facts(reviews_run)
    assert "--compile" not in str(screen.summary(known))
    known["stages"][-1]["details"]["compiling_seconds"] = 75.0
    spent = next(pairs for name, pairs in screen.summary(known) if name == "cost")
    assert ("", "of it 1 min 15 s of compiling (--compile)") in spent
