"""Reads one CSV, TSV, JSON, JSONL or Parquet file, or a folder with one such file, or several shards, a split."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import AffinageError
from ..types import Columns, Kind, Labels
from . import shards
from .table import FILES, SPLITS, Table, build, pick

SHARD = re.compile(r"(?P<split>\w+)-\d{5}-of-(?P<count>\d{5})(-[0-9a-f]+)?")
DELIMITERS = ",;\t|"  # the first wins a tie


class Found(NamedTuple):
    """The two columns of a file, as written."""

    kind: Kind
    inputs: list[Any]
    labels: list[Any]
    where: Sequence[int]  # line, or row
    classes: tuple[str, ...] | None = None
    means: Labels = "class"


def accepts(source: Any) -> bool:
    """A file of a known suffix, or a folder that holds `train.csv` and the like, or one such file and no class folders."""
    if not isinstance(source, str | Path):
        return False
    path = Path(source).expanduser()
    return path.is_file() or (path.is_dir() and bool(_splits(path)))


def read(source: Any, columns: Columns, kind: str | None = None) -> dict[str, Table]:
    """The rows by split; a lone file is `train`. Ids are `file:line`, or `file:row` (from 0) for JSON and Parquet.

    Raises:
        AffinageError: not UTF-8, not of the format, or without the columns.
    """
    path = Path(source).expanduser()
    files = _splits(path) if path.is_dir() else {"train": [path]}
    if all(file.suffix.lower() == ".parquet" for parts in files.values() for file in parts):
        looked = {split: [shards.looked(file, columns, kind) for file in parts] for split, parts in files.items()}
        if shards.large([shard for parts in looked.values() for shard in parts]):
            return {split: shards.spooled(parts, split) for split, parts in looked.items()}
    return {split: _joined([_table(file, split, columns, kind) for file in parts]) for split, parts in files.items()}


def _splits(folder: Path) -> dict[str, list[Path]]:
    """The files by split: one each, or all shards of one (`train-00000-of-00002.parquet`, as the Hub has them)."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if entry.suffix.lower() in FILES and entry.is_file()]
    named: dict[str, list[Path]] = {}
    for file in files:
        shard = SHARD.fullmatch(file.stem)
        split = SPLITS.get((shard["split"] if shard else file.stem).lower())
        if split is None:
            continue
        others = named.setdefault(split, [])
        if others and not (shard and SHARD.fullmatch(others[0].stem)):
            raise AffinageError(f"{folder} holds {others[0].name} and {file.name} for one split; remove one, or name a file")
        others.append(file)
    for parts in named.values():
        shard = SHARD.fullmatch(parts[0].stem)
        if shard and len(parts) != int(shard["count"]):
            raise AffinageError(
                f"{folder} holds {len(parts)} of the {int(shard['count'])} shards of {shard['split']}: fetch the others"
            )
    if "train" in named:
        return named
    if not files and (folder / "data").is_dir():  # the layout of the Hub
        return _splits(folder / "data")
    # One table beside one folder of images is a table; beside several, those are the classes and the table is a remark.
    return {"train": files} if len(files) == 1 and sum(entry.is_dir() for entry in entries) < 2 else {}


def _joined(tables: list[Table]) -> Table:
    """The shards of one split, one after another; the classes are those that the first declares."""
    if len(tables) == 1:
        return tables[0]
    first = tables[0]
    inputs, targets, ids, unreadable = (
        [row for table in tables for row in getattr(table, name)] for name in ("inputs", "targets", "ids", "unreadable")
    )
    return Table(first.kind, inputs, targets, ids, first.classes, tuple(unreadable), first.labels)


