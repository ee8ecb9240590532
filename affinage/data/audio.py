"""Reads a table of recordings: `metadata.csv` or `.jsonl` or `manifest.csv` in a folder, or such a file itself.

A column `split` (train, validation, test) parts the rows; without one, folders named after splits do, each with its own table.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from ..errors import AffinageError
from ..types import Columns
from .table import PART, SPLITS, Table, build, parts, pick, sounds

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.tsv", "manifest.csv", "manifest.jsonl", "manifest.tsv")


def accepts(source: Any) -> bool:
    """A file whose first row names a recording, or a folder with one of the usual names, or with such folders as splits."""
    if not isinstance(source, str | Path):
        return False
    path = Path(source).expanduser()
    try:
        files = list(_files(path).values())
        return bool(files) and any(sounds(cell) for cell in next(iter(_rows(files[0], most=1)), (0, {}))[1].values())
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError, AffinageError):
        return False  # the reader of files says what is wrong with it


def read(source: Any, columns: Columns, kind: str | None = None) -> dict[str, Table]:
    """The rows by split; ids are `file:line`. Paths count from the folder of the table.

    Raises:
        AffinageError: not UTF-8, not of the format, without the columns, or a split of an unknown name.
    """
    path = Path(source).expanduser()
    files = _files(path)
    tables: dict[str, Table] = {}
    for split, file in files.items():
        try:
            rows = list(_rows(file))
        except UnicodeDecodeError as error:
            raise AffinageError(f"{file} is not UTF-8 (byte 0x{error.object[error.start]:02x}): convert it") from None
        except (csv.Error, json.JSONDecodeError) as error:
            raise AffinageError(f"{file} is not what its name says: {error}") from None
        first = rows[0][1]
        picked = pick(first, columns, kind or "audio", file.name, first.get)
        numbers = parts([row.get(PART) for _, row in rows], file.name) if len(files) == 1 else None
        for name, own in (numbers or {split: list(range(len(rows)))}).items():
            chosen = [rows[i] for i in own]
            tables[name] = build(
                picked.kind,
                [row.get(picked.input) for _, row in chosen],
                [row.get(picked.label) for _, row in chosen],
                [f"{file.parent.name + '/' if len(files) > 1 else ''}{file.name}:{at}" for at, _ in chosen],
                where=file.name,
                split=name,
                base=file.parent,
                means=picked.labels,
            )
    return tables


def _files(path: Path) -> dict[str, Path]:
    """The tables by split."""
    if path.is_file():
        return {"train": path} if path.suffix.lower() in (".csv", ".tsv", ".jsonl") else {}
    if not path.is_dir():
        return {}
    here = next((path / name for name in NAMES if (path / name).is_file()), None)
    if here is not None:
        return {"train": here}
    found: dict[str, Path] = {}
    for folder in sorted(path.iterdir()):
        split = SPLITS.get(folder.name.lower())
        table = next((folder / name for name in NAMES if (folder / name).is_file()), None)
        if split and table:
            found[split] = table
    return found if "train" in found else {}


def _rows(file: Path, most: int | None = None) -> list[tuple[int, dict[str, Any]]]:
    """(line, cells) of each row; of a CSV the line on which it ends.

    Raises:
        AffinageError: no rows, or one of another form than the first.
    """
    found: list[tuple[int, dict[str, Any]]] = []
    with file.open(encoding="utf-8-sig", newline="") as lines:
        if file.suffix.lower() == ".jsonl":
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        row = json.loads(line)
                    except json.JSONDecodeError as error:
                        raise AffinageError(
                            f"{file.name} line {number} is not JSON: {error.msg} at column {error.colno}"
                        ) from None
                    if not isinstance(row, dict):
                        raise AffinageError(f'{file.name} line {number} is no object such as {{"file_name": "…", "text": "…"}}')
                    found.append((number, row))
                if most and len(found) >= most:
                    break
        else:
            header = lines.readline()
            lines.seek(0)
            delimiter = max(",;\t|", key=header.count)
            reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    raise AffinageError(
                        f"{file.name} line {reader.line_num} has more or fewer fields than its header: "
                        f"quote the cells that hold '{delimiter}'"
                    )
                found.append((reader.line_num, row))
                if most and len(found) >= most:
                    break
    if not found:
        raise AffinageError(f"{file.name} holds no rows: expected at least one under the header")
    return found
