"""Models from a folder: what cannot be loaded is told in one line, and no pickle and no code is ever run."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T
from PIL import Image

from affinage import pretrained, rates, run
from affinage.errors import AffinageError
from affinage.net import Net
from affinage.tasks.image_classification import task as images
from affinage.tasks.text_classification import task as texts

from . import tiny
from .zoo import FAMILIES
from .zoo_wide import WIDE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.bert(tmp_path / "model")


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.mark,)


def as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(folder / "sprung")))


def as_torch_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(T.BertModel(T.BertConfig.from_pretrained(folder)).state_dict(), folder / "pytorch_model.bin")


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def with_cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def with_no_weights_inside(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not weights at all")


def emptied(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def with_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert", ')


def with_unknown_architecture(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "no-such-model"}')


def with_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "ours", "auto_map": {"AutoConfig": "code.C", "AutoModelForSequenceClassification": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"import pathlib; pathlib.Path({str(folder / 'sprung')!r}).touch()")


def without_tokenizer(folder: Path) -> None:
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)


DAMAGES: dict[Callable[[Path], None], str] = {
    as_pickle: "holds its weights as a pickle, which can run code: expected model.safetensors",
    as_torch_file: "holds its weights as a pickle, which can run code: expected model.safetensors",
    without_weights: "has no model.safetensors",
    without_config: "has no config.json: expected a transformers model folder",
    emptied: "has no config.json: expected a transformers model folder",
    with_cut_weights: "not valid safetensors",
    with_no_weights_inside: "not valid safetensors",
    with_broken_config: "",
    with_unknown_architecture: "",
    with_code: "",
    without_tokenizer: "has no tokenizer",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_refused_in_one_line(damage: Callable[[Path], None], folder: Path) -> None:
    damage(folder)
    with pytest.raises(AffinageError) as error:
        texts.load(folder, ("a", "b"), fresh=False, revision=None)
    message = str(error.value)
    assert "\n" not in message and str(folder) in message and DAMAGES[damage] in message
    assert not (folder / "sprung").exists()


def test_fresh_needs_no_weights(folder: Path) -> None:
    without_weights(folder)
    model, _ = texts.load(folder, ("a", "b"), fresh=True, revision=None)
    assert model.config.num_labels == 2


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(AffinageError, match=r"no model at .*gone: expected a folder with config.json, or a Hub id"):
        texts.load(tmp_path / "gone", ("a", "b"), fresh=False, revision=None)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n")
    with pytest.raises(AffinageError, match=r"rows.csv is a file: --model takes a Hub id or a model folder"):
        texts.load(tmp_path / "rows.csv", ("a", "b"), fresh=False, revision=None)


def test_a_hub_id_that_cannot_be_reached() -> None:
    with pytest.raises(AffinageError, match="cannot load the model no-one/has-this-model") as error:
        texts.load("no-one/has-this-model", ("a", "b"), fresh=False, revision=None)
    assert "\n" not in str(error.value)


def test_a_model_of_another_task(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AffinageError, match="is not a model for image-classification"):
        images.load(folder, ("a", "b"), fresh=False, revision=None)
    with pytest.raises(AffinageError, match="is not a model for text-classification"):
        texts.load(tiny.resnet(tmp_path / "resnet"), ("a", "b"), fresh=False, revision=None)


def test_nothing_is_said_on_the_screen(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Transformers tells of missing head weights and draws bars; the head is solved, and the bar is ours."""
    texts.load(folder, ("a", "b"), fresh=False, revision=None)
    told = capfd.readouterr()
    assert told.out == "" and told.err == ""