def _table(path: Path, split: str, columns: Columns, kind: str | None) -> Table:
    suffix = path.suffix.lower()
    if suffix not in FILES:
        raise AffinageError(f"{path} is of an unknown kind; expected a folder or one of {' '.join(FILES)}")
    parse = {".parquet": _parquet, ".json": _json, ".jsonl": _json}.get(suffix, _delimited)
    try:
        found = parse(path, columns, kind)
    except UnicodeDecodeError as error:
        raise AffinageError(f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x}); "
                            f"convert it, for example: iconv -f latin1 -t utf-8 {path.name} > new{suffix}") from None  # fmt: skip
    ids = [f"{path.name}:{number}" for number in found.where]
    return build(
        found.kind,
        found.inputs,
        found.labels,
        ids,
        where=path.name,
        split=split,
        base=path.parent,
        classes=found.classes,
        means=found.means,
    )


def _delimited(path: Path, columns: Columns, kind: str | None) -> Found:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        for _ in file:  # the whole file is UTF-8 before anything is said about its form
            pass
    if not header.strip():
        raise AffinageError(f"{path.name} is empty: expected a header such as label,text")
    delimiter = max(DELIMITERS, key=header.count)
    try:
        return _rows(path, delimiter, csv.QUOTE_MINIMAL, columns, kind)
    except _Form:
        # Tab-separated files are often written without quoting, so that a quotation mark is only itself.
        if delimiter != "\t":
            raise
        return _rows(path, delimiter, csv.QUOTE_NONE, columns, kind)


class _Form(AffinageError):
    """The file's rows do not have the form of its header."""


def _rows(path: Path, delimiter: str, quoting: Any, columns: Columns, kind: str | None) -> Found:
    inputs, labels, where = [], [], []
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the module's own limit, 128 kB a cell, is below a long document
    reader = None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
            names = next(reader)
            what, left, right, means = pick(names, columns, kind, path.name)
            a, b = names.index(left), names.index(right)
            line = reader.line_num + 1
            for row in reader:
                if row:  # not a blank line
                    if len(row) != len(names):
                        raise _Form(f"{path.name} line {line} has {len(row)} fields, its header {len(names)}: quote the "
                                    f"cells that hold '{delimiter}'".replace("\t", "a tab"))  # fmt: skip
                    inputs.append(row[a])
                    labels.append(row[b])
                    where.append(line)
                line = reader.line_num + 1
    except csv.Error as error:
        number = reader.line_num if reader is not None else 1
        raise _Form(f"{path.name} line {number}: {error}; a quotation mark in a quoted cell is written twice") from None
    finally:
        csv.field_size_limit(limit)
    return Found(what, inputs, labels, where, None, means)


def _json(path: Path, columns: Columns, kind: str | None) -> Found:
    rows: list[Any] = []
    where: list[int] = []
    try:
        if path.suffix.lower() == ".jsonl":
            for number, row in _lines(path):
                rows.append(row)
                where.append(number)
        else:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
            rows = content if isinstance(content, list) else [None]
            where = list(range(len(rows)))
    except json.JSONDecodeError as error:
        raise AffinageError(f"{path.name} is not JSON: {error}") from None
    wrong = next((number for number, row in zip(where, rows, strict=True) if not isinstance(row, dict)), None)
    if wrong is not None:
        raise AffinageError(f'{path.name} (row {wrong}) is not a list of objects such as {{"text": "…", "label": "…"}}')
    if not rows:
        raise AffinageError(f"{path.name} holds no rows: expected at least one")
    what, left, right, means = pick(dict.fromkeys(key for row in rows for key in row), columns, kind, path.name, rows[0].get)
    return Found(what, [row.get(left) for row in rows], [row.get(right) for row in rows], where, None, means)


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    raise AffinageError(f"{path.name} line {number} is not JSON: {error.msg}") from None


def _parquet(path: Path, columns: Columns, kind: str | None) -> Found:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shard = shards.looked(path, columns, kind)
    try:
        with pq.ParquetFile(path) as file:
            table = file.read(columns=[shard.input, shard.label])
    except (pa.ArrowException, OSError) as error:
        raise shards.unreadable(path, error) from None
    cells = table.column(shard.input).to_pylist(), table.column(shard.label).to_pylist()
    return Found(shard.kind, *cells, range(table.num_rows), shard.classes, shard.means)
