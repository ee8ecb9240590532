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
from affinage.facts import Clock, now, write_json
from affinage.features import device, passed
from affinage.inputs import Inputs
from affinage.progress import Bar
from affinage.report import card, page
from affinage.story import Story, sample_of
from affinage.trained import Run, load
from affinage.types import Cost, Split

PART = 1024  # rows of predictions that are written at a time


def finish(story: Story, encoding: Cost, bar: Bar) -> Run:
    """Export, test once, and write the folder: weights last but one, the finished mark last."""
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
    measured: list[tuple[str, Split, np.ndarray]] = []
    for name in ("validation", "test"):
        split: Split | None = getattr(inputs.data, name)
        if split is None:
            continue
        bar.start(f"measuring on {name}", len(split))
        _, logits = passed(native, inputs.rows[name], "fp32", progress=lambda n: bar.advance(n, ""))
        scores[name] = inputs.task.score(logits, np.asarray(split.targets))
        if ranks.first():
            measured.append((name, split, logits))

    def leave() -> dict[str, Any]:
        if measured:
            _write_predictions(part / "predictions.parquet", measured, inputs)
        files = sorted(path.name for path in part.iterdir())
        # known before they are there, so that none outlives the run
        write_json(out / "run.json", story.header | {"files": files})
        for name in files:
            os.replace(part / name, out / name)
        part.rmdir()
        total = encoding + clock.cost()
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
            "cost_parts": {"encoding": asdict(encoding), "measuring": asdict(clock_test.cost())},
            "drift": drift,
            **scores,
        }
        write_json(out / "run.json", header)
        explain(out)
        return header

    record = ranks.shared(ranks.alone(leave) or {})
    return load(out) if ranks.first() else Run(out, record)


def explain(out: Path) -> None:
    """The report and the card of a run whose weights and scores are written; then the checkpoints are of no more use."""
    page.write(out)
    card.write(out)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


def _write_predictions(path: Path, measured: Sequence[tuple[str, Split, np.ndarray]], inputs: Inputs) -> None:
    """predictions.parquet: the rows of each split with its logits (N, C), some thousands at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    image, classes = inputs.task.kind == "image", inputs.classes
    kinds: dict[str, Any] = {
        "split": pa.string(),
        "id": pa.string(),
        "text": pa.string(),
        "thumbnail": pa.binary(),
        "label": pa.string(),
        "prediction": pa.string(),
        "confidence": pa.float64(),
        "probabilities": pa.list_(pa.float32()),
    }
    with pq.ParquetWriter(path, pa.schema(kinds)) as file:
        for name, split, logits in measured:
            shifted = np.exp(logits - logits.max(1, keepdims=True))
            probabilities = shifted / shifted.sum(1, keepdims=True)
            predicted = probabilities.argmax(1)
            confidence = probabilities[np.arange(len(predicted)), predicted]
            targets = np.asarray(split.targets)
            wrong = np.flatnonzero(predicted != targets)
            shown = set(wrong[np.argsort(-confidence[wrong])][:24].tolist()) if image else set()
            for start in range(0, len(split), PART):
                part = range(start, min(start + PART, len(split)))
                here = slice(part.start, part.stop)
                columns = {
                    "split": [name] * len(part),
                    "id": list(split.ids[here]),
                    "text": [None] * len(part) if image else [str(text) for text in split.inputs[here]],
                    "thumbnail": [_thumbnail(split.inputs[i]) if i in shown else None for i in part],
                    "label": [classes[t] if t >= 0 else None for t in targets[here]],
                    "prediction": [classes[p] for p in predicted[here]],
                    "confidence": confidence[here].astype(np.float64),
                    "probabilities": list(probabilities[here].astype(np.float32)),
                }
                file.write_table(pa.table(columns, schema=file.schema))


def _thumbnail(picture: Any) -> bytes:
    import io

    from affinage.tasks.image_classification import opened

    image = opened(picture)
    image.thumbnail((128, 128))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
