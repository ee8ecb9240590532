"""A folder is held by one process at a time, and by nobody once that has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from affinage import hold
from affinage.hold import Hold

ROOT = Path(__file__).resolve().parents[1]
HOLDS = "import sys, time; from pathlib import Path; from affinage.hold import Hold; h = Hold(Path(sys.argv[1])); print(repr(h.take()))"


def holding(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the folder until it is killed."""
    code = f"{HOLDS}; sys.stdout.flush(); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == "''\n"
    return process


def test_one_at_a_time_and_a_kill_ends_it(tmp_path: Path) -> None:
    out = tmp_path / "a" / "run"
    process = holding(out)
    with Hold(out) as mine:
        assert f"process {process.pid} on " in mine.take()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert (out / hold.WORD).exists()  # what a kill leaves holds nobody up
        assert mine.take() == "" == mine.take()
        with Hold(out) as second:
            assert f"process {os.getpid()} on " in second.take()
    assert list(out.iterdir()) == []


def test_what_was_made_for_nothing_goes_and_nothing_else(tmp_path: Path) -> None:
    for there in (False, True):
        out = tmp_path / f"run-{there}"
        if there:
            out.mkdir()
        with Hold(out) as mine:
            assert mine.take() == "" and mine.made is not there
        assert out.exists() is there
    with Hold(tmp_path / "kept") as mine:
        mine.take()
        (tmp_path / "kept" / "run.json").write_text("{}")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["run.json"]


def test_a_file_that_was_taken_away_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the file and its lock the run before may have ended, and taken its name away."""
    locked = hold.lock

    def slowly(file: int) -> bool | None:
        monkeypatch.setattr(hold, "lock", locked)
        (tmp_path / hold.WORD).unlink()
        return locked(file)

    monkeypatch.setattr(hold, "lock", slowly)
    with Hold(tmp_path) as mine, Hold(tmp_path) as other:
        assert mine.take() == "" and (tmp_path / hold.WORD).exists() and other.take() != ""


def test_where_nothing_can_be_locked_nobody_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "lock", lambda file: None)
    with Hold(tmp_path) as one, Hold(tmp_path) as other:
        assert one.take() == other.take() == ""
    assert list(tmp_path.iterdir()) == []
    with Hold(tmp_path / "file" / "run") as mine, pytest.raises(OSError):
        (tmp_path / "file").write_text("x")
        mine.take()


@pytest.mark.skipif(os.getuid() != 0, reason="another user is only had as root")
def test_another_users_run_is_seen() -> None:
    """Whose file may be read and not written."""
    code = "import fcntl, os, sys; from pathlib import Path; from affinage.hold import Hold; os.setuid(65534); "
    code += "print(Hold(Path(sys.argv[1])).take())"
    with tempfile.TemporaryDirectory() as folder, Hold(Path(folder)) as mine:
        Path(folder).chmod(0o777)
        assert mine.take() == ""
        asked = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, cwd=ROOT)
        assert f"process {os.getpid()} on " in asked.stdout, asked.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="another user is only had as root")
def test_a_folder_that_may_not_be_written_is_not_waited_for() -> None:
    """It is told where it is written to."""
    code = "import fcntl, os, sys; from pathlib import Path; from affinage.hold import Hold; os.setuid(65534); "
    code += "print(repr(Hold(Path(sys.argv[1])).take()))"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        asked = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, cwd=ROOT, timeout=30)
        assert asked.stdout == "''\n", asked.stderr


def test_a_folder_that_goes_away_meanwhile_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the run that had made it, between the look and the lock."""
    out, opens, calls = tmp_path / "run", os.open, list[int]()

    def slowly(path: Path, *words: int) -> int:
        if not calls:
            calls.append(1)
            out.rmdir()
        return opens(path, *words)

    monkeypatch.setattr(os, "open", slowly)
    with Hold(out) as mine, Hold(out) as other:
        assert mine.take() == "" and (out / hold.WORD).exists() and other.take() != ""
