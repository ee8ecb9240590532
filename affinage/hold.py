"""Hold: locks that end with their process, however it ends: of a run's folder, where one works at a time, and of entries."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

WORD = (
    ".running"  # the file in a run's folder whose lock says that a process is at work there; a kill leaves it, without the lock
)


def lock(file: int, *, wait: bool = False) -> bool | None:
    """Whether this process holds the lock of an open file, or folder, from now on; None where its file system knows no locks."""
    try:
        import fcntl
    except ImportError:  # not on this system
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


class Hold:
    """The folder of a run, from `take` to the end of its `with`, or of the process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / WORD
        self.made = False  # whether the folder was made for it; it goes again where nothing was put into it
        self._file: int | None = None

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._file is not None:
            with suppress(OSError):
                self.path.unlink()  # before the lock goes: who waits for it finds another file under the name, or none
            os.close(self._file)
            self._file = None
        if self.made:
            with suppress(OSError):
                self.folder.rmdir()

    def take(self) -> str:
        """Nothing, and the folder is held; or who holds it. Where nothing can be written or locked, nobody is held up.

        Raises:
            OSError: the folder is not there and cannot be made.
        """
        while self._file is None:
            if not self.folder.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                self.made = True
            try:
                file = self._open()
            except FileNotFoundError:  # the folder went away meanwhile, with the run that had made it
                continue
            except OSError:
                return ""
            if lock(file) is False:
                other = os.read(file, 200).decode(errors="replace")
                os.close(file)
                return other or "just begun"
            if not self._named(file):  # it was taken away meanwhile, at the end of another run
                os.close(file)
                continue
            self._file = file
            with suppress(OSError):  # a full disk
                os.ftruncate(file, 0)
                os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        return ""

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError as error:
            try:
                return os.open(self.path, os.O_RDONLY)  # another user's, which can be locked all the same
            except FileNotFoundError:  # there is none: it is the folder that may not be written
                raise error from None

    def _named(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self.path.stat())
        except OSError:
            return False
