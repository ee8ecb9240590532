"""Reach: whether every rank writes in the folder that rank 0 writes in, as it has to where each saves its own part."""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from pathlib import Path

from affinage import facts, hold, ranks, team
from affinage.errors import AffinageError

LAG = 60.0  # seconds in which what one machine wrote has to show on the others
WORD = ".seen-"  # begins the names of the files by which ranks see each other


def empty(out: Path) -> bool:
    """Whether a folder holds nothing but what processes leave that are killed before a run begins."""
    left = {hold.WORD, facts.PART.format("run.json")}
    return all(path.name.startswith(WORD) or path.name in left for path in out.iterdir())


def wait(paths: list[Path]) -> list[bool]:
    """Whether each is there, as soon as all are, or after so long as a network's folder may lag."""
    end = time.monotonic() + min(LAG, team.patience() / 2)
    while not all(path.exists() for path in paths) and time.monotonic() < end:
        time.sleep(0.1)
    return [path.exists() for path in paths]


def shared(out: Path) -> None:
    """Every rank leaves a word in the folder, and rank 0 has to see all of them. It is there afterwards if it was before.

    Raises:
        AffinageError: a rank writes elsewhere, or cannot write; OSError on rank 0 that cannot write itself.
    """
    new, secret = not out.exists(), ranks.shared(secrets.token_hex(8))
    words = [out / f"{WORD}{secret}-{rank}" for rank in range(ranks.count())]
    if ranks.first():
        out.mkdir(parents=True, exist_ok=True)
        for old in out.glob(f"{WORD}*"):
            old.unlink(missing_ok=True)
        words[0].touch()
    ranks.alone(lambda: None)
    try:
        if not ranks.first() and wait(words[:1])[0]:
            with suppress(OSError):  # rank 0 will not see it
                words[ranks.number()].touch()
        blind = [rank for rank, there in enumerate(wait(words) if ranks.first() else []) if not there]
        blind = ranks.shared(blind)
    finally:
        with suppress(OSError):
            words[ranks.number()].unlink(missing_ok=True)
        if ranks.first() and new:
            with suppress(OSError):
                out.rmdir()
    if blind:
        raise AffinageError(
            f"rank {blind[0]} does not write in {out}, where with --shard each rank saves its part: "
            "choose an --out that all machines share, or leave --shard out"
        )
