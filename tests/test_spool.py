"""What lies on the disk comes back as it went, takes no memory and leaves nothing behind."""

from __future__ import annotations

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from affinage import spool
from affinage.errors import AffinageError
from affinage.spool import Block, Cells, Spool


@pytest.mark.parametrize(
    ("form", "items"),
    [(str, ["", "a", "žluť", "half \udc80"]), (bytes, [b"\x00", b"", b"x" * 3_000_000]), (Path, [Path("a/b"), Path("ü")])],
    ids=["text", "bytes", "paths"],
)
def test_cells_come_back(form: type, items: list[object]) -> None:
    cells = Cells(form)
    for item in items:
        cells.add(item)
        assert cells[-1] == item  # at once, between two writes
    assert len(cells) == len(items) and list(cells) == items and cells[:] == items
    assert cells[1:] == items[1:] and cells[::-1] == items[::-1] and cells[5:2] == []
    assert cells[np.int64(1)] == items[1] and cells[-len(items)] == items[0]
    with pytest.raises(IndexError):
        cells[len(items)]


def test_many_cells_are_read_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "AT_ONCE", 100)
    cells = Cells(str)
    for i in range(2500):
        cells.add("x" * (i % 200))
    assert [len(cell) for cell in cells] == [i % 200 for i in range(2500)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(len, pool.map(cells.__getitem__, range(2500)))) == [i % 200 for i in range(2500)]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)], ids=str)
def test_blocks_come_back(shape: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0)
    rows = draw.integers(-99, 99, (20, *shape)).astype(np.int32)
    block = Block(np.int32, shape)
    for part in (rows[:7], rows[7:7], rows[7:]):
        block.add(part)
    assert len(block) == 20
    for at in (slice(0, 20), slice(5, 9), slice(9, 5), slice(18, 99), np.array([3, 3, 19, 0]), np.array([], np.int64)):
        found = block[at]
        assert np.array_equal(found, rows[at]) and found.dtype == np.int32 and found.flags.writeable


def test_nothing_is_left_and_nothing_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFINAGE_CACHE", str(tmp_path / "cache"))
    before = len(os.listdir("/proc/self/fd"))
    one = Spool()
    one.add(b"x" * 10_000)
    assert one.read(9_990, 10_000) == b"x" * 10 and not (tmp_path / "cache").exists()  # little needs no file
    one.add(b"y" * spool.AT_ONCE)
    assert one.read(9_990, 10_010) == b"x" * 10 + b"y" * 10 and list((tmp_path / "cache").iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del one
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_where_the_cache_cannot_be_written_it_goes_to_the_systems_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("AFFINAGE_CACHE", str(tmp_path / "file" / "cache"))
    one = Spool()
    one.add(b"abc" * spool.AT_ONCE)
    assert one.read(0, 3) == b"abc" and spool.free() > 0


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    with (tmp_path / "a").open("rb") as file:
        assert spool.pread(file.fileno(), 1, 2) == b"bc"
        with pytest.raises(OSError, match="became shorter"):
            spool.pread(file.fileno(), 1, 3)


def test_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AFFINAGE_MEMORY_GB", raising=False)
    assert spool.limit() == 10**9
    monkeypatch.setenv("AFFINAGE_MEMORY_GB", "0.5")
    assert spool.limit() == 5 * 10**8
    for wrong in ("much", "inf", "nan"):
        monkeypatch.setenv("AFFINAGE_MEMORY_GB", wrong)
        with pytest.raises(AffinageError, match=r"AFFINAGE_MEMORY_GB is .*: expected gigabytes"):
            spool.limit()


def test_a_disk_too_small_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**9))
    spool.need(8 * 10**8, "it")
    with pytest.raises(AffinageError, match=r"the text column needs 2\.0 GB .* 0\.9 GB are free: .*AFFINAGE_CACHE"):
        spool.need(2 * 10**9, "the text column")
