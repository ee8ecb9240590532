"""The table that every reader returns, and the one way from columns of cells to it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from ..errors import AffinageError, nearest
from ..pictures import size_of
from ..types import Columns, Kind, Labels
from . import objects
from .objects import OBJECTS

AUDIO = ("audio", "file_name", "path", "file")
TRANSCRIPT = ("transcription", "transcript", "sentence", "text")
TEXT = ("text", "sentence")  # column names that need no flag, in order of preference
IMAGE = ("image", "img", "file_name", "path")
LABEL = ("label", "labels")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tiff", ".tif")
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".oga", ".aiff", ".aif", ".au")
FILES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
UNSAID = "no transcript"
UNLABELLED = "split without any label"
PART = "split"  # the column that parts the rows of a lone table
SPLITS = {"train": "train", **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"), "test": "test"}


class Table(NamedTuple):
    """N rows of one split as a reader found them. `unreadable` holds (row id, why) of the rows that are left out."""

    kind: Kind
    inputs: Sequence[Any]  # text: str. image: Path, encoded bytes, or PIL image. audio: Path, encoded bytes, or (samples, rate)
    targets: list[Any]  # class names; transcripts; the boxes of pictures
    ids: Sequence[str]
    classes: tuple[str, ...] | None = None  # where the source itself declares them, in its order
    unreadable: tuple[tuple[str, str], ...] = ()
    labels: Labels = "class"


class Picked(NamedTuple):
    """Which columns are read, and as what."""

    kind: Kind
    input: str
    label: str
    labels: Labels = "class"


def pick(
    names: Iterable[str], columns: Columns, kind: str | None, where: str, first: Callable[[str], Any] = lambda column: None
) -> Picked:
    """The input and label columns among `names`: what the user named, else what is usual.

    `first(column)` is a cell of that column, which tells sounds from pictures where its name does not.

    Raises:
        AffinageError: a named column is not there, or what is usual is not there or not unique.
    """
    names = [str(name) for name in names]
    found = _found(names)
    audio = _column(names, columns.audio, AUDIO, where) if kind in (None, "audio") else None
    if audio and kind is None and not columns.audio and (columns.text or columns.image or not sounds(first(audio))):
        audio = None
    if audio is not None or kind == "audio":
        return _heard(names, columns, audio, where)
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
        heard = _column(names, None, AUDIO, where) and _column(names, None, TRANSCRIPT, where)
        speech = ", or say --task automatic-speech-recognition if these are recordings and what is said in them" if heard else ""
        raise AffinageError(f"{where} has no label column ({found}); name it with --label-column{speech}")
    if text is not None and image is not None:
        raise AffinageError(
            f"{where} has text in '{text}' and images in '{image}'; name one with --text-column or --image-column"
        )
    if text is None and image is None:
        wanted = f"{kind} column" if kind else "text or image column"
        flags = f"--{kind}-column" if kind else "--text-column or --image-column"
        raise AffinageError(f"{where} has no {wanted} ({found}); name it with {flags}")
    return Picked("text", text, label) if text is not None else Picked("image", cast(str, image), label)


def _heard(names: list[str], columns: Columns, audio: str | None, where: str) -> Picked:
    """The columns of sounds: their transcripts, or their classes where that is what the task wants, or all there is."""
    found = _found(names)
    if audio is None:
        raise AffinageError(f"{where} has no audio column ({found}); name it with --audio-column")
    rest = [name for name in names if name != audio]
    spoken, label = _column(rest, None, TRANSCRIPT, where), _column(rest, None, LABEL, where)
    wanted: Labels = columns.labels or ("transcript" if spoken or not label else "class")
    if columns.label:  # named: a transcript, unless it is a usual name of classes
        named = str(_column(names, columns.label, (), where))
        usual: Labels = "class" if named.strip().casefold() in LABEL else "transcript"
        return Picked("audio", audio, named, columns.labels or usual)
    target = spoken if wanted == "transcript" else label
    if target is None:
        what = "transcript" if wanted == "transcript" else "label"
        usual_names = " or ".join(TRANSCRIPT if wanted == "transcript" else LABEL)
        raise AffinageError(f"{where} has no {what} column ({found}); name it with --label-column, or call it {usual_names}")
    return Picked("audio", audio, target, wanted)


def parts(cells: Sequence[Any], where: str) -> dict[str, list[int]] | None:
    """The numbers of the rows of each split, as the column `split` names it; None where it means something else.

    Raises:
        AffinageError: some rows name a split, and one does not.
    """
    told = [str("" if cell is None else cell).strip().lower() for cell in cells]
    if not SPLITS.keys() & set(told):
        return None
    found: dict[str, list[int]] = {}
    for number, name in enumerate(told):
        if name not in SPLITS:
            raise AffinageError(f"{where} has a row whose split is '{name}': expected one of {', '.join(SPLITS)}")
        found.setdefault(SPLITS[name], []).append(number)
    return {name: found[name] for name in dict.fromkeys(SPLITS.values()) if name in found}


def sounds(cell: Any) -> bool:
    """Whether a cell holds or names a recording, by the name's end or the first bytes."""
    if isinstance(cell, tuple) and len(cell) == 2:
        return hasattr(cell[0], "dtype")
    if isinstance(cell, dict):
        if cell.get("array") is not None:
            return True
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes | bytearray | memoryview):
        head = bytes(cell[:12])
        return head.startswith((b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3")) or (head[:4], head[8:]) == (b"RIFF", b"WAVE")
    return isinstance(cell, str | Path) and str(cell).lower().endswith(SOUNDS)


def build(
    kind: Kind,
    inputs: Sequence[Any],
    labels: Sequence[Any],
    ids: Sequence[str],
    *,
    where: str,
    split: str,
    base: Path,
    classes: tuple[str, ...] | None = None,
    means: Labels = "class",
) -> Table:
    """Cells to rows: labels become names, relative paths start at `base`, rows without content are left out.

    A validation or test split in which no row has a label (as on the Hub, where it is kept secret) is left out whole.
    `means`: what the labels are, where the cells need not tell; a recording without a transcript is left out, and listed.

    Raises:
        AffinageError: no rows, a missing label, a row without text, or a cell that is neither text nor image.
    """
    if not len(inputs):
        raise AffinageError(f"{where} holds no rows: expected at least one under the header")
    if means == "boxes" and split != "train" and all(map(missing, labels)):
        return Table(kind, [], [], [], classes, ((where, UNLABELLED),), means)
    if kind == "image" and (means == "boxes" or objects.stand_in(labels)):
        return _with_boxes(inputs, labels, ids, where=where, base=base, classes=classes)
    if means == "transcript":
        targets = [None if missing(value) else " ".join(str(value).split()) or None for value in labels]
        if not any(targets):
            if split == "train":
                raise AffinageError(f"none of the {len(targets)} rows of {where} has a transcript: check --label-column")
            return Table(kind, [], [], [], None, ((where, UNLABELLED),), means)
    else:
        targets = [label_name(value, classes, where) for value in labels]
    if None in targets and means == "class":
        if split != "train" and not any(targets):
            return Table(kind, [], [], [], classes, ((where, UNLABELLED),))
        _refuse("label", [i for i, target in zip(ids, targets, strict=True) if target is None], len(ids), where)
    if kind == "text":
        _refuse("text", [i for i, cell in zip(ids, inputs, strict=True) if missing(cell)], len(ids), where)
        cells = [_text(cell, where) for cell in inputs]
    else:
        read = _sound if kind == "audio" else _image
        cells = [read(cell, base, row, where) for cell, row in zip(inputs, ids, strict=True)]
        if all(why == "no such file" for _, why in cells):
            raise AffinageError(f"none of the {len(cells)} {kind} files that {where} names is there, first {cells[0][0]}: "
                                "paths count from the folder of the file")  # fmt: skip
        cells = [(cell, why or (UNSAID if t is None else None)) for (cell, why), t in zip(cells, targets, strict=True)]
    keep = [i for i, (_, why) in enumerate(cells) if why is None]
    return Table(
        kind,
        [cells[i][0] for i in keep],
        [cast(str, targets[i]) for i in keep],
        [ids[i] for i in keep],
        classes,
        tuple((ids[i], why) for i, (_, why) in enumerate(cells) if why is not None),
        means,
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


def _text(cell: Any, where: str) -> tuple[str, str | None]:
    """(text, why it cannot be used). Bytes are UTF-8: so Spark and Hive write strings into Parquet.

    Raises:
        AffinageError: a list or an object, which is no text.
    """
    if isinstance(cell, bytes):
        try:
            cell = cell.decode()
        except UnicodeDecodeError:
            return "", "text that is not UTF-8"
    elif isinstance(cell, list | tuple | dict | np.ndarray):
        raise AffinageError(f"{where} holds a {type(cell).__name__} where a text is expected: name the column with --text-column")
    text = str(cell)
    return text, None if text.strip() else "empty text"


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
        return _file(cell, base, row, where, IMAGES, "image")
    if hasattr(cell, "convert") and hasattr(cell, "size"):
        return cell, None  # a PIL image
    raise AffinageError(f"{row} holds a {type(cell).__name__} as image; expected a path, encoded bytes or a PIL image")


def _sound(cell: Any, base: Path, row: str, where: str) -> tuple[Any, str | None]:
    """(what to decode later, why not): bytes as they are, a path joined to `base`, (samples, rate); nothing is decoded here."""
    if isinstance(cell, dict):  # as the Hub stores a sound: with or without its samples
        if cell.get("array") is not None:
            cell = (cell["array"], cell.get("sampling_rate"))
        else:
            cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes | bytearray | memoryview):
        return bytes(cell), None if len(cell) else "no bytes"
    if missing(cell) or (isinstance(cell, str) and not cell):
        return None, "no recording"
    if isinstance(cell, str | Path):
        return _file(cell, base, row, where, SOUNDS, "recording")
    if isinstance(cell, tuple) and len(cell) == 2 and isinstance(cell[1], int | float) and cell[1] > 0:
        samples = np.asarray(cell[0])
        return (samples, int(cell[1])), None if samples.size else "no samples"
    raise AffinageError(f"{row} holds a {type(cell).__name__} as sound; expected a path, encoded bytes or (samples, rate)")


def _file(cell: str | Path, base: Path, row: str, where: str, endings: Sequence[str], what: str) -> tuple[Path, str | None]:
    """(the path joined to `base`, why it cannot be read): one on this disk, and one of these endings where it has any."""
    if str(cell).startswith(("http://", "https://")):
        raise AffinageError(f"{where} names web addresses ({str(cell)[:80]}); download the {what}s and name their files")
    path = base / Path(cell).expanduser()
    if path.suffix and path.suffix.lower() not in endings:
        raise AffinageError(f"{row} names '{cell}', which is no {what} file; expected one of {' '.join(endings)}")
    return path, None if os.path.isfile(path) else "no such file"
