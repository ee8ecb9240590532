"""Other speech than the base has heard: how far a few recordings take starter-speech.

    python benchmarks/reader.py [--arms two-stage,full,scratch] [--seeds 1] [--epochs 15]
    python benchmarks/reader.py --set yesno --recordings 3,10 --epochs 0 --seeds 6
    python benchmarks/reader.py --table

One line a finished cell (base, set, recordings, arm, seed, epochs). A set without a split of its own is parted by name: of
ljtext_reader the last 30 of 141 utterances are the test and 111 are learnt from, of yesno ten and ten. The vocabulary of the base
gives way to that of the recordings where it lacks a letter, so that its head begins anew; the arm `none` is the base as it is.
`--recordings N` learns from N of them, and nothing is held out; all, with a share of them to choose the epoch by, if not given.
`--epochs 0`: as many as affinage takes by itself.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arms import HERE, append, digest, lines
from speech import STARTER, as_it_is, settings

ARMS = ("none", "frozen", "two-stage", "full", "scratch")
HELD = 30  # utterances
KEY = ("weights", "set", "recordings", "arm", "seed", "epochs", "settings")
FIRST = {"set": "ljtext_reader", "recordings": None, "settings": ""}  # of lines that name none


def splits(data: Path) -> dict[str, list[dict[str, str]]]:
    with (data / "manifest.csv").open(encoding="utf8", newline="") as file:
        every = sorted(csv.DictReader(file), key=lambda row: row["path"])
    rows = [{"audio": str(data / row["path"]), "transcript": row["transcript"]} for row in every]
    if any(row["split"] for row in every):
        return {name: [x for x, row in zip(rows, every, strict=True) if row["split"] == name] for name in ("train", "test")}
    held = min(HELD, len(rows) // 2)
    return {"train": rows[:-held], "test": rows[-held:]}


def measured(told: argparse.Namespace, recordings: int | None, arm: str, seed: int) -> dict[str, Any]:
    import affinage

    rows = splits(told.data / told.set)
    if arm == "none":  # the base as it is
        clock = time.process_time()
        found = as_it_is(told.base, rows["test"], None)
        return {**{name: found[name] for name in ("cer", "wer", "n")}, "cpu_seconds": time.process_time() - clock}
    more: dict[str, Any] = {"labels_per_class": recordings, "validation": 0} if recordings else {}
    if told.epochs:
        more["epochs"] = told.epochs
    folder = Path(tempfile.mkdtemp(prefix="affinage-reader-"))
    try:
        run = affinage.fit(
            told.base, rows, plan=arm, seed=seed, out=folder / "run", leaks="drop",
            quiet=True, **more, **settings(told.settings),
        )  # fmt: skip
        heard = [one["text"] for one in run.predict([row["audio"] for row in rows["test"][:3]])]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    record = run.record
    return {
        **{name: record["test"][name] for name in ("cer", "cer_interval", "wer", "wer_interval", "n") if name in record["test"]},
        "heard": heard,
        "n_train": record["data"]["rows"]["train"],
        "stages": [
            {"stage": s["stage"], **s["cost"], **{k: s["details"][k] for k in ("epochs", "steps") if k in s["details"]}}
            for s in record["stages"]
        ],
        "cpu_seconds": sum(s["cost"]["cpu_seconds"] for s in record["stages"]),
        "kept": record["kept"],
        "precision": record["hardware"]["precision"],
        "cpu": record["hardware"]["cpu"],
        "versions": record["versions"],
    }


def cells(path: Path) -> list[dict[str, Any]]:
    """The finished ones."""
    return [{**FIRST, **line} for line in lines(path)]


def table(path: Path) -> str:
    """Mean error rates of each arm, in percent, and what they took; then how the arms differ, paired by seed."""
    from affinage.measure.interval import paired

    out = [
        "| base | set | recordings | arm | epochs | characters wrong | words wrong | CPU s | seeds |",
        "|---|---|---:|---|---|---:|---:|---:|---:|",
    ]
    found: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    for line in cells(path):
        name = f"{line['set']}, {line['settings']}" if line["settings"] else line["set"]
        key = line["weights"], name, line["recordings"], line["epochs"]
        found.setdefault(key, {arm: [] for arm in ARMS})[line["arm"]].append(line)
    for (base, name, count, epochs), by_arm in found.items():
        head = f"| {base} | {name} | {count or 'all'}"
        for arm, own in by_arm.items():
            if own:
                cer, wer, seconds = (statistics.mean(line[metric] for line in own) for metric in ("cer", "wer", "cpu_seconds"))
                says = f"{100 * cer:.1f} | {100 * wer:.1f} | {seconds:.0f} | {len(own)} |"
                out.append(f"{head} | {arm} | {epochs or 'auto'} | {says}")
    for (base, name, count, _), by_arm in found.items():
        for other, metric in ((other, metric) for other in ARMS if other != "two-stage" for metric in ("cer", "wer")):
            left, right = ({line["seed"]: line[metric] for line in by_arm[arm]} for arm in ("two-stage", other))
            gaps = [100 * (left[seed] - right[seed]) for seed in sorted(left.keys() & right.keys())]
            if len(gaps) > 1:
                middle, low, high = paired(gaps)
                says = f"{middle:+.1f} [{low:+.1f}, {high:+.1f}] ({len(gaps)} seeds)"
                out.append(f"\n{base}, {name} {count or 'all'}, {metric}: two-stage - {other} {says}")
    return "\n".join(out)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data", help="the folder of the data sets")
    parser.add_argument("--set", default=FIRST["set"], help="a folder there, with manifest.csv")
    parser.add_argument("--recordings", type=lambda text: [int(n) for n in text.split(",")], default=[None], help="to learn from")
    parser.add_argument("--base", type=Path, default=STARTER, help="a model folder; starter-speech if not given")
    parser.add_argument("--arms", type=lambda text: text.split(","), default=["two-stage", "full", "scratch"])
    parser.add_argument("--settings", default="", help="options of fit, as learning_rate=1e-3,unfreeze=everything")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the seed to begin with, where another process has those before")
    parser.add_argument("--epochs", type=int, default=15, help="0: affinage's own number")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "reader.jsonl")
    parser.add_argument("--table", action="store_true", help="print what was measured, and stop")
    told = parser.parse_args(words)
    if unknown := set(told.arms) - set(ARMS):
        parser.error(f"no arm '{min(unknown)}': expected of {', '.join(ARMS)}")
    if told.table:
        print(table(told.out))
        return 0
    import torch

    from affinage import facts

    torch.set_num_threads(1)
    done = {tuple(line[k] for k in KEY) for line in cells(told.out)}
    commit, weights = facts.commit(), digest(told.base)
    for seed in range(told.first, told.first + told.seeds):
        for recordings, arm in itertools.product(told.recordings, told.arms):
            if arm == "none" and (seed, recordings) != (0, told.recordings[0]):
                continue  # it depends on no draw
            key = (weights, told.set, recordings, arm, seed, told.epochs, told.settings)
            if key in done:
                continue
            found = measured(told, recordings, arm, seed)
            append(told.out, {**dict(zip(KEY, key, strict=True)), "commit": commit, **found})
            scores = f"CER {found['cer']:.3f}, WER {found['wer']:.3f}, {found['cpu_seconds']:.0f} CPU s"
            print(f"{told.set} {recordings or 'all'} {arm} seed {seed}: {scores}", flush=True)
    print(table(told.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
