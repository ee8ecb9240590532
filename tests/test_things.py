"""Things that a classifier finds in photographs: the box of one patch, and pictures whose boxes lie where the things went."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def things(recipe: Callable[[str], ModuleType]) -> ModuleType:
    return recipe("things")


def test_the_box_of_a_map_with_one_patch(things: ModuleType) -> None:
    level = np.zeros((20, 20), np.float32)
    level[5:15, 2:8] = 1.0
    assert things.patch(level) == (0.1, 0.25, 0.3, 0.5)
    level[0, 0] = 0.5  # below the level
    assert things.patch(level) == (0.1, 0.25, 0.3, 0.5)
    level[5:15, 12:18] = 1.0
    assert things.patch(level) is None  # two things
    assert things.patch(np.zeros((20, 20), np.float32)) is None


def test_boxes_lie_where_the_things_went(things: ModuleType) -> None:
    """A red thing on blue: what is red in the picture is what the boxes hold."""
    photo = np.full((64, 64, 3), (0, 0, 255), np.uint8)
    photo[16:48, 8:40] = (255, 0, 0)
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "PNG")
    one = things.Thing(buffer.getvalue(), (8 / 64, 16 / 64, 32 / 64, 32 / 64))
    counts = set()
    for seed in range(40):
        picture, boxes = things.pasted([one], 144, np.random.default_rng(seed))
        red = np.asarray(picture)[..., 0] > 127
        inside = np.zeros_like(red)
        for x, y, width, height in boxes:
            assert x >= 0 and y >= 0 and x + width <= 144 and y + height <= 144 and min(width, height) > 0
            inside[round(y) : round(y + height), round(x) : round(x + width)] = True
        assert (red & inside).sum() / (red | inside).sum() > 0.9
        counts.add(len(boxes))
    assert counts == {1, 4, 9}


def test_a_thing_is_found_only_where_the_label_is_believed(things: ModuleType, tmp_path: Path, shared_data: Path) -> None:
    table = pq.read_table(next(iter(sorted((shared_data / "tiny_imagenet_200").glob("train*.parquet"))))).slice(0, 40)
    pq.write_table(table, tmp_path / "train.parquet")
    found = things.find(tmp_path)
    assert 5 < len(found) < 40
    assert all(x >= 0 and y >= 0 and x + w <= 1 and y + h <= 1 and 0.05 < w * h < 0.95 for x, y, w, h in (t.box for t in found))
    labels = table["label"].to_pylist()
    wrong = table.set_column(
        table.column_names.index("label"), "label", pa.array([*labels[20:], *labels[:20]], table["label"].type)
    )
    pq.write_table(wrong, tmp_path / "train.parquet")
    assert len(things.find(tmp_path)) < len(found)
