"""Rows that arrive one by one, for data larger than memory: of each stay its place, id and label, 8 bytes each, and its boxes."""

from __future__ import annotations

from typing import Any

from ..errors import AffinageError
from ..spool import Cells
from ..types import Kind, Labels
from .table import UNLABELLED, Table


class Growing:
    """The rows of one split so far; `table` gives them as any reader's."""

    def __init__(self, kind: Kind, inputs: Any, hint: str = "", means: Labels = "class") -> None:
        """`inputs`: the empty sequence that takes each with `add` and keeps it elsewhere. `hint`: why labels may be missing."""
        self.kind, self.inputs, self.hint, self.means = kind, inputs, hint, means
        self.ids = Cells(str)
        self.targets: list[Any] = []  # class names, transcripts, or boxes
        self.unreadable: list[tuple[str, str]] = []
        self.unlabelled: list[str] = []  # what has no label
        self._names: dict[str, str] = {}  # one string a class, however many rows

    def add(self, item: Any, target: Any, row: str) -> None:
        """One row more.

        Raises:
            OSError: the disk is full.
        """
        self.inputs.add(item)
        self.targets.append(self._names.setdefault(target, target) if isinstance(target, str) else target)
        self.ids.add(row)

    def table(self, where: str, split: str, classes: tuple[str, ...] | None = None) -> Table:
        """All of them; a validation or test split without any label is left out whole, as `build` does.

        Raises:
            AffinageError: there are none, or some have no label.
        """
        if self.unlabelled and (split == "train" or self.targets):
            first = ", ".join(self.unlabelled[:5]) + (", …" if len(self.unlabelled) > 5 else "")
            raise AffinageError(f"{len(self.unlabelled)} rows of {where} have no label ({first}): fill or remove them{self.hint}")
        if self.unlabelled:
            return Table(self.kind, [], [], [], classes, ((where, UNLABELLED),))
        if not self.targets and not self.unreadable:
            raise AffinageError(f"{where} holds no rows: expected at least one")
        return Table(self.kind, self.inputs, self.targets, self.ids, classes, tuple(self.unreadable), self.means)
