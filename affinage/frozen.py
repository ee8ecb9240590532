"""Frozen: what a stage does not teach, computed once: whether it pays, where it is kept, and the rows that stand for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from affinage import card, contents, entry, ranks, rates, store
from affinage.batches import aligned
from affinage.card import OnCard
from affinage.cut import CAPTURED, Cut, Resumed
from affinage.facts import Clock
from affinage.features import Replaced, kernels, packed
from affinage.filling import GB, WRITTEN, everywhere, filled, on_card, pace, say, told
from affinage.first import First
from affinage.instead import instead
from affinage.layout import Layout, Uncuttable
from affinage.net import Net
from affinage.pictures import ImageRows
from affinage.progress import duration
from affinage.ragged import Column, Entry
from affinage.store import Store
from affinage.types import Batch, Rows, Stage
from affinage.views import Augmented, Views

LONG = 10.0  # seconds from which what a pass will take is a line of its own, which stays and is in a log
PAYS = 0.05  # least share of a forward pass that a cut saves: reading a row back is not free (a table of word embeddings has 0)


@dataclass
class Frozen:
    """What a stage trains on and through; `facts` says in run.json where the cut is and what it took, or why there is none."""

    rows: dict[str, Rows]
    forward: nn.Module  # the whole network, or what is above the cut
    facts: dict[str, Any]
    cut: Cut | None = None  # where the rows hold to the bit what the network left there: a later cut may go on from it


class Captured:
    """Rows with what the frozen part makes of them beside them."""

    def __init__(self, rows: Rows, entry: Entry | OnCard, unread: bool = False) -> None:
        """`unread`: nothing above the cut looks into the pictures that went in, and they need not be read."""
        self.rows, self.entry, self.unread = rows, entry, unread
        self.lengths = rows.lengths

    def __len__(self) -> int:
        return len(self.rows)

    def aligned(self, multiple: int) -> Captured:
        """As `TokenRows.aligned`, where there are tokens; what was captured is of real tokens alone."""
        return Captured(aligned(self.rows, multiple), self.entry, self.unread)

    def batch(self, rows: np.ndarray) -> Batch:
        """The batch of the whole network, and captured.0, captured.1, ...: (units, ...), row after row."""
        found = self.rows.blank(len(rows)) if self.unread and isinstance(self.rows, ImageRows) else self.rows.batch(rows)
        for i, column in enumerate(self.entry.columns):
            units = self.entry.read(i, rows)
            if isinstance(units, np.ndarray):
                units = torch.from_numpy(units)
                units = units.view(torch.bfloat16) if column.dtype == "bfloat16" else units
            found[f"{CAPTURED}{i}"] = units
        return found


class Alike:
    """Rows of which all that costs has been computed: a pass may take long and short ones together."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.lengths = np.ones(len(rows), np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: np.ndarray) -> Batch:
        return self.rows.batch(rows)


class Later(Exception):
    """There is no room for a stage's rows beside those that are kept for others: it has to wait for its turn."""


class _Uncut(Exception):
    """Why a stage goes through the whole network, and the block at which it might have been cut."""

    def __init__(self, why: str, address: str | None = None) -> None:
        self.why, self.address = why, address


class _Look(NamedTuple):
    """One thing to capture: a split as it is (view 0), or one augmented view of it, counted from 1."""

    name: str
    view: int
    rows: Rows  # that go through the network, or through what is above an earlier cut
    plain: Rows  # as they are


