"""Made pictures of things with their boxes, for a detector to begin with: shapes and, where given, small photographs on textures.

With photographs, half of the pictures are photographs as they are, one, four or nine, and the box is drawn around what a
classifier looks at (examples/pretrain/things.py).

Writes `train.json` and `validation.json` (COCO) and their pictures. Every picture is a pure function of the seed and its number,
so that the same command gives the same bytes. A box is drawn around what of a thing is inside the picture; a thing that is
covered by later ones but for a quarter has none. One picture in twenty is empty: a detector must learn to say nothing, too.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import things
from PIL import Image, ImageDraw, ImageFilter

SHAPES = ("disc", "ring", "ellipse", "box", "triangle", "star", "cross", "crescent")
PHOTO, THING, RACCOON = "photo", "thing", "raccoon"
CLASSES = (*SHAPES, PHOTO, THING)
FINE = 4  # masks are drawn so many times larger and then made small: their edges are smooth
SEEN = 0.25  # share of a thing that must be visible for it to have a box
LEAST = 6  # pixels: a thing narrower or lower than this has no box


def outline(kind: str, turn: float, draw: np.random.Generator) -> list[tuple[float, float]]:
    """Corners of a shape about (0, 0), at most 1 away from it."""
    squash = draw.uniform(0.45, 0.8) if kind == "ellipse" else draw.uniform(0.6, 1.0) if kind == "box" else 1.0
    if kind in ("disc", "ring", "ellipse"):
        steps = np.linspace(0, 2 * math.pi, 48, endpoint=False)
        points = np.stack([np.cos(steps), squash * np.sin(steps)], 1)
    elif kind == "box":
        points = np.array([(-1, -squash), (1, -squash), (1, squash), (-1, squash)]) / math.hypot(1, squash)
    elif kind == "triangle":
        steps = np.arange(3) * 2 * math.pi / 3
        points = np.stack([np.cos(steps), np.sin(steps)], 1)
    elif kind == "star":
        steps, far = np.arange(10) * math.pi / 5, np.where(np.arange(10) % 2, 0.42, 1.0)
        points = np.stack([far * np.cos(steps), far * np.sin(steps)], 1)
    elif kind == "cross":
        w = draw.uniform(0.22, 0.38)
        corner = [(w, w), (w, 1), (-w, 1), (-w, w), (-1, w), (-1, -w), (-w, -w), (-w, -1), (w, -1), (w, -w), (1, -w), (1, w)]
        points = np.array(corner) / math.hypot(1, w)
    else:  # crescent
        outer, inner = np.linspace(-2.2, 2.2, 24), np.linspace(1.6, -1.6, 24)
        points = np.concatenate([np.stack([np.cos(outer), np.sin(outer)], 1), np.stack([np.cos(inner) - 0.45, np.sin(inner)], 1)])
    c, s = math.cos(turn), math.sin(turn)
    return [(c * x - s * y, s * x + c * y) for x, y in points.tolist()]


def mask(kind: str, centre: tuple[float, float], radius: float, side: int, draw: np.random.Generator) -> np.ndarray:
    """(side, side) float32 in 0..1: how much of each pixel the thing covers; a photograph lies under a rounded square."""
    image = Image.new("L", (side * FINE, side * FINE))
    pen, (x, y) = ImageDraw.Draw(image), centre
    if kind == PHOTO:
        ends = [(FINE * (c + d * radius * 0.8)) for d in (-1, 1) for c in (x, y)]
        pen.rounded_rectangle(ends, FINE * radius * draw.uniform(0.1, 0.8), fill=255)
    else:
        turn = draw.uniform(0, 2 * math.pi)
        pen.polygon([(FINE * (x + radius * px), FINE * (y + radius * py)) for px, py in outline(kind, turn, draw)], fill=255)
    if kind == "ring":
        hole = draw.uniform(0.45, 0.75) * radius
        pen.ellipse([FINE * (x - hole), FINE * (y - hole), FINE * (x + hole), FINE * (y + hole)], fill=0)
    return np.asarray(image.reduce(FINE), np.float32) / 255


def texture(side: int, draw: np.random.Generator, photos: Sequence[bytes] = ()) -> np.ndarray:
    """(side, side, 3) float32 in 0..255: noise of several grains, a ramp, stripes, or a photograph out of focus."""
    base = draw.uniform(20, 235, 3)
    kind = draw.integers(4 if len(photos) else 3)
    if kind == 3:
        seen = Image.open(io.BytesIO(photos[draw.integers(len(photos))])).convert("RGB").resize((side, side))
        return np.asarray(seen.filter(ImageFilter.GaussianBlur(side / draw.uniform(12, 60))), np.float32)
    ground = np.broadcast_to(base, (side, side, 3)).astype(np.float32)
    across, down = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    turn = draw.uniform(0, 2 * math.pi)
    along = (math.cos(turn) * across + math.sin(turn) * down)[..., None]
    if kind == 1:
        ground = ground + along * draw.uniform(-70, 70, 3)
    elif kind == 2:
        ground = ground + np.sign(np.sin(along * draw.uniform(6, 40))) * draw.uniform(-35, 35, 3)
    for grain in (4, 16, side // 2):
        noise = draw.normal(0, draw.uniform(0, 14), (grain, grain, 3)).astype(np.float32)
        layers = [np.asarray(Image.fromarray(noise[..., c]).resize((side, side), Image.Resampling.BICUBIC)) for c in range(3)]
        ground = ground + np.stack(layers, -1)
    return ground.astype(np.float32)


def scene(
    side: int, draw: np.random.Generator, photos: Sequence[bytes] = ()
) -> tuple[Image.Image, list[tuple[str, list[float]]]]:
    """A picture and, for each thing in it, (class, [x, y, width, height] in pixels)."""
    canvas = texture(side, draw, photos)
    crowd = draw.random() < 0.4  # many alike, as cells under a microscope
    most = 24 if crowd else 7
    count = 0 if draw.random() < 0.05 else int(draw.integers(8 if crowd else 1, most + 1))
    kinds = (*SHAPES, PHOTO, PHOTO) if len(photos) else SHAPES
    usual, size = kinds[draw.integers(len(kinds))], draw.uniform(0.05, 0.1)
    colour, see_through = draw.uniform(0, 255, 3), draw.uniform(0.55, 1.0) if crowd else 1.0
    placed: list[tuple[str, np.ndarray, np.ndarray]] = []  # (class, what it covers, what of that is still visible)
    for _ in range(count):
        kind = usual if crowd and draw.random() < 0.8 else kinds[draw.integers(len(kinds))]
        radius = side * (size * draw.uniform(0.75, 1.3) if crowd else draw.uniform(0.05, 0.3))
        where = (side * draw.uniform(-0.02, 1.02), side * draw.uniform(-0.02, 1.02))
        alpha = mask(kind, where, radius, side, draw)
        if kind == PHOTO:
            picture = Image.open(io.BytesIO(photos[draw.integers(len(photos))])).convert("RGB")
            width = max(1, round(1.6 * radius))
            inside = Image.new("RGB", (side, side))
            inside.paste(picture.resize((width, width)), (round(where[0] - width / 2), round(where[1] - width / 2)))
            fill = np.asarray(inside, np.float32)
        elif crowd:
            fill = np.clip(colour + draw.normal(0, 12, 3), 0, 255)[None, None] + draw.normal(0, 6, (side, side, 1))
        else:
            fill = texture(side, draw)
        cover = (alpha * (see_through if kind != PHOTO else 1.0))[..., None]
        canvas = canvas * (1 - cover) + fill * cover
        if kind != PHOTO and draw.random() < 0.5:  # a darker or lighter rim
            edge = np.abs(np.gradient(alpha)[0]) + np.abs(np.gradient(alpha)[1])
            canvas = canvas + (draw.uniform(-120, 120) * np.minimum(edge, 1))[..., None]
        placed = [(k, whole, seen * (1 - alpha)) for k, whole, seen in placed] + [(kind, alpha, alpha)]
    shade = draw.uniform(0.75, 1.2) * canvas + draw.normal(0, draw.uniform(0, 6), canvas.shape)
    found = []
    for kind, whole, seen in placed:
        ys, xs = np.nonzero(whole > 0.5)
        if not len(xs) or seen.sum() < SEEN * whole.sum():
            continue
        box = [float(xs.min()), float(ys.min()), float(xs.max() - xs.min() + 1), float(ys.max() - ys.min() + 1)]
        if min(box[2:]) >= LEAST:
            found.append((kind, box))
    return Image.fromarray(np.clip(shade, 0, 255).astype(np.uint8)), found


def photographs(folder: Path | None) -> list[bytes]:
    """The encoded training pictures of a folder of Parquet files with a column `image`; none where no folder is given."""
    if folder is None:
        return []
    import pyarrow.parquet as pq

    found = []
    for file in sorted(folder.glob("train*.parquet")):
        found += [cell["bytes"] if isinstance(cell, dict) else cell for cell in pq.read_table(file)["image"].to_pylist()]
    return found


class Coco:
    """A COCO file as it grows."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, name: str, size: tuple[int, int], seen: Sequence[tuple[str, Sequence[float]]]) -> None:
        """One picture of `size` (width, height)."""
        number = len(self.images)
        self.images.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        for kind, box in seen:
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": number,
                    "category_id": self.classes.index(kind),
                    "bbox": [round(v, 2) for v in box],
                    "area": round(box[2] * box[3], 2),
                    "iscrowd": 0,
                }
            )

    def write(self, path: Path) -> None:
        categories = [{"id": i, "name": name} for i, name in enumerate(self.classes)]
        whole = {"images": self.images, "annotations": self.annotations, "categories": categories}
        path.write_text(json.dumps(whole), encoding="utf8")


