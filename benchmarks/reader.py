"""Read sentences after spoken digits: how far 14 minutes of one voice take a recogniser that knew ten words.

    python benchmarks/reader.py [--arms two-stage,full,scratch] [--seeds 1] [--epochs 15]
    python benchmarks/reader.py --table

One line a finished cell (arm, seed, epochs). ljtext_reader has no split of its own: the last 30 of its 141 utterances by name
are the test, 111 are learnt from. The base is starter-speech, whose vocabulary of digits gives way to that of the sentences, so
that its head begins anew in every arm. Characters count: words are mostly wrong throughout.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arms import HERE, append, digest, lines
from speech import STARTER

ARMS = ("frozen", "two-stage", "full", "scratch")
HELD = 30  # utterances
KEY = ("arm", "seed", "epochs")


def splits(data: Path) -> dict[str, list[dict[str, str]]]:
    with (data / "manifest.csv").open(encoding="utf8", newline="") as file:
        every = sorted(csv.DictReader(file), key=lambda row: row["path"])
    rows = [{"audio": str(data / row["path"]), "transcript": row["transcript"]} for row in every]
    return {"train": rows[:-HELD], "test": rows[-HELD:]}


def measured(told: argparse.Namespace, arm: str, seed: int) -> dict[str, Any]:
    import affinage

    folder = Path(tempfile.mkdtemp(prefix="affinage-reader-"))
    try:
        run = affinage.fit(
            told.base, splits(told.data), plan=arm, seed=seed, epochs=told.epochs, out=folder / "run", leaks="drop",
            quiet=True,
        )  # fmt: skip
        heard = [one["text"] for one in run.predict([row["audio"] for row in splits(told.data)["test"][:3]])]
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


def table(path: Path) -> str:
    """Mean error rates of each arm, in percent, and what they took."""
    out = ["| arm | epochs | characters wrong | words wrong | CPU s | seeds |", "|---|---|---:|---:|---:|---:|"]
    found = list(lines(path))
    for arm in ARMS:
        for epochs in sorted({line["epochs"] for line in found if line["arm"] == arm}):
            cells = [line for line in found if (line["arm"], line["epochs"]) == (arm, epochs)]
            cer, wer, seconds = (statistics.mean(line[name] for line in cells) for name in ("cer", "wer", "cpu_seconds"))
            out.append(f"| {arm} | {epochs} | {100 * cer:.1f} | {100 * wer:.1f} | {seconds:.0f} | {len(cells)} |")
    return "\n".join(out)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data" / "ljtext_reader")
    parser.add_argument("--base", type=Path, default=STARTER, help="a model folder; starter-speech if not given")
    parser.add_argument("--arms", type=lambda text: text.split(","), default=["two-stage", "full", "scratch"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=15)
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
    done = {tuple(line[k] for k in KEY) for line in lines(told.out)}
    commit = facts.commit()
    for seed in range(told.seeds):
        for arm in told.arms:
            if (arm, seed, told.epochs) in done:
                continue
            found = measured(told, arm, seed)
            head = {"arm": arm, "seed": seed, "epochs": told.epochs, "weights": digest(told.base), "commit": commit}
            append(told.out, {**head, **found})
            print(
                f"{arm} seed {seed}: CER {found['cer']:.3f}, WER {found['wer']:.3f}, {found['cpu_seconds']:.0f} CPU s", flush=True
            )
    print(table(told.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
