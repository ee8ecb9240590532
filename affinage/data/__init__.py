"""Finds the reader that knows the source, and reads up to three splits of one kind of input."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import AffinageError
from ..types import Columns, Data, Split
from .table import Table

USUAL = Columns()  # the usual names, where the user names none


def readers() -> Iterator[ModuleType]:
    """Each module of this folder with an `accepts`, in alphabetical order: `archive`, `audio`, `file`, ...."""
    for found in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        module = importlib.import_module(f"{__name__}.{found}")
        if hasattr(module, "accepts"):
            yield module


def read(
    source: Any,
    *,
    columns: Columns = USUAL,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    kind: str | None = None,
) -> Data:
    """The rows of `source`, targets as class names; images are not decoded.

    Args:
        source: a folder, a file, a Hub id, a Dataset, a pandas frame, a list of dicts, or a dict of splits.
        columns: which columns hold what, where the usual names do not tell.
        validation, test: sources of their own, in place of the splits that `source` has.
        kind: "text", "image" or "audio", where one is wanted; None for what is there.

    Raises:
        AffinageError: nothing there, not readable, or not of the kind; one line with the way out.
    """
    tables = _tables(source, columns, kind)
    only = "train"
    if len(tables) == 1 and "train" not in tables:
        ((only, table),) = tables.items()
        tables = {"train": table}
    for name, other in (("validation", validation), ("test", test)):
        if other is not None:
            tables[name] = _only(_tables(other, columns, kind or tables["train"].kind), name, other)
    means = {table.labels for table in tables.values()}
    if len(means) > 1:
        found = ", ".join(f"{name} has a {table.labels} a row" for name, table in tables.items())
        raise AffinageError(f"{_named(source)}: {found}; expected the same: name the column with --label-column")
    kinds = {table.kind for table in tables.values()}
    if len(kinds) > 1:
        found = ", ".join(f"{name} holds {table.kind}" for name, table in tables.items())
        raise AffinageError(f"{_named(source)} mixes kinds: {found}; expected one")
    train = tables["train"]
    if not train.inputs:
        row, why = train.unreadable[0]
        raise AffinageError(f"{_named(source)} has no readable row to train on; the first, {row}: {why}")
    # A validation or test split of which nothing can be used is none; `unreadable` says so.
    splits = {name: Split(table.inputs, table.targets, table.ids) for name, table in tables.items() if table.inputs}
    unreadable = tuple(row for name in ("train", "validation", "test") if name in tables for row in tables[name].unreadable)
    data = Data(
        train.kind, _named(source), splits["train"], classes=train.classes, unreadable=unreadable, labels=train.labels, only=only
    )
    return data.with_splits(**splits)


def _tables(source: Any, columns: Columns, kind: str | None) -> dict[str, Table]:
    for reader in readers():
        if reader.accepts(source):
            tables: dict[str, Table] = reader.read(source, columns, kind)
            if len(tables) > 1 and "train" not in tables:
                raise AffinageError(f"{_named(source)} has no split 'train' (found: {', '.join(tables)})")
            return tables
    raise AffinageError(f"no such file or folder: {source}")


def _only(tables: dict[str, Table], name: str, source: Any) -> Table:
    """The split called `name`, or the only one."""
    if name in tables:
        return tables[name]
    if len(tables) > 1:
        raise AffinageError(f"{_named(source)} holds {', '.join(tables)} and no {name}; name one of them for --{name}")
    return next(iter(tables.values()))


def _named(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else f"{type(source).__name__} in memory"
