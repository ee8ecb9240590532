"""Speech, as parts of the page: the worst utterances to listen to, with what became of each word, and what is missed most."""

from __future__ import annotations

import base64
import json
from collections import Counter
from typing import Any

from affinage.measure.speech import alignment, edits
from affinage.report.folder import Run, table
from affinage.report.words import share, text

MOST = 12  # utterances
WORDS = 15  # of the table of words


def speech(run: Run) -> str:
    """Nothing for a run whose predictions hold no transcripts."""
    rows = table(run)
    if not rows or "heard" not in rows[0]:
        return ""
    return worst(rows, run.measured[0]) + missed(rows)


def player(sound: bytes | None) -> str:
    """A recording as a player that needs no network. What is not a FLAC by its first bytes is not shown."""
    if not sound or sound[:4] != b"fLaC":
        return ""
    return f'<audio controls preload="none" src="data:audio/flac;base64,{base64.b64encode(sound).decode()}"></audio>'


def worst(rows: list[dict[str, Any]], split: str) -> str:
    """The utterances with the most wrong words."""
    wrong = [edits(row["said"].split(), row["heard"].split()) for row in rows]
    order = sorted((i for i in range(len(rows)) if wrong[i]), key=lambda i: -wrong[i])[:MOST]
    if not order:
        return f"<section><h2>Worst utterances</h2><p>None of {len(rows):,} {split} utterances has a wrong word.</p></section>"
    figures = []
    for i in order:
        row = rows[i]
        sure = f", {share(row['confidence'])} sure" if row.get("confidence") is not None else ""
        figures.append(
            f"<figure>{player(row.get('audio'))}<div class=aligned>{aligned(row['said'], row['heard'])}</div>"
            f"<figcaption>{wrong[i]} of {len(row['said'].split())} words wrong{sure}<br>{spoken(row.get('words'))}"
            f"<small class=soft>{text(row['id'])}</small></figcaption></figure>"
        )
    share_wrong = sum(w > 0 for w in wrong)
    return (
        f"<section><h2>Worst utterances</h2><p>{share_wrong:,} of {len(rows):,} {split} utterances have a wrong word. "
        'Above what was said, below what was heard; <span class="soft">–</span> stands for a word that is missing there.</p>'
        f'<div class="wrongs">{"".join(figures)}</div></section>'
    )


def aligned(said: str, heard: str) -> str:
    """Word above word; what differs in colour."""
    cells = [
        f'<span class="{"" if a == b else "accent"}">{text(a or "–")}<br>{text(b or "–")}</span>'
        for a, b in alignment(said.split(), heard.split())
    ]
    return "".join(cells)


def spoken(words: str | None) -> str:
    """When each word was heard: "zero 0.12–0.48 s"."""
    try:
        timed = json.loads(words or "[]")
    except ValueError:
        return ""
    said = [f"{text(word)} {float(start):.2f}–{float(end):.2f} s" for word, start, end, *_ in timed[:12]]
    return f'<small class="soft">{", ".join(said)}{", …" if len(timed) > 12 else ""}</small><br>' if said else ""


def missed(rows: list[dict[str, Any]]) -> str:
    """The words that go wrong most often, and what they become."""
    total: Counter[str] = Counter()
    gone: Counter[str] = Counter()
    became: dict[str, Counter[str]] = {}
    for row in rows:
        for a, b in alignment(row["said"].split(), row["heard"].split()):
            if a is not None:
                total[a] += 1
                if a != b:
                    gone[a] += 1
                    became.setdefault(a, Counter())[b or "(nothing)"] += 1
    if not gone:
        return ""
    lines = "".join(
        f'<tr><th scope="row">{text(word)}</th><td class="n">{count:,} of {total[word]:,}</td>'
        f"<td>{text(', '.join(f'{other} ({n})' for other, n in became[word].most_common(3)))}</td></tr>"
        for word, count in gone.most_common(WORDS)
    )
    return (
        "<section><h2>What it mishears</h2>"
        f'<div class="scroll"><table class="list"><thead><tr><th>said</th><th class="n">wrong</th><th>heard</th></tr></thead>'
        f"<tbody>{lines}</tbody></table></div></section>"
    )
