"""The results file as Markdown: what is measured, over how many seeds, how sure; a cell that nobody ran stays empty.

    python benchmarks/table.py --page docs/results.md
    python benchmarks/table.py --brief --page README.md
    python benchmarks/table.py --picture docs/results.svg

Accuracy is the mean over seeds with its 95 % Student interval. A pair is two arms on one seed: the same rows, the same test.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from affinage.measure.interval import MOST_FLIPS, paired, sign_flip

ARMS = ("scratch", "frozen", "two-stage", "full", "trainer")
OPEN, CLOSE = "<!-- results -->", "<!-- /results -->"
NONE = "–"
Line = dict[str, Any]
Table = dict[tuple[str, int], dict[str, dict[int, Line]]]  # (data set, labels a class) -> arm -> seed -> line


def read(path: Path) -> list[Line]:
    """The finished cells; a last line without an end belongs to a run that is still writing."""
    text = path.read_text(encoding="utf8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def arranged(lines: Sequence[Line]) -> Table:
    """By data set and labels, in the order of the file.

    Raises:
        ValueError: one cell stands twice in the file.
    """
    table: Table = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        seeds = table[line["data"], line["labels"]][line["arm"]]
        if line["seed"] in seeds:
            raise ValueError(f"{line['data']} {line['labels']} {line['arm']} seed {line['seed']} stands twice")
        seeds[line["seed"]] = line
    return table


def points(value: float, sign: str = "") -> str:
    """A share in percent points; never minus zero."""
    return f"{round(100 * value, 1) + 0.0:{sign}.1f}"


def mean(values: Sequence[float]) -> str:
    """`84.3 ± 0.5 (6)`: percent, half of the 95 % interval, seeds; one seed has no interval."""
    if not values:
        return NONE
    middle, _, high = paired(values)
    half = f" ± {points(high - middle)}" if math.isfinite(high) else ""
    return f"{points(middle)}{half} ({len(values)})"


def seconds(values: Sequence[float]) -> str:
    """Mean CPU seconds, and seeds."""
    if not values:
        return NONE
    value = sum(values) / len(values)
    return f"{value:.{0 if value >= 100 else 1}f} ({len(values)})"


def drift(seeds: dict[int, Line]) -> str:
    """Mean drift of the features, and seeds."""
    values = [line["drift"] for line in seeds.values() if line.get("drift") is not None]
    return f"{sum(values) / len(values):.2f} ({len(values)})" if values else NONE


def difference(left: dict[int, Line], right: dict[int, Line]) -> list[str]:
    """[left minus right in points with its interval, p of the sign flips, pairs], over the seeds that both have.

    Raises:
        ValueError: a pair that was not measured on the same rows.
    """
    seeds = sorted(left.keys() & right.keys())
    for seed in seeds:
        if left[seed]["fingerprint"] != right[seed]["fingerprint"]:
            raise ValueError(f"{left[seed]['data']} seed {seed}: {left[seed]['arm']} and {right[seed]['arm']} saw different rows")
    if not seeds:
        return [NONE, NONE, "0"]
    values = [left[seed]["accuracy"] - right[seed]["accuracy"] for seed in seeds]
    middle, low, high = paired(values)
    span = f" [{points(low, '+')}, {points(high, '+')}]" if math.isfinite(high) else ""
    flips = f"{sign_flip(values):.3f}" if 1 < len(values) <= MOST_FLIPS else NONE
    return [points(middle, "+") + span, flips, str(len(seeds))]


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def labelled(key: tuple[str, int]) -> list[str]:
    return [key[0], str(key[1]) if key[1] else "all"]


def rendered(lines: Sequence[Line], left: str = "two-stage", right: str = "full") -> str:
    """Tables (accuracy, the paired difference of two arms, CPU seconds of training, drift) and what they were measured with."""
    table = arranged(lines)
    if not table:
        return "No results yet."
    there = {arm for arms in table.values() for arm in arms}
    arms = [arm for arm in ARMS if arm in there] + sorted(there - set(ARMS))

    def every(cell: Callable[[list[Line]], str]) -> list[list[str]]:
        return [
            [*labelled(key), *(cell(list(found[arm].values()) if arm in found else []) for arm in arms)]
            for key, found in table.items()
        ]

    head = ["data", "labels a class"]
    drifted = [arm for arm in ("two-stage", "full") if arm in there]
    parts = [
        "Test accuracy in percent, mean ± 95 % interval (seeds):",
        grid([*head, *arms], every(lambda cell: mean([line["accuracy"] for line in cell]))),
    ]
    if {left, right} <= there:
        rows = [[*labelled(key), *difference(found.get(left, {}), found.get(right, {}))] for key, found in table.items()]
        parts += [
            f"`{left}` minus `{right}` in points, paired by seed, with its 95 % interval and the exact two-sided p of sign flips "
            "(with n seeds it cannot fall below 2 / 2ⁿ):",
            grid([*head, f"{left} − {right}", "p", "seeds"], rows),
        ]
    parts += [
        "CPU seconds of training, mean (seeds), without loading, tokenising or decoding, and testing:",
        grid([*head, *arms], every(lambda cell: seconds([line["training"]["cpu_seconds"] for line in cell]))),
        "Drift of the features, how far the tuned network moved them on training rows, |after - before| / |before| (seeds):",
        grid([*head, *drifted], [[*labelled(key), *(drift(found[arm]) for arm in drifted)] for key, found in table.items()]),
        measured(lines),
    ]
    return "\n\n".join(parts)


def brief(lines: Sequence[Line], left: str = "two-stage", right: str = "full") -> str:
    """One table: each arm's accuracy and CPU seconds of training, and the paired difference of two arms."""
    table = arranged(lines)
    if not table:
        return "No results yet."
    there = {arm for arms in table.values() for arm in arms}
    arms = [arm for arm in ARMS if arm in there]

    def cell(seeds: dict[int, Line]) -> str:
        if not seeds:
            return NONE
        accuracy, _, _ = mean([line["accuracy"] for line in seeds.values()]).partition(" (")
        spent = sum(line["training"]["cpu_seconds"] for line in seeds.values()) / len(seeds)
        return f"{accuracy}, {spent:.{0 if spent >= 1 else 1}f} s"

    rows = [
        [*labelled(key), *(cell(found.get(arm, {})) for arm in arms), difference(found.get(left, {}), found.get(right, {}))[0]]
        for key, found in table.items()
    ]
    return grid(["data", "labels a class", *arms, f"{left} − {right}"], rows)


