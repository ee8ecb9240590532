"""JPEG decoded whole, and at the least size that still holds the model's (`PIL.Image.draft`): CPU time, and how pixels move.

    python benchmarks/decode.py [--rounds 5] [--data ../shared/data]

The photographs of `hymenoptera` as they are, and forty of them enlarged six times and encoded again, as large as a camera's; to
the sides of starter-vision (64) and of most models (224), all ways in turn on one thread. Each picture is read, made RGB and
shrunk, as in `affinage/pictures.py`; `double` asks for twice the sides and more, so that the last shrinking still averages. One
line in `benchmarks/results/decode.json`: medians of the rounds in milliseconds a picture, and by how many of 255 levels pixels
differ from those of the whole picture.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arms import HERE, written

SIDES = (64, 224)
WAYS = {"whole": 0, "draft": 1, "double": 2}  # how many times the sides the decoder is asked for; 0: all there is


def shrunk(encoded: bytes, side: int, times: int) -> Any:
    """(side, side, 3) uint8."""
    import numpy as np
    from PIL import Image

    image = Image.open(io.BytesIO(encoded))
    if times:
        image.draft("RGB", (times * side, times * side))
    return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))


def enlarged(encoded: bytes) -> bytes:
    """Six times as wide and as high, as JPEG of usual quality."""
    from PIL import Image

    image, made = Image.open(io.BytesIO(encoded)).convert("RGB"), io.BytesIO()
    image.resize((6 * image.width, 6 * image.height), Image.Resampling.BICUBIC).save(made, "JPEG", quality=90)
    return made.getvalue()


def compared(pictures: Sequence[bytes], side: int, rounds: int) -> dict[str, float]:
    """Milliseconds a picture of each way, and how far its pixels are from those of the whole picture."""
    import numpy as np

    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    pixels: dict[str, Any] = {}
    for _ in range(rounds):
        for way, times in WAYS.items():
            started = time.process_time()
            pixels[way] = [shrunk(picture, side, times) for picture in pictures]
            spent[way].append(1e3 * (time.process_time() - started) / len(pictures))
    found = {f"{way}_ms": round(statistics.median(values), 3) for way, values in spent.items()}
    for way in ("draft", "double"):
        apart = np.abs(np.stack(pixels[way]).astype(int) - np.stack(pixels["whole"]))
        found |= {f"{way}_mean_levels": round(float(apart.mean()), 3), f"{way}_most_levels": int(apart.max())}
    return found


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "decode.json")
    told = parser.parse_args(words)
    pictures = [path.read_bytes() for path in sorted((told.data / "hymenoptera").rglob("*.jpg"))]
    found: dict[str, Any] = {"pictures": len(pictures), "rounds": told.rounds}
    for name, some in (("as they are", pictures), ("enlarged", [enlarged(one) for one in pictures[:40]])):
        for side in SIDES:
            found[f"{name}, {side}"] = compared(some, side, told.rounds)
            print(name, side, found[f"{name}, {side}"])
    written(told.out, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
