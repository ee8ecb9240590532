"""The made scenes: the same at every call, COCO that our reader reads, boxes that fit what was drawn."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from affinage.data import read


@pytest.fixture(scope="module")
def scenes(recipe: Callable[[str], ModuleType]) -> ModuleType:
    return recipe("scenes")


def test_the_same_command_gives_the_same_bytes(scenes: ModuleType, tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        scenes.write(tmp_path / name, 6, 64, seed)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 6 + 1 + 2
    same = [(tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files]
    assert all(same) and (tmp_path / "one" / files[0]).read_bytes() != (tmp_path / "three" / files[0]).read_bytes()
    found = read(tmp_path / "one")
    assert len(found.train) == 6 and found.validation is not None and found.classes == scenes.CLASSES
    assert all(not boxes.faults and boxes.size == (64, 64) for boxes in found.train.targets)


def test_boxes_fit_what_was_drawn(scenes: ModuleType) -> None:
    """A lone thing's box is that of the pixels that its mask covers, and every shape has some."""
    draw = np.random.default_rng(0)
    for kind in scenes.SHAPES:
        cover = scenes.mask(kind, (40.0, 30.0), 20.0, 80, draw)
        ys, xs = np.nonzero(cover > 0.5)
        assert cover.min() == 0 and cover.max() == 1 and 8 < np.ptp(xs) <= 40 and 8 < np.ptp(ys) <= 40, kind
        assert abs(xs.mean() - 40) < 12 and abs(ys.mean() - 30) < 12, kind
    seen = [scenes.scene(96, np.random.default_rng(i)) for i in range(60)]
    counts = [len(things) for _, things in seen]
    assert min(counts) == 0 and max(counts) > 8  # nothing at all, and crowds
    for image, things in seen:
        for kind, (x, y, width, height) in things:
            assert kind in scenes.SHAPES and min(width, height) >= scenes.LEAST
            assert x >= 0 and y >= 0 and x + width <= image.width and y + height <= image.height


def test_photographs_are_pasted(scenes: ModuleType) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (250, 10, 10)).save(buffer, "PNG")
    kinds = [kind for i in range(20) for kind, _ in scenes.scene(96, np.random.default_rng(i), [buffer.getvalue()])[1]]
    assert scenes.PHOTO in kinds and len(set(kinds)) > 4
