"""Pictures as rows: opened whatever they come as, resized as the checkpoint's processor does it, kept as bytes where they can."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affinage import spool
from affinage.errors import AffinageError
from affinage.spool import Block
from affinage.types import Batch

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PIXELS = 100_000_000  # a larger picture is refused by its header, before any of it is decoded
PART = 256  # pictures that are decoded at once
PROBED = 4  # pictures that tell how long one takes to decode
QUICK = 1e-3  # seconds below which it is over before a thread has taken it up
TOGETHER = 16  # such pictures that the processor is given in one call
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
ORIENTATION = 0x0112


@dataclass(frozen=True)
class ImageRows:
    """N pictures at the size that the model reads: uint8 where the processor's scaling is affine, else its own float output."""

    pixels: np.ndarray | Block | Decoded  # (N, 3, H, W) uint8 or float32: in memory, on the disk, or decoded at every look
    scale: np.ndarray  # (3,) float32: value = pixel * scale + shift
    shift: np.ndarray  # (3,)

    @property
    def lengths(self) -> np.ndarray:
        return np.ones(len(self.pixels), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, rows: np.ndarray) -> Batch:
        """`pixel_values`, (B, 3, H, W) float32, on the network's device: bytes travel to a GPU, and become numbers there."""
        import torch

        from affinage.features import device

        where = device()
        raw = torch.from_numpy(self.pixels[np.asarray(rows)]).to(where).float()  # a copy: rows are picked by number
        scale, shift = (torch.from_numpy(each)[:, None, None].to(where) for each in (self.scale, self.shift))
        return {"pixel_values": raw.mul_(scale).add_(shift)}

    def blank(self, count: int) -> Batch:
        """A batch of so many rows for what does not look into them: it has their shape, and no memory."""
        import torch

        from affinage.features import device

        return {"pixel_values": torch.zeros((), device=device()).expand(count, 3, *self.sides)}

    @cached_property
    def sides(self) -> tuple[int, ...]:
        """(H, W) of every picture."""
        return self.pixels[np.arange(1)].shape[2:]

    def raw(self, rows: np.ndarray) -> Batch:
        """What `batch` makes its numbers from: a quarter of the bytes to look at."""
        import torch

        parts = {"pixels": self.pixels[np.asarray(rows)], "scale": self.scale, "shift": self.shift}
        return {name: torch.from_numpy(part) for name, part in parts.items()}


def opened(picture: Any, least: int = 0) -> Image:
    """The picture as RGB, from a path, encoded bytes, an array (H, W[, 3]) or a PIL image.

    `least`: pixels wide and high that are enough: a JPEG of twice that and more is decoded smaller, by 2, 4 or 8 (`Image.draft`).

    Raises:
        AffinageError: too many pixels, or not a readable picture.
    """
    from PIL import Image, ImageOps

    name = "encoded bytes" if isinstance(picture, bytes) else picture
    try:
        if isinstance(picture, np.ndarray):
            image = Image.fromarray(picture)
        elif isinstance(picture, bytes):
            image = Image.open(io.BytesIO(picture))
        elif isinstance(picture, (str, Path)):
            image = Image.open(io.BytesIO(Path(picture).read_bytes()))  # no file is left open, whatever happens below
        else:
            image = picture
        if image.width * image.height > MOST_PIXELS:
            raise AffinageError(
                f"a picture of {image.width} x {image.height} pixels: at most {MOST_PIXELS // 10**6} million; shrink it first"
            )
        if least:
            image.draft("RGB", (least, least))  # of a JPEG that is not decoded yet; else it does nothing
        return ImageOps.exif_transpose(image).convert("RGB")
    except AffinageError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, before ours is asked
        raise AffinageError(f"{name} has too many pixels: at most {MOST_PIXELS // 10**6} million; shrink it first") from error
    except Exception as error:  # a decoder may raise anything on a broken file
        why = str(error).split("<_io.")[0].strip()  # Pillow names the buffer that it was given
        raise AffinageError(f"cannot read the picture {name} ({why}): expected JPEG, PNG, WebP, BMP, GIF or TIFF") from error


