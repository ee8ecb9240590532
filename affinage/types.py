"""The nouns, on one page. Shapes: B batch, T tokens, D width, C classes, H W pixels, N rows.

Nothing of ours but `errors` is imported here, and torch only for the type checker, so that this page costs nothing to import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    import torch

Batch = dict[str, "torch.Tensor"]  # what a model's forward takes, by argument name
Kind = Literal["text", "image", "audio"]  # of input
Labels = Literal["class", "transcript", "boxes"]  # what a row is labelled with

# Ordered (pattern, learning rate); None freezes; the first match wins; every parameter must match (big_vision's table).
# A pattern is an address (`stem`, `blocks.3`, `blocks.-2:`, `head`) or a glob over parameter names.
Rates = tuple[tuple[str, float | None], ...]


# ------------------------------------------------------------------------------------------------------------- data
@dataclass(frozen=True)
class Columns:
    """Which columns hold what, where convention does not tell."""

    text: str | None = None
    image: str | None = None
    audio: str | None = None
    label: str | None = None
    labels: Labels | None = None  # what the task learns from, where it was named


@dataclass(frozen=True)
class Split:
    """N rows of one split, column by column."""

    # text: str. image: Path, encoded bytes, or PIL image. audio: Path, encoded bytes, or (samples, rate). Not in memory where
    # they are too large for it
    inputs: Sequence[Any]
    # as read: a class name, a transcript, the boxes of a picture. After `Task.number`: what `Task.score` is given; of classes
    # int64 (N,), -1 for one unknown to train
    targets: Sequence[Any]
    ids: Sequence[str]  # where the row came from: "train/cat/1.png", "train.csv:17"

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: Sequence[int] | np.ndarray) -> Split:
        """The given rows, in the given order."""
        rows = np.asarray(rows, dtype=np.int64)
        targets = self.targets[rows] if isinstance(self.targets, np.ndarray) else [self.targets[i] for i in rows]
        return Split(_taken(self.inputs, rows), targets, _taken(self.ids, rows))


class Taken(Sequence[Any]):
    """Some rows of what is read only when it is looked at, in the given order."""

    def __init__(self, whole: Sequence[Any], rows: np.ndarray) -> None:
        self.whole, self.rows = whole, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> Any: ...
    @overload
    def __getitem__(self, at: slice) -> list[Any]: ...
    def __getitem__(self, at: int | slice) -> Any:
        return [self.whole[i] for i in self.rows[at]] if isinstance(at, slice) else self.whole[self.rows[at]]


def _taken(whole: Sequence[Any], rows: np.ndarray) -> Sequence[Any]:
    """A list of a list's, a view of what is not in memory."""
    if isinstance(whole, Taken):
        return Taken(whole.whole, whole.rows[rows])
    return [whole[i] for i in rows] if isinstance(whole, list | tuple) else Taken(whole, rows)


@dataclass(frozen=True)
class Data:
    """What a reader found: up to three splits of one kind of input."""

    kind: Kind
    source: str  # what the user named, for the run's record
    train: Split
    validation: Split | None = None
    test: Split | None = None
    classes: tuple[str, ...] | None = None  # an order that the source itself declares (ClassLabel); else the training split's
    unreadable: tuple[tuple[str, str], ...] = ()  # (row id, why) of what was skipped
    labels: Labels = "class"
    only: str = "train"  # what the source calls the split that is here `train`, where it has no other

    def splits(self) -> Iterator[tuple[str, Split]]:
        """(name, split) for each split that is there."""
        for name in ("train", "validation", "test"):
            split = getattr(self, name)
            if split is not None:
                yield name, split

    def with_splits(self, **splits: Split | None) -> Data:
        """The same data with some splits replaced."""
        return replace(self, **splits)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Finding:
    """One thing that the data check found. `severity`: a leak or an error stops `fit`; a warning is reported."""

    kind: str  # "unreadable", "duplicate-across-splits", "near-duplicate-across-splits", "label-only-in-test", "imbalance", ...
    severity: Literal["error", "leak", "warning"]
    message: str  # one sentence, with the count
    rows: tuple[
        tuple[str, str, str, str], ...
    ] = ()  # (split, id, other split, other id) of the offenders; "" where there is no other
    reasons: tuple[str, ...] = ()  # of each row, where they differ; else the message is the reason


