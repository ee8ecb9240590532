"""The search for the defaults of stage 2: candidates on rows held out of train, so that no row of a test split chooses a default.

    python benchmarks/search.py --only sst2,trec6 --labels 64 --try "full learning_rate=1e-4" --try "two-stage hand_over=0.3"
    python benchmarks/search.py --only cifar10 --labels 10,100 --try full --try two-stage
    python benchmarks/search.py --only hymenoptera --labels 0 --folds 4 --seeds 12 --try full --try two-stage
    python benchmarks/search.py --table

A candidate is an arm (`full`, `two-stage`, `scratch`) and what it changes of the plan's defaults: settings of `fit`, `steps`,
the least number of updates, for few rows, `warmup`, the share of them in which the rate rises, `cut_dropout`, the dropout
of what frozen blocks leave, and `pooling`, with which the network is made and its head solved.
One line a cell (data set, labels a class, candidate, seed) in a JSON-lines file; cells that are there are not run again. Training
is that of `fit` (the same stage, the same loop), the score is that of its last epoch on at most `--held` held-out rows. With
`--folds K` each seed holds out another K-th of the rows, for sets of which 500 would be too many: K seeds score every row once.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from arms import HERE, PICTURES, SEARCH_SEEDS, STARTER, TEXT, append, digest, lines, splits, text_model

from affinage.measure.interval import paired

HELD = 500  # rows that score a candidate, if not told otherwise
OURS = {"steps": int, "warmup": float, "cut_dropout": float}  # what a candidate may change beside the settings of `fit`


class Bench:
    """One data set at one size and seed: network, rows and the solved head, made once for all candidates."""

    def __init__(self, rows: dict[str, Any], labels_per_class: int, seed: int, source: Path, pooling: str) -> None:
        import numpy as np

        from affinage.config import make
        from affinage.features import passed
        from affinage.inputs import prepare
        from affinage.solve import solve

        few = {"labels_per_class": labels_per_class or None, "seed": seed, "leaks": "drop", "pooling": pooling, "quiet": True}
        self.inputs = inputs = prepare(make({"model": source, "data": rows, **few}))
        data, task = inputs.data, inputs.task
        assert data.test is not None
        for key, split in (("train", data.train), ("test", data.test)):
            inputs.rows[key] = task.encode(split.inputs, inputs.processor, inputs.model)
        self.y, self.z = np.asarray(data.train.targets), np.asarray(data.test.targets)
        self.start = {k: v.clone() for k, v in inputs.model.state_dict().items()}
        linear = inputs.net.head_linear
        assert linear is not None
        self.features, _ = passed(inputs.model, inputs.rows["train"], inputs.precision, linear)
        assert self.features is not None
        self.head = solve(self.features, self.y, len(inputs.names), seed=seed)
        self.seed = seed

    def tried(self, arm: str, changes: dict[str, Any]) -> dict[str, Any]:
        """Train one candidate from the start; its score and its cost."""
        import numpy as np
        import torch

        from affinage import plans
        from affinage.features import passed
        from affinage.fit import Fitting
        from affinage.frozen import computed_once

        inputs = self.inputs
        linear = inputs.net.head_linear
        assert linear is not None
        inputs.model.load_state_dict(self.start)
        if arm == "frozen":
            _put(linear, self.head, 1.0)
            return self.scored(0.0, 0)
        wishes = plans.Wishes(**{k: v for k, v in changes.items() if k not in (*OURS, "pooling")})
        stage = plans.make(arm, inputs.net, inputs.task.kind, len(self.y), wishes, patience=False).stages[-1]
        if "steps" in changes:
            stage = replace(stage, epochs=max(stage.epochs, math.ceil(changes["steps"] / math.ceil(len(self.y) / stage.batch))))
        stage = replace(stage, **{k: changes[k] for k in ("warmup", "cut_dropout") if k in changes})
        if arm == "two-stage":
            _put(linear, self.head, stage.hand_over)
        torch.manual_seed(self.seed + 1000)
        if arm == "scratch":
            for module in inputs.model.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
        shown = inputs.rows["train"]
        forward = None
        if inputs.task.kind == "text":  # what is frozen once, as `fit` does; pictures are changed anew each time
            frozen = computed_once(inputs.net, stage, {"train": shown}, precision=inputs.precision, budget=20, seed=self.seed)
            shown, forward = frozen.rows["train"], frozen.forward
        fitting = Fitting(
            inputs.net,
            stage,
            inputs.task,
            shown,
            inputs.task.aims(self.y, inputs.rows["train"], inputs.processor, inputs.model),
            seed=self.seed,
            precision=inputs.precision,
            weights=None,
            forward=forward,
        )
        clock = time.process_time()
        fitting.run(lambda: None, _Nowhere(), lambda: None, lambda *_: None)  # type: ignore[arg-type]
        spent = time.process_time() - clock
        after, _ = passed(inputs.model, inputs.rows["train"], inputs.precision, linear)
        drift = float(np.linalg.norm(after - self.features) / np.linalg.norm(self.features))
        return {**self.scored(spent, stage.epochs), "steps": fitting.progress.step, "drift": drift}

    def scored(self, spent: float, epochs: int) -> dict[str, Any]:
        from affinage.features import passed

        inputs = self.inputs
        _, logits = passed(inputs.model, inputs.rows["test"], inputs.precision)
        found = inputs.task.score(logits, self.z)
        names = ("accuracy", "macro_f1", "log_loss", "n")
        return {**{k: found[k] for k in names}, "cpu_seconds": round(spent, 2), "epochs": epochs}


class _Nowhere:
    """Takes the records of a stage and keeps none."""

    def add(self, *_: Any) -> None: ...

    def flush(self) -> None: ...


def folded(rows: dict[str, Any], count: int, seed: int) -> dict[str, Any]:
    """Train and test of one fold of `count`, the next with each seed; all are drawn anew after each `count` seeds."""
    from sklearn.model_selection import StratifiedKFold

    every = [*rows["train"], *rows["test"]]
    turn, fold = divmod(seed - SEARCH_SEEDS, count)
    folds = StratifiedKFold(count, shuffle=True, random_state=SEARCH_SEEDS // count + turn)
    train, test = list(folds.split(every, [row["label"] for row in every]))[fold]
    return {"train": [every[i] for i in train], "test": [every[i] for i in test]}


def _put(linear: Any, head: Any, scale: float) -> None:
    import torch

    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(head.weight * scale))
        if linear.bias is not None:
            linear.bias.copy_(torch.from_numpy(head.bias * scale))


def candidate(words: str) -> tuple[str, dict[str, Any]]:
    """("two-stage", {"learning_rate": 2e-4}) of "two-stage learning_rate=2e-4"."""
    from affinage.config import make

    arm, *pairs = words.split()
    changes: dict[str, Any] = dict(pair.split("=", 1) for pair in pairs)
    ours = {k: OURS[k](v) for k, v in changes.items() if k in OURS}
    rest = {k: v for k, v in changes.items() if k not in OURS}
    settings = make({**rest, "plan": arm}, "--try")
    return arm, {**{k: getattr(settings, k) for k in rest}, **ours}


def table(found: Sequence[dict[str, Any]]) -> str:
    """For each data set and size: every candidate's accuracy, and its difference to the first `full` one, paired by seed."""
    cells: dict[tuple[str, int, str, int], dict[str, dict[int, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    for line in found:
        of = line["data"], line["labels"], line.get("weights", ""), line.get("folds", 0)
        cells[of][line["candidate"]][line["seed"]] = line
    out = [
        "| data | labels a class | candidate | accuracy | - full | CPU s | drift | seeds |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for (data, labels, _, _), tried in cells.items():
        base = next((seeds for name, seeds in tried.items() if name.split()[0] == "full"), {})
        for name, seeds in tried.items():
            rows = list(seeds.values())
            both = sorted(seeds.keys() & base.keys())
            gap = f"{100 * paired([seeds[s]['accuracy'] - base[s]['accuracy'] for s in both])[0]:+.1f}" if both else ""
            drift = [row["drift"] for row in rows if "drift" in row]
            out.append(
                f"| {data} | {labels or 'all'} | {name} | {100 * sum(r['accuracy'] for r in rows) / len(rows):.1f} | {gap} "
                f"| {sum(r['cpu_seconds'] for r in rows) / len(rows):.0f} "
                f"| {f'{sum(drift) / len(drift):.2f}' if drift else ''} | {len(rows)} |"
            )
    return "\n".join(out)


def main(words: Sequence[str] | None = None) -> int:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", type=names, default=list(TEXT), help="data sets, with commas between them")
    parser.add_argument("--labels", type=names, default=["64"], help="labels a class, with commas between them")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--folds", type=int, default=0, help="hold out another so many-th of the rows with each seed")
    parser.add_argument("--held", type=int, default=HELD, help="rows that score a candidate, at most")
    parser.add_argument("--try", dest="candidates", action="append", default=[], metavar="ARM [KEY=VALUE ...]")
    parser.add_argument("--base", type=Path, default=STARTER, help="the folder of the image model; starter-vision if not given")
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data", help="the folder that holds the sets")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "search.jsonl")
    parser.add_argument("--table", action="store_true", help="print what the file holds, and run nothing")
    told = parser.parse_args(words)
    if told.table:
        print(table(list(lines(told.out))))
        return 0
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    import torch
    import transformers

    from affinage import facts, labels
    from affinage.types import Split

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    wanted = {words: candidate(words) for words in told.candidates}
    keys = ("data", "labels", "candidate", "seed", "weights")
    done = {(*(line[key] for key in keys), line.get("folds", 0)) for line in lines(told.out)}
    commit, sets = facts.commit(), {}
    for seed in range(SEARCH_SEEDS, SEARCH_SEEDS + told.seeds):
        for size in map(int, told.labels):
            for name in told.only:
                source = told.base if name in PICTURES else text_model()
                weights = digest(source)
                left = [words for words in wanted if (name, size, words, seed, weights, told.folds) not in done]
                if not left:
                    continue
                if name not in sets:
                    sets[name] = splits(name, told.data, search=True, tested=told.held)
                    test = sets[name]["test"]
                    if len(test) > told.held and not told.folds:
                        inputs = Split(test, [row["label"] for row in test], [str(i) for i in range(len(test))])
                        sets[name]["test"] = list(labels.holdout(inputs, told.held / len(test), 1)[1].inputs)
                rows = folded(sets[name], told.folds, seed) if told.folds else sets[name]
                left.sort(key=lambda words: str(wanted[words][1].get("pooling", "auto")))  # one network at a time
                bench, made = None, ""
                for words in left:
                    pooling = str(wanted[words][1].get("pooling", "auto"))
                    if bench is None or pooling != made:
                        bench, made = Bench(rows, size, seed, source, pooling), pooling
                    found = bench.tried(*wanted[words])
                    cell = {"data": name, "labels": size, "candidate": words, "seed": seed}
                    cell |= {"folds": told.folds} if told.folds else {}
                    facts_of = {"weights": weights, "commit": commit, "torch": torch.__version__}
                    append(told.out, {**cell, **found, "precision": bench.inputs.precision, **facts_of})
                    print(
                        f"{name} {size} seed {seed}: {words}: {found['accuracy']:.3f}, {found['cpu_seconds']} CPU s", flush=True
                    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
