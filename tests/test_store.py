"""The store: rows of any length come back bit by bit, damage is noticed, two writers agree, and a full disk costs nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from affinage import store
from affinage.ragged import Column, Entry
from affinage.store import Store

ROOT = Path(__file__).resolve().parents[1]
KEY = store.key({"a": 1})
COLUMNS = (Column("float32", (5,), True), Column("bfloat16", (2, 3), False), Column("bool", (), True))
LENGTHS = np.asarray([3, 1, 7, 0, 4], np.int64)


def rows(lengths: np.ndarray = LENGTHS, seed: int = 0) -> list[list[np.ndarray]]:
    """Of each row, its values column by column."""
    draw = np.random.default_rng(seed)
    return [
        [
            draw.standard_normal((n, 5)).astype(np.float32),
            draw.integers(-9, 9, (1, 2, 3)).astype(np.int16),
            draw.random(n) < 0.5,
        ]
        for n in lengths
    ]


def written(place: Store, key: str = KEY, order: tuple[tuple[int, ...], ...] = ((2, 0), (4, 3, 1)), seed: int = 0) -> Entry:
    with place.write(key, COLUMNS, LENGTHS) as writer:
        fill(writer, order, seed)
        return writer.done({"model": "M"})


def fill(writer: store.Writer, order: tuple[tuple[int, ...], ...], seed: int = 0) -> None:
    given = rows(seed=seed)
    for batch in order:
        columns = zip(*(given[i] for i in batch), strict=True)
        writer.add(np.asarray(batch), [np.concatenate(c) for c in columns])


def same(entry: Entry, seed: int = 0) -> bool:
    given = rows(seed=seed)
    for chosen in ([0, 1, 2, 3, 4], [4, 0], [3], [2, 2]):
        for c in range(len(COLUMNS)):
            expected = np.concatenate([given[i][c] for i in chosen])
            found = entry.read(c, np.asarray(chosen))
            if found.shape != expected.shape or found.dtype != expected.dtype or not np.array_equal(found, expected):
                return False
    return True


def inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ----------------------------------------------------------------------------------------------------------- there and back
@pytest.mark.parametrize("order", [((0, 1, 2, 3, 4),), ((2, 0), (4, 3, 1)), ((3,), (1,), (4,), (0,), (2,))])
def test_round_trip(order: tuple[tuple[int, ...], ...], tmp_path: Path) -> None:
    place = Store(tmp_path, 10**6)
    assert place.find(KEY) == (None, "")
    assert same(written(place, order=order))
    found, why = place.find(KEY)
    assert found is not None and why == "" and same(found) and found.maps
    assert found.nbytes == sum(c.size(LENGTHS) for c in COLUMNS) == 15 * 5 * 4 + 5 * 6 * 2 + 15
    assert inside(tmp_path) == [KEY]
    memory = store.in_memory(COLUMNS, LENGTHS)
    fill(memory, order)
    assert same(memory.done({})) and inside(tmp_path) == [KEY]


def test_no_rows_and_no_tokens(tmp_path: Path) -> None:
    for lengths in (np.zeros(0, np.int64), np.zeros(2, np.int64)):
        place = Store(tmp_path / str(len(lengths)), 10**6)
        with place.write(KEY, COLUMNS[:1], lengths) as writer:
            if len(lengths):
                writer.add(np.arange(2), [np.zeros((0, 5), np.float32)])
            writer.done({})
        found, why = place.find(KEY)
        assert found is not None and why == "" and found.read(0, np.arange(len(lengths))).shape == (0, 5)


def test_what_is_read_is_a_copy(tmp_path: Path) -> None:
    entry = written(Store(tmp_path, 10**6))
    for c in range(len(COLUMNS)):
        taken = entry.read(c, np.arange(5))
        taken[:] = 0
    assert same(entry)


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with Store(tmp_path, 10**6).write(KEY, COLUMNS[:1], LENGTHS) as writer:
        for wrong in (np.zeros((2, 5), np.float32), np.zeros((3, 5)), np.zeros((3, 4), np.float32)):
            with pytest.raises(ValueError, match="column 0"):
                writer.add(np.asarray([0]), [wrong])
        with pytest.raises(ValueError, match="5 of 5 rows were never added"):
            writer.done({})
    assert inside(tmp_path) == []  # nothing half-written is left


def test_keys() -> None:
    facts = {"weights": "x", "columns": [("float32", (4,), True)]}
    assert store.key(facts) == store.key(dict(reversed(facts.items()))) and store.NAME.fullmatch(store.key(facts))
    assert len({store.key(facts | {"view": v}) for v in range(3)} | {store.key(facts)}) == 4


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFINAGE_CACHE", "~/mine")
    assert store.folder() == Path.home() / "mine"
    monkeypatch.delenv("AFFINAGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.folder() == tmp_path / "affinage"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert store.folder() == Path.home() / ".cache" / "affinage"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert store.folder().parent == Path(tempfile.gettempdir())


# ------------------------------------------------------------------------------------------------------------------ damage
def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit in the values": lambda entry: flip(entry / "0.bin"),
    "a bit in the rows": lambda entry: flip(entry / "rows.npy"),
    "values cut short": lambda entry: os.truncate(entry / "1.bin", 7),
    "rows cut short": lambda entry: os.truncate(entry / "rows.npy", 40),
    "rows emptied": lambda entry: os.truncate(entry / "rows.npy", 0),
    "no values": lambda entry: (entry / "2.bin").unlink(),
    "no manifest": lambda entry: (entry / "entry.json").unlink(),
    "half a manifest": lambda entry: os.truncate(entry / "entry.json", 30),
    "another manifest": lambda entry: (entry / "entry.json").write_text("[1]"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_noticed_and_mended(how: str, tmp_path: Path) -> None:
    place = Store(tmp_path, 10**6)
    written(place)
    DAMAGE[how](tmp_path / KEY)
    assert len(place.entries()) == 1  # it is listed, and takes part in making room
    found, why = place.find(KEY)
    assert found is None and why.startswith(f"the cache entry {KEY[:12]} is damaged") and "computed again" in why
    assert inside(tmp_path) == [] and place.find(KEY) == (None, "")
    written(place)
    found, why = place.find(KEY)
    assert found is not None and why == "" and same(found)


# ----------------------------------------------------------------------------------------------------------- several writers
def _write(folder: str, ready: object, go: object) -> None:
    with Store(Path(folder), 10**6).write(KEY, COLUMNS, LENGTHS) as writer:
        fill(writer, ((0, 1, 2, 3, 4),))
        ready.release()  # type: ignore[attr-defined]
        go.wait(30)  # type: ignore[attr-defined]
        assert same(writer.done({}))


def test_two_processes_write_the_same_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, go = context.Semaphore(0), context.Event()
    processes = [context.Process(target=_write, args=(str(tmp_path), ready, go)) for _ in range(2)]
    for process in processes:
        process.start()
    for _ in processes:
        assert ready.acquire(timeout=30)
    assert KEY not in inside(tmp_path) and len(inside(tmp_path)) == 2
    go.set()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert inside(tmp_path) == [KEY]
    found, why = Store(tmp_path, 10**6).find(KEY)
    assert found is not None and why == "" and same(found)


def test_a_reader_goes_on_when_its_entry_is_dropped(tmp_path: Path) -> None:
    place = Store(tmp_path, 10**6)
    written(place)
    found, _ = place.find(KEY)
    assert found is not None
    assert place.clear() == found.nbytes and inside(tmp_path) == []
    assert same(found)


# ------------------------------------------------------------------------------------------------------------------- room
def test_another_users_entry_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of several: what may not be read is neither damaged nor dropped, and what may not be dropped frees nothing."""
    place = Store(tmp_path, 10**6)
    written(place)
    assert (tmp_path / KEY).stat().st_mode & 0o777 == 0o777 & ~umask()

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(store, "digest", refused)
        assert place.find(KEY) == (None, "")
        patch.setattr(Path, "rename", refused)
        assert place.clear() == 0
    assert place.find(KEY)[0] is not None and place.clear() > 0 and inside(tmp_path) == []


