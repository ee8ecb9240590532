"""Class by class, as parts of the page: the confusion matrix, the pairs most often confused, the score of each class."""

from __future__ import annotations

import numpy as np

from affinage.measure.classification import confusion, per_class
from affinage.report import draw
from affinage.report.folder import Predictions
from affinage.report.words import label, share

MOST_IN_TABLE = 30  # classes; of more, the weakest are shown and the rest is folded
MOST_IN_MATRIX = 120  # classes; at 11 pixels a cell a larger matrix is a carpet
SIDE_BY_SIDE = 8  # classes whose matrix and table fit beside each other


def classes(p: Predictions) -> str:
    """The matrix and the table: side by side where they are small."""
    pictures = [f"<div>{matrix(p)}</div>", f"<div>{by_class(p)}</div>"]
    if len(p.classes) <= SIDE_BY_SIDE:
        return f'<section><h2>Class by class</h2><div class="two">{"".join(pictures)}</div></section>'
    headings = ("What it takes for what", "Class by class")
    return "".join(f"<section><h2>{h}</h2>{picture}</section>" for h, picture in zip(headings, pictures, strict=True))


def matrix(p: Predictions) -> str:
    """The confusion matrix; of many classes also the pairs most often confused, which no eye finds among thousands of cells."""
    many = len(p.classes)
    table = confusion(p.guesses, p.targets, many)
    if not table[many].any():
        table = table[:many]
    key = (
        '<p class="soft small"><span class="key" style="background:var(--soft)"></span>right '
        '<span class="key" style="background:var(--accent);margin-left:1em"></span>wrong; the darker, the larger the '
        "share of its row.</p>"
    )
    if many <= MOST_IN_TABLE:
        return key + draw.heat(table, p.classes)
    pairs = f"<p>The pairs most often confused, of {many} classes.</p>{_pairs(p, table)}"
    if many > MOST_IN_MATRIX:
        return pairs
    order = _neighbours(table[:many])
    sorted_rows = np.concatenate([order, np.arange(many, len(table))])
    return (
        f"{pairs}<h3 class=gap>All {many} classes</h3><p class='soft small'>Classes that are confused stand side by side: blocks "
        f"along the diagonal are families.</p>{key}{draw.heat(table[sorted_rows][:, order], [p.classes[i] for i in order])}"
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
            out.append(
                f'<tr><th scope="row">{label(p.classes[i])}</th><td class="n">{found["support"][i]:,}</td>{cells}'
                f'<td class="grow"><span class="bar on" style="width:{100 * found["f1"][i]:.1f}%"></span></td></tr>'
            )
        head = "".join(f'<th class="n">{h}</th>' for h in ("rows", "precision", "recall", "F1"))
        return (
            f'<div class="scroll"><table class="list wide"><thead><tr><th>class</th>{head}<th></th></tr></thead>'
            f"<tbody>{''.join(out)}</tbody></table></div>"
        )

    every = np.arange(len(p.classes))
    if len(every) <= MOST_IN_TABLE:
        return rows(every)
    some = np.flatnonzero(found["support"])
    weakest = some[np.argsort(found["f1"][some], kind="stable")][:15]
    return (
        f"<p>The {len(weakest)} weakest of {len(every)}.</p>{rows(weakest)}"
        f"<details><summary>All {len(every)} classes</summary>{rows(every)}</details>"
    )


def _neighbours(table: np.ndarray) -> np.ndarray:
    """An order of the classes (C,) in which those that are confused are near: the leaves of a clustering by confusion."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    part = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    apart = 1 - np.minimum(part + part.T, 1)
    np.fill_diagonal(apart, 0)
    return leaves_list(linkage(squareform(apart), "average", optimal_ordering=True))


def _pairs(p: Predictions, table: np.ndarray) -> str:
    """The 15 largest cells off the diagonal."""
    names = [*p.classes, "(unseen class)"]
    off = table.copy()
    np.fill_diagonal(off[: len(p.classes)], 0)
    order = np.argsort(-off, axis=None, kind="stable")[:15]
    rows = []
    for i, j in zip(*np.unravel_index(order, off.shape), strict=True):
        if off[i, j]:
            part = off[i, j] / table[i].sum()
            rows.append(
                f'<tr><th scope="row">{label(names[i])}</th><td>{label(p.classes[j])}</td><td class="n">{off[i, j]:,}</td>'
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
