"""Eager attention against torch's fused kernel (SDPA) on a CPU, by the length of the rows: CPU seconds of passes and of updates.

    python benchmarks/attention.py [--lengths 16,32,64,128,256,512] [--rounds 3]

MiniLM with random words, one thread, batches of about 1,024 tokens as a pass has them and 32 rows at most; a tenth of the rows is
padding, as it is in batches of similar length. The two sides in turn, each round; medians. Passes under the precision that is
chosen for this processor, and updates (forward and backward, no optimizer) under the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from arms import HERE, text_model, written

SIDES = ("eager", "sdpa")
TOKENS, ROWS = 1024, 32


def seconds(run: Callable[[], Any]) -> float:
    """CPU seconds of one call, of as many as take a fifth of a second."""
    run()
    clock, calls = time.process_time(), 0
    while (spent := time.process_time() - clock) < 0.2:
        run()
        calls += 1
    return spent / calls


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", default="16,32,64,128,256,512", help="tokens a row, with commas between them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "attention.json")
    told = parser.parse_args(words)
    import torch
    import transformers

    from affinage.features import auto_precision, autocast

    torch.set_num_threads(1)
    precision = auto_precision()
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    models = {
        side: load(text_model(), num_labels=2, attn_implementation=side).eval() for side in SIDES
    }  # no dropout: kernels alone
    taken: dict[str, dict[str, list[float]]] = {}
    for length in map(int, told.lengths.split(",")):
        rows = max(1, min(ROWS, TOKENS // length))
        mask = torch.ones(rows, length, dtype=torch.int64)
        mask[: rows // 2, -max(1, length // 5) :] = 0
        batch = {"input_ids": torch.randint(1000, 20000, (rows, length)), "attention_mask": mask}
        for _ in range(told.rounds):
            for side, model in models.items():

                def forward(model: Any = model, batch: dict[str, Any] = batch) -> Any:
                    with autocast(precision):
                        return model(**batch).logits

                def update(forward: Callable[[], Any] = forward) -> None:
                    forward().float().square().sum().backward()

                with torch.no_grad():
                    passed = seconds(forward)
                found = taken.setdefault(f"{length} tokens, {rows} rows", {})
                found.setdefault(f"pass {side}", []).append(passed)
                found.setdefault(f"update {side}", []).append(seconds(update))
                model.zero_grad()
    medians = {name: {key: statistics.median(values) for key, values in found.items()} for name, found in taken.items()}
    ratios = {
        name: {what: found[f"{what} sdpa"] / found[f"{what} eager"] for what in ("pass", "update")}
        for name, found in medians.items()
    }
    written(told.out, {"precision": precision, "sdpa_over_eager": ratios, "median": medians, "rounds": taken})
    print(json.dumps(ratios, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
