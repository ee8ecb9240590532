"""Reads one CSV, TSV, JSON, JSONL or Parquet file, or a folder with one such file, or several shards, a split."""

from __future__ import annotations

import codecs
import csv
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import AffinageError
from ..types import Columns, Kind, Labels
from . import shards
from .table import FILES, PART, SPLITS, Table, build, parts, pick

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
    parts: Sequence[Any] | None = None  # the cells of a column `split`


def accepts(source: Any) -> bool:
    """A file of a known suffix, or a folder that holds `train.csv` and the like, or one such file and no class folders."""
    if not isinstance(source, str | Path):
        return False
    path = Path(source).expanduser()
    return path.is_file() or (path.is_dir() and bool(_splits(path)))


def read(source: Any, columns: Columns, kind: str | None = None) -> dict[str, Table]:
    """The rows by split; a lone file is `train`, or parted by its column `split`. Ids are `file:line`, or `file:row` (from 0)
    for JSON and Parquet.

    Raises:
        AffinageError: not UTF-8, not of the format, or without the columns.
    """
    path = Path(source).expanduser()
    files = _splits(path) if path.is_dir() else {"train": [path]}
    lone = next(iter(files.values())) if len(files) == 1 else []
    if all(file.suffix.lower() == ".parquet" for some in files.values() for file in some):
        looked = {split: [shards.looked(file, columns, kind) for file in some] for split, some in files.items()}
        if shards.large([shard for some in looked.values() for shard in some]):
            if len(lone) == 1 and shards.parted(next(iter(looked.values()))[0]):
                raise AffinageError(
                    f"{lone[0].name} holds several splits, and is too large to part: write a file a split, such as train.parquet"
                )
            return {split: shards.spooled(some, split) for split, some in looked.items()}
    if len(lone) == 1:
        return _parted(lone[0], next(iter(files)), columns, kind)
    return {split: _joined([_table(file, split, columns, kind) for file in some]) for split, some in files.items()}


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
    for some in named.values():
        shard = SHARD.fullmatch(some[0].stem)
        if shard and len(some) != int(shard["count"]):
            raise AffinageError(
                f"{folder} holds {len(some)} of the {int(shard['count'])} shards of {shard['split']}: fetch the others"
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


def _parted(path: Path, split: str, columns: Columns, kind: str | None) -> dict[str, Table]:
    """A lone file: one split, or those that its column `split` names."""
    found = _found(path, columns, kind)
    rows = parts(found.parts, path.name) if found.parts is not None else None
    if rows is None:
        return {split: _built(path, split, found)}
    return {name: _built(path, name, _chosen(found, own)) for name, own in rows.items()}


def _chosen(found: Found, rows: Sequence[int]) -> Found:
    inputs, labels, where = ([column[i] for i in rows] for column in (found.inputs, found.labels, found.where))
    return found._replace(inputs=inputs, labels=labels, where=where)


def _table(path: Path, split: str, columns: Columns, kind: str | None) -> Table:
    return _built(path, split, _found(path, columns, kind))


def _found(path: Path, columns: Columns, kind: str | None) -> Found:
    suffix = path.suffix.lower()
    if suffix not in FILES:
        raise AffinageError(f"{path} is of an unknown kind; expected a folder or one of {' '.join(FILES)}")
    parse = {".parquet": _parquet, ".json": _json, ".jsonl": _json}.get(suffix, _delimited)
    try:
        return parse(path, columns, kind)
    except UnicodeDecodeError as error:
        # Excel's "Unicode text" begins with a mark of its order of bytes
        wide = error.start == 0 and error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        what, coding = ("UTF-16, not UTF-8", "utf-16") if wide else ("not UTF-8", "latin1")
        raise AffinageError(
            f"{path} is {what} (byte 0x{error.object[error.start]:02x}); "
            f"convert it, for example: iconv -f {coding} -t utf-8 {path.name} > new{suffix}"
        ) from None


def _built(path: Path, split: str, found: Found) -> Table:
    return build(
        found.kind,
        found.inputs,
        found.labels,
        [f"{path.name}:{number}" for number in found.where],
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
    if delimiter != "\t":
        return _rows(path, delimiter, csv.QUOTE_MINIMAL, columns, kind)
    # Tab-separated files are often written without quoting, so that a quotation mark is only itself.
    try:
        quoted = _rows(path, delimiter, csv.QUOTE_MINIMAL, columns, kind)
    except _Form:
        return _rows(path, delimiter, csv.QUOTE_NONE, columns, kind)
    if any("\t" in cell and "\n" in cell for cell in (*quoted.inputs, *quoted.labels)):  # a quotation that ends in a later row?
        with suppress(_Form):
            return _rows(path, delimiter, csv.QUOTE_NONE, columns, kind)
    return quoted


class _Form(AffinageError):
    """The file's rows do not have the form of its header."""


def _rows(path: Path, delimiter: str, quoting: Any, columns: Columns, kind: str | None) -> Found:
    inputs, labels, where = [], [], []
    told: list[str] | None = None
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the module's own limit, 128 kB a cell, is below a long document
    reader = None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
            names = next(reader)
            what, left, right, means = pick(names, columns, kind, path.name)
            a, b = names.index(left), names.index(right)
            c = names.index(PART) if PART in names and PART not in (left, right) else None
            told = None if c is None else []
            line = reader.line_num + 1
            for row in reader:
                if row:  # not a blank line
                    if len(row) != len(names):
                        raise _Form(f"{path.name} line {line} has {len(row)} fields, its header {len(names)}: quote the "
                                    f"cells that hold '{delimiter}'".replace("\t", "a tab"))  # fmt: skip
                    inputs.append(row[a])
                    labels.append(row[b])
                    where.append(line)
                    if told is not None and c is not None:
                        told.append(row[c])
                line = reader.line_num + 1
    except csv.Error as error:
        number = reader.line_num if reader is not None else 1
        raise _Form(f"{path.name} line {number}: {error}; a quotation mark in a quoted cell is written twice") from None
    finally:
        csv.field_size_limit(limit)
    return Found(what, inputs, labels, where, None, means, told)


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
    names = dict.fromkeys(key for row in rows for key in row)
    what, left, right, means = pick(names, columns, kind, path.name, rows[0].get)
    told = [row.get(PART) for row in rows] if PART in names and PART not in (left, right) else None
    return Found(what, [row.get(left) for row in rows], [row.get(right) for row in rows], where, None, means, told)


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
            part = [PART] if PART in file.schema_arrow.names and PART not in (shard.input, shard.label) else []
            table = file.read(columns=[shard.input, shard.label, *part])
    except (pa.ArrowException, OSError) as error:
        raise shards.unreadable(path, error) from None
    cells = table.column(shard.input).to_pylist(), table.column(shard.label).to_pylist()
    told = table.column(PART).to_pylist() if part else None
    return Found(shard.kind, *cells, range(table.num_rows), shard.classes, shard.means, told)
