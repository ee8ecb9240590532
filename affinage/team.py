"""Team: the processes of one run: how they meet, who is still alive, and how an error is told once.

`torchrun`, or anything else that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, starts them, on one machine or on many.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from affinage.errors import AffinageError

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what a launcher sets
SECONDS = 300.0  # that a rank waits for another's word before it gives up, unless AFFINAGE_RANK_SECONDS says otherwise
PULSE = 0.5  # seconds between two signs of life
SILENT = 3.0  # seconds without one after which a rank is taken to be dead
POLITE = 3.0  # seconds that rank 0 has to tell an error that all have


class RankLost(AffinageError):
    """Another process of the run died or fell silent: nothing is wrong with the input, and the run can go on."""

    exit_code = 1


class Team:
    """This process among the others: its number, their number, and the store through which they leave each other words."""

    def __init__(self, number: int, count: int, store: Any, folder: Path) -> None:
        self.number, self.count, self.store, self.folder = number, count, store, folder
        self.waits = 0  # calls of `alone` so far
        self.over = threading.Event()
        self.pulses = store.clone()  # a client of its own: one that waits would hold up the other
        self._pulse(0)
        self.living = threading.Thread(target=self._live, daemon=True)
        self.living.start()
        atexit.register(self.end)  # after an error, too, and in a program of the user's own

    def end(self) -> None:
        """No more signs of life. A thread that Python ends at its exit, within a call of the store, aborts the process."""
        atexit.unregister(self.end)
        self.over.set()
        self.living.join(SILENT)

    def _pulse(self, beat: int) -> None:
        self.pulses.set(f"pulse/{self.number}", str(beat))

    def _live(self) -> None:
        beat = 0
        with suppress(Exception):  # the store went away with its process: whoever waits for a word finds out
            while not self.over.wait(PULSE):
                beat += 1
                self._pulse(beat)

    def beats(self, numbers: Iterable[int]) -> list[str]:
        """The latest sign of life of each of the given ranks."""
        keys = [f"pulse/{n}" for n in numbers]
        there = [key for key in keys if self.store.check([key])]
        found = dict(zip(there, self.store.multi_get(there), strict=True)) if there else {}
        return [bytes(found.get(key, b"")).decode() for key in keys]

    def gone(self) -> list[int]:
        """The ranks that give no sign of life; rank 0's process may hold the store, and then its end is that of all words."""
        others = [n for n in range(self.count) if n != self.number]
        try:
            before = self.beats(others)
            time.sleep(SILENT)
            after = self.beats(others)
        except Exception:
            return [0] if self.number else []
        return [n for n, one, two in zip(others, before, after, strict=True) if one == two]

    @property
    def resume(self) -> str:
        """What there is to go on from, and with which command; another machine may not see the folder."""
        command = f"affinage fit --resume --out {self.folder}"
        if any((self.folder / "checkpoints").glob("step-*")):
            return f"the last checkpoint is whole; go on, on any number of ranks, with: {command}"
        if (self.folder / "run.json").exists():
            return f"no checkpoint was written yet; begin again, on any number of ranks, with: {command}"
        return f"go on, on any number of ranks, with: {command} (and --model and --data, where it had not begun)"

    def lost(self, gone: Sequence[int]) -> RankLost:
        which = f"rank {gone[0]} is" if len(gone) == 1 else f"ranks {', '.join(map(str, gone))} are"
        return RankLost(f"{which} gone (of {self.count} ranks, 0 to {self.count - 1}): {self.resume}")


_here: Team | None = None  # within `joined()`
_unreached = False  # there is no such store: every rank tells its own error
_words: Any = None  # the store through which errors are told once
_joins = 0  # blocks so far: each has names of its own in the store


# ---------------------------------------------------------------------------------------------------------- who is there
def launched() -> bool:
    """Whether a launcher started this process as one of several.

    Raises:
        AffinageError: what it said is no number.
    """
    if not all(os.environ.get(name) for name in NAMES):
        return False
    try:
        number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except ValueError:
        raise AffinageError(
            f"RANK is '{os.environ['RANK']}' and WORLD_SIZE '{os.environ['WORLD_SIZE']}': expected numbers, as torchrun sets them"
        ) from None
    if not 0 <= number < max(count, 1):
        raise AffinageError(f"RANK is {number} of WORLD_SIZE {count}: expected 0 to {count - 1}, as torchrun sets it")
    return count > 1


def speaks() -> bool:
    """Whether this process prints results: rank 0, or the only one."""
    return not _several() or int(os.environ["RANK"]) == 0


def _several() -> bool:
    """As `launched`; a launcher that sets nonsense has been told of by `joined`."""
    try:
        return launched()
    except AffinageError:
        return False


def here() -> Team | None:
    """This process among the others, within `joined()`; None in one process."""
    return _here


