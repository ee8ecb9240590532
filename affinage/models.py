"""The models that are here without a download: starters, all-MiniLM-L6-v2 where installed, and what the Hub's cache holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affinage import starters


@dataclass(frozen=True)
class Model:
    """One model that `--model` takes as it stands."""

    name: str
    where: str  # "starter", "package" or "cache"
    task: str  # a pipeline tag, else the class of transformers; "" where nothing tells
    licence: str  # as its card tells; "" where it does not
    bytes: int
    path: str


def every() -> list[Model]:
    """Starters first, then the package, then the cache by name. Reads cards and configurations, never weights."""
    found = [Model(one.name, "starter", one.task, one.licence, one.bytes, str(one.folder)) for one in starters.every()]
    folder = starters.text()
    if folder is not None:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        found.append(_described(starters.TEXT, "package", folder, size))
    return found + _cached()


def _cached() -> list[Model]:
    """Models in the cache of huggingface_hub; a download that was broken off has no configuration yet and is left out."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repositories = scan_cache_dir().repos
    except (CacheNotFound, OSError, ValueError):  # none yet, or not one
        return []
    found = []
    for repository in sorted(repositories, key=lambda r: r.repo_id):
        if repository.repo_type != "model" or not repository.revisions:
            continue
        newest = max(repository.revisions, key=lambda revision: revision.last_modified)
        if (newest.snapshot_path / "config.json").is_file():
            found.append(_described(repository.repo_id, "cache", newest.snapshot_path, repository.size_on_disk))
    return found


def _described(name: str, where: str, folder: Path, size: int) -> Model:
    """What the folder's card says of itself, and where it says nothing the architecture that its configuration names."""
    head = _head(folder / "README.md")
    licence = head.get("license") or ""
    return Model(
        name=name,
        where=where,
        task=str(head.get("pipeline_tag") or _architecture(folder / "config.json")),
        licence=", ".join(map(str, licence)) if isinstance(licence, list) else str(licence),
        bytes=size,
        path=str(folder),
    )


def _head(card: Path) -> dict[str, Any]:
    """The YAML between the first two lines of dashes; nothing where there is none that can be read."""
    import yaml

    try:
        parts = card.read_text(encoding="utf8").split("---\n", 2)
        head = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return head if isinstance(head, dict) else {}


def _architecture(config: Path) -> str:
    try:
        names = json.loads(config.read_text(encoding="utf8")).get("architectures")
    except (OSError, ValueError, AttributeError):
        return ""
    return str(names[0]) if names else ""
