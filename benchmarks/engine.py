"""Partly frozen and full training: affinage against the Hugging Face Trainer with its default arguments, in CPU seconds.

    python benchmarks/engine.py [--rows 1000] [--seeds 1] [--threads 1] [--arms frozen,top-1,top-2,top-3,full,everything]
    python benchmarks/engine.py --images cifar10
    python benchmarks/engine.py --arms top-1-first,top-2-first,top-3-first,full-first
    python benchmarks/engine.py --arms frozen,top-2,full     # on a GPU, where there is one: both sides, seconds by the clock
    python benchmarks/engine.py --rows 8000 --seeds 6 --tested 2000 --precision bf16 --at-once 14 --out engine-card.jsonl

Text: MiniLM on sentences of sst2. Each arm has the epochs of both sides: frozen 20 (solved in one pass on our side), the last 1,
2 or 3 of 6 blocks 10, full 3, where the Trainer's side teaches the word embeddings as well and ours leaves them; `everything` is
ours with them. On our side heads read the mean of the tokens, as the checkpoint was trained; in `top-1-first`, `full-first` and
their like the first one, and in `top-1-native` and its like through the checkpoint's own layer, which learns, too: the
Trainer's network. Same rows, same epochs, the sides in turn, each in a process of its own with an empty cache; a line a
finished side, so that a killed run loses one at most. Counted: CPU seconds of tokenising and learning, after the model is
loaded and before the test. With `--at-once` several sides run beside each other: that is for accuracies, and the table tells no
times of such lines. With `--held` a quarter of the training rows stands in for the test split, so that something can be chosen
by it. Beside it the floor: the work of the arm's products, three times the forward pass where layers learn and what is frozen
once, at the best bf16 or fp32 rate that this core reached in the same process; of pictures the passes alone, as measured there
(`picture_floor.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import picture_floor
from arms import HERE, MOST_TESTED, STARTER, apart, append, digest, examples, lines, splits, text_model, version
from frozen_text import Clock, flop, peak

if TYPE_CHECKING:
    import numpy as np

# arm -> (blocks that learn beside the head, or all; epochs of either side)
ARMS: dict[str, tuple[int | str, int]] = {
    "frozen": (0, 20),
    "top-1": (1, 10),
    "top-2": (2, 10),
    "top-3": (3, 10),
    "full": ("all", 3),  # on our side all blocks: a table of word embeddings stays, as it does by default
    "everything": ("everything", 3),  # its embeddings too, as the Trainer's side of "full", which stands for both
}
# What the head reads, where it is not the mean: the bare first token, or, as the Trainer's, that through a layer that learns too
HEADS = {"-first": "first", "-native": "native"}
SAME = {arm + end: arm for end in HEADS for arm in ARMS if arm != "everything"}  # arm -> the one whose Trainer did the same
ARMS |= {arm: ARMS[plain] for arm, plain in SAME.items()}
SAME["everything"] = "full"
SIDES = ("affinage", "trainer")
KEY = ("data", "rows", "device", "arm", "seed", "threads", "side")


def chosen(told: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """So many training rows, as many of each class, and the test rows, none of which is in train."""
    from affinage import data as reading
    from affinage import labels
    from affinage.check import check, without_leaks

    found = reading.read(splits(told.images or "sst2", told.data, search=told.held, tested=told.tested))
    found = without_leaks(found, check(found))
    train = labels.few(found.train, told.rows // len(set(found.train.targets)), told.seed)
    assert found.test is not None
    parts = {"train": train, "test": found.test}
    return {
        key: [{found.kind: x, "label": y} for x, y in zip(split.inputs, split.targets, strict=True)]
        for key, split in parts.items()
    }


def settings(told: argparse.Namespace) -> dict[str, Any]:
    """What both sides are asked for; without a validation split, as the Trainer has none by default."""
    unfreeze, epochs = ARMS[told.arm]
    rows = chosen(told)
    classes = len({row["label"] for row in rows["train"]})
    more = {"augment": "none"} if told.images else {}
    plan = "frozen" if unfreeze == 0 else "full" if isinstance(unfreeze, str) else "two-stage"
    depth = {} if unfreeze in (0, "all") else {"unfreeze": unfreeze}
    if pooling := next((HEADS[end] for end in HEADS if told.arm.endswith(end)), ""):
        depth["pooling"] = pooling
    return {
        "model": told.base if told.images else text_model(),
        "data": rows,
        "plan": plan,
        "epochs": epochs,
        "labels_per_class": told.rows // classes,
        "validation": 0,
        "seed": told.seed,
        "precision": told.precision,
        "leaks": "allow",
        "quiet": True,
        **depth,
        **more,
    }


def affinage_side(told: argparse.Namespace) -> dict[str, Any]:
    import affinage

    with tempfile.TemporaryDirectory() as folder:
        os.environ["AFFINAGE_CACHE"] = str(Path(folder) / "cache")
        run = affinage.fit(**settings(told), out=Path(folder) / "run")
        record, right = run.record, right_of(Path(folder) / "run")
    stages = [stage["cost"] for stage in record["stages"]]
    encoding = record["cost_parts"]["encoding_by_split"]["train"]  # the other side's clock stands too while it reads the test
    parts = {"encoding": encoding} | {stage["stage"]: stage["cost"] for stage in record["stages"]}
    return {
        **{k: sum(cost[k] for cost in (*stages, encoding)) for k in ("seconds", "cpu_seconds")},
        "accuracy": record["test"]["accuracy"],
        "n_test": len(right),
        "hits": packed(right),
        "parts": parts,
        "cuts": record["cuts"],
        "precision": record["hardware"]["precision"],
        "fingerprint": record["data"]["fingerprint"],
        **floor(told),
    }


def right_of(folder: Path) -> np.ndarray:
    """Which test rows of a run were told right, in their order."""
    import numpy as np
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "predictions.parquet", columns=["label", "prediction"], filters=[("split", "=", "test")])
    return np.asarray(table["label"]) == np.asarray(table["prediction"])


def packed(right: np.ndarray) -> str:
    """Booleans as hexadecimal digits, four a digit, the first in the highest bit."""
    import numpy as np

    return np.packbits(right).tobytes().hex()


def told_right(line: dict[str, Any]) -> np.ndarray:
    """The test rows of a line, 1.0 where they were told right, else 0.0."""
    import numpy as np

    return np.unpackbits(np.frombuffer(bytes.fromhex(line["hits"]), dtype=np.uint8), count=line["n_test"]).astype(float)


def floor(told: argparse.Namespace) -> dict[str, Any]:
    """The least that the products of an arm can take, of pictures its passes, and the rates of this core."""
    import torch
    import transformers

    if torch.cuda.is_available():
        return {}  # a GPU mostly waits at these sizes: its products set no floor
    rates = {"bf16": peak(torch.bfloat16), "fp32": peak(torch.float32)}
    told_rates = {"matmul_gflops": {kind: rate / 1e9 for kind, rate in rates.items()}}
    unfreeze, epochs = ARMS[told.arm]
    if told.images:
        train = chosen(told)["train"]
        classes = len({row["label"] for row in train})
        return {**told_rates, "floor_seconds": picture_floor.floor(told.base, len(train), unfreeze, epochs, classes)}
    if told.arm.endswith(tuple(HEADS)):  # of one token less is multiplied, in another proportion
        return told_rates
    tokenizer = transformers.AutoTokenizer.from_pretrained(text_model())
    config = transformers.AutoConfig.from_pretrained(text_model())
    texts = [row["text"] for row in chosen(told)["train"]]
    once = flop(config, [len(ids) for ids in tokenizer(texts, truncation=True, max_length=512)["input_ids"]])
    share = 1.0 if isinstance(unfreeze, str) else unfreeze / config.num_hidden_layers
    # what is frozen, once: with the features for the solved head, which are captured on the way to the cut
    passes = (0.0 if isinstance(unfreeze, str) else 1.0) + 3 * share * epochs
    return {**told_rates, "floor_seconds": passes * once / max(rates.values())}


def trainer_side(told: argparse.Namespace) -> dict[str, Any]:
    import numpy as np
    import torch
    import transformers

    from affinage import config, rates
    from affinage.inputs import prepare
    from affinage.net import Net

    unfreeze, epochs = ARMS[told.arm]
    inputs = prepare(config.make({**settings(told), "plan": "full", "unfreeze": "auto"}))  # only its rows are used
    data, task, processor = inputs.data, inputs.task, inputs.processor
    assert data.test is not None
    transformers.set_seed(told.seed)
    auto = transformers.AutoModelForImageClassification if told.images else transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(inputs.settings.model, num_labels=len(inputs.names), ignore_mismatched_sizes=True)
    if not isinstance(unfreeze, str):  # the same parameters as on our side
        row = task.encode([data.train.inputs[0]], processor, model).batch(np.arange(1))
        net = Net.of(model, {name: value.cpu() for name, value in row.items()})
        rates.freeze(net, rates.resolve(net, rates.decayed(net, 1.0, 1.0, 1.0, unfreeze)))
    clock = Clock()
    train = examples(task, data.train, processor, model)
    encoded = clock.cost()
    test = examples(task, data.test, processor, model)
    collator = transformers.DefaultDataCollator() if told.images else transformers.DataCollatorWithPadding(processor)
    with tempfile.TemporaryDirectory() as folder:
        args = transformers.TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            seed=told.seed,
        )
        loop = transformers.Trainer(model=model, args=args, train_dataset=train, data_collator=collator)
        clock = Clock()
        loop.train()
        learned = clock.cost()
        logits = np.asarray(loop.predict(test).predictions)
    assert torch.get_num_threads() == told.threads
    right = logits.argmax(1) == np.asarray(data.test.targets)
    return {
        **{k: encoded[k] + learned[k] for k in encoded},
        "accuracy": float(right.mean()),
        "n_test": len(right),
        "hits": packed(right),
        "parts": {"encoding": encoded, "training": learned},
        "precision": "fp32",
        "steps": loop.state.global_step,
        "fingerprint": inputs.fingerprint,
    }


def taken(told: argparse.Namespace, arm: str, seed: int, side: str) -> dict[str, Any]:
    """One side of one arm in a process of its own."""
    words = ["--side", side, "--arm", arm, "--seed", str(seed), "--rows", str(told.rows), "--threads", str(told.threads)]
    words += ["--tested", str(told.tested), "--precision", told.precision, *(["--held"] if told.held else [])]
    words += ["--data", str(told.data), *(["--images", told.images, "--base", str(told.base)] if told.images else [])]
    return apart(__file__, words, told.threads)


def measured(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of results; the first ones said nothing of the device, which was the CPU."""
    return [{"device": "cpu", **line} for line in lines(path)]


