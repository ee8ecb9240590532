"""Reads a folder a class, of images, recordings or .txt files, with or without train, validation and test folders above them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import AffinageError
from ..types import Columns, Kind
from .table import FILES, IMAGES, SOUNDS, SPLITS, Table

PLAIN = {"image": "images", "audio": "recordings", "text": ".txt files"}


def accepts(source: Any) -> bool:
    """Any folder; the reader of files is asked first, so that a folder with `train.csv` is its."""
    return isinstance(source, str | Path) and Path(source).expanduser().is_dir()


def read(source: Any, columns: Columns, kind: str | None = None) -> dict[str, Table]:
    """The rows by split, the name of the class folder as target; without split folders all is `train`.

    Ids are paths below `source`. Images are not opened here. The name of a split never becomes a label.

    Raises:
        AffinageError: nothing to read, no class folders, splits beside classes, or text beside images.
    """
    root = Path(source).expanduser()
    folders = _folders(root)
    parts: dict[str, Path] = {}
    for folder in folders:
        split = SPLITS.get(folder.name.lower())
        if split in parts:
            raise AffinageError(f"{root} holds {parts[split].name}/ and {folder.name}/ for one split; remove one")
        if split is not None:
            parts[split] = folder
    if not parts:
        return {"train": _table(root, root, folders, kind)}
    others = [folder.name for folder in folders if folder not in parts.values() and _holds(folder)]
    if others:
        raise AffinageError(f"{root} holds the split {next(iter(parts.values())).name}/ beside {others[0]}/; "
                            "expected only splits or only classes")  # fmt: skip
    return {split: _table(root, folder, _folders(folder), kind) for split, folder in parts.items()}


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__")))


def _files(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_file())


def _kind(path: Path) -> Kind | None:
    suffix = path.suffix.lower()
    return "image" if suffix in IMAGES else "audio" if suffix in SOUNDS else "text" if suffix == ".txt" else None


def _holds(folder: Path) -> bool:
    return any(_kind(file) for file in folder.rglob("*"))


def _table(root: Path, folder: Path, classes: list[Path], kind: str | None) -> Table:
    rows: list[tuple[Path, str]] = []
    skipped: list[tuple[str, str]] = []
    kinds: set[Any] = set()
    for place in classes:
        files = _files(place)
        deeper = next((child for child in _folders(place) if _holds(child)), None)
        if deeper is not None:
            raise AffinageError(
                f"{place} holds files one folder too deep, in {deeper.name}/; expected CLASS/file, or name that folder"
            )
        for file in files:
            found = _kind(file)
            if found is None:
                skipped.append((file.relative_to(root).as_posix(), f"files of suffix '{file.suffix}' are not read"))
            elif kind is None or found == kind:
                rows.append((file, place.name))
                kinds.add(found)
    if len(kinds) > 1:
        both = " and ".join(PLAIN[one] for one in sorted(kinds))
        raise AffinageError(f"{folder} holds both {both}; remove the others, or name a kind with --task")
    if not rows:
        tables = [file.name for file in _files(folder) if file.suffix.lower() in FILES]
        loose = sum(_kind(file) is not None for file in _files(folder))
        if tables:
            raise AffinageError(f"{folder} holds {', '.join(tables[:5])} and no train file; name one of them, or one with --test")
        if loose:
            raise AffinageError(f"{folder} holds {loose} files and no class folders; expected CLASS/file")
        wanted = PLAIN.get(kind or "", "images, recordings or .txt files")
        raise AffinageError(f"{folder} holds nothing to read; expected CLASS/file with {wanted}, or train.csv")
    what = kinds.pop()
    if what != "text":
        inputs: list[Any] = [file for file, _ in rows]
    else:
        inputs, kept = [], []
        for file, label in rows:
            try:
                text = file.read_text(encoding="utf-8-sig")
                why = "" if text.strip() else "empty text"
            except UnicodeDecodeError:
                why = "not UTF-8"
            if why:
                skipped.append((file.relative_to(root).as_posix(), why))
            else:
                inputs.append(text)
                kept.append((file, label))
        rows = kept
    ids = [file.relative_to(root).as_posix() for file, _ in rows]
    return Table(what, inputs, [label for _, label in rows], ids, None, tuple(skipped))
