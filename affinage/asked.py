"""What the words of `affinage predict` ask about: texts, lines of files and of standard input, pictures, recordings."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from affinage.errors import AffinageError

SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".oga", ".aiff", ".aif", ".au")
TEXTS = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")  # of a word that was meant as a file, most likely
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def things(inputs: Sequence[str], kind: str) -> Iterator[str | Path]:
    """What to predict. Text: a file or - gives its lines, any other word is a text. Images, sounds: a folder gives all in it."""
    endings = SOUNDS if kind == "audio" else IMAGES
    for word in inputs:
        if word == "-":
            lines = _lines(sys.stdin)
            yield from lines if kind == "text" else (_file(line, kind) for line in lines)
        elif kind == "text":
            try:
                file = Path(word).is_file()
            except (OSError, ValueError):  # too long for a path, or a NUL in it: it is text
                file = False
            if file:
                with Path(word).open(encoding="utf8") as source:
                    yield from _lines(source)
            else:
                if Path(word).suffix in TEXTS and not any(c.isspace() for c in word):
                    print(f"affinage: no file {word}: taken as a text", file=sys.stderr)
                yield word
        elif Path(word).is_dir():
            yield from sorted(p for p in Path(word).rglob("*") if p.suffix.lower() in endings and p.is_file())
        else:
            yield _file(word, kind)


def _file(word: str, kind: str) -> Path:
    what = "recording" if kind == "audio" else "image"
    if not Path(word).is_file():
        raise AffinageError(
            f"no {what} at {word}; expected {'a' if kind == 'audio' else 'an'} {what} file or a folder of {what}s"
        )
    return Path(word)


def _lines(source: Any) -> Iterator[str]:
    """Lines without their ends; empty lines are left out."""
    try:
        for line in source:
            if text := line.rstrip("\r\n"):
                yield text
    except UnicodeDecodeError:
        raise AffinageError(
            f"{getattr(source, 'name', 'the input')} is not UTF-8 text; expected one text a line, in UTF-8"
        ) from None
