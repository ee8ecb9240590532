"""How a run ends: the model exported, the test split opened once, the folder written, the finished mark last."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from affinage import pooling
from affinage.errors import AffinageError
from affinage.facts import Clock, now, write_json
from affinage.features import device, passed
from affinage.inputs import Inputs
from affinage.progress import Bar
from affinage.report import card, page
from affinage.story import Story, sample_of
from affinage.trained import Run, load
from affinage.types import Cost, Split


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
    shutil.rmtree(part, ignore_errors=True)
    try:
        native.save_pretrained(part)
        inputs.processor.save_pretrained(part)
    except (OSError, SafetensorError) as error:  # a full disk is either, by who wrote
        raise AffinageError(f"cannot write the model in {out} ({error}): free some space, then go on with --resume") from error
    native.to(device())
    clock_test = Clock()
    scores: dict[str, dict[str, Any]] = {"validation": {}, "test": {}}
    frames = []
    for name in ("validation", "test"):
        split: Split | None = getattr(inputs.data, name)
        if split is None:
            continue
        bar.start(f"measuring on {name}", len(split))
        _, logits = passed(native, inputs.rows[name], "fp32", progress=lambda n: bar.advance(n, ""))
        scores[name] = inputs.task.score(logits, np.asarray(split.targets))
        frames.append(_predictions(name, split, logits, inputs))
    if frames:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.concat_tables(frames), part / "predictions.parquet")
    files = sorted(path.name for path in part.iterdir())
    write_json(out / "run.json", story.header | {"files": files})  # known before they are there, so that none outlives the run
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
    return load(out)


def explain(out: Path) -> None:
    """The report and the card of a run whose weights and scores are written; then the checkpoints are of no more use."""
    page.write(out)
    card.write(out)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


def _predictions(name: str, split: Split, logits: np.ndarray, inputs: Inputs) -> Any:
    """The rows of one split in predictions.parquet."""
    import pyarrow as pa

    shifted = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = shifted / shifted.sum(1, keepdims=True)
    predicted = probabilities.argmax(1)
    confidence = probabilities[np.arange(len(predicted)), predicted]
    targets = np.asarray(split.targets)
    wrong = np.flatnonzero(predicted != targets)
    shown = set(wrong[np.argsort(-confidence[wrong])][:24].tolist()) if inputs.task.kind == "image" else set()
    return pa.table(
        {
            "split": [name] * len(split),
            "id": list(split.ids),
            "text": pa.array([str(x) if inputs.task.kind == "text" else None for x in split.inputs], pa.string()),
            "thumbnail": pa.array([_thumbnail(split.inputs[i]) if i in shown else None for i in range(len(split))], pa.binary()),
            "label": pa.array([inputs.classes[t] if t >= 0 else None for t in targets], pa.string()),
            "prediction": [inputs.classes[p] for p in predicted],
            "confidence": confidence.astype(np.float64),
            "probabilities": list(probabilities.astype(np.float32)),
        }
    )


def _thumbnail(picture: Any) -> bytes:
    import io

    from affinage.tasks.image_classification import opened

    image = opened(picture)
    image.thumbnail((128, 128))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