def table(path: Path, other: Path | None = None) -> str:
    """Median ratios and mean accuracies of the finished pairs, as Markdown, and how the accuracies differ by seed, and by row.

    CPU seconds on a CPU, on a GPU those of the clock. `other`: the file of the Trainer's side, of this or of another device.
    """
    import numpy as np

    from affinage.measure.interval import crossed, paired

    found: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    own = measured(path)
    if other:
        devices = {line["device"] for line in own}
        own = [line for line in own if line["side"] != "trainer"]
        own += [{**line, "device": d} for line in measured(other) if line["side"] == "trainer" for d in devices]
    for line in own:
        found.setdefault(tuple(line[k] for k in KEY[:-1]), {})[line["side"]] = line
    arms: dict[tuple[Any, ...], list[dict[str, dict[str, Any]]]] = {}
    for (data, rows, device, arm, seed, threads), pair in found.items():
        if arm in SAME:
            pair = {**found.get((data, rows, device, SAME[arm], seed, threads), {}), **pair}
        if len(pair) == len(SIDES):
            arms.setdefault((data, rows, f"{threads} of {device}" if device == "cpu" else device, arm), []).append(pair)
    out = [
        "| data, rows | threads | arm | epochs | affinage, s | Trainer, s | times less "
        "| accuracy | Trainer's | pairs | over the floor |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (data, rows, threads, arm), pairs in sorted(arms.items(), key=lambda item: (item[0][:3], list(ARMS).index(item[0][3]))):
        mine, theirs = [p["affinage"] for p in pairs], [p["trainer"] for p in pairs]
        counted = "cpu_seconds" if threads.endswith("cpu") else "seconds"
        alone = all(one.get("at_once", 1) == 1 for one in (*mine, *theirs))
        ratio = statistics.median(b[counted] / a[counted] for a, b in zip(mine, theirs, strict=True))
        costs = [statistics.median(one[counted] for one in side) for side in (mine, theirs)]
        said = " | ".join(f"{number:.1f}" if alone else "–" for number in (*costs, ratio))
        scores = [f"{statistics.mean(one['accuracy'] for one in side):.3f}" for side in (mine, theirs)]
        floors = [one["cpu_seconds"] / one["floor_seconds"] for one in mine if "floor_seconds" in one]
        over = f"{statistics.median(floors):.2f}" if floors else ""
        out.append(
            f"| {data}, {rows} | {threads} | {arm} | {ARMS[arm][1]} | {said} | "
            f"{' | '.join(scores) if all(map(alike, pairs)) else '– | –'} | {len(pairs)} | {over} |"
        )
    for (data, rows, threads, arm), pairs in arms.items():
        if len(pairs) > 1 and all(map(alike, pairs)):
            middle, low, high = paired([100 * (p["affinage"]["accuracy"] - p["trainer"]["accuracy"]) for p in pairs])
            says = f"{middle:+.1f} points [{low:+.1f}, {high:+.1f}] ({len(pairs)} pairs)"
            if all("hits" in one for pair in pairs for one in pair.values()):
                _, low, high = crossed(np.stack([100.0 * (told_right(p["affinage"]) - told_right(p["trainer"])) for p in pairs]))
                says += f"; for other test rows, too: [{low:+.1f}, {high:+.1f}]"
            out.append(f"\n{data}, {rows}, {threads}, {arm}: accuracy, affinage minus Trainer {says}")
    return "\n".join(out)


def alike(pair: dict[str, dict[str, Any]]) -> bool:
    """Whether both sides were tested on the same rows."""
    return len({one.get("tested", MOST_TESTED) for one in pair.values()}) == 1


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1000, help="training rows")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the seed to begin with")
    parser.add_argument("--sides", default=",".join(SIDES), help="with commas between them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=1, help="sides beside each other: for accuracies, not for times")
    parser.add_argument("--tested", type=int, default=MOST_TESTED, help="test sentences at most")
    parser.add_argument("--held", action="store_true", help="test on a quarter of train, which then learns nothing")
    parser.add_argument("--precision", default="auto", help="of our side")
    parser.add_argument(
        "--arms", default=",".join(arm for arm in ARMS if not arm.endswith(tuple(HEADS))), help="with commas between them"
    )
    parser.add_argument("--images", help="an image data set instead of sst2, such as cifar10")
    parser.add_argument("--base", type=Path, default=STARTER, help="the folder of the image model; starter-vision if not given")
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data", help="the folder of the data sets")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "engine.jsonl")
    parser.add_argument("--table", action="store_true", help="print the table of what was measured, and stop")
    parser.add_argument("--trainer", type=Path, help="of the table: another file that has the Trainer's side")
    for hidden in ("--side", "--arm"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    told = parser.parse_args(words)
    if unknown := set(told.arms.split(",")) - set(ARMS):
        parser.error(f"no arm '{min(unknown)}': expected of {', '.join(ARMS)}")
    if told.table:
        print(table(told.out, told.trainer))
        return 0
    if told.side:
        import torch
        import transformers

        torch.set_num_threads(told.threads)
        transformers.logging.set_verbosity_error()
        print(json.dumps((affinage_side if told.side == "affinage" else trainer_side)(told)))
        return 0
    from affinage import facts

    told.out.parent.mkdir(parents=True, exist_ok=True)
    done = {tuple(line[k] for k in KEY) for line in measured(told.out)}
    where = facts.hardware("fp32")
    model = {"model": digest(told.base if told.images else text_model())}
    device = where.get("gpu", "cpu")
    versions = {**facts.versions(), "accelerate": version("accelerate")}

    data = (told.images or "sst2") + (", held out" if told.held else "")

    def one(cell: tuple[int, str, str]) -> None:
        seed, arm, side = cell
        commit = facts.commit()  # each process imports the checkout as it then is
        found = taken(told, arm, seed, side)
        head = dict(zip(KEY, (data, told.rows, device, arm, seed, told.threads, side), strict=True))
        head |= model | {"epochs": ARMS[arm][1], "commit": commit, "tested": told.tested}
        more = {"versions": versions, "cpu": where["cpu"], "load_average": os.getloadavg()[0], "at_once": told.at_once}
        append(told.out, {**head, **found, **more})
        print(f"{arm}, seed {seed}, {side}: {found['cpu_seconds']:.1f} CPU s, accuracy {found['accuracy']:.4f}", flush=True)

    cells = [
        (seed, arm, side)
        for seed in range(told.first, told.first + told.seeds)
        for arm in told.arms.split(",")
        for side in told.sides.split(",")
        if (data, told.rows, device, arm, seed, told.threads, side) not in done and not (side == "trainer" and arm in SAME)
    ]
    with ThreadPoolExecutor(told.at_once) as beside:
        list(beside.map(one, cells))
    print(table(told.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
