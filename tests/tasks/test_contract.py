"""What every task must keep, walked over the folder, so that a new file is tested the day it is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from affinage import tasks
from affinage.errors import AffinageError
from affinage.types import Rows, Task

from .. import tiny

EVERY = list(tasks.every())


@pytest.fixture(scope="module", params=EVERY, ids=lambda t: t.name)
def task(request: pytest.FixtureRequest) -> Task:
    return request.param


def example(task: Task, folder: Path) -> tuple[Path, list[object]]:
    """A tiny model and inputs of the task's kind."""
    if task.kind == "text":
        return tiny.bert(folder / "model"), [row["text"] for row in tiny.rows(7, 0)]
    return tiny.resnet(folder / "model"), sorted(tiny.pictures(folder / "data", 7, 0, 0).rglob("*.png"))  # type: ignore[return-value]


def test_names(task: Task) -> None:
    assert isinstance(task, object) and task.name and task.kind in ("text", "image")
    assert tasks.find(task.name, task.kind) is task and tasks.kind(task.name) == task.kind
    assert len({t.name for t in EVERY}) == len(EVERY)


def test_from_inputs_to_scores(task: Task, tmp_path: Path) -> None:
    folder, inputs = example(task, tmp_path)
    torch.manual_seed(0)
    model, processor = task.load(folder, ("a", "b", "c"), fresh=False, revision=None)
    rows = task.encode(inputs, processor, model)
    assert isinstance(rows, Rows) and len(rows) == len(rows.lengths) == 7
    logits = model.eval()(**rows.batch(np.arange(7))).logits
    targets = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    loss = task.loss(logits, targets, weights=None, smoothing=0.0)
    loss.backward()
    assert loss.dim() == 0 and all(
        p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad and p.grad is not None
    )
    scores = task.score(logits.detach().numpy(), targets.numpy())
    assert scores["n"] == 7 and 0 <= scores[task.metric] <= 1
    assert abs(scores["log_loss"] - loss.item()) < 1e-5
    perfect = task.score(np.eye(3)[targets] * 20, targets.numpy())
    assert perfect[task.metric] == 1.0
    assert task.score(np.zeros((0, 3)), np.zeros(0, np.int64)) == {"n": 0}


def test_unknown_names() -> None:
    with pytest.raises(AffinageError, match="did you mean 'text-classification'"):
        tasks.find("text-clasification", "text")
    with pytest.raises(AffinageError, match="reads image data, but this is text data: use --task text-classification"):
        tasks.find("image-classification", "text")
    assert tasks.kind(None) is None
