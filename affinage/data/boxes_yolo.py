"""Reads YOLO: a data.yaml that names the classes and the folders of pictures, and a text file of boxes for each picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..boxes import cleaned
from ..errors import AffinageError
from ..pictures import size_of
from ..types import Columns
from .table import IMAGES, SPLITS, Table

PIXELS = 2.0  # no box that is meant as shares reaches so far out of its picture
NAMES = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")


def accepts(source: Any) -> bool:
    """A YAML file, or a folder that holds one of the usual name."""
    if not isinstance(source, str | Path):
        return False
    path = Path(source).expanduser()
    if path.is_file():
        return path.suffix.lower() in (".yaml", ".yml")
    return path.is_dir() and any((path / name).is_file() for name in NAMES)


def read(source: Any, columns: Columns, kind: str | None = None) -> dict[str, Table]:
    """The pictures by split, with their boxes as targets; ids are their paths. A picture without a text file has no box in it.

    Polygons, which stand in the same files for segmentation, become the boxes around them.

    Raises:
        AffinageError: no YAML, no classes, no pictures, or a line that is no box.
    """
    path = Path(source).expanduser()
    file = path if path.is_file() else next(path / name for name in NAMES if (path / name).is_file())
    told = _told(file)
    names = told["names"]
    if isinstance(names, dict) and not all(str(number).isdigit() for number in names):
        odd = next(number for number in names if not str(number).isdigit())
        raise AffinageError(
            f"{file.name} gives the class '{names[odd]}' the number '{odd}': expected names: [cat, dog] or 0: cat"
        )
    classes = {int(n): str(name) for n, name in names.items()} if isinstance(names, dict) else dict(enumerate(map(str, names)))
    base = file.parent / str(told.get("path") or "")
    if not base.is_dir():
        base = file.parent
    found = {}
    for word, split in SPLITS.items():
        if told.get(word) and split not in found:
            entries = told[word] if isinstance(told[word], list) else [told[word]]
            pictures = [picture for entry in entries for picture in _pictures(base, str(entry), file)]
            found[split] = _table(pictures, classes, file)
    if "train" not in found:
        raise AffinageError(f"{file.name} names no train: expected a line such as train: images/train")
    return found


def _told(file: Path) -> dict[str, Any]:
    import yaml

    try:
        told = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AffinageError(f"{file} is not YAML: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(told, dict) or not isinstance(told.get("names"), list | dict) or not told["names"]:
        raise AffinageError(f"{file} names no classes: expected YOLO's data.yaml with names: [cat, dog], train: and val:")
    return told


def _pictures(base: Path, entry: str, file: Path) -> list[Path]:
    """Of a folder, or of a list of paths in a text file. Some exports say ../train/images where they mean train/images."""
    place = next((p for p in (base / entry, base / entry.removeprefix("../")) if p.exists()), None)
    if place is None:
        raise AffinageError(f"{file.name} names {entry}, which is not in {base}")
    if place.is_file():
        lines = [line.strip() for line in place.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        return [base / line.removeprefix("./") for line in lines]
    found = sorted(path for path in place.rglob("*") if path.suffix.lower() in IMAGES)
    if not found:
        raise AffinageError(f"{place} holds no pictures: expected {' '.join(IMAGES)}")
    return found


def _table(pictures: list[Path], classes: dict[int, str], file: Path) -> Table:
    inputs, targets, ids, unreadable = [], [], [], []
    for picture in pictures:
        name = _named(picture, file.parent)
        size, why = size_of(picture)
        if why:
            unreadable.append((name, why))
            continue
        notes = _notes(picture)
        found = _things(notes, classes, size) if notes.is_file() else ([], [])
        inputs.append(picture)
        targets.append(cleaned(*found, size))
        ids.append(name)
    return Table("image", inputs, targets, ids, tuple(classes[n] for n in sorted(classes)), tuple(unreadable), "boxes")


def _named(picture: Path, base: Path) -> str:
    return picture.relative_to(base).as_posix() if picture.is_relative_to(base) else picture.as_posix()


def _notes(picture: Path) -> Path:
    """The text file of a picture: `labels` in place of the last `images` in its path, else beside it."""
    parts = list(picture.parent.parts)
    if "images" in parts:
        at = len(parts) - 1 - parts[::-1].index("images")
        parts[at] = "labels"
    return Path(*parts) / f"{picture.stem}.txt"


def _things(notes: Path, classes: dict[int, str], size: tuple[int, int]) -> tuple[list[str], list[list[float]]]:
    names, corners = [], []
    for number, line in enumerate(notes.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            kind, *values = line.split()
            shares, which = [float(value) for value in values], int(float(kind))
        except ValueError:
            shares, which = [], -1
        if len(shares) != 4 and (len(shares) < 6 or len(shares) % 2):
            raise AffinageError(f"{notes.name} line {number} is no box ('{line[:40]}'): expected class x y width height")
        if which not in classes:
            known = f"{min(classes)} to {max(classes)}" if len(classes) > 1 else f"{min(classes)} alone"
            raise AffinageError(f"{notes.name} line {number} is of class {line.split()[0]}, but data.yaml names {known}")
        if max(shares) > PIXELS:
            raise AffinageError(
                f"{notes.name} line {number} seems to count in pixels ('{line[:40]}'): expected shares of the picture from 0 to 1"
            )
        if len(shares) == 4:
            x, y, width, height = shares
            box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        else:
            box = [min(shares[::2]), min(shares[1::2]), max(shares[::2]), max(shares[1::2])]
        names.append(classes[which])
        corners.append([box[0] * size[0], box[1] * size[1], box[2] * size[0], box[3] * size[1]])
    return names, corners
