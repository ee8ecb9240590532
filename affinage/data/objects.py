"""The cell `objects` of a table: the boxes of its picture, as `datasets` writes them (bbox [x, y, width, height], categories)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..boxes import Boxes, cleaned
from ..errors import AffinageError

OBJECTS = ("objects", "annotations")  # names of the column, in order of preference
BOX = ("bbox", "bboxes", "boxes", "box")
CLASS = ("categories", "category", "label", "labels", "category_id", "class")
CROWD = ("iscrowd", "is_crowd", "crowd")


def things(cell: Any, classes: Sequence[str] | None, size: tuple[int, int], row: str) -> Boxes:
    """The boxes of one picture: {"bbox": [[x, y, width, height], ...], "categories": [...]}, or a list of one such a thing.

    Categories are names, or numbers of `classes`; numbers stay numbers where none are declared.

    Raises:
        AffinageError: a cell of another form, or a number that stands for no class.
    """
    if cell is None:
        cell = []
    if isinstance(cell, dict):
        boxes, kinds, crowd = (_column(cell, names) for names in (BOX, CLASS, CROWD))
    elif isinstance(cell, list | tuple) and all(isinstance(one, dict) for one in cell):
        boxes, kinds, crowd = ([_column(one, names) for one in cell] for names in (BOX, CLASS, CROWD))
        crowd = None if None in crowd else crowd
    else:
        raise _wrong(row, cell)
    boxes, kinds = [] if boxes is None else list(boxes), [] if kinds is None else list(kinds)
    if len(boxes) != len(kinds) or any(kind is None for kind in kinds):
        raise _wrong(row, cell)
    corners = []
    for box in boxes:
        try:
            x, y, width, height = (float("nan") if value is None else float(value) for value in box)
        except (TypeError, ValueError):
            raise _wrong(row, cell) from None
        corners.append([x, y, x + width, y + height])
    return cleaned([_name(kind, classes, row) for kind in kinds], corners, size, crowd)


def stand_in(cells: Sequence[Any]) -> bool:
    """Whether these cells hold boxes: a class is a name or a number."""
    first = next((cell for cell in cells if cell is not None), None)
    return isinstance(first, dict | list | tuple)


def declared(feature: Any) -> tuple[str, ...] | None:
    """The class names anywhere within a column's declared type, `datasets`' own or its JSON."""
    names = feature.get("names") if isinstance(feature, dict) else getattr(feature, "names", None)
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return tuple(names)
    inner = list(feature.values()) if isinstance(feature, dict) else [getattr(feature, "feature", None)]
    inner = feature if isinstance(feature, list) else inner
    return next((found for one in inner if isinstance(one, dict | list) or hasattr(one, "feature") or hasattr(one, "names")
                 if (found := declared(one))), None)  # fmt: skip


def _column(cell: dict[str, Any], names: Sequence[str]) -> Any:
    return next((cell[name] for name in names if name in cell), None)


def _name(kind: Any, classes: Sequence[str] | None, row: str) -> str:
    if hasattr(kind, "item"):
        kind = kind.item()
    if classes is None or isinstance(kind, str):
        return str(kind)
    if not isinstance(kind, int) or not 0 <= kind < len(classes):
        raise AffinageError(f"{row} has a box of category {kind}, but {len(classes)} are declared, 0 to {len(classes) - 1}")
    return classes[kind]


def _wrong(row: str, cell: Any) -> AffinageError:
    return AffinageError(
        f"{row} has the objects {str(cell)[:60]}; expected {{'bbox': [[x, y, width, height], ...], 'categories': [...]}}"
    )
