"""Boxes from few pictures: five ways to come by a detector, blood cells unless told otherwise; runs the cells that are missing.

    python benchmarks/detection.py [--pictures 20,80,205] [--arms heads,full] [--seeds 3]
    python benchmarks/detection.py --set raccoon --pictures 10,100 --arms scratch,two-stage --seeds 6 --updates 100
    python benchmarks/detection.py --settings layer_decay=1 --held-out --out rates.jsonl    # a search, on no test row
    python benchmarks/detection.py --table

One line a finished cell (base, set, pictures, arm, seed); a killed run loses no cell but the one in progress. Seeds are outer-
most, then pictures. The base is starter-detector; `backbone` begins with what examples/pretrain/detector.py --untaught leaves:
the same network, of which the backbone alone has learnt. Every arm gets the same pictures, no validation split, and `--updates`
updates of up to 16; in two stages the heads learn first, on top of that, until they have converged or for `head_steps` updates.
scratch: the architecture alone is kept. bccd has a test split of its own; of raccoon the validation split is the test. A base
that was made with raccoons (detector.py --raccoon) tells nothing about them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

from arms import HERE, append, digest, lines

STARTER = HERE.parent / "affinage" / "starters" / "starter-detector"
ARMS = ("scratch", "backbone", "heads", "two-stage", "full")
PLANS = {"scratch": "scratch", "backbone": "full", "heads": "frozen", "two-stage": "two-stage", "full": "full"}
BATCH = 16
KEY = ("base", "data", "pictures", "arm", "seed", "updates", "settings", "tested")
FIRST = {"settings": "", "tested": "test"}  # of lines that name none
HELD = 0.25  # of the training pictures that --held-out tests on


def rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """`train` and `test` of the official split, as rows in memory: so no validation split is read."""
    from affinage import data as reading

    found = reading.read(folder)
    test = found.test or found.validation
    assert test is not None, f"{folder} has no split to test on"
    return {name: [_row(*pair) for pair in zip(split.inputs, split.targets, strict=True)]
            for name, split in (("train", found.train), ("test", test))}  # fmt: skip


def held_out(table: dict[str, list[dict[str, Any]]], seed: int) -> dict[str, list[dict[str, Any]]]:
    """The training rows alone, parted anew by the seed: for a search, which is to see no test row."""
    import numpy as np

    order = np.random.default_rng([1000, seed]).permutation(len(table["train"]))
    count = round(HELD * len(order))
    return {
        "train": [table["train"][i] for i in sorted(order[count:])],
        "test": [table["train"][i] for i in sorted(order[:count])],
    }


def _row(picture: Any, boxes: Any) -> dict[str, Any]:
    corners = boxes.boxes.tolist()
    return {"image": picture, "objects": {"bbox": [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in corners],
                                          "category": boxes.classes.tolist()}}  # fmt: skip


def measured(told: argparse.Namespace, table: dict[str, Any], pictures: int, arm: str, seed: int) -> dict[str, Any]:
    """One run: its scores on the test split, and what it took."""
    import affinage
    from affinage import plans

    count = min(pictures, len(table["train"]))
    folder = Path(tempfile.mkdtemp(prefix="affinage-detection-"))
    started = time.process_time()
    try:
        options = dict(pair.split("=") for pair in told.settings.split(",") if pair)
        plans.DEEP_STEPS = int(options.pop("head_steps", plans.DEEP_STEPS))
        run = affinage.fit(
            **{name: float(value) for name, value in options.items()},
            model=told.base if arm not in ("backbone",) else told.untaught, data=table, plan=PLANS[arm], seed=seed,
            labels_per_class=pictures if count < len(table["train"]) else None, batch_size=BATCH, leaks="drop",
            epochs=ceil(told.updates / ceil(count / BATCH)), out=folder / "run", quiet=True,
        )  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    record = run.record
    test = record["test"]
    return {
        **{name: test[name] for name in ("map50", "map50_interval", "map", "map_interval", "ap50", "f1", "threshold", "n")},
        "classes": record["data"]["classes"],
        "n_train": record["data"]["rows"]["train"],
        "cpu_seconds": time.process_time() - started,
        "stages": [{"stage": s["stage"], **s["cost"], "steps": s["details"].get("steps")} for s in record["stages"]],
        "cuts": record["cuts"],
        "kept": record["kept"],
        "precision": record["hardware"]["precision"],
        "versions": record["versions"],
        "cpu": record["hardware"]["cpu"],
    }


def cells(path: Path) -> list[dict[str, Any]]:
    """The finished ones."""
    return [{**FIRST, **line} for line in lines(path)]


def shown(path: Path) -> str:
    """A table: mean mAP@.5 over the seeds, its 95 % interval, their range and number; then two stages minus the others."""
    from affinage.measure.interval import paired

    found: dict[tuple[Any, ...], dict[str, dict[int, float]]] = {}
    for line in sorted(cells(path), key=lambda line: tuple(line[name] for name in KEY)):
        key = tuple(line[name] for name in ("base", "data", "pictures", "updates"))
        if line["settings"] or line["tested"] != "test":
            key = (key[0], f"{line['data']}, {line['tested']}, {line['settings'] or 'defaults'}", *key[2:])
        found.setdefault(key, {arm: {} for arm in ARMS})[line["arm"]][line["seed"]] = line["map50"]
    out = ["| base | data | pictures | updates | " + " | ".join(ARMS) + " |", "|---" * (len(ARMS) + 4) + "|"]
    for key, by_arm in found.items():
        said = [_cell(list(of.values())) for of in by_arm.values()]
        out.append(f"| {' | '.join(map(str, key))} | " + " | ".join(said) + " |")
    for (base, name, pictures, _), by_arm in found.items():
        for other in ("full", "scratch"):
            left, right = by_arm["two-stage"], by_arm[other]
            gaps = [100 * (left[seed] - right[seed]) for seed in sorted(left.keys() & right.keys())]
            if len(gaps) > 1:
                middle, low, high = paired(gaps)
                says = f"{middle:+.1f} points [{low:+.1f}, {high:+.1f}] ({len(gaps)} pairs)"
                out.append(f"\n{base}, {name}, {pictures} pictures: two-stage - {other} {says}")
    return "\n".join(out)


def _cell(values: Sequence[float]) -> str:
    """Mean, half of its 95 % interval, range and number of the seeds."""
    from affinage.measure.interval import paired

    if not values:
        return "–"
    middle, low, _ = paired(values)
    half = f" ± {middle - low:.3f}" if len(values) > 1 else ""
    return f"{middle:.3f}{half} ({min(values):.3f} to {max(values):.3f}, {len(values)} seeds)"


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked before anything is read."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data", help="the folder of the data sets")
    parser.add_argument("--set", default="bccd", help="a folder there")
    parser.add_argument("--settings", default="", help="numbers for fit, such as learning_rate=2e-3,layer_decay=1; head_steps=N")
    parser.add_argument("--held-out", action="store_true", help="test on a quarter of the training pictures")
    parser.add_argument("--first", type=int, default=0, help="the seed to begin with, where another process has those before")
    parser.add_argument("--base", type=Path, default=STARTER, help="the taught detector; starter-detector if not given")
    parser.add_argument("--untaught", type=Path, help="the detector of which the backbone alone has learnt; made if not given")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "detection.jsonl")
    parser.add_argument("--pictures", type=lambda text: [int(n) for n in text.split(",")], default=[20, 80, 205])
    parser.add_argument("--arms", type=lambda text: text.split(","), default=list(ARMS), help=f"of {','.join(ARMS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=300, help="of 16 pictures, in every arm")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print what was measured, and stop")
    told = parser.parse_args(words)
    unknown = [arm for arm in told.arms if arm not in ARMS]
    if unknown:
        parser.error(f"no arm '{unknown[0]}': expected of {', '.join(ARMS)}")
    return told


def untaught(folder: Path, base: Path) -> Path:
    """Where the arm `backbone` begins, as the recipe of the base makes it, for pictures as large as the base has them."""
    spec = importlib.util.spec_from_file_location("detector", HERE.parent / "examples" / "pretrain" / "detector.py")
    assert spec and spec.loader
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    side = json.loads((base / "preprocessor_config.json").read_text(encoding="utf8"))["size"]["height"]
    return recipe.untaught(None, folder, [f"thing-{i}" for i in range(10)], side=side)


def main(words: Sequence[str] | None = None) -> int:
    told = parsed(words)
    if told.table:
        print(shown(told.out))
        return 0
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch and numpy are imported
        os.environ[name] = str(told.threads)
    import torch
    import transformers

    from affinage import facts

    torch.set_num_threads(told.threads)
    transformers.logging.set_verbosity_error()
    told.out.parent.mkdir(parents=True, exist_ok=True)
    done = {tuple(line[name] for name in KEY) for line in cells(told.out)}
    table, base = rows(told.data / told.set), digest(told.base)
    commit = facts.commit()  # of the code that is loaded now, whatever the checkout becomes meanwhile
    if "backbone" in told.arms and told.untaught is None:
        told.untaught = untaught(Path(tempfile.mkdtemp(prefix="affinage-untaught-")), told.base)
    for seed in range(told.first, told.first + told.seeds):
        for pictures in told.pictures:
            for arm in told.arms:
                key = (base, told.set, pictures, arm, seed, told.updates, told.settings, "held out" if told.held_out else "test")
                if key in done:
                    continue
                model = told.untaught if arm == "backbone" else told.base
                found = measured(told, held_out(table, seed) if told.held_out else table, pictures, arm, seed)
                head = {**dict(zip(KEY, key, strict=True)), "weights": digest(model), "threads": told.threads}
                append(told.out, {**head, "commit": commit, **found})
                says = f"mAP@.5 {found['map50']:.3f}, {found['cpu_seconds']:.0f} CPU s"
                print(f"{told.set}, {pictures} pictures, {arm}, seed {seed}, {told.settings}: {says}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
