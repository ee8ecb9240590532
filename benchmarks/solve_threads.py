"""How many BLAS threads the solved head should have: CPU seconds and seconds by the clock of `solve`, features made by chance.

    python benchmarks/solve_threads.py [--rounds 3]

NumPy brings one BLAS and SciPy another, and each one's threads wait busily for the next product. Threads take turns within a
round; a line a size, medians, in `benchmarks/results/solve_threads.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from arms import HERE, written
from threadpoolctl import threadpool_limits

SIZES = ((1000, 384, 2), (1000, 512, 10), (6920, 384, 2), (5000, 384, 6), (5000, 768, 100))  # rows, features, classes


def made(rows: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of normal noise around a middle of each class, and the classes."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, classes, rows)
    middles = rng.normal(size=(classes, width)) / 4
    return (middles[targets] + rng.normal(size=(rows, width))).astype(np.float32), targets


def taken(size: tuple[int, int, int], threads: int) -> tuple[float, float]:
    """(seconds, CPU seconds) of one solve."""
    from affinage import solve

    @contextlib.contextmanager
    def limited() -> Iterator[None]:
        with threadpool_limits(threads, user_api="blas"):
            yield

    own, solve._few_threads = solve._few_threads, limited
    try:
        features, targets = made(*size)
        clock, cpu = time.perf_counter(), time.process_time()
        solve.solve(features, targets, size[-1])
        return time.perf_counter() - clock, time.process_time() - cpu
    finally:
        solve._few_threads = own


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "solve_threads.json")
    told = parser.parse_args(words)
    counts = [2**k for k in range((os.cpu_count() or 1).bit_length()) if 2**k <= (os.cpu_count() or 1)]
    rows = []
    for size in SIZES:
        found: dict[int, list[tuple[float, float]]] = {threads: [] for threads in counts}
        for _ in range(told.rounds):
            for threads in counts:
                found[threads].append(taken(size, threads))
        line = {
            threads: {"seconds": statistics.median(s for s, _ in each), "cpu_seconds": statistics.median(c for _, c in each)}
            for threads, each in found.items()
        }
        rows.append({"rows": size[0], "features": size[1], "classes": size[2], "threads": line})
        said = [f"{threads}: {one['seconds']:.2f} s, {one['cpu_seconds']:.2f} CPU s" for threads, one in line.items()]
        print(*size, "threads", *said, sep=", ", flush=True)
    written(told.out, {"rounds": told.rounds, "cores": os.cpu_count(), "sizes": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
