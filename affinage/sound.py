"""Sounds: any recording that soundfile reads, as one channel of float32 at the rate that the model wants."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from affinage.errors import AffinageError

BLOCK = 2**18  # samples that are read at once: an hour of stereo is never held as it lies in the file
SILENCE = 1e-4  # of full scale: a recording whose loudest sample is below it (-80 dB) says nothing


def _library() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package without its C library
        raise AffinageError(f"reading sound needs soundfile and soxr ({error}): pip install 'affinage[audio]'") from None
    return soundfile


def name_of(thing: Any) -> str:
    """A recording in an error's words."""
    return str(thing) if isinstance(thing, str | Path) else "encoded bytes" if isinstance(thing, bytes) else "samples in memory"


def heard(thing: Any, rate: int) -> np.ndarray:
    """(S,) float32, one channel at `rate` samples a second, of a path, encoded bytes or (samples (S[, channels]), rate).

    Channels are averaged. 8-bit, 16-bit, 24-bit and float files come out within -1..1.

    Raises:
        AffinageError: not a recording that can be read, or one without a sample.
    """
    parts = list(_resampled(_blocks(thing), thing, rate))
    found = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if not len(found):
        raise AffinageError(f"{name_of(thing)} holds no sound: it has no samples")
    if not np.isfinite(found).all():
        raise AffinageError(f"{name_of(thing)} holds samples that are no numbers: expected values from -1 to 1")
    return found


def seconds(thing: Any) -> float:
    """How long the recording is, by its header alone.

    Raises:
        AffinageError: not a recording that can be read.
    """
    if isinstance(thing, tuple):
        return len(thing[0]) / thing[1]
    with _opened(thing) as file:
        return file.frames / file.samplerate


def encoded(samples: np.ndarray, rate: int) -> bytes:
    """16-bit FLAC of (S,) float32."""
    buffer = io.BytesIO()
    _library().write(buffer, np.clip(samples, -1, 1), rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _opened(thing: Any) -> Any:
    library = _library()
    try:
        if isinstance(thing, bytes):
            return library.SoundFile(io.BytesIO(thing))
        if not Path(thing).is_file():
            raise AffinageError(f"no recording at {thing}")
        if not Path(thing).stat().st_size:
            raise AffinageError(f"{thing} is an empty file")
        return library.SoundFile(str(thing))
    except AffinageError:
        raise
    except Exception as error:  # libsndfile's own type, and whatever a broken header makes of a number
        why = " ".join(str(error).split()).rpartition(": ")[2].rstrip(".")
        raise AffinageError(f"cannot read the recording {name_of(thing)} ({why}): expected wav, flac, mp3 or ogg") from None


def _blocks(thing: Any) -> Iterator[tuple[np.ndarray, int]]:
    """((n,) float32, rate) of each part of the recording, channels averaged."""
    if isinstance(thing, tuple):
        samples, rate = np.asarray(thing[0]), int(thing[1])
        if samples.dtype.kind in "iu":
            samples = samples.astype(np.float32) / np.iinfo(samples.dtype).max
        yield (samples.mean(-1) if samples.ndim == 2 else samples).astype(np.float32), rate
        return
    with _opened(thing) as file:
        while True:
            try:
                part = file.read(BLOCK, dtype="float32", always_2d=True)
            except Exception as error:  # cut short in the middle of a frame
                raise AffinageError(f"cannot read the recording {name_of(thing)} to its end ({error})") from None
            if not len(part):
                return
            yield part.mean(1), file.samplerate


def _resampled(blocks: Iterator[tuple[np.ndarray, int]], thing: Any, rate: int) -> Iterator[np.ndarray]:
    """The parts at `rate`; what soxr holds back comes with the last one."""
    stream = None
    for part, own in blocks:
        if own == rate:
            yield part
            continue
        if stream is None:
            import soxr

            if own <= 0:
                raise AffinageError(f"{name_of(thing)} has a rate of {own} samples a second: expected 8000 or more")
            stream = soxr.ResampleStream(own, rate, 1, dtype="float32")
        yield stream.resample_chunk(part)
    if stream is not None:
        yield stream.resample_chunk(np.zeros(0, np.float32), last=True)