def raccoons(folder: Path, source: str, out: Path, into: Coco, prefix: str) -> None:
    """The photographs of a COCO file whose only class is the raccoon, copied below `out`."""
    told = json.loads((folder / source).read_text(encoding="utf8"))
    for image in told["images"]:
        boxes = [("raccoon", a["bbox"]) for a in told["annotations"] if a["image_id"] == image["id"]]
        with Image.open(folder / image["file_name"]) as picture:
            name = f"images/{prefix}-raccoon-{image['id']}.jpg"
            picture.convert("RGB").save(out / name, quality=90)
            into.add(name, picture.size, boxes)


def write(
    out: Path, count: int, side: int, seed: int, photos: Path | None = None, raccoon: Path | None = None, found: bool = True
) -> None:
    """`count` training scenes of `side` x `side` pixels, a twentieth as many for validation, and the raccoons.

    `found`: half of the pictures are photographs with the things that were found in them; nothing without `photos`.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    real = things.find(photos) if photos is not None and found else []
    # each from its own number, so that it is the same in whatever process
    with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=_look, initargs=(photos, real)) as processes:
        for split, number, many in (("train", 0, count), ("validation", 1, max(1, count // 20))):
            coco = Coco(CLASSES if raccoon is None else (*CLASSES, RACCOON))
            names = [f"images/{split}-{i:06d}.jpg" for i in range(many)]
            jobs = [(out / name, side, (seed, number, i)) for i, name in enumerate(names)]
            for name, seen in zip(names, processes.map(_drawn, jobs, chunksize=16), strict=True):
                coco.add(name, (side, side), seen)
            if raccoon is not None:
                raccoons(raccoon, "coco_train.json" if split == "train" else "coco_val.json", out, coco, split)
            coco.write(out / f"{split}.json")


_photographs: list[bytes] = []  # of a process that draws
_things: list[things.Thing] = []


def _look(photos: Path | None, found: Sequence[things.Thing]) -> None:
    _photographs[:], _things[:] = photographs(photos), found


def _drawn(job: tuple[Path, int, tuple[int, int, int]]) -> list[tuple[str, list[float]]]:
    """The scene of these numbers, saved at that path; the things in it."""
    path, side, numbers = job
    draw = np.random.default_rng(numbers)
    if _things and draw.random() < 0.5:
        image, boxes = things.pasted(_things, side, draw)
        seen = [(THING, box) for box in boxes]
    else:
        image, seen = scene(side, draw, _photographs)
    image.save(path, quality=90)
    return seen


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=6000, help="training scenes")
    parser.add_argument("--side", type=int, default=192, help="pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--photos", type=Path, help="a folder with train*.parquet of small photographs, pasted as things")
    parser.add_argument("--raccoon", type=Path, help="a folder with coco_train.json and coco_val.json of raccoons")
    told = parser.parse_args(words)
    write(told.out, told.count, told.side, told.seed, told.photos, told.raccoon)


if __name__ == "__main__":
    main()
