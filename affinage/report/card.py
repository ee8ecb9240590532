"""`README.md`: the model card, with the metadata that the Hugging Face Hub reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from affinage.report import words
from affinage.report.folder import facts, metric

HUB_METRICS = {"accuracy": "accuracy", "macro_f1": "f1"}  # our names, and the Hub's


def write(folder: Path) -> Path:
    """Write the card of a run into its folder, as `README.md`, and return its path.

    Raises:
        AffinageError: the folder holds no run.
    """
    path = Path(folder) / "README.md"
    path.write_text(card(facts(folder)), encoding="utf8")
    return path


def card(known: dict[str, Any]) -> str:
    """The card of a `run.json`, as Markdown under a YAML head. Only what was measured is said."""
    head, body = (
        metadata(known),
        "\n\n".join(filter(None, [_opening(known), _results(known), _training(known), _limits(known), _again(known)])),
    )
    return f"---\n{head}\n---\n\n{body}\n"


def metadata(known: dict[str, Any]) -> str:
    """The YAML head, written by `huggingface_hub` itself. https://huggingface.co/docs/hub/model-cards"""
    from huggingface_hub import EvalResult, ModelCardData

    model, data, plan = known.get("model", {}), known.get("data", {}), known.get("plan", {})
    source = model.get("source")
    # A model with fresh weights descends from nothing; a folder is no base that a reader could fetch.
    based = source if words.hub_id(source, model.get("revision")) and not plan.get("fresh") else None
    test, task = known.get("test") or {}, known.get("task", "")
    results = [
        EvalResult(
            task_type=task,
            dataset_type=words.name_of(data.get("source")),
            dataset_name=words.name_of(data.get("source")),
            dataset_split="test",
            metric_type=hub,
            metric_value=test[name],
            metric_name=words.title(name),
            metric_args={"average": "macro"} if name == "macro_f1" else None,
        )
        for name, hub in HUB_METRICS.items()
        if name in test
    ]
    tags = ["affinage", *filter(None, [task, plan.get("name")])]
    return ModelCardData(
        library_name="affinage" if words.apart(model) else "transformers",
        pipeline_tag=task or None,
        base_model=based,
        tags=list(dict.fromkeys(tags)),
        model_name=_name(known) if results else None,
        eval_results=results or None,
    ).to_yaml()


def _name(known: dict[str, Any]) -> str:
    model, data = (words.name_of(known.get(k, {}).get("source")) for k in ("model", "data"))
    return f"{model.rsplit('/', 1)[-1]} on {data}"


def _opening(known: dict[str, Any]) -> str:
    model, data, plan = known.get("model", {}), known.get("data", {}), known.get("plan", {})
    task = known.get("task", "")
    verb = "has the architecture of" if plan.get("fresh") else "is"
    how = "trained from fresh weights" if plan.get("fresh") else "adapted"
    classes = data.get("classes") or []
    shown = ", ".join(_text(c) for c in classes[:20]) + (f", and {len(classes) - 20} more" if len(classes) > 20 else "")
    return (
        f"# {_text(_name(known))}\n\nThis model {verb} {_text(words.name_of(model.get('source')))}, {how} for {_text(task)} on "
        f"{_text(words.name_of(data.get('source')))} with affinage "
        f"{_text(known.get('affinage', ''))}.\n\n"
        + (f"It tells {len(classes)} classes apart: {shown}.\n\n" if classes else "")
        + _loading(model, task)
    )


def _loading(model: dict[str, Any], task: str) -> str:
    """How to use the folder: with plain transformers, but for one whose head is in a file of its own."""
    if apart := words.apart(model):
        code = 'import affinage\n\nclassify = affinage.load("path/to/this/folder").predict'
        return f"{_text(apart)}.\n\n```python\n{code}\n```"
    name = re.sub(r"[^a-z-]", "", task)
    return f'```python\nfrom transformers import pipeline\n\nclassify = pipeline("{name}", model="path/to/this/folder")\n```'


def _results(known: dict[str, Any]) -> str:
    test, validation = known.get("test") or {}, known.get("validation") or {}
    scores, split = (test, "test") if metric(test) else (validation, "validation")
    if not metric(scores):
        return "## Results\n\nNothing has been measured."
    lines = ["## Results", ""]
    if split == "test":
        lines += [f"On {scores['n']:,} test rows, looked at once, at the end." if scores.get("n") else "On the test split.", ""]
    else:
        lines += [
            "On the validation split, which also chose what was kept: expect less on new data. There was no test split.",
            "",
        ]
    lines += ["| measure | value | 95 % interval |", "|---|---|---|"]
    for name, value in scores.items():
        if name != "n" and isinstance(value, (int, float)):
            lines.append(f"| {_text(words.title(name))} | {words.number(name, value)} | {words.interval(scores, name) or '–'} |")
    return "\n".join(lines)


def _training(known: dict[str, Any]) -> str:
    lines = ["## Training", ""]
    plan, cost, rows = known.get("plan", {}), known.get("cost") or {}, known.get("data", {}).get("rows") or {}
    if plan:
        lines.append(
            f"- plan: {_text(plan.get('name', ''))}: {_text(words.stages(plan))}"
            + (f"; low-rank updates of rank {plan['lora']}" if plan.get("lora") else "")
        )
    for name, parameters, trained, rate in words.anatomy(known.get("model", {}).get("anatomy") or []):
        lines.append(
            f"- {_text(name)}: {words.count(parameters)} parameters, "
            + (f"learning rate {words.rate(rate)}" if trained and rate else "trained" if trained else "frozen")
        )
    if known.get("kept"):
        lines.append(f"- kept: {_text(known['kept'])}")
    if rows:
        lines.append("- rows: " + ", ".join(f"{n:,} {_text(split)}" for split, n in rows.items()))
    if cost:
        lines.append(
            f"- cost: {words.duration(cost.get('seconds'))}, {words.duration(cost.get('cpu_seconds'))} of processor time"
        )
    return "\n".join(lines)


def _limits(known: dict[str, Any]) -> str:
    found = known.get("data", {}).get("findings") or []
    lines = [
        "## Limits",
        "",
        "Measured on the data above and nothing else. The licence is that of the base model and of the data: set it before "
        "you publish.",
    ]
    if found:
        lines += ["", "The data check found:", ""] + [
            f"- {_text(f.get('severity', ''))}: {_text(f.get('message', ''))}" for f in found
        ]
    return "\n".join(lines)


def _again(known: dict[str, Any]) -> str:
    versions = ", ".join(f"{_text(k)} {_text(v)}" for k, v in (known.get("versions") or {}).items())
    lines = [
        "## To run it again",
        "",
        f"Seed {_text(known.get('seed', ''))}; data fingerprint `{_code(known.get('data', {}).get('fingerprint', ''))}`.",
    ]
    if known.get("commit"):
        lines.append(f"Commit `{_code(known['commit'])}`.")
    if versions:
        lines.append(f"Versions: {versions}.")
    lines.append("Every setting is in `run.json`, the whole story in `report.html`.")
    return "\n".join(lines)


def _text(value: Any) -> str:
    """Anything as one line of Markdown that means only itself: no tag, link, table or emphasis."""
    line = " ".join(str(value).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~!])", r"\\\1", line)


def _code(value: Any) -> str:
    return re.sub(r"[^\w.:+-]", "", str(value))