def umask() -> int:
    now = os.umask(0o022)
    os.umask(now)
    return now


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    size = sum(c.size(LENGTHS) for c in COLUMNS)
    place = Store(tmp_path, 3 * size + size // 2)
    keys = [store.key({"n": n}) for n in range(4)]
    for i, key in enumerate(keys[:3]):
        written(place, key)
        os.utime(tmp_path / key / "entry.json", (1000 + i, 1000 + i))
    place.find(keys[0])  # used now: the second is the oldest
    written(place, keys[3])
    assert inside(tmp_path) == sorted([keys[0], keys[2], keys[3]])
    assert [one.path.name for one in place.entries()][2] == keys[2]
    assert all(one.bytes == size and one.about == {"model": "M"} for one in place.entries())


def test_a_disk_without_room_is_made_room_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the budget, but not on the disk: the oldest goes; where even all of them would not do, none does."""
    place, keys = Store(tmp_path, 10**9), [store.key(i) for i in range(4)]
    for i, key in enumerate(keys[:3]):
        written(place, key)
        os.utime(tmp_path / key / "entry.json", (i, i))
    size = place.entries()[0].bytes
    capacity = 4.2 * size  # of which a tenth of what is free stays so

    def usage(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=capacity - sum(one.bytes for one in place.entries()))

    monkeypatch.setattr("shutil.disk_usage", usage)
    written(place, keys[3])
    assert inside(tmp_path) == sorted(keys)  # 1.2 are free
    written(place, store.key("more"))
    assert inside(tmp_path) == sorted([*keys[1:], store.key("more")])
    capacity = 0.9 * size + sum(one.bytes for one in place.entries())
    with pytest.raises(OSError, match="are free"):
        place.write(store.key("huge"), COLUMNS, np.tile(LENGTHS, 40))
    assert len(place.entries()) == 4


def test_only_what_is_its_own_is_touched(tmp_path: Path) -> None:
    """A folder that holds other things, too: they stay, whatever their names."""
    for name in ("mine", ".affinage", "0" * 63, ".writing-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
        os.utime(tmp_path / name / "file", (0, 0))
    (tmp_path / ("a" * 64 + ".txt")).write_text("x")
    before = inside(tmp_path)
    place = Store(tmp_path, 1)
    written(place)
    assert inside(tmp_path) == sorted([*before, KEY])
    place.clear()
    assert inside(tmp_path) == before


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    dead, alive = tmp_path / ".affinage-writing-dead", tmp_path / ".affinage-writing-alive"
    for folder, when in ((dead, time.time() - 2 * store.STALE), (alive, time.time())):
        folder.mkdir()
        (folder / "0.bin").write_bytes(b"x")
        os.utime(folder / "0.bin", (when, when))
    written(Store(tmp_path, 10**6))
    assert inside(tmp_path) == [".affinage-writing-alive", KEY]


def _killed(folder: str, ready: object) -> None:
    with Store(Path(folder), 10**9).write(KEY, COLUMNS, LENGTHS) as writer:
        fill(writer, ((2, 0),))
        ready.release()  # type: ignore[attr-defined]
        time.sleep(60)


@pytest.mark.parametrize("how", ["another writes", "clear"])
def test_who_writes_holds_its_room_for_as_long_as_it_lives(how: str, tmp_path: Path) -> None:
    """What it reserved counts, and nobody takes it away; once it was killed, it goes with the next look, not an hour later."""
    size = sum(c.size(LENGTHS) for c in COLUMNS)
    place, keys = Store(tmp_path, 2 * size), [store.key(n) for n in range(3)]
    context = multiprocessing.get_context("fork")
    ready = context.Semaphore(0)
    process = context.Process(target=_killed, args=(str(tmp_path), ready))
    process.start()
    assert ready.acquire(timeout=30)
    (unfinished,) = inside(tmp_path)
    written(place, keys[0])
    written(place, keys[1])
    assert inside(tmp_path) == sorted([unfinished, keys[1]])  # three would be too much
    assert place.clear() == size and inside(tmp_path) == [unfinished]
    process.kill()
    process.join(30)
    if how == "clear":
        assert place.clear() == size and inside(tmp_path) == []
    else:
        written(place, keys[2])
        assert inside(tmp_path) == [keys[2]]


def test_the_budget_holds_once_all_have_written(tmp_path: Path) -> None:
    """Two that are written at once hold nobody up, though there is room for one: the one that came first goes."""
    size = sum(c.size(LENGTHS) for c in COLUMNS)
    place, keys = Store(tmp_path, size + size // 2), [store.key(n) for n in range(2)]
    with place.write(keys[0], COLUMNS, LENGTHS) as one, place.write(keys[1], COLUMNS, LENGTHS) as other:
        for writer in (one, other):
            fill(writer, ((0, 1, 2, 3, 4),))
        first = one.done({"model": "M"})
        assert keys[0] in inside(tmp_path)
        os.utime(tmp_path / keys[0] / "entry.json", (1, 1))
        second = other.done({"model": "M"})
    assert inside(tmp_path) == [keys[1]] and same(first) and same(second)


def test_nobody_is_given_a_folder_that_is_being_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one may be found by another, before it is locked: he holds it until it is gone, and its maker makes another."""
    place, mkdir = Store(tmp_path, 10**6), Path.mkdir
    swept: list[Path] = []

    def found(self: Path, *words: Any, **more: Any) -> None:
        mkdir(self, *words, **more)
        if self.name.startswith(store.WRITING) and not swept:
            swept.append(self)
            thread.start()
            assert began.wait(10)

    def slowly(path: Path, **more: Any) -> None:
        began.set()
        time.sleep(0.3)
        rmtree(path, **more)

    rmtree, began, thread = shutil.rmtree, threading.Event(), threading.Thread(target=place._sweep)
    monkeypatch.setattr(Path, "mkdir", found)
    monkeypatch.setattr(shutil, "rmtree", slowly)
    part, lock = place.begin()
    thread.join(10)
    os.close(lock)
    assert part.exists() and part != swept[0] and not swept[0].exists()


def test_what_cannot_be_opened_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, opens, before = Store(tmp_path, 10**6), Path.open, len(os.listdir("/proc/self/fd")) if Path("/proc").exists() else 0

    def refused(self: Path, *words: Any, **more: Any) -> Any:
        if self.name == "1.bin":
            raise OSError(24, "Too many open files")
        return opens(self, *words, **more)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(OSError, match="Too many"):
        place.write(KEY, COLUMNS, LENGTHS)
    assert inside(tmp_path) == [] and (not before or len(os.listdir("/proc/self/fd")) == before)


def test_nothing_is_dropped_in_vain_for_what_another_writes(tmp_path: Path) -> None:
    """Where both have no room whatever is dropped: what is there stays until one is done."""
    size = sum(c.size(LENGTHS) for c in COLUMNS)
    place, keys = Store(tmp_path, size + size // 2), [store.key(n) for n in range(2)]
    written(place, KEY)
    with place.write(keys[0], COLUMNS, LENGTHS):
        assert KEY not in inside(tmp_path)  # it did help
        written(place, KEY)
    assert KEY in inside(tmp_path)
    small = Store(tmp_path, 3 * size)
    with small.write(keys[0], COLUMNS, np.tile(LENGTHS, 2)), small.write(keys[1], COLUMNS, np.tile(LENGTHS, 2)):
        assert KEY in inside(tmp_path)


def test_other_machines_folders_go_by_the_clock(tmp_path: Path) -> None:
    """Whose names begin as this one's do, too: a network's folder need not know their locks."""
    host = socket.gethostname()
    for name in (f"{store.WRITING}{host}-2-77-1", f"{store.WRITING}elsewhere-77-1", f"{store.WRITING}{host}-77-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.bin").write_bytes(b"x")
    assert Store(tmp_path, 10**6).clear() == 1
    assert inside(tmp_path) == sorted([f"{store.WRITING}{host}-2-77-1", f"{store.WRITING}elsewhere-77-1"])


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system refuses the room (here: no file may be larger than 100 bytes): said at once, nothing left, the rest stays."""
    code = f"""
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.test_store import *
place = Store(Path({str(tmp_path)!r}), 10**6)
written(place)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    written(place, store.key("other"))
except OSError as error:
    print(error.strerror)
found, why = place.find(KEY)
print(why == "" and same(found), inside(Path({str(tmp_path)!r})) == [KEY])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert answer.stdout.splitlines() == ["File too large", "True True"], answer.stderr
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(OSError, match="it needs 0 MB, 0 MB are free"):
        written(Store(tmp_path, 10**6), store.key("other"))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError):
        written(Store(tmp_path / "file" / "cache", 10**6))
    assert Store(tmp_path / "file" / "cache", 10**6).entries() == []
    assert Store(tmp_path / "file" / "cache", 10**6).find(KEY) == (None, "")


def test_the_store_is_no_reason_to_load_torch() -> None:
    code = "import sys, affinage.store; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "False\n"


# ----------------------------------------------------------------------------------------------------------------- memory
MILLION = """
import json, sys
from pathlib import Path
import numpy as np
from affinage import store
from affinage.ragged import Column
n, width, batch = 1_000_000, 384, 4096
place = store.Store(Path(sys.argv[1]), 10**10)
column, lengths = Column("float32", (width,), True), np.ones(n, np.int64)
draw = np.random.default_rng(0)
order = draw.permutation(n)
base = draw.standard_normal(width).astype(np.float32)
with place.write(store.key("million"), [column], lengths) as writer:
    for start in range(0, n, batch):
        rows = order[start : start + batch]
        writer.add(rows, [base * rows[:, None].astype(np.float32)])
    writer.done({})
entry, why = place.find(store.key("million"))
assert entry is not None, why
wrong = 0
for start in range(0, n, batch):
    rows = order[start : start + batch]
    wrong += not np.array_equal(entry.read(0, rows), base * rows[:, None].astype(np.float32))

import torch
torch.set_num_threads(1)
head = torch.nn.Linear(width, 2)  # learns whether a row is of the second half
optimizer = torch.optim.AdamW(head.parameters(), lr=0.05)
for epoch in range(2):
    right = 0
    order = draw.permutation(n)
    for start in range(0, n, batch):
        rows = order[start : start + batch]
        logits = head(torch.from_numpy(np.asarray(entry.read(0, rows))) / n)
        targets = torch.from_numpy(rows >= n // 2).long()
        torch.nn.functional.cross_entropy(logits, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        right += int((logits.argmax(1) == targets).sum())
# of this program: ru_maxrss would be that of the tests' own process, from which this one was started, where that is larger
high = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps({"bytes": entry.nbytes, "wrong": wrong, "accuracy": right / n, "peak": int(high.split()[1]) * 1024}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_a_million_rows_in_flat_memory(tmp_path: Path) -> None:
    """1.5 GB written, read at random and learnt from twice by a process whose resident memory never passes 1 GiB."""
    answer = subprocess.run([sys.executable, "-c", MILLION, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    told = json.loads(answer.stdout)
    assert told["bytes"] == 1_000_000 * 384 * 4 and told["wrong"] == 0 and told["accuracy"] > 0.95
    print(told)
    assert told["peak"] < 2**30, f"{told['peak'] / 2**20:.0f} MiB"
