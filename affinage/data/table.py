"""The table that every reader returns, and the one way from columns of cells to it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from ..errors import AffinageError, nearest
from ..pictures import size_of
from ..types import Columns, Labels
from . import objects
from .objects import OBJECTS

TEXT = ("text", "sentence")  # column names that need no flag, in order of preference
IMAGE = ("image", "img", "file_name", "path")
LABEL = ("label", "labels")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tiff", ".tif")
FILES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
UNLABELLED = "no row has a label: the split is left out"
SPLITS = {"train": "train", **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"), "test": "test"}


class Table(NamedTuple):
    """N rows of one split as a reader found them. `unreadable` holds (row id, why) of the rows that are left out."""

    kind: Literal["text", "image"]
    inputs: Sequence[Any]  # text: str. image: Path, encoded bytes, or PIL image
    targets: list[Any]  # class names; the boxes of pictures
    ids: Sequence[str]
    classes: tuple[str, ...] | None = None  # where the source itself declares them, in its order
    unreadable: tuple[tuple[str, str], ...] = ()
    labels: Labels = "class"


def pick(names: Iterable[str], columns: Columns, kind: str | None, where: str) -> tuple[Literal["text", "image"], str, str]:
    """(kind, input column, label column) among `names`: what the user named, else what is usual.

    Raises:
        AffinageError: a named column is not there, or what is usual is not there or not unique.
    """
    names = [str(name) for name in names]
    found = _found(names)
    label = _column(names, columns.label, LABEL, where)
    text = _column(names, columns.text, TEXT, where) if kind != "image" else None
    image = _column(names, columns.image, IMAGE, where) if kind != "text" else None
    if columns.image and not columns.text:  # what is named wins over what is usual
        text = None
    elif columns.text and not columns.image:
        image = None
    if (label is None or columns.labels == "boxes") and columns.label is None and image is not None:
        label = _column(names, None, OBJECTS, where) or label
    if label is None:
        raise AffinageError(f"{where} has no label column ({found}); name it with --label-column")
    if text is not None and image is not None:
        raise AffinageError(
            f"{where} has text in '{text}' and images in '{image}'; name one with --text-column or --image-column"
        )
    if text is None and image is None:
        wanted = f"{kind} column" if kind else "text or image column"
        flags = f"--{kind}-column" if kind else "--text-column or --image-column"
        raise AffinageError(f"{where} has no {wanted} ({found}); name it with {flags}")
    return ("text", text, label) if text is not None else ("image", cast(str, image), label)


def build(
    kind: Literal["text", "image"],
    inputs: Sequence[Any],
    labels: Sequence[Any],
    ids: Sequence[str],
    *,
    where: str,
    split: str,
    base: Path,
    classes: tuple[str, ...] | None = None,
) -> Table:
    """Cells to rows: labels become names, relative image paths start at `base`, rows without content are left out.

    A validation or test split in which no row has a label (as on the Hub, where it is kept secret) is left out whole.

    Raises:
        AffinageError: no rows, a missing label, a row without text, or a cell that is neither text nor image.
    """
    if not len(inputs):
        raise AffinageError(f"{where} holds no rows: expected at least one under the header")
    if kind == "image" and objects.stand_in(labels):
        return _with_boxes(inputs, labels, ids, where=where, base=base, classes=classes)
    targets = [label_name(value, classes, where) for value in labels]
    if None in targets:
        if split != "train" and not any(targets):
            return Table(kind, [], [], [], classes, ((where, UNLABELLED),))
        _refuse("label", [i for i, target in zip(ids, targets, strict=True) if target is None], len(ids), where)
    if kind == "text":
        _refuse("text", [i for i, cell in zip(ids, inputs, strict=True) if missing(cell)], len(ids), where)
        cells = [(str(cell), None if str(cell).strip() else "empty text") for cell in inputs]
    else:
        cells = [_image(cell, base, row, where) for cell, row in zip(inputs, ids, strict=True)]
        if all(why == "no such file" for _, why in cells):
            raise AffinageError(f"none of the {len(cells)} image files that {where} names is there, first {cells[0][0]}: "
                                "paths count from the folder of the file")  # fmt: skip
    keep = [i for i, (_, why) in enumerate(cells) if why is None]
    return Table(
        kind,
        [cells[i][0] for i in keep],
        [cast(str, targets[i]) for i in keep],
        [ids[i] for i in keep],
        classes,
        tuple((ids[i], why) for i, (_, why) in enumerate(cells) if why is not None),
    )


def _with_boxes(
    inputs: Sequence[Any], cells: Sequence[Any], ids: Sequence[str], *, where: str, base: Path, classes: tuple[str, ...] | None
) -> Table:
    """Pictures whose labels are boxes; each is opened for its size, and no further."""
    pictures, targets, kept, unreadable = [], [], [], []
    for cell, things, row in zip(inputs, cells, ids, strict=True):
        picture, why = _image(cell, base, row, where)
        size, broken = size_of(picture) if why is None else ((0, 0), why)
        if broken:
            unreadable.append((row, broken))
            continue
        pictures.append(picture)
        targets.append(objects.things(None if missing(things) else things, classes, size, row))
        kept.append(row)
    return Table("image", pictures, targets, kept, classes, tuple(unreadable), "boxes")


def missing(cell: Any) -> bool:
    """None, NaN or pandas' NA; the empty string is content."""
    return cell is None or (isinstance(cell, float) and math.isnan(cell)) or type(cell).__name__ in ("NAType", "NaTType")


