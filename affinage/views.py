"""Views: pictures as augmentation has changed them, fixed, so that what is frozen can be computed once for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from affinage.augment import augmented
from affinage.types import Batch, Rows


class Views:
    """Augmented views of the same rows, computed once each: epoch e learns from view e modulo their number."""

    def __init__(self, views: Sequence[Rows]) -> None:
        self.views = list(views)
        self.seen = self.views[0]
        self.lengths = self.seen.lengths

    def __len__(self) -> int:
        return len(self.seen)

    def look(self, epoch: int) -> None:
        """Turn to the view of this epoch, counted from 0."""
        self.seen = self.views[epoch % len(self.views)]

    def batch(self, rows: np.ndarray) -> Batch:
        return self.seen.batch(rows)


class Augmented:
    """Rows as one augmented view shows them: the same at every look at the same batch, whatever else is drawn."""

    def __init__(self, rows: Rows, strength: str, seed: int, view: int) -> None:
        self.rows, self.strength, self.seed, self.view = rows, strength, seed, view
        self.lengths = rows.lengths

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: np.ndarray) -> Batch:
        """The batch with its pictures changed; which way depends on seed, view and rows, of which the first seeds the draw.

        So half of a batch, where memory holds no more, shows its pictures otherwise: another view, drawn by the same law.
        """
        found = self.rows.batch(rows)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * 1_000_003 + self.view * 10_007 + int(rows[0]))
            found["pixel_values"] = augmented(found["pixel_values"], self.strength)
        return found
