"""Run folders with real content: a linear model on real digits or real reviews, written in the run's format."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from affinage.measure.classification import scores
from affinage.record import Record, Records

Maker = Callable[..., Path]


def write_run(
    folder: Path,
    facts: dict[str, Any],
    records: list[Record],
    rows: list[dict[str, Any]],
    probabilities: np.ndarray | None = None,
) -> Path:
    """A run folder of these facts, records and rows of predictions."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(facts), encoding="utf8")
    log = Records(folder / "records.jsonl")
    for one in records:
        log.add(one)
    log.close()
    kinds = [
        ("split", pa.string()),
        ("id", pa.string()),
        ("text", pa.string()),
        ("thumbnail", pa.binary()),
        ("label", pa.string()),
    ]
    kinds += [("prediction", pa.string()), ("confidence", pa.float64()), ("probabilities", pa.list_(pa.float32()))]
    parquet.write_table(pa.Table.from_pylist(rows, schema=pa.schema(kinds)), folder / "predictions.parquet")
    return folder


def facts_of(
    task: str, source: str, data: str, classes: list[str], rows: dict[str, int], test: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """A `run.json` as `affinage fit` writes it."""
    anatomy = [{"address": "stem", "parameters": 11_918_592, "trained": False, "rate": None}]
    for i in range(6):
        anatomy.append(
            {
                "address": f"blocks.{i}",
                "parameters": 1_774_464,
                "trained": i >= 3,
                "rate": 8e-5 * 0.7 ** (5 - i) if i >= 3 else None,
            }
        )
    anatomy.append({"address": "head", "parameters": 385 * len(classes), "trained": True, "rate": 1e-3})
    stages = [
        {"name": "head", "how": "solve", "rates": [["head", 1e-3], ["*", None]], "epochs": 1},
        {"name": "body", "how": "fit", "rates": [["head", 1e-3], ["blocks.-3:", 8e-5], ["*", None]], "epochs": 8},
    ]
    return {
        "affinage": "0.1.0", "status": "finished", "created": "2026-11-23T18:00:00+00:00", "task": task,
        "plan": {"name": "two-stage", "fresh": False, "lora": 0, "stages": stages},
        "model": {"source": source, "revision": None, "architecture": "BertForSequenceClassification", "parameters": 22_565_376,
                  "pooling": "mean", "anatomy": anatomy},
        "data": {"source": data, "kind": "text", "fingerprint": "9f2c61d0", "rows": rows, "classes": classes,
                 "findings": [{"kind": "imbalance", "severity": "warning", "message": ("the largest class has 4.1 times the "
                     "rows of the smallest"), "count": 1},
                              {"kind": "duplicate-across-splits", "severity": "leak", "message": ("8 test rows are also in "
                                  "train"), "count": 8}]},
        "seed": 0, "settings": {"plan": "two-stage", "batch": 16, "epochs": 8, "out": "/home/someone/runs/first"},
        "versions": {"python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0"}, "commit": "0123abc",
        "hardware": {"cpu": "a processor", "threads": 1, "precision": "float32"},
        "stages": [{"stage": "head", "cost": {"seconds": 31.2, "cpu_seconds": 30.9}, "validation": {"accuracy": 0.77},
                    "details": {"penalty": 0.01, "gradient_norm": 3.1e-7, "trained_parameters": 770}},
                   {"stage": "body", "cost": {"seconds": 412.0, "cpu_seconds": 409.5}, "validation": {"accuracy": 0.81},
                    "details": {"trained_parameters": 5_324_162, "epochs": 8}}],
        "kept": "body, epoch 7", "cost": {"seconds": 446.0, "cpu_seconds": 443.0}, "drift": 0.12,
        "validation": {"accuracy": 0.81, "n": 100}, "test": test,
    } | more  # fmt: skip


def rows_of(logits: np.ndarray, targets: np.ndarray, classes: list[str], inputs: list[Any]) -> list[dict[str, Any]]:
    """Rows of `predictions.parquet`; an input is a text, or (H, W) pixels that become a PNG for what is wrong."""
    from PIL import Image

    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    rows = []
    for i, (row, target, one) in enumerate(zip(probabilities, targets, inputs, strict=True)):
        guess, thumbnail = int(row.argmax()), None
        if not isinstance(one, str) and guess != target:
            file = io.BytesIO()
            Image.fromarray(one).save(file, format="PNG")
            thumbnail = file.getvalue()
        rows.append({
            "split": "test", "id": f"test:{i}", "text": one if isinstance(one, str) else None, "thumbnail": thumbnail,
            "label": classes[target], "prediction": classes[guess], "confidence": float(row[guess]),
            "probabilities": row.tolist(),
        })  # fmt: skip
    return rows


def train(x: Any, y: np.ndarray, vx: Any, vy: np.ndarray, classes: int, epochs: int = 8) -> tuple[Any, list[Record]]:
    """A linear model by stochastic gradients, and the records of its training."""
    from sklearn.linear_model import SGDClassifier
    from sklearn.metrics import log_loss

    model, records, step = SGDClassifier(loss="log_loss", alpha=1e-5, random_state=0), [], 0
    generator = np.random.default_rng(0)
    records.append(Record("head", 0, "validation", "accuracy", 0.5, 0.0))
    for epoch in range(epochs):
        order = generator.permutation(len(y))
        for start in range(0, len(y) - 63, 64):
            rows = order[start : start + 64]
            model.partial_fit(x[rows], y[rows], classes=range(classes))
            step += 1
            loss = log_loss(y[rows], model.predict_proba(x[rows]), labels=range(classes))
            records.append(Record("body", step, "train", "loss", float(loss), step / 10))
        records.append(Record("body", step, "validation", "accuracy", float(model.score(vx, vy)), epoch))
    return model, records


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of 8x8 pictures: scikit-learn's copy of the UCI digits."""
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    model, records = train(x[:600] / 16, y[:600], x[600:800] / 16, y[600:800], 10)
    classes, logits = [str(i) for i in range(10)], model.decision_function(x[800:] / 16)
    pictures = [np.uint8(255 - row.reshape(8, 8) * 15.9) for row in x[800:]]
    facts = facts_of("image-classification", "/home/someone/models/tiny-vit", "digits", classes,
                     {"train": 600, "validation": 200, "test": len(logits)}, scores(logits, y[800:]))  # fmt: skip
    return write_run(tmp_path_factory.mktemp("digits"), facts, records, rows_of(logits, y[800:], classes, pictures))


@pytest.fixture(scope="session")
def reviews_run(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """Two classes of sentences: part of SST-2."""
    text = pytest.importorskip("sklearn.feature_extraction.text")
    splits = {}
    for name, most in (("train", 3000), ("dev", 400), ("test", 1000)):
        with (shared_data / "sst2" / f"{name}.csv").open(encoding="utf8", newline="") as file:
            found = list(csv.DictReader(file))
        chosen = np.random.default_rng(0).permutation(len(found))[:most]
        splits[name] = ([found[i]["text"] for i in chosen], np.array([int(found[i]["label"] == "pos") for i in chosen]))
    words = text.TfidfVectorizer().fit(splits["train"][0])
    (tx, ty), (vx, vy), (sx, sy) = ((words.transform(x), y) for x, y in splits.values())
    model, records = train(tx, ty, vx, vy, 2)
    margin = model.decision_function(sx)
    logits = np.stack([np.zeros_like(margin), margin], axis=1)
    facts = facts_of("text-classification", "sentence-transformers/all-MiniLM-L6-v2", "sst2", ["neg", "pos"],
                     {"train": 3000, "validation": 400, "test": 1000}, scores(logits, sy))  # fmt: skip
    return write_run(tmp_path_factory.mktemp("reviews"), facts, records, rows_of(logits, sy, ["neg", "pos"], splits["test"][0]))


@pytest.fixture
def made_run(tmp_path: Path) -> Maker:
    """A function that writes a run of drawn logits: `made_run(classes, n, facts=..., text=...)`."""

    def make(classes: list[str], n: int = 300, text: str = "a row", **more: Any) -> Path:
        generator = np.random.default_rng(0)
        targets = generator.integers(0, len(classes), n)
        logits = generator.normal(size=(n, len(classes))) + 2.0 * np.eye(len(classes))[targets]
        facts = facts_of(
            "text-classification", "org/model", "some-data", classes, {"train": n, "test": n}, scores(logits, targets), **more
        )
        records = [Record("body", i, "train", "loss", 1 / (1 + i), i) for i in range(100)]
        return write_run(tmp_path / "run", facts, records, rows_of(logits, targets, classes, [f"{text} {i}" for i in range(n)]))

    return make
