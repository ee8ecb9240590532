"""Pictures as HTML and SVG text. Labels are HTML placed in percent around the SVG, so that they stay readable at any width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

MOST_POINTS = 400  # of a curve: more than one a pixel tells nothing

Line = tuple[str, Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]  # (css class, x, y)
Score = tuple[str, str, float, Sequence[float] | None, str]  # (name, note, value, interval, css class)


def plot(
    lines: Sequence[Line],
    *,
    name: str,
    x: tuple[float, float],
    y: tuple[float, float],
    percent: bool = False,
    x_percent: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    square: bool = False,
) -> str:
    """A line plot over the box x times y. A line of class `dots...` is drawn as points; `marks` are named verticals."""
    (left, right), (low, high) = x, y
    wide, tall = (right - left) or 1.0, (high - low) or 1.0

    def at(px: float, py: float) -> str:
        return f"{100 * (px - left) / wide:.2f} {100 - 100 * (py - low) / tall:.2f}"

    drawn, words = [], []
    for tick in ticks(low, high):
        height = 100 - 100 * (tick - low) / tall
        drawn.append(f'<path class="grid" d="M0 {height:.2f}H100"/>')
        words.append(f'<span class="ytick" style="top:{height:.2f}%">{tick_text(tick, percent)}</span>')
    for tick in ticks(left, right, 2 if square else 5):
        place = 100 * (tick - left) / wide
        side = " first" if place < 4 else " last" if place > 96 else ""
        words.append(f'<span class="xtick{side}" style="left:{place:.2f}%">{tick_text(tick, x_percent)}</span>')
    for place, word in marks:
        across = 100 * (place - left) / wide
        drawn.append(f'<path class="mark" d="M{across:.2f} 0V100"/>')
        side = "right:" + f"{100 - across:.2f}%" if across > 60 else f"left:{across:.2f}%"
        words.append(f'<span class="markword" style="{side}">{escape(word)}</span>')
    for kind, xs, ys in lines:
        points = [at(px, py) for px, py in zip(xs, ys, strict=True)]
        if not points:
            continue
        # A line of no length with round ends is a dot that stays round when the picture is stretched.
        path = "".join(f"M{p}h0" for p in points) if kind.startswith("dots") else "M" + "L".join(points)
        drawn.append(f'<path class="{kind}" d="{path}"/>')
    picture = (
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{escape(name)}">{"".join(drawn)}</svg>'
    )
    return f'<div class="plot{" square" if square else ""}"><div class="canvas">{picture}{"".join(words)}</div></div>'


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within [low, high], at most `most` + 1 of them."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float, percent: bool) -> str:
    """A tick's label: without needless digits."""
    if percent:
        return f"{100 * value:.4g} %"
    return f"{value / 1000:.4g}k" if abs(value) >= 10_000 else f"{value:.4g}"


def thin(xs: np.ndarray, ys: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points: the means of equal runs of neighbours."""
    if len(xs) <= most:
        return xs, ys
    edges = np.linspace(0, len(xs), most + 1).astype(int)[:-1]
    sizes = np.diff(np.append(edges, len(xs)))
    return np.add.reduceat(xs, edges) / sizes, np.add.reduceat(ys, edges) / sizes


def smooth(ys: np.ndarray) -> np.ndarray:
    """A running mean, forgetting with a memory of a twentieth of the curve, corrected at its start."""
    keep = 1 - 1 / max(1.0, len(ys) / 20)
    total = weight = 0.0
    out = np.empty(len(ys))
    for i, value in enumerate(ys):
        total, weight = keep * total + value, keep * weight + 1
        out[i] = total / weight
    return out


def heat(counts: np.ndarray, classes: Sequence[str]) -> str:
    """A confusion matrix (C or C + 1, C) as a table: truth down, prediction across, shaded by the share of the truth."""
    names = list(classes) + ["(unseen class)"] * (len(counts) - len(classes))
    size = " numbers" if len(classes) <= 12 else " small" if len(classes) <= 40 else " tiny"
    short = ' class="short"' if all(len(c) <= 3 for c in classes) else ""  # upright where that fits
    head = "".join(f'<th scope="col"{short} title="{escape(c)}"><span>{escape(c)}</span></th>' for c in classes)
    body = []
    for i, (name, row) in enumerate(zip(names, counts, strict=True)):
        total = max(int(row.sum()), 1)
        cells = []
        for j, value in enumerate(row):
            if not value:  # most cells of a large matrix: kept short
                cells.append("<td></td>")
                continue
            part = value / total
            kind = ("right" if i == j else "wrong") + (" deep" if part > 0.5 else " mid" if part > 0.3 else "")
            # Square root: a few mistakes among many rows must still be seen.
            tip = f"{name} → {classes[j]}: {value} ({100 * part:.1f} %)"
            text = f"{value:,}" if size == " numbers" else ""
            cells.append(f'<td class="{kind}" style="--s:{100 * math.sqrt(part):.0f}%" title="{escape(tip)}">{text}</td>')
        body.append(f'<tr><th scope="row" title="{escape(name)}">{escape(name)}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="scroll"><table class="heat{size}"><thead><tr><th class="corner">truth ↓ &nbsp;prediction →</th>'
        f"{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def forest(rows: Sequence[Score]) -> str:
    """Scores with their intervals, one below the other on the same line from 0 to 100 %."""
    drawn = []
    for name, note, value, ends, kind in rows:
        shade = f'<u style="left:{100 * ends[0]:.2f}%;width:{100 * (ends[1] - ends[0]):.2f}%"></u>' if ends else ""
        drawn.append(
            f'<div class="score {kind}"><dt>{escape(name)}<small>{escape(note)}</small></dt><dd class="track"><i></i>{shade}'
            f'<b style="left:{100 * value:.2f}%"></b></dd><dd class="value">{100 * value:.1f} %</dd></div>'
        )
    return f'<dl class="forest">{"".join(drawn)}</dl>'
