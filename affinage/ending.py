"""How a run ends: the model exported, the test split opened once, the folder written, the finished mark last."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from affinage import pooling, ranks
from affinage.errors import AffinageError
from affinage.facts import Clock, flush, now, write_json
from affinage.features import answered, device, passed
from affinage.inputs import Inputs
from affinage.progress import Bar
from affinage.report import card, page
from affinage.story import Story, sample_of
from affinage.trained import Run, load
from affinage.types import Answers, Cost, Split


def finish(story: Story, encoding: dict[str, Cost], bar: Bar) -> Run:
    """Export, test once, and write the folder: weights last but one, the finished mark last.

    `encoding`: what it took to encode each split.
    """
    inputs, out = story.inputs, story.out
    clock = Clock()
    bar.say("measuring drift")
    drift = None
    if story.base_features is not None:
        after, _ = passed(inputs.model, sample_of(inputs.rows["train"]), inputs.precision, inputs.net.head_linear)
        assert after is not None
        drift = float(np.linalg.norm(after - story.base_features) / np.linalg.norm(story.base_features))
    native = pooling.exported(inputs.model.cpu())
    part = out / ".writing"

    def export() -> None:
        shutil.rmtree(part, ignore_errors=True)
        try:
            native.save_pretrained(part)
            inputs.processor.save_pretrained(part)
        except (OSError, SafetensorError) as error:  # a full disk is either, by who wrote
            raise AffinageError(
                f"cannot write the model in {out} ({error}): free some space, then go on with --resume"
            ) from error

    ranks.alone(export)
    native.to(device())
    clock_test = Clock()
    scores: dict[str, dict[str, Any]] = {"validation": {}, "test": {}}
    measured: list[tuple[str, Split, Answers]] = []
    for name in ("validation", "test"):
        split: Split | None = getattr(inputs.data, name)
        if split is None:
            continue
        bar.start(f"measuring on {name}", len(split))
        task, aims = inputs.task, inputs.aims[name]
        answers = answered(task, native, inputs.rows[name], inputs.processor, "fp32", aims, lambda n: bar.advance(n, ""))
        scores[name] = task.score(answers, split.targets)
        if ranks.first():
            measured.append((name, split, answers))

    def leave() -> dict[str, Any]:
        if measured:
            _write_predictions(part / "predictions.parquet", measured, inputs)
        files = sorted(path.name for path in part.iterdir())
        # known before they are there, so that none outlives the run
        write_json(out / "run.json", story.header | {"files": files})
        _move(files, part, out)
        encoded = sum(encoding.values(), Cost())
        total = encoded + clock.cost()
        for outcome in story.outcomes:
            total = total + outcome.cost
        header = story.header | {
            "status": "finished",
            "finished": now(),
            "stages": [asdict(o) for o in story.outcomes],
            "files": files,
            "kept": story.kept,
            "cuts": story.cuts,
            "cost": asdict(total),
            "cost_parts": {
                "encoding": asdict(encoded),
                "encoding_by_split": {name: asdict(cost) for name, cost in encoding.items()},
                "measuring": asdict(clock_test.cost()),
            },
            "drift": drift,
            **scores,
        }
        write_json(out / "run.json", header)
        explain(out)
        return header

    record = ranks.shared(ranks.alone(leave) or {})
    return load(out) if ranks.first() else Run(out, record)


def _move(names: Sequence[str], part: Path, out: Path) -> None:
    """What was written beside the run, into it and through to the disk."""
    for path in part.rglob("*"):
        flush(path)
    for name in names:
        if (out / name).is_dir() and not (out / name).is_symlink():  # of a processor, moved there before a kill
            shutil.rmtree(out / name)
        os.replace(part / name, out / name)
    part.rmdir()
    flush(out)


def explain(out: Path) -> None:
    """The report and the card of a run whose weights and scores are written; then the checkpoints are of no more use."""
    page.write(out)
    card.write(out)
    for name in ("report.html", "README.md"):
        flush(out / name)
    flush(out)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


def _write_predictions(path: Path, measured: Sequence[tuple[str, Split, Answers]], inputs: Inputs) -> None:
    """predictions.parquet: for each row of each split its id and what the task writes of it, some rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([pa.field("split", pa.string()), pa.field("id", pa.string()), *inputs.task.schema()])
    with pq.ParquetWriter(path, schema) as file:
        for name, split, answers in measured:
            start = 0
            for columns in inputs.task.table(answers, split, inputs.names):
                count = len(next(iter(columns.values())))
                told = {"split": [name] * count, "id": list(split.ids[start : start + count])}
                file.write_table(pa.table(told | columns, schema=schema))
                start += count
