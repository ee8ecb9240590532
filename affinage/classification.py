"""What every task that tells C classes apart has in common: targets, loss, scores, and what is written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from affinage import labels, pretrained
from affinage.errors import AffinageError
from affinage.measure.classification import scores
from affinage.types import Answers, Batch, Data, Rows, Split, Task

if TYPE_CHECKING:
    import torch

PART = 1024  # rows of predictions that are written at a time
SHOWN = 24  # mistakes of a split whose input is kept for the report


@dataclass(frozen=True)
class ClassAims:
    """N class numbers."""

    numbers: np.ndarray  # (N,) int64
    counts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def batch(self, rows: np.ndarray) -> torch.Tensor:
        """(B,) int64."""
        import torch

        return torch.from_numpy(self.numbers[rows])


def probabilities(logits: np.ndarray) -> np.ndarray:
    """The softmax over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


class Classification(Task, Protocol):
    """One of C classes a row, from the (N, C) logits of a pass; what a task adds is `load`, `encode` and `example`."""

    labels: Literal["class"] = "class"
    metric: str = "accuracy"
    classifies: bool = True

    def groups(self, targets: Sequence[Any]) -> Sequence[Any]:
        return targets

    def number(self, data: Data) -> tuple[Data, tuple[str, ...]]:
        return labels.encode(data)

    def known(self, targets: Sequence[Any], names: Sequence[str], source: str) -> np.ndarray:
        number = {label: i for i, label in enumerate(names)}
        found = np.asarray([number.get(str(t), -1) for t in targets])
        if (found < 0).all():
            raise AffinageError(
                f"no label of {source} is one that this run knows ({', '.join(names[:5])}...): check --label-column"
            )
        return found

    def adopt(self, model: Any, processor: Any, names: Sequence[str]) -> Any:
        return pretrained.named(model, names)

    def aims(self, targets: Sequence[Any], rows: Rows, processor: Any, model: Any) -> ClassAims:
        return ClassAims(np.ascontiguousarray(targets))

    def loss(self, outputs: Any, targets: torch.Tensor, *, weights: torch.Tensor | None, smoothing: float) -> torch.Tensor:
        """Cross entropy of (B, C) logits, mean over the batch, in fp32."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs.logits.float(), targets, weight=weights, label_smoothing=smoothing)

    def answer(
        self, forward: Callable[..., Any], batch: Batch, lengths: np.ndarray, processor: Any, targets: Any = None
    ) -> np.ndarray:
        """(B, C) logits, float32."""
        return forward(**batch).logits.float().cpu().numpy()

    def score(self, answers: Answers, targets: Sequence[Any] | np.ndarray) -> dict[str, Any]:
        return scores(answers, np.asarray(targets))

    def rank(self, scores: Mapping[str, Any]) -> list[float]:
        """Accuracy, then the log loss (none where no label is known to train)."""
        return [scores[self.metric], -scores.get("log_loss", 0.0)]

    def shown(self, thing: Any) -> dict[str, Any]:
        """The columns in which the report shows an input: "text", "thumbnail" (PNG) or "audio" (FLAC)."""
        return {"text": str(thing)}

    def shows(self) -> Literal["every", "mistakes"]:
        """Of which rows: texts are kept of every row, what is larger only of the mistakes that were made with most confidence."""
        return "mistakes"

    def schema(self) -> Any:
        import pyarrow as pa

        return pa.schema(
            {
                "text": pa.string(),
                "thumbnail": pa.binary(),
                "audio": pa.binary(),
                "label": pa.string(),
                "prediction": pa.string(),
                "confidence": pa.float64(),
                "probabilities": pa.list_(pa.float32()),
            }
        )

    def table(self, answers: Answers, split: Split, names: Sequence[str]) -> Iterator[dict[str, Sequence[Any]]]:
        table = probabilities(answers)
        predicted = table.argmax(1)
        confidence = table[np.arange(len(predicted)), predicted]
        targets = np.asarray(split.targets)
        wrong = np.flatnonzero(predicted != targets)
        worst = set(wrong[np.argsort(-confidence[wrong])][:SHOWN].tolist())
        every = self.shows() == "every"
        for start in range(0, len(split), PART):
            part = range(start, min(start + PART, len(split)))
            here = slice(part.start, part.stop)
            shown = [self.shown(split.inputs[i]) if every or i in worst else {} for i in part]
            yield {
                **{name: [one.get(name) for one in shown] for name in ("text", "thumbnail", "audio")},
                "label": [names[t] if t >= 0 else None for t in targets[here]],
                "prediction": [names[p] for p in predicted[here]],
                "confidence": confidence[here].astype(np.float64),
                "probabilities": list(table[here].astype(np.float32)),
            }

    def said(self, answers: Answers, names: Sequence[str]) -> list[dict[str, Any]]:
        """For each row: `label`, its `score`, and the `scores` of all classes."""
        return [
            {
                "label": names[row.argmax()],
                "score": float(row.max()),
                "scores": dict(zip(names, map(float, row), strict=True)),
            }
            for row in probabilities(answers)
        ]
