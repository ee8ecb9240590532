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
    heading = " on ".join(words.name_of(known.get(key, {}).get("source")) for key in ("model", "data"))
    sections = [
        (heading, _result(known)),
        ("what learned", _learned(known)),
        ("cost", _spent(known)),
        ("data", _rows(known)),
    ]
    return [(name, pairs) for name, pairs in sections if pairs]


def _result(known: dict[str, Any]) -> Pairs:
    """How it ended: the scores, or why there are none."""
    pairs: Pairs = [("status", str(known["status"]))] if known.get("status") not in (None, "finished") else []
    for split in ("test", "validation"):
        pairs += _scores(split, known.get(split) or {})
    if known.get("error"):
        pairs.append(("error", str(known["error"])))
    elif not any(metric(known.get(split) or {}) for split in ("test", "validation")):
        mend = ": the data had no test and no validation rows (--validation 0.2 holds some out)"
        why = mend if known.get("status") == "finished" else ""
        pairs.append(("result", f"nothing was measured{why}"))
    if known.get("kept"):
        pairs.append(("kept", words.kept(known)))
    if known.get("drift") is not None:
        pairs.append(("drift", f"{known['drift']:.3g}"))
    if apart := words.apart(known.get("model", {})):
        pairs.append(("loads with", apart))
    return pairs


def _scores(split: str, scores: dict[str, Any]) -> Pairs:
    """The score that counts, with its interval; of the test the others, too."""
    name = metric(scores)
    if not name:
        return []
    between, n = words.interval(scores, name), scores.get("n")
    extra = (f"  (95 %: {between})" if between else "") + (f"  {n:,} rows" if n else "")
    pairs: Pairs = [(f"{split} {words.title(name)}", words.number(name, scores[name]) + extra)]
    others = [
        f"{words.title(k)} {words.number(k, v)}"
        for k, v in scores.items()
        if k not in (name, "n") and isinstance(v, (int, float))
    ]
    if split == "test" and others:
        pairs.append(("", ", ".join(others)))
    return pairs


def _learned(known: dict[str, Any]) -> Pairs:
    plan = known.get("plan", {})
    pairs: Pairs = [("plan", f"{plan.get('name', '')}: {words.stages(plan)}")] if plan else []
    return pairs + [(part.name, f"{words.count(part.parameters)} parameters, {part.how}") for part in words.anatomy(known)]


def _spent(known: dict[str, Any]) -> Pairs:
    """Time of each stage and of the whole run, and what each computed once."""
    pairs: Pairs = []
    for stage in known.get("stages") or []:
        scores = stage.get("validation") or {}
        name = metric(scores)
        reached = f", validation {words.title(name)} {words.number(name, scores[name])}" if name else ""
        pairs.append((stage["stage"], _took(stage.get("cost", {})) + reached))
        if cut := words.cut((known.get("cuts") or {}).get(stage["stage"]) or {}):
            pairs.append(("", cut))
        if seconds := (stage.get("details") or {}).get("compiling_seconds"):
            pairs.append(("", f"of it {words.duration(seconds)} of compiling (--compile)"))
    if known.get("cost"):
        pairs.append(("whole run", _took(known["cost"])))
    return pairs


def _took(cost: dict[str, Any]) -> str:
    return f"{words.duration(cost.get('seconds'))}, processor {words.duration(cost.get('cpu_seconds'))}"


def _rows(known: dict[str, Any]) -> Pairs:
    """The data: rows, classes, and the first of what was found wrong with them."""
    data = known.get("data", {})
    classes, rows, found = data.get("classes") or [], data.get("rows") or {}, data.get("findings") or []
    pairs: Pairs = [("rows", ", ".join(f"{n:,} {split}" for split, n in rows.items()))] if rows else []
    if classes:
        pairs.append(("classes", f"{len(classes)}: " + ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")))
    dropped = "; these were left out of training" if (known.get("settings") or {}).get("leaks") == "drop" else ""
    for one in found[:5]:
        severity = str(one.get("severity", ""))
        pairs.append((severity, str(one.get("message", "")) + (dropped if severity == "leak" else "")))
    return pairs + ([("", f"and {len(found) - 5} more findings, in report.html")] if len(found) > 5 else [])


def _plain(value: str) -> str:
    """Without control characters: a label must not move the cursor or recolour the terminal."""
    return "".join(c for c in str(value).replace("\n", " ") if c.isprintable())
