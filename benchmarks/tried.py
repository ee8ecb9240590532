"""Other ways to run a frozen text encoder on one thread of a CPU, against affinage's: what they cost and what they lose.

    python benchmarks/tried.py [--rows 2000] [--rounds 3]

`affinage`: bf16 where it pays, weights packed once; `half` and `fourfold`: with half as many or four times as many tokens a
batch. `compiled`: torch.compile, one graph for all shapes. `int8`: torch's
dynamic quantisation of the linear layers, with a scale a layer or (`int8-rows`) a row of the weights. `onnx`, `onnx-int8`:
ONNX Runtime, in fp32 and dynamically quantised with a scale a row; left out, with a word, where onnxruntime, onnx or
onnxscript are not installed. MiniLM, sst2, the ways in turn, each in a process of its own: CPU seconds to get ready, CPU
seconds of a second pass, the cosine of what comes out with what fp32 gives (mean over the rows), and the accuracy of the head
that is solved on it. Beside it what `--compile` gains in training all blocks for three epochs. One line, in
`benchmarks/results/tried.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from arms import HERE, apart, splits, text_model, written
from frozen_text import rows_of

SIZES = {"half": 0.5, "fourfold": 4.0}
WAYS = ("affinage", *SIZES, "compiled", "int8", "int8-rows", "onnx", "onnx-int8")
TRAINING = ("plain", "compile")


def exported(model: Any, linear: Any, folder: Path, *, quantised: bool) -> Callable[[Any], Any]:
    """rows -> features (N, D), by ONNX Runtime."""
    import numpy as np
    import onnxruntime
    import torch

    from affinage.features import batched

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

    linear.forward = lambda x: x  # the features are what reaches the head
    ids, mask = torch.full((2, 7), 5), torch.ones(2, 7, dtype=torch.int64)
    mask[1, 4:] = 0  # a batch with padding: without one, the graph would have no mask
    size = {0: torch.export.Dim("batch", min=1, max=4096), 1: torch.export.Dim("tokens", min=2, max=512)}
    path = folder / "model.onnx"
    torch.onnx.export(
        Features().eval(), (ids, mask), path, input_names=["input_ids", "attention_mask"],
        dynamic_shapes={"input_ids": size, "attention_mask": size}, dynamo=True, verbose=False,
    )  # fmt: skip
    if quantised:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(path, path := folder / "int8.onnx", per_channel=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(rows: Any) -> Any:
        out = np.empty((len(rows), linear.in_features), np.float32)
        for batch in batched(rows.lengths, linear, "bf16"):
            out[batch] = session.run(None, {k: v.numpy() for k, v in rows.batch(batch).items()})[0]
        return out

    return run


def way(told: argparse.Namespace) -> dict[str, Any]:
    """One way, in this process."""
    import numpy as np
    import torch

    from affinage import features, pooling, tasks
    from affinage.net import Net
    from affinage.solve import solve

    train, y, test, z = rows_of(told.data, told.rows)
    task = tasks.find("text-classification", "text")
    model, tokenizer = task.load(text_model(), ["neg", "pos"], fresh=False, revision=None)
    pooling.install(model, pooling.declared(text_model()) or "mean")
    rows, others = (task.encode(texts, tokenizer, model) for texts in (train, test))
    linear = Net.of(model, rows.batch(np.arange(1))).head_linear
    assert linear is not None
    model.eval()
    precise, _ = features.passed(model, rows, "fp32", linear)
    assert precise is not None
    precision = features.auto_precision()
    clock = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        if told.way.startswith("onnx"):
            with torch.no_grad():
                run = exported(model, linear, Path(folder), quantised=told.way == "onnx-int8")
        else:
            used: Any = model
            if told.way.startswith("int8"):
                kinds = torch.ao.quantization
                scales = kinds.per_channel_dynamic_qconfig if told.way == "int8-rows" else kinds.default_dynamic_qconfig
                precision = "fp32"
                used = kinds.quantize_dynamic(model, {torch.nn.Linear: scales})
                linear = used.get_submodule(next(name for name, layer in model.named_modules() if layer is linear))
            features.HIDDEN = int(features.HIDDEN * SIZES.get(told.way, 1.0))
            if told.way == "compiled":
                features.packed = lambda *_, **__: contextlib.nullcontext()
                used = torch.compile(model, dynamic=True)

            def run(rows: Any) -> Any:
                return features.passed(used, rows, precision, linear)[0]

        ready = time.process_time() - clock
        clock = time.process_time()
        found = run(rows)
        first = time.process_time() - clock
        clock = time.process_time()
        run(rows)
        second = time.process_time() - clock
        head = solve(found, np.asarray(y), 2)
        accuracy = float((head.logits(run(others)).argmax(1) == np.asarray(z)).mean())
    cosine = (found * precise).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(precise, axis=1)
    return {"ready": ready + first - second, "pass": second, "cosine": float(cosine.mean()), "accuracy": accuracy}


def training(told: argparse.Namespace) -> dict[str, Any]:
    """Stage 2 of all blocks, compiled or not."""
    import affinage

    with tempfile.TemporaryDirectory() as folder:
        os.environ["AFFINAGE_CACHE"] = str(Path(folder) / "cache")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "inductor")  # nothing compiled before
        rows = {"train": splits("sst2", told.data)["train"][: told.rows]}
        run = affinage.fit(
            text_model(), rows, plan="full", epochs=3, validation=0, leaks="drop", compile=told.way == "compile",
            out=Path(folder) / "run", quiet=True,
        )  # fmt: skip
        stage = run.record["stages"][-1]
    return {**stage["cost"], "compiling_seconds": stage["details"].get("compiling_seconds", 0.0)}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", default=",".join((*WAYS, *TRAINING)), help="with commas between them")
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data", help="the folder that holds sst2")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "tried.json")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    told = parser.parse_args(words)
    if told.way:
        import torch

        warnings.filterwarnings("ignore")
        torch.set_num_threads(1)
        found = (training if told.way in TRAINING else way)(told)
        print(json.dumps(found))
        return 0
    ways = told.ways.split(",")
    if missing := [name for name in ("onnxruntime", "onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        print(f"without ONNX Runtime: {', '.join(missing)} not installed", file=sys.stderr)
        ways = [name for name in ways if not name.startswith("onnx")]
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for _ in range(told.rounds):
        for name in ways:
            taken[name].append(apart(__file__, ["--way", name, "--rows", str(told.rows), "--data", str(told.data)], 1))
            print(name, json.dumps(taken[name][-1]), flush=True)
    summary = {name: {key: statistics.median(one[key] for one in found) for key in found[0]} for name, found in taken.items()}
    written(told.out, {"rows": told.rows, "median": summary, "rounds": taken})
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
