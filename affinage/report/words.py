"""How numbers and names are said, the same on the page, the card and the screen."""

from __future__ import annotations

import re
from html import escape
from itertools import groupby
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from affinage.progress import duration as duration
from affinage.starters import PREFIX

SHARES = {
    "accuracy",
    "macro_f1",
    "ece",
    "precision",
    "recall",
    "f1",
    "top5",
    "map",
    "map50",
    "map75",
    "wer",
    "cer",
    "exact",
}  # said in percent
LOWER = {"wer", "cer", "loss", "log_loss"}  # the lower, the better

TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "log_loss": "log loss",
    "ece": "calibration error",
    "wer": "word error rate",
    "cer": "character error rate",
    "exact": "without an error",
    "map": "mAP@.5:.95",
    "map50": "mAP@.5",
    "map75": "mAP@.75",
    "n": "rows",
}


def text(value: Any) -> str:
    """Anything as HTML text, safe between tags and inside quotes."""
    return escape(str(value), quote=True)


def label(value: Any) -> str:
    """A class name as HTML that may break after `_`, `/`, `:` and `-`: long names are made of words."""
    return re.sub(r"(?<=[_/:-])(?=\w)", "<wbr>", text(value))


def title(name: str) -> str:
    """`macro_f1` as "macro F1"."""
    return TITLES.get(name, name.replace("_", " "))


def heading(name: str) -> str:
    """The same at the beginning of a line: "Accuracy", but "mAP@.5" as it is."""
    said = title(name)
    return said if said[1:2].isupper() else said[:1].upper() + said[1:]


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


def rate(value: float | None) -> str:
    """8e-05 as "8e-5", 0.001 as "1e-3": one form, so that a column of rates can be compared at a glance."""
    if value is None:
        return "frozen"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def name_of(source: str | None) -> str:
    """A Hub id as it is, a folder by its last name: a report that travels should not tell where it was made."""
    if not source:
        return "unknown"
    if hub_id(source):
        return source
    return PureWindowsPath(source).name or Path(source).resolve().name or source


def hub_id(source: str | None, revision: str | None = None) -> bool:
    """Whether a model's source names a Hub repository: a revision says so, else its form and that no such folder is here."""
    if source and source.startswith(PREFIX):  # it came with the package
        return False
    if not source or not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", source) or ".." in source or "--" in source:
        return False
    return revision is not None or not Path(source).exists()


class Part(NamedTuple):
    """One address of the network, or neighbours that learned alike: `blocks.0` to `blocks.3` as "blocks.0–3"."""

    name: str
    parameters: int
    learned: bool  # in the network that was kept
    how: str  # "frozen", "solved", "rate 8e-5", or "put back" where it trained in vain


def anatomy(known: dict[str, Any], join: bool = True) -> list[Part]:
    """What each part of the network that was kept did; neighbours that differ in nothing but their rates are joined."""
    solved = alone(stage_kept(known))
    fitted = any(stage.get("how") == "fit" for stage in known.get("plan", {}).get("stages", []))
    lora = known.get("plan", {}).get("lora")
    found = []
    for part in known.get("model", {}).get("anatomy") or []:
        speed, trained, head = part.get("rate"), bool(part["trained"]), part["address"] == "head"
        if not trained:
            how = "frozen"
        elif solved:
            how = "put back" if not head else "solved" if stage_kept(known).get("how") == "solve" else f"rate {rate(speed)}"
        else:
            how = f"rate {rate(speed)}" if speed and fitted else "trained"
            how = f"low-rank, {how}" if lora and not head else how
        found.append(Part(part["address"], part["parameters"], trained and (head or not solved), how))
    if not join:
        return found
    joined = []
    for (kind, learned, _), group in groupby(found, lambda p: (p.name.split(".")[0], p.learned, p.how.split()[0])):
        members = list(group)
        first, last = members[0], members[-1]
        name = first.name if first is last else f"{first.name}–{last.name.removeprefix(kind + '.')}"
        how = first.how if first.how == last.how else f"{first.how} to {last.how.rpartition(' ')[2]}"
        joined.append(Part(name, sum(p.parameters for p in members), learned, how))
    return joined


def learned(known: dict[str, Any]) -> tuple[int, int]:
    """(parameters that learned in the network that was kept, all of its parameters)."""
    parts, name = anatomy(known), stage_kept(known).get("name")
    details: dict[str, Any] = next((s.get("details") or {} for s in known.get("stages") or [] if s.get("stage") == name), {})
    counted = details.get("trained_parameters")
    return counted or sum(p.parameters for p in parts if p.learned), sum(p.parameters for p in parts)


def alone(stage: dict[str, Any]) -> bool:
    """Whether the head alone learned in this stage: it was solved, or trained where it cannot be."""
    return stage.get("how") == "solve" or [row[0] for row in stage.get("rates") or [] if row[1] is not None] == ["head"]


def stage_kept(known: dict[str, Any]) -> dict[str, Any]:
    """The stage of the plan that left the network that was kept; empty where none is named."""
    name = str(known.get("kept") or "").partition(",")[0]
    return next((stage for stage in known.get("plan", {}).get("stages", []) if stage.get("name") == name), {})


def kept(known: dict[str, Any]) -> str:
    """What was kept, for a reader who knows no stage names: "body, epoch 3" as "the tuned network (body, epoch 3)"."""
    word, stage, plan = str(known.get("kept") or ""), stage_kept(known), known.get("plan", {})
    if not stage:
        return word
    if alone(stage):
        return f"the frozen network with a {'solved' if stage.get('how') == 'solve' else 'trained'} head ({word})"
    return f"the {'network trained from nothing' if plan.get('fresh') else 'tuned network'} ({word})"


def cut(facts: dict[str, Any]) -> str:
    """Where a stage began and what that took; or why it went through the whole network, where it need not have."""
    address, why = facts.get("address"), facts.get("why")
    if not address:
        return f"nothing computed once: {why}" if facts.get("blocks") == 0 else ""
    if why:
        return f"not cut before {address}: {why}"
    where = {"disk": "on the disk", "memory": "in memory", "card": "in the GPU's memory"}[facts["kept"]]
    size, seconds = f"{facts['bytes'] / 1e6:,.1f} MB {where}", facts["seconds"]
    if views := facts.get("views"):
        size = f"{views} augmented views of each row, {size}"
    done = "reused" if facts["reused"] else f"computed once in {duration(seconds)}"
    if foreseen := facts.get("estimate"):
        done += f" ({duration(foreseen['seconds'])} foreseen, to save {duration(foreseen['saved_seconds'])})"
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
