"""How it came about, as parts of the page: what was frozen and what learned, the curves, what each stage cost."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np

from affinage.report import draw, words
from affinage.report.folder import Run, metric
from affinage.report.headline import candidates
from affinage.report.words import count, duration, number, share, text

MOST_DOTS = 30  # epochs; more dots than that hide their curve


def learning(run: Run) -> str:
    """What was frozen and what trained: the network as a strip from input to output, and the same in numbers."""
    parts = words.anatomy(run.facts, join=False)
    if not parts:
        return ""
    learned, total = words.learned(run.facts)
    speeds = {p["address"]: p.get("rate") or 0.0 for p in run.facts["model"]["anatomy"]}
    fastest = max((speeds[p.name] for p in parts if p.name != "head"), default=0.0) or 1.0  # the head learns on another scale
    cells = []
    for part in parts:
        # From 30 %: the slowest that learns must not look frozen.
        depth = f' style="--s:{30 + 70 * min(1.0, speeds[part.name] / fastest):.0f}%"' if part.learned else ""
        tip = text(f"{part.name}: {count(part.parameters)} parameters, {part.how}")
        cells.append(
            f'<div class="{"on" if part.learned else "off"}"{depth} title="{tip}"><i></i>'
            f"<span>{text(part.name.removeprefix('blocks.'))}</span></div>"
        )
    rows = "".join(
        f'<tr class="{"on" if p.learned else "idle"}"><th scope="row"><code>{text(p.name)}</code></th>'
        f'<td class="n">{count(p.parameters)}</td><td class="n">{text(p.how)}</td></tr>'
        for p in words.anatomy(run.facts)
    )
    model, plan = run.facts["model"], run.facts.get("plan", {})
    pooling = f"{model['pooling']} pooling" if model.get("pooling") not in (None, "native") else ""
    what = ", ".join(filter(None, [model.get("architecture", ""), pooling]))
    back = " What tuning changed was put back, for the frozen head was better." if any(p.how == "put back" for p in parts) else ""
    lora = f" Learned as low-rank updates of rank {plan['lora']}." if plan.get("lora") and not back else ""
    fresh = " Its weights were drawn anew: only the architecture was reused." if plan.get("fresh") else ""
    portion = learned / (total or 1)
    rest = ", the rest stayed frozen" if learned < total and not back else ""
    return (
        f"<section><h2>What learned</h2><p>{text(what)}: <b class=accent>{count(learned)}</b> of {count(total)} parameters "
        f"({share(portion) if portion >= 0.001 else 'under 0.1 %'}) learned{rest}.{back}{lora}{fresh}</p>"
        f'<div class="net{" many" if len(parts) > 14 else ""}">{"".join(cells)}</div>'
        '<p class="soft small">From input to output; the stronger the colour, the higher the learning rate; grey is frozen.</p>'
        '<div class="scroll"><table class="list"><thead><tr><th>part</th><th class="n">parameters</th>'
        f'<th class="n">how</th></tr></thead><tbody>{rows}</tbody></table></div></section>'
    )


def curves(run: Run) -> str:
    """Training loss and the validation score, the stages one after the other."""
    offsets, total = _offsets(run)
    if not total:
        return ""
    series: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for one in run.records:
        series[one.split, one.name].append((offsets[one.stage] + one.step, one.value))
    marks = [(start, stage) for stage, start in offsets.items() if start > 0]
    name = metric(run.facts.get("validation") or {})
    if ("validation", name) not in series:
        name = next(
            (n for s, n in series if s == "validation" and n == "accuracy"), next((n for s, n in series if s == "validation"), "")
        )
    frozen = next((c.value for c in candidates(run) if c.solved), None)
    kept = next((c for c in candidates(run) if c.kept), None)
    pictures, legend = [], ["Across: optimizer steps."]
    for split, what, heading in (("train", "loss", "Training loss"), ("validation", name, f"Validation {words.title(name)}")):
        points = np.array(sorted(series.get((split, what), ())), dtype=float).reshape(-1, 2)
        if len(points) < 2:  # one point is a number, not a curve; the stages' table has it
            continue
        xs, ys = points[:, 0], points[:, 1]
        lines: list[draw.Line] = []
        if split == "validation" and frozen is not None:
            lines.append(("base", [0.0, total], [frozen, frozen]))
            legend.append("Dashed: the frozen head.")
        if split == "train" and len(xs) > 40:
            thin_x, thin_y = draw.thin(xs, ys)
            lines += [("faint", thin_x, thin_y), ("bold", thin_x, draw.smooth(thin_y))]
            top = max(float(np.quantile(ys, 0.995)), float(draw.smooth(thin_y).max()))  # one spike must not flatten the curve
        else:
            lines += [("bold", xs, ys)] + ([("dots", xs, ys)] if len(xs) <= MOST_DOTS else [])
            top = float(ys.max())
        if split == "validation" and kept is not None:
            lines.append(("dots-kept", [offsets[kept.stage] + kept.step], [kept.value]))
            legend.append("Large dot: what was kept.")
        low, high = float(ys.min()), top
        room = (high - low or abs(high) or 1.0) * 0.08
        low, high = (0.0 if split == "train" and 0 <= low < 0.5 * high else low - room), high + room
        if what in words.SHARES:
            low, high = max(low, 0.0), min(high, 1.0)
        lines = [(kind, x, np.clip(y, low, high)) for kind, x, y in lines]
        picture = draw.plot(lines, name=heading, x=(0.0, total), y=(low, high), percent=what in words.SHARES, marks=marks)
        pictures.append(f"<div><h3>{text(heading)}</h3>{picture}</div>")
    if not pictures:
        return ""
    return (
        f'<section><h2>How it learned</h2><div class="two">{"".join(pictures)}</div>'
        f'<p class="soft small">{" ".join(legend)}</p></section>'
    )


def costs(run: Run) -> str:
    """A row a stage: what it trained, what it cost, what it reached; then the work around the stages, and the sum."""
    stages = run.facts.get("stages") or []
    if not stages:
        return ""
    plans = {s.get("name"): s for s in run.facts.get("plan", {}).get("stages", [])}
    best = {c.stage: c.value for c in candidates(run)}
    whole, around = run.facts.get("cost") or {}, run.facts.get("cost_parts") or {}
    total = whole.get("seconds") or sum(s.get("cost", {}).get("seconds", 0.0) for s in stages) or 1.0
    spent = {"seconds": 0.0, "cpu_seconds": 0.0}

    def row(name: str, note: str, cost: dict[str, Any], trained: Any = None, reached: str = "", told: str = "") -> str:
        for key in spent:
            spent[key] += cost.get(key) or 0.0
        width = 100 * min(1.0, (cost.get("seconds") or 0.0) / total)
        return (
            f'<tr><th scope="row">{text(name)}<br><small>{text(note)}</small></th>'
            f'<td class="n">{count(trained) if trained else ""}</td><td class="n">{reached}</td>'
            f'<td class="n">{duration(cost.get("seconds"))}</td><td class="n">{duration(cost.get("cpu_seconds"))}</td>'
            f'<td class="grow"><span class="bar on" style="width:{width:.1f}%"></span>'
            f"<small>{text(told)}</small></td></tr>"
        )

    rows = []
    if "encoding" in around:
        rows.append(row("reading", "rows encoded once", around["encoding"]))
    for stage in stages:
        plan, details = plans.get(stage["stage"], {}), stage.get("details") or {}
        reached = stage.get("validation") or {}
        name = metric(reached)
        epochs = details.get("epochs") or plan.get("epochs", "")
        how = "solved" if plan.get("how") == "solve" else f"{epochs} epoch{'s' * (epochs != 1)}" if plan else ""
        told = " · ".join(
            f"{words.title(k)} {number('', v)}"
            for k, v in details.items()
            if k not in ("trained_parameters", "epochs", "worse_than_before")
            and isinstance(v, (int, float, str))
            and not (isinstance(v, float) and math.isnan(v))
        )
        told += " · put back" if details.get("worse_than_before") else ""
        value = best.get(stage["stage"], reached.get(name))
        reads = number(name, value) if value is not None else ""
        rows.append(row(stage["stage"], how, stage.get("cost", {}), details.get("trained_parameters"), reads, told))
    if "measuring" in around:
        rows.append(row("measuring", "every split, in fp32", around["measuring"]))
    left = {key: (whole.get(key) or 0.0) - value for key, value in spent.items()}
    if around and left["seconds"] > 0.05:
        rows.append(row("the rest", "drift, writing the model", left))
    if whole:
        rows.append(
            f'<tr class="sum"><th scope="row">all</th><td></td><td></td><td class="n">{duration(whole.get("seconds"))}</td>'
            f'<td class="n">{duration(whole.get("cpu_seconds"))}</td><td></td></tr>'
        )
    name = words.title(metric(stages[-1].get("validation") or {}))
    return (
        '<section><h2>What it cost</h2><div class="scroll"><table class="list wide costs"><thead><tr><th>stage</th>'
        f'<th class="n">trained</th><th class="n">{f"best validation {text(name)}" if name else ""}</th><th class="n">time</th>'
        f'<th class="n">processor</th><th></th></tr></thead><tbody>{"".join(rows)}</tbody></table></div></section>'
    )


def _offsets(run: Run) -> tuple[dict[str, float], float]:
    """(the step at which each stage begins when they are laid end to end, the last step of all)."""
    longest: dict[str, int] = {}
    for one in run.records:
        longest[one.stage] = max(longest.get(one.stage, 0), one.step)
    offsets, total = {}, 0.0
    for stage, steps in longest.items():
        offsets[stage] = total
        total += steps
    return offsets, total
