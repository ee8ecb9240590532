"""Synthetic speech with its text, for a recogniser to begin with: sentences read by espeak-ng (Debian's package) in many voices.

    python examples/pretrain/spoken.py --text DATA --out spoken --count 6000 --fsdd DATA/fsdd

Writes `metadata.jsonl` and the recordings, 8 kHz, which `affinage fit` reads as they are. The sentences are short texts in DATA
(banking77, uci_sentences, sst2) and, one in six, single words, digits or letters in a row. Voice, speed, pitch, noise and
loudness are drawn from the seed and the recording's number, so that the same command with the same espeak-ng gives the same
sounds. `--fsdd` adds the recordings of people that examples/pretrain/speech.py learns from.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

RATE = 8_000  # samples a second
ACCENTS = ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
TIMBRES = ("", "+m1", "+m2", "+m3", "+m4", "+m5", "+m6", "+m7", "+m8", "+f1", "+f2", "+f3", "+f4", "+f5")
TEXTS = (("banking77/train.csv", "text"), ("uci_sentences/*.csv", "text"), ("sst2/train.csv", "text"))
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ORDERS = ("yes", "no", "stop", "go", "start", "help", "enter", "erase", "repeat", "left", "right", "up", "down", "on", "off")
WORDS = (2, 9)  # of a sentence
LETTERS = 60  # at most, of a sentence: longer ones cost more than they teach
APART = 6  # one text in so many is of single words


def sentences(folder: Path) -> list[str]:
    """Short sentences of letters alone, in lower case, each once, in their order."""
    found: dict[str, None] = {}
    for pattern, column in TEXTS:
        for path in sorted(folder.glob(pattern)):
            with path.open(encoding="utf8", newline="") as file:
                for row in csv.DictReader(file):
                    text = re.sub(r"[.,!?;:]+", " ", row[column].lower().replace(" n't", "n't").replace(" '", "'"))
                    text = " ".join(text.split())
                    if re.fullmatch(r"[a-z' ]+", text) and len(text) <= LETTERS and WORDS[0] <= text.count(" ") + 1 <= WORDS[1]:
                        found[text] = None
    if not found:
        raise SystemExit(f"no short sentence in {folder}: expected one of {', '.join(pattern for pattern, _ in TEXTS)}")
    return list(found)


def text(numbers: tuple[int, int], known: Sequence[str], draw: np.random.Generator) -> str:
    """What the recording of these numbers says: its own sentence, or a few single words."""
    if draw.integers(APART):
        return known[np.random.default_rng(numbers[0]).permutation(len(known))[numbers[1] % len(known)]]
    kind = draw.integers(3)
    words = DIGITS if kind == 0 else ORDERS if kind == 1 else tuple("abcdefghijklmnopqrstuvwxyz")
    return " ".join(words[i] for i in draw.integers(len(words), size=draw.integers(1, 7)))


def spoken(words: str, out: Path, draw: np.random.Generator) -> None:
    """One recording, saved at `out`."""
    import soundfile
    import soxr

    voice = ACCENTS[draw.integers(len(ACCENTS))] + TIMBRES[draw.integers(len(TIMBRES))]
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.wav"
        asked = [
            "espeak-ng",
            "-v",
            voice,
            "-s",
            str(draw.integers(120, 230)),
            "-p",
            str(draw.integers(15, 90)),
            "-w",
            str(raw),
            words,
        ]
        subprocess.run(asked, check=True, capture_output=True)
        sound, rate = soundfile.read(raw, dtype="float32")
    sound = soxr.resample(sound, rate, RATE)
    heard = np.flatnonzero(np.abs(sound) > 0.01)
    sound = sound[max(0, heard[0] - RATE // 20) : heard[-1] + RATE // 20]  # espeak-ng ends with a silence
    sound = sound / np.abs(sound).max() * 10 ** draw.uniform(-1.2, -0.05)
    noise = draw.normal(0, 1, len(sound)).astype(np.float32)
    if draw.random() < 0.5:  # of a room or a line rather than of a resistor
        noise = np.convolve(noise, np.ones(8, np.float32) / 8**0.5, mode="same")
    sound = sound + noise * np.abs(sound).mean() * 10 ** draw.uniform(-3, -0.6)
    soundfile.write(out, np.clip(sound, -1, 1), RATE, subtype="PCM_16")


_known: list[str] = []  # sentences, of a process that speaks


def _look(folder: Path) -> None:
    _known[:] = sentences(folder)


def _one(job: tuple[Path, tuple[int, int]]) -> str:
    path, numbers = job
    draw = np.random.default_rng(numbers)
    words = text(numbers, _known, draw)
    spoken(words, path, draw)
    return words


def write(folder: Path, out: Path, count: int, seed: int, fsdd: Path | None = None) -> None:
    """`count` recordings below `out` and, where `fsdd` is given, those of its first speakers, in one `metadata.jsonl`."""
    if shutil.which("espeak-ng") is None:
        raise SystemExit("espeak-ng is not installed: apt-get install espeak-ng")
    (out / "audio").mkdir(parents=True, exist_ok=True)
    names = [f"audio/{i:06d}.wav" for i in range(count)]
    with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=_look, initargs=(folder,)) as processes:
        said = processes.map(_one, [(out / name, (seed, i)) for i, name in enumerate(names)], chunksize=16)
        rows = [{"file_name": name, "transcription": words} for name, words in zip(names, said, strict=True)]
    if fsdd is not None:
        import speech

        for row in speech.rows(fsdd)[0]:
            name = f"audio/{Path(row['audio']).name}"
            shutil.copyfile(row["audio"], out / name)
            rows.append({"file_name": name, "transcription": row["transcript"]})
    (out / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")


def main(words: Sequence[str] | None = None) -> None:
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("--text", type=Path, required=True, help="the folder of the data sets whose sentences are read")
    read.add_argument("--out", type=Path, required=True)
    read.add_argument("--count", type=int, default=6000, help="recordings")
    read.add_argument("--seed", type=int, default=0)
    read.add_argument("--fsdd", type=Path, help="the Free Spoken Digit Dataset, whose first speakers are added")
    told = read.parse_args(words)
    write(told.text, told.out, told.count, told.seed, told.fsdd)


if __name__ == "__main__":
    main()
