"""The first screen: did it work, how sure is that, and did tuning beat the frozen head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from affinage.measure.interval import wilson
from affinage.report import draw, words
from affinage.report.folder import Predictions, Run, metric
from affinage.report.words import count, duration, number, share, text


@dataclass(frozen=True)
class Candidate:
    """The best that a stage reached on validation; one of them was kept."""

    stage: str
    solved: bool  # on frozen features
    value: float
    step: int
    kept: bool


def headline(run: Run) -> str:
    """Task, model, the one number with its interval, and what it is to be compared with."""
    known, (split, scores) = run.facts, run.measured
    model, data, plan = known.get("model", {}), known.get("data", {}), known.get("plan", {})
    over = [known.get("task", ""), f"plan {plan['name']}" if plan.get("name") else "", str(known.get("created", ""))[:10]]
    out = [
        f'<header><div class="over">{text(" · ".join(filter(None, over)))}</div><h1>{text(words.name_of(model.get("source")))}'
        f' <span class="soft">on</span> {text(words.name_of(data.get("source")))}</h1>'
    ]
    if known.get("status") not in (None, "finished"):
        why = f" ({known['error']})" if known.get("error") else ""
        state = f"<b>{text(known['status'])}</b>, not finished{text(why)}"
        out.append(f'<p class="notice">This run is {state}: what follows is what is known so far.</p>')
    leaks = [f for f in data.get("findings") or [] if f.get("severity") == "leak"]
    if leaks and (known.get("settings") or {}).get("leaks") == "allow":
        out.append(f'<p class="notice"><b>The splits leak</b>, so the score flatters: {text(leaks[0].get("message", ""))}.</p>')
    if split:
        name, n = metric(scores), scores.get("n")
        between, what = words.interval(scores, name), words.heading(name)
        out.append(
            f'<div class="lead"><div><div class="big">{number(name, scores[name])}</div><div class="what">'
            f"<b>{what}</b> on {f'{n:,} {split} rows' if n else split}"
            + (f"<br>95 % interval {between}" if between else "")
            + f"</div></div><div>{verdict(run)}{_scores(run)}</div></div>"
        )
    else:
        out.append(
            '<p class="notice">Nothing has been measured: the run has no validation and no test scores. '
            f"{'Give labelled rows with --test, or run affinage evaluate.' if known.get('status') == 'finished' else ''}</p>"
        )
        out.append(f"{verdict(run)}{_scores(run)}")
    return "".join(out) + _facts(_rest(run, split, scores)) + "</header>"


def candidates(run: Run) -> list[Candidate]:
    """One a stage that was scored on validation, in order; the step of the best by accuracy, then by log loss."""
    stages = {s.get("name"): s for s in run.facts.get("plan", {}).get("stages", [])}
    name = metric(run.facts.get("validation") or {})
    scores: dict[str, dict[int, dict[str, float]]] = {}
    for one in run.records:
        if one.split == "validation":
            scores.setdefault(one.stage, {}).setdefault(one.step, {})[one.name] = one.value
    kept = words.stage_kept(run.facts).get("name")
    found = []
    for stage, steps in scores.items():
        sign = -1 if name in words.LOWER else 1
        # as the tasks rank: what comes second tells equal scores apart
        ranked = [
            (sign * s[name], -s.get("cer", 0.0), -s.get("log_loss", s.get("loss", 0.0)), -step)
            for step, s in steps.items()
            if name in s
        ]
        if ranked:
            value, _, _, step = max(ranked)
            found.append(Candidate(stage, words.alone(stages.get(stage, {})), sign * value, -step, stage == kept))
    return found


def verdict(run: Run) -> str:
    """In words: whether the score is better than no model, and which candidate was kept and why."""
    known, (split, scores) = run.facts, run.measured
    said = []
    baseline = majority(run.predictions) if run.predictions is not None and run.predictions.split == split else None
    ends = scores.get("accuracy_interval")
    if baseline is not None and ends and ends[0] <= baseline[1]:
        said.append(f"<b>No better than always answering “{text(baseline[0])}”</b>, within what {scores['n']:,} rows can tell.")
    found = candidates(run)
    kept = next((c for c in found if c.kept), None)
    others = [c for c in found if not c.kept]
    n = (known.get("validation") or {}).get("n", 0)
    frozen = next((c for c in found if c.solved), None)
    name = metric(known.get("validation") or {})
    better = min if name in words.LOWER else max
    if kept and frozen and others and frozen.value == better(c.value for c in found if not c.solved):
        winner = "frozen head" if kept.solved else "tuned network"
        said.append(
            f"<b>Tuning and the frozen head got the same {share(kept.value)}</b> on validation; "
            f"by {'its log loss' if name == 'accuracy' else 'what comes second'} the {winner} was kept."
        )
    elif kept and kept.solved and others:
        best = better(c.value for c in others)
        reached = f"reached {share(best)} on validation, the frozen head {share(kept.value)}"
        said.append(f"<b>Tuning did not help</b>, so the frozen head was kept: tuning {reached}.")
    elif kept and others:
        first = frozen or others[0]
        ends = (known.get("validation") or {}).get(f"{name}_interval")
        low, high = wilson(round(kept.value * n), n) if n and name == "accuracy" else ends or (kept.value, kept.value)
        luck = f" On {n:,} rows the difference may be luck." if low <= first.value <= high else ""
        said.append(
            f"<b>{'Tuning helped' if first.solved else 'The later stage was better'}</b>: {share(kept.value)} on validation, "
            f"where the {'frozen head' if first.solved else 'stage before'} reached {share(first.value)}.{luck}"
        )
    elif known.get("kept") and known.get("status") in (None, "finished"):
        how = "the best on validation" if found else "without a validation split to choose by"
        one = len(known.get("plan", {}).get("stages", [])) == 1 and words.alone(words.stage_kept(known))
        said.append("Only the head was fitted; the network stayed frozen." if one else f"Kept: {text(words.kept(known))}, {how}.")
    final, precision = (known.get("validation") or {}).get(name), (known.get("hardware") or {}).get("precision")
    if kept and final not in (None, kept.value) and precision != "fp32":
        said.append(f"While it learned it was measured in {text(precision)}; saved, in fp32, it gets {share(final)} there.")
    if split == "validation":
        said.append("This split also chose what was kept, so the number flatters; there is no test split.")
    return f"<p>{' '.join(said)}</p>" if said else ""


def majority(p: Predictions) -> tuple[str, float] | None:
    """(the most frequent class, the accuracy of always answering it)."""
    known = p.targets[p.targets >= 0]
    if not len(known):
        return None
    counts = np.bincount(known)
    return p.classes[int(counts.argmax())], float(counts.max() / len(p.targets))


def _scores(run: Run) -> str:
    """The baseline, the candidates and the result on one line from 0 to 100 %."""
    split, scores = run.measured
    name = metric(scores)
    rows: list[draw.Score] = []
    found = candidates(run) if name in words.SHARES else []
    n = (run.facts.get("validation") or {}).get("n", 0)
    p = run.predictions
    if p is not None and p.split == split and name == "accuracy" and (baseline := majority(p)):
        rows.append((f"always “{baseline[0]}”", split, baseline[1], None, "idle"))
    if not found:
        rows += _cross_validated(run)
    for one in found:
        ends = wilson(round(one.value * n), n) if n and name == "accuracy" else None
        label = "frozen head" if one.solved else "tuned" if len(found) < 3 else f"tuned, {one.stage}"
        label = "trained from nothing" if run.facts.get("plan", {}).get("fresh") else label
        note = f"validation, {n:,} rows" if n else "validation"
        rows.append((label, note + (" · kept" if one.kept else ""), one.value, ends, "kept" if one.kept else ""))
    if split == "test" and name in words.SHARES:
        n = scores.get("n")
        rows.append(("the result", f"test, {n:,} rows" if n else "test", scores[name], scores.get(f"{name}_interval"), "main"))
    return draw.forest(rows) if rows else ""


def _cross_validated(run: Run) -> list[draw.Score]:
    """The solved head's score on training rows that it was not fitted to: all there is without a validation split."""
    for stage in run.facts.get("stages") or []:
        inner = (stage.get("details") or {}).get("cross_validated") or {}
        if isinstance(inner.get("accuracy"), float):
            return [("frozen head", "cross-validated on train", inner["accuracy"], inner.get("accuracy_interval"), "")]
    return []


def _rest(run: Run, split: str, scores: dict[str, Any]) -> list[tuple[str, str]]:
    known = run.facts
    data, cost, rows = known.get("data", {}), known.get("cost") or {}, known.get("data", {}).get("rows") or {}
    rest = [
        (words.title(k), number(k, v))
        for k, v in scores.items()
        if k not in ("n", metric(scores)) and isinstance(v, (int, float)) and math.isfinite(v)
    ]
    rest += [("rows", " · ".join(f"{n:,} {name}" for name, n in rows.items()))] if rows else []
    rest += [("classes", f"{len(data['classes']):,}")] if data.get("classes") else []
    changed, total = words.learned(known)
    rest += [("learned", f"{count(changed)} of {count(total)}")] if total else []
    rest += [("drift of the features", f"{known['drift']:.3g}")] if known.get("drift") is not None else []
    rest += [("time", duration(cost.get("seconds")))] if cost else []
    return rest


def _facts(pairs: list[tuple[str, str]]) -> str:
    return '<dl class="facts">' + "".join(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in pairs) + "</dl>"
