"""Large networks on a GPU: examples a second, and how much of the card's products they use, against the Trainer on the same card.

    python benchmarks/throughput.py [--networks bert,vit] [--arms full,top-2,cached] [--rows 4096] [--epochs 3]
    python benchmarks/throughput.py --table

A BERT and a ViT of base size with random weights, on random words (128 tokens) and random pictures (224 x 224): what is learnt
does not matter here. `full` trains all layers, `top-2` the last two of twelve with nothing kept, `cached` the same with what is
frozen computed once; in both the head is solved first, on a pass of its own. Sides: `affinage` and `trainer-bf16` with `--batch`
rows a step in bf16, `trainer` with its default arguments (fp32, 8 rows); `unrecorded` is `affinage` with updates launched kernel
by kernel (AFFINAGE_GRAPHS=off), for all layers. Each side runs in a process of its own; a line a
finished one. Seconds are those of learning, by the clock, after a short run that is thrown away. Utilisation: the least that the
way of the arm has to multiply (three times the forward pass where layers learn, once where they do not) over what the card
multiplies in bf16 at best (8,192 x 8,192 x 8,192, measured in the same process), whatever the side computes in.
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

from arms import HERE, apart, append, lines, version
from frozen_text import flop

NETWORKS = ("bert", "vit")
ARMS = ("full", "top-2", "cached")
TRAINERS = ("trainer-bf16", "trainer")
SIDES = ("affinage", "unrecorded", *TRAINERS)
TOP = 2  # blocks that learn where not all do
TOKENS, SIDE, PATCH = 128, 224, 16
KEY = ("network", "device", "arm", "side", "rows", "epochs", "batch", "layers", "width")


def made(told: argparse.Namespace, folder: Path) -> Path:
    """The network with random weights, and its processor, as a model folder."""
    import torch
    import transformers as T

    torch.manual_seed(0)
    shape = {
        "hidden_size": told.width, "num_hidden_layers": told.layers, "num_attention_heads": max(1, told.width // 64),
        "intermediate_size": 4 * told.width,
    }  # fmt: skip
    if told.network == "bert":
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(1000))]
        T.BertForSequenceClassification(T.BertConfig(**shape)).save_pretrained(folder)
        T.BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    else:
        T.ViTForImageClassification(T.ViTConfig(**shape, image_size=SIDE, patch_size=PATCH)).save_pretrained(folder)
        T.ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def examples(network: str, count: int) -> list[dict[str, Any]]:
    """Random rows of two classes, the same at every call."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    if network == "bert":
        return [
            {"text": " ".join(f"w{i}" for i in rng.integers(0, 1000, TOKENS - 2)), "label": f"c{n % 2}"} for n in range(count)
        ]
    return [
        {"image": Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)), "label": f"c{n % 2}"}
        for n in range(count)
    ]


