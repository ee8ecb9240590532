"""On an accelerator: the same story end to end, and the numbers of the CPU within what its arithmetic allows (`make gpu`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import affinage
from affinage.features import passed
from affinage.tasks.text_classification import task

from . import tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")]
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 16, "quiet": True}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_text_from_fit_to_a_plain_pipeline(tmp_path: Path, precision: str) -> None:
    import pyarrow.parquet as pq
    import transformers

    run = affinage.fit(
        tiny.bert(tmp_path / "bert"), tiny.csvs(tmp_path / "texts"), out=tmp_path / "run", precision=precision, **QUICK
    )
    assert "gpu" in run.record["hardware"]
    rows = pq.read_table(tmp_path / "run" / "predictions.parquet").to_pylist()
    pipe = transformers.pipeline("text-classification", model=str(tmp_path / "run"), top_k=None, device="cpu")
    for row, told in zip(rows, pipe([row["text"] for row in rows]), strict=True):
        score = {one["label"]: one["score"] for one in told}[row["prediction"]]
        assert score == pytest.approx(row["confidence"], abs=1e-3)


def test_images_learn(tmp_path: Path) -> None:
    run = affinage.fit(tiny.resnet(tmp_path / "resnet"), tiny.pictures(tmp_path / "pictures"), out=tmp_path / "run", **QUICK)
    assert run.metrics["accuracy"] > 1 / 3


def test_features_are_those_of_the_cpu(minilm: Path) -> None:
    model, tokenizer = task.load(minilm, ["a", "b"], fresh=False, revision=None)
    rows = task.encode(["a good film", "not one that I would see again, nor one to tell a friend of"] * 8, tokenizer, model)
    there = passed(model.cuda(), rows, "fp32")[1]
    model.cpu()
    batch = rows.batch(np.arange(len(rows)))
    with torch.inference_mode():
        here = model(**batch).logits.numpy()
    assert np.abs(there - here).max() < 1e-3 * np.abs(here).max()
