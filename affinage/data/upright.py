"""The size of a picture as it is looked at, from its header: nothing is decoded."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

MOST_PIXELS = 100_000_000  # as everywhere: a larger picture is not read at all
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
ORIENTATION = 0x0112


def size_of(source: Any) -> tuple[tuple[int, int], str]:
    """((width, height), "") of a path, encoded bytes or a PIL image; ((0, 0), why) of what is no picture, or too large."""
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
