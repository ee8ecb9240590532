"""Reads what is in memory: a datasets.Dataset or DatasetDict, a pandas frame, a list of dicts, a dict of columns or of splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import AffinageError
from ..types import Columns
from . import objects
from .table import SPLITS, Table, build, pick


def accepts(source: Any) -> bool:
    """Anything that is not a string or a path."""
    return not isinstance(source, str | Path)


def read(source: Any, columns: Columns, kind: str | None = None) -> dict[str, Table]:
    """The rows by split; a lone table is `train`. Ids are `split:row`, rows counted from 0.

    Raises:
        AffinageError: of another type, without the columns, or with unknown names of splits only.
    """
    if not isinstance(source, dict) or not (any(name in SPLITS for name in source) or hasattr(source, "cast_column")):
        return {"train": _table(source, "train", "train", columns, kind)}
    tables: dict[str, Table] = {}
    unknown = [str(name) for name in source if name not in SPLITS]
    if len(source) == 1:  # one split, whatever its name, is what there is to train on
        name, table = next(iter(source.items()))
        return {"train": _table(table, "train", str(name), columns, kind)}
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


def _table(source: Any, split: str, name: str, columns: Columns, kind: str | None) -> Table:
    classes = None
    if hasattr(source, "with_format") and hasattr(source, "column_names") and hasattr(source, "num_rows"):  # datasets.Dataset

        def seen(column: str) -> Any:
            cells = source.select_columns([column]).with_format("arrow")[:1].column(column).to_pylist()
            return cells[0] if cells else None

        what, left, right, means = pick(source.column_names, columns, kind, name, seen)
        classes = objects.declared(source.features[right])
        table = source.select_columns([left, right]).with_format("arrow")[:]  # images stay encoded
        inputs, labels = table.column(left).to_pylist(), table.column(right).to_pylist()
    elif hasattr(source, "iloc") and hasattr(source, "columns"):  # pandas.DataFrame
        what, left, right, means = pick(source.columns, columns, kind, name, lambda c: source[c].iloc[0] if len(source) else None)
        inputs, labels = source[left].tolist(), source[right].tolist()
    elif isinstance(source, dict):
        what, left, right, means = pick(source, columns, kind, name, lambda c: next(iter(source[c]), None))
        inputs, labels = list(source[left]), list(source[right])
        if len(inputs) != len(labels):
            raise AffinageError(f"{name} has {len(inputs)} values in '{left}' and {len(labels)} in '{right}'; expected as many")
    elif isinstance(source, list | tuple) and all(isinstance(row, dict) for row in source):
        if not source:
            raise AffinageError(f"{name} holds no rows: expected at least one")
        every = dict.fromkeys(key for row in source for key in row)
        what, left, right, means = pick(every, columns, kind, name, source[0].get)
        inputs, labels = [row.get(left) for row in source], [row.get(right) for row in source]
    else:
        raise AffinageError(
            f"cannot read a {type(source).__name__}; expected a path, a Hub id, a Dataset, a pandas frame or a list of dicts"
        )
    ids = [f"{name}:{row}" for row in range(len(inputs))]
    named = tuple(classes) if classes else None
    return build(what, inputs, labels, ids, where=name, split=split, base=Path(), classes=named, means=means)