def work(told: argparse.Namespace, config: Any) -> float:
    """FLOP that learning has to multiply: a pass for the solved head, three for a layer that learns, one for a frozen one."""
    length = TOKENS if told.network == "bert" else (SIDE // PATCH) ** 2 + 1
    once = flop(config, [length]) + (0 if told.network == "bert" else 2 * 3 * PATCH**2 * config.hidden_size * (length - 1))
    share = TOP / config.num_hidden_layers
    solved = told.side not in TRAINERS
    passes = {
        "full": 3 * told.epochs,
        "top-2": solved + (1 + 2 * share) * told.epochs,
        "cached": solved + (1 - share) + 3 * share * told.epochs,
    }
    return passes[told.arm] * once * told.rows


def best(where: Any) -> float:
    """The FLOP/s of a large bf16 product there, the best of ten."""
    import torch

    side = 8192 if where.type == "cuda" else 512
    left, right = (torch.randn(side, side, device=where, dtype=torch.bfloat16) for _ in range(2))
    found = 0.0
    for _ in range(10):
        started = time.perf_counter()
        left @ right
        if where.type == "cuda":
            torch.cuda.synchronize()
        found = max(found, 2 * side**3 / (time.perf_counter() - started))
    return found


def affinage_side(told: argparse.Namespace, base: Path, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    import affinage

    depth = {} if told.arm == "full" else {"unfreeze": TOP}
    with tempfile.TemporaryDirectory() as folder:
        record = affinage.fit(
            base, {"train": list(rows)}, plan="full" if told.arm == "full" else "two-stage", epochs=told.epochs, validation=0,
            batch_size=told.batch, precision="bf16", augment="none", pooling="native",
            cache="auto" if told.arm == "cached" else "off", leaks="allow", quiet=True, out=Path(folder) / "run", **depth,
        ).record  # fmt: skip
    return {
        "seconds": sum(stage["cost"]["seconds"] for stage in record["stages"]),
        "parts": {stage["stage"]: stage["cost"]["seconds"] for stage in record["stages"]},
        "cuts": record["cuts"],
        "recorded": {stage["stage"]: stage["details"].get("recorded") for stage in record["stages"]},
    }


def trainer_side(told: argparse.Namespace, base: Path, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    import arms
    import numpy as np
    import torch
    import transformers as T

    from affinage import config, rates
    from affinage.inputs import prepare
    from affinage.net import Net

    inputs = prepare(
        config.make({"model": base, "data": {"train": list(rows)}, "plan": "full", "validation": 0, "leaks": "allow"})
    )
    auto = T.AutoModelForSequenceClassification if told.network == "bert" else T.AutoModelForImageClassification
    model = auto.from_pretrained(base, num_labels=2)
    if told.arm != "full":  # the same parameters as on our side
        row = inputs.task.encode([inputs.data.train.inputs[0]], inputs.processor, model).batch(np.arange(1))
        net = Net.of(model, {name: value.cpu() for name, value in row.items()})
        rates.freeze(net, rates.resolve(net, rates.decayed(net, 1.0, 1.0, 1.0, TOP)))
    plain = told.side == "trainer"
    with tempfile.TemporaryDirectory() as folder:
        args = T.TrainingArguments(
            output_dir=folder, num_train_epochs=told.epochs, save_strategy="no", report_to="none", disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(), **({} if plain else {"bf16": True, "per_device_train_batch_size": told.batch}),
        )  # fmt: skip
        collator = T.DataCollatorWithPadding(inputs.processor) if told.network == "bert" else T.DefaultDataCollator()
        train = arms.examples(inputs.task, inputs.data.train, inputs.processor, model)
        loop = T.Trainer(model=model, args=args, train_dataset=train, data_collator=collator)
        started = time.perf_counter()
        loop.train()
    return {"seconds": time.perf_counter() - started}


def measured(told: argparse.Namespace) -> dict[str, Any]:
    """One side of one arm, after a run of a few rows that loads and compiles what the first run has to."""
    import torch
    import transformers

    from affinage import facts

    transformers.logging.set_verbosity_error()
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    side = trainer_side if told.side in TRAINERS else affinage_side
    os.environ["AFFINAGE_GRAPHS"] = "off" if told.side == "unrecorded" else "on"
    with tempfile.TemporaryDirectory() as folder:
        base = made(told, Path(folder) / "base")
        side(argparse.Namespace(**{**vars(told), "epochs": 1}), base, examples(told.network, 2 * told.batch))
        found = side(told, base, examples(told.network, told.rows))
        config = transformers.AutoConfig.from_pretrained(base)
    peak, least = best(where), work(told, config)
    return {
        **found,
        "examples_a_second": told.rows * told.epochs / found["seconds"],
        "tflop": least / 1e12,
        "peak_tflops": peak / 1e12,
        "utilisation": least / found["seconds"] / peak,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if where.type == "cuda" else None,
        "versions": {**facts.versions(), "accelerate": version("accelerate")},
        "commit": facts.commit(),
    }


def table(path: Path) -> str:
    """Examples a second and utilisation of each side, and how many times faster than either Trainer, as Markdown."""
    found: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    for line in lines(path):
        key = line["network"], line["device"], line["arm"]
        found.setdefault(key, {side: [] for side in SIDES})[line["side"]].append(line)
    out = [
        "| network | card | arm | affinage, examples/s (share of the peak) | kernel by kernel | Trainer in bf16 | Trainer "
        "| times the bf16 one | times the other |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (network, device, arm), by_side in found.items():
        other = found.get((network, device, "top-2"), by_side) if arm == "cached" else by_side  # the Trainer keeps nothing
        rates = {}
        for side, own in (*((side, by_side[side]) for side in SIDES[:2]), *((side, other[side]) for side in TRAINERS)):
            if own:
                rates[side] = [statistics.median(line[name] for line in own) for name in ("examples_a_second", "utilisation")]
        said = [f"{rates[side][0]:.0f} ({100 * rates[side][1]:.0f} %)" if side in rates else "–" for side in SIDES]
        times = [
            f"{rates['affinage'][0] / rates[side][0]:.1f}" if side in rates and "affinage" in rates else "–" for side in TRAINERS
        ]
        out.append(f"| {network} | {device} | {arm} | {' | '.join(said)} | {' | '.join(times)} |")
    return "\n".join(out)


def main(words: Sequence[str] | None = None) -> int:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", type=names, default=list(NETWORKS), help="with commas between them")
    parser.add_argument("--arms", type=names, default=list(ARMS), help="likewise")
    parser.add_argument("--sides", type=names, default=list(SIDES), help="likewise")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="rows a step, where the arguments are not the Trainer's default")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--on-cpu", action="store_true", help="run without a GPU too: for the tests, with few small layers")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "throughput.jsonl")
    parser.add_argument("--table", action="store_true", help="print the table of what was measured, and stop")
    for hidden in ("--network", "--arm", "--side"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    told = parser.parse_args(words)
    for given, known in ((told.networks, NETWORKS), (told.arms, ARMS), (told.sides, SIDES)):
        if unknown := set(given) - set(known):
            parser.error(f"'{min(unknown)}' is none of {', '.join(known)}")
    if told.table:
        print(table(told.out))
        return 0
    import torch

    if told.side:
        print(json.dumps(measured(told)))
        return 0
    if not torch.cuda.is_available() and not told.on_cpu:
        print("throughput.py needs a GPU, and torch sees none here: nothing was measured", file=sys.stderr)
        return 0
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    told.out.parent.mkdir(parents=True, exist_ok=True)
    done = {tuple(line[name] for name in KEY) for line in lines(told.out)}
    for network in told.networks:
        for arm in told.arms:
            for side in told.sides:
                if (arm == "cached" and side != "affinage") or (arm != "full" and side == "unrecorded"):
                    continue
                key = (network, device, arm, side, told.rows, told.epochs, told.batch, told.layers, told.width)
                if key in done:
                    continue
                asked = {"network": network, "arm": arm, "side": side} | {
                    name: getattr(told, name) for name in ("rows", "epochs", "batch", "layers", "width")
                }
                found = apart(
                    __file__, [word for name, value in asked.items() for word in (f"--{name}", str(value))], os.cpu_count() or 1
                )
                append(told.out, dict(zip(KEY, key, strict=True)) | found)
                says = f"{found['examples_a_second']:.0f} examples/s, {100 * found['utilisation']:.0f} % of the peak"
                print(f"{network}, {arm}, {side}: {says}", flush=True)
    print(table(told.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
