"""Reads what is in memory: a datasets.Dataset or DatasetDict, a pandas frame, a list of dicts, a dict of columns or of splits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import AffinageError
from ..types import Columns
from . import objects
from .table import PART, SPLITS, Picked, Table, build, parts, pick


def accepts(source: Any) -> bool:
    """Anything that is not a string or a path."""
    return not isinstance(source, str | Path)


def read(source: Any, columns: Columns, kind: str | None = None) -> dict[str, Table]:
    """The rows by split; a lone table is `train`, or parted by its column `split`. Ids are `split:row`, rows counted from 0.

    Raises:
        AffinageError: of another type, without the columns, or with unknown names of splits only.
    """
    if not isinstance(source, dict) or not (any(name in SPLITS for name in source) or hasattr(source, "cast_column")):
        return _lone(source, "train", columns, kind)
    tables: dict[str, Table] = {}
    unknown = [str(name) for name in source if name not in SPLITS]
    if len(source) == 1:  # one split, whatever its name, is what there is to train on
        name, table = next(iter(source.items()))
        return _lone(table, str(name), columns, kind)
    for name, table in source.items():
        if name in SPLITS:
            if SPLITS[name] in tables:
                raise AffinageError(f"two splits for {SPLITS[name]} among {', '.join(source)}; leave one out")
            tables[SPLITS[name]] = _table(table, SPLITS[name], str(name), columns, kind)
    if "train" not in tables:
        raise AffinageError(f"no split 'train' among {', '.join(map(str, source))}")
    if unknown:
        notes = tuple((name, "a split of this name is not read") for name in unknown)
        tables["train"] = tables["train"]._replace(unreadable=tables["train"].unreadable + notes)
    return tables


class Cells(NamedTuple):
    """The columns of a table in memory that are read."""

    picked: Picked
    inputs: Sequence[Any]
    labels: Sequence[Any]
    classes: Sequence[str] | None = None
    parts: Sequence[Any] | None = None  # of a column `split`


def _lone(source: Any, name: str, columns: Columns, kind: str | None) -> dict[str, Table]:
    cells = _cells(source, name, columns, kind)
    found = parts(cells.parts, name) if cells.parts is not None else None
    if found is None:
        return {"train": _built(cells, "train", name, range(len(cells.inputs)))}
    return {split: _built(cells, split, name, rows) for split, rows in found.items()}


def _table(source: Any, split: str, name: str, columns: Columns, kind: str | None) -> Table:
    cells = _cells(source, name, columns, kind)
    return _built(cells, split, name, range(len(cells.inputs)))


def _built(cells: Cells, split: str, name: str, rows: Sequence[int]) -> Table:
    kind, _, _, means = cells.picked
    named = tuple(cells.classes) if cells.classes else None
    inputs, labels = ([column[i] for i in rows] for column in (cells.inputs, cells.labels))
    ids = [f"{name}:{row}" for row in rows]
    return build(kind, inputs, labels, ids, where=name, split=split, base=Path(), classes=named, means=means)


def _cells(source: Any, name: str, columns: Columns, kind: str | None) -> Cells:
    classes = None
    if hasattr(source, "with_format") and hasattr(source, "column_names") and hasattr(source, "num_rows"):  # datasets.Dataset

        def seen(column: str) -> Any:
            cells = source.select_columns([column]).with_format("arrow")[:1].column(column).to_pylist()
            return cells[0] if cells else None

        picked = pick(source.column_names, columns, kind, name, seen)
        classes = objects.declared(source.features[picked.label])
        wanted = [picked.input, picked.label, *_part(source.column_names, picked)]
        table = source.select_columns(wanted).with_format("arrow")[:]  # images stay encoded
        read = [table.column(column).to_pylist() for column in wanted]
    elif hasattr(source, "iloc") and hasattr(source, "columns"):  # pandas.DataFrame
        picked = pick(source.columns, columns, kind, name, lambda c: source[c].iloc[0] if len(source) else None)
        read = [source[column].tolist() for column in (picked.input, picked.label, *_part(source.columns, picked))]
    elif isinstance(source, dict):
        picked = pick(source, columns, kind, name, lambda c: next(iter(source[c]), None))
        wanted = [picked.input, picked.label, *_part(source, picked)]
        read = [list(source[column]) for column in wanted]
        for column, cells in zip(wanted, read, strict=True):
            if len(cells) != len(read[0]):
                raise AffinageError(
                    f"{name} has {len(read[0])} values in '{picked.input}' and {len(cells)} in '{column}'; expected as many"
                )
    elif isinstance(source, list | tuple) and all(isinstance(row, dict) for row in source):
        if not source:
            raise AffinageError(f"{name} holds no rows: expected at least one")
        every = dict.fromkeys(key for row in source for key in row)
        picked = pick(every, columns, kind, name, source[0].get)
        read = [[row.get(column) for row in source] for column in (picked.input, picked.label, *_part(every, picked))]
    else:
        raise AffinageError(
            f"cannot read a {type(source).__name__}; expected a path, a Hub id, a Dataset, a pandas frame or a list of dicts"
        )
    return Cells(picked, read[0], read[1], classes, read[2] if len(read) > 2 else None)


def _part(names: Iterable[Any], picked: Picked) -> list[str]:
    """The column `split`, where there is one that is not read as something else."""
    return [PART] if PART in list(names) and PART not in (picked.input, picked.label) else []