def size_of(source: Any) -> tuple[tuple[int, int], str]:
    """((width, height), "") of a path, encoded bytes or a PIL image, upright; ((0, 0), why) of what is no picture, or too large.

    From the header alone: nothing is decoded.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ours is the bound; broken EXIF and the like: the pixels decide
            if isinstance(source, str | Path):
                with Image.open(source) as image:
                    return _size(image)
            return _size(Image.open(io.BytesIO(source)) if isinstance(source, bytes) else source)
    except Image.DecompressionBombError:
        return (0, 0), f"over {MOST_PIXELS // 1_000_000} megapixels"
    except FileNotFoundError:
        return (0, 0), "no such file"
    except Exception:  # a decoder may raise anything on a broken file, and one broken file must not end the reading
        return (0, 0), "not an image"


def _size(image: Any) -> tuple[tuple[int, int], str]:
    width, height = image.size
    if width * height > MOST_PIXELS:
        return (0, 0), f"over {MOST_PIXELS // 1_000_000} megapixels"
    turned = image.getexif().get(ORIENTATION) in SIDEWAYS
    return ((height, width) if turned else (width, height)), ""


COLOURS = ("#ff7a2f", "#2f9bff", "#39c46a", "#f2c418", "#b76bff", "#ff5fa2", "#19c2c2", "#a58a6f")


def drawn(picture: Any, boxes: Sequence[Mapping[str, Any]]) -> Image:
    """The picture with each of `boxes` (`box` x0 y0 x1 y1 in pixels, `label`, `score`) drawn on it, a colour a class."""
    from PIL import ImageDraw

    image = opened(picture)
    pen, names = ImageDraw.Draw(image), sorted({str(one["label"]) for one in boxes})
    wide = max(1, round(max(image.size) / 300))
    for one in sorted(boxes, key=lambda one: float(one["score"])):  # the surest on top
        colour = COLOURS[names.index(str(one["label"])) % len(COLOURS)]
        x0, y0, x1, y1 = one["box"]
        pen.rectangle([x0, y0, max(x0, x1), max(y0, y1)], outline=colour, width=wide)
        words = f"{one['label']} {one['score']:.2f}"
        left, top, right, bottom = pen.textbbox((x0, y0), words)
        pen.rectangle([left, top - 1, right + 2, bottom + 1], fill=colour)
        pen.text((x0 + 1, y0), words, fill="white")
    return image


def affine(processor: Any, sample: Image) -> tuple[np.ndarray, np.ndarray] | None:
    """(scale, shift) a channel by which the processor turns resized uint8 pixels into its output, or None if it does more."""
    whole = np.asarray(processor(sample, return_tensors="np")["pixel_values"][0])
    plain = resized(processor, [sample])[0]
    factor = float(processor.rescale_factor) if getattr(processor, "do_rescale", False) else 1.0
    if getattr(processor, "do_normalize", False):
        mean, std = np.asarray(processor.image_mean, np.float32), np.asarray(processor.image_std, np.float32)
    else:
        mean, std = np.zeros(3, np.float32), np.ones(3, np.float32)
    scale, shift = (factor / std).astype(np.float32), (-mean / std).astype(np.float32)
    same = whole.shape == plain.shape and np.allclose(plain * scale[:, None, None] + shift[:, None, None], whole, atol=1e-4)
    return (scale, shift) if same else None


def resized(processor: Any, pictures: Sequence[Any]) -> np.ndarray:
    """(B, 3, H, W) as the processor resizes and crops, before it rescales and normalises."""
    return np.asarray(processor(list(pictures), do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"])


class Decoded:
    """N pictures, each decoded and resized whenever it is looked at."""

    def __init__(self, inputs: Sequence[Any], processor: Any, *, plain: bool, least: int = 0) -> None:
        """`plain`: resized only, as uint8; else all that the processor does, as float32. `least`: as `opened` has it."""
        self.inputs, self.processor, self.plain, self.least = inputs, processor, plain, least
        self.pool = ThreadPoolExecutor(max_workers=2)  # Pillow decodes outside the interpreter lock
        self.quick: bool | None = None  # whether a picture takes so little that two threads wait for each other

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, at: Any) -> np.ndarray:
        """(n, 3, H, W) of a slice or of row numbers (n,)."""
        rows = np.arange(len(self))[at] if isinstance(at, slice) else np.asarray(at)
        if self.quick is None and len(rows) >= PROBED:
            self.quick = min(map(self._seconds, rows[:PROBED])) < QUICK
        if self.quick:
            return np.concatenate([self._some(rows[i : i + TOGETHER]) for i in range(0, len(rows), TOGETHER)])
        return np.concatenate(list(self.pool.map(lambda row: self._some([row]), rows)))

    def _some(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        images = [opened(self.inputs[row], self.least) for row in rows]
        if self.plain:
            return resized(self.processor, images).astype(np.uint8)
        return np.asarray(self.processor(images, return_tensors="np")["pixel_values"], dtype=np.float32)

    def _seconds(self, row: int) -> float:
        clock = time.perf_counter()
        self._some([row])
        return time.perf_counter() - clock


def enough(processor: Any) -> int:
    """Pixels wide and high from which the processor's own shrinking gives all but the same; 0 where all of them are wanted.

    Twice the sides that it shrinks to: of photographs as large as a camera's pixels then move by less than half a level on
    average (`benchmarks/decode.py`).
    """
    size = getattr(processor, "size", None)
    told = dict(size) if isinstance(size, Mapping) else dict(vars(size)) if hasattr(size, "__dict__") else {}
    known = {name: side for name, side in told.items() if side}
    if not known or not getattr(processor, "do_resize", False) or not known.keys() <= {"height", "width", "shortest_edge"}:
        return 0
    return 2 * max(known.values())


def encoded(inputs: Sequence[Any], processor: Any, whole: Any = None, least: int = 0) -> ImageRows:
    """Every picture decoded and resized as the checkpoint's processor does it: once, where memory or the disk holds them.

    `whole`: a picture that fills what the processor gives, where others are padded and so do not show how it scales. `least`: as
    `opened` has it.
    """
    if not len(inputs):
        return ImageRows(np.zeros((0, 3, 1, 1), np.uint8), np.ones(3, np.float32), np.zeros(3, np.float32))
    found = affine(processor, opened(inputs[0] if whole is None else whole))
    scale, shift = found or (np.ones(3, np.float32), np.zeros(3, np.float32))
    decoded = Decoded(inputs, processor, plain=found is not None, least=least)
    first = decoded[np.arange(1)]
    size = first.nbytes * len(inputs)
    if size > spool.limit() and size > spool.free() // 2:  # the other half is for what is computed once, and for the run
        return ImageRows(decoded, scale, shift)
    shape = first.shape[1:]
    pixels: np.ndarray | Block = (
        np.empty((len(inputs), *shape), first.dtype) if size <= spool.limit() else Block(first.dtype, shape)
    )
    for start in range(0, len(inputs), PART):
        part = decoded[start : start + PART]
        if isinstance(pixels, Block):
            pixels.add(part)
        else:
            pixels[start : start + PART] = part
    return ImageRows(pixels, scale, shift)
