"""Peak memory of a fit on data larger than it: the same run on four times the data must not take more.

    python benchmarks/memory.py [--kinds text pictures tars boxes] [--scale 1] [--memory-gb 0.05]

Made-up rows of 8 kB of text (Parquet, one row group as large as the file: 0.1 GB), or PNG pictures of noise of 150 kB (Parquet,
or WebDataset tars: 0.4 GB; Parquet with a box each: 0.2 GB), and then four times as many. Each fit runs in a process of its own
with a tiny network, one epoch of stage 2; counted is its peak resident memory over what the same process had after its imports.

    python benchmarks/memory.py --rows 1000000 --out benchmarks/results/memory-rows.json

So many rows of one word each, of which the first of two blocks leaves 384 floats: captured into the store and learnt from for
three epochs by the loop that a run has, without the reading of a table before it. Counted is the peak of the whole process.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from arms import HERE, apart, written

SIZES = {"text": 0.1, "pictures": 0.4, "tars": 0.4, "boxes": 0.2}  # GB of the small data
CLASSES = ("one", "two", "three")
SIDE = 224  # of a picture
TIMES = 4  # the large data over the small
WORDS = [f"{a}{b}{c}" for a in ("ba", "ke", "mo", "tu", "si") for b in ("ran", "lot", "vim", "des") for c in ("a", "or", "ing")]


# ------------------------------------------------------------------------------------------------------------------ data
def texts(size: float) -> Iterator[tuple[str, str]]:
    """(text, class) until `size` bytes are told; no two are equal."""
    import numpy as np

    draw, told, row = np.random.default_rng(0), 0, 0
    while told < size:
        text = f"{CLASSES[row % 3]} {' '.join(WORDS[i] for i in draw.integers(0, len(WORDS), 1300))} {row}"
        told += len(text)
        row += 1
        yield text, CLASSES[row % 3 - 1]


def pictures(size: float) -> Iterator[tuple[bytes, str]]:
    """(PNG, class): grey levels tell the class, noise makes it large."""
    import numpy as np
    from PIL import Image

    draw, told, row = np.random.default_rng(0), 0, 0
    while told < size:
        pixels = draw.integers(0, 200, (SIDE, SIDE, 3), dtype=np.uint8)
        pixels[: 75 * (1 + row % 3)] += 50
        coarse = draw.integers(0, 2, (8, 8, 1), dtype=np.uint8) * 5  # or all pictures were near-duplicates once they are small
        pixels += coarse.repeat(28, 0).repeat(28, 1)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
        told += buffer.tell()
        row += 1
        yield buffer.getvalue(), CLASSES[row % 3 - 1]


def made(kind: str, size: float, folder: Path) -> int:
    """The number of rows that `folder` holds then."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    rows = 0
    if kind == "tars":
        tar: tarfile.TarFile | None = None
        for content, label in pictures(size):
            if rows % 1000 == 0:
                if tar:
                    tar.close()
                tar = tarfile.open(folder / f"train-{rows // 1000:06d}.tar", "w")  # noqa: SIM115
            assert tar
            for part, told in (("png", content), ("cls", label.encode())):
                info = tarfile.TarInfo(f"{rows:08d}.{part}")
                info.size = len(told)
                tar.addfile(info, io.BytesIO(told))
            rows += 1
        if tar:
            tar.close()
        return rows
    cell = pa.string() if kind == "text" else pa.binary()
    things = pa.struct([("bbox", pa.list_(pa.list_(pa.float32()))), ("categories", pa.list_(pa.string()))])
    target = ("objects", things) if kind == "boxes" else ("label", pa.string())
    schema = pa.schema([("text" if kind == "text" else "image", cell), target])
    with pq.ParquetWriter(folder / "train.parquet", schema, compression="none") as file:
        group: list[tuple[Any, Any]] = []
        for content, label in texts(size) if kind == "text" else pictures(size):
            box = [0, 0, SIDE, 75 * (1 + rows % 3) - 1]  # what is lighter
            group.append((content, {"bbox": [box], "categories": [label]} if kind == "boxes" else label))
            rows += 1
            if kind != "text" and len(group) == 500:  # text: one group, as pandas writes it
                file.write_table(pa.table(list(map(list, zip(*group, strict=True))), schema=schema))
                group = []
        if group:
            file.write_table(pa.table(list(map(list, zip(*group, strict=True))), schema=schema), row_group_size=len(group))
    return rows


