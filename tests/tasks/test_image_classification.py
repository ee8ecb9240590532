"""Pictures become the pixels that the checkpoint's own processor gives, from whatever form they come in."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T
from PIL import Image

from affinage import pictures
from affinage.errors import AffinageError
from affinage.pictures import opened
from affinage.tasks.image_classification import task

from .. import tiny

PROCESSORS = {
    "convnext, resized": T.ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.9),
    "vit": T.ViTImageProcessorPil(size={"height": 32, "width": 32}),
    "clip, cropped": T.CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
    "not normalised": T.ViTImageProcessorPil(size={"height": 32, "width": 32}, do_normalize=False),
    "not rescaled": T.ViTImageProcessorPil(size={"height": 32, "width": 32}, do_rescale=False, do_normalize=False),
}


def photos(count: int = 6) -> list[Image.Image]:
    """Smooth pictures of several sizes and modes."""
    draw = np.random.default_rng(0)
    found = []
    for i in range(count):
        small = Image.fromarray(draw.integers(0, 256, (6, 8, 3)).astype(np.uint8))
        found.append(small.resize((50 + 13 * i, 90 - 7 * i), Image.Resampling.BICUBIC))
    modes = ("RGB", "L", "RGBA", "P", "RGB", "RGB")
    return [picture.convert(mode) for picture, mode in zip(found, modes, strict=False)]


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_the_processors(name: str) -> None:
    processor, pictures = PROCESSORS[name], photos()
    rows = task.encode(pictures, processor, None)
    theirs = processor([p.convert("RGB") for p in pictures], return_tensors="pt")["pixel_values"]
    ours = rows.batch(np.arange(6))["pixel_values"]
    assert rows.pixels.dtype == np.uint8  # kept as bytes: a quarter of the memory
    assert ours.shape == theirs.shape and (ours - theirs.float()).abs().max() < 1e-4
    assert rows.batch(np.array([3, 1]))["pixel_values"].equal(ours[[3, 1]])
    assert rows.lengths.tolist() == [1] * 6


def test_a_processor_that_does_more_is_asked_itself() -> None:
    """Scaling that is not affine in the resized pixels: what the processor says is kept as it is, in float."""

    def processor(
        pictures: Any, do_rescale: bool = True, do_normalize: bool = True, return_tensors: str = "np"
    ) -> dict[str, Any]:
        several = pictures if isinstance(pictures, list) else [pictures]
        pixels = np.stack([np.asarray(p.resize((8, 8))).transpose(2, 0, 1) for p in several])
        return {"pixel_values": np.sqrt(pixels) if do_rescale else pixels}

    rows = task.encode(photos(), processor, None)
    assert rows.pixels.dtype == np.float32
    expected = processor([p.convert("RGB") for p in photos()])["pixel_values"]
    assert np.abs(rows.batch(np.arange(6))["pixel_values"].numpy() - expected).max() < 1e-4


def test_every_form_is_the_same_picture(tmp_path: Path) -> None:
    picture = photos(1)[0]
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(buffer.getvalue())
    for form in (picture, buffer.getvalue(), path, str(path), np.asarray(picture)):
        assert np.array_equal(np.asarray(opened(form)), np.asarray(picture))
    grey = np.asarray(opened(np.asarray(picture.convert("L"))))
    assert grey.shape == (*picture.size[::-1], 3) and (grey[..., 0] == grey[..., 2]).all()


def test_exif_turns_the_picture() -> None:
    picture = photos(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    assert np.array_equal(np.asarray(opened(buffer.getvalue())), np.asarray(picture.rotate(-90, expand=True)))


def bomb(side: int) -> bytes:
    """A PNG of 45 bytes whose header says `side` x `side` pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pieces = [(b"IHDR", head), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in pieces
    )


def test_what_is_no_picture_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"no picture")
    for thing in (path, b"no picture", tmp_path / "gone.png"):
        with pytest.raises(AffinageError, match=r"cannot read the picture .*expected JPEG, PNG") as error:
            opened(thing)
        assert "\n" not in str(error.value)
    with pytest.raises(AffinageError, match="too many pixels: at most 100 million"):
        opened(bomb(20_000))
    photos(1)[0].save(path)
    cut = path.read_bytes()[:-200]
    with pytest.raises(AffinageError, match="cannot read the picture encoded bytes"):
        opened(cut)
    monkeypatch.setattr(pictures, "MOST_PIXELS", 100)
    with pytest.raises(AffinageError, match="50 x 90 pixels"):
        opened(path)


def test_load(tmp_path: Path) -> None:
    """Another number of classes than the checkpoint's: a new head; the rest of the weights are the checkpoint's."""
    folder = tiny.resnet(tmp_path)
    model, processor = task.load(folder, ("a", "b", "c", "d"), fresh=False, revision=None)
    saved = T.ResNetForImageClassification.from_pretrained(folder).state_dict()
    for name, tensor in model.state_dict().items():
        assert tensor.equal(saved[name]) != name.startswith("classifier"), name
    assert model.config.id2label[3] == "d" and processor.size == {"shortest_edge": 32}
    rows = task.encode(photos(), processor, model)
    with torch.no_grad():
        assert model.eval()(**rows.batch(np.arange(6))).logits.shape == (6, 4)


def test_no_rows() -> None:
    assert len(task.encode([], PROCESSORS["vit"], None)) == 0