@dataclass
class _Keeping:
    """How what lies below a cut is kept, look by look."""

    net: Net
    k: int
    cut: Cut
    columns: Sequence[Column]
    precision: str
    place: Store
    stage: Stage
    start: Callable[[str, int], None]
    advance: Callable[[int, str], None]
    card: bool  # whether the card has room for all looks
    looks: Sequence[_Look]
    note: Callable[[str], None]  # a line that is worth reading before long work
    replaced: Replaced  # how the layers of a pass are put in the place of their own
    begun: bool  # whether the stage has begun with this cut, and goes on with it
    kept: str = "disk"  # where they lie: of all, once each is kept
    reused: bool = True  # whether all were there already
    unit_seconds: float = 0.0  # that the frozen part takes a token, or a picture, on all ranks together
    estimate: dict[str, float] = field(default_factory=dict)  # seconds: of all looks once, and what the epochs save by it

    def of(self, look: _Look, label: str, seed: int) -> Entry | OnCard | None:
        """The rows of a look, found or computed; None where there is no room for them."""
        label = f"stage {self.stage.name}: {label} up to {self.cut.address}, once ({told(_size(self.columns, [look]))})"
        if self.card:
            self.start(label, len(look.rows))
            with packed(self.net.model, self.precision, replaced=self.replaced):
                quick = on_card(self.cut, look.rows, self.columns, self.precision, self.advance)
            if quick is not None:
                self.kept, self.reused = "card", False
                return quick
        found = self._stored(look, label, seed)
        if found is None:
            return None
        if not found.maps:
            self.kept = "memory"
        try:
            return OnCard.of(found, self.cut.where) if self.card else found
        except torch.OutOfMemoryError:
            return found

    def _stored(self, look: _Look, label: str, seed: int) -> Entry | None:
        """From the disk, or computed and put there; in memory where it cannot be."""

        def looked() -> tuple[str, Entry | None, str]:
            about = contents.about(self.net, self.k, self.precision, self.columns, self.weights, look.plain)
            about["view"] = [look.view, self.stage.augment, seed] if look.view else 0
            key = store.key(about)
            return (key, *self.place.find(key))

        key, found, damage = ranks.alone(looked) or ("", None, "")  # it reads all rows, and what is there of them
        if damage:
            say(damage)
        if ranks.shared(found is None):
            self.reused = False
            with packed(self.net.model, self.precision, replaced=self.replaced):
                seconds = self._foreseen(look)
            self.start(f"{label[:-1]}, about {duration(seconds)})", len(look.rows))
            shown = {
                "model": type(self.net.model).__name__,
                "cut": self.cut.address,
                "split": look.name,
                "rows": len(look.rows),
                "precision": self.precision,
            }
            with packed(self.net.model, self.precision, replaced=self.replaced):
                found = filled(self.cut, look.rows, self.columns, self.place, key, shown, self.precision, self.advance)
        return everywhere(found, self.place.folder / ranks.shared(key)) if ranks.count() > 1 else found

    def _foreseen(self, look: _Look) -> float:
        """Seconds that this look will take.

        Raises:
            _Uncut: all looks together, and writing them, take more than twice what they save: a little more or less would differ
                from run to run, and with it the rounding of what is learnt.
        """
        if not self.estimate:
            train = next(one for one in self.looks if one.name == "train")  # which has rows
            paces = [pace(self.cut, rows, self.precision) for rows in (train.plain, *([train.rows] if self.cut.below else []))]
            from_stem, self.unit_seconds = (ranks.shared(paces[i]) / ranks.count() for i in (0, -1))
            an_epoch = {one.name: int(one.rows.lengths.sum()) for one in self.looks}  # of several views one an epoch
            size = _size(self.columns, self.looks)
            self.estimate = worth(
                self.unit_seconds * sum(int(one.rows.lengths.sum()) for one in self.looks),
                from_stem * self.stage.epochs * sum(an_epoch.values()) * self.cut.spared,
                size,
            )
            once, saved = (duration(self.estimate[name]) for name in ("seconds", "saved_seconds"))
            if not self.begun and self.estimate["seconds"] > 2 * self.estimate["saved_seconds"]:
                raise _Uncut(f"to compute and write it once would take about {once} and save {saved}", self.cut.address)
            if self.estimate["seconds"] >= LONG:
                for_what = "is kept for other runs" if self.stage.how == "solve" else f"saves {saved}"
                self.note(f"stage {self.stage.name}: to compute once what is frozen ({told(size)}, about {once}) {for_what}")
        return self.unit_seconds * int(look.rows.lengths.sum())

    @cached_property
    def weights(self) -> str:
        return contents.weights(self.net, self.k)


