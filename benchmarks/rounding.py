"""How far a run that computes once what is frozen lies from one that does not: losses of each epoch, probabilities of the test.

    python benchmarks/rounding.py [--rows 400] [--unfreeze 2] [--epochs 3]

MiniLM on sentences of sst2, one thread, in fp32 and in bf16; `half` is bf16 with a store that is in bf16 as well, because no more
fits in its budget. Batches have other shapes above the cut than through the whole network only where rows are padded otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arms import HERE, splits, text_model, written

WAYS: dict[str, tuple[str, float]] = {"fp32": ("fp32", 4.0), "bf16": ("bf16", 4.0), "half": ("bf16", 0.0)}  # precision, cache_gb


def taken(data: Any, told: argparse.Namespace, precision: str, **more: Any) -> tuple[dict[str, Any], list[float], Any]:
    """(record, training loss of each epoch, test probabilities) of one run."""
    import numpy as np
    import pyarrow.parquet as pq

    import affinage
    from affinage import record

    with tempfile.TemporaryDirectory() as folder:
        options = {"unfreeze": told.unfreeze, "epochs": told.epochs, "labels_per_class": told.rows // 2, "leaks": "drop"}
        run = affinage.fit(text_model(), data, out=Path(folder) / "run", precision=precision, quiet=True, **options, **more)
        lines = record.read(Path(folder) / "run" / "records.jsonl")
        losses = [line.value for line in lines if (line.split, line.name) == ("train", "loss")]
        table = pq.read_table(Path(folder) / "run" / "predictions.parquet", filters=[("split", "=", "test")])
        return run.record, losses, np.asarray(table["probabilities"].to_pylist())


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--unfreeze", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data", help="the folder that holds sst2/")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "rounding.json")
    told = parser.parse_args(words)
    import numpy as np
    import torch

    torch.set_num_threads(1)
    data, found = splits("sst2", told.data), {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AFFINAGE_CACHE"] = folder
        size = 0.0
        for name, (precision, budget) in WAYS.items():
            whole, losses, wanted = taken(data, told, precision, cache="off")
            once, others, got = taken(data, told, precision, cache_gb=budget or 0.75 * size / 1e9)
            cut = once["cuts"]["body"]
            assert not cut["why"], cut
            size = cut["bytes"]
            found[name] = {
                "stored": cut["dtype"],
                "loss": max(abs(a - b) for a, b in zip(losses, others, strict=True)),
                "probability": float(np.abs(wanted - got).max()),
                "decisions": int((wanted.argmax(1) != got.argmax(1)).sum()),
                "accuracy": [whole["test"]["accuracy"], once["test"]["accuracy"]],
            }
            print(name, json.dumps(found[name]), flush=True)
    written(told.out, {"rows": told.rows, "unfreeze": told.unfreeze, "epochs": told.epochs, "largest difference": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
