"""A large table of word embeddings that learns: only the rows that the texts name, against all of it; in turns, one thread.

    python benchmarks/vocabulary.py [--rounds 3] [--vocabulary 250002]

A random encoder of XLM-RoBERTa-base's sizes (12 blocks of 768) reads 160 sentences of sst2 for one epoch, ten updates, with
`--unfreeze everything`. CPU seconds of the epoch, and the peak of resident memory, each in a process of its own. One line with
both, in `benchmarks/results/vocabulary.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arms import HERE, apart, splits, text_model, written

ROWS = 160


def side(told: argparse.Namespace) -> dict[str, Any]:
    """One epoch, in this process."""
    import transformers

    import affinage
    from affinage import named

    if told.side == "whole":
        named.PAYS = 1 << 62
    rows = splits("sst2", told.data)["train"][:ROWS]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        transformers.AutoTokenizer.from_pretrained(text_model()).save_pretrained(model)
        sizes: dict[str, Any] = {"num_hidden_layers": told.blocks, "hidden_size": 768, "intermediate_size": 3072}
        transformers.BertModel(transformers.BertConfig(vocab_size=told.vocabulary, **sizes)).save_pretrained(model)
        os.environ["AFFINAGE_CACHE"] = str(Path(folder) / "cache")
        run = affinage.fit(
            model, {"train": rows}, plan="full", unfreeze="everything", epochs=1, validation=0, leaks="drop",
            out=Path(folder) / "run", quiet=True,
        )  # fmt: skip
        stage = run.record["stages"][-1]
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return {
        **stage["cost"],
        "peak_gib": peak / 2**20,
        "steps": stage["details"]["steps"],
        "named": stage["details"].get("named_rows"),
    }


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=250_002, help="rows of the table")
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data", help="the folder that holds sst2")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "vocabulary.json")
    parser.add_argument("--side", choices=("named", "whole"), help=argparse.SUPPRESS)
    told = parser.parse_args(words)
    if told.side:
        import torch

        torch.set_num_threads(1)
        print(json.dumps(side(told)))
        return 0
    found: dict[str, list[dict[str, Any]]] = {"whole": [], "named": []}
    for _ in range(told.rounds):
        for name, taken in found.items():
            asked = ["--side", name, "--vocabulary", str(told.vocabulary), "--blocks", str(told.blocks), "--data", str(told.data)]
            taken.append(apart(__file__, asked, 1))
    pairs = list(zip(found["whole"], found["named"], strict=True))
    summary = {
        "cpu_seconds_times_less": statistics.median(a["cpu_seconds"] / b["cpu_seconds"] for a, b in pairs),
        "peak_gib": {name: statistics.median(one["peak_gib"] for one in taken) for name, taken in found.items()},
    }
    written(told.out, {"vocabulary": told.vocabulary, "blocks": told.blocks, "rows": ROWS, **summary, "rounds": found})
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
