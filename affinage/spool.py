"""Spool: what is larger than memory, on the disk for as long as this process lives, read by position.

A file without a name: it takes room where the store is and is gone when the process ends, however it ends. Read by position
(`pread`) and never mapped, so that its pages are the kernel's and memory stays flat.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from .errors import AffinageError
from .store import KEPT_FREE, folder

GB = 10**9
AT_ONCE = 8 * 2**20  # bytes that a pass over everything holds at a time


def limit() -> int:
    """Bytes of one thing (inputs, tokens, pixels, features) that stay in memory: AFFINAGE_MEMORY_GB, or 1 GB; more is spooled.

    Raises:
        AffinageError: the variable holds no number.
    """
    text = os.environ.get("AFFINAGE_MEMORY_GB", "1")
    try:
        return int(float(text) * GB)
    except (ValueError, OverflowError):
        raise AffinageError(f"AFFINAGE_MEMORY_GB is '{text}': expected gigabytes, such as 2") from None


def free() -> int:
    """Bytes that a spool may take on the disk."""
    return int(shutil.disk_usage(_place()).free * (1 - KEPT_FREE))


def need(size: int, what: str) -> None:
    """Refuse before hours of work what cannot be finished.

    Raises:
        AffinageError: fewer than `size` bytes are free on the disk.
    """
    if size > free():
        raise AffinageError(
            f"{what} needs {size / GB:.1f} GB on the disk at {_place()}, {free() / GB:.1f} GB are free: "
            "free some, or name a folder on another disk with AFFINAGE_CACHE"
        )


def _place() -> str:
    """The store's folder where it can be written, else the system's for temporary files."""
    own = folder()
    try:
        own.mkdir(parents=True, exist_ok=True)
    except OSError:
        return tempfile.gettempdir()
    return str(own) if os.access(own, os.W_OK) else tempfile.gettempdir()


class Spool:
    """Bytes, one after another; any of them can be read as soon as they are added. The first megabytes stay in memory."""

    def __init__(self) -> None:
        self.file: Any = None
        self.size = 0
        self._held = bytearray()  # before there is a file
        self._flushed = 0

    def __del__(self) -> None:
        if getattr(self, "file", None):
            self.file.close()

    def add(self, content: Any) -> None:
        """Any buffer of bytes.

        Raises:
            OSError: the disk is full.
        """
        self.size += memoryview(content).nbytes
        if self.file is None and self.size <= AT_ONCE:
            self._held += content
            return
        if self.file is None:
            self.file = tempfile.TemporaryFile(dir=_place(), buffering=2**20)  # noqa: SIM115  # open for as long as it is used
            self.file.write(self._held)
            self._held = bytearray()
        self.file.write(content)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`; safe in threads once all is added."""
        if self.file is None:
            return bytes(self._held[start:stop])
        if self._flushed < self.size:
            self.file.flush()
            self._flushed = self.size
        return pread(self.file.fileno(), start, stop - start)


def pread(file: int, start: int, size: int) -> bytes:
    """`size` bytes of an open file from `start` on; the file's own position stays.

    Raises:
        OSError: the file ends before.
    """
    found = os.pread(file, size, start)
    while len(found) < size:  # Linux reads 2 GB at most at once
        more = os.pread(file, size - len(found), start + len(found))
        if not more:
            raise OSError(errno.EIO, "the file became shorter while it was read")
        found += more
    return found


# How a text (with whatever half characters are in it), encoded bytes and a path are written, and read.
FORMS: dict[type, tuple[Callable[[Any], bytes], Callable[[bytes], Any]]] = {
    str: (lambda text: text.encode("utf-8", "surrogatepass"), lambda content: content.decode("utf-8", "surrogatepass")),
    bytes: (bytes, bytes),
    Path: (os.fsencode, lambda content: Path(os.fsdecode(content))),
}


class Cells(Sequence[Any]):
    """N texts, encoded things or paths in a spool, read when they are looked at; in memory are 8 bytes an item, for its place."""

    def __init__(self, form: type) -> None:
        """`form`: str, bytes or Path."""
        self.spool, self.form = Spool(), form
        self.encode, self.decode = FORMS[form]
        self.ends = array("q", [0])  # item i is the bytes from ends[i] to ends[i + 1]

    def add(self, item: Any) -> None:
        """One more, of the form.

        Raises:
            OSError: the disk is full.
        """
        self.spool.add(self.encode(item))
        self.ends.append(self.spool.size)

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, at: int) -> Any: ...
    @overload
    def __getitem__(self, at: slice) -> list[Any]: ...
    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            return self._run(start, stop) if step == 1 else [self[i] for i in range(start, stop, step)]
        at = int(at)
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        at %= len(self)
        return self.decode(self.spool.read(self.ends[at], self.ends[at + 1]))

    def _run(self, start: int, stop: int) -> list[Any]:
        """Neighbours, with one read."""
        if stop <= start:
            return []
        begin = self.ends[start]
        whole = self.spool.read(begin, self.ends[stop])
        return [self.decode(whole[self.ends[i] - begin : self.ends[i + 1] - begin]) for i in range(start, stop)]

    def __iter__(self) -> Iterator[Any]:
        """All in order, some megabytes at a time."""
        start = 0
        while start < len(self):
            stop = start + 1
            while stop < min(len(self), start + 1024) and self.ends[stop + 1] - self.ends[start] <= AT_ONCE:
                stop += 1
            yield from self._run(start, stop)
            start = stop


class Block:
    """(N, *shape) numbers of one type in a spool."""

    def __init__(self, dtype: Any, shape: tuple[int, ...] = ()) -> None:
        self.spool, self.dtype, self.shape = Spool(), np.dtype(dtype), shape
        self.row = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize  # bytes

    def __len__(self) -> int:
        return self.spool.size // self.row

    def add(self, rows: np.ndarray) -> None:
        """(n, *shape) more.

        Raises:
            OSError: the disk is full.
        """
        if rows.size:
            self.spool.add(np.ascontiguousarray(rows, self.dtype).data.cast("B"))

    def __getitem__(self, at: Any) -> np.ndarray:
        """A copy: (n, *shape) of a slice without a step, or of row numbers (n,)."""
        if isinstance(at, slice):
            start, stop, _ = at.indices(len(self))
            whole = self.spool.read(start * self.row, max(start, stop) * self.row)
            return np.frombuffer(bytearray(whole), self.dtype).reshape(-1, *self.shape)
        found = np.empty((len(at), *self.shape), self.dtype)
        for place, row in enumerate(np.asarray(at).tolist()):
            whole = self.spool.read(row * self.row, (row + 1) * self.row)
            found[place] = np.frombuffer(whole, self.dtype).reshape(self.shape)
        return found
