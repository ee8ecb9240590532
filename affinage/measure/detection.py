"""Scores of a detector: average precision as COCO defines it (by faster-coco-eval), where it is right, and where it misses.

An answer for one picture is {"boxes": (m, 4) x0 y0 x1 y1 as shares of it, "scores": (m,), "classes": (m,)}, in lists; the truth
is a `Boxes` with class numbers, -1 for a class that the model never saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from affinage.boxes import Boxes
from affinage.errors import AffinageError

MOST = 100  # boxes a picture that count, the surest first, as COCO has it
RIGHT = 0.5  # overlap (intersection over union) from which a box is on its thing
DRAWS = 200  # bootstrap resamples: the 2.5 % point then rests on 5 draws; they are most of the cost
MOST_DRAWN = 60_000  # boxes in all up to which an interval is drawn: some seconds
RECALLS = np.linspace(0, 1, 101)

Answer = Mapping[str, Any]


def needed() -> Any:
    """The module that does the counting.

    Raises:
        AffinageError: it is not installed.
    """
    try:
        import faster_coco_eval
    except ImportError:
        raise AffinageError(
            "object detection is scored with faster-coco-eval, which is not installed: pip install 'affinage[detection]'"
        ) from None
    return faster_coco_eval


def scores(answers: Sequence[Answer], targets: Sequence[Boxes]) -> dict[str, Any]:
    """What a report says of N answers, as plain floats that JSON can hold. N = 0 gives {"n": 0}.

    `map` (mean over classes and over overlaps of 0.50, 0.55, ... 0.95, as COCO), `map50`, `map75`; 95 % `_interval` of the first
    two (percentile bootstrap over pictures, up to 60,000 boxes); `ap` and `ap50`, lists by class number, None where the truth has
    none of it; `f1` with `precision` and `recall` at the `threshold` where it is highest (overlap 0.5, all classes together); and
    `n` pictures. A class that the model never saw counts with an AP of 0. Crowds count for nothing and against nothing.
    """
    if len(answers) != len(targets):
        raise ValueError(f"{len(answers)} answers for {len(targets)} pictures")
    if not targets:
        return {"n": 0}
    whole = _evaluated(answers, targets)
    precision = whole.eval["precision"][:, :, :, 0, 0]  # (overlaps, recalls, classes)
    every, half = _means(precision)
    result: dict[str, Any] = {"map": every, "map50": half}
    if sum(len(answer["scores"]) for answer in answers) <= MOST_DRAWN:
        result["map_interval"], result["map50_interval"] = _intervals(whole, len(targets))
    result["map75"] = _mean(precision[5])
    known = len(whole.params.catIds) - 1  # the last one stands for what the model never saw
    result["ap"] = [_mean(precision[:, :, k], None) for k in range(known)]
    result["ap50"] = [_mean(precision[0, :, k], None) for k in range(known)]
    return {**result, **best(answers, targets), "n": len(targets)}


def curves(answers: Sequence[Answer], targets: Sequence[Boxes]) -> dict[int, np.ndarray]:
    """By class number: (101,) precision at the recalls 0, 0.01, ... 1, at an overlap of 0.5; never rising, as COCO has it."""
    whole = _evaluated(answers, targets)
    precision = whole.eval["precision"][0, :, :, 0, 0]
    return {k: precision[:, k] for k in range(precision.shape[1] - 1) if (precision[:, k] >= 0).all()}


def overlaps(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, m) intersection over union of (n, 4) and (m, 4) boxes x0 y0 x1 y1."""
    low = np.maximum(some[:, None, :2], others[None, :, :2])
    high = np.minimum(some[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    area = [np.clip(b[:, 2:] - b[:, :2], 0, None).prod(-1) for b in (some, others)]
    return shared / np.maximum(area[0][:, None] + area[1][None, :] - shared, 1e-12)


def matched(answer: Answer, truth: Boxes, least: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(right (m,), found (n,)) of one picture: which of the boxes said with a score of `least` or more are on a thing of their
    class, the surest choosing first, and which things have such a box: 1, or 0; -1 for what does not count (crowds, boxes below).
    """
    said, kinds, sure = _arrays(answer, truth.size)
    right, found = np.where(sure >= least, 0, -1), np.where(truth.crowd, -1, 0)
    near = overlaps(said, truth.boxes)
    for i in np.argsort(-sure, kind="stable"):
        if sure[i] < least:
            break
        can = (kinds[i] == truth.classes) & (near[i] >= RIGHT)
        free = can & (found == 0)
        if free.any():
            j = int(np.argmax(np.where(free, near[i], -1)))
            right[i] = found[j] = 1
        elif (can & truth.crowd).any():
            right[i] = -1
    return right, found


def best(answers: Sequence[Answer], targets: Sequence[Boxes]) -> dict[str, float]:
    """The `threshold` on the score where `f1` is highest, all classes together, with `precision` and `recall` there."""
    sure, right, things = [], [], 0
    for answer, truth in zip(answers, targets, strict=True):
        hit, found = matched(answer, truth)
        sure.append(np.asarray(answer["scores"], np.float64)[hit >= 0])
        right.append(hit[hit >= 0])
        things += int((found >= 0).sum())
    score, hits = np.concatenate(sure), np.concatenate(right)
    if not len(score) or not things:
        return {"f1": 0.0, "precision": 0.0, "recall": 0.0, "threshold": 0.5}
    order = np.argsort(-score, kind="stable")
    score, got = score[order], np.cumsum(hits[order])
    said = np.arange(1, len(score) + 1)
    f1 = 2 * got / (said + things)
    f1[:-1][score[:-1] == score[1:]] = -1  # a threshold cannot part equals
    at = int(f1.argmax())
    return {
        "f1": float(f1[at]),
        "precision": float(got[at] / said[at]),
        "recall": float(got[at] / things),
        "threshold": float(score[at]),
    }


def _arrays(answer: Answer, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(boxes (m, 4) in pixels, classes (m,), scores (m,))."""
    boxes = np.asarray(answer["boxes"], np.float64).reshape(-1, 4) * np.array([*size, *size], np.float64)
    return boxes, np.asarray(answer["classes"], np.int64), np.asarray(answer["scores"], np.float64)


def _evaluated(answers: Sequence[Answer], targets: Sequence[Boxes]) -> Any:
    """COCO's evaluation, matched and accumulated; its last category stands for classes that the model never saw."""
    module = needed()
    numbers = [int(c) for truth in targets for c in truth.classes] + [int(c) for answer in answers for c in answer["classes"]]
    count = max(numbers, default=-1) + 1
    images: list[dict[str, Any]] = []
    things: list[dict[str, Any]] = []
    said: list[dict[str, Any]] = []
    for i, (answer, truth) in enumerate(zip(answers, targets, strict=True)):
        images.append({"id": i, "width": truth.size[0], "height": truth.size[1]})
        for kind, (x0, y0, x1, y1), many in zip(truth.classes.tolist(), truth.boxes.tolist(), truth.crowd.tolist(), strict=True):
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": int(many)}
            things.append({"id": len(things) + 1, "image_id": i, "category_id": kind if kind >= 0 else count, **box})
        boxes, kinds, sure = _arrays(answer, truth.size)
        for j in np.argsort(-sure, kind="stable")[:MOST].tolist():
            x0, y0, x1, y1 = boxes[j].tolist()
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "score": float(sure[j])}
            said.append({"image_id": i, "category_id": int(kinds[j]), **box})
    categories = [{"id": k, "name": str(k)} for k in range(count + 1)]
    truth_of = module.COCO({"images": images, "annotations": things, "categories": categories})
    whole = module.COCOeval_faster(truth_of, truth_of.loadRes(said), "bbox", separate_eval=True)
    whole.params.areaRng, whole.params.areaRngLbl, whole.params.maxDets = [[0, 1e10]], ["all"], [MOST]
    whole.evaluate()
    whole.accumulate()
    return whole


def _mean(precision: np.ndarray, empty: float | None = 0.0) -> Any:
    """Mean over what is there; -1 stands for a class of which the truth has none."""
    some = precision[precision > -1]
    return float(some.mean()) if some.size else empty


def _means(precision: np.ndarray) -> tuple[float, float]:
    return _mean(precision), _mean(precision[0])


def _intervals(whole: Any, pictures: int) -> tuple[list[float], list[float]]:
    """95 % intervals of `map` and `map50` when the pictures are drawn again, with replacement: matched once, accumulated anew."""
    import faster_coco_eval.faster_eval_api_cpp as counting

    cells, draw = whole._evalImgs_cpp, np.random.default_rng(0)  # cells: class by class, picture by picture
    kinds = len(cells) // pictures
    seen = []
    for _ in range(DRAWS):
        rows = draw.integers(pictures, size=pictures).tolist()
        again = counting.COCOevalAccumulate(whole._paramsEval, [cells[k * pictures + i] for k in range(kinds) for i in rows])
        seen.append(_means(np.asarray(again["precision"])[:, :, :, 0, 0]))
    low, high = np.percentile(np.array(seen), [2.5, 97.5], axis=0)
    return [float(low[0]), float(high[0])], [float(low[1]), float(high[1])]
