"""What is compared of each row, and what of it cannot be read: texts, pictures, recordings."""

from __future__ import annotations

import hashlib
import io
import os
import re
import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from affinage.errors import AffinageError
from affinage.spool import Block
from affinage.types import Split

PIXELS = 100_000_000  # an image of more is not decoded: 300 MB as RGB, and no model looks at that many
LONG = 10_000  # characters; about 2,500 tokens, several times what a text encoder reads
LONG_SOUND = 30.0  # seconds; attention grows with the square, and few recordings to learn from are longer
LONGEST_SOUND = 120.0  # seconds that are learnt from at most: an hour of speech is no utterance
PART = 256  # pictures that are held at once


class Seen(NamedTuple):
    """What is compared of the N rows of one split, 16 bytes a row in memory; of an unreadable row, nothing is."""

    exact: np.ndarray  # (N,) uint64 digests of the content, 0 where unreadable
    near: np.ndarray  # (N,) uint64. images: difference hashes. text: digests of the folded texts, 0 where no letter is left
    grey: Block | None = None  # images: (N, 256) uint8, the picture at 16x16


# ----------------------------------------------------------------------------------------------------- what is compared
def fold(text: str) -> str | None:
    """The text without case, punctuation, accents' encoding, spacing and the digits of numbers; None if no letter is left."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = " ".join(re.sub(r"[\W_]+", " ", re.sub(r"\d+", "0", text)).split())
    return text if any(letter.isalpha() for letter in text) else None


def texts(split: Split) -> tuple[Seen, list[tuple[int, str]], list[int]]:
    """(what is compared, (row, why) of the unreadable, the long rows)."""
    count = len(split)
    seen = Seen(np.zeros(count, np.uint64), np.zeros(count, np.uint64))
    broken, long = [], []
    for i, text in enumerate(split.inputs):
        if not text.strip():
            broken.append((i, "empty text"))
            continue
        seen.exact[i] = _digest(text.encode("utf-8", "surrogatepass"))
        folded = fold(text)
        if folded is not None:
            seen.near[i] = _digest(folded.encode("utf-8", "surrogatepass"))
        if len(text) > LONG:
            long.append(i)
    return seen, broken, long


def _digest(content: bytes) -> int:
    """64 bits, never 0: of ten million different rows two agree by chance once in 400,000 data sets."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) or 1


def images(split: Split) -> tuple[Seen, list[tuple[int, str]], list[int]]:
    """(what is compared, (row, why) of the unreadable, no long rows)."""
    from PIL import Image

    count, grey = len(split), Block(np.uint8, (256,))
    seen = Seen(np.zeros(count, np.uint64), np.zeros(count, np.uint64), grey)
    broken = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is the bound, and it is a finding
        warnings.simplefilter("ignore", UserWarning)  # broken EXIF and the like: the pixels decide
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, count, PART):  # a pool takes all that it is given at once
                looked = list(pool.map(_image, split.inputs[start : start + PART]))
                grey.add(np.stack([pixels for _, _, pixels, _ in looked]))
                for i, (digest, code, _, why) in enumerate(looked, start):
                    seen.exact[i], seen.near[i] = digest, code
                    if why:
                        broken.append((i, why))
    return seen, broken, []


def sounds(split: Split) -> tuple[Seen, list[tuple[int, str]], list[int]]:
    """(what is compared, (row, why) of the unreadable, the long rows); recordings are decoded one by one."""
    from affinage import sound

    count = len(split)
    seen = Seen(np.zeros(count, np.uint64), np.zeros(count, np.uint64))
    broken, long = [], []
    for i, thing in enumerate(split.inputs):
        try:
            seconds = sound.seconds(thing)
            if seconds > LONGEST_SOUND:
                broken.append((i, f"longer than {LONGEST_SOUND:.0f} seconds: cut it at its pauses"))
                continue
            samples = sound.heard(thing, 8000)  # enough to tell recordings apart
        except AffinageError as error:
            broken.append((i, _short(str(error))))
            continue
        if np.abs(samples).max() < sound.SILENCE:
            broken.append((i, "silent"))
            continue
        seen.exact[i] = _digest(
            thing.read_bytes() if isinstance(thing, Path) else thing if isinstance(thing, bytes) else samples.tobytes()
        )
        if seconds > LONG_SOUND:
            long.append(i)
    return seen, broken, long


def _short(error: str) -> str:
    """Why a recording cannot be read, without its name."""
    for word, why in (
        ("no recording at", "no such file"),
        ("is an empty file", "empty file"),
        ("no samples", "no samples"),
        ("are no numbers", "samples that are no numbers"),
        ("a rate of", "fewer than 8,000 samples a second"),
    ):
        if word in error:
            return why
    return "no recording that can be read"


def _image(source: Any) -> tuple[int, int, np.ndarray, str]:
    """(digest of the content or 0, difference hash, 16x16 greys, why it cannot be read) of a path, encoded bytes or a PIL image.

    The difference hash: is each pixel of the 9x8 grey picture darker than its right neighbour? (N. Krawetz, "Kind of like
    that", hackerfactor.com, 2013)
    """
    from PIL import Image

    nothing = np.zeros(256, np.uint8)
    try:
        if isinstance(source, str | Path):
            source = Path(source).read_bytes()
        if isinstance(source, bytes):
            digest = _digest(source)
            picture: Any = Image.open(io.BytesIO(source))
        else:
            digest = _digest(repr((source.mode, source.size)).encode() + source.tobytes())
            picture = source
        width, height = picture.size
        if width * height > PIXELS:
            return 0, 0, nothing, f"over {PIXELS // 1_000_000} megapixels"
        if hasattr(picture, "draft"):
            picture.draft("L", (64, 64))  # JPEG only: reads all of it, but decodes to no more than is needed
        picture = picture.convert("L")
        small = np.asarray(picture.resize((9, 8), Image.Resampling.BOX), np.int16)
        greys = np.asarray(picture.resize((16, 16), Image.Resampling.BOX), np.uint8).reshape(256)
    except Image.DecompressionBombError:
        return 0, 0, nothing, f"over {PIXELS // 1_000_000} megapixels"
    except FileNotFoundError:
        return 0, 0, nothing, "no such file"
    except Exception as error:  # a decoder may raise anything on a broken file, and one broken file must not end the check
        why = " ".join(str(error).split())
        return 0, 0, nothing, "not an image" if "cannot identify" in why else why[:80] or type(error).__name__
    code = int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")
    return digest, code, greys, ""
