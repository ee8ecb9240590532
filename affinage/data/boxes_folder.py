"""Reads pictures beside a metadata.jsonl (or .parquet) with a column `objects`, as `datasets` has it: one folder, or many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import AffinageError
from ..types import Columns
from . import file
from .objects import OBJECTS
from .table import SPLITS, Table

NAMES = ("metadata.jsonl", "metadata.parquet")


def accepts(source: Any) -> bool:
    """A folder whose metadata, or that of its splits' folders, has a column of boxes."""
    return isinstance(source, str | Path) and Path(source).expanduser().is_dir() and bool(_splits(Path(source).expanduser()))


def read(source: Any, columns: Columns, kind: str | None = None) -> dict[str, Table]:
    """The pictures by split, with their boxes as targets. Ids are `metadata.jsonl:line`, below the split's folder.

    Raises:
        AffinageError: as `file.read`.
    """
    root = Path(source).expanduser()
    found = {}
    for split, path in _splits(root).items():
        tables = file.read(path, columns, kind)
        if path.parent == root:
            return tables
        if len(tables) > 1:
            raise AffinageError(f"{path} names {' and '.join(tables)} in its column 'split': expected the rows of {split} alone")
        (table,), below = tables.values(), f"{path.parent.name}/"
        unreadable = tuple((below + row, why) for row, why in table.unreadable)
        found[split] = table._replace(ids=[below + row for row in table.ids], unreadable=unreadable)
    return found


def _splits(root: Path) -> dict[str, Path]:
    places = {SPLITS[entry.name.lower()]: entry for entry in sorted(root.iterdir()) if entry.name.lower() in SPLITS}
    candidates = {split: place / name for split, place in (places or {"train": root}).items() for name in reversed(NAMES)
                  if (place / name).is_file()}  # fmt: skip
    return candidates if candidates and all(map(_has_boxes, candidates.values())) else {}


def _has_boxes(path: Path) -> bool:
    """By the first row's keys, or the footer's columns."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            names = pq.read_schema(path).names
        except (pa.ArrowException, OSError):
            return False
        return any(name in OBJECTS for name in names)
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        try:
            first = json.loads(next((line for line in lines if line.strip()), "null"))
        except json.JSONDecodeError:
            return False
    return isinstance(first, dict) and any(name in OBJECTS for name in first)
