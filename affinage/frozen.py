"""Frozen: what a stage does not teach, computed once: whether it pays, where it is kept, and the rows that stand for it."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from affinage import __version__, ranks, rates, store
from affinage import cut as cuts
from affinage.batches import aligned
from affinage.cut import CAPTURED, Cut, Resumed, frozen_parameters, lowest
from affinage.facts import Clock, versions
from affinage.features import autocast, batched, kernels, out_of_memory, packed
from affinage.layout import Uncuttable
from affinage.net import Net
from affinage.store import Column, Entry, Store, Writer
from affinage.types import Batch, Rows, Stage
from affinage.views import Augmented, Views

PAYS = 0.05  # least share of a forward pass below the cut: reading a row back is not free (a table of word embeddings has 0)
GB = 10**9


@dataclass
class Frozen:
    """What a stage trains on and through; `facts` says in run.json where the cut is and what it took, or why there is none."""

    rows: dict[str, Rows]
    forward: nn.Module  # the whole network, or what is above the cut
    facts: dict[str, Any]


class Captured:
    """Rows with what the frozen part makes of them beside them."""

    def __init__(self, rows: Rows, entry: Entry) -> None:
        self.rows, self.entry = rows, entry
        self.lengths = rows.lengths

    def __len__(self) -> int:
        return len(self.rows)

    def aligned(self, multiple: int) -> Captured:
        """As `TokenRows.aligned`, where there are tokens; what was captured is of real tokens alone."""
        return Captured(aligned(self.rows, multiple), self.entry)

    def batch(self, rows: np.ndarray) -> Batch:
        """The batch of the whole network, and captured.0, captured.1, ...: (units, ...), row after row."""
        found = self.rows.batch(rows)
        for i, column in enumerate(self.entry.columns):
            units = torch.from_numpy(self.entry.read(i, rows))
            found[f"{CAPTURED}{i}"] = units.view(torch.bfloat16) if column.dtype == "bfloat16" else units
        return found


class _Uncut(Exception):
    """Why a stage goes through the whole network, and the block at which it might have been cut."""

    def __init__(self, why: str, address: str | None = None) -> None:
        self.why, self.address = why, address


class _Look(NamedTuple):
    """One thing to capture: a split as it is (view 0), or one augmented view of it, counted from 1."""

    name: str
    view: int
    rows: Rows


def computed_once(
    net: Net,
    stage: Stage,
    rows: Mapping[str, Rows],
    *,
    precision: str,
    budget: float,
    views: int = 0,
    seed: int = 0,
    before: Mapping[str, Any] | None = None,
    ceiling: str | None = None,
    start: Callable[[str, int], None] = lambda what, total: None,
    advance: Callable[[int, str], None] = lambda rows, words: None,
) -> Frozen:
    """The splits with what is frozen in `stage` computed once, or as they are, and why. Draws no random number.

    Args:
        rows: by split; "train" is among them.
        budget: of the store, in GB; 0 for no store.
        views: where the stage augments: so many augmented views of the training rows are computed once each; 0 for no cut there.
        seed: of the views.
        before: the facts of this stage where it goes on after a stop: it goes on as it began.
        ceiling: the module above whose call no cut lies (`Task.ceiling`).
        start, advance: the progress bar's.
    """
    clock = Clock()
    views = views if stage.augment != "none" else 0
    try:
        if not budget:
            raise _Uncut("the cache is off")
        if before and before["why"]:
            raise _Uncut(before["why"], before["address"])
        cut, k = _cut(net, stage, rows, precision, views, ceiling)
        address = cut.address
        looks = [_Look(name, 0, split) for name, split in rows.items() if name != "train" or not views]
        looks += [_Look("train", v, Augmented(rows["train"], stage.augment, seed, v)) for v in range(1, views + 1)]
        columns, size = _columns(cut, looks, precision, budget, address)
        place = Store(store.folder(), int(budget * GB))
        weights = _weights(net, k) if ranks.first() else ""
        facts = {"address": address, "why": "", "share": round(cut.share, 4), "dtype": columns[0].dtype, "bytes": size}
        facts |= {"kept": "disk", "reused": True, "views": views}
        captured: list[Rows] = []
        for look in looks:
            about: dict[str, Any] = {}
            if ranks.first():
                about = _about(net, k, precision, columns, weights, rows[look.name])
                about["view"] = [look.view, stage.augment, seed] if look.view else 0
            key = store.key(about)
            found, damage = place.find(key) if ranks.first() else (None, "")
            if damage:
                say(damage)
            if ranks.shared(found is None):
                facts["reused"] = False
                label = f"{look.name}, view {look.view} of {views}," if look.view else look.name
                start(f"stage {stage.name}: {label} up to {address}, once ({told(_size(columns, [look]))})", len(look.rows))
                shown = {"model": type(net.model).__name__, "cut": address, "split": look.name, "rows": len(look.rows)}
                shown["precision"] = precision
                with packed(net.model, precision):
                    found = _filled(cut, look.rows, columns, place, key, shown, precision, advance)
            if ranks.count() > 1:
                found = _everywhere(found, place.folder / ranks.shared(key))
            if found is None:
                where = "in memory" if ranks.count() == 1 else "anywhere that all ranks can read (set AFFINAGE_CACHE)"
                raise _Uncut(f"{told(size)} fit neither in {place.folder} nor {where}", address)
            if not found.maps:
                facts["kept"] = "memory"
            captured.append(Captured(rows[look.name], found))
    except _Uncut as uncut:
        return Frozen(dict(rows), net.model, {"address": uncut.address, "why": uncut.why})
    ready = {look.name: one for look, one in zip(looks, captured, strict=True)}
    if views:
        ready["train"] = Views([one for look, one in zip(looks, captured, strict=True) if look.view])
    cost = clock.cost()
    facts |= {"seconds": round(cost.seconds, 3), "cpu_seconds": round(cost.cpu_seconds, 3)}
    return Frozen(ready, Resumed(cut), facts)


def _cut(net: Net, stage: Stage, rows: Mapping[str, Rows], precision: str, views: int, ceiling: str | None) -> tuple[Cut, int]:
    """The cut of a stage, and the number of the block before which it is.

    Raises:
        _Uncut: there is none, or it does not pay.
    """
    k = lowest(net, rates.resolve(net, stage.rates))
    if k is None:
        raise _Uncut(net.why or "what stands before the first block learns")
    if ceiling is not None:
        place = net.places.get(ceiling, "stem")
        if place == "stem":
            raise _Uncut(f"what a training step adds to a batch is seen before the first block, by {ceiling}")
        k = min(k, int(place.removeprefix("blocks.")))
    address = cuts.address(net, k)
    if stage.epochs == 1:
        raise _Uncut("one epoch looks at each row once", address)
    if stage.mix:
        raise _Uncut("pictures are mixed anew each time", address)
    if stage.augment != "none" and not views:
        raise _Uncut(
            f"augmentation '{stage.augment}' changes the rows each time; "
            "--augment none computes it once, --views 4 four views of each",
            address,
        )
    lengths = [set(np.unique(r.lengths).tolist()) for r in rows.values()]
    if all(len(one) == 1 for one in lengths) and len(set.union(*lengths)) > 1:
        raise _Uncut("each split has rows of one length only, and not the same", address)
    try:  # through rows of different lengths, if any split has some
        cut, why = Cut(net, k, max(rows.values(), key=lambda r: int(np.ptp(r.lengths)) if len(r) else -1), precision), ""
    except Uncuttable as error:
        cut, why = None, str(error)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:  # it is trained all the same
        cut, why = None, f"looking at it failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    why = next(filter(None, ranks.gathered(why)), "")  # rounding may differ between machines: all cut, or none does
    if why or cut is None:
        raise _Uncut(why, address)
    if cut.share < PAYS:
        raise _Uncut(f"{cut.share:.0%} of a forward pass lies below it", None if k == 0 else address)
    return cut, k


def _columns(cut: Cut, looks: Sequence[_Look], precision: str, budget: float, address: str) -> tuple[list[Column], int]:
    """What is stored of a row, and the bytes of all; in bf16 where only that fits and the network computes in it.

    Raises:
        _Uncut: it does not fit.
    """
    columns = [_column(layout.dtype, layout.unit, bool(layout.tokens)) for layout in cut.layouts()]
    size = _size(columns, looks)
    if size > budget * GB and precision == "bf16":
        columns = [_column(torch.bfloat16, c.shape, c.ragged) if c.dtype == "float32" else c for c in columns]
        size = _size(columns, looks)
    if size > budget * GB:
        raise _Uncut(f"{told(size)} are more than --cache-gb {budget:g}", address)
    return columns, size


def _filled(
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
    batches = batched(rows.lengths)

    def made(batch: np.ndarray) -> list[np.ndarray]:
        try:
            with kernels(precision), autocast(precision):
                units = cut.packed(cut.placed(rows.batch(batch)))
            return [_plain(u, column) for u, column in zip(units, columns, strict=True)]
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or len(batch) == 1:
                raise
        halves = made(batch[: len(batch) // 2]), made(batch[len(batch) // 2 :])
        return [np.concatenate(pair) for pair in zip(*halves, strict=True)]

    def fill(writer: Writer) -> Entry:
        with writer:
            for i, batch in enumerate(batches):
                if i % ranks.count() == 0:
                    values = made(batch)
                else:
                    shapes = [(column.units(rows.lengths[batch]), *column.shape) for column in columns]
                    blank = [np.empty(shape, column.plain) for shape, column in zip(shapes, columns, strict=True)]
                    values = ranks.received(blank, i % ranks.count())
                writer.add(batch, values)
                advance(len(batch), "")
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
    writer, why = None, ""
    if ranks.first():
        try:
            writer = place.write(key, columns, rows.lengths)
        except OSError as error:
            why = f"the cache folder {place.folder} cannot be written ({error.strerror or error})"
            say(why)
    if ranks.shared(why):
        return None
    if writer is not None:
        return fill(writer)
    for batch in batches[ranks.number() :: ranks.count()]:
        ranks.given(made(batch))
    return None


def _everywhere(found: Entry | None, path: Path) -> Entry | None:
    """The entry that rank 0 has written or found, on all ranks; None on all where one of them cannot see it."""
    seen = None
    if ranks.shared(found is not None):
        with suppress(OSError, ValueError, KeyError):
            seen = found or store.opened(path)
    return seen if all(ranks.gathered(seen is not None)) else None


def say(line: str) -> None:
    print(f"affinage: {line}", file=sys.stderr)


def told(size: float) -> str:
    """Bytes in words."""
    return f"{size / GB:.1f} GB" if size >= GB else f"{size / 10**6:.1f} MB"


def _column(dtype: torch.dtype, shape: tuple[int, ...], ragged: bool) -> Column:
    return Column(str(dtype).removeprefix("torch."), shape, ragged)


def _size(columns: Sequence[Column], looks: Iterable[_Look]) -> int:
    return sum(column.size(look.rows.lengths) for column in columns for look in looks)


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


# ---------------------------------------------------------------------------------------------------------------- the key
# What says nothing of the blocks: names of classes, where the model came from, and the head.
ASIDE = {"id2label", "label2id", "num_labels", "architectures", "_name_or_path", "transformers_version", "problem_type"}


def _about(net: Net, k: int, precision: str, columns: Sequence[Column], weights: str, rows: Rows) -> dict[str, Any]:
    """All that what is stored depends on."""
    config: Any = net.model.config
    used = versions()
    return {
        "model": type(net.model).__name__,
        "config": {n: v for n, v in config.to_dict().items() if n not in ASIDE and not n.startswith("affinage")},
        "attention": getattr(config, "_attn_implementation", None),
        "weights": weights,
        "rows": _content(rows),
        "view": 0,  # the rows as they are; augmented views would be counted from 1
        "cut": cuts.begins(net, k),
        "columns": [(c.dtype, c.shape, c.ragged) for c in columns],
        "precision": precision,
        "device": next(net.model.parameters()).device.type,
        "versions": [__version__, used["torch"], used["transformers"], used["numpy"]],
    }


def _weights(net: Net, k: int) -> str:
    """SHA-256 of every parameter read before block k and of the buffers of modules that are called before it."""
    total = hashlib.sha256()
    below = {"stem", *(f"blocks.{i}" for i in range(k))}
    parameters = dict(net.model.named_parameters())
    read = [(name, parameters[name]) for name in frozen_parameters(net, k)]
    buffers = [(n, b) for n, b in net.model.named_buffers() if net.places.get(n.rpartition(".")[0], "stem") in below]
    for name, tensor in (*read, *buffers):
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _content(rows: Rows) -> str:
    """SHA-256 of the rows as the network is given them."""
    total = hashlib.sha256(str(len(rows)).encode())
    for start in range(0, len(rows), 64):
        for name, tensor in rows.batch(np.arange(start, min(start + 64, len(rows)))).items():
            total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            total.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