# -------------------------------------------------------------------------------------------------------- what learns
@dataclass(frozen=True)
class Stage:
    """What learns, how fast and how long. `solve` fits a linear head to its optimum on features computed once; `fit` trains."""

    name: str
    how: Literal["solve", "fit"]
    rates: Rates  # who learns, and how fast at the peak of the schedule
    epochs: int = 1
    batch: int = 16  # examples a step
    tokens: int = 4096  # padded tokens at once; a step of more is computed in pieces, to the same gradient
    accumulate: int = 1  # pieces a step at least
    warmup: float = 0.1  # share of the steps in which the rate rises linearly
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.0  # on matrices only; 0 for what was pretrained: it would pull towards zero, not towards the base
    clip: float = 1.0  # largest norm of the gradient
    label_smoothing: float = 0.0
    average: float = 0.0  # exponential moving average of the weights, as a share of the steps; 0 for none
    # where the weights that it hands on lie on the line from its beginning (0) to its end (1): WiSE-FT (arXiv 2109.01903)
    interpolate: float = 1.0
    patience: int = 0  # epochs without a better validation score before it stops; 0 for never
    # without a validation split: an epoch is better if it takes this share off the training loss; 0: no epoch is worse
    tolerance: float = 0.0
    hand_over: float = (
        1.0  # factor on the head's logits before the stage begins; a solved head is too sure to teach the layers below
    )
    dropout: bool = True  # the checkpoint's own dropout, in the parts that train
    cut_dropout: float = 0.0  # of what the frozen blocks leave, in place of their own, which is off
    augment: str = "none"  # "none", "light" or "strong"; what that does is the task's business
    mix: float = 0.0  # share of the steps that learn from mixtures of two pictures and of their classes


@dataclass(frozen=True)
class Plan:
    """A tuple of stages, as data. `fresh`: only the architecture is reused, its weights are drawn anew."""

    name: str
    stages: tuple[Stage, ...]
    fresh: bool = False
    lora: int = 0  # rank of the low-rank update, 0 for none


# ------------------------------------------------------------------------------------------------------------- task
@runtime_checkable
class Rows(Protocol):
    """N encoded rows of one split, ready to be batched without a loop over examples in Python.

    Where tokens are not what the batch's `attention_mask` masks (samples of sound go in, frames come out), the rows also have
    `mask(batch) -> (B, T)`, which does; a network is cut by it.
    """

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64: tokens a row, or 1 where all rows cost the same."""
        ...

    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray) -> Batch:
        """The rows as the tensors that the model's forward takes (padded to the longest)."""
        ...


@runtime_checkable
class Aims(Protocol):
    """The N targets of one split as the loss takes them."""

    @property
    def counts(self) -> np.ndarray | None:
        """(N,) how much each row counts in the mean loss of a batch; None: all alike."""
        ...

    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray) -> Any:
        """The rows' targets: a tensor, or tensors in lists, tuples and dicts."""
        ...


Answers = Any  # what a pass says of N rows: an array (N, ...), or a list of N things that JSON can hold