# ------------------------------------------------------------------------------------------------------------------- runs
def network(kind: str, folder: Path) -> None:
    """A tiny random BERT with the words, a tiny random ResNet, or one below a tiny RT-DETR, and what encodes for it."""
    import transformers as T

    T.set_seed(0)
    if kind == "text":
        folder.mkdir(parents=True)
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CLASSES, *WORDS, *"0123456789", *(f"##{i}" for i in range(10))]
        (folder / "vocab.txt").write_text("\n".join(pieces), encoding="utf8")
        T.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
        sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64)
        T.BertModel(T.BertConfig(vocab_size=len(pieces), pad_token_id=0, **sizes)).save_pretrained(folder)
        return
    if kind == "boxes":
        body = T.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
                              out_features=["stage2", "stage3", "stage4"])  # fmt: skip
        config = T.RTDetrConfig(backbone_config=body, encoder_hidden_dim=16, encoder_in_channels=[8, 16, 16], encoder_layers=1,
                                encoder_ffn_dim=32, encoder_attention_heads=2, d_model=16, num_queries=8,
                                decoder_in_channels=[16] * 3, decoder_ffn_dim=32, decoder_layers=2, decoder_attention_heads=2,
                                num_denoising=6, num_labels=3)  # fmt: skip
        T.RTDetrForObjectDetection(config).save_pretrained(folder)
        T.RTDetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
        return
    config = T.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic", num_labels=3)
    T.ResNetForImageClassification(config).save_pretrained(folder)
    made = T.ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=1.0, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    made.save_pretrained(folder)


