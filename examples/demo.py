"""The demo (`make demo`): does a network that has learned the digits 0 to 4 help to learn 5 to 9 from ten labels a class?

A small network is trained from scratch on the digits 0 to 4 of scikit-learn and then adapted to 5 to 9 by four plans, each on the
same labels and for the same number of epochs. No download: the 8 x 8 pictures come with scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # products this small lose time when threads share them; before torch is imported

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from telling import between, table, verdict
from transformers import AutoModelForImageClassification

import affinage
from affinage.features import passed
from affinage.tasks.image_classification import task

PLANS = ("scratch", "frozen", "two-stage", "full")
LABELS = 10  # a class
BASE_EPOCHS = 10  # on the old digits, all of their labels
EPOCHS = 10  # on the new digits, for every plan (frozen has none: its head is solved); what `fit` itself takes for so few rows
OLD, NEW = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)

# A ResNet of 0.2 million parameters. Its stem makes 8 x 8 of 32 x 32 pixels: what is in the pictures.
ARCHITECTURE = {
    "model_type": "resnet",
    "architectures": ["ResNetForImageClassification"],
    "num_channels": 3,
    "embedding_size": 16,
    "hidden_sizes": [16, 32, 64],
    "depths": [2, 2, 2],
    "layer_type": "basic",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
}
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 32, "width": 32},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def rows(digits: Sequence[int], train: int | float, seed: int) -> dict[str, list[dict[str, Any]]]:
    """The pictures of some digits with their labels, split by class: `train` of them (a count or a share), the rest is `test`."""
    from PIL import Image

    found = load_digits()
    chosen = np.flatnonzero(np.isin(found.target, digits))
    pixels = (found.images[chosen] * (255 / 16)).astype(np.uint8)
    table = [{"image": Image.fromarray(p), "label": str(t)} for p, t in zip(pixels, found.target[chosen], strict=True)]
    left, right = train_test_split(table, train_size=train, stratify=found.target[chosen], random_state=seed)
    return {"train": left, "test": right}


def adapted_on_old(base: affinage.Run, adapted: affinage.Run, old: Sequence[dict[str, Any]]) -> float:
    """Accuracy on the old task of the adapted network under the head that the base had for it: what the adaptation left."""
    model = AutoModelForImageClassification.from_pretrained(base.path)
    body = AutoModelForImageClassification.from_pretrained(adapted.path).base_model
    model.base_model.load_state_dict(body.state_dict())
    _, processor = task.load(base.path, base.classes, fresh=False, revision=None)
    _, logits = passed(model, task.encode([row["image"] for row in old], processor, model), "fp32")
    return float(np.mean([base.classes[k] == row["label"] for k, row in zip(logits.argmax(1), old, strict=True)]))


def experiment(out: Path, seeds: int) -> tuple[float, dict[str, list[dict[str, float]]]]:
    """(the base's accuracy on the old task, for each plan one row a seed: accuracy, seconds, old)."""
    architecture = out / "architecture"
    architecture.mkdir(parents=True, exist_ok=True)
    (architecture / "config.json").write_text(json.dumps(ARCHITECTURE, indent=1), encoding="utf8")
    (architecture / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=1), encoding="utf8")
    # No augmentation: it flips pictures, and a flipped digit is another sign.
    # In fp32 on any processor: the network is tiny, and the numbers are those of the README.
    common: dict[str, Any] = {"augment": "none", "precision": "fp32", "overwrite": True, "quiet": True}

    old = rows(OLD, 0.7, seed=0)
    base = affinage.fit(architecture, old, plan="scratch", epochs=BASE_EPOCHS, out=out / "base", **common)
    print(f"base: digits 0 to 4, {len(old['train'])} labels, accuracy {base.metrics['accuracy']:.1%}", flush=True)

    found: dict[str, list[dict[str, float]]] = {plan: [] for plan in PLANS}
    for seed in range(seeds):
        new = rows(NEW, LABELS * len(NEW), seed)
        for plan in PLANS:
            source = architecture if plan == "scratch" else base.path
            run = affinage.fit(source, new, plan=plan, epochs=EPOCHS, seed=seed, out=out / f"{plan}-{seed}", **common)
            row = {
                "accuracy": run.metrics["accuracy"],
                "seconds": sum(stage["cost"]["seconds"] for stage in run.record["stages"]),
            }
            if plan != "scratch":
                row["old"] = adapted_on_old(base, run, old["test"])
            found[plan].append(row)
        told = ", ".join(f"{plan} {found[plan][-1]['accuracy']:.1%}" for plan in PLANS)
        print(f"seed {seed}: digits 5 to 9, {len(new['train'])} labels, {told}", flush=True)
    return base.metrics["accuracy"], found


def shown(found: dict[str, list[dict[str, float]]]) -> str:
    """What the numbers say of two-stage against scratch, on the same labels in each seed."""
    differences = [a["accuracy"] - b["accuracy"] for a, b in zip(found["two-stage"], found["scratch"], strict=True)]
    names = "the pretrained network in two stages", "the same network from scratch"
    return f"With {LABELS} labels a class {verdict(differences, *names, 'accuracy')}"


def main(arguments: Sequence[str] | None = None) -> dict[str, list[dict[str, float]]]:
    """Run the experiment, print its table; returns the rows behind the table."""
    parser = argparse.ArgumentParser(description="Digits 0 to 4 learned, then 5 to 9 from ten labels a class, by four plans.")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="where the runs go (default runs/demo)")
    parser.add_argument("--seeds", type=int, default=5, help="draws of the labels (default 5)")
    wishes = parser.parse_args(arguments)
    began = time.perf_counter()
    before, found = experiment(wishes.out, wishes.seeds)

    table(
        f"Digits 5 to 9, {LABELS} labels a class, {wishes.seeds} seeds",
        ("plan", "accuracy (95 %)", "seconds to learn", f"old task (was {before:.1%})"),
        [
            (
                plan,
                between([row["accuracy"] for row in seeds]),
                f"{mean(row['seconds'] for row in seeds):.1f}",
                "–" if plan == "scratch" else f"{mean(row['old'] for row in seeds):.1%}",
            )
            for plan, seeds in found.items()
        ],
    )
    print(shown(found))
    print(f"One of the runs: {wishes.out / 'two-stage-0' / 'report.html'} ({time.perf_counter() - began:.0f} s in all)")
    return found


if __name__ == "__main__":
    try:
        main()
    except affinage.AffinageError as error:
        raise SystemExit(f"demo: {error}") from None
