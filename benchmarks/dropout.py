"""Dropout on a CPU: torch's against affinage's, alone, and in full training of MiniLM; the two sides take turns on one thread.

    python benchmarks/dropout.py [--rows 400] [--rounds 3]

CPU seconds of one call on the activations of a batch of short texts, (16, 26, 384), forwards; and of stage 2 of a full fit, one
epoch. One line with both medians and their ratio, in `benchmarks/results/dropout.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arms import HERE, splits, text_model, written

SHAPE = (16, 26, 384)
CALLS = 200


def called(drop: Any) -> float:
    """CPU seconds of one call."""
    import torch

    x = torch.randn(SHAPE, dtype=torch.bfloat16)
    clock = time.process_time()
    for _ in range(CALLS):
        drop(x, 0.1, True)
    return (time.process_time() - clock) / CALLS


def trained(rows: dict[str, Any], cheap: bool) -> float:
    """CPU seconds of an epoch of full training, nothing held out."""
    import affinage

    fitting = importlib.import_module("affinage.fit")
    own = fitting.cheap_dropout
    fitting.cheap_dropout = own if cheap else contextlib.nullcontext
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = affinage.fit(
                text_model(), rows, plan="full", epochs=1, validation=0, leaks="drop", out=Path(folder) / "run", quiet=True
            )
            return float(run.record["stages"][-1]["cost"]["cpu_seconds"])
    finally:
        fitting.cheap_dropout = own


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data", help="the folder that holds sst2")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "dropout.json")
    told = parser.parse_args(words)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch and numpy are imported
        os.environ[name] = "1"
    import torch

    from affinage.dropout import dropout

    torch.set_num_threads(1)
    rows = {"train": splits("sst2", told.data)["train"][: told.rows]}
    kinds = ("call", "epoch")
    found: dict[str, dict[str, list[float]]] = {side: {kind: [] for kind in kinds} for side in ("torch", "affinage")}
    for _ in range(told.rounds):
        for side, drop in (("torch", torch.nn.functional.dropout), ("affinage", dropout)):
            found[side]["call"].append(called(drop))
            found[side]["epoch"].append(trained(rows, side == "affinage"))
    ratios = {
        kind: statistics.median(a / b for a, b in zip(found["torch"][kind], found["affinage"][kind], strict=True))
        for kind in kinds
    }
    written(told.out, {"rows": told.rows, "seconds": found, "times_less": ratios})
    print(json.dumps({"times_less": ratios, "seconds": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
