"""Softmax over short rows on a CPU: torch's against affinage's, alone, in a pass and in training; in turns, one thread.

    python benchmarks/softmax.py [--rounds 3]

CPU seconds of one call on the scores of 512 tokens of texts of so many tokens each, and of the features and an epoch of all
of MiniLM on the questions of trec6. One line with medians and ratios, in `benchmarks/results/softmax.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arms import HERE, splits, text_model

TOKENS = (5, 8, 12, 15, 16, 24)
CALLS = 100
ROWS = 1500


def called(softmax: Any, tokens: int) -> float:
    """CPU seconds of one call."""
    import torch

    scores = torch.randn(512 // tokens, 12, tokens, tokens, dtype=torch.bfloat16)
    clock = time.process_time()
    for _ in range(CALLS):
        softmax(scores, dim=-1, dtype=torch.float32)
    return (time.process_time() - clock) / CALLS


def learned(rows: dict[str, Any], cheap: bool) -> dict[str, float]:
    """CPU seconds of the features with the solved head, and of an epoch in which all blocks learn."""
    import affinage
    from affinage import features

    own = features.short_rows
    features.short_rows = own if cheap else contextlib.nullcontext
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["AFFINAGE_CACHE"] = str(Path(folder) / "cache")
            told: dict[str, Any] = {"validation": 0, "leaks": "drop", "quiet": True}
            frozen = affinage.fit(text_model(), rows, plan="frozen", out=Path(folder) / "frozen", **told)
            full = affinage.fit(text_model(), rows, plan="full", epochs=1, out=Path(folder) / "full", **told)
            costs = [run.record["stages"][-1]["cost"]["cpu_seconds"] for run in (frozen, full)]
            return {"features": costs[0], "epoch": costs[1]}
    finally:
        features.short_rows = own


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data", help="the folder that holds trec6")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "softmax.json")
    told = parser.parse_args(words)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch and numpy are imported
        os.environ[name] = "1"
    import torch

    from affinage import facts
    from affinage.softmax import softmax

    torch.set_num_threads(1)
    rows = {"train": splits("trec6", told.data)["train"][:ROWS]}
    found: dict[str, dict[str, list[float]]] = {"torch": {}, "affinage": {}}
    for _ in range(told.rounds):
        for side, compute in (("torch", torch.nn.functional.softmax), ("affinage", softmax)):
            for tokens in TOKENS:
                found[side].setdefault(f"call, {tokens} tokens", []).append(called(compute, tokens))
            for kind, seconds in learned(rows, side == "affinage").items():
                found[side].setdefault(kind, []).append(seconds)
    ratios = {
        kind: statistics.median(a / b for a, b in zip(found["torch"][kind], found["affinage"][kind], strict=True))
        for kind in found["torch"]
    }
    facts.write_json(
        told.out,
        {
            "rows": ROWS,
            "seconds": found,
            "times_less": ratios,
            "commit": facts.commit(),
            "versions": facts.versions(),
            "hardware": facts.hardware("bf16"),
        },
    )
    print(json.dumps({"times_less": {kind: round(ratio, 2) for kind, ratio in ratios.items()}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