def picture(lines: Sequence[Line], path: Path) -> None:
    """A dot for each arm on each data set, its 95 % interval as a line."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "affinage"  # the same numbers give the same file
    from matplotlib import pyplot as plt

    table = arranged(lines)
    colours = dict(zip(ARMS, ("#9a9a9a", "#3b82c4", "#c2410c", "#2f8f5b", "#b8a33a"), strict=True))
    figure, axes = plt.subplots(figsize=(8.6, 0.34 * len(table) + 1.2), layout="constrained")
    for row, found in enumerate(table.values()):
        axes.axhspan(row - 0.5, row + 0.5, color="#f4f4f4" if row % 2 else "white", zorder=0)
        for place, arm in enumerate(ARMS):
            if seeds := found.get(arm):
                middle, low, high = (100 * value for value in paired([line["accuracy"] for line in seeds.values()]))
                height = row + 0.14 * (place - 2)
                axes.plot([max(low, 0), min(high, 100)], [height] * 2, color=colours[arm], linewidth=1.2, alpha=0.6)
                axes.plot(middle, height, "o", color=colours[arm], markersize=5, label=None if row else arm)
    names = [f"{data}, {labels} a class" if labels else f"{data}, all" for data, labels in table]
    axes.set(yticks=range(len(table)), yticklabels=names, xlabel="test accuracy, %", ylim=(len(table) - 0.5, -0.5), xlim=(0, 100))
    axes.tick_params(left=False, labelsize=9)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(ARMS), frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def measured(lines: Sequence[Line]) -> str:
    """What all of it was measured with; where lines differ, all that occurs."""

    def all_of(value: Callable[[Line], Any]) -> str:
        return ", ".join(sorted({str(value(line)) for line in lines}))

    torch, transformers = (all_of(lambda line, n=name: line["versions"][n]) for name in ("torch", "transformers"))
    return (
        f"{len(lines)} runs; models {all_of(lambda line: line['model'])}; torch {torch}; transformers {transformers}; "
        f"threads {all_of(lambda line: line['threads'])}; "
        f"precision {all_of(lambda line: line['precision'])}; cpu {all_of(lambda line: line['cpu'])}; "
        f"commit {all_of(lambda line: line['commit'])} (+: with local changes)."
    )


def variants(lines: Sequence[Line]) -> str:
    """Each other variant minus the default, arm by arm, paired by seed."""
    kinds = list(dict.fromkeys(line["variant"] for line in lines if line["variant"] != "default"))
    base = arranged([line for line in lines if line["variant"] == "default"])
    rows = []
    for kind in kinds:
        for key, found in arranged([line for line in lines if line["variant"] == kind]).items():
            for arm, seeds in found.items():
                before = base[key][arm] if key in base and arm in base[key] else {}
                cells = [mean([line["accuracy"] for line in seeds.values()]), *difference(seeds, before)]
                rows.append([*labelled(key), kind, arm, *cells])
    return grid(["data", "labels a class", "variant", "arm", "accuracy", "− default", "p", "pairs"], rows)


def placed(page: str, text: str) -> str:
    """The page with `text` between its marks.

    Raises:
        ValueError: a mark is missing.
    """
    before, mark, after = page.partition(OPEN)
    if not mark:
        raise ValueError(f"the page has no {OPEN}")
    _, close, rest = after.partition(CLOSE)
    if not close:
        raise ValueError(f"the page has {OPEN} and no {CLOSE} after it: add it where the results end")
    return f"{before}{OPEN}\n\n{text}\n\n{CLOSE}{rest}"


def main(words: Sequence[str] | None = None) -> int:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", default=here / "results" / "transfer.jsonl")
    parser.add_argument("--suite", action="append", help="only this suite; without it, all but search")
    parser.add_argument("--variant", default="default")
    parser.add_argument("--variants", action="store_true", help="each other variant minus the default, instead")
    parser.add_argument("--pair", nargs=2, default=("two-stage", "full"), metavar="ARM", help="the two arms to compare")
    parser.add_argument("--brief", action="store_true", help="one table instead of four")
    parser.add_argument("--page", type=Path, help="write between its marks too")
    parser.add_argument("--picture", type=Path, help="draw it there too, as SVG")
    told = parser.parse_args(words)
    try:
        lines = read(told.file) if told.file.exists() else []
        lines = [line for line in lines if (line["suite"] in told.suite if told.suite else line["suite"] != "search")]
        mine = [line for line in lines if line["variant"] == told.variant]
        text = variants(lines) if told.variants else (brief if told.brief else rendered)(mine, *told.pair)
        print(text)
        if told.page:
            told.page.write_text(placed(told.page.read_text(encoding="utf8"), text), encoding="utf8")
        if told.picture:
            picture(mine, told.picture)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
