"""The page of a detector: the worst pictures first, every box where it is, and no word of a label becomes markup."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from affinage.boxes import cleaned
from affinage.measure import detection as measure
from affinage.report import detection, page
from affinage.report.folder import read
from affinage.tasks.object_detection import task
from affinage.types import Split

pytest.importorskip("faster_coco_eval", reason="pip install 'affinage[detection]' for the scores of detectors")

ATTACK = "<script>alert(1)</script>"


def made(folder: Path, classes: tuple[str, ...] = ("disc", "square")) -> Path:
    """A run of three pictures: one right, one with a miss, one with two misses and a false box."""
    thing = [[10.0, 10, 30, 30], [40, 10, 60, 30]]
    number = {name: i for i, name in enumerate(classes)}
    targets = [cleaned([classes[0], classes[1]], thing, (80, 40)).numbered(number) for _ in range(3)]
    shares = (np.array(thing) / [80, 40, 80, 40]).tolist()
    answers: list[dict[str, Any]] = [
        {"boxes": shares, "scores": [0.9, 0.8], "classes": [0, 1]},
        {"boxes": shares[:1], "scores": [0.9], "classes": [0]},
        {"boxes": [[0.7, 0.5, 0.9, 0.9]], "scores": [0.95], "classes": [1]},
    ]
    inputs = [Image.fromarray(np.full((40, 80, 3), 90 * i, np.uint8)) for i in range(3)]
    split = Split(inputs, targets, ["good.png", "one.png", "bad.png"])
    (part,) = task.table(answers, split, classes)
    schema = pa.schema([pa.field("split", pa.string()), pa.field("id", pa.string()), *task.schema()])
    folder.mkdir()
    pq.write_table(pa.table({"split": ["test"] * 3, "id": split.ids, **part}, schema=schema), folder / "predictions.parquet")
    facts = {"task": "object-detection", "status": "finished", "test": measure.scores(answers, targets),
             "data": {"source": "things", "classes": list(classes)}, "model": {"source": "tiny"}, "plan": {"name": "full", "stages": []}, "settings": {}}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts), encoding="utf8")
    return folder


def test_the_page(tmp_path: Path) -> None:
    html = page.write(made(tmp_path / "run")).read_text(encoding="utf8")
    assert "mAP@.5:.95" in html and "Worst pictures" in html and "Class by class" in html and "Precision and recall" in html
    order = [html.index(f"<small class=soft>{name}") for name in ("bad.png", "one.png", "good.png")]
    assert order == sorted(order)
    assert "3 of 6 things in 3 test pictures are missed and 1 boxes are false" in html
    assert html.count('class="missed"') == 3 and html.count('class="false"') == 1 and html.count('class="found" x=') == 3
    assert '<rect class="false" x="56.0" y="20.0" width="16.0" height="16.0">' in html
    assert page.write(tmp_path / "run").read_text(encoding="utf8") == html


def test_curves_are_cocos(tmp_path: Path) -> None:
    found = detection.Found.of(read(made(tmp_path / "run")))
    assert found is not None and found.threshold == 0.8
    lines = measure.curves(found.answers, found.targets)
    assert lines[0][:67].min() == 1.0 and lines[0][68:].max() == 0.0  # two of three discs, none false
    scores = measure.scores(found.answers, found.targets)
    assert scores["map50"] == pytest.approx(read(tmp_path / "run").facts["test"]["map50"], abs=1e-6)


def test_no_label_becomes_markup(tmp_path: Path) -> None:
    html = page.write(made(tmp_path / "run", (ATTACK, 'b"><img src=x>'))).read_text(encoding="utf8")
    assert "<script" not in html and "<img src" not in html and "&lt;script&gt;" in html
    assert set(re.findall(r'src="(\w+):', html)) == {"data"}


def test_what_is_no_jpeg_is_not_shown(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    table = pq.read_table(folder / "predictions.parquet")
    at = table.schema.get_field_index("picture")
    table = table.set_column(at, "picture", pa.array([b"<svg onload=alert(1)>"] * 3, pa.binary()))
    pq.write_table(table, folder / "predictions.parquet")
    html = page.write(folder).read_text(encoding="utf8")
    assert "onload" not in html and "data:image/jpeg" not in html


def test_pictures_in_the_table_are_small(tmp_path: Path) -> None:
    big = Image.new("RGB", (2000, 1000))
    boxes = [cleaned(["a"], [[0, 0, 50, 50]], (2000, 1000)).numbered({"a": 0})]
    (part,) = task.table([{"boxes": [], "scores": [], "classes": []}], Split([big], boxes, ["x"]), ("a",))
    assert Image.open(io.BytesIO(part["picture"][0])).size == (480, 240) and part["width"] == [2000]
