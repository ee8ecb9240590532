"""Store: what was computed once, on disk, by key: rows of any length (values and where each begins), read through a memory map.

An entry (`ragged.py`) is a folder named by its key, with the SHA-256 of its files in `entry.json`. It is written under another
name and renamed: it is there whole or not at all, and of two processes that write the same key one wins and both go on. What was
used longest ago makes room for what is new.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from affinage import hold
from affinage.facts import digest
from affinage.ragged import Column, Entry, Order, opened

NAME = re.compile("[0-9a-f]{64}")  # of an entry: nothing else in the folder is ever touched
UNFINISHED = ".affinage-"
WRITING = f"{UNFINISHED}writing-"
STALE = 3600  # seconds without a write after which an unfinished entry is a dead process's, where locks do not tell
KEPT_FREE = 0.1  # share of the free disk that the store leaves to the run itself


class Writer:
    """Takes every row of an entry once, in any order, a batch at a time; dropped where its `with` ends without `done`."""

    def __init__(self, columns: Sequence[Column], lengths: np.ndarray, place: Store | None = None, key: str = "") -> None:
        """`place`: the store to write into, under `key`; None keeps the rows in memory.

        Raises:
            OSError: the disk is full, or says no.
        """
        self.columns, self.order, self.place, self.key = tuple(columns), Order(lengths), place, key
        self.part: Path | None = None
        self.lock: int | None = None
        if place:
            self.part, self.lock = place.begin()
        self.lengths = self.order.lengths
        self.hashes = [hashlib.sha256() for _ in columns]
        self.files: list[IO[bytes]] = []
        self.held: list[np.ndarray] = []
        try:
            for i, column in enumerate(columns):
                size = column.size(self.lengths)
                if self.part is None:
                    self.held.append(np.empty(size, np.uint8))
                    continue
                self.files.append((self.part / f"{i}.bin").open("wb"))
                if size and hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(self.files[-1].fileno(), 0, size)  # a full disk says so now, not after an hour
        except OSError:
            self.__exit__()
            raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: Any) -> None:
        for file in self.files:
            with suppress(OSError):  # what was still in its buffer finds no room: it is dropped anyway
                file.close()
        if self.part is not None:
            shutil.rmtree(self.part, ignore_errors=True)
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def add(self, rows: np.ndarray, values: Sequence[np.ndarray]) -> None:
        """(units, *shape) of each column for the given rows, row after row."""
        for i, (column, array) in enumerate(zip(self.columns, values, strict=True)):
            expected = (column.units(self.lengths[rows]), *column.shape)
            if array.shape != expected or array.dtype != column.plain:
                raise ValueError(f"column {i}: {array.dtype} {array.shape}, expected {column.plain} {expected}")
            plain = np.ascontiguousarray(array).data.cast("B") if array.size else memoryview(b"")
            if self.part is None:
                at = self.order.at(column) * math.prod(column.shape) * column.plain.itemsize
                self.held[i][at : at + len(plain)] = plain
            else:
                self.files[i].write(plain)
                self.hashes[i].update(plain)
        self.order.add(rows)

    def done(self, about: Mapping[str, Any]) -> Entry:
        """The entry, whole and (on disk) under its own name.

        Raises:
            OSError: the disk is full.
        """
        self.order.whole()
        if self.part is None or self.place is None:
            return Entry(self.columns, self.held, self.order.starts, self.lengths)
        for file in self.files:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        with (self.part / "rows.npy").open("wb") as table:
            np.save(table, np.column_stack([self.order.starts, self.lengths]))
            table.flush()
            os.fsync(table.fileno())
        sums = {f"{i}.bin": h.hexdigest() for i, h in enumerate(self.hashes)} | {"rows.npy": digest(self.part / "rows.npy")}
        columns = [asdict(c) for c in self.columns]
        told = {
            "columns": columns,
            "sha256": sums,
            "bytes": sum(c.size(self.lengths) for c in self.columns),
            "about": dict(about),
        }
        with (self.part / "entry.json").open("w", encoding="utf8") as manifest:
            json.dump(told, manifest)
            manifest.flush()
            os.fsync(manifest.fileno())
        entry = opened(self.part)  # its maps outlive the name, whoever wins the rename
        try:
            self.part.rename(self.place.folder / self.key)
        except OSError:  # another process was first, with the same rows
            if not (self.place.folder / self.key).is_dir():
                raise
            shutil.rmtree(self.part, ignore_errors=True)
        self.part = None
        with suppress(OSError):  # it is stored all the same
            self.place.make_room(0)  # what others were writing beside it may be there now, too
        return entry


@dataclass(frozen=True)
class Listed:
    """An entry as `affinage cache list` tells it."""

    path: Path
    bytes: int
    used: float  # seconds since the epoch
    about: Mapping[str, Any]


class Store:
    """Entries under one folder, together within `budget` bytes."""

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder, self.budget = folder, budget

    def find(self, key: str) -> tuple[Entry | None, str]:
        """(the entry, "") if it is there and holds what was written; (None, why) if it was damaged and is dropped; (None, "")."""
        path = self.folder / key
        if not os.path.isdir(path):  # of a folder that may not be looked into: no
            return None, ""
        try:
            told = json.loads((path / "entry.json").read_text(encoding="utf8"))
            for name, expected in told["sha256"].items():  # before it is read: numpy may raise anything at a broken header
                if digest(path / name) != expected:
                    raise ValueError(f"{name} is not the file that was written")
            entry = opened(path)
        except PermissionError:  # another user's, in a folder of both: left as it is
            return None, ""
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if not os.path.isdir(path):  # made room for another's meanwhile
                return None, ""
            self._drop(path)
            return None, f"the cache entry {path.name[:12]} is damaged ({error}): it is computed again"
        with suppress(OSError):  # a cache that may only be read
            os.utime(path / "entry.json")
        return entry, ""

    def write(self, key: str, columns: Sequence[Column], lengths: np.ndarray) -> Writer:
        """A writer for a new entry, once there is room.

        Raises:
            OSError: the folder cannot be written, or the disk is full.
        """
        size = sum(column.size(lengths) for column in columns)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        self.make_room(size)
        free = self._free()
        if size > free:
            raise OSError(errno.ENOSPC, f"it needs {size / 2**20:,.0f} MB, {free / 2**20:,.0f} MB are free")
        return Writer(columns, lengths, self, key)

    def begin(self) -> tuple[Path, int]:
        """A new folder to write in, and the same, open and locked, by which others see that its process lives."""
        while True:
            part = self.folder / f"{WRITING}{socket.gethostname()}-{os.getpid()}-{time.monotonic_ns()}"
            part.mkdir()  # not mkdtemp, which shuts out the others of a folder that is shared
            with suppress(FileNotFoundError):  # swept by another before it was locked
                opened = os.open(part, os.O_RDONLY)
                hold.lock(opened, wait=True)
                if part.exists():
                    return part, opened
                os.close(opened)

    def entries(self) -> list[Listed]:
        """What is stored, the latest used first."""
        found = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if not NAME.fullmatch(path.name):
                continue
            try:
                used = (path / "entry.json").stat().st_mtime
                told = json.loads((path / "entry.json").read_text(encoding="utf8"))
                found.append(Listed(path, int(told["bytes"]), used, told["about"]))
            except (OSError, ValueError, KeyError, TypeError):
                if path.is_dir():  # an entry of ours that can no longer be read
                    found.append(Listed(path, sum(f.stat().st_size for f in path.glob("*.bin")), 0.0, {"damaged": True}))
        return sorted(found, key=lambda one: -one.used)

    def make_room(self, size: int) -> None:
        """Drop what was used longest ago until `size` bytes more are within the budget, and on the disk if that can be.

        What others are writing counts for who is about to, but holds nobody up: two runs that write the same leave it once.
        """
        entries = self.entries()
        total = sum(one.bytes for one in entries)
        written = sum(map(_written, self.folder.glob(f"{WRITING}*"))) if size else 0
        written = written if written + size <= self.budget else 0  # else all of it would be dropped, in vain as well
        full = size <= self._free() + total  # else all of it would be dropped in vain
        stay = 0 if size else 1  # the latest used, which has just been written
        while len(entries) > stay and (total + written + size > self.budget or (full and size > self._free())):
            last = entries.pop()
            total -= last.bytes if self._drop(last.path) else 0

    def _free(self) -> float:
        """Bytes that may be written: a part of what is free is left to others."""
        return shutil.disk_usage(self.folder).free * (1 - KEPT_FREE)

    def clear(self) -> int:
        """Drop everything that may be; the bytes that it took. Runs that are reading go on: their maps outlive the names."""
        return sum(one.bytes for one in self.entries() if self._drop(one.path)) + self._sweep()

    def _drop(self, path: Path) -> bool:
        """Out of sight first, so that nobody ever sees half an entry. Whether it is gone: another user's may stay."""
        away = path.with_name(f"{UNFINISHED}dropped-{os.getpid()}-{path.name[:16]}-{time.monotonic_ns()}")
        try:
            path.rename(away)
        except OSError:  # another process was first, or it is another user's
            return not path.exists()
        shutil.rmtree(away, ignore_errors=True)
        return True

    def _sweep(self) -> int:
        """What killed processes left, and the bytes that it took."""
        freed = 0
        for path in self.folder.glob(f"{UNFINISHED}*") if self.folder.is_dir() else ():
            with suppress(OSError), _left(path) as left:
                if left:
                    size = _taken(path)
                    shutil.rmtree(path, ignore_errors=True)
                    freed += 0 if path.exists() else size  # another user's stays
        return freed


