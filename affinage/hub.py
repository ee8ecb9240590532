"""What stands on the Hugging Face Hub: the commit that a branch or a tag means, and single files of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def file(source: Any, name: str, revision: str | None) -> Path | None:
    """The file of a repository in the local cache, fetched if need be; None for a folder, and for what is not to be had."""
    repository = str(source)
    if not repository or Path(repository).exists() or repository.count("/") > 1:
        return None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except (OSError, ValueError):  # no such repository, revision or file, or no network: whoever needs it says so
        return None


def pinned(source: Any, revision: str | None) -> str | None:
    """The commit that `revision` of a model means now, so that all files are of one state; else what was given."""
    found = file(source, "config.json", revision)
    return found.parent.name if found and found.parent.parent.name == "snapshots" else revision
