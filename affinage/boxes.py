"""Where the things in a picture are: their boxes, cleaned of what cannot be one, with a count of what was mended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

CLIPPED, OUTSIDE, EMPTY, BROKEN = "clipped", "outside", "empty", "broken"  # what may be wrong with a box
MOVED = 0.5  # pixels by which an edge may leave the picture before it counts: rounding does that


@dataclass(frozen=True, eq=False)
class Boxes:
    """The n things of one picture; n may be 0, for a picture in which there is nothing to find."""

    classes: np.ndarray  # (n,) as read: their names, str. Once numbered: int64, -1 for a class unknown to train
    boxes: np.ndarray  # (n, 4) float64, x0 y0 x1 y1 in pixels of the upright picture, inside it, of some area
    crowd: np.ndarray  # (n,) bool: many at once, or hard to tell; neither taught, nor held against what is found there
    size: tuple[int, int]  # (width, height) of the upright picture, in pixels
    faults: tuple[tuple[str, int], ...] = ()  # (what was wrong, how many boxes) of what was mended or left out

    def __len__(self) -> int:
        return len(self.classes)

    def __str__(self) -> str:
        """All of it, for fingerprints."""
        whole = [list(self.size), self.classes.tolist(), self.boxes.tolist(), self.crowd.tolist()]
        return json.dumps(whole, ensure_ascii=False)

    def numbered(self, number: dict[str, int]) -> Boxes:
        """The same with class numbers in place of names; -1 for a name that is not in `number`."""
        return replace(self, classes=np.fromiter((number.get(str(c), -1) for c in self.classes), np.int64, len(self)))

    def relative(self) -> np.ndarray:
        """(n, 4) float32: centre x, centre y, width, height, as shares of the picture."""
        return relative(self.boxes, self.size)


def relative(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n, 4) float32 centre x, centre y, width, height in 0..1, of (n, 4) x0 y0 x1 y1 in pixels of a picture of `size`."""
    corners = boxes / np.array([*size, *size], np.float64)
    return np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1).astype(np.float32)


def cleaned(classes: Sequence[str], boxes: Any, size: tuple[int, int], crowd: Sequence[bool] | None = None) -> Boxes:
    """Boxes (n, 4) x0 y0 x1 y1 in pixels as they were annotated: clipped to the picture; what is no box there is left out.

    Left out and counted: what is not finite (broken), has no area (empty), or lies outside. Clipped ones are counted too.
    """
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    many: np.ndarray = np.zeros(len(corners), bool) if crowd is None else np.asarray(crowd, bool)
    names = np.empty(len(corners), object)
    names[:] = [str(name) for name in classes]
    ends = np.array([*size, *size], np.float64)
    finite = np.asarray(np.isfinite(corners).all(axis=1))
    safe = np.where(finite[:, None], corners, 0)
    inside = np.clip(safe, 0, ends)
    area = finite & (safe[:, 2] > safe[:, 0]) & (safe[:, 3] > safe[:, 1])
    good = area & (inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1])
    moved = np.asarray(np.abs(inside - safe).max(1, initial=0) > MOVED)
    counts = {
        BROKEN: int((~finite).sum()),
        EMPTY: int((finite & ~area).sum()),
        OUTSIDE: int((area & ~good).sum()),
        CLIPPED: int((good & moved).sum()),
    }
    faults = tuple((what, count) for what, count in counts.items() if count)
    return Boxes(names[good], inside[good], many[good], size, faults)
