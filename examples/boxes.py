"""The demo of a starter (`make demo`): does what starter-detector knows help to find handwritten digits from twenty pictures?

The digits of scikit-learn are laid on made textures, from one to five in a picture, at any size and in any colour. The detector
that comes with the package and the same network with fresh weights learn from the same twenty pictures for as many epochs; the
test pictures show digits that were in none of them. No download.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; as in demo.py

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).parent / "pretrain"))

import scenes
from telling import between, table, verdict

import affinage

SIDE = 160  # pixels, as starter-detector was taught
TRAIN, TEST = 20, 60  # pictures
LEARNT = 900  # of the 1,797 digits those that may stand in a training picture; the test draws from the others
EPOCHS, BATCH, LONGER = 16, 8, 4
COVERED = 0.3  # a digit that would overlap an earlier one by more than this share of a side is left out
INK = 0.3  # where a digit is at least so dense, its box holds it


def picture(pixels: np.ndarray, draw: np.random.Generator) -> dict[str, Any]:
    """One to five of the (n, 8, 8) digits on a texture: an `image` and its `objects` (x, y, width, height)."""
    canvas = scenes.texture(SIDE, draw).copy()
    squares: list[tuple[int, int, int]] = []
    boxes: list[list[int]] = []
    for _ in range(draw.integers(1, 6)):
        width = int(draw.integers(24, 72))
        x, y = (int(place) for place in draw.integers(0, SIDE - width, 2))
        if any(_overlap(x, a, width, w) > COVERED and _overlap(y, b, width, w) > COVERED for a, b, w in squares):
            continue
        digit = Image.fromarray((pixels[draw.integers(len(pixels))] * (255 / 16)).astype(np.uint8))
        ink = np.asarray(digit.resize((width, width), Image.Resampling.BICUBIC), np.float32) / 255
        patch = canvas[y : y + width, x : x + width]
        patch[:] = patch * (1 - ink[..., None]) + draw.uniform(0, 255, 3) * ink[..., None]
        ys, xs = np.nonzero(ink > INK)
        squares.append((x, y, width))
        boxes.append([x + int(xs.min()), y + int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1])
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    return {"image": image, "objects": {"bbox": boxes, "category": ["digit"] * len(boxes)}}


def _overlap(a: int, b: int, left: int, right: int) -> float:
    """What two intervals, from a and from b, have in common, as a share of the shorter."""
    return (min(a + left, b + right) - max(a, b)) / min(left, right)


def rows(seed: int) -> dict[str, list[dict[str, Any]]]:
    """Twenty pictures to learn from and sixty to test on; no digit is in both."""
    draw = np.random.default_rng(seed)
    found = load_digits().images
    order = draw.permutation(len(found))
    learnt, kept = found[order[:LEARNT]], found[order[LEARNT:]]
    return {"train": [picture(learnt, draw) for _ in range(TRAIN)], "test": [picture(kept, draw) for _ in range(TEST)]}


def experiment(out: Path, seeds: int, long: bool) -> dict[str, list[dict[str, float]]]:
    """For each arm one row a seed: mAP@.5 on the test pictures, and the seconds that it learnt for."""
    arms = {"scratch": ("scratch", EPOCHS), "two-stage": ("two-stage", EPOCHS)}
    if long:
        arms["scratch-long"] = ("scratch", EPOCHS * LONGER)
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for seed in range(seeds):
        made = rows(seed)
        for arm, (plan, epochs) in arms.items():
            run = affinage.fit("starter-detector", made, plan=plan, epochs=epochs, batch_size=BATCH, seed=seed, leaks="drop",
                               out=out / f"{arm}-{seed}", overwrite=True, quiet=True)  # fmt: skip
            seconds = sum(stage["cost"]["seconds"] for stage in run.record["stages"])
            found[arm].append({"map50": run.metrics["map50"], "seconds": seconds})
        print(f"seed {seed}: mAP@.5 " + ", ".join(f"{arm} {found[arm][-1]['map50']:.2f}" for arm in arms), flush=True)
    return found


def shown(found: dict[str, list[dict[str, float]]]) -> str:
    """What the numbers say of two-stage against scratch, on the same pictures in each seed."""
    differences = [a["map50"] - b["map50"] for a, b in zip(found["two-stage"], found["scratch"], strict=True)]
    return f"With {TRAIN} pictures {verdict(differences, 'starter-detector', 'the same network from scratch', 'mAP@.5')}"


def main(arguments: Sequence[str] | None = None) -> dict[str, list[dict[str, float]]]:
    """Run the experiment, print its table; returns the rows behind the table."""
    parser = argparse.ArgumentParser(
        description=f"Digits found in pictures from {TRAIN} of them, with a starter and from scratch."
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo/boxes"), help="where the runs go (default runs/demo/boxes)")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the pictures (default 3)")
    parser.add_argument("--long", action="store_true", help=f"scratch for {LONGER} times as many epochs, too")
    wishes = parser.parse_args(arguments)
    began = time.perf_counter()
    found = experiment(wishes.out, wishes.seeds, wishes.long)

    table(
        f"Handwritten digits in pictures, {TRAIN} pictures, {wishes.seeds} seeds",
        ("arm", "mAP@.5 (95 %)", "seconds to learn"),
        [
            (arm, between([row["map50"] for row in seeds]), f"{np.mean([row['seconds'] for row in seeds]):.1f}")
            for arm, seeds in found.items()
        ],
    )
    print(shown(found))
    print(f"Its boxes in pictures: {wishes.out / 'two-stage-0' / 'report.html'} ({time.perf_counter() - began:.0f} s in all)")
    return found


if __name__ == "__main__":
    try:
        main()
    except affinage.AffinageError as error:
        raise SystemExit(f"demo: {error}") from None
