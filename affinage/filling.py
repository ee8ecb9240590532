"""Filling: every row through the frozen part once, and what it makes of them kept: on the disk, in memory, on a GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from affinage import card, ranks, store
from affinage.card import OnCard
from affinage.cut import Cut
from affinage.features import autocast, batched, kernels, out_of_memory
from affinage.ragged import Column, Entry, opened
from affinage.store import Store, Writer
from affinage.types import Rows

GB = 10**9
# Bytes a second that a disk takes, sums and all: taken, not measured, and rather too fast. What a GPU makes faster is not stored.
WRITTEN = 0.5e9
PROBED = 16  # rows that tell how long the rest will take
JUDGED = 1  # the batch that is timed; the one before it sets the card up


def filled(
    cut: Cut,
    rows: Rows,
    columns: Sequence[Column],
    place: Store,
    key: str,
    about: Mapping[str, Any],
    precision: str,
    advance: Callable[[int, str], None],
) -> Entry | None:
    """Every row through the frozen part, on the disk, else in memory; None where neither has room.

    Of several ranks each runs every n-th batch and hands what it made to rank 0, which alone writes and alone gets the entry.
    """
    batches = batched(rows.lengths, cut.model, precision)

    def made(batch: np.ndarray) -> list[np.ndarray]:
        return [_plain(u, column) for u, column in zip(_made(cut, rows, batch, precision), columns, strict=True)]

    def fill(writer: Writer) -> Entry:
        full: OSError | None = None
        with writer:
            for i, batch in enumerate(batches):
                if i % ranks.count() == 0:
                    values = made(batch)
                else:
                    shapes = [(column.units(rows.lengths[batch]), *column.shape) for column in columns]
                    blank = [np.empty(shape, column.plain) for shape, column in zip(shapes, columns, strict=True)]
                    values = ranks.received(blank, i % ranks.count())
                try:
                    if full is None:
                        writer.add(batch, values)
                except OSError as error:
                    if ranks.count() == 1:
                        raise
                    full = error  # and what the others hand over is still taken from them
                advance(len(batch), "")
            if full is not None:
                raise full
            return writer.done(about)

    if ranks.count() > 1:
        return _filled_by_all(place, key, columns, rows, batches, made, fill)
    try:
        return fill(place.write(key, columns, rows.lengths))
    except OSError as error:
        size, free = sum(column.size(rows.lengths) for column in columns), _free_memory()
        why = f"the cache folder {place.folder} cannot be written ({error.strerror or error})"
        if size > free / 2:
            say(f"{why}; in memory it would take {told(size)} of the {told(free)} that are free")
            return None
        say(f"{why}: {told(size)} stay in memory, for this run only")
        return fill(store.in_memory(columns, rows.lengths))


def pace(cut: Cut, rows: Rows, precision: str) -> float:
    """Seconds that the frozen part takes a token, or a picture: of a few rows of middling length, the second time."""
    middle = np.argsort(rows.lengths, kind="stable")[len(rows) // 2 :][:PROBED]
    _made(cut, rows, middle, precision)
    started = card.now(cut.where)
    _made(cut, rows, middle, precision)
    return (card.now(cut.where) - started) / int(rows.lengths[middle].sum())


def on_card(
    cut: Cut, rows: Rows, columns: Sequence[Column], precision: str, advance: Callable[[int, str], None]
) -> OnCard | None:
    """Every row through the frozen part, into the memory of the network's device; None where that has no room after all, or takes
    so long that it should be stored for other runs.
    """
    try:
        kept = OnCard(columns, rows.lengths, cut.where)
        for i, batch in enumerate(batched(rows.lengths, cut.model, precision)):
            started = card.now(cut.where)
            made = _made(cut, rows, batch, precision)
            kept.add(batch, made)
            if i == JUDGED and sum(u.nbytes for u in made) < WRITTEN * (card.now(cut.where) - started):
                return None
            advance(len(batch), "")
    except torch.OutOfMemoryError:
        return None
    return kept


def _made(cut: Cut, rows: Rows, batch: np.ndarray, precision: str) -> list[torch.Tensor]:
    """What is captured of these rows, in halves where memory does not suffice."""
    try:
        with kernels(precision), autocast(precision):
            return cut.packed(cut.placed(rows.batch(batch)))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error) or len(batch) == 1:
            raise
    halves = [_made(cut, rows, half, precision) for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :])]
    return [torch.cat(pair) for pair in zip(*halves, strict=True)]


def _filled_by_all(
    place: Store,
    key: str,
    columns: Sequence[Column],
    rows: Rows,
    batches: Sequence[np.ndarray],
    made: Callable[[np.ndarray], list[np.ndarray]],
    fill: Callable[[Writer], Entry],
) -> Entry | None:
    """The entry on rank 0, None on the others; None on all where its folder has no room: every rank's memory holds too much."""

    def unwritten(error: OSError) -> None:
        size = sum(column.size(rows.lengths) for column in columns)
        why = f"the cache folder {place.folder} cannot be written ({error.strerror or error})"
        say(f"{why}: AFFINAGE_CACHE should name one that all ranks read and that has room for {told(size)}")

    def begun() -> Writer | None:
        try:
            return place.write(key, columns, rows.lengths)
        except OSError as error:
            unwritten(error)
            return None

    def taken() -> Entry | None:
        try:
            return fill(writer) if writer else None
        except OSError as error:
            unwritten(error)
            return None

    writer = ranks.alone(begun)
    if ranks.shared(ranks.first() and writer is None):
        return None
    for batch in batches[ranks.number() :: ranks.count()] if writer is None else ():
        ranks.given(made(batch))
    return ranks.alone(taken)  # what all have handed over is still to be written through


def everywhere(found: Entry | None, path: Path) -> Entry | None:
    """The entry that rank 0 has written or found, on all ranks; None on all where one of them cannot see it."""
    seen = None
    if ranks.shared(found is not None):
        with suppress(OSError, ValueError, KeyError, EOFError):
            seen = found or opened(path)
    return seen if all(ranks.gathered(seen is not None)) else None


def say(line: str) -> None:
    print(f"affinage: {line}", file=sys.stderr)


def told(size: float) -> str:
    """Bytes in words."""
    return f"{size / GB:.1f} GB" if size >= GB else f"{size / 10**6:.1f} MB"


def _plain(units: torch.Tensor, column: Column) -> np.ndarray:
    if column.dtype == "bfloat16":
        return units.to(torch.bfloat16).view(torch.int16).cpu().numpy()
    return units.cpu().numpy()


def _free_memory() -> float:
    """Bytes that can be had without swapping."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
