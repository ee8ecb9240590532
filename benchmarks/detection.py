"""Blood cells from few pictures: five ways to come by a detector, on the official test split; runs the cells that are missing.

    python benchmarks/detection.py [--pictures 20,80,205] [--arms heads,full] [--seeds 3]
    python benchmarks/detection.py --table

One line a finished cell (pictures, arm, seed); a killed run loses no cell but the one in progress. Seeds are the outermost loop,
then pictures. The base is starter-detector; `backbone` begins with what examples/pretrain/detector.py --untaught leaves: the same
network, of which the backbone alone has learnt. Every arm gets the same pictures, no validation split, and `--updates` updates of
up to 16; in two stages the heads learn first, on top of that, until they have converged. scratch: the architecture alone is kept.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import statistics
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
KEY = ("pictures", "arm", "seed", "updates")


def rows(data: Path) -> dict[str, list[dict[str, Any]]]:
    """`train` and `test` of the official split, as rows in memory: so no validation split is read."""
    from affinage import data as reading

    found = reading.read(data / "bccd")
    assert found.test is not None
    return {name: [_row(*pair) for pair in zip(split.inputs, split.targets, strict=True)]
            for name, split in (("train", found.train), ("test", found.test))}  # fmt: skip


def _row(picture: Any, boxes: Any) -> dict[str, Any]:
    corners = boxes.boxes.tolist()
    return {"image": picture, "objects": {"bbox": [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in corners],
                                          "category": boxes.classes.tolist()}}  # fmt: skip


def measured(told: argparse.Namespace, table: dict[str, Any], pictures: int, arm: str, seed: int) -> dict[str, Any]:
    """One run: its scores on the test split, and what it took."""
    import affinage

    count = min(pictures, len(table["train"]))
    folder = Path(tempfile.mkdtemp(prefix="affinage-detection-"))
    started = time.process_time()
    try:
        run = affinage.fit(
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


def shown(path: Path) -> str:
    """A table: mean mAP@.5 over the seeds, their range, and how many there are."""
    found = list(lines(path))
    out = ["| pictures | " + " | ".join(ARMS) + " |", "|---" * (len(ARMS) + 1) + "|"]
    for count in sorted({line["pictures"] for line in found}):
        cells = []
        for arm in ARMS:
            values = [line["map50"] for line in found if (line["pictures"], line["arm"]) == (count, arm)]
            said = (
                f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f}, {len(values)} seeds)" if values else "–"
            )
            cells.append(said)
        out.append(f"| {count} | " + " | ".join(cells) + " |")
    for count in sorted({line["pictures"] for line in found}):
        scores = {(line["arm"], line["seed"]): line["map50"] for line in found if line["pictures"] == count}
        gaps = [
            score - scores["full", seed]
            for (arm, seed), score in scores.items()
            if arm == "two-stage" and ("full", seed) in scores
        ]
        if gaps:
            out.append(f"\n{count} pictures: two-stage - full {100 * statistics.mean(gaps):+.1f} points ({len(gaps)} pairs)")
    return "\n".join(out)


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked before anything is read."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data", help="the folder that holds bccd")
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


def untaught(folder: Path) -> Path:
    """Where the arm `backbone` begins, as the recipe of the base makes it."""
    spec = importlib.util.spec_from_file_location("detector", HERE.parent / "examples" / "pretrain" / "detector.py")
    assert spec and spec.loader
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe.untaught(None, folder, [f"thing-{i}" for i in range(10)])


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
    done = {tuple(line[name] for name in KEY) for line in lines(told.out)}
    table, commit = rows(told.data), facts.commit()  # of the code that is loaded now, whatever the checkout becomes meanwhile
    if "backbone" in told.arms and told.untaught is None:
        told.untaught = untaught(Path(tempfile.mkdtemp(prefix="affinage-untaught-")))
    for seed in range(told.seeds):
        for pictures in told.pictures:
            for arm in told.arms:
                key = (pictures, arm, seed, told.updates)
                if key in done:
                    continue
                model = told.untaught if arm == "backbone" else told.base
                found = measured(told, table, pictures, arm, seed)
                head = {**dict(zip(KEY, key, strict=True)), "data": "bccd", "weights": digest(model), "threads": told.threads}
                append(told.out, {**head, "commit": commit, **found})
                print(
                    f"{pictures} pictures, {arm}, seed {seed}: mAP@.5 {found['map50']:.3f}, {found['cpu_seconds']:.0f} CPU s",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
