"""What every task must keep, walked over the folder, so that a new file is tested the day it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from affinage import data as reading
from affinage import tasks
from affinage.errors import AffinageError
from affinage.features import answered
from affinage.inputs import net_of
from affinage.types import Aims, Columns, Rows, Split, Task

from .. import detectors, tiny

EVERY = list(tasks.every())


@pytest.fixture(scope="module", params=EVERY, ids=lambda t: t.name)
def task(request: pytest.FixtureRequest) -> Task:
    return request.param


def example(task: Task, folder: Path) -> tuple[Path, Any]:
    """A tiny model, and a tiny data set that the task learns from: what is new here is one line for a new pair."""
    return {
        ("text", "class"): lambda: (tiny.bert(folder / "model"), tiny.csvs(folder / "data")),
        ("image", "class"): lambda: (tiny.resnet(folder / "model"), tiny.pictures(folder / "data")),
        ("image", "boxes"): lambda: (detectors.saved(folder / "model"), detectors.pictures(folder / "data")),
        ("audio", "class"): lambda: (tiny.wav2vec2(folder / "model"), tiny.tones(folder / "data")),
        ("audio", "transcript"): lambda: (tiny.wav2vec2(folder / "model"), tiny.melodies(folder / "data")),
    }[task.kind, task.labels]()


def test_names(task: Task) -> None:
    assert task.name and task.kind in ("text", "image", "audio") and task.labels in ("class", "transcript", "boxes")
    assert tasks.find(task.name, task.kind, task.labels) is task and tasks.wanted(task.name) == (task.kind, task.labels)
    assert tasks.find(None, task.kind, task.labels) is task
    assert len({t.name for t in EVERY}) == len(EVERY) == len({(t.kind, t.labels) for t in EVERY})


def test_from_inputs_to_scores(task: Task, tmp_path: Path) -> None:
    folder, source = example(task, tmp_path)
    data, names = task.number(reading.read(source, kind=task.kind, columns=Columns(labels=task.labels)))
    assert (data.kind, data.labels) == (task.kind, task.labels)
    train = data.train.take(np.arange(7))
    assert len(task.groups(train.targets)) == 7
    torch.manual_seed(0)
    model, processor = task.load(folder, names, fresh=False, revision=None)
    rows = task.encode(train.inputs, processor, model)
    aims = task.aims(train.targets, rows, processor, model)
    assert isinstance(rows, Rows) and len(rows) == len(rows.lengths) == 7
    assert isinstance(aims, Aims) and len(aims) == 7 and (aims.counts is None or aims.counts.shape == (7,))

    net = net_of(task, model, rows.batch(np.arange(1)))
    assert net.addresses()["head"] and all(task.head(model) == () or net.parameters[n] for n in net.parameters)
    model.train()
    for augment in ("none", task.augments):
        batch, targets = task.teach(rows.batch(np.arange(7)), aims.batch(np.arange(7)), augment)
        outputs = model(**batch)
        assert all(getattr(outputs, name, None) is not None for name in task.reads)
        loss = task.loss(outputs, targets, weights=None, smoothing=0.0)
        loss.backward()
        assert loss.dim() == 0 and loss.isfinite()
        taught = [p for p in model.parameters() if p.requires_grad and p.grad is not None]
        assert taught and all(p.grad.isfinite().all() for p in taught)

    answers = answered(task, model, rows, processor, "fp32", aims)
    again = answered(task, model, rows, processor, "fp32")  # what is not known of the targets changes no answer
    assert len(answers) == len(again) == 7 and task.said(answers, names) == task.said(again, names)
    scores = task.score(answers, train.targets)
    assert next(iter(scores)) == task.metric and list(scores)[-1] == "n" and scores["n"] == 7
    low, high = scores[f"{task.metric}_interval"]
    assert low <= scores[task.metric] <= high
    assert all(isinstance(number, float) for number in task.rank(scores)) and task.rank(scores) == task.rank(scores)
    assert task.score(answers[:0], train.targets[:0]) == {"n": 0}
    known = task.known([str(t) for t in reading.read(source, kind=task.kind, columns=Columns(labels=task.labels)).train.targets[:7]]
                       if task.labels == "class" else train.targets, names, "s")  # fmt: skip
    assert task.score(answers, known) == scores

    said = task.said(answers, names)
    assert len(said) == 7 and json.loads(json.dumps(said)) == said
    parts = list(task.table(answers, Split(train.inputs, train.targets, train.ids), names))
    assert all(set(part) == set(task.schema().names) for part in parts)
    assert sum(len(next(iter(part.values()))) for part in parts) == 7


def test_pieces_of_a_batch_count_what_they_hold(task: Task, tmp_path: Path) -> None:
    """The mean over the whole is the mean of the pieces' means, each by its share: so a step may be computed in pieces."""
    folder, source = example(task, tmp_path)
    data, names = task.number(reading.read(source, kind=task.kind, columns=Columns(labels=task.labels)))
    train = data.train.take(np.arange(6))
    torch.manual_seed(0)
    model, processor = task.load(folder, names, fresh=False, revision=None)
    rows = task.encode(train.inputs, processor, model)
    aims = task.aims(train.targets, rows, processor, model)
    model.eval()

    def loss(chosen: np.ndarray) -> float:
        batch, targets = task.teach(rows.batch(chosen), aims.batch(chosen), "none")
        with torch.no_grad():
            return task.loss(model(**batch), targets, weights=None, smoothing=0.0).item()

    parts = [np.array([0, 1]), np.array([2, 3, 4, 5])]
    counts = np.ones(6) if aims.counts is None else aims.counts
    joined = sum(loss(part) * counts[part].sum() / counts.sum() for part in parts)
    assert joined == pytest.approx(loss(np.arange(6)), rel=2e-4)


def test_unknown_names() -> None:
    with pytest.raises(AffinageError, match="did you mean 'text-classification'"):
        tasks.find("text-clasification", "text")
    with pytest.raises(AffinageError, match="reads image data, but this is text data: use --task text-classification"):
        tasks.find("image-classification", "text")
    assert tasks.wanted(None) == (None, None)
