"""Targets that cannot be learnt, or not well: classes, and boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from affinage import boxes
from affinage.types import Data, Finding

SKEW = 10  # rows of the largest class for each of the smallest


# ------------------------------------------------------------------------------------------------------- labels, lengths
def in_labels(data: Data) -> list[Finding]:
    found = []
    counts = Counter(str(label) for label in data.train.targets)
    if len(counts) == 1:
        message = f"all {len(data.train)} rows of train have the label '{next(iter(counts))}'; "
        message += "expected two labels or more: check the label column"
        found.append(Finding("one-class", "error", message))
    for name, split in data.splits():
        rows = tuple((name, row, "", "") for row, label in zip(split.ids, split.targets, strict=True) if str(label) not in counts)
        if rows and counts:
            new = sorted({str(label) for label in split.targets} - counts.keys())
            message = f"{len(rows)} rows of {name} have labels that train does not have ({_few(new)})"
            found.append(Finding("label-only-in-test", "warning", message, rows))
    rare = {label for label, count in counts.items() if count < 2}
    if rare:
        pairs = zip(data.train.ids, data.train.targets, strict=True)
        rows = tuple(("train", row, "", "") for row, label in pairs if str(label) in rare)
        message = f"{len(rare)} of {len(counts)} labels have one row in train ({_few(sorted(rare))})"
        found.append(Finding("rare-label", "warning", message, rows))
    if len(counts) > 1:
        (most, high), (least, low) = counts.most_common()[0], counts.most_common()[-1]
        if high > SKEW * low:
            message = f"train has {high} rows of '{most}' and {low} of '{least}', {high / low:.0f} to 1"
            found.append(Finding("imbalance", "warning", message))
    return found


# ----------------------------------------------------------------------------------------------------------------- boxes
FAULTS = {  # what `boxes.cleaned` counted -> what became of it
    boxes.CLIPPED: "that leave their picture and are clipped to it",
    boxes.OUTSIDE: "that lie outside their picture and are left out",
    boxes.EMPTY: "that have no area and are left out",
    boxes.BROKEN: "that are not finite numbers and are left out",
}


def in_boxes(data: Data) -> list[Finding]:
    """What was mended or left out, what is not taught, pictures without boxes, and classes that cannot be learnt."""
    found = []
    for name, split in data.splits():
        for fault, words in FAULTS.items():
            counts = [dict(target.faults).get(fault, 0) for target in split.targets]
            rows = tuple((name, row, "", "") for row, count in zip(split.ids, counts, strict=True) if count)
            if rows:
                message = f"boxes of {name} {words}: {sum(counts)} (pictures: {len(rows)})"
                found.append(Finding(f"box-{fault}", "warning", message, rows))
        crowds = sum(int(target.crowd.sum()) for target in split.targets)
        if crowds:
            message = f"boxes of {name} that are crowds or hard to tell: {crowds}, not taught, neither right nor wrong in scores"
            found.append(Finding("box-crowd", "warning", message))
        rows = tuple((name, row, "", "") for row, target in zip(split.ids, split.targets, strict=True) if not len(target))
        if rows:
            message = (
                f"{len(rows)} of {len(split)} pictures of {name} have no box: they are kept, as ones where nothing is to be found"
            )
            found.append(Finding("no-boxes", "warning", message, rows))
    counted = Counter(str(kind) for target in data.train.targets for kind in target.classes[~target.crowd])
    if not counted:
        found.append(Finding("empty-split", "error", "train has no box in any picture: nothing can be learnt"))
        return found
    for name, split in data.splits():
        new = [{str(kind) for kind in target.classes} - counted.keys() for target in split.targets]
        rows = tuple((name, row, "", "") for row, kinds in zip(split.ids, new, strict=True) if kinds)
        if rows:
            named = _few(sorted(set().union(*new)))
            message = f"{len(rows)} pictures of {name} have boxes of classes that train does not have ({named})"
            found.append(Finding("label-only-in-test", "warning", message, rows))
    rare = sorted(kind for kind, count in counted.items() if count < 2)
    if rare:
        message = f"{len(rare)} of {len(counted)} classes have one box in train ({_few(rare)})"
        found.append(Finding("rare-label", "warning", message))
    (most, high), (least, low) = counted.most_common()[0], counted.most_common()[-1]
    if high > SKEW * low:
        message = f"train has {high} boxes of '{most}' and {low} of '{least}', {high / low:.0f} to 1"
        found.append(Finding("imbalance", "warning", message))
    return found


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
