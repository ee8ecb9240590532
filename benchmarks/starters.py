"""Do the starters transfer? Each against its own architecture with fresh weights, on data that it was not made from.

    python benchmarks/starters.py
    python benchmarks/starters.py --table --page docs/starters.md

One line a finished cell (starter, data set, labels a class, arm, seed), as in arms.py, whose machinery it is: a killed run loses
no cell but the one in progress, and seeds are the outermost loop. Arms are plans of affinage with their defaults: the same rows,
the same epochs. `scratch-long` gets four times as many, since a network that begins with nothing needs them most. `n-grams`, on
text, is the control that needs no network: logistic regression on the tf-idf of runs of one to four characters.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import arms
import table

HERE = Path(__file__).resolve().parent
GRAMS = "n-grams"
ARMS = ("scratch", "frozen", "two-stage", "scratch-long", GRAMS)
LABELS = (10, 100)  # a class
PAIRS = (("frozen", "scratch"), ("two-stage", "scratch"), ("two-stage", "scratch-long"), ("two-stage", GRAMS))
LONGER = 4
MOST_TESTED = 2_000  # test rows, stratified, seed 0
MOST_TRAINED = 8_000  # rows that training rows are drawn from: the check looks at all of them in each run


@dataclass(frozen=True)
class Source:
    """A data set, where its rows and their classes stand, and what of it is tested where it has no test split."""

    name: str
    text: str | None = None
    label: str | None = None
    test: float = 0.0


SETS = {
    "starter-vision": (Source("cifar10"), Source("pacs/photo", test=0.3), Source("hymenoptera")),
    "starter-bytes": (
        Source("dga_domains", "domain", "label", 0.2),
        Source("http_params", "payload", "label"),
        Source("sms_spam", "text", "label", 0.3),
    ),
}


def splits(source: Source, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """`train` and `test` rows of a data set, the same at every call."""
    from affinage import data as reading
    from affinage import labels
    from affinage.types import Columns

    found = reading.read(folder / source.name, columns=Columns(text=source.text, label=source.label))
    train, test = found.train, found.test or found.validation
    if source.test:
        train, test = labels.holdout(train, source.test, 0)
    assert test is not None, f"{source.name} has no test split: say which share of it to test on"
    if len(test) > MOST_TESTED:
        _, test = labels.holdout(test, MOST_TESTED / len(test), 0)
    if len(train) > MOST_TRAINED:
        _, train = labels.holdout(train, MOST_TRAINED / len(train), 1)
    return {
        key: [{found.kind: x, "label": y} for x, y in zip(split.inputs, split.targets, strict=True)]
        for key, split in (("train", train), ("test", test))
    }


def cells(
    names: Sequence[str], seeds: int, only: Sequence[str], wanted: Sequence[str], few: Sequence[int], first: int = 0
) -> list[arms.Cell]:
    """All cells, seeds outermost, from the `first` on."""
    return [
        arms.Cell(name, "default", source.name, labels, arm, seed)
        for seed in range(first, first + seeds)
        for name in names
        for source in SETS[name]
        for labels in few
        for arm in wanted
        if (not only or source.name in only) and (arm != GRAMS or source.text)
    ]


def n_grams(cell: arms.Cell, rows: dict[str, Any]) -> dict[str, Any]:
    """The control, on the rows that `fit` would train on."""
    import time

    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from affinage import config, facts
    from affinage.inputs import prepare

    inputs = prepare(config.make({"model": cell.suite, "data": rows, "plan": "frozen", **arms.asked(cell)}))
    train, test = inputs.data.train, inputs.data.test
    assert test is not None
    clock = time.perf_counter(), time.process_time()
    control = make_pipeline(
        TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True), LogisticRegression(C=10.0, max_iter=1000)
    )
    control.fit(list(train.inputs), np.asarray(train.targets))
    logs = control.predict_log_proba(list(test.inputs)).astype(np.float32)
    cost = {"seconds": time.perf_counter() - clock[0], "cpu_seconds": time.process_time() - clock[1]}
    return {
        **arms.scores(inputs.task.score(logs, np.asarray(test.targets))),
        "n_train": len(train),
        "training": cost,
        "whole": cost,
        "kept": GRAMS,
        "precision": "fp64",
        "fingerprint": inputs.fingerprint,
        "versions": facts.versions(),
        "cpu": facts.hardware("fp32")["cpu"],
    }


def measured(cell: arms.Cell, rows: dict[str, Any], out: Path) -> dict[str, Any]:
    """One run of affinage: what its run.json says."""
    from affinage import plans

    if cell.arm == GRAMS:
        return n_grams(cell, rows)
    if cell.arm != "scratch-long":
        return arms.ours(cell, rows, cell.suite, {}, out)
    count = cell.labels * len({row["label"] for row in rows["train"]})
    epochs = LONGER * plans.passes(count, 16)
    return arms.ours(replace(cell, arm="scratch"), rows, cell.suite, {"epochs": epochs}, out)


def rendered(lines: Sequence[dict[str, Any]]) -> str:
    """Accuracies, the paired differences of `PAIRS`, and what they were measured with."""
    if not lines:
        return "No results yet."
    found, of = table.arranged(lines), {line["data"]: line["suite"] for line in lines}
    rows, pairs = [], []
    for key, by_arm in found.items():
        head = [of[key[0]], *table.labelled(key)]
        rows.append([*head, *(table.mean([line["accuracy"] for line in by_arm.get(arm, {}).values()]) for arm in ARMS)])
        both = [table.difference(by_arm.get(left, {}), by_arm.get(right, {})) for left, right in PAIRS]
        pairs.append([*head, *(f"{one[0]} ({one[2]})" for one in both)])
    head = ["starter", "data", "labels a class"]
    return "\n\n".join(
        [
            "Test accuracy in percent, mean ± 95 % interval (seeds); `scratch` is the same architecture with fresh weights, on "
            f"the same rows for the same epochs, `scratch-long` for {LONGER} times as many; `n-grams` is logistic regression on "
            "runs of one to four characters:",
            table.grid([*head, *ARMS], rows),
            "Paired by seed, in points, with the 95 % interval (pairs):",
            table.grid([*head, *(f"{left} − {right}" for left, right in PAIRS)], pairs),
            table.measured(lines),
        ]
    )


def main(words: Sequence[str] | None = None) -> int:
    def names(text: str) -> list[str]:
        return [name for name in text.split(",") if name]

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data", help="the folder of the data sets")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "starters.jsonl")
    parser.add_argument("--starters", type=names, default=[], help="with commas between them; all that are here if not given")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first", type=int, default=0, help="the seed to begin with, where other processes have those before")
    parser.add_argument("--only", type=names, default=[], help="data sets")
    parser.add_argument("--arms", type=names, default=list(ARMS))
    parser.add_argument("--labels", type=lambda text: [int(n) for n in names(text)], default=list(LABELS), help="a class")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print what is measured so far, and stop")
    parser.add_argument("--page", type=Path, help="with --table: write it between that page's marks too")
    told = parser.parse_args(words)
    if told.table:
        text = rendered(table.read(told.out) if told.out.exists() else [])
        print(text)
        if told.page:
            told.page.write_text(table.placed(told.page.read_text(encoding="utf8"), text), encoding="utf8")
        return 0
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch and numpy are imported
        os.environ[name] = str(told.threads)
    import torch

    from affinage import facts, starters

    torch.set_num_threads(told.threads)
    here = {one.name: one for one in starters.every()}
    chosen = told.starters or [name for name in SETS if name in here]
    for kind, given, known in (("starter", chosen, SETS), ("starter here", chosen, here), ("arm", told.arms, ARMS)):
        for name in given:
            if name not in known:
                parser.error(f"no {kind} '{name}': expected of {', '.join(known)}")
    told.out.parent.mkdir(parents=True, exist_ok=True)
    done = {arms.Cell.of(line): line for line in arms.lines(told.out)}
    wanted = cells(chosen, told.seeds, told.only, told.arms, told.labels, told.first)
    sources = {source.name: source for found in SETS.values() for source in found}
    sets: dict[str, dict[str, Any]] = {}
    failed = 0
    commit = facts.commit()  # of the code that is loaded now, whatever the checkout becomes meanwhile
    for number, cell in enumerate(wanted, 1):
        weights = here[cell.suite].files["model.safetensors"][:12]
        title = f"[{number}/{len(wanted)}] {cell.suite} {cell.data} {cell.labels} {cell.arm} seed {cell.seed}"
        if cell in done:
            if done[cell]["weights"] != weights:
                print(f"{title}: {told.out} has it from other weights; name another --out", file=sys.stderr)
                return 2
            continue
        if cell.data not in sets:
            sets[cell.data] = splits(sources[cell.data], told.data)
        found = arms.tried(title, partial(measured, cell, sets[cell.data]))
        if found is None:
            failed += 1
            continue
        head = {**cell.__dict__, "settings": {}, "model": cell.suite, "weights": weights}
        arms.append(told.out, {**head, "threads": told.threads, "commit": commit, **found})
        print(f"{title}: {found['accuracy']:.4f}, {found['whole']['cpu_seconds']:.1f} CPU s in all", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
