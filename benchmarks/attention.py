"""Eager attention against torch's fused kernel (SDPA) and ours on a CPU, by the length of the rows: CPU s of passes and updates.

    python benchmarks/attention.py [--lengths 8,12,16,32,64,128,256,512] [--rounds 3]

MiniLM with random words, one thread, batches of about 1,024 tokens as a pass has them, without padding, or `padded`, where half
of the rows are a token shorter, as it is in batches of similar length. The sides in turn, each round; medians. Passes under the
precision that is chosen for this processor, and updates (forward and backward, no optimizer) under the same. `quick` is eager
attention as a pass in bf16 has it (`attention.py`), which is for passes alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from arms import HERE, text_model, written

SIDES = ("eager", "sdpa")  # by transformers
WAYS = (*SIDES, "quick")
RATIOS = (("pass", "sdpa"), ("update", "sdpa"), ("pass", "quick"))
TOKENS = 1024


def seconds(run: Callable[[], Any]) -> float:
    """CPU seconds of one call, of as many as take two fifths of a second."""
    run()
    clock, calls = time.process_time(), 0
    while (spent := time.process_time() - clock) < 0.4:
        run()
        calls += 1
    return spent / calls


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", default="8,12,16,32,64,128,256,512", help="tokens a row, with commas between them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "attention.json")
    told = parser.parse_args(words)
    import torch
    import transformers

    from affinage import features
    from affinage.features import auto_precision, autocast, keep_freed_memory, packed

    torch.set_num_threads(1)
    precision, quick = auto_precision(), features.quick_attention
    keep_freed_memory()
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    models = {
        side: load(text_model(), num_labels=2, attn_implementation=side).eval() for side in SIDES
    }  # no dropout: kernels alone
    taken: dict[str, dict[str, list[float]]] = {}
    for length, even in ((int(length), even) for length in told.lengths.split(",") for even in (True, False)):
        rows = max(1, TOKENS // length)
        mask = torch.ones(rows, length, dtype=torch.int64)
        if not even:
            mask[: rows // 2, -1:] = 0
        batch = {"input_ids": torch.randint(1000, 20000, (rows, length)), "attention_mask": mask}
        for _ in range(told.rounds):
            for side in WAYS:
                model = models["eager" if side == "quick" else side]

                def forward(model: Any = model, batch: dict[str, Any] = batch) -> Any:
                    with autocast(precision):
                        return model(**batch).logits

                def update(forward: Callable[[], Any] = forward) -> None:
                    forward().float().square().sum().backward()

                features.quick_attention = quick if side == "quick" else lambda model: nullcontext()
                with torch.inference_mode(), packed(model, precision):
                    passed = seconds(forward)
                found = taken.setdefault(f"{length} tokens, {rows} rows{'' if even else ', padded'}", {})
                found.setdefault(f"pass {side}", []).append(passed)
                if side in SIDES:
                    found.setdefault(f"update {side}", []).append(seconds(update))
                model.zero_grad()
    medians = {name: {key: statistics.median(values) for key, values in found.items()} for name, found in taken.items()}
    ratios = {
        name: {f"{what} {side}": found[f"{what} {side}"] / found[f"{what} eager"] for what, side in RATIOS}
        for name, found in medians.items()
    }
    written(told.out, {"precision": precision, "over_eager": ratios, "median": medians, "rounds": taken})
    print(json.dumps(ratios, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
