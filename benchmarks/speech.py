"""A recogniser of digits that has never heard a speaker, adapted to that speaker: runs the cells missing from a JSON-lines file.

    python examples/pretrain/speech.py --data DATA/fsdd --out BASE
    python benchmarks/speech.py --base BASE

One line a finished cell (speaker, recordings a digit, arm, seed), seeds outermost, so that a partial file is balanced. The base
has learnt from the other speakers alone. An arm is a plan of affinage; `none` is the base as it is. All are tested on the 50
recordings of the speaker in the data set's own test split; what is learnt from is drawn from the 450 others. A digit is a word.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arms import HERE, append, digest, lines

ARMS = ("none", "frozen", "two-stage", "full", "scratch")
SPEAKERS = ("theo", "yweweler")  # those that examples/pretrain/speech.py leaves out
LABELS = (1, 5, 20)  # recordings a digit
SEEDS = 6
TOLD = ("epochs", "steps", "converged", "worse_than_before")
KEYS = ("speaker", "labels", "arm", "seed")


def splits(data: Path, speaker: str) -> dict[str, list[dict[str, str]]]:
    """The speaker's train and test rows."""
    found: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    with (data / "manifest.csv").open(encoding="utf8", newline="") as file:
        for row in csv.DictReader(file):
            if row["speaker"] == speaker:
                found[row["split"]].append({"audio": str(data / row["path"]), "transcript": row["transcript"]})
    return found


def measured(cell: dict[str, Any], data: Path, base: Path) -> dict[str, Any]:
    """One cell: its word and character error rate, and what it cost."""
    import affinage

    rows = splits(data, cell["speaker"])
    clock = time.perf_counter(), time.process_time()
    if cell["arm"] == "none":
        scores: dict[str, Any] = affinage.load(base).evaluate(rows["test"])
        record: dict[str, Any] = {"kept": "base", "stages": [], "data": {"rows": {"train": 0}}}
    else:
        out = Path(tempfile.mkdtemp(prefix="affinage-speech-"))
        try:
            run = affinage.fit(
                base, rows, plan=cell["arm"], labels_per_class=cell["labels"], seed=cell["seed"],
                out=out / "run", leaks="drop", quiet=True,
            )  # fmt: skip
        finally:
            shutil.rmtree(out, ignore_errors=True)
        record, scores = run.record, run.record["test"]
    return {
        **{name: scores[name] for name in ("wer", "cer", "n")},
        "n_train": record["data"]["rows"]["train"],
        "kept": record["kept"],
        "stages": [
            {"stage": s["stage"], **s["cost"], **{k: v for k, v in s["details"].items() if k in TOLD}} for s in record["stages"]
        ],
        "seconds": round(time.perf_counter() - clock[0], 2),
        "cpu_seconds": round(time.process_time() - clock[1], 2),
    }


def told(path: Path) -> None:
    """The mean and the spread of each arm over speakers and seeds, by recordings a digit."""
    found: dict[tuple[int, str], list[float]] = defaultdict(list)
    for line in lines(path):
        found[line["labels"], line["arm"]].append(line["wer"])
    for (labels, arm), values in sorted(found.items(), key=lambda pair: (pair[0][0], ARMS.index(pair[0][1]))):
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{labels:>3} a digit  {arm:<10} WER {statistics.mean(values):6.3f}  sd {spread:.3f}  cells {len(values)}")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data" / "fsdd", help="fsdd's folder")
    parser.add_argument("--base", type=Path, help="the run of examples/pretrain/speech.py")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "speech.jsonl")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--show", action="store_true", help="print the table of what is there, and stop")
    asked = parser.parse_args(words)
    if asked.show:
        told(asked.out)
        return 0
    if asked.base is None:
        parser.error("--base is the folder of the run to adapt")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch and numpy are imported
        os.environ[name] = "1"
    from affinage import facts

    weights, commit = digest(asked.base), facts.commit()
    done = {tuple(line[key] for key in KEYS): line["weights"] for line in lines(asked.out)}
    cells = [
        dict(zip(KEYS, (speaker, labels, arm, seed), strict=True))
        for seed in range(asked.seeds)
        for labels in (0, *LABELS)
        for speaker in SPEAKERS
        for arm in (ARMS[:1] if not labels else ARMS[1:])
        if labels or not seed  # the base as it is depends on no draw
    ]
    for number, cell in enumerate(cells, 1):
        key = tuple(cell[name] for name in KEYS)
        if key in done:
            if done[key] != weights:
                print(f"{asked.out} has {key} of another base: name another --out", file=sys.stderr)
                return 2
            continue
        found = measured(cell, asked.data, asked.base)
        here = {"versions": facts.versions(), "cpu": facts.hardware("")["cpu"]}
        append(asked.out, {**cell, **found, "weights": weights, "threads": 1, "commit": commit, **here})
        words_of = " ".join(map(str, key))
        print(f"[{number}/{len(cells)}] {words_of}: WER {found['wer']:.3f}, {found['cpu_seconds']:.1f} CPU s", flush=True)
    told(asked.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