class Task(Protocol):
    """Rows -> batches, outputs -> loss, outputs -> answers -> scores, for one kind of problem. One file in `tasks/`.

    A field of a task that is a setting as well (`vocabulary`) takes that setting's value; no other task can be given it.
    What has a body here is what most tasks do; `classification.Classification` has more of it.
    """

    name: str  # the pipeline tag: "text-classification"
    kind: Kind  # the kind of `Data` that it reads
    labels: Labels  # and what their rows are labelled with
    metric: str  # the score that heads a report: "accuracy"
    # One of C classes a row, by one linear layer on one vector a row. Then stage 1 solves the head, few labels and held-out rows
    # are drawn class by class, and the data check looks at the labels; else stage 1 trains the head until it has converged.
    classifies: bool = False
    names: Literal["classes", "vocabulary"] = "classes"  # what the names in run.json are
    reads: tuple[str, ...] = ("logits",)  # the fields of the model's output that the loss and the answers are made of
    augments: str = "none"  # the augmentation where "auto" leaves it to the task

    # ------------------------------------------------------------------------------------------------------- targets
    def groups(self, targets: Sequence[Any]) -> Sequence[Any]:
        """(N,) of what each row is one: few labels are so many a group, and of each group a share is held out."""
        return ["row"] * len(targets)

    def number(self, data: Data) -> tuple[Data, tuple[str, ...]]:
        """The data with the targets that are scored, and the names of the outputs of the head (classes, characters; or none).

        Raises:
            AffinageError: nothing can be learnt from these targets.
        """
        ...

    def known(self, targets: Sequence[Any], names: Sequence[str], source: str) -> Sequence[Any] | np.ndarray:
        """Other targets, as read, as a run with these names scores them.

        Raises:
            AffinageError: none of them is one that the run could know.
        """
        ...

    # --------------------------------------------------------------------------------------------------------- model
    def load(self, source: str | Path, names: Sequence[str], *, fresh: bool, revision: str | None) -> tuple[Any, Any]:
        """(model with a head for `names`, processor) of a Hub id, a folder or a run. Runs no code from a file."""
        ...

    def reload(self, folder: Path, names: Sequence[str]) -> tuple[Any, Any]:
        """(model, processor) of a finished run, as it was left."""
        return self.load(folder, names, fresh=False, revision=None)

    def adopt(self, model: Any, processor: Any, names: Sequence[str]) -> Any:
        """A model that the user had loaded, made to fit these names.

        Raises:
            AffinageError: it does not fit.
        """
        ...

    def head(self, model: Any) -> tuple[str, ...]:
        """Globs over parameter names: what belongs to the head beside the layer that gives the logits (box regressors)."""
        return ()

    def ceiling(self, model: Any) -> str | None:
        """The module that is the first to see what `teach` adds to a batch: no cut lies above it. None: there is none."""
        return None

    def example(self) -> Any:
        """An input that any model of the task can read."""
        ...

    # ---------------------------------------------------------------------------------------------- batches and loss
    def encode(self, inputs: Sequence[Any], processor: Any, model: Any, *, max_length: int | None = None) -> Rows:
        """Every row encoded once; `max_length` in tokens, where the input has tokens."""
        ...

    def aims(self, targets: Sequence[Any], rows: Rows, processor: Any, model: Any) -> Aims:
        """The targets (as `number` leaves them) of these encoded rows as the loss takes them, encoded once."""
        ...

    def teach(self, batch: Batch, targets: Any, augment: str) -> tuple[Batch, Any]:
        """(batch, targets) as a training step shows them: changed at random ("none", "light", "strong"), and with what the
        forward needs to know of the targets (the tokens so far, noisy boxes). Draws from torch's generator."""
        return batch, targets

    def loss(self, outputs: Any, targets: Any, *, weights: torch.Tensor | None, smoothing: float) -> torch.Tensor:
        """Mean loss, a scalar, of the model's output for a batch; `weights` (C,) and `smoothing` of tasks that classify."""
        ...

    # ------------------------------------------------------------------------------------------------------- answers
    def answer(
        self, forward: Callable[..., Any], batch: Batch, lengths: np.ndarray, processor: Any, targets: Any = None
    ) -> Answers:
        """What the network says of the B rows of a batch, decoded so that it is small: (B, ...) or a list of B.

        `forward(**batch)` is the model's output, `lengths` (B,) are those of the rows. `targets`: the batch's, where they are
        known and a loss is told beside.
        """
        ...

    def completed(self, answers: Answers, inputs: Sequence[Any]) -> Answers:
        """The answers with what the inputs alone tell, where `said` needs it (the size of a picture)."""
        return answers

    def score(self, answers: Answers, targets: Sequence[Any] | np.ndarray) -> dict[str, Any]:
        """Named scores, `metric` first and `n` last; intervals as `NAME_interval: [low, high]`. No rows: {"n": 0}."""
        ...

    def rank(self, scores: Mapping[str, Any]) -> list[float]:
        """What selects, higher is better: the first number, then the next where those are equal."""
        return [scores[self.metric]]

    def schema(self) -> Any:
        """A pyarrow.Schema of what predictions.parquet holds of a row beside `split` and `id`."""
        ...

    def table(self, answers: Answers, split: Split, names: Sequence[str]) -> Iterator[dict[str, Sequence[Any]]]:
        """Those columns, some rows at a time, in order."""
        ...

    def said(self, answers: Answers, names: Sequence[str]) -> list[dict[str, Any]]:
        """What `predict` gives of each row, as JSON can hold it."""
        ...


@dataclass(frozen=True)
class Cost:
    """What something took. CPU seconds are those of the whole process, all threads."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)


@dataclass(frozen=True)
class Outcome:
    """What a stage left: its cost, its scores on validation, and what is worth telling (penalty, gradient norm, epochs)."""

    stage: str
    cost: Cost
    validation: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