# ----------------------------------------------------------------------------------------------------- image processors
def rewrite(folder: Path, **changes: Any) -> None:
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_processor_for_torchvision_gives_its_numbers(tmp_path: Path) -> None:
    """Against what the published processor does in torch: rescale, resize with antialiasing, normalise; to a step of a byte."""
    folder = tiny.dinov3(tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    raw = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    resized = torch.nn.functional.interpolate(raw, (32, 32), mode="bilinear", antialias=True)[0]
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    for kind in ("DINOv3ViTImageProcessorFast", "DINOv3ViTImageProcessor", None):
        rewrite(folder, image_processor_type=kind)
        processor = pretrained.image_processor(folder, task="image-classification", revision=None)
        assert type(processor) is T.ViTImageProcessorPil
        found = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
        assert ((found * std + mean) - resized).abs().max() < 1 / 255
    rewrite(folder, do_center_crop=True, crop_size={"height": 16, "width": 24})
    cropped = pretrained.image_processor(folder, task="image-classification", revision=None)
    assert cropped(Image.fromarray(pixels), return_tensors="pt")["pixel_values"].shape == (1, 3, 16, 24)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (None, "has no preprocessor_config.json, which says how the model wants its pictures"),
        ({"image_mean": None, "size": None}, "preprocessor_config.json does not say size, image_mean, with which Pillow"),
        ({"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "code.Own"}}, "is code of its own"),
        ("{", "cannot load the image processor of"),
    ],
    ids=["none", "incomplete", "code", "broken"],
)
def test_a_processor_that_cannot_be(tmp_path: Path, changes: Any, why: str) -> None:
    folder = tiny.dinov3(tmp_path / "model")
    if changes is None:
        (folder / "preprocessor_config.json").unlink()
    elif isinstance(changes, str):
        (folder / "preprocessor_config.json").write_text(changes)
    else:
        rewrite(folder, **changes)
    with pytest.raises(AffinageError) as error:
        pretrained.image_processor(folder, task="image-classification", revision=None)
    assert "\n" not in str(error.value) and str(folder) in str(error.value) and why in str(error.value)


# ----------------------------------------------------------------------------------------------------- half precision
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("kind", ["bert", "resnet", "dinov3"])
def test_weights_of_16_bits_are_computed_with_in_32(tmp_path: Path, kind: str, dtype: torch.dtype, fresh: bool) -> None:
    """Whatever the file holds, the network is fp32 and the same as of a file that holds the same numbers in 32 bits."""
    source, whole = getattr(tiny, kind)(tmp_path / "model"), tmp_path / "whole"
    task: Any = texts if kind == "bert" else images
    auto = T.AutoModelForImageClassification if kind == "resnet" else T.AutoModel
    shutil.copytree(source, whole)
    rounded = auto.from_pretrained(source).to(dtype)
    rounded.save_pretrained(source)
    rounded.float().save_pretrained(whole)
    found = []
    for folder in (source, whole):
        torch.manual_seed(0)
        found.append(task.load(folder, ("a", "b", "c", "d"), fresh=fresh, revision=None)[0].state_dict())
    assert {t.dtype for t in found[0].values() if t.is_floating_point()} == {torch.float32}
    assert all(t.equal(found[1][n]) for n, t in found[0].items()) and found[0].keys() == found[1].keys()


def test_a_run_in_16_bits_predicts_as_it_is(tmp_path: Path) -> None:
    data = tiny.pictures(tmp_path / "data")
    done = run.fit(tiny.resnet(tmp_path / "model"), data, plan="full", epochs=1, out=tmp_path / "run", quiet=True)
    pictures = sorted((data / "test").rglob("*.png"))
    before = [one["score"] for one in done.predict(pictures)]
    T.AutoModelForImageClassification.from_pretrained(done.path).to(torch.bfloat16).save_pretrained(done.path)
    after = [one["score"] for one in run.load(done.path).predict(pictures)]
    assert np.allclose(before, after, atol=0.03) and before != after


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("d_fine", {"model.decoder.up", "model.decoder.reg_scale"}),
        ("whisper_writes", {"model.encoder.embed_positions.weight"}),
        ("bert", set()),
        ("clip", set()),
    ],
)
def test_constants_are_not_taught(name: str, constants: set[str]) -> None:
    """They stay in the file under their names; the answers are the same."""
    model, batch = {**FAMILIES, **WIDE}[name].make()
    model.eval()
    before, want = set(model.state_dict()), model(**batch).logits
    learnable = {n for n, p in model.named_parameters() if p.requires_grad}
    pretrained.fix_constants(model)
    assert set(model.state_dict()) == before and torch.equal(model(**batch).logits, want)
    left = {n for n, _ in model.named_parameters()}
    assert constants <= before - left and learnable <= left
    net = Net.of(model, batch)
    rates.freeze(net, rates.resolve(net, (("*", 1e-3),)))
    assert all(not value.requires_grad for n, value in model.state_dict(keep_vars=True).items() if n in constants)


def test_what_somebody_has_frozen_stays_a_parameter() -> None:
    model, _ = FAMILIES["bert"].make()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    before = {n for n, _ in model.named_parameters()}
    pretrained.fix_constants(model)
    assert {n for n, _ in model.named_parameters()} == before
