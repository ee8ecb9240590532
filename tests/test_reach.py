"""Reach: ranks that write in one folder see each other's words there, and leave none behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from affinage import ranks, reach
from affinage.errors import AffinageError


def alone_but_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0, whose other one never writes."""
    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr(reach, "LAG", 0.2)


@pytest.mark.parametrize("there", [False, True])
def test_alone_the_folder_is_as_it_was(there: bool, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "r"
    if there:
        out.mkdir(parents=True)
        (out / "run.json").touch()
    reach.shared(out)
    assert [p.name for p in out.iterdir()] == ["run.json"] if there else not out.exists()


def test_one_that_writes_elsewhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone_but_of_two(monkeypatch)
    with pytest.raises(AffinageError, match=r"rank 1 does not write in .*--shard"):
        reach.shared(tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


def test_the_word_of_a_rank_that_was_killed_is_no_run(tmp_path: Path) -> None:
    """A job that is started again begins there, and takes the word away."""
    (tmp_path / f"{reach.WORD}1234-0").touch()
    assert reach.empty(tmp_path)
    reach.shared(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "notes.txt").touch()
    assert not reach.empty(tmp_path)
