"""What a run takes, predicted before it begins: steps, bytes, FLOP, CPU seconds; checked here, carried to 10^9 rows.

    python benchmarks/scale.py [--rows 600,1200] [--data FOLDER]

The model of cost is `predicted`: sums over the lengths of the rows, and two rates (FLOP a CPU second of a pass without gradients,
and of training) that one small run gives. The runs that it is checked on have other rows and other depths. Counted: CPU seconds
of one thread, for others work on the machine; bytes of files as they are; FLOP by torch's own counter, in a run of its own, which
it slows. MiniLM on sentences of sst2, fp32. Messages: what passes the loopback device while two ranks train two epochs more, a
step. Then the same sums for 10^9 rows of the mean length, on paper.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arms import HERE, apart, digest, splits, text_model
from frozen_text import flop

BATCH, HELD = 16, 200  # rows a step of the runs here; rows of validation, and as many of test
MANY = 32  # rows a step from 5,000 training rows on, by default
SAMPLE = 512  # rows on which drift is measured, twice
BILLION = 10**9
MEMORY = 10**9  # bytes: the default of AFFINAGE_MEMORY_GB
# a nominal machine of the paper case, and no measurement: what one GPU sustains, what its link to the others carries
GPU_FLOPS, LINK = 1e14, 5e10  # FLOP/s in bf16, bytes/s


@dataclass(frozen=True)
class Network:
    """A BERT-shaped encoder. `per_block`, `stem`, `head`: parameters."""

    width: int
    inner: int
    blocks: int
    per_block: int
    stem: int
    head: int


@dataclass(frozen=True)
class Prediction:
    """Of one run of the plan two-stage with `top` of the blocks learning."""

    steps: int
    trained_parameters: int
    store_bytes: int  # what reaches the cut, float32
    token_bytes: int  # encoded rows, of every rank: in its memory up to AFFINAGE_MEMORY_GB, else on its disk
    solved_rows: int  # that the head is solved on
    feature_bytes: int  # the head's inputs, float32, on every rank, and float64 where it is solved
    checkpoint_bytes: int  # in the middle of training, from the second epoch on
    frozen_flop: float  # below the cut, once
    train_flop: float  # above it: forward, and twice that backward
    pass_flop: float  # above it without gradients: features, validation of each epoch; the whole network at the end
    message_bytes: int  # of gradients that a rank of many sends a step


def predicted(net: Network, lengths: dict[str, Sequence[int]], padded: int, top: int, epochs: int, rows: int) -> Prediction:
    """`lengths`: tokens a row of train, validation and test. `padded`: tokens with padding of one epoch of training batches."""
    config = argparse.Namespace(hidden_size=net.width, intermediate_size=net.inner, num_hidden_layers=net.blocks)
    whole = {name: flop(config, each) for name, each in lengths.items()}
    above = top / net.blocks
    trained = net.per_block * top + net.head
    classes = net.head // (net.width + 1)
    solved = min(rows, MEMORY // (8 * (4 * net.width + 10 * classes)))
    stored = sum(sum(each) for name, each in lengths.items() if name != "test")
    train_tokens = sum(lengths["train"])
    sample = whole["train"] * min(SAMPLE, len(lengths["train"])) / len(lengths["train"])
    return Prediction(
        steps=epochs * -(-rows // BATCH),
        trained_parameters=trained,
        store_bytes=4 * net.width * stored,
        token_bytes=sum(4 * sum(each) + 8 * (len(each) + 1) for each in lengths.values()),
        solved_rows=solved,
        feature_bytes=(4 + 8) * net.width * solved,
        checkpoint_bytes=4 * (4 * trained + net.head),  # weights, the best so far, two moments; the solved head
        frozen_flop=(1 - above) * (whole["train"] + whole["validation"]),
        train_flop=3 * above * whole["train"] * padded / train_tokens * epochs,
        pass_flop=above * (whole["train"] * solved / rows + (epochs + 2) * whole["validation"])
        + whole["validation"]
        + whole["test"]
        + 2 * sample,
        message_bytes=2 * 4 * trained,
    )


def measured(rows: int, top: int, epochs: int, data: Path, count: bool) -> dict[str, Any]:
    """One run in this process, on an empty cache: what `predicted` predicts, and the prediction."""
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import affinage
    from affinage import checkpoint, tasks
    from affinage.batches import shuffled

    torch.set_num_threads(1)
    found = splits("sst2", data)
    order = np.random.default_rng(0).permutation(len(found["train"]))
    chosen = [found["train"][i] for i in order[: rows + HELD]]
    table = {"train": chosen[:rows], "validation": chosen[rows:], "test": found["test"][:HELD]}
    sizes: list[int] = []
    save = checkpoint.save

    def weighed(*args: Any) -> Path:
        path = save(*args)
        sizes.append((path / "tensors.safetensors").stat().st_size)
        return path

    checkpoint.save = weighed
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AFFINAGE_CACHE"] = f"{folder}/cache"
        if count:  # weigh checkpoints where no time is taken
            os.environ["AFFINAGE_CHECKPOINT_SECONDS"] = "0"
        counter = FlopCounterMode(display=False)
        words: dict[str, Any] = {"unfreeze": top, "epochs": epochs, "batch_size": BATCH, "precision": "fp32", "quiet": True}
        with counter if count else tempfile.TemporaryDirectory():
            run = affinage.fit(text_model(), table, out=f"{folder}/run", leaks="allow", **words)
    story = run.record
    task = tasks.find("text-classification", "text")
    model, tokenizer = task.load(text_model(), ["neg", "pos"], fresh=False, revision=None)
    encoded = {name: task.encode([row["text"] for row in part], tokenizer, model) for name, part in table.items()}
    lengths = {name: part.lengths.tolist() for name, part in encoded.items()}
    batches = [shuffled(encoded["train"].lengths, BATCH, 0, epoch) for epoch in range(epochs)]
    padded = sum(len(b) * int(encoded["train"].lengths[b].max()) for epoch in batches for b in epoch) // epochs
    parts = {row["address"]: row["parameters"] for row in story["model"]["anatomy"]}
    config = model.config
    net = Network(
        config.hidden_size, config.intermediate_size, config.num_hidden_layers, parts["blocks.0"], parts["stem"], parts["head"]
    )
    body, cut = next(s for s in story["stages"] if s["stage"] == "body"), story["cuts"]["body"]
    return {
        "rows": rows,
        "top": top,
        "epochs": epochs,
        "tokens": sum(lengths["train"]),
        "padded": padded,
        "mean_length": float(np.mean(lengths["train"])),
        "network": asdict(net),
        "predicted": asdict(predicted(net, lengths, padded, top, epochs, rows)),
        "measured": {
            "steps": body["details"]["steps"],
            "trained_parameters": body["details"]["trained_parameters"],
            "store_bytes": cut["bytes"],
            "token_bytes": sum(part.values.nbytes + part.starts.nbytes for part in encoded.values()),
            "checkpoint_bytes": max(sizes),
            "flop": counter.get_total_flops() if count else None,
            "frozen_cpu_seconds": cut["cpu_seconds"],
            "train_cpu_seconds": body["cost"]["cpu_seconds"],
        },
    }


def taken(rows: int, top: int, epochs: int, data: Path, count: bool) -> dict[str, Any]:
    """`measured` in a process of its own, on one thread."""
    return apart(__file__, ["--data", str(data), "--one", f"{rows},{top},{epochs},{int(count)}"])


def messages(rows: int, top: int, data: Path) -> dict[str, Any]:
    """Bytes a step over the loopback device of both ranks together: what two epochs more add, by the steps more."""
    chosen = splits("sst2", data)["train"][:rows]

    def passed(epochs: int, folder: Path) -> int:
        words = ["fit", "--model", str(text_model()), "--data", str(folder / "data.csv"), "--out", str(folder / f"run-{epochs}")]
        words += ["--unfreeze", str(top), "--epochs", str(epochs), "--batch-size", str(BATCH), "--precision", "fp32"]
        words += ["--validation", "0", "--leaks", "allow", "--quiet"]
        before = _loopback()
        subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "affinage", *words],
            env={**os.environ, "OMP_NUM_THREADS": "1", "AFFINAGE_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return _loopback() - before

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "data.csv").open("w", newline="", encoding="utf8") as file:
            csv.writer(file).writerows([["text", "label"], *([row["text"], row["label"]] for row in chosen)])
        few, more = passed(2, folder), passed(4, folder)
        story = json.loads((folder / "run-4" / "run.json").read_text())
    body = next(stage for stage in story["stages"] if stage["stage"] == "body")
    steps, trained = body["details"]["steps"], body["details"]["trained_parameters"]
    sent = 8 * trained  # 2 (R - 1) / R of the gradients by each of R ranks
    measured = (more - few) / (steps / 2)
    return {"ranks": 2, "rows": rows, "top": top, "predicted": sent, "measured": measured, "ratio": measured / sent}


def _loopback() -> int:
    """Bytes sent through it since the machine began."""
    return int(Path("/sys/class/net/lo/statistics/tx_bytes").read_text())


def carried(net: Network, mean: float, padding: float, rates: dict[str, float], top: int, epochs: int) -> dict[str, Any]:
    """The sums for 10^9 rows of the mean length here, on paper; `ranks` and `gpu` as nominal as their constants."""
    few = 10**6  # rows of one length, scaled: what does not grow with the rows comes from them as it is
    scale = BILLION / few
    lengths = {"train": [round(mean)] * few, "validation": [0], "test": [0]}
    each = asdict(predicted(net, lengths, round(padding * round(mean) * few), top, epochs, few))
    for name in ("store_bytes", "token_bytes", "frozen_flop", "train_flop"):
        each[name] = each[name] * scale
    each["steps"] = epochs * -(-BILLION // MANY)
    work = each["frozen_flop"] + each["train_flop"] + each["pass_flop"]
    seconds = (each["frozen_flop"] + each["pass_flop"]) / rates["pass"] + each["train_flop"] / rates["train"]
    return {
        "rows": BILLION,
        "top": top,
        "epochs": epochs,
        "tokens": round(mean) * BILLION,
        **each,
        "flop": work,
        "core_years_here": seconds / (365 * 86400),
        "gpu_hours_nominal": work / GPU_FLOPS / 3600,
        "message_seconds_a_step_nominal": each["message_bytes"] / LINK,
    }


def on_paper(result: dict[str, Any]) -> dict[str, Any]:
    """The result with the sums for 10^9 rows: lengths and padding of the largest run, rates of the small one."""
    net, biggest = Network(**result["calibration"]["network"]), result["checks"][0]
    padding, mean = biggest["padded"] / biggest["tokens"], biggest["mean_length"]
    billion = [carried(net, mean, padding, result["rates"], top, 2) for top in (1, 2)]
    return {**result, "padding": padding, "billion": billion, "nominal": {"gpu_flops": GPU_FLOPS, "link_bytes": LINK}}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", default="600,1200", help="rows of the small run that gives the rates, and of the others")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data", help="the folder that holds sst2/")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "scale.json")
    parser.add_argument("--paper", action="store_true", help="only the 10^9 rows, from what the file has measured")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    told = parser.parse_args(words)
    if told.one:
        rows, top, epochs, count = map(int, told.one.split(","))
        print(json.dumps(measured(rows, top, epochs, told.data, bool(count))))
        return 0
    if told.paper:
        result = json.loads(told.out.read_text(encoding="utf8"))
        told.out.write_text(json.dumps(on_paper(result), indent=1) + "\n", encoding="utf8")
        return 0
    from affinage import facts

    commit = facts.commit()
    few, many = map(int, told.rows.split(","))
    first = taken(few, 2, told.epochs, told.data, False)
    p, m = first["predicted"], first["measured"]
    rates = {"pass": p["frozen_flop"] / m["frozen_cpu_seconds"], "train": p["train_flop"] / m["train_cpu_seconds"]}
    checks = []
    for rows, top in ((many, 2), (many, 1), (few // 2, 4)):
        timed, counted = taken(rows, top, told.epochs, told.data, False), taken(rows, top, told.epochs, told.data, True)
        p, m = timed["predicted"], timed["measured"]
        m["flop"], m["checkpoint_bytes"] = counted["measured"]["flop"], counted["measured"]["checkpoint_bytes"]
        p["flop"] = p["frozen_flop"] + p["train_flop"] + p["pass_flop"]
        p["frozen_cpu_seconds"] = p["frozen_flop"] / rates["pass"]
        p["train_cpu_seconds"] = p["train_flop"] / rates["train"]
        timed["ratio"] = {name: m[name] / p[name] for name in m}
        checks.append(timed)
        print(rows, top, {name: round(value, 3) for name, value in timed["ratio"].items()}, flush=True)
    result = {
        "model": {"name": "all-MiniLM-L6-v2", "weights": digest(text_model())},
        "threads": 1,
        "batch": BATCH,
        "rates": rates,
        "calibration": first,
        "checks": checks,
        "messages": [messages(few, top, told.data) for top in (1, 2)],
        "versions": facts.versions(),
        "commit": commit,
        "commit_at_end": facts.commit(),
        "cpu": facts.hardware("fp32")["cpu"],
        "load_average": os.getloadavg(),
    }
    told.out.write_text(json.dumps(on_paper(result), indent=1) + "\n", encoding="utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
