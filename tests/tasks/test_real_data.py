"""Every architecture of sound and of boxes on real recordings and real pictures: learnt, cut, scored, and said by plain pipelines.

The networks are tiny and know nothing, so that no score here means anything; what is held is that each goes the whole way from a
data set as it was published to a folder that transformers reads, and that others count the same.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T
from PIL import Image
from torch.nn.functional import affine_grid, grid_sample

import affinage
from affinage import data as reading
from affinage import sound
from affinage.augment_boxes import STRENGTH, Move

from .. import detectors, hubs, recognisers

pytestmark = pytest.mark.slow

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COUNT = {"train": 20, "test": 10}
NAMES = ["Platelets", "RBC", "WBC"]


@pytest.fixture(scope="module")
def spoken(shared_data: Path) -> dict[str, list[dict[str, Any]]]:
    """Recordings of fsdd: each digit twice to learn from and once to test on, by one speaker."""
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for digit, word in enumerate(DIGITS):
        for name, take in (("train", 10), ("train", 11), ("test", 0)):
            rows[name].append({"audio": shared_data / "fsdd" / "audio" / f"{digit}_george_{take}.flac", "text": word})
    assert {name: len(part) for name, part in rows.items()} == COUNT
    return rows


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # WavLM's own
@pytest.mark.parametrize("name", [*recognisers.FAMILIES, *recognisers.WRITERS])
def test_recordings_are_learnt_and_heard_again(name: str, spoken: dict[str, Any], tmp_path: Path) -> None:
    jiwer = pytest.importorskip("jiwer")
    writes = name in recognisers.WRITERS
    base = (recognisers.writer if writes else recognisers.listener)(name, tmp_path / "base")
    run = affinage.fit(base, spoken, plan="full" if writes else "two-stage", epochs=20 if writes else 1,
                       learning_rate=1e-2 if writes else "auto", out=tmp_path / "run", language="en" if name == "whisper" else None,
                       quiet=True)  # fmt: skip
    assert run.record["data"]["rows"] == COUNT
    again = affinage.load(run.path)
    said = [one["text"] for one in again.predict([row["audio"] for row in spoken["test"]])]
    truth = [row["text"] for row in spoken["test"]]
    assert run.metrics["wer"] == pytest.approx(jiwer.wer(truth, said)) and run.metrics["cer"] == pytest.approx(
        jiwer.cer(truth, said)
    )
    assert again.evaluate(spoken)["wer"] == run.metrics["wer"]
    listen = T.pipeline("automatic-speech-recognition", model=str(run.path))
    rate = listen.feature_extractor.sampling_rate
    heard = [{"raw": sound.heard(row["audio"], rate), "sampling_rate": rate} for row in spoken["test"][:3]]
    as_ours = {"generate_kwargs": {"num_beams": 1, "max_new_tokens": 16}} if writes else {}  # its default is five beams
    assert [" ".join(listen(one, **as_ours)["text"].split()) for one in heard] == said[:3]


def test_spectrograms_of_recordings_are_told_apart(spoken: dict[str, Any], tmp_path: Path) -> None:
    """AST: the head is solved on what was computed once."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    T.ASTModel(T.ASTConfig(**sizes, max_length=64, num_mel_bins=32)).save_pretrained(tmp_path / "base")
    T.ASTFeatureExtractor(max_length=64, num_mel_bins=32).save_pretrained(tmp_path / "base")
    data = {name: [{"audio": row["audio"], "label": row["text"]} for row in part] for name, part in spoken.items()}
    run = affinage.fit(tmp_path / "base", data, epochs=1, out=tmp_path / "run", quiet=True)
    listen = T.pipeline("audio-classification", model=str(run.path), top_k=10)
    for row in data["test"][:3]:
        told = listen({"raw": sound.heard(row["audio"], 16_000), "sampling_rate": 16_000})
        assert {one["label"]: one["score"] for one in told} == pytest.approx(run.predict([row["audio"]])[0]["scores"], abs=1e-4)


@pytest.fixture(scope="module")
def cells(shared_data: Path) -> dict[str, Any]:
    """Blood cells, official split: ten pictures to learn from, eight to test on."""
    found = reading.read(shared_data / "bccd")
    assert found.test is not None
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, split, count in (("train", found.train, 10), ("test", found.test, 8)):
        rows[name] = []
        for picture, boxes in zip(split.inputs[:count], split.targets[:count], strict=True):
            sides = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes.boxes.tolist()]
            rows[name].append({"image": picture, "objects": {"bbox": sides, "category": boxes.classes.tolist()}})
    return rows