def worth(once: float, saved: float, size: float) -> dict[str, float]:
    """Whether a store pays, in seconds: what it takes to fill it with `size` bytes, and what the epochs save."""
    return {"seconds": round(once + size / WRITTEN, 3), "saved_seconds": round(saved, 3)}


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
    ahead: bool = False,
    onto: Frozen | None = None,
    held: int = 0,
    ceiling: str | None = None,
    start: Callable[[str, int], None] = lambda what, total: None,
    advance: Callable[[int, str], None] = lambda rows, words: None,
    note: Callable[[str], None] = lambda line: None,
) -> Frozen:
    """The splits with what is frozen in `stage` computed once, or as they are, and why. Draws no random number.

    Args:
        rows: by split; "train" is among them.
        budget: of the store, in GB; 0 for no store.
        views: where the stage augments: so many augmented views of the training rows are computed once each; 0 for no cut there.
        seed: of the views.
        before: the facts of this stage where it goes on after a stop: it goes on as it began.
        ahead: the rows pass once in any case: for a head that is solved first, or alone, or for a stage before this one.
        onto: what was computed once for a stage that teaches more: this one goes on from there, where it can.
        held: bytes that are kept for other stages, where this one comes before its time.
        ceiling: the module above whose call no cut lies (`Task.ceiling`).
        start, advance, note: the progress bar's.

    Raises:
        Later: there is no room beside what is `held`.
    """
    clock = Clock()
    views = views if stage.augment != "none" else 0
    try:
        if not budget:
            raise _Uncut("the cache is off")
        if before and before["why"]:
            raise _Uncut(before["why"], before["address"])
        once = stage.epochs == 1 and not (ahead or before)
        cut, k = _cut(net, stage, rows, precision, views, ceiling, once)
        address = cut.address
        looks = [_Look(name, 0, split, split) for name, split in rows.items() if name != "train" or not views]
        plain = rows["train"]
        looks += [_Look("train", v, Augmented(plain, stage.augment, seed, v), plain) for v in range(1, views + 1)]
        columns, size = _columns(cut, looks, precision, budget, address)
        if held and held + size > budget * GB:
            raise Later
        if onto and onto.cut and not views and cut.after(onto.cut, plain, precision):
            looks = [look._replace(rows=onto.rows[look.name]) for look in looks]
        if stage.how == "solve" and any(column.ragged for column in columns):
            raise _Uncut("a vector a token reaches the head, too much to keep for other runs alone", address)
        there = ranks.count() == 1 and card.room(cut.where, size)
        place = Store(store.folder(), int(budget * GB))
        short = First.of(net, plain) if k == len(net.blocks) else None  # of what reaches the head one token may be all
        replaced = short.cut_short if short else instead
        keeping = _Keeping(
            net, k, cut, columns, precision, place, stage, start, advance, there, looks, note, replaced, bool(before)
        )
        captured: list[Rows] = []
        for look in looks:
            found = keeping.of(look, f"{look.name}, view {look.view} of {views}," if look.view else look.name, seed)
            if found is None:
                where = "in memory" if ranks.count() == 1 else "anywhere that all ranks can read (set AFFINAGE_CACHE)"
                raise _Uncut(f"{told(size)} fit neither in {place.folder} nor {where}", address)
            captured.append(Captured(look.plain, found, cut.unread))
        facts = {"address": address, "why": "", "share": round(cut.share, 4), "dtype": columns[0].dtype, "bytes": size}
        facts |= {"kept": keeping.kept, "reused": keeping.reused, "views": views}
        if keeping.estimate:
            facts["estimate"] = keeping.estimate
    except _Uncut as uncut:
        facts = {"address": uncut.address, "why": uncut.why}
        return Frozen(dict(rows), net.model, facts if net.blocks else {**facts, "blocks": 0})
    ready = {look.name: one for look, one in zip(looks, captured, strict=True)}
    if views:
        ready["train"] = Views([one for look, one in zip(looks, captured, strict=True) if look.view])
    cost = clock.cost()
    facts |= {"seconds": round(cost.seconds, 3), "cpu_seconds": round(cost.cpu_seconds, 3)}
    exact = not views and all(map(_unrounded, columns, cut.layouts()))
    return Frozen(ready, Resumed(cut), facts, cut if exact else None)


def _cut(
    net: Net, stage: Stage, rows: Mapping[str, Rows], precision: str, views: int, ceiling: str | None, once: bool
) -> tuple[Cut, int]:
    """The cut of a stage, and the number of the block before which it is. `once`: the stage looks at each row but once.

    Raises:
        _Uncut: there is none, or it does not pay.
    """
    k = entry.lowest(net, rates.resolve(net, stage.rates))
    if k is None:
        raise _Uncut(net.why or "what stands before the first block learns")
    if ceiling is not None:
        place = net.places.get(ceiling, "stem")
        if place == "stem":
            raise _Uncut(f"what a training step adds to a batch is seen before the first block, by {ceiling}")
        k = min(k, int(place.removeprefix("blocks.")))
    address = entry.address(net, k)
    if once:
        raise _Uncut("one epoch looks at each row once", address)
    if stage.mix:
        raise _Uncut("pictures are mixed anew each time", address)
    if stage.augment != "none" and not views:
        raise _Uncut(
            f"augmentation '{stage.augment}' changes the rows each time; "
            "--augment none computes it once, and where pictures are classified --views 4 four views of each",
            address,
        )
    lengths = [set(np.unique(r.lengths).tolist()) for r in rows.values()]
    if all(len(one) == 1 for one in lengths) and len(set.union(*lengths)) > 1:
        raise _Uncut("each split has rows of one length only, and not the same", address)
    try:  # through rows of different lengths, if any split has some
        widest = max(rows.values(), key=lambda r: int(np.ptp(r.lengths)) if len(r) else -1)
        with kernels("fp32"):  # errors show, and no kernel plans anew for every length
            cut, why = Cut(net, k, widest, precision), ""
    except Uncuttable as error:
        cut, why = None, str(error)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:  # it is trained all the same
        cut, why = None, f"looking at it failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    why = next(filter(None, ranks.gathered(why)), "")  # rounding may differ between machines: all cut, or none does
    if why or cut is None:
        raise _Uncut(why, address)
    if cut.share < PAYS:
        raise _Uncut(f"it saves {cut.share:.0%} of a forward pass", None if k == 0 else address)
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


def _column(dtype: torch.dtype, shape: tuple[int, ...], ragged: bool) -> Column:
    return Column(str(dtype).removeprefix("torch."), shape, ragged)


def _unrounded(column: Column, left: Layout) -> bool:
    return column.dtype == str(left.dtype).removeprefix("torch.")


def _size(columns: Sequence[Column], looks: Iterable[_Look]) -> int:
    return sum(column.size(look.rows.lengths) for column in columns for look in looks)
