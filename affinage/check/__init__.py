"""Looks at the data before anything trains: leaks between splits, duplicates, broken files, labels that cannot be learnt."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from affinage.types import Data, Finding, Split

from .content import LONG, LONG_SOUND, Seen, images, sounds, texts
from .duplicates import DUPLICATE, Row, across, leaders, within
from .targets import in_boxes, in_labels

__all__ = ["check", "clean", "leaders", "left_out", "readable", "summary", "without_leaks", "write"]

UNREADABLE = "unreadable"
REASONS = 5  # that a line names
LOOK = {"image": images, "audio": sounds, "text": texts}


def check(data: Data) -> list[Finding]:
    """All that was found, errors first, then leaks, then warnings. Images are decoded, in threads; targets are class names."""
    found: list[Finding] = []
    skipped: list[tuple[Row, str]] = [(("", row, "", ""), why) for row, why in data.unreadable]
    seen: dict[str, Seen] = {}
    lengthy: list[Row] = []
    for name, split in data.splits():
        seen[name], broken, long = _looked(split, data)
        skipped += [((name, split.ids[i], "", ""), why) for i, why in broken]
        lengthy += [(name, split.ids[i], "", "") for i in long]
    if skipped:
        reasons = tuple(why for _, why in skipped)
        found.append(Finding(UNREADABLE, "warning", left_out(reasons), tuple(row for row, _ in skipped), reasons))
    if data.only != "train":
        message = f"{data.source} has one split alone, called {data.only}: it is trained on, and nothing is left to test on"
        found.append(Finding("one-split", "warning", message))
    for name, _ in data.splits():
        if not seen[name].exact.any():
            first = next((f"; the first, {row[1]}: {why}" for row, why in skipped if row[0] == name), "")
            message = f"{name} of {data.source} has no readable row{first}; mend it or give others (affinage check names all)"
            found.append(Finding("empty-split", "error", message, ((name, "", "", ""),)))
    found += across(data, seen)
    found += within(data, seen)
    if data.labels == "class":
        found += in_labels(data)
    elif data.labels == "boxes":
        found += in_boxes(data)
    if lengthy:
        message = f"{len(lengthy)} texts have over {LONG:,} characters; what a model cannot hold is cut"
        if data.kind == "audio":
            message = f"{len(lengthy)} recordings are longer than {LONG_SOUND:.0f} seconds; shorter ones are learnt from sooner"
        found.append(Finding("long-text" if data.kind == "text" else "long-recording", "warning", message, tuple(lengthy)))
    order = ("error", "leak", "warning")
    return sorted(found, key=lambda finding: order.index(finding.severity))


def left_out(reasons: Sequence[str]) -> str:
    """One line for these rows, a reason a row: how many of each, without what differs from file to file."""
    counted = Counter(re.sub(r" \(.*", "", why) for why in reasons).most_common()
    said = "; ".join(f"{count} {why}" for why, count in counted[:REASONS])
    if more := sum(count for _, count in counted[REASONS:]):
        said += f"; {more} for other reasons"
    return f"rows that cannot be read and are left out: {len(reasons)} ({said})"


def _looked(split: Split, data: Data) -> tuple[Seen, list[tuple[int, str]], list[int]]:
    """(what is compared, (row, why) of those that cannot be read or teach nothing, the long rows)."""
    seen, broken, long = LOOK[data.kind](split)
    if data.labels == "transcript":
        gone = {i for i, _ in broken}
        mute = (i for i, said in enumerate(split.targets) if i not in gone and not any(c.isalnum() for c in said))
        broken = [*broken, *((i, "no letter or digit in its transcript") for i in mute)]
    return seen, broken, long


def readable(data: Data, name: str) -> tuple[Split, list[str]]:
    """(the rows of the split `name` that can be read, why each other one cannot)."""
    split = dict(data.splits())[name]
    _, broken, _ = _looked(split, data)
    gone = {i for i, _ in broken}
    kept = split.take(np.array([i for i in range(len(split)) if i not in gone], np.int64)) if gone else split
    return kept, [why for _, why in broken]


def clean(data: Data, findings: Sequence[Finding]) -> Data:
    """The data without the rows that `check` could not read."""
    gone = {row[:2] for finding in findings if finding.kind == UNREADABLE for row in finding.rows}
    return _without(data, gone)


def without_leaks(data: Data, findings: Sequence[Finding]) -> Data:
    """The data without the rows of train that stand in validation or test too, and of validation that stand in test."""
    gone = {row[:2] for finding in findings if finding.kind == DUPLICATE for row in finding.rows}
    return _without(data, gone)


def summary(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """For the report: kind, severity, message and the number of rows named."""
    return [{"kind": f.kind, "severity": f.severity, "message": f.message, "rows": len(f.rows)} for f in findings]


def write(findings: Sequence[Finding], path: Path) -> None:
    """A CSV with one line for each row named, and one for a finding that names none."""
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(("kind", "severity", "split", "id", "other_split", "other_id", "message"))
        for finding in findings:
            rows = finding.rows or (("", "", "", ""),)
            reasons = finding.reasons or (finding.message,) * len(rows)
            lines.writerows((finding.kind, finding.severity, *row, why) for row, why in zip(rows, reasons, strict=True))


def _without(data: Data, gone: set[tuple[str, str]]) -> Data:
    splits = {}
    for name, split in data.splits():
        if any(other == name for other, _ in gone):
            stays = np.fromiter(((name, row) not in gone for row in split.ids), bool, len(split))
            splits[name] = split.take(np.flatnonzero(stays))
    return data.with_splits(**splits)
