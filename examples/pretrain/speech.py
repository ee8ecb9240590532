"""A small speech recogniser from nothing: four speakers of the Free Spoken Digit Dataset, 8 kHz, one command.

    python examples/pretrain/speech.py --data ../shared/data/fsdd --out bases/digits

The architecture is in wav2vec2-8k/ (wav2vec2 with layer norms in a thin convolutional stem: 1.0 M parameters, 10 ms a frame). It
is trained by `affinage fit --plan scratch` like any other network; the speakers that come last by name, or those that `--without`
names, are left out, for benchmarks/speech.py to adapt to.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Collection
from pathlib import Path

import affinage

HELD = 2  # speakers


def rows(data: Path, without: Collection[str] = ()) -> tuple[list[dict[str, str]], list[str]]:
    """(the recordings of all but the last speakers, or of all but those `without`, as affinage reads them; the speakers)."""
    with (data / "manifest.csv").open(encoding="utf8", newline="") as file:
        every = list(csv.DictReader(file))
    known = sorted({row["speaker"] for row in every})
    if unknown := set(without) - set(known):
        raise SystemExit(f"no speaker '{min(unknown)}' in {data}: expected of {', '.join(known)}")
    speakers = [name for name in known if name not in (without or known[-HELD:])]
    chosen = [row for row in every if row["speaker"] in speakers]
    return [{"audio": str(data / row["path"]), "transcript": row["transcript"]} for row in chosen], speakers


def main() -> None:
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("--data", type=Path, required=True, help="the folder with manifest.csv")
    read.add_argument("--out", type=Path, default=Path("runs/speech-base"))
    read.add_argument("--without", type=lambda text: text.split(","), default=[], help="speakers to leave out, commas between")
    read.add_argument("--epochs", type=int, default=18)
    read.add_argument("--augment", default="light")
    told = read.parse_args()
    train, speakers = rows(told.data, told.without)
    print(f"{len(train)} recordings of {', '.join(speakers)}")
    made = affinage.fit(
        Path(__file__).with_name("wav2vec2-8k"),
        {"train": train},
        plan="scratch",
        out=told.out,
        epochs=told.epochs,
        augment=told.augment,
        validation=0.1,
        leaks="drop",
    )
    print(made.metrics)


if __name__ == "__main__":
    main()
