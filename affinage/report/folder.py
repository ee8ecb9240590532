"""Reading a run folder: `run.json`, `records.jsonl` and `predictions.parquet`, as one `Run`."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from affinage import record
from affinage.errors import AffinageError
from affinage.record import Record

TEXT = 1000  # characters of a row's text that are kept: more than a page shows, and all texts in full may be more than memory


@dataclass(frozen=True)
class Predictions:
    """The N rows that the run predicted on one split. `targets` and `guesses` index `classes`; -1 is an unknown class."""

    split: str
    classes: tuple[str, ...]
    targets: np.ndarray  # (N,) int64
    guesses: np.ndarray  # (N,) int64
    confidence: np.ndarray  # (N,) float64
    rows: list[dict[str, Any]]  # (N,) id, text, thumbnail, label, prediction

    @property
    def right(self) -> np.ndarray:
        """(N,) bool."""
        return self.guesses == self.targets


@dataclass(frozen=True)
class Run:
    """A run folder, read."""

    folder: Path
    facts: dict[str, Any]  # run.json
    records: tuple[Record, ...]
    predictions: Predictions | None  # of the test split; of validation where there is no test

    @property
    def measured(self) -> tuple[str, dict[str, Any]]:
        """("test", its scores), else ("validation", its scores), else ("", {})."""
        for split in ("test", "validation"):
            if metric(self.facts.get(split) or {}):
                return split, self.facts[split]
        return "", {}


def facts(folder: Path) -> dict[str, Any]:
    """The run's `run.json`.

    Raises:
        AffinageError: there is none, or it is not what `fit` writes.
    """
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise AffinageError(f"{folder} is not a run: no run.json in it; name the folder that `affinage fit --out` wrote")
    try:
        found = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise AffinageError(f"{path} is not JSON ({error}): restore the file, or fit again into another folder") from None
    if not isinstance(found, dict):
        raise AffinageError(
            f"{path} holds a {type(found).__name__}, expected an object: restore the file, or fit again into another folder"
        )
    if missing := [name for name in ("status", "task", "settings", "data") if name not in found]:
        raise AffinageError(f"{path} is not the record of a run (no {', '.join(missing)}): restore it, or choose another folder")
    return found


def read(folder: Path) -> Run:
    """The run in `folder`. Records and predictions may be missing: a run that has just begun has none.

    Raises:
        AffinageError: `run.json` is missing or broken.
    """
    folder = Path(folder)
    known = facts(folder)
    return Run(folder, known, _records(folder / "records.jsonl"), _predictions(folder / "predictions.parquet", known))


def metric(scores: dict[str, Any]) -> str:
    """The name of the score that heads the page: accuracy, or else the first finite number that is not a count; "" for none."""
    names = [
        name
        for name, value in scores.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and name != "n"
    ]
    return "accuracy" if "accuracy" in names else (names[0] if names else "")


def table(run: Run) -> list[dict[str, Any]]:
    """All columns of predictions.parquet, of the rows of the split that heads the report: for tasks that tell no classes."""
    path = run.folder / "predictions.parquet"
    if not path.is_file() or run.predictions is not None:
        return []
    import pyarrow.parquet as parquet

    split, _ = run.measured
    with parquet.ParquetFile(path) as file:
        return [row for batch in file.iter_batches(1024) for row in batch.to_pylist() if row["split"] == split]


def _records(path: Path) -> tuple[Record, ...]:
    found: list[Record] = []
    if path.is_file():
        with suppress(ValueError, TypeError):  # the last line of a run that is being written, or was killed, may be half a line
            found.extend(record.read(path))
    return tuple(one for one in found if isinstance(one.value, (int, float)) and math.isfinite(one.value))


def _predictions(path: Path, known: dict[str, Any]) -> Predictions | None:
    if not path.is_file():
        return None
    import pyarrow.parquet as parquet  # heavy: only where there is a table to read

    with parquet.ParquetFile(path) as file:
        if "probabilities" not in file.schema_arrow.names:  # of a task that tells no classes: `table` reads it
            return None
        there = set(file.read(columns=["split"]).column("split").unique().to_pylist())
        split = next((name for name in ("test", "validation") if name in there), None)
        if split is None:
            return None
        rows: list[dict[str, Any]] = []
        wanted = ("split", "id", "text", "thumbnail", "audio", "label", "prediction", "confidence")
        columns = [name for name in wanted if name in file.schema_arrow.names]
        for batch in file.iter_batches(1024, columns=columns):
            rows += [row | {"text": row["text"] and row["text"][:TEXT]} for row in batch.to_pylist() if row["split"] == split]
    classes = list(known.get("data", {}).get("classes") or [])
    # A prediction is always one of the model's classes; a label may be one that it never saw.
    classes += sorted({str(row["prediction"]) for row in rows} - set(classes))
    index = {name: i for i, name in enumerate(classes)}
    return Predictions(
        split=split,
        classes=tuple(classes),
        targets=np.array([index.get(str(row["label"]), -1) for row in rows], dtype=np.int64),
        guesses=np.array([index[str(row["prediction"])] for row in rows], dtype=np.int64),
        confidence=np.array([row["confidence"] if row["confidence"] is not None else np.nan for row in rows], dtype=np.float64),
        rows=rows,
    )
