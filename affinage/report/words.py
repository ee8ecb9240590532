"""How numbers and names are said, the same on the page, the card and the screen."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path, PureWindowsPath
from typing import Any

SHARES = {"accuracy", "macro_f1", "ece", "precision", "recall", "f1", "top5", "map", "map50"}  # said in percent

TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "log_loss": "log loss",
    "ece": "calibration error",
    "n": "rows",
}


def title(name: str) -> str:
    """`macro_f1` as "macro F1"."""
    return TITLES.get(name, name.replace("_", " "))


def share(value: float) -> str:
    """0.9731 as "97.3 %"; one more digit above 99 %, where it tells models apart; never rounded up to 100."""
    digits = 2 if 0.99 < abs(value) < 1 else 1
    if 0.9999 <= value < 1:
        return "> 99.99 %"
    return f"{100 * value:.{digits}f} %"


def number(name: str, value: Any) -> str:
    """A score as words: shares in percent, the rest with three digits."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if name in SHARES:
        return share(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def interval(scores: dict[str, Any], name: str) -> str:
    """The interval of a score, "96.1 % to 98.2 %", or ""."""
    ends = scores.get(f"{name}_interval")
    return f"{number(name, ends[0])} to {number(name, ends[1])}" if ends else ""


def apart(model: dict[str, Any]) -> str:
    """What to know of a folder whose head is in a file of its own, or ""."""
    if not model.get("head_file"):
        return ""
    return (
        f"transformers has no image classifier for {model.get('architecture', 'this encoder')}, so plain pipeline() cannot use "
        f"this folder: affinage.load can; AutoModel loads the encoder, and {model['head_file']} holds the head"
    )


def count(value: float | None) -> str:
    """22713216 as "22.7 M"."""
    if value is None:
        return "–"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:g}"


def duration(seconds: float | None) -> str:
    """95.2 as "1 min 35 s"."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def rate(value: float | None) -> str:
    """8e-05 as "8e-5"."""
    return "frozen" if value is None else re.sub(r"e([+-])0*", lambda m: "e" + m.group(1).replace("+", ""), f"{value:.2g}")


def name_of(source: str | None) -> str:
    """A Hub id as it is, a folder by its last name: a report that travels should not tell where it was made."""
    if not source:
        return "unknown"
    if hub_id(source):
        return source
    return PureWindowsPath(source).name or Path(source).resolve().name or source


def hub_id(source: str | None, revision: str | None = None) -> bool:
    """Whether a model's source names a Hub repository: a revision says so, else its form and that no such folder is here."""
    if not source or not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", source) or ".." in source or "--" in source:
        return False
    return revision is not None or not Path(source).exists()


def anatomy(parts: list[dict[str, Any]]) -> list[tuple[str, int, bool, float | None]]:
    """(addresses, parameters, trained, rate), neighbours that learn alike joined: `blocks.0` to `blocks.3` as "blocks.0–3"."""
    joined = []
    for (kind, trained, speed), group in groupby(
        parts, lambda p: (p["address"].split(".")[0], bool(p["trained"]), p.get("rate"))
    ):
        members = list(group)
        first, last = members[0]["address"], members[-1]["address"]
        name = first if first == last else f"{first}–{last.removeprefix(kind + '.')}"
        joined.append((name, sum(p["parameters"] for p in members), trained, speed))
    return joined


def cut(facts: dict[str, Any]) -> str:
    """Where a stage began and what that took; or why it went through the whole network, where it need not have."""
    address, why = facts.get("address"), facts.get("why")
    if not address:
        return ""
    if why:
        return f"not cut before {address}: {why}"
    size, seconds = (
        f"{facts['bytes'] / 1e6:,.1f} MB {'on the disk' if facts['kept'] == 'disk' else 'in memory'}",
        facts["seconds"],
    )
    done = "reused" if facts["reused"] else f"computed once in {duration(seconds)}"
    return f"cut before {address}: {share(facts['share'])} of each forward pass {done}, {size}"


def stages(plan: dict[str, Any]) -> str:
    """The plan's stages in one line: "head (solve), body (fit, 8 epochs)"."""
    said = []
    for stage in plan.get("stages", []):
        epochs = stage.get("epochs", 1)
        said.append(
            f"{stage['name']} ({stage['how']}" + (f", {epochs} epoch{'s' * (epochs != 1)})" if stage["how"] == "fit" else ")")
        )
    return ", ".join(said)
