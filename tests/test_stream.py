"""Data larger than memory trains to the same bits as data in memory, goes on after a kill, and takes no more memory than less data."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from affinage import pictures as decoding
from affinage import run, spool, stages
from affinage.data import read
from affinage.inputs import HELD_MOST
from affinage.labels import few, holdout, spread
from affinage.spool import Block, Cells
from affinage.tasks import image_classification as images
from affinage.tasks import text_classification as texts
from affinage.types import Split

from . import detectors, tiny
from .data.test_archive import tar
from .test_resume import Commands, in_mid_epoch, killed, same

ROOT = Path(__file__).resolve().parents[1]
BEYOND = {"AFFINAGE_MEMORY_GB": "0.000005"}  # 5 kB: neither tokens nor pixels of the tiny sets fit, nor the features of all texts


def parquets(folder: Path) -> Path:
    folder.mkdir()
    for name, rows in tiny.splits().items():
        for i in range(3):
            path = folder / f"{name}-{i:05d}-of-00003.parquet"
            pq.write_table(pa.Table.from_pylist(rows[i * len(rows) // 3 : (i + 1) * len(rows) // 3]), path, row_group_size=8)
    return folder


def pictures(folder: Path) -> tuple[Path, Path, Path]:
    """The same pictures as Parquet and as tars, and the network."""
    tiny.pictures(folder / "folder")
    for split in ("train", "validation", "test"):
        files = sorted((folder / "folder" / split).rglob("*.png"), key=lambda file: int(file.stem))
        rows = [{"image": {"bytes": file.read_bytes(), "path": None}, "label": file.parent.name} for file in files]
        (folder / "parquet").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / "parquet" / f"{split}.parquet", row_group_size=5)
        for shard in range(2):
            parts = {}
            for i, row in list(enumerate(rows))[shard * len(rows) // 2 : (shard + 1) * len(rows) // 2]:
                parts |= {f"{i:06d}.png": row["image"]["bytes"], f"{i:06d}.cls": row["label"]}
            tar(folder / "tars" / f"{split}-{shard:06d}.tar", parts)
    return folder / "parquet", folder / "tars", tiny.resnet(folder / "model")


def boxes(folder: Path) -> Path:
    """Pictures with boxes as Parquet, two shards of train; in the first pictures of each file there is nothing to find."""
    folder.mkdir()
    found = read(detectors.pictures(folder / "coco", train=20))
    for name, split in found.splits():
        rows = []
        for i, (path, things) in enumerate(zip(split.inputs, split.targets, strict=True)):
            box = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in things.boxes.tolist()]
            objects = {"bbox": box, "categories": things.classes.tolist()} if i % 6 > 1 else None
            rows.append({"image": {"bytes": path.read_bytes(), "path": None}, "objects": objects})
        parts = {f"{name}-{n:05d}-of-00002": rows[n * len(rows) // 2 :][: len(rows) // 2] for n in range(2)}
        (folder / "parquet").mkdir(exist_ok=True)
        for stem, some in (parts if name == "train" else {name: rows}).items():
            pq.write_table(pa.Table.from_pylist(some), folder / "parquet" / f"{stem}.parquet", row_group_size=2)
    return folder / "parquet"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The arguments of a fit on text in Parquet, on pictures in Parquet, and on the same pictures in tars."""
    folder = tmp_path_factory.mktemp("shards")
    (folder / "pictures").mkdir()
    parquet, tars, resnet = pictures(folder / "pictures")
    bert, detector = tiny.bert(folder / "bert"), detectors.saved(folder / "detector")
    return {
        "text": ["--model", str(bert), "--data", str(parquets(folder / "text")), "--batch-size", "8", "--epochs", "4"],
        "pictures": ["--model", str(resnet), "--data", str(parquet), "--batch-size", "4", "--epochs", "3"],
        "tars": ["--model", str(resnet), "--data", str(tars), "--batch-size", "4", "--epochs", "3"],
        "boxes": ["--model", str(detector), "--data", str(boxes(folder / "boxes")), "--batch-size", "2", "--epochs", "3"],
    }


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    made = Commands(tmp_path_factory.mktemp("commands"))
    yield made
    made.process.communicate(timeout=60)


