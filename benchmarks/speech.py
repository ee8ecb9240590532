"""A recogniser of digits that has never heard a speaker, adapted to that speaker: runs the cells missing from a JSON-lines file.

    python benchmarks/speech.py
    python benchmarks/speech.py --bases bases/without --out benchmarks/results/speech-each.jsonl
    python benchmarks/speech.py --held-out --labels 5 --arms two-stage --seeds 2 --settings learning_rate=1e-3 --out rates.jsonl
    python benchmarks/speech.py --show

One line a finished cell (speaker, recordings a digit, arm, seed), seeds outermost: a partial file is balanced. The base is
starter-speech, which has learnt from four speakers and is adapted to the two others; or, with `--bases`, each of the six speakers
has a base that has learnt from the five others (examples/pretrain/speech.py --without NAME --out bases/without/NAME). An arm is a
plan of affinage; `none` is the base as it is. All are tested on the 50 recordings of the speaker in the data set's own test
split; what is learnt from is drawn from the 450 others. A digit is a word; `wer_known_words` is what a beam search along a list
of the ten gives.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arms import HERE, append, digest, lines

STARTER = HERE.parent / "affinage" / "starters" / "starter-speech"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ARMS = ("none", "frozen", "two-stage", "full", "scratch")
SPEAKERS = ("theo", "yweweler")  # those that examples/pretrain/speech.py leaves out
LABELS = (1, 5, 20)  # recordings a digit
SEEDS = 6
TOLD = ("epochs", "steps", "converged", "worse_than_before")
KEYS = ("speaker", "labels", "arm", "seed", "settings", "tested")
FIRST = {"settings": "", "tested": "test"}  # of lines that name none
HELD = 100  # recordings of the speaker that --held-out tests on


def splits(data: Path, speaker: str) -> dict[str, list[dict[str, str]]]:
    """The speaker's train and test rows."""
    found: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    with (data / "manifest.csv").open(encoding="utf8", newline="") as file:
        for row in csv.DictReader(file):
            if row["speaker"] == speaker:
                found[row["split"]].append({"audio": str(data / row["path"]), "transcript": row["transcript"]})
    return found


def held_out(rows: dict[str, list[dict[str, str]]], seed: int) -> dict[str, list[dict[str, str]]]:
    """The training rows alone, parted anew by the seed: for a search, which is to see no test row."""
    import numpy as np

    order = np.random.default_rng([1000, seed]).permutation(len(rows["train"]))
    return {"train": [rows["train"][i] for i in order[HELD:]], "test": [rows["train"][i] for i in order[:HELD]]}


def settings(text: str) -> dict[str, Any]:
    """`learning_rate=1e-3,unfreeze=everything` as options of fit."""

    def value(word: str) -> Any:
        try:
            return float(word)
        except ValueError:
            return word

    return {name: value(word) for name, word in (pair.split("=") for pair in text.split(",") if pair)}


def cells(path: Path) -> list[dict[str, Any]]:
    """The finished ones."""
    return [{**FIRST, **line} for line in lines(path)]


def write_digits(folder: Path) -> Path:
    """The list of the ten words there are."""
    path = folder / "affinage-digits.txt"
    path.write_text("\n".join(DIGITS) + "\n", encoding="utf8")
    return path


def as_it_is(base: Path, rows: Sequence[dict[str, str]], words: Path | None) -> dict[str, Any]:
    """The scores of a model folder that no run has changed."""
    from dataclasses import replace

    from affinage.features import answered
    from affinage.tasks.automatic_speech_recognition import task

    heard = replace(task, vocabulary="base", language_model=words)
    model, processor = heard.load(base, (), fresh=False, revision=None)
    encoded = heard.encode([row["audio"] for row in rows], processor, model)
    answers = answered(heard, model.eval(), encoded, processor, "fp32")
    return heard.score(answers, heard.known([row["transcript"] for row in rows], "eghinorstuvwxzf", "fsdd"))


