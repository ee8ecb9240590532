"""What a detector did, as parts of the page: the worst pictures with all boxes; each class; precision and recall."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from affinage.boxes import Boxes
from affinage.errors import AffinageError
from affinage.measure import detection
from affinage.report import draw
from affinage.report.folder import Run, table
from affinage.report.words import label, share, text

MOST_PICTURES = 12
MOST_CURVES = 8  # classes with a plot of their own; of more, those with the most boxes
UNSEEN = -1


@dataclass(frozen=True)
class Found:
    """The N pictures of a split as they were answered."""

    split: str
    classes: tuple[str, ...]
    rows: list[dict[str, Any]]
    answers: list[dict[str, Any]]
    targets: list[Boxes]
    threshold: float  # on the score, where precision and recall are best together

    @classmethod
    def of(cls, run: Run) -> Found | None:
        """From predictions.parquet; None where there is none, or of another task."""
        if run.facts.get("task") != "object-detection":
            return None
        rows = table(run)
        split, scores = run.measured
        if not rows or not split:
            return None
        classes = tuple(run.facts.get("data", {}).get("classes") or ())
        number = {name: i for i, name in enumerate(classes)}
        answers, targets = [], []
        for row in rows:
            size = (int(row["width"]), int(row["height"]))
            true, said = row["true"] or [], row["said"] or []
            corners = np.array([one["box"] for one in said], np.float64).reshape(-1, 4) / np.array([*size, *size])
            answers.append(
                {
                    "boxes": corners.tolist(),
                    "scores": [one["score"] for one in said],
                    "classes": [number[one["class"]] for one in said],
                }
            )
            targets.append(
                Boxes(
                    np.array([number.get(one["class"], UNSEEN) for one in true], np.int64),
                    np.array([one["box"] for one in true], np.float64).reshape(-1, 4),
                    np.array([one["crowd"] for one in true], bool),
                    size,
                )
            )
        return cls(split, classes, rows, answers, targets, float(scores.get("threshold", 0.5)))


def sections(run: Run) -> list[str]:
    """All that the page shows of a detector; nothing where the run is none."""
    found = Found.of(run)
    return [pictures(found), by_class(found), curves(found)] if found is not None else []


def pictures(found: Found) -> str:
    """The pictures with the most mistakes that were kept, with every box."""
    looked = []
    for row, answer, truth in zip(found.rows, found.answers, found.targets, strict=True):
        right, seen = detection.matched(answer, truth, found.threshold)
        looked.append((int((seen == 0).sum()), int((right == 0).sum()), row, answer, truth, right, seen))
    missed, false = sum(one[0] for one in looked), sum(one[1] for one in looked)
    things = sum(int((one[6] >= 0).sum()) for one in looked)
    said = (
        f"<p>With boxes of score {found.threshold:.2f} or more, where precision and recall are best together, {missed:,} of "
        f"{things:,} things in {len(looked):,} {found.split} pictures are missed and {false:,} boxes are false. These pictures "
        "have the most of both.</p>"
    )
    key = (
        '<p class="soft small"><span class="key" style="background:#f4f1ea;border:1px solid var(--soft)"></span>found '
        '<span class="key" style="background:#ff7a2f;margin-left:1em"></span>missed (broken line) or false (full '
        "line); the name comes up when it is pointed at</p>"
    )
    order = sorted((one for one in looked if one[2].get("picture")), key=lambda one: -(one[0] + one[1]))[:MOST_PICTURES]
    figures = [_figure(found, *one) for one in order]
    return f'<section><h2>Worst pictures</h2>{said}{key}<div class="wrongs scenes">{"".join(figures)}</div></section>'


def _figure(
    found: Found, missed: int, false: int, row: dict[str, Any], answer: dict[str, Any], truth: Boxes, right: Any, seen: Any
) -> str:
    content = row["picture"]
    if content[:3] != b"\xff\xd8\xff":  # what is no JPEG by its first bytes is not shown
        return ""
    width, height = truth.size
    shapes = [
        _box(box, "found" if hit else "missed", name if hit == 0 else "")
        for box, hit, name in zip(truth.boxes, seen, _names(found, truth.classes), strict=True)
        if hit >= 0
    ]
    shapes += [
        _box(np.asarray(box) * [width, height, width, height], "false", f"{name} {score:.2f}")
        for box, hit, score, name in zip(answer["boxes"], right, answer["scores"], _names(found, answer["classes"]), strict=True)
        if hit == 0
    ]
    picture = base64.b64encode(content).decode()
    name = text(row["id"])
    return (
        f'<figure><div class="scene"><img alt="{name}" src="data:image/jpeg;base64,{picture}">'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" aria-label="boxes in {name}">'
        f"{''.join(shapes)}</svg></div><figcaption>{missed} missed, {false} false, {int((seen == 1).sum())} found"
        f"<small class=soft>{name}</small></figcaption></figure>"
    )


def _box(box: Sequence[float] | np.ndarray, kind: str, words: str) -> str:
    x0, y0, x1, y1 = (round(float(v), 1) for v in box)
    title = f"<title>{text(words)}</title>" if words else ""
    return f'<rect class="{kind}" x="{x0}" y="{y0}" width="{round(x1 - x0, 1)}" height="{round(y1 - y0, 1)}">{title}</rect>'


def _names(found: Found, kinds: Sequence[int] | np.ndarray) -> list[str]:
    return [found.classes[k] if k >= 0 else "(unseen class)" for k in kinds]


def by_class(found: Found) -> str:
    """Average precision, and what is found and false at the threshold, class by class."""
    try:
        scores = detection.scores(found.answers, found.targets)
    except AffinageError:  # the counting library is an extra; the other parts need none
        scores = {"ap": [], "ap50": []}
    things, hits, said = (np.zeros(len(found.classes) + 1, np.int64) for _ in range(3))
    for answer, truth in zip(found.answers, found.targets, strict=True):
        right, seen = detection.matched(answer, truth, found.threshold)
        kinds = np.asarray(answer["classes"], np.int64)
        np.add.at(things, truth.classes[seen >= 0], 1)
        np.add.at(hits, truth.classes[seen == 1], 1)
        np.add.at(said, kinds[right >= 0], 1)
    rows = []
    for k in np.argsort(-things[:-1], kind="stable").tolist():
        every, half = ((scores[name][k] if k < len(scores[name]) else None) for name in ("ap", "ap50"))
        cells = [half, every, hits[k] / things[k] if things[k] else None, hits[k] / said[k] if said[k] else None]
        numbers = "".join(f'<td class="n">{"–" if value is None else share(value)}</td>' for value in cells)
        rows.append(
            f'<tr><th scope="row">{label(found.classes[k])}</th><td class="n">{things[k]:,}</td>{numbers}'
            f'<td class="grow"><span class="bar on" style="width:{100 * (half or 0):.1f}%"></span></td></tr>'
        )
    head = "".join(f'<th class="n">{name}</th>' for name in ("boxes", "AP@.5", "AP@.5:.95", "found", "right of those said"))
    return (
        f'<section><h2>Class by class</h2><div class="scroll"><table class="list wide"><thead><tr><th>class</th>{head}<th></th>'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def curves(found: Found) -> str:
    """Precision over recall at an overlap of 0.5, a plot a class."""
    try:
        lines = detection.curves(found.answers, found.targets)
    except AffinageError as error:
        return f'<section><h2>Precision and recall</h2><p class="soft">{text(error)}</p></section>'
    counts = np.bincount(np.concatenate([b.classes[b.classes >= 0] for b in found.targets]), minlength=len(found.classes))
    chosen = [k for k in np.argsort(-counts, kind="stable").tolist() if k in lines][:MOST_CURVES]
    plots = []
    for k in chosen:
        some = lines[k] > 0
        line: list[draw.Line] = [("bold", detection.RECALLS[some], lines[k][some])]
        picture = draw.plot(
            line, name=f"precision over recall, {found.classes[k]}", x=(0, 1), y=(0, 1), percent=True, x_percent=True, square=True
        )
        plots.append(f"<div><h3>{label(found.classes[k])}</h3>{picture}</div>")
    if not plots:
        return ""
    return (
        '<section><h2>Precision and recall</h2><p class="soft small">Across: the share of things found. Up: the share of '
        "boxes that are right, as COCO draws it: at each recall the best that is still to come. A line ends where no more is "
        f'found.</p><div class="two">{"".join(plots)}</div></section>'
    )
