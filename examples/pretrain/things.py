"""Where in a photograph the thing is that its label names, told by a classifier that never saw a box.

The map of a class (Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016): the last feature map,
weighted as the head weighs its mean for that class. Maps of several sizes of the same photograph are added; the thing is the
largest patch that stands above `LEVEL` of the range. Such a box is a guess, and worth learning from only in numbers.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIDES = (64, 96, 128)  # pixels: starter-vision was taught at 64
LEVEL = 0.55
LEAST_SURE = 0.2  # probability of the label, as the classifier sees the photograph: below it the map says little
LARGEST = 0.8  # share of what stands above the level that its largest patch must hold: else there are several things
AREA = (0.05, 0.95)  # of the photograph
BATCH = 256


@dataclass(frozen=True)
class Thing:
    """A photograph, encoded, and the box of what its label names: x, y, width, height as shares of the sides."""

    photo: bytes
    box: tuple[float, float, float, float]


def patch(level: np.ndarray) -> tuple[float, float, float, float] | None:
    """The box of a (side, side) map's one thing, in shares of the side; None where there is no one thing."""
    from scipy import ndimage

    low, high = float(level.min()), float(level.max())
    above = level > low + LEVEL * (high - low)
    regions, count = ndimage.label(above)
    if not count:
        return None
    sizes = ndimage.sum(above, regions, range(1, count + 1))
    ys, xs = np.nonzero(regions == 1 + int(np.argmax(sizes)))
    side = len(level)
    x, y, width, height = xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()
    if sizes.max() < LARGEST * sizes.sum() or not AREA[0] < width * height / side**2 < AREA[1]:
        return None
    return float(x / side), float(y / side), float(width / side), float(height / side)


def find(folder: Path, classifier: Path | None = None) -> list[Thing]:
    """The photographs of `folder` (train*.parquet: `image`, `label`) in which starter-vision, or another ResNet, finds one."""
    import pyarrow.parquet as pq
    import torch
    import transformers as T

    from affinage import starters

    model = T.ResNetForImageClassification.from_pretrained(
        classifier or starters.place("starter-vision"), dtype=torch.float32
    ).eval()
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    weight, bias = model.classifier[1].weight, model.classifier[1].bias
    found: list[Thing] = []
    for file in sorted(folder.glob("train*.parquet")):
        rows = pq.read_table(file, columns=["image", "label"]).to_pylist()
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            photos = [row["image"]["bytes"] for row in some]
            labels = torch.tensor([model.config.label2id[str(row["label"])] for row in some])
            every = torch.arange(len(some))
            total, sure = torch.zeros(len(some), SIDES[0], SIDES[0]), torch.ones(len(some))
            images = [Image.open(io.BytesIO(photo)).convert("RGB") for photo in photos]
            for side in SIDES:
                pixels = np.stack([np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)) for image in images])
                with torch.no_grad():
                    maps = model.resnet((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std).last_hidden_state
                    if side == SIDES[0]:
                        sure = (maps.mean((2, 3)) @ weight.T + bias).softmax(1)[every, labels]
                    own = torch.einsum("bchw,bc->bhw", maps, weight[labels] - weight.mean(0))
                    own = torch.nn.functional.interpolate(own[:, None], (SIDES[0],) * 2, mode="bicubic")[:, 0]
                    total += (own - own.mean((1, 2), keepdim=True)) / own.std((1, 2), keepdim=True)
            boxes = [patch(level) for level in total.numpy()]
            found += [
                Thing(photo, box) for photo, box, p in zip(photos, boxes, sure.tolist(), strict=True) if box and p > LEAST_SURE
            ]
    return found


def pasted(things: Sequence[Thing], side: int, draw: np.random.Generator) -> tuple[Image.Image, list[list[float]]]:
    """A picture of one photograph, or of four or nine in a square, and the boxes in it: x, y, width, height in pixels."""
    across = int(draw.choice((1, 2, 3), p=(0.4, 0.4, 0.2)))
    picture, boxes = Image.new("RGB", (side, side)), []
    for i in range(across**2):
        one = things[draw.integers(len(things))]
        cell = side // across
        size = round(cell * draw.uniform(1.0, 1.25))  # a part of it is seen, but no more than half of the thing may be lost
        shift = draw.integers(0, size - cell + 1, 2)
        place = np.array([i % across, i // across]) * cell
        image = Image.open(io.BytesIO(one.photo)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        low = np.array(one.box[:2]) * size - shift
        high = low + np.array(one.box[2:]) * size
        seen_low, seen_high = np.clip(low, 0, cell), np.clip(high, 0, cell)
        if np.prod(seen_high - seen_low) < 0.5 * np.prod(high - low):  # the whole photograph then
            image, seen_low = image.resize((cell, cell), Image.Resampling.BICUBIC), np.array(one.box[:2]) * cell
            seen_high, shift = seen_low + np.array(one.box[2:]) * cell, np.zeros(2, int)
        image = image.crop((int(shift[0]), int(shift[1]), int(shift[0]) + cell, int(shift[1]) + cell))
        picture.paste(image, (int(place[0]), int(place[1])))
        boxes.append([*(seen_low + place).tolist(), *(seen_high - seen_low).tolist()])
    return picture, boxes
