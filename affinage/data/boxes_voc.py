"""Reads Pascal VOC: one XML file a picture, in `Annotations` beside `JPEGImages`, or next to the pictures themselves.

No entity is ever expanded: a file that declares a document type is refused, since that is how XML reaches for other files and
grows without bound.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..boxes import cleaned
from ..errors import AffinageError
from ..pictures import size_of
from ..types import Columns
from .table import IMAGES, SPLITS, UNLABELLED, Table

CORNERS = ("xmin", "ymin", "xmax", "ymax")
HELD = {"train": ("train",), "validation": ("val", "validation", "valid"), "test": ("test",)}  # names in ImageSets/Main


def accepts(source: Any) -> bool:
    """A folder with `Annotations` and `JPEGImages`, or with XML files beside pictures, in it or in its splits' folders."""
    return isinstance(source, str | Path) and Path(source).expanduser().is_dir() and bool(_splits(Path(source).expanduser()))


def read(source: Any, columns: Columns, kind: str | None = None) -> dict[str, Table]:
    """The pictures by split, with their boxes as targets; ids are the pictures' paths below `source`.

    What is marked difficult is a crowd: VOC neither teaches it nor holds it against what is found there. Coordinates are taken
    as they stand.

    Raises:
        AffinageError: XML that is not VOC's, or that declares a document type; a list of names of which none is there.
    """
    root = Path(source).expanduser()
    return {split: _table(root, split, pairs) for split, pairs in _splits(root).items()}


def _splits(root: Path) -> dict[str, list[tuple[Path, Path | None]]]:
    """(picture, XML) by split, wherever a list or an XML file names one; other pictures are none of VOC's."""
    if (root / "Annotations").is_dir():
        notes = {file.stem: file for file in sorted((root / "Annotations").glob("*.xml"))}
        pictures = _pictures(root / "JPEGImages") or _pictures(root / "images") or _pictures(root / "Annotations")
        if not notes:
            return {}
        found = {}
        for split, words in HELD.items():
            lists = [root / "ImageSets" / "Main" / f"{word}.txt" for word in words]
            listed = next((file for file in lists if file.is_file()), None)
            if listed is not None:
                names = [line.split()[0] for line in listed.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
                found[split] = [(pictures.get(name, root / f"{name}.jpg"), notes.get(name)) for name in names]
                if not any(note for _, note in found[split]):
                    raise AffinageError(f"{listed} names no file in Annotations: expected names such as {next(iter(notes))}")
        return found or {"train": [(pictures.get(name, root / f"{name}.jpg"), note) for name, note in notes.items()]}
    places = {SPLITS[entry.name.lower()]: entry for entry in sorted(root.iterdir()) if entry.name.lower() in SPLITS}
    found = {}
    for split, place in (places or {"train": root}).items():
        notes_here = sorted(place.glob("*.xml")) if place.is_dir() else []
        if notes_here:  # else its pictures, which may be a million, are not even listed
            pictures = _pictures(place)
            if any(file.stem in pictures for file in notes_here):
                found[split] = [(pictures.get(file.stem, file.with_suffix(".jpg")), file) for file in notes_here]
    return found


def _pictures(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() in IMAGES}


def _table(root: Path, split: str, pairs: Iterable[tuple[Path, Path | None]]) -> Table:
    inputs, targets, ids, unreadable = [], [], [], []
    for picture, note in pairs:
        name = picture.relative_to(root).as_posix()
        size, why = size_of(picture) if note else ((0, 0), "no such file in Annotations")
        if why or not note:
            unreadable.append((name, why))
            continue
        names, corners, hard = things(note)
        inputs.append(picture)
        targets.append(cleaned(names, corners, size, hard))
        ids.append(name)
    if not inputs and all(why == "no such file" for _, why in unreadable):
        raise AffinageError(f"none of the {len(unreadable)} pictures of {split} is in {root / 'JPEGImages'}, "
                            f"first {unreadable[0][0] if unreadable else UNLABELLED}")  # fmt: skip
    return Table("image", inputs, targets, ids, None, tuple(unreadable), "boxes")


def things(path: Path) -> tuple[list[str], list[list[float]], list[bool]]:
    """(names, corners, difficult) of one VOC file.

    Raises:
        AffinageError: not XML, with a document type, or an object without name or box.
    """
    content = path.read_bytes()
    if b"\0" in content or re.search(rb"<!\s*(DOCTYPE|ENTITY)", content, re.I):
        raise AffinageError(f"{path.name} declares a document type or is not UTF-8, as no VOC file does: it is not read")
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise AffinageError(f"{path.name} is not XML: {error}") from None
    names, corners, hard = [], [], []
    for thing in root.iter("object"):
        name, box = thing.findtext("name"), thing.find("bndbox")
        if not name or box is None:
            raise AffinageError(f"{path.name} has an object without a name or bndbox: expected both")
        try:
            corners.append([float(box.findtext(corner) or "nan") for corner in CORNERS])
        except ValueError:
            raise AffinageError(f"{path.name} has a box of '{name}' that is no number: expected {', '.join(CORNERS)}") from None
        names.append(name.strip())
        hard.append((thing.findtext("difficult") or "0").strip() not in ("0", ""))
    return names, corners, hard
