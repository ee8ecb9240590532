"""Speech and boxes, partly frozen and whole: affinage against the Hugging Face Trainer with default arguments, in CPU seconds.

    python benchmarks/trainer.py [--tasks speech,boxes] [--arms head,top-1,full] [--seeds 1]
    python benchmarks/trainer.py --table

Speech: starter-speech on 200 recordings of a speaker that it never heard (fsdd); boxes: starter-detector on 80 pictures of
blood cells (bccd). Both sides begin with the same weights, teach the same parameters on the same rows for as many epochs, and
make their batches with the same code; the sides take turns, each in a process of its own with an empty cache. Counted: CPU
seconds of reading and learning, after the model is loaded and before the test. A line a finished side.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import detection
import speech
from arms import HERE, apart, append, digest, lines, version
from frozen_text import Clock

# arm -> (blocks that learn beside the head, or all; epochs of either side)
ARMS: dict[str, tuple[int | str, int]] = {"head": (0, 10), "top-1": (1, 10), "full": ("all", 5)}
TASKS = {"speech": ("wer", speech.STARTER), "boxes": ("map50", detection.STARTER)}
SIDES = ("affinage", "trainer")
KEY = ("task", "arm", "seed", "side", "weights")


def settings(told: argparse.Namespace) -> dict[str, Any]:
    """What both sides are asked for: no validation split, no augmentation."""
    unfreeze, epochs = ARMS[told.arm]
    rows = speech.splits(told.data / "fsdd", speech.SPEAKERS[0]) if told.task == "speech" else detection.rows(told.data / "bccd")
    return {
        "model": TASKS[told.task][1],
        "data": rows,
        "plan": "frozen" if unfreeze == 0 else "full",
        "epochs": epochs,
        "labels_per_class": 20 if told.task == "speech" else 80,
        "seed": told.seed,
        "leaks": "drop",
        "augment": "none",
        "quiet": True,
        **({} if unfreeze in (0, "all") else {"unfreeze": unfreeze}),
    }


def affinage_side(told: argparse.Namespace) -> dict[str, Any]:
    import affinage

    with tempfile.TemporaryDirectory() as folder:
        os.environ["AFFINAGE_CACHE"] = str(Path(folder) / "cache")
        record = affinage.fit(**settings(told), out=Path(folder) / "run").record
    read = record["cost_parts"]["encoding_by_split"]  # the Trainer's side reads the test rows when its clock has stopped
    costs = [*(cost for name, cost in read.items() if name != "test"), *(stage["cost"] for stage in record["stages"])]
    return {
        **{name: sum(cost[name] for cost in costs) for name in ("seconds", "cpu_seconds")},
        "score": record["test"][TASKS[told.task][0]],
        "steps": [stage["details"].get("steps") for stage in record["stages"]],
        "cuts": record["cuts"],
        "precision": record["hardware"]["precision"],
        "rows": record["data"]["rows"]["train"],
    }


def trainer_side(told: argparse.Namespace) -> dict[str, Any]:
    import torch
    import transformers

    from affinage import config, rates
    from affinage.features import answered
    from affinage.inputs import prepare

    unfreeze, epochs = ARMS[told.arm]
    inputs = prepare(config.make({**settings(told), "plan": "full", "unfreeze": "auto"}))
    data, task, model, processor = inputs.data, inputs.task, inputs.model, inputs.processor
    assert data.test is not None
    transformers.set_seed(told.seed)
    if unfreeze != "all":  # the same parameters as on our side
        rates.freeze(inputs.net, rates.resolve(inputs.net, rates.decayed(inputs.net, 1.0, 1.0, 1.0, unfreeze)))
    clock = Clock()
    rows = task.encode(data.train.inputs, processor, model)
    aims = task.aims(data.train.targets, rows, processor, model)
    encoded = clock.cost()

    def collated(numbers: Sequence[int]) -> dict[str, Any]:
        import numpy as np

        chosen = np.asarray(numbers)
        batch, targets = task.teach(rows.batch(chosen), aims.batch(chosen), "none")
        if told.task == "speech":
            places = torch.arange(targets["labels"].shape[1])
            batch["labels"] = targets["labels"].masked_fill(places >= targets["lengths"][:, None], -100)
        return batch

    with tempfile.TemporaryDirectory() as folder:
        args = transformers.TrainingArguments(
            output_dir=folder, num_train_epochs=epochs, save_strategy="no", report_to="none", disable_tqdm=True,
            remove_unused_columns=False, dataloader_pin_memory=False, use_cpu=not torch.cuda.is_available(), seed=told.seed,
        )  # fmt: skip
        loop = transformers.Trainer(model=model, args=args, train_dataset=range(len(rows)), data_collator=collated)  # type: ignore[arg-type]
        clock = Clock()
        loop.train()
        learned = clock.cost()
    test = task.encode(data.test.inputs, processor, model)
    answers = answered(task, model.eval(), test, processor, "fp32")
    return {
        **{name: encoded[name] + learned[name] for name in encoded},
        "score": task.score(answers, data.test.targets)[TASKS[told.task][0]],
        "steps": [loop.state.global_step],
        "precision": "fp32",
        "rows": len(rows),
    }


def table(path: Path) -> str:
    """Median ratios and mean scores of the finished pairs, as Markdown."""
    pairs: dict[tuple[str, str, str], dict[int, dict[str, dict[str, Any]]]] = {}
    for line in lines(path):
        pairs.setdefault((line["task"], line["weights"], line["arm"]), {}).setdefault(line["seed"], {})[line["side"]] = line
    out = [
        "| task | weights | arm | epochs | affinage, CPU s | Trainer, CPU s | times less | score | Trainer's | pairs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for task, weights in dict.fromkeys(key[:2] for key in pairs):
        for arm, (_, epochs) in ARMS.items():
            both = [pair for pair in pairs.get((task, weights, arm), {}).values() if len(pair) == len(SIDES)]
            if not both:
                continue
            seconds = [statistics.median(pair[side]["cpu_seconds"] for pair in both) for side in SIDES]
            scores = [statistics.mean(pair[side]["score"] for pair in both) for side in SIDES]
            ratio = statistics.median(pair["trainer"]["cpu_seconds"] / pair["affinage"]["cpu_seconds"] for pair in both)
            out.append(
                f"| {task} ({TASKS[task][0]}) | {weights} | {arm} | {epochs} | {seconds[0]:.1f} | {seconds[1]:.1f} | {ratio:.1f} "
                f"| {scores[0]:.3f} | {scores[1]:.3f} | {len(both)} |"
            )
    return "\n".join(out)


def main(words: Sequence[str] | None = None) -> int:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=names, default=list(TASKS))
    parser.add_argument("--arms", type=names, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data", help="the folder of the data sets")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "trainer.jsonl")
    parser.add_argument("--table", action="store_true", help="print the table of what was measured, and stop")
    for hidden in ("--side", "--arm", "--task"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    told = parser.parse_args(words)
    for given, known in ((told.tasks, TASKS), (told.arms, ARMS)):
        if unknown := set(given) - set(known):
            parser.error(f"'{min(unknown)}' is not known: expected of {', '.join(known)}")
    if told.table:
        print(table(told.out))
        return 0
    if told.side:
        import torch
        import transformers

        torch.set_num_threads(1)
        transformers.logging.set_verbosity_error()
        print(json.dumps((affinage_side if told.side == "affinage" else trainer_side)(told)))
        return 0
    from affinage import facts

    told.out.parent.mkdir(parents=True, exist_ok=True)
    done = {tuple(line[k] for k in KEY) for line in lines(told.out)}
    for seed in range(told.seeds):
        for task in told.tasks:
            for arm in told.arms:
                for side in SIDES:
                    key = (task, arm, seed, side, digest(TASKS[task][1]))
                    if key in done:
                        continue
                    commit = facts.commit()  # each process imports the checkout as it then is
                    words_of = ["--task", task, "--arm", arm, "--seed", str(seed), "--side", side, "--data", str(told.data)]
                    found = apart(__file__, words_of)
                    about = {
                        "epochs": ARMS[arm][1],
                        "commit": commit,
                        "cpu": facts.hardware("fp32")["cpu"],
                    }
                    about |= {"versions": {**facts.versions(), "accelerate": version("accelerate")}, "load": os.getloadavg()[0]}
                    append(told.out, {**dict(zip(KEY, key, strict=True)), **found, **about})
                    print(f"{task} {arm} seed {seed} {side}: {found['cpu_seconds']:.1f} CPU s, {found['score']:.3f}", flush=True)
    print(table(told.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