def measured(cell: dict[str, Any], data: Path, base: Path) -> dict[str, Any]:
    """One cell: its word and character error rate, and what it cost."""
    import affinage

    rows = splits(data, cell["speaker"])
    if cell["tested"] != FIRST["tested"]:
        rows = held_out(rows, cell["seed"])
    digits = write_digits(Path(tempfile.gettempdir()))
    clock = time.perf_counter(), time.process_time()
    if cell["arm"] == "none":
        scores, known = (as_it_is(base, rows["test"], words) for words in (None, digits))
        record: dict[str, Any] = {"kept": "base", "stages": [], "data": {"rows": {"train": 0}}}
    else:
        out = Path(tempfile.mkdtemp(prefix="affinage-speech-"))
        try:
            run = affinage.fit(
                base, rows, plan=cell["arm"], labels_per_class=cell["labels"], seed=cell["seed"],
                out=out / "run", leaks="drop", quiet=True, **settings(cell["settings"]),
            )  # fmt: skip
            known = affinage.load(run.path, language_model=digits).evaluate(rows["test"])
        finally:
            shutil.rmtree(out, ignore_errors=True)
        record, scores = run.record, run.record["test"]
    return {
        **{name: scores[name] for name in ("wer", "cer", "n")},
        "wer_known_words": known["wer"],  # with a list of the ten digits
        "n_train": record["data"]["rows"]["train"],
        "kept": record["kept"],
        "stages": [
            {"stage": s["stage"], **s["cost"], **{k: v for k, v in s["details"].items() if k in TOLD}} for s in record["stages"]
        ],
        "seconds": round(time.perf_counter() - clock[0], 2),
        "cpu_seconds": round(time.process_time() - clock[1], 2),
    }


def told(path: Path) -> None:
    """The mean and the spread of each arm over speakers and seeds, by recordings a digit, and each speaker's mean."""
    found: dict[tuple[int, str], list[float]] = defaultdict(list)
    words: dict[tuple[int, str], list[float]] = defaultdict(list)
    for line in cells(path):
        arm = " ".join(filter(None, (line["arm"], line["settings"])))
        found[line["labels"], arm].append(line["wer"])
        words[line["labels"], arm].append(line["wer_known_words"])
    for (labels, arm), values in sorted(found.items(), key=lambda pair: (pair[0][0], ARMS.index(pair[0][1].split()[0]))):
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        known = statistics.mean(words[labels, arm])
        print(
            f"{labels:>3} a digit  {arm:<10} WER {statistics.mean(values):6.3f}  sd {spread:.3f}  "
            f"with the ten words {known:6.3f}  cells {len(values)}"
        )
    for speaker in speakers(path):
        own = [line for line in lines(path) if line["speaker"] == speaker]
        means = {
            (labels, arm): statistics.mean([line["wer"] for line in own if (line["labels"], line["arm"]) == (labels, arm)])
            for labels, arm in sorted({(line["labels"], line["arm"]) for line in own})
        }
        print(f"{speaker:<10} " + "  ".join(f"{arm} {labels}: {mean:.3f}" for (labels, arm), mean in means.items()))


def speakers(path: Path) -> list[str]:
    """Those that a file has cells of."""
    return sorted({line["speaker"] for line in lines(path)})


