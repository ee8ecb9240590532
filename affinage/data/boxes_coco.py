"""Reads COCO: JSON files with images, annotations and categories, one a split, and the pictures that they name."""

from __future__ import annotations

import json
import mmap
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from ..boxes import cleaned
from ..errors import AffinageError
from ..pictures import size_of
from ..types import Columns
from .table import SPLITS, Table

PARTS = (b'"images"', b'"annotations"', b'"categories"')  # what every COCO file of boxes has
WORD = re.compile(r"(?:^|[^a-z])(train|val|valid|validation|dev|test)(?:\d{4})?(?:$|[^a-z])", re.I)  # instances_val2017.json
ROBOFLOW = "_annotations.coco.json"


def accepts(source: Any) -> bool:
    """A COCO file, or a folder with such files: beside the pictures, in `annotations`, or one in each split's folder."""
    if not isinstance(source, str | Path):
        return False
    path = Path(source).expanduser()
    return _is_coco(path) if path.is_file() else path.is_dir() and bool(_splits(path))


def read(source: Any, columns: Columns, kind: str | None = None) -> dict[str, Table]:
    """The pictures by split, with their boxes as targets; ids are the file names in the JSON. Pictures without boxes are kept.

    Raises:
        AffinageError: not COCO after all, a category that is not declared, or none of the pictures is there.
    """
    path = Path(source).expanduser()
    files = {"train": path} if path.is_file() else _splits(path)
    return {split: _table(file) for split, file in files.items()}


def _is_coco(path: Path) -> bool:
    """By its beginning and the names in it; a file of gigabytes is not parsed for that."""
    if path.suffix.lower() != ".json" or not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        return whole[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and all(whole.find(part) >= 0 for part in PARTS)


def _splits(folder: Path) -> dict[str, Path]:
    """The COCO files by split; one alone is train."""
    found: dict[str, Path] = {}
    for place in sorted(entry for entry in folder.iterdir() if entry.is_dir() and entry.name.lower() in SPLITS):
        if _is_coco(place / ROBOFLOW):
            found[SPLITS[place.name.lower()]] = place / ROBOFLOW
    if found:
        return found
    for place in (folder, folder / "annotations"):
        files = [file for file in sorted(place.glob("*.json")) if _is_coco(file)] if place.is_dir() else []
        instances = [file for file in files if file.name.startswith("instances_")]  # COCO's own folder has captions beside them
        for file in instances or files:
            word = WORD.search(file.stem)
            split = SPLITS[word[1].lower()] if word else None
            if split in found:
                both = f"{found[split].name} and {file.name}"
                raise AffinageError(f"{folder} holds {both} for one split; remove one, or name a file")
            if split is not None:
                found[split] = file
        if len(files) == 1 and not found:
            return {"train": files[0]}
        if found:
            return found
    return {}


def _table(path: Path) -> Table:
    whole = _parsed(path)
    names = {category["id"]: str(category["name"]) for category in whole["categories"]}
    things: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in whole["annotations"]:
        if annotation.get("category_id") not in names:
            raise AffinageError(
                f"{path.name}: annotation {annotation.get('id')} is of category {annotation.get('category_id')}, which is not "
                "among the categories: add it there, or remove the annotation"
            )
        things[annotation.get("image_id")].append(annotation)
    places = _places(path)
    inputs, targets, ids, unreadable = [], [], [], []
    for image in whole["images"]:
        name, own = str(image["file_name"]), things.pop(image["id"], [])
        picture = next((place / name for place in places if (place / name).is_file()), None)
        size, why = size_of(picture) if picture is not None else ((0, 0), "no such file")
        if why:
            unreadable.append((name, why))
            continue
        corners = [_corners(annotation.get("bbox"), annotation.get("id"), path.name) for annotation in own]
        crowd = [bool(annotation.get("iscrowd")) for annotation in own]
        inputs.append(picture)
        targets.append(cleaned([names[annotation["category_id"]] for annotation in own], corners, size, crowd))
        ids.append(name)
    if whole["images"] and all(why == "no such file" for _, why in unreadable) and not inputs:
        first = whole["images"][0]["file_name"]
        raise AffinageError(f"none of the {len(unreadable)} pictures that {path.name} names is there, first {places[0] / first}: "
                            "paths count from the folder of the file")  # fmt: skip
    listed = {str(image["id"]) for image in whole["images"]}
    unreadable += [
        (
            f"{path.name}: image {number}",
            "boxes whose image_id is text where the id is a number, or the other way round"
            if str(number) in listed
            else "boxes of an image that is not listed",
        )
        for number in things
    ]
    order = tuple(dict.fromkeys(names[number] for number in sorted(names)))
    return Table("image", inputs, targets, ids, order, tuple(unreadable), "boxes")


def _parsed(path: Path) -> dict[str, Any]:
    try:
        whole = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AffinageError(f"{path.name} is not JSON: {error}") from None
    for part, needs in (("images", ("id", "file_name")), ("annotations", ("bbox",)), ("categories", ("id", "name"))):
        rows = whole.get(part)
        if not isinstance(rows, list) or not all(isinstance(row, dict) and all(need in row for need in needs) for row in rows):
            raise AffinageError(f"{path.name} is not COCO: expected '{part}' to be a list of objects with {', '.join(needs)}")
    for part, name in (("images", "id"), ("annotations", "image_id"), ("annotations", "category_id"), ("categories", "id")):
        odd = next((row[name] for row in whole[part] if not isinstance(row.get(name), int | str | None)), None)
        if odd is not None:
            raise AffinageError(f"{path.name} has the {name} {str(odd)[:40]} in '{part}': expected a number or a text")
    return whole


def _places(path: Path) -> list[Path]:
    """Where the pictures of a COCO file may be, the likeliest first."""
    word = re.sub(r"^(instances|coco|annotations)_", "", path.stem)
    near = [path.parent, path.parent / "images", path.parent / word]
    if path.parent.name == "annotations":
        above = path.parent.parent
        near += [above, above / "images", above / word, above / "images" / word]
    return near


def _corners(box: Any, number: Any, where: str) -> list[float]:
    """x0 y0 x1 y1 of COCO's x y width height."""
    try:
        x, y, width, height = (float("nan") if value is None else float(value) for value in box)
    except (TypeError, ValueError):
        said = f"annotation {number} has the bbox {str(box)[:60]}"
        raise AffinageError(f"{where}: {said}; expected [x, y, width, height]") from None
    return [x, y, x + width, y + height]
