"""Reads a data set of the Hugging Face Hub by its id, `org/name`, `name` or `org/name:configuration`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import AffinageError
from ..types import Columns
from . import memory
from .table import FILES, IMAGES, Table

ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?")


def accepts(source: Any) -> bool:
    """A string that looks like a Hub id and names nothing on this machine."""
    if not isinstance(source, str) or not ID.fullmatch(source):
        return False
    return not Path(source).exists() and not source.lower().endswith((*FILES, *IMAGES, ".txt", ".zip", ".gz", ".tar"))


def read(source: Any, columns: Columns, kind: str | None = None) -> dict[str, Table]:
    """The splits that the data set has; no code of the data set is run.

    Raises:
        AffinageError: the package is missing, the Hub has no such data set, or it cannot be reached.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise AffinageError(
            f"'{source}' is no file or folder, and reading the Hub needs datasets: pip install 'affinage[datasets]'"
        ) from None
    name, _, configuration = source.partition(":")
    try:
        found = load_dataset(name, configuration or None)
    except Exception as error:  # a dozen kinds: not found, no network, offline, gated, needs a configuration
        why = " ".join(str(error).split())[:200]
        raise AffinageError(f"no file or folder '{source}', and the Hub gave no data set of this name ({why})") from None
    return memory.read(found, columns, kind)