def gap(path: Path, labels: int, left: str, right: str) -> str:
    """`left` minus `right` in word error rate, paired by draw (the mean of the speakers), with its 95 % interval over draws;
    where there are three speakers or more, the interval over speakers (the means of their draws) too."""
    from affinage.measure.interval import paired

    scores = {tuple(line[key] for key in KEYS[:4]): line["wer"] for line in cells(path) if not line["settings"]}
    draws, people = sorted({key[3] for key in scores if key[1] == labels}), speakers(path)
    gaps = {
        (who, seed): scores[who, labels, left, seed] - scores[who, labels, right, seed]
        for who in people
        for seed in draws
        if (who, labels, left, seed) in scores and (who, labels, right, seed) in scores
    }
    whole = [seed for seed in draws if all((who, seed) in gaps for who in people)]
    if len(whole) < 2:
        return f"{labels} a digit  {left} - {right}: fewer than two draws"
    middle, low, high = paired([statistics.mean(gaps[who, seed] for who in people) for seed in whole])
    told = f"{labels:>3} a digit  {left} - {right} {middle:+.3f} [{low:+.3f}, {high:+.3f}] ({len(whole)} draws)"
    if len(people) > 2:
        _, low, high = paired([statistics.mean(gaps[who, seed] for seed in whole) for who in people])
        told += f", over {len(people)} speakers [{low:+.3f}, {high:+.3f}]"
    return told


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data" / "fsdd", help="fsdd's folder")
    parser.add_argument("--base", type=Path, default=STARTER, help="a model folder; starter-speech if not given")
    parser.add_argument("--bases", type=Path, help="a folder with a base for each speaker, named after the speaker left out")
    parser.add_argument("--first", type=int, default=0, help="the seed to begin with, where another process has those before")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "speech.jsonl")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--show", action="store_true", help="print the table of what is there, and stop")
    parser.add_argument("--labels", type=lambda text: [int(n) for n in text.split(",")], default=list(LABELS), help="a digit")
    parser.add_argument("--settings", default="", help="options of fit, as learning_rate=1e-3,unfreeze=everything")
    parser.add_argument("--held-out", action="store_true", help=f"test on {HELD} of the training recordings, for a search")
    parser.add_argument("--arms", type=lambda text: text.split(","), default=list(ARMS), help="of none and the plans")
    asked = parser.parse_args(words)
    if unknown := set(asked.arms) - set(ARMS):
        parser.error(f"no arm '{min(unknown)}': expected of {', '.join(ARMS)}")
    if asked.show:
        told(asked.out)
        for labels in asked.labels:
            for other in ("full", "frozen", "scratch"):
                print(gap(asked.out, labels, "two-stage", other))
        return 0
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch and numpy are imported
        os.environ[name] = "1"
    from affinage import facts

    bases = {name: asked.base for name in SPEAKERS}
    if asked.bases:
        bases = {path.parent.name: path.parent for path in sorted(asked.bases.glob("*/run.json"))}
        if not bases:
            parser.error(f"no finished run in {asked.bases}: make them with examples/pretrain/speech.py --without NAME")
    weights, commit = {name: digest(base) for name, base in bases.items()}, facts.commit()
    done = {tuple(line[key] for key in KEYS): line["weights"] for line in cells(asked.out)}
    tested = "held out" if asked.held_out else FIRST["tested"]
    wanted = [
        dict(zip(KEYS, (speaker, labels, arm, seed, asked.settings, tested), strict=True))
        for seed in range(asked.first, asked.first + asked.seeds)
        for labels in (0, *asked.labels)
        for speaker in bases
        for arm in (ARMS[:1] if not labels else ARMS[1:])
        if arm in asked.arms and (labels or not seed)  # the base as it is depends on no draw
    ]
    for number, cell in enumerate(wanted, 1):
        key = tuple(cell[name] for name in KEYS)
        if key in done:
            if done[key] != weights[cell["speaker"]]:
                print(f"{asked.out} has {key} of another base: name another --out", file=sys.stderr)
                return 2
            continue
        found = measured(cell, asked.data, bases[cell["speaker"]])
        here = {"versions": facts.versions(), "cpu": facts.hardware("")["cpu"]}
        append(asked.out, {**cell, **found, "weights": weights[cell["speaker"]], "threads": 1, "commit": commit, **here})
        words_of = " ".join(map(str, key))
        print(f"[{number}/{len(wanted)}] {words_of}: WER {found['wer']:.3f}, {found['cpu_seconds']:.1f} CPU s", flush=True)
    told(asked.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
