"""Recordings of any rate, width and number of channels come out as the same sound; what cannot be heard is told in one line."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from affinage import sound
from affinage.errors import AffinageError

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

RATE = 16_000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("channels", [1, 2])
def test_formats(kind: str, channels: int, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, np.stack([TONE] * channels, 1), RATE)
    found = sound.heard(path, RATE)
    assert found.dtype == np.float32 and found.ndim == 1
    assert abs(len(found) - RATE) <= (1200 if kind == "mp3" else 0)
    assert np.sqrt(np.mean(found**2)) == pytest.approx(0.5 / np.sqrt(2), abs=0.02)
    assert sound.seconds(path) == pytest.approx(len(found) / RATE)
    assert np.array_equal(found, sound.heard(path.read_bytes(), RATE))


@pytest.mark.parametrize(("subtype", "close"), [("PCM_U8", 0.01), ("PCM_16", 1e-4), ("PCM_24", 1e-6), ("FLOAT", 1e-7)])
def test_any_width(subtype: str, close: float, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", TONE, RATE, subtype=subtype)
    assert np.abs(sound.heard(tmp_path / "a.wav", RATE) - TONE).max() <= close


@pytest.mark.parametrize("own", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_any_rate(own: int) -> None:
    """A tone that both rates hold is the same tone, and as long; through one block or many."""
    import soxr

    long = (0.5 * np.sin(2 * np.pi * 440 * np.arange(own * 20) / own)).astype(np.float32)
    found = sound.heard((long, own), RATE)
    assert len(found) == pytest.approx(20 * RATE, abs=2)
    assert np.abs(found[1000:-1000] - soxr.resample(long, own, RATE)[1000 : len(found) - 1000]).max() < 2e-3
    buffer = io.BytesIO()
    soundfile.write(buffer, long, own, format="WAV", subtype="FLOAT")
    assert np.allclose(sound.heard(buffer.getvalue(), RATE), found, atol=1e-6)


def test_whole_numbers_and_channels_in_memory() -> None:
    stereo = np.stack([TONE, -TONE], 1)
    assert np.abs(sound.heard((stereo, RATE), RATE)).max() < 1e-7
    assert np.abs(sound.heard(((TONE * 32767).astype(np.int16), RATE), RATE) - TONE).max() < 1e-4


def test_what_cannot_be_heard(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "none.wav", np.zeros(0, np.float32), RATE)
    for name, words in (("gone", "no recording at"), ("empty", "is an empty file"), ("none", "no samples")):
        with pytest.raises(AffinageError, match=words):
            sound.heard(tmp_path / f"{name}.wav", RATE)
    with pytest.raises(AffinageError, match=r"cannot read the recording .*text.wav .*expected wav, flac, mp3 or ogg"):
        sound.heard(tmp_path / "text.wav", RATE)
    with pytest.raises(AffinageError, match="samples that are no numbers"):
        sound.heard((np.full(10, np.nan, np.float32), RATE), RATE)


def test_there_and_back() -> None:
    assert np.abs(sound.heard(sound.encoded(TONE, RATE), RATE) - TONE).max() < 1e-4