def patience() -> float:
    """Seconds to wait for another rank's word: AFFINAGE_RANK_SECONDS, or 300.

    Raises:
        AffinageError: the variable holds no positive number.
    """
    text = os.environ.get("AFFINAGE_RANK_SECONDS", str(SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise AffinageError(f"AFFINAGE_RANK_SECONDS is '{text}': expected seconds above 0, such as 300")
    return seconds


@contextmanager
def joined(folder: Path) -> Iterator[None]:
    """The processes that were launched together, as one run that writes into `folder`; nothing in one process.

    Raises:
        RankLost: one of them died or fell silent.
    """
    global _here, _joins
    if not launched() or _here is not None:
        yield
        return
    import torch
    import torch.distributed as dist

    seconds = patience()
    store, rank, size = _met(seconds)
    store = _named(store)
    team = Team(rank, size, _prefixed(f"run/{_joins}", store), folder)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())
    # words always travel by gloo, so that a dead rank is noticed at once and not by a kernel that waits for it
    backend = "cpu:gloo,cuda:nccl" if dist.is_nccl_available() and _own_gpu(store, rank, size) else "gloo"
    with _stoppable(team):
        try:
            dist.init_process_group(
                backend, store=_prefixed(f"group/{_joins}", store), rank=rank, world_size=size,
                timeout=timedelta(seconds=seconds),
            )  # fmt: skip
            _here = team
            _joins += 1
            yield
            dist.barrier()
            dist.destroy_process_group()
        except AffinageError:
            raise
        except Exception as error:
            if gone := team.gone():
                raise team.lost(gone) from error
            if "imed out" in str(error):
                raise RankLost(f"no word from another rank for {seconds:g} s (AFFINAGE_RANK_SECONDS): {team.resume}") from error
            raise
        finally:
            _here = None
        team.end()  # not after an error: this process is not the one that died


def _own_gpu(store: Any, rank: int, size: int) -> bool:
    """Whether every rank has a GPU to itself, by what each says in the store: NCCL refuses two ranks on one."""
    import torch

    mine = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid) if torch.cuda.is_available() else ""
    cards = _prefixed(f"card/{_joins}", store)
    cards.set(str(rank), mine)
    every = [bytes(cards.get(str(n))).decode() for n in range(size)]
    return all(every) and len(set(every)) == size


@contextmanager
def _stoppable(team: Team) -> Iterator[None]:
    """SIGTERM, which launchers send to all ranks when one ends, is answered even while this one waits inside a collective."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)

    def watch() -> None:
        while numbers := os.read(read, 64):
            if signal.SIGTERM in numbers:
                gone = team.gone()
                tell(f"affinage: {team.lost(gone) if gone else f'stopped by SIGTERM; {team.resume}'}")
                os._exit(1 if gone else 128 + signal.SIGTERM)
        os.close(read)

    signal.signal(signal.SIGTERM, lambda *_: None)  # the word is left in the pipe by C code, whatever Python is doing
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        if sys.exc_info()[0] is None:  # after an error the watch stays: others may still be telling it
            signal.set_wakeup_fd(before)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.close(write)


def _named(store: Any = None) -> Any:
    """The store through which errors are told once; from the launcher's environment where none was joined yet."""
    global _words
    if store is not None and _words is None:
        _words = _prefixed("words", store.clone())
    return store


def _met(seconds: float) -> tuple[Any, int, int]:
    """(the store that all ranks reach, this one's number, their number)."""
    global _unreached
    from torch.distributed.rendezvous import rendezvous

    try:
        return next(iter(rendezvous("env://", timeout=timedelta(seconds=seconds))))
    except Exception as error:  # a name that is none, a port that nobody listens on, ranks that never came
        _unreached = True
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RankLost(
            f"the {os.environ['WORLD_SIZE']} ranks did not all meet at {where} in time: is rank 0's machine up and its port open?"
        ) from error


def _prefixed(prefix: str, store: Any) -> Any:
    """The store, with keys of its own."""
    from torch.distributed.distributed_c10d import PrefixStore

    return PrefixStore(prefix, store)


def tell(line: str) -> None:
    """Print `line` on standard error; of several ranks that have something to tell only one does, rank 0 if it can."""
    global _words
    if not _several() or _unreached:
        print(line, file=sys.stderr)
        return
    rank = int(os.environ["RANK"])
    try:
        if _words is None:
            _named(_met(2 * POLITE)[0])
        end = time.monotonic() + POLITE
        while rank and time.monotonic() < end and not _words.check(["told"]):
            time.sleep(0.05)
        if _words.add("told", 1) > 1:  # another one does; this process ends after it, lest the launcher stop the other first
            end = time.monotonic() + 2 * POLITE
            while time.monotonic() < end and not _words.check(["heard"]):
                time.sleep(0.05)
            return
        where = f" [rank {rank} on {socket.gethostname()}]" if rank else ""
        print(f"{line}{where}", file=sys.stderr, flush=True)
        _words.set("heard", "1")
    except Exception:  # no store: its process ended, and told why, or it is rank 0's that has ended without a word
        if rank == 0 or "is gone" in line:
            print(line, file=sys.stderr, flush=True)


def leave(code: int) -> None:
    """End this process at once, where it is one of several.

    After an error its destructors would wait for the dead; and a finished one was seen to abort in them, in two runs of the tests
    (code -6), when all of its work was done. `Team.end` at exit mends what could be brought about of that; this is the rest.
    """
    if _several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
