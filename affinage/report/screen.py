"""A run on one screen: with colour on a terminal, as plain lines when piped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from affinage.report import words
from affinage.report.folder import facts, metric

Pairs = list[tuple[str, str]]


def show(folder: Path) -> None:
    """Print the run in `folder`.

    Raises:
        AffinageError: the folder holds no run.
    """
    known = facts(folder)
    sections = summary(known)
    if not sys.stdout.isatty():
        for heading, pairs in sections:
            print(_plain(heading))
            for key, value in pairs:
                print(f"  {_plain(key)}: {_plain(value)}" if key else f"  {_plain(value)}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for i, (heading, pairs) in enumerate(sections):
        console.print(Text(_plain(heading), style="bold" if i == 0 else "bold dim"))
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for key, value in pairs:
            # Text, not str: a class called "[red]" must not be read as markup.
            table.add_row(
                Text(_plain(key)), Text(_plain(value), style="bold yellow" if i == 0 and key.startswith("test ") else "")
            )
        console.print(table)


def summary(known: dict[str, Any]) -> list[tuple[str, Pairs]]:
    """(heading, (name, value) lines) of a `run.json`, the result first. About 25 lines for any model."""
    model, data, plan = known.get("model", {}), known.get("data", {}), known.get("plan", {})
    heading = f"{words.name_of(model.get('source'))} on {words.name_of(data.get('source'))}"
    top: Pairs = [("status", str(known["status"]))] if known.get("status") not in (None, "finished") else []
    for split in ("test", "validation"):
        scores = known.get(split) or {}
        if name := metric(scores):
            between, n = words.interval(scores, name), scores.get("n")
            extra = (f"  (95 %: {between})" if between else "") + (f"  {n:,} rows" if n else "")
            top.append((f"{split} {words.title(name)}", words.number(name, scores[name]) + extra))
            others = [
                f"{words.title(k)} {words.number(k, v)}"
                for k, v in scores.items()
                if k not in (name, "n") and isinstance(v, (int, float))
            ]
            if split == "test" and others:
                top.append(("", ", ".join(others)))
    if known.get("error"):
        top.append(("error", str(known["error"])))
    elif not any(metric(known.get(split) or {}) for split in ("test", "validation")):
        mend = ": the data had no test and no validation rows (--validation 0.2 holds some out)"
        why = mend if known.get("status") == "finished" else ""
        top.append(("result", f"nothing was measured{why}"))
    if known.get("kept"):
        top.append(("kept", words.kept(known)))
    if known.get("drift") is not None:
        top.append(("drift", f"{known['drift']:.3g}"))
    if apart := words.apart(model):
        top.append(("loads with", apart))
    learned: Pairs = [("plan", f"{plan.get('name', '')}: {words.stages(plan)}")] if plan else []
    for part in words.anatomy(known):
        learned.append((part.name, f"{words.count(part.parameters)} parameters, {part.how}"))
    spent: Pairs = []
    for stage in known.get("stages") or []:
        cost, scores = stage.get("cost", {}), stage.get("validation") or {}
        reached = (
            f", validation {words.title(metric(scores))} {words.number(metric(scores), scores[metric(scores)])}"
            if metric(scores)
            else ""
        )
        spent.append(
            (
                stage["stage"],
                f"{words.duration(cost.get('seconds'))}, processor {words.duration(cost.get('cpu_seconds'))}{reached}",
            )
        )
        if cut := words.cut((known.get("cuts") or {}).get(stage["stage"]) or {}):
            spent.append(("", cut))
    if known.get("cost"):
        spent.append(
            (
                "whole run",
                f"{words.duration(known['cost'].get('seconds'))}, processor {words.duration(known['cost'].get('cpu_seconds'))}",
            )
        )
    classes, rows = data.get("classes") or [], data.get("rows") or {}
    table: Pairs = [("rows", ", ".join(f"{n:,} {split}" for split, n in rows.items()))] if rows else []
    if classes:
        table.append(("classes", f"{len(classes)}: " + ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")))
    found = data.get("findings") or []
    dropped = "; these were left out of training" if (known.get("settings") or {}).get("leaks") == "drop" else ""
    for one in found[:5]:
        severity = str(one.get("severity", ""))
        table.append((severity, str(one.get("message", "")) + (dropped if severity == "leak" else "")))
    table += [("", f"and {len(found) - 5} more findings, in report.html")] if len(found) > 5 else []
    sections = [
        (heading, top),
        ("what learned", learned),
        ("cost", spent),
        ("data", table),
    ]
    return [(name, pairs) for name, pairs in sections if pairs]


def _plain(value: str) -> str:
    """Without control characters: a label must not move the cursor or recolour the terminal."""
    return "".join(c for c in str(value).replace("\n", " ") if c.isprintable())
