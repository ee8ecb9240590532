"""A linear head on a frozen text encoder: affinage (one pass, then solved) against the Hugging Face Trainer (5 epochs).

    python benchmarks/frozen_text.py [--rows 2000] [--rounds 3]

The same MiniLM, the same SST-2 sentences, one thread; the two sides take turns, each in a process of its own. Counted: CPU
seconds of tokenising and learning, after the model is loaded and before the test. Measured too: how far that is from the floor
that matrix products set, the work of one forward pass over the tokens without padding at the best rate that this core reached
on a 2048x384x1536 product, in bf16 or in fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arms import HERE, apart, digest, splits, text_model, version

EPOCHS = 5
SIDES = ("affinage", "trainer")
PRODUCT = (2048, 384, 1536)  # rows, inner, columns: the first layer of MiniLM's feed-forward part


def flop(config: Any, lengths: Sequence[int]) -> float:
    """FLOP of one forward pass of a BERT-shaped encoder over sentences of these lengths, without padding: 2 a multiply-add.

    A layer: four D x D products and two D x F ones a token, and T products of width D twice (scores, values) a token of T.
    """
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    dense = 2 * (4 * width * width + 2 * width * inner)
    return float(layers * sum(length * dense + 2 * 2 * length * length * width for length in lengths))


def peak(kind: Any, repeats: int = 15) -> float:
    """The best FLOP/s of (2048, 384) x (384, 1536) in `kind` on the threads of this process."""
    import torch

    rows, inner, columns = PRODUCT
    left, right = torch.randn(rows, inner).to(kind), torch.randn(inner, columns).to(kind)
    best = float("inf")
    for _ in range(repeats):
        clock = time.process_time()
        left @ right
        best = min(best, time.process_time() - clock)
    return 2 * rows * inner * columns / best


def rows_of(data: Path, count: int) -> tuple[list[str], list[int], list[str], list[int]]:
    """(train texts, labels, test texts, labels): `count` sentences, as many of each class, none of which is in test."""
    from affinage import data as reading
    from affinage import labels
    from affinage.check import check, without_leaks

    found = reading.read(splits("sst2", data))
    found = without_leaks(found, check(found))
    few = labels.few(found.train, count // len(set(found.train.targets)), 0)
    found, _ = labels.encode(found.with_splits(train=few))
    assert found.test is not None
    train, test = found.train, found.test
    return list(train.inputs), [int(t) for t in train.targets], list(test.inputs), [int(t) for t in test.targets]


def affinage_side(train: list[str], y: list[int], test: list[str], z: list[int]) -> dict[str, Any]:
    """Tokenise, one pass, solve; then the test, and the floor."""
    import numpy as np
    import scipy.optimize  # noqa: F401  # loaded before the clock starts, as the other side's imports are
    import torch

    from affinage import features, pooling, tasks
    from affinage.net import Net
    from affinage.solve import solve

    task = tasks.find("text-classification", "text")
    model, tokenizer = task.load(text_model(), ["neg", "pos"], fresh=False, revision=None)
    pooling.install(model, pooling.declared(text_model()) or "mean")
    linear = Net.of(model, task.encode(train[:1], tokenizer, model).batch(np.arange(1))).head_linear
    assert linear is not None
    precision = features.auto_precision()
    clock = Clock()
    rows = task.encode(train, tokenizer, model)
    tokenised = clock.cost()
    found, _ = features.passed(model, rows, precision, linear)
    passed = clock.cost()
    assert found is not None
    head = solve(found, np.asarray(y), 2)
    cost = clock.cost()
    there, _ = features.passed(model, task.encode(test, tokenizer, model), precision, linear)
    assert there is not None
    rates = {"bf16": peak(torch.bfloat16), "fp32": peak(torch.float32)}
    work = flop(model.config, rows.lengths.tolist())
    ideal = work / max(rates.values())
    forward = passed["cpu_seconds"] - tokenised["cpu_seconds"]
    return {
        **cost,
        "accuracy": float((head.logits(there).argmax(1) == np.asarray(z)).mean()),
        "parts": {
            "tokenising": tokenised["cpu_seconds"],
            "pass": forward,
            "solving": cost["cpu_seconds"] - passed["cpu_seconds"],
        },
        "precision": precision,
        "tokens": int(rows.lengths.sum()),
        "mflop_a_token": work / 1e6 / int(rows.lengths.sum()),
        "matmul_gflops": {kind: rate / 1e9 for kind, rate in rates.items()},
        "ideal_seconds": ideal,
        "of_floor": {"pass": ideal / forward, "all": ideal / cost["cpu_seconds"]},
    }


def trainer_side(train: list[str], y: list[int], test: list[str], z: list[int]) -> dict[str, Any]:
    """Tokenise, train the head through the frozen encoder with the Trainer's default arguments; then the test."""
    import numpy as np
    import transformers

    transformers.set_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(text_model(), num_labels=2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(text_model())
    for parameter in model.base_model.parameters():
        parameter.requires_grad = False

    def examples(texts: list[str], targets: list[int]) -> list[dict[str, Any]]:
        words = tokenizer(texts, truncation=True, max_length=512)
        return [{**{k: words[k][i] for k in words}, "labels": target} for i, target in enumerate(targets)]

    with tempfile.TemporaryDirectory() as folder:
        args = transformers.TrainingArguments(
            output_dir=folder, num_train_epochs=EPOCHS, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True
        )
        collator = transformers.DataCollatorWithPadding(tokenizer)
        clock = Clock()
        rows = examples(train, y)
        tokenised = clock.cost()
        loop = transformers.Trainer(model=model, args=args, train_dataset=rows, data_collator=collator)
        loop.train()
        cost = clock.cost()
        logits = np.asarray(loop.predict(examples(test, z)).predictions)
    return {
        **cost,
        "accuracy": float((logits.argmax(1) == np.asarray(z)).mean()),
        "parts": {"tokenising": tokenised["cpu_seconds"], "training": cost["cpu_seconds"] - tokenised["cpu_seconds"]},
        "precision": "fp32",
        "steps": loop.state.global_step,
    }


class Clock:
    """Wall and CPU seconds since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def cost(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self.wall, "cpu_seconds": time.process_time() - self.cpu}


def taken(side: str, told: argparse.Namespace) -> dict[str, Any]:
    """One side in a process of its own, on one thread."""
    return apart(__file__, ["--side", side, "--rows", str(told.rows), "--data", str(told.data)])


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000, help="training sentences")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data", help="the folder that holds sst2/")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "frozen_text.json")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    told = parser.parse_args(words)
    if told.side:
        import torch
        import transformers

        torch.set_num_threads(1)
        transformers.logging.set_verbosity_error()
        print(json.dumps((affinage_side if told.side == "affinage" else trainer_side)(*rows_of(told.data, told.rows))))
        return 0
    from affinage import facts

    rounds: list[dict[str, Any]] = []
    commit = facts.commit()
    for number in range(1, told.rounds + 1):
        both = {side: taken(side, told) for side in SIDES}
        both["ratio"] = both["trainer"]["cpu_seconds"] / both["affinage"]["cpu_seconds"]
        rounds.append(both)
        a, b = both["affinage"], both["trainer"]
        print(
            f"round {number}: affinage {a['cpu_seconds']:.1f} CPU s, accuracy {a['accuracy']:.4f}; "
            f"trainer {b['cpu_seconds']:.1f} CPU s, accuracy {b['accuracy']:.4f}; "
            f"ratio {both['ratio']:.1f}; the pass runs at {a['of_floor']['pass']:.2f} of the matmul floor",
            flush=True,
        )
    result = {
        "rows": told.rows,
        "epochs_of_trainer": EPOCHS,
        "model": {"name": "all-MiniLM-L6-v2", "weights": digest(text_model())},
        "threads": 1,
        "median_ratio": statistics.median(r["ratio"] for r in rounds),
        "median_of_floor": {k: statistics.median(r["affinage"]["of_floor"][k] for r in rounds) for k in ("pass", "all")},
        "rounds": rounds,
        "versions": {**facts.versions(), "accelerate": version("accelerate")},
        "commit": commit,
        "commit_at_end": facts.commit(),  # each process imports the checkout as it then is
        "cpu": facts.hardware("fp32")["cpu"],
        "load_average": os.getloadavg(),
    }
    told.out.parent.mkdir(parents=True, exist_ok=True)
    told.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")
    print(f"median ratio {result['median_ratio']:.1f} over {told.rounds} rounds, in {told.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
