"""A finished run: its metrics, its model, its predictions."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from affinage import config, tasks
from affinage import data as reading
from affinage.check import left_out, readable
from affinage.errors import AffinageError, nearest
from affinage.features import answered, device
from affinage.inputs import columns_of
from affinage.report.folder import facts
from affinage.types import Answers, Task

DECODING = ("decoding", "language_model", "language_model_weight")


class Run:
    """A finished run: its folder, its metrics, and its model, loaded at first use."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self.record = record  # run.json
        self.instead: dict[str, Any] = {}  # of the settings that its task reads
        self._loaded: tuple[Any, Any] | None = None

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.record['plan']['name']}, {self.metrics})"

    @property
    def metrics(self) -> dict[str, Any]:
        """The test scores, or those of validation where there is no test split."""
        return self.record.get("test") or self.record.get("validation") or {}

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the logits; none where the task tells no classes."""
        return self.record["data"].get("classes", [])

    @property
    def names(self) -> list[str]:
        """The names of the head's outputs: classes, or a vocabulary."""
        return self.record["data"][self.task.names]

    @property
    def task(self) -> Task:
        _, labels = tasks.wanted(self.record["task"])
        settings = self.record["settings"] | self.instead
        return tasks.find(self.record["task"], self.record["data"]["kind"], labels or "class", settings)

    def _model(self) -> tuple[Any, Any]:
        if self._loaded is None:
            model, processor = self.task.reload(self.path, self.names)
            self._loaded = model.to(device()).eval(), processor
        return self._loaded

    def _answers(self, inputs: Sequence[Any]) -> Answers:
        model, processor = self._model()
        rows = self.task.encode(inputs, processor, model, max_length=self.record["settings"].get("max_length"))
        return self.task.completed(answered(self.task, model, rows, processor, "fp32"), inputs)

    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """For each input what the task says of it. Classification: `label`, its `score`, and the `scores` of all classes."""
        return self.task.said(self._answers(inputs), self.names) if len(inputs) else []

    def evaluate(self, data: Any, split: str | None = None, **columns: Any) -> dict[str, Any]:
        """The scores on labelled rows: the test split of `data` if it has one, else its only one; `split` says which, or "all".

        Rows that cannot be read are left out, as in `fit`, and counted on stderr.

        Raises:
            AffinageError: no such split, another kind of data, or of labels, or no label that the run knows.
        """
        found = reading.read(data, columns=columns_of(columns, self.task.labels), kind=self.task.kind)
        if found.kind != self.task.kind:
            raise AffinageError(f"this run does {self.task.name}, but {data} is {found.kind} data")
        if found.labels != self.task.labels:
            raise AffinageError(
                f"this run does {self.task.name} and learnt from rows with {self.task.labels}, but {data} has rows with "
                f"{found.labels}"
            )
        splits = dict(found.splits())
        name = split or ("test" if "test" in splits else "validation" if "validation" in splits else "train")
        if name not in splits:
            raise AffinageError(f"no split '{name}' in {data}{nearest(name, splits)} (it has {', '.join(splits)})")
        chosen, broken = readable(found, name)
        broken += [why for _, why in found.unreadable]
        if broken:
            print(f"affinage: {left_out(broken)}", file=sys.stderr)
        if not len(chosen):
            raise AffinageError(f"no row of {data} can be read")
        targets = self.task.known(chosen.targets, self.names, str(data))
        shown = name if split or len(splits) > 1 else "all"  # a file by itself is no training split
        return {"split": shown, **self.task.score(self._answers(chosen.inputs), targets)}


def known(folder: Path) -> dict[str, Any] | None:
    """The run.json in `folder`, or None where there is none.

    Raises:
        AffinageError: it is not what `fit` writes.
    """
    return facts(folder) if (folder / "run.json").exists() else None


def load(path: str | Path, **decoding: Any) -> Run:
    """A finished run from its folder.

    `decoding`: of a run of speech recognition, `decoding`, `language_model` and `language_model_weight` in place of its own.

    Raises:
        AffinageError: no folder, no run in it, or one that was stopped.
    """
    folder = Path(path)
    record = known(folder)
    if record is None:
        raise AffinageError(f"no run at {folder}: expected a folder with run.json, as `affinage fit --out` leaves it")
    if record["status"] == "failed":
        raise AffinageError(f"the run at {folder} failed ({record['error']}): start it again with affinage fit --overwrite")
    if record["status"] != "finished":
        raise AffinageError(f"the run at {folder} was stopped before its end: go on with affinage fit --resume --out {folder}")
    found = Run(folder, record)
    if decoding:
        wrong = [name for name in decoding if name not in DECODING]
        if wrong:
            raise AffinageError(
                f"a run is not loaded with {wrong[0]}{nearest(wrong[0], DECODING)}: expected of {', '.join(DECODING)}"
            )
        if "decoding" not in getattr(found.task, "__dataclass_fields__", ()):
            raise AffinageError(f"--{min(decoding).replace('_', '-')} is for speech recognition, not for {found.task.name}")
        made = config.make(decoding)
        found.instead = {name: getattr(made, name) for name in decoding}
    return found


# What every run writes beside the model's own files, which run.json names under "files".
OWN = ("run.json", ".run.json.part", "records.jsonl", "findings.csv", "predictions.parquet", "report.html", "README.md")


def remove(out: Path) -> None:
    """Take a run out of its folder, and nothing that is not its own; the folder goes where nothing is left.

    The record goes last: what a kill leaves is still known as a run.
    """
    record = known(out) or {}
    for folder in ("checkpoints", ".writing"):
        shutil.rmtree(out / folder, ignore_errors=True)
    for name in (*record.get("files", ()), *reversed(OWN)):
        if Path(name).name == name:  # a record that was tampered with reaches no other folder
            if (out / name).is_dir() and not (out / name).is_symlink():  # a tokenizer's templates
                shutil.rmtree(out / name)
            else:
                (out / name).unlink(missing_ok=True)
    if not any(out.iterdir()):
        with suppress(OSError):  # the folder one stands in, a link to one, a mount: the next run goes there as it is
            out.rmdir()