@contextmanager
def _left(path: Path) -> Iterator[bool]:
    """Whether nobody is at work in an unfinished folder, and nobody begins to while this lasts: it is not locked, or, where locks
    do not tell, not touched for long.

    Raises:
        OSError: it went meanwhile, or is another user's.
    """
    opened = os.open(path, os.O_RDONLY)
    try:
        # another machine's locks a network's folder need not know
        here = path.name.startswith(WRITING) and path.name.removeprefix(WRITING).rsplit("-", 2)[0] == socket.gethostname()
        mine = hold.lock(opened) if here else None
        latest = max((file.stat().st_mtime for file in path.iterdir()), default=path.stat().st_mtime)
        yield time.time() - latest > STALE if mine is None else mine
    finally:
        os.close(opened)


def _written(path: Path) -> int:
    """Bytes that somebody is about to write in an unfinished folder."""
    with suppress(OSError), _left(path) as left:
        return 0 if left else _taken(path)
    return 0


def _taken(path: Path) -> int:
    """Bytes of the values in a folder, those that are still to be written among them where they were reserved."""
    with suppress(OSError):
        return sum(file.stat().st_size for file in path.glob("*.bin"))
    return 0


def folder() -> Path:
    """Where the store is: AFFINAGE_CACHE, or affinage/ in XDG_CACHE_HOME or in ~/.cache; without a home, a temporary folder."""
    if own := os.environ.get("AFFINAGE_CACHE"):
        return Path(own).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "affinage"
    except RuntimeError:  # a user without a home, as in a container
        return Path(tempfile.gettempdir()) / f"affinage-{os.getuid()}"


def key(facts: Mapping[str, Any]) -> str:
    """The SHA-256 of what an entry depends on, as JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def in_memory(columns: Sequence[Column], lengths: np.ndarray) -> Writer:
    """A writer whose rows stay in memory."""
    return Writer(columns, lengths)
