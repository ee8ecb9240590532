"""`report.html`: one file that needs no network and no script, a pure function of the run folder."""

from __future__ import annotations

import base64
import json
import math
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from affinage.measure.classification import calibration
from affinage.report import detection, draw, words
from affinage.report.classes import classes
from affinage.report.folder import Predictions, Run, read
from affinage.report.headline import headline
from affinage.report.speech import player, speech
from affinage.report.style import STYLE
from affinage.report.training import costs, curves, learning
from affinage.report.words import label, share, text

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
    sections = [headline(run)]
    if run.predictions is not None and len(run.predictions.rows):
        p = run.predictions
        sections += [classes(p), mistakes(p), calibrated(p)]
    sections += detection.sections(run)
    sections.append(speech(run))
    sections += [curves(run), learning(run), costs(run), findings(run), settings(run)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none';img-src data:;media-src data:;style-src 'unsafe-inline'\">"
        f"<title>{escape(heading)} · affinage</title><style>{STYLE}</style></head><body><main>{''.join(sections)}"
        f"<footer>Made by affinage {text(run.facts.get('affinage', ''))} from run.json, records.jsonl and predictions.parquet "
        "in this folder; no model was run to make this page.</footer></main></body></html>\n"
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
        shown = _picture(row.get("thumbnail"), row["label"]) + player(row.get("audio"))
        if row.get("text") is not None:
            said = row["text"] if len(row["text"]) <= MOST_TEXT else row["text"][:MOST_TEXT] + " …"
            shown += f"<blockquote>{text(said)}</blockquote>"
        sure = "" if math.isnan(p.confidence[i]) else f", <span class=one>{share(p.confidence[i])} sure</span>"
        figures.append(
            f"<figure>{shown}<figcaption>said <b class=accent>{label(row['prediction'])}</b>{sure}<br>labelled <b>"
            f"{label(row['label'])}</b>"
            f"<small class=soft>{text(row['id'])}</small></figcaption></figure>"
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


def findings(run: Run) -> str:
    """What the data check found before anything was trained."""
    found = run.facts.get("data", {}).get("findings")
    if found is None:
        return ""
    if not found:
        return "<section><h2>The data check</h2><p>Found nothing to report.</p></section>"
    leaks = (run.facts.get("settings") or {}).get("leaks")
    done = {"drop": "; left out of training", "allow": "; kept, so the score flatters"}.get(str(leaks), "")
    items = "".join(
        f'<li><span class="{"soft" if f.get("severity") == "warning" else "loud"}">{text(f.get("severity", ""))}</span>'
        f"<span>{text(f.get('message', ''))}{done if f.get('severity') == 'leak' else ''}</span></li>"
        for f in found
    )
    named = '<p class="soft small">Every row named is in findings.csv.</p>' if (run.folder / "findings.csv").is_file() else ""
    return f'<section><h2>The data check</h2><ul class="found">{items}</ul>{named}</section>'


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
            f'<tr><th scope="row">{text(k)}</th><td><code>{text(_value(v))}</code></td></tr>'
            for k, v in values.items()
            if v is not None
        )
        tables.append(f'<div><h3>{heading}</h3><table class="list wide">{rows}</table></div>' if rows else "")
    stages = known.get("plan", {}).get("stages") or []
    plan = "".join(
        f'<tr><th scope="row">{text(s.get("name", ""))}</th><td><code>'
        f"{text(_value({k: v for k, v in s.items() if k != 'name'}))}</code></td></tr>"
        for s in stages
    )
    tables.append(f'<div><h3>Plan</h3><table class="list wide">{plan}</table></div>' if plan else "")
    return (
        f'<section><h2>To run it again</h2><details><summary>Settings, versions, hardware</summary><div class="two">'
        f"{''.join(tables)}</div></details></section>"
    )


# ------------------------------------------------------------------------------------------------------------ pieces
def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _picture(thumbnail: bytes | None, name: Any) -> str:
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
    return f'<img{tiny} alt="a {text(name)}" src="data:image/{kind};base64,{base64.b64encode(thumbnail).decode()}">'
