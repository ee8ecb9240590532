"""`report.html`: one file that needs no network and no script, a pure function of the run folder."""

from __future__ import annotations

import base64
import json
import math
from collections import defaultdict
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from affinage.measure.classification import calibration, confusion, per_class
from affinage.report import draw, words
from affinage.report.folder import Predictions, Run, metric, read
from affinage.report.style import STYLE
from affinage.report.words import count, duration, number, share

MOST_IN_MATRIX = 30  # classes; a larger matrix cannot be read on any screen
MOST_MISTAKES = 12
MOST_TEXT = 420  # characters of a mistake's text


def write(folder: Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    Raises:
        AffinageError: the folder holds no run.
    """
    path = Path(folder) / "report.html"
    path.write_text(html(read(folder)), encoding="utf8")
    return path


def html(run: Run) -> str:
    """The page. The policy in its head forbids scripts and every fetch, whatever a label says."""
    heading = words.name_of(run.facts.get("model", {}).get("source"))
    sections = [headline(run), learning(run), curves(run), costs(run)]
    if run.predictions is not None and len(run.predictions.rows):
        p = run.predictions
        sections += [mistakes(p), calibrated(p), matrix(p), by_class(p)]
    sections += [findings(run), settings(run)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none';img-src data:;style-src 'unsafe-inline'\">"
        f"<title>{escape(heading)} · affinage</title><style>{STYLE}</style></head><body><main>{''.join(sections)}"
        f"<footer>Made by affinage {_text(run.facts.get('affinage', ''))} from run.json, records.jsonl and predictions.parquet "
        "in this folder; no model was run to make this page.</footer></main></body></html>\n"
    )


def headline(run: Run) -> str:
    """Task, model, and the one number with its interval."""
    known, (split, scores) = run.facts, run.measured
    model, data, plan = known.get("model", {}), known.get("data", {}), known.get("plan", {})
    over = " · ".join(
        filter(
            None, [known.get("task", ""), f"plan {plan['name']}" if plan.get("name") else "", str(known.get("created", ""))[:10]]
        )
    )
    out = [f'<header><div class="over">{_text(over)}</div><h1>{_text(words.name_of(model.get("source")))}']
    out.append(f' <span class="soft">on</span> {_text(words.name_of(data.get("source")))}</h1>')
    if known.get("status") not in (None, "finished"):
        out.append(
            f'<p class="notice">This run is <b>{_text(known["status"])}</b>, not finished: what follows is what is known so '
            f"far.</p>"
        )
    if split:
        name = metric(scores)
        note = "" if split == "test" else " This split also chose what was kept, so the number flatters; there is no test split."
        between = words.interval(scores, name)
        baseline = _majority(run.predictions) if run.predictions is not None and run.predictions.split == split else None
        said = [
            f"<b>{words.title(name).capitalize()}</b> on {scores.get('n', 0):,} {split} rows"
            if scores.get("n")
            else f"<b>{words.title(name)}</b>"
        ]
        said.append(f", 95 % interval {between}." if between else ".")
        if baseline is not None and name == "accuracy":
            said.append(f" Always answering “{_text(baseline[0])}” gives {share(baseline[1])}.")
        strip = (
            _range(scores[name], scores.get(f"{name}_interval"), baseline[1] if baseline else None)
            if name in words.SHARES
            else ""
        )
        out.append(
            f'<div class="lead"><div class="big">{number(name, scores[name])}</div><div>{"".join(said)}{note}{strip}</div></div>'
        )
    else:
        out.append('<p class="notice">Nothing has been measured: the run has no validation and no test scores.</p>')
    rest = [
        (words.title(k), number(k, v))
        for k, v in scores.items()
        if k not in ("n", metric(scores)) and isinstance(v, (int, float))
    ]
    cost, rows = known.get("cost", {}), data.get("rows", {})
    rest += [("kept", str(known["kept"]))] if known.get("kept") else []
    rest += [("classes", f"{len(data['classes']):,}")] if data.get("classes") else []
    rest += [(f"{split} rows", f"{n:,}") for split, n in rows.items()]
    rest += [("time", duration(cost.get("seconds"))), ("processor time", duration(cost.get("cpu_seconds")))] if cost else []
    rest += [("drift of the features", f"{known['drift']:.3g}")] if known.get("drift") is not None else []
    return "".join(out) + _facts(rest) + "</header>"


def learning(run: Run) -> str:
    """What was frozen and what trained: a bar an address, its length the parameters, its colour whether it learned."""
    parts = run.facts.get("model", {}).get("anatomy") or []
    if not parts:
        return ""
    largest = max(p["parameters"] for p in parts) or 1
    total = sum(p["parameters"] for p in parts) or 1
    trained = sum(p["parameters"] for p in parts if p["trained"])
    rows = []
    for part in parts:
        on = bool(part["trained"])
        rows.append(
            f'<tr class="{"on" if on else "idle"}"><th scope="row"><code>{_text(part["address"])}</code></th>'
            f'<td class="grow"><span class="bar{" on" if on else ""}" '
            f'style="width:{100 * part["parameters"] / largest:.1f}%"></span></td>'
            f'<td class="n">{count(part["parameters"])}</td><td class="n">'
            f"{words.rate(part.get('rate')) if on else 'frozen'}</td></tr>"
        )
    model = run.facts["model"]
    what = ", ".join(filter(None, [model.get("architecture", ""), f"{model['pooling']} pooling" if model.get("pooling") else ""]))
    lora = run.facts.get("plan", {}).get("lora")
    extra = f" Learned as low-rank updates of rank {lora}." if lora else ""
    start = " Its weights were drawn anew: only the architecture was reused." if run.facts.get("plan", {}).get("fresh") else ""
    rest = "; the rest stayed as it was" if trained < total else ""
    return (
        f"<section><h2>What learned</h2><p>{_text(what)}: <b class=accent>{count(trained)}</b> of {count(total)} parameters "
        f"({share(trained / total)}) learned{rest}.{extra}{start}</p>"
        '<div class="scroll"><table class="list wide"><thead><tr><th>part</th><th></th><th class="n">parameters</th><th '
        'class="n">rate</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
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
    pictures = []
    for split, what, heading in (("train", "loss", "Training loss"), ("validation", name, f"Validation {words.title(name)}")):
        points = np.array(sorted(series.get((split, what), ())), dtype=float).reshape(-1, 2)
        if len(points) < 2:  # one point is a number, not a curve; the stages' table has it
            continue
        xs, ys = points[:, 0], points[:, 1]
        lines: list[draw.Line] = []
        if split == "train" and len(xs) > 40:
            thin_x, thin_y = draw.thin(xs, ys)
            lines += [("faint", thin_x, thin_y), ("bold", thin_x, draw.smooth(thin_y))]
            top = max(float(np.quantile(ys, 0.995)), float(draw.smooth(thin_y).max()))  # one spike must not flatten the curve
        else:
            lines += [("bold", xs, ys)] + ([("dots", xs, ys)] if len(xs) <= MOST_IN_MATRIX else [])
            top = float(ys.max())
        low, high = float(ys.min()), top
        room = (high - low or abs(high) or 1.0) * 0.08
        low, high = (0.0 if split == "train" and 0 <= low < 0.5 * high else low - room), high + room
        if what in words.SHARES:
            low, high = max(low, 0.0), min(high, 1.0)
        lines = [(kind, x, np.clip(y, low, high)) for kind, x, y in lines]
        picture = draw.plot(lines, name=heading, x=(0.0, total), y=(low, high), percent=what in words.SHARES, marks=marks)
        pictures.append(f"<div><h3>{_text(heading)}</h3>{picture}</div>")
    if not pictures:
        return ""
    return (
        f'<section><h2>How it learned</h2><div class="two">{"".join(pictures)}</div><p class="soft small">Across: '
        f"optimizer steps.</p></section>"
    )


def costs(run: Run) -> str:
    """A row a stage: what it trained, what it cost, what it reached."""
    stages = run.facts.get("stages") or []
    if not stages:
        return ""
    plans = {s.get("name"): s for s in run.facts.get("plan", {}).get("stages", [])}
    rows = []
    for stage in stages:
        plan, cost, reached = plans.get(stage["stage"], {}), stage.get("cost", {}), stage.get("validation") or {}
        details = stage.get("details") or {}
        name = metric(reached)
        how = "solved" if plan.get("how") == "solve" else f"{plan.get('epochs', '')} epochs" if plan else ""
        told = " · ".join(
            f"{words.title(k)} {number('', v)}"
            for k, v in details.items()
            if k != "trained_parameters" and isinstance(v, (int, float, str)) and not (isinstance(v, float) and math.isnan(v))
        )
        rows.append(
            f'<tr><th scope="row">{_text(stage["stage"])}<br><small>{_text(how)}</small></th>'
            f'<td class="n">{count(details.get("trained_parameters"))}</td>'
            f'<td class="n">{duration(cost.get("seconds"))}</td><td class="n">{duration(cost.get("cpu_seconds"))}</td>'
            f'<td class="n">{number(name, reached.get(name))}</td><td><small>{_text(told)}</small></td></tr>'
        )
    name = words.title(metric(stages[-1].get("validation") or {})) or "score"
    best = ", the best on validation" if run.facts.get("validation") else ""
    kept = f"<p>Kept: <b>{_text(run.facts['kept'])}</b>{best}.</p>" if run.facts.get("kept") else ""
    return (
        f'<section><h2>Stages and their cost</h2>{kept}<div class="scroll"><table class="list wide"><thead><tr><th>stage</th>'
        f'<th class="n">trained</th><th class="n">time</th><th class="n">processor</th><th class="n">validation '
        f"{_text(name)}</th><th>details</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def mistakes(p: Predictions) -> str:
    """The wrong answers given with the most confidence: label errors in the data gather here."""
    wrong = np.flatnonzero(~p.right)
    if not len(wrong):
        return f"<section><h2>Mistakes</h2><p>None of {len(p.rows):,} {p.split} rows.</p></section>"
    order = wrong[np.argsort(-np.nan_to_num(p.confidence[wrong], nan=-1.0), kind="stable")][:MOST_MISTAKES]
    pictures = any(p.rows[i].get("thumbnail") for i in order)
    figures = []
    for i in order:
        row = p.rows[i]
        shown = _picture(row.get("thumbnail"), row["label"])
        if row.get("text") is not None:
            text = row["text"] if len(row["text"]) <= MOST_TEXT else row["text"][:MOST_TEXT] + " …"
            shown += f"<blockquote>{_text(text)}</blockquote>"
        sure = "" if math.isnan(p.confidence[i]) else f", <span class=one>{share(p.confidence[i])} sure</span>"
        figures.append(
            f"<figure>{shown}<figcaption>said <b class=accent>{_text(row['prediction'])}</b>{sure}<br>labelled <b>"
            f"{_text(row['label'])}</b>"
            f"<small class=soft>{_text(row['id'])}</small></figcaption></figure>"
        )
    return (
        f"<section><h2>Worst mistakes</h2><p>{len(wrong):,} of {len(p.rows):,} {p.split} rows are wrong. These are the ones "
        f"it was surest of; "
        f'some may be labelled wrongly.</p><div class="wrongs{" pictures" if pictures else ""}">{"".join(figures)}</div>'
        f"</section>"
    )


def calibrated(p: Predictions) -> str:
    """Whether 90 % sure means right nine times in ten."""
    known = np.isfinite(p.confidence)
    if not known.any():
        return ""
    confidence, right = p.confidence[known], p.right[known]
    stated, observed, rows = calibration(confidence, right)
    error = float((rows * np.abs(stated - observed)).sum() / rows.sum())
    gap = float(confidence.mean() - right.mean())
    verdict = (
        "about as sure as it should be"
        if abs(gap) < 0.01
        else f"{100 * abs(gap):.1f} points {'over' if gap > 0 else 'under'}-confident"
    )
    many = rows >= 10  # fewer rows than that say little: drawn faint, and not joined
    few = (rows > 0) & ~many
    lines: list[draw.Line] = [
        ("base", [0, 1], [0, 1]),
        ("bold", stated[many], observed[many]),
        ("dots", stated[many], observed[many]),
        ("dots-few", stated[few], observed[few]),
    ]
    picture = draw.plot(lines, name="calibration", x=(0, 1), y=(0, 1), percent=True, x_percent=True, square=True)
    return (
        f'<section><h2>Does it know when it knows?</h2><div class="two"><div><p>On average it is {share(confidence.mean())} '
        f"sure and "
        f"{share(right.mean())} right: <b>{verdict}</b>. Expected calibration error {share(error)} ({len(rows)} bins).</p>"
        '<p class="soft small">Across: how sure it says it is. Up: how often it is right. The dashed line is perfect '
        "calibration; faint dots "
        f"stand for fewer than 10 rows.</p></div>{picture}</div></section>"
    )


def matrix(p: Predictions) -> str:
    """The confusion matrix, or, with too many classes to read one, the pairs most often confused."""
    classes = len(p.classes)
    table = confusion(p.guesses, p.targets, classes)
    if not table[classes].any():
        table = table[:classes]
    if classes <= MOST_IN_MATRIX:
        shown = draw.heat(table, p.classes)
        key = (
            '<p class="soft small"><span class="key" style="background:var(--soft)"></span>right '
            '<span class="key" style="background:var(--accent);margin-left:1em"></span>wrong; the darker, the larger the '
            "share of its row.</p>"
        )
        return f"<section><h2>What it takes for what</h2>{key}{shown}</section>"
    return (
        f"<section><h2>What it takes for what</h2><p>The pairs most often confused, of {classes} classes.</p>"
        f"{_pairs(p, table)}</section>"
    )


def by_class(p: Predictions) -> str:
    """Precision, recall and F1 a class; with many classes the weakest first and the rest folded."""
    found = per_class(p.guesses, p.targets, len(p.classes))

    def rows(order: np.ndarray) -> str:
        out = []
        for i in order:
            none = found["support"][i] == 0
            cells = "".join(
                f'<td class="n">{"–" if none and k != "precision" else share(found[k][i])}</td>'
                for k in ("precision", "recall", "f1")
            )
            width = 100 * found["f1"][i]
            out.append(
                f'<tr><th scope="row">{_text(p.classes[i])}</th><td class="n">{found["support"][i]:,}</td>{cells}'
                f'<td class="grow"><span class="bar on" style="width:{width:.1f}%"></span></td></tr>'
            )
        head = "".join(f'<th class="n">{h}</th>' for h in ("rows", "precision", "recall", "F1"))
        return (
            f'<div class="scroll"><table class="list wide"><thead><tr><th>class</th>{head}<th></th></tr></thead>'
            f"<tbody>{''.join(out)}</tbody></table></div>"
        )

    every = np.arange(len(p.classes))
    if len(every) <= MOST_IN_MATRIX:
        return f"<section><h2>Class by class</h2>{rows(every)}</section>"
    some = np.flatnonzero(found["support"])
    weakest = some[np.argsort(found["f1"][some], kind="stable")][:15]
    return (
        f"<section><h2>Class by class</h2><p>The {len(weakest)} weakest of {len(every)}.</p>{rows(weakest)}"
        f"<details><summary>All {len(every)} classes</summary>{rows(every)}</details></section>"
    )


def findings(run: Run) -> str:
    """What the data check found before anything was trained."""
    found = run.facts.get("data", {}).get("findings")
    if found is None:
        return ""
    if not found:
        return "<section><h2>The data check</h2><p>Found nothing to report.</p></section>"
    items = "".join(
        f'<li><span class="{"soft" if f.get("severity") == "warning" else "loud"}">{_text(f.get("severity", ""))}</span>'
        f"<span>{_text(f.get('message', ''))}</span></li>"
        for f in found
    )
    return f'<section><h2>The data check</h2><ul class="found">{items}</ul></section>'


def settings(run: Run) -> str:
    """All that is needed to run it again, folded."""
    known = run.facts
    model, data = known.get("model", {}), known.get("data", {})
    # Paths among the settings are cut to their last name.
    chosen = {k: words.name_of(v) if isinstance(v, str) and "/" in v else v for k, v in (known.get("settings") or {}).items()}
    groups: dict[str, dict[str, Any]] = {
        "Identity": {
            "affinage": known.get("affinage"), "commit": known.get("commit"), "seed": known.get("seed"),
            "created": known.get("created"),
            "model revision": model.get("revision"), "data fingerprint": data.get("fingerprint"),
        },
        "Settings": chosen,
        "Versions": known.get("versions") or {},
        "Hardware": known.get("hardware") or {},
    }  # fmt: skip
    tables = []
    for heading, values in groups.items():
        rows = "".join(
            f'<tr><th scope="row">{_text(k)}</th><td><code>{_text(_value(v))}</code></td></tr>'
            for k, v in values.items()
            if v is not None
        )
        tables.append(f'<div><h3>{heading}</h3><table class="list wide">{rows}</table></div>' if rows else "")
    stages = known.get("plan", {}).get("stages") or []
    plan = "".join(
        f'<tr><th scope="row">{_text(s.get("name", ""))}</th><td><code>'
        f"{_text(_value({k: v for k, v in s.items() if k != 'name'}))}</code></td></tr>"
        for s in stages
    )
    tables.append(f'<div><h3>Plan</h3><table class="list wide">{plan}</table></div>' if plan else "")
    return (
        f'<section><h2>To run it again</h2><details><summary>Settings, versions, hardware</summary><div class="two">'
        f"{''.join(tables)}</div></details></section>"
    )


# ------------------------------------------------------------------------------------------------------------ pieces
def _text(value: Any) -> str:
    """Anything as HTML text, safe between tags and inside quotes."""
    return escape(str(value), quote=True)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _facts(pairs: list[tuple[str, str]]) -> str:
    return '<dl class="facts">' + "".join(f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in pairs) + "</dl>"


def _range(value: float, ends: list[float] | None, baseline: float | None) -> str:
    """The score, its interval and the baseline (a grey stroke) on a line from 0 to 100 %."""
    shade = f'<u style="left:{100 * ends[0]:.2f}%;width:{100 * (ends[1] - ends[0]):.2f}%"></u>' if ends else ""
    grey = f'<s style="left:{100 * baseline:.2f}%" title="always the most frequent class"></s>' if baseline is not None else ""
    return f'<div class="range"><i></i>{grey}{shade}<b style="left:{100 * value:.2f}%"></b><span>0</span><span>100 %</span></div>'


def _majority(p: Predictions) -> tuple[str, float] | None:
    known = p.targets[p.targets >= 0]
    if not len(known):
        return None
    counts = np.bincount(known)
    return p.classes[int(counts.argmax())], float(counts.max() / len(p.targets))


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


def _picture(thumbnail: bytes | None, label: Any) -> str:
    """A thumbnail as an inline picture. What is not a PNG or a JPEG by its first bytes is not shown."""
    if not thumbnail:
        return ""
    kind = "png" if thumbnail[:8] == b"\x89PNG\r\n\x1a\n" else "jpeg" if thumbnail[:3] == b"\xff\xd8\xff" else ""
    if not kind:
        return ""
    from PIL import Image

    try:
        with Image.open(BytesIO(thumbnail)) as image:  # reads the header alone
            tiny = " class=tiny" if max(image.size) <= 48 else ""
    except OSError:
        return ""
    return f'<img{tiny} alt="a {_text(label)}" src="data:image/{kind};base64,{base64.b64encode(thumbnail).decode()}">'


def _pairs(p: Predictions, table: np.ndarray) -> str:
    """The 20 largest cells off the diagonal."""
    names = [*p.classes, "(unseen class)"]
    off = table.copy()
    np.fill_diagonal(off[: len(p.classes)], 0)
    order = np.argsort(-off, axis=None, kind="stable")[:20]
    rows = []
    for i, j in zip(*np.unravel_index(order, off.shape), strict=True):
        if off[i, j]:
            part = off[i, j] / table[i].sum()
            rows.append(
                f'<tr><th scope="row">{_text(names[i])}</th><td>{_text(p.classes[j])}</td><td class="n">{off[i, j]:,}</td>'
                f'<td class="n">{share(part)}</td><td class="grow"><span class="bar on" style="width:{100 * part:.1f}%">'
                f"</span></td></tr>"
            )
    if not rows:
        return "<p>None: no row is wrong.</p>"
    return (
        '<div class="scroll"><table class="list wide"><thead><tr><th>labelled</th><th>said</th><th class="n">rows</th><th '
        'class="n">of the class</th>'
        f"<th></th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
