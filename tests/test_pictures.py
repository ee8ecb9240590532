"""Boxes are drawn where they are, the surest on top; a large photograph is decoded at the size needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as T
from PIL import Image

from affinage.pictures import Decoded, drawn, encoded, enough, opened


def test_drawn() -> None:
    boxes = [
        {"label": "a", "score": 0.9, "box": [10.0, 20.0, 60.0, 80.0]},
        {"label": "b", "score": 0.6, "box": [10.0, 20.0, 60.0, 80.0]},
    ]
    plain = Image.new("RGB", (100, 100))
    found = np.asarray(drawn(plain, boxes))
    assert np.asarray(plain).max() == 0  # the picture itself stays as it is
    assert found[50, 10].tolist() == found[79, 60].tolist() == [255, 122, 47]  # the first class's, as it is the surest
    assert found[50, 35].max() == 0 and found[90, 50].max() == 0
    assert np.array_equal(np.asarray(drawn(plain, [])), np.asarray(plain))


# ------------------------------------------------------------------------------------------------------ large photographs
VIT = T.ViTImageProcessorPil(size={"height": 32, "width": 32})


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A JPEG of 600 x 400 with broad shapes, an edge and a little noise, stored lying on its side."""
    y, x = np.mgrid[:400, :600]
    waves = [128 + 60 * np.sin(x / 60) * np.cos(y / wide) + 40 * (x > 300) for wide in (50, 70, 90)]
    pixels = np.stack(waves, axis=2) + np.random.default_rng(0).normal(0, 4, (400, 600, 3))
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "a.jpg", quality=90, exif=exif)
    return tmp_path / "a.jpg"


def test_a_large_jpeg_is_decoded_at_the_size_needed(photograph: Path) -> None:
    """By the path and by its bytes; never below what is asked for, and upright all the same."""
    assert [opened(photograph, least).size for least in (0, 401, 200, 64)] == [(400, 600), (400, 600), (200, 300), (100, 150)]
    assert opened(photograph.read_bytes(), 200).size == (200, 300)
    whole = opened(photograph)
    assert opened(whole, 64).size == (400, 600)  # what is decoded already
    whole.save(photograph.with_suffix(".png"))
    assert opened(photograph.with_suffix(".png"), 64).size == (400, 600)


def test_its_pixels_hardly_move(photograph: Path) -> None:
    rows = np.arange(1)
    whole, less = (encoded([photograph], VIT, least=least).raw(rows)["pixels"].numpy().astype(int) for least in (0, enough(VIT)))
    apart = np.abs(whole - less)
    assert 0 < apart.mean() < 0.5 and apart.max() <= 6


@pytest.mark.parametrize(
    ("processor", "least"),
    [
        (VIT, 64),
        (T.CLIPImageProcessorPil(size={"shortest_edge": 224}), 448),
        (T.ViTImageProcessorPil(size={"height": 32, "width": 48}), 96),
        (T.ViTImageProcessorPil(do_resize=False), 0),
        (T.DetrImageProcessorPil(), 0),  # bounds the longest edge: boxes belong to the picture as it is
        (object(), 0),
    ],
)
def test_what_is_enough(processor: Any, least: int) -> None:
    assert enough(processor) == least


@pytest.mark.parametrize("processor", [VIT, T.ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875)])
def test_quick_pictures_are_decoded_together_and_slow_ones_by_threads(processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes either way, whatever the sizes, in the order asked for."""
    draw = np.random.default_rng(0)
    inputs = [Image.fromarray(draw.integers(0, 256, (*draw.integers(20, 90, 2), 3), dtype=np.uint8)) for _ in range(37)]
    found = []
    for quick in (0.0, float("inf")):
        monkeypatch.setattr("affinage.pictures.QUICK", quick)
        decoded = Decoded(inputs, processor, plain=True)
        found += [decoded[:37], decoded[np.asarray([30, 2, 17, 17, 5])], decoded[3:5]]
        assert decoded.quick == (quick > 0)
    for one, other in zip(found[:3], found[3:], strict=True):
        assert one.dtype == np.uint8 and np.array_equal(one, other)
    assert np.array_equal(found[1], found[0][[30, 2, 17, 17, 5]]) and found[0].shape == (37, 3, 32, 32)