@pytest.mark.parametrize("family", [*detectors.FAMILIES, "starter-detector"])
def test_cells_are_learnt_and_found_again(family: str, cells: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval", reason="pip install 'affinage[detection]' for the scores of detectors")
    base = family if family.startswith("starter") else detectors.saved(tmp_path / "base", family)
    run = affinage.fit(base, cells, epochs=2, out=tmp_path / "run", quiet=True)
    assert run.record["cuts"]["head"]["share"] > 0.3 and run.classes == NAMES

    test = reading.read(cells).test
    assert test is not None
    number = {name: k for k, name in enumerate(run.classes)}
    answers, truth = run._answers(test.inputs), [boxes.numbered(number) for boxes in test.targets]
    theirs = detectors.pycoco(answers, truth, len(number))
    for name, value in (("map", theirs.stats[0]), ("map50", theirs.stats[1]), ("map75", theirs.stats[2])):
        assert run.metrics[name] == pytest.approx(value, abs=1e-9), name
    assert run.evaluate(cells)["map"] == run.metrics["map"]

    find = T.pipeline("object-detection", model=str(run.path))
    for picture, ours in zip(test.inputs[:3], answers, strict=False):
        said = sorted(find(str(picture), threshold=0.0), key=lambda one: -one["score"])
        for one, score in zip(said[:5], ours["scores"], strict=False):
            assert one["score"] == pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize("strength", STRENGTH)
def test_cells_move_with_their_boxes(strength: str, cells: dict[str, Any]) -> None:
    """What a box held of a picture, its moved box holds of the moved picture, mirrored where that was mirrored."""
    torch.manual_seed(0)
    looked = 0
    for row in [*cells["train"], *cells["test"]]:
        with Image.open(row["image"]) as picture:
            wide, tall = picture.size
            small = np.array(picture.convert("RGB").resize((320, 240)))
        pixels = torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255
        corners = torch.tensor(row["objects"]["bbox"]) / torch.tensor([wide, tall, wide, tall])
        boxes = torch.cat([corners[:, :2] + corners[:, 2:] / 2, corners[:, 2:]], 1).float()
        move = Move.drawn(1, strength)
        moved, seen = move.boxes(0, boxes), move.pictures(pixels, torch.ones(1, 2))
        whole = ((moved[:, :2] - moved[:, 2:] / 2 >= 0) & (moved[:, :2] + moved[:, 2:] / 2 <= 1)).all(1)
        for before, after in zip(boxes[whole], moved[whole], strict=True):
            was, is_ = _held(pixels, before), _held(seen, after)
            is_ = is_.flip(-1) if move.flip[0] else is_
            assert (was - is_).abs().mean() < 0.02 + 0.25 * was.std()
            looked += 1
    assert looked > 50


def _held(pixels: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """(3, 12, 12) what lies in a box (centre x, centre y, width, height, in shares) of a (1, 3, H, W) picture."""
    x, y, width, height = (2 * box).tolist()
    theta = torch.tensor([[[width / 2, 0, x - 1], [0, height / 2, y - 1]]])
    return grid_sample(pixels, affine_grid(theta, [1, 3, 12, 12], align_corners=False), align_corners=False)[0]


@pytest.mark.parametrize("kind", ["sounds", "boxes"])
def test_a_set_of_a_hub(kind: str, spoken: dict[str, Any], cells: dict[str, Any], tmp_path: Path) -> None:
    """Parquet with declared Audio or Image, as the Hub has it, over HTTP: read without torchcodec, learnt from and scored."""
    declared, parquet = pytest.importorskip("datasets"), pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    held = tmp_path / "hub" / "data"
    held.mkdir(parents=True)
    for name, part in (spoken if kind == "sounds" else cells).items():
        if kind == "sounds":
            kinds = declared.Features(audio=declared.Audio(sampling_rate=8000), transcription=declared.Value("string"))
            columns: dict[str, list[Any]] = {"audio": [_bytes(row["audio"]) for row in part]}
            columns["transcription"] = [row["text"] for row in part]
        else:
            kinds = declared.Features(image=declared.Image(), objects={
                "bbox": declared.List(declared.List(declared.Value("float32"), 4)), "category": declared.List(declared.ClassLabel(names=NAMES))
            })  # fmt: skip
            columns = {"image": [_bytes(row["image"]) for row in part]}
            columns["objects"] = [
                {**row["objects"], "category": [NAMES.index(one) for one in row["objects"]["category"]]} for row in part
            ]
        parquet.write_table(pa.table(columns, schema=kinds.arrow_schema), held / f"{name}-00000-of-00001.parquet")
    base = str(recognisers.listener("hubert", tmp_path / "base")) if kind == "sounds" else "starter-detector"
    out = tmp_path / "run"
    with hubs.serving(tmp_path / "hub", tmp_path / "cache") as env:
        words = ["fit", "--model", base, "--data", hubs.NAME, "--epochs", "1", "--out", str(out), "--quiet"]
        done = subprocess.run(
            [sys.executable, "-m", "affinage", *words], env=env | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    run = affinage.load(out)
    assert run.record["data"]["rows"] == {name: len(part) for name, part in (spoken if kind == "sounds" else cells).items()}
    assert run.metrics["n"] == len((spoken if kind == "sounds" else cells)["test"]) and (kind == "sounds" or run.classes == NAMES)


def _bytes(path: Path) -> dict[str, Any]:
    return {"bytes": path.read_bytes(), "path": path.name}