def label_name(value: Any, classes: tuple[str, ...] | None, where: str) -> str | None:
    """The class name of a label cell; None where it is missing. Integers index `classes` where those are declared."""
    if missing(value):
        return None
    if hasattr(value, "item"):  # a numpy scalar
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas makes 1 into 1.0 where a column has gaps
    if isinstance(value, int) and not isinstance(value, bool) and classes is not None:
        if value == -1:  # what the Hub writes for "kept secret"
            return None
        if not 0 <= value < len(classes):
            raise AffinageError(f"{where} has the label {value}, but declares {len(classes)} classes, 0 to {len(classes) - 1}")
        return classes[value]
    if not isinstance(value, str | int | float):
        raise AffinageError(f"{where} has a label of type {type(value).__name__}; expected one name or number a row")
    name = str(value).strip()
    return None if name in ("", "nan", "NaN") else name


def _column(names: list[str], named: str | None, usual: tuple[str, ...], where: str) -> str | None:
    if named is not None:
        if named not in names:
            raise AffinageError(f"{where} has no column '{named}'{nearest(named, names)} ({_found(names)})")
        return named
    folded = {name.strip().casefold(): name for name in reversed(names)}
    return next((folded[name] for name in usual if name in folded), None)


def _found(names: list[str]) -> str:
    return f"found: {', '.join(name[:40] for name in names[:20])}"


def _refuse(what: str, rows: list[str], total: int, where: str) -> None:
    if rows:
        first = ", ".join(rows[:5]) + (", …" if len(rows) > 5 else "")
        raise AffinageError(f"{len(rows)} of {total} rows of {where} have no {what} ({first}): fill or remove them")


def _image(cell: Any, base: Path, row: str, where: str) -> tuple[Any, str | None]:
    """(what to decode later, why not): bytes as they are, a path joined to `base`; nothing is decoded here."""
    if isinstance(cell, dict):  # as the Hub stores an image
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes | bytearray | memoryview):
        return bytes(cell), None if len(cell) else "no bytes"
    if missing(cell) or cell == "":
        return None, "no image"
    if isinstance(cell, str | Path):
        if str(cell).startswith(("http://", "https://")):
            raise AffinageError(f"{where} names web addresses ({str(cell)[:80]}); download the images and name their files")
        path = base / Path(cell).expanduser()
        if path.suffix and path.suffix.lower() not in IMAGES:
            raise AffinageError(f"{row} names '{cell}', which is no image file; expected one of {' '.join(IMAGES)}")
        return path, None if os.path.isfile(path) else "no such file"
    if hasattr(cell, "convert") and hasattr(cell, "size"):
        return cell, None  # a PIL image
    raise AffinageError(f"{row} holds a {type(cell).__name__} as image; expected a path, encoded bytes or a PIL image")