# ------------------------------------------------------------------------------------------------------------ the same bits
@pytest.mark.parametrize("kind", ["text", "pictures", "boxes"])
def test_from_the_disk_as_from_memory(
    kind: str, shards: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fingerprint, weights, predictions and records; the head is solved on all rows in both."""
    model, data = shards[kind][1], shards[kind][3]
    settings = {"model": model, "data": data, "epochs": 2, "batch_size": 8, "quiet": True, "augment": "none"}
    run.fit(**settings, out=tmp_path / "memory")
    monkeypatch.setenv("AFFINAGE_MEMORY_GB", BEYOND["AFFINAGE_MEMORY_GB"])
    monkeypatch.setattr(stages, "_held_features", lambda linear: 10**6)
    looked: list[int] = []
    monkeypatch.setattr(Cells, "__iter__", lambda self, real=Cells.__iter__: looked.append(len(self)) or real(self))
    run.fit(**settings, out=tmp_path / "disk")
    assert looked
    same(tmp_path / "memory", tmp_path / "disk")


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_boxes_that_are_kept_secret(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test split of which no picture has an answer is none; a picture without boxes among others is one."""
    if place == "disk":
        monkeypatch.setenv("AFFINAGE_MEMORY_GB", "0")
    kind = pa.struct([("bbox", pa.list_(pa.list_(pa.float32()))), ("categories", pa.list_(pa.string()))])
    draw = np.random.default_rng(0)
    for name, secret in (("train", [False, True, True]), ("validation", [True, True, False]), ("test", [True, True, True])):
        images = []
        for _ in secret:
            buffer = io.BytesIO()
            Image.fromarray(draw.integers(0, 256, (20, 20, 3)).astype(np.uint8)).save(buffer, "PNG")
            images.append({"bytes": buffer.getvalue(), "path": None})
        cells = [None if kept else {"bbox": [[1, 1, 5, 5]], "categories": ["a"]} for kept in secret]
        pq.write_table(pa.table({"image": images, "objects": pa.array(cells, kind)}), tmp_path / f"{name}.parquet")
    monkeypatch.setattr("affinage.data.shards.AT_ONCE", 1)
    found = read(tmp_path)
    assert found.test is None and ("test.parquet", "split without any label") in found.unreadable
    assert found.validation is not None and [len(boxes) for boxes in found.validation.targets] == [0, 0, 1]
    assert [len(boxes) for boxes in found.train.targets] == [1, 0, 0] and found.labels == "boxes"


def test_tars_as_parquet(shards: dict[str, list[str]], tmp_path: Path) -> None:
    """Ids differ, and so does the fingerprint; weights do not."""
    for kind in ("pictures", "tars"):
        run.fit(model=shards[kind][1], data=shards[kind][3], epochs=2, out=tmp_path / kind, quiet=True)
    assert (tmp_path / "pictures" / "model.safetensors").read_bytes() == (tmp_path / "tars" / "model.safetensors").read_bytes()
    tables = [pq.read_table(tmp_path / kind / "predictions.parquet") for kind in ("pictures", "tars")]
    assert tables[0].drop_columns(["id"]).equals(tables[1].drop_columns(["id"]))
    assert tables[1]["id"][0].as_py() == "validation-000000.tar/000000"
    done = run.load(tmp_path / "tars")
    assert done.evaluate(shards["tars"][3])["accuracy"] == done.metrics["accuracy"]


@pytest.mark.parametrize("kind", ["text", "pictures", "tars", "boxes"])
def test_killed_and_resumed(kind: str, shards: dict[str, list[str]], commands: Commands, tmp_path: Path) -> None:
    """Kill -9 in the middle of an epoch, with rows, tokens and pixels on the disk: the same bits as never stopped."""
    words = ["fit", *shards[kind], "--augment", "light"] if kind != "text" else ["fit", *shards[kind]]
    commands.run(*words, "--out", str(tmp_path / "whole"), **BEYOND)
    killed(commands, words, tmp_path / "run", in_mid_epoch, **BEYOND)
    commands.run("fit", "--resume", "--out", str(tmp_path / "run"), **BEYOND)
    same(tmp_path / "whole", tmp_path / "run")
    if kind == "text":  # not all features fit either: the head is solved on 20 rows of each class
        assert json.loads((tmp_path / "run" / "run.json").read_text())["stages"][0]["details"]["rows"] == 60


# ------------------------------------------------------------------------------------------------------------------- rows
def test_tokens_beyond_the_limit_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = texts.task.load(tiny.bert(tmp_path), ("a", "b"), fresh=False, revision=None)
    rows = [row["text"] for row in tiny.rows(50, 0)] + [""]
    held = texts.task.encode(rows, tokenizer, model)
    monkeypatch.setattr(spool, "limit", lambda: 100)
    monkeypatch.setattr(texts, "PART", 5)
    monkeypatch.setattr(texts, "CHARACTERS", 80)  # two or three of these, and some row longer than half of it
    assert [text for part in texts._parts(rows) for text in part] == rows
    spooled = texts.task.encode(rows, tokenizer, model)
    assert isinstance(spooled.values, Block) and isinstance(held.values, np.ndarray)
    assert np.array_equal(spooled.values[:], held.values) and np.array_equal(spooled.lengths, held.lengths)
    for at in (np.arange(51), np.array([50, 3]), np.array([7])):
        assert all(tensor.equal(spooled.batch(at)[name]) for name, tensor in held.batch(at).items())


@pytest.mark.parametrize("place", ["disk", "nowhere"])
def test_pixels_beyond_the_limit_are_the_same(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted(tiny.pictures(tmp_path / "data").rglob("*.png"))
    model, processor = images.task.load(tiny.resnet(tmp_path / "model"), ("a", "b", "c"), fresh=False, revision=None)
    held = images.task.encode(files, processor, model)
    monkeypatch.setattr(spool, "limit", lambda: 1000)
    monkeypatch.setattr(decoding, "PART", 7)
    if place == "nowhere":
        monkeypatch.setattr(spool, "free", lambda: 1000)
    other = images.task.encode(files, processor, model)
    assert isinstance(other.pixels, Block if place == "disk" else decoding.Decoded)
    assert len(other) == len(held) == 60 and np.array_equal(other.lengths, held.lengths)
    for at in (np.arange(60), np.array([59, 3, 3])):
        assert other.batch(at)["pixel_values"].equal(held.batch(at)["pixel_values"])


# ----------------------------------------------------------------------------------------------------------------- choices
def test_the_head_is_solved_on_a_share_of_each_class() -> None:
    split = Split(range(1000), ["a"] * 900 + ["b"] * 70 + ["c"] * 30, [str(i) for i in range(1000)])  # type: ignore[arg-type]
    assert np.array_equal(spread(split, 1000, 0), np.arange(1000))
    chosen = spread(split, 200, 0)
    counts = np.unique(np.asarray(split.targets)[chosen], return_counts=True)[1]
    assert counts.tolist() == [180, 20, 20] and np.array_equal(chosen, np.sort(chosen))
    assert np.array_equal(chosen, spread(split, 200, 0)) and not np.array_equal(chosen, spread(split, 200, 1))


def test_no_more_is_held_out_than_a_score_needs(tmp_path: Path) -> None:
    from affinage import config
    from affinage.inputs import _splits
    from affinage.tasks.text_classification import task
    from affinage.types import Data

    many = 4 * HELD_MOST * 2
    split = Split(range(many), ["a", "b"] * (many // 2), range(many))  # type: ignore[arg-type]
    parted = _splits(Data("text", "s", split), config.make({}), [], task)
    assert parted.validation is not None and len(parted.validation) == HELD_MOST
    assert len(parted.train) + HELD_MOST == many


def test_rows_are_taken_without_a_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = tiny.csvs(tmp_path / "csv")
    rows = read(data).train
    pq.write_table(pa.table({"text": rows.inputs, "label": rows.targets}), tmp_path / "train.parquet")
    monkeypatch.setenv("AFFINAGE_MEMORY_GB", "0")
    lazy = read(tmp_path / "train.parquet").train
    monkeypatch.setattr(Cells, "__getitem__", lambda self, at: pytest.fail("looked at"))
    rest, held = holdout(lazy, 0.2, 0)
    assert len(few(rest, 3, 0)) == 9 and len(held) == 18
    monkeypatch.undo()
    assert list(held.inputs) == list(holdout(rows, 0.2, 0)[1].inputs) and next(iter(rest.ids)).startswith("train.parquet:")


# ------------------------------------------------------------------------------------------------------------------ memory
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "scale", "most"), [("text", 0.25, 400), ("pictures", 1.0, 400), ("tars", 1.0, 400)])
def test_four_times_the_data_take_no_more_memory(kind: str, scale: float, most: int, tmp_path: Path) -> None:
    """1.6 GB of pictures in 400 MiB over the imports, and not 100 MiB more than 0.4 GB; 0.1 GB of text likewise, with
    tokens on the disk: `benchmarks/memory.py` has it at other sizes."""
    words = [sys.executable, "benchmarks/memory.py", "--kinds", kind, "--scale", str(scale), "--memory-gb", "0.02"]
    subprocess.run([*words, "--out", str(tmp_path / "told.json")], check=True, cwd=ROOT)
    told = json.loads((tmp_path / "told.json").read_text())["kinds"][kind]
    assert told["large"]["bytes"] > 3.9 * told["small"]["bytes"]
    above = told["large"]["peak"] - told["large"]["base"]
    assert above < most * 2**20 and told["grown"] < 100 * 2**20, told