def fitted(model: Path, data: Path, out: Path) -> dict[str, Any]:
    """One fit in this process: its seconds, score, and memory in bytes."""
    import pyarrow.parquet  # noqa: F401
    import scipy.optimize  # noqa: F401
    import sklearn.linear_model  # noqa: F401

    import affinage.cli
    from affinage import run

    affinage.cli.main(["show", "--model", str(model)])  # all that a fit imports, and the memory of the network itself
    base, clock, cpu = peak(), time.perf_counter(), time.process_time()
    more = {"max_length": 16} if json.loads((model / "config.json").read_text())["model_type"] == "bert" else {}
    done = run.fit(model=str(model), data=str(data), out=out, epochs=1, batch_size=64, augment="none", quiet=True, **more)
    return {
        "rows": done.record["data"]["rows"],
        "bytes": sum(file.stat().st_size for file in data.iterdir()),
        "base": base,
        "peak": peak(),
        "seconds": round(time.perf_counter() - clock, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "score": next((done.metrics[name] for name in ("map", "accuracy") if name in done.metrics), None),
    }


def stored(rows: int, folder: Path) -> dict[str, Any]:
    """The store filled with so many rows of 384 floats, and a block trained on them, in this process."""
    import numpy as np
    import torch
    import transformers as T

    from affinage import tasks
    from affinage.fit import Fitting
    from affinage.frozen import computed_once
    from affinage.net import Net
    from affinage.record import Records
    from affinage.tasks.text_classification import TokenRows
    from affinage.types import Stage

    T.set_seed(0)
    words, batch = 1000, 4096
    sizes = dict(hidden_size=384, num_hidden_layers=2, num_attention_heads=6, intermediate_size=384, max_position_embeddings=8)
    network = T.BertForSequenceClassification(T.BertConfig(vocab_size=words, num_labels=2, **sizes))
    ids = np.random.default_rng(0).integers(5, words, rows).astype(np.int32)
    given = TokenRows(ids, np.arange(rows + 1, dtype=np.int64), 0)
    net = Net.of(network, given.batch(np.arange(2)))
    stage = Stage("body", "fit", (("head", 1e-3), ("blocks.1", 1e-3), ("*", None)), epochs=3, batch=batch)
    frozen = computed_once(net, stage, {"train": given}, precision="fp32", budget=10.0)
    assert frozen.facts["why"] == "", frozen.facts
    task = tasks.find("text-classification", "text")
    aims = task.aims((ids % 2).tolist(), given, None, network)
    fitting = Fitting(
        net, stage, task, frozen.rows["train"], aims, seed=0, precision="fp32", weights=None, forward=frozen.forward
    )
    clock = time.process_time()
    losses = Records(folder / "records.jsonl")
    fitting.run(lambda: None, losses, lambda: None, lambda count, said: None)
    losses.close()
    told = [json.loads(line)["value"] for line in (folder / "records.jsonl").read_text().splitlines()]
    return {
        "rows": rows,
        "width": 384,
        "batch": batch,
        "stored_bytes": frozen.facts["bytes"],
        "kept": frozen.facts["kept"],
        "losses": told,
        "peak": peak(),
        "filling_cpu_seconds": frozen.facts["cpu_seconds"],
        "training_cpu_seconds": round(time.process_time() - clock, 1),
        "torch": torch.__version__,
    }


def peak() -> int:
    """Bytes of resident memory at the highest so far; `ru_maxrss` would count the process that started this one."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def taken(kind: str, gb: float, told: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What a fit on `gb` of a kind took, in a process of its own, on one thread."""
    model, data, out = folder / "model", folder / "data", folder / "run"
    for place in (data, out):
        shutil.rmtree(place, ignore_errors=True)
    if not model.exists():
        network(kind, model)
    made(kind, gb * 10**9, data)
    more = {"AFFINAGE_MEMORY_GB": str(told.memory_gb), "AFFINAGE_CACHE": str(folder / "cache")}
    return apart(__file__, ["--fit", str(model), str(data), str(out)], **more)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--scale", type=float, default=1.0, help="factor on all sizes")
    parser.add_argument("--memory-gb", type=float, default=0.05, help="AFFINAGE_MEMORY_GB of the runs")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "memory.json")
    parser.add_argument("--rows", type=int, help="instead: so many rows through the store")
    parser.add_argument("--stored", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--fit", nargs=3, type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args(words)
    if told.fit:
        print(json.dumps(fitted(*told.fit)))
        return 0
    if told.stored:
        print(json.dumps(stored(int(told.stored[0]), Path(told.stored[1]))))
        return 0
    from affinage import facts

    if told.rows:
        with tempfile.TemporaryDirectory() as folder:
            found = apart(__file__, ["--stored", str(told.rows), folder], AFFINAGE_CACHE=f"{folder}/cache")
        written(told.out, found)
        print(f"{told.rows:,} rows, {found['stored_bytes'] / 1e9:.2f} GB stored, peak {found['peak'] / 2**20:.0f} MiB")
        return 0

    result: dict[str, Any] = {"memory_gb": told.memory_gb, "threads": 1, "kinds": {}}
    commit = facts.commit()
    for kind in told.kinds:
        with tempfile.TemporaryDirectory() as folder:
            gb = told.scale * SIZES[kind]
            sizes = {name: taken(kind, size, told, Path(folder)) for name, size in (("small", gb), ("large", TIMES * gb))}
        small, large = sizes["small"], sizes["large"]
        grown = large["peak"] - small["peak"]
        result["kinds"][kind] = {**sizes, "grown": grown}
        above = [(one["peak"] - one["base"]) / 2**20 for one in (small, large)]
        print(
            f"{kind}: {small['bytes'] / 1e9:.2f} GB took {above[0]:.0f} MiB over the imports, {large['bytes'] / 1e9:.2f} GB "
            f"{above[1]:.0f} MiB; {large['cpu_seconds']:.0f} CPU s",
            flush=True,
        )
    result |= {"versions": facts.versions(), "commit": commit, "cpu": facts.hardware("fp32")["cpu"]}
    told.out.parent.mkdir(parents=True, exist_ok=True)
    told.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
