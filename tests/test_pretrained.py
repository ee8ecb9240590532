"""Models from a folder: what cannot be loaded is told in one line, and no pickle and no code is ever run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as T

from affinage.errors import AffinageError
from affinage.tasks.image_classification import task as images
from affinage.tasks.text_classification import task as texts

from . import tiny


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
