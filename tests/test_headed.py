"""Image encoders without a classifier of their own: the same plans, the same numbers, and a folder that says how to load it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers as T
from PIL import Image
from safetensors.torch import load_file, save_file

import affinage
from affinage import config, headed, inputs, rates, story
from affinage.cli import main
from affinage.errors import AffinageError
from affinage.tasks.image_classification import task

from . import tiny

CLASSES = ("across", "down", "spot")
QUICK: dict[str, Any] = {"epochs": 2, "quiet": True}
VIT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8)
PROCESSOR = T.ViTImageProcessorPil(size={"height": 32, "width": 32})


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.dinov3(tmp_path_factory.mktemp("models") / "vit")


@pytest.fixture(scope="module")
def convnext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.dinov3(tmp_path_factory.mktemp("models") / "convnext", "convnext")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def vit_run(vit: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> affinage.Run:
    return affinage.fit(vit, pictures, out=tmp_path_factory.mktemp("runs") / "vit", **QUICK)


@pytest.fixture(scope="module")
def convnext_run(convnext: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> affinage.Run:
    return affinage.fit(convnext, pictures, out=tmp_path_factory.mktemp("runs") / "convnext", **QUICK)


def told(run: affinage.Run, pictures: Path) -> tuple[list[Path], np.ndarray]:
    """(files, probabilities (N, C)) of the test split, as predictions.parquet has them."""
    rows = [row for row in pq.read_table(run.path / "predictions.parquet").to_pylist() if row["split"] == "test"]
    return [pictures / row["id"] for row in rows], np.array([row["probabilities"] for row in rows])


def scores(answers: list[dict[str, Any]]) -> np.ndarray:
    return np.array([[answer["scores"][name] for name in CLASSES] for answer in answers])


@torch.no_grad()
def features(encoder: Any, pixels: torch.Tensor) -> torch.Tensor:
    return encoder.eval()(pixel_values=pixels).pooler_output


# ------------------------------------------------------------------------------------------------------------- ConvNeXt
def test_a_dinov3_convnext_is_a_convnext(convnext: Path) -> None:
    """The encoder's own pooled output through the same head, to 1e-5, on pictures of several sizes."""
    encoder = T.AutoModel.from_pretrained(convnext)
    model = headed.of(encoder, CLASSES, PROCESSOR)
    assert type(model) is T.ConvNextForImageClassification and model.config.id2label == dict(enumerate(CLASSES))
    assert sum(p.numel() for p in model.convnext.parameters()) == sum(p.numel() for p in encoder.parameters())
    for side in (32, 64, 100):
        pixels = torch.randn(4, 3, side, side)
        with torch.no_grad():
            model.classifier.weight.normal_()
            want, found = model.classifier(features(encoder, pixels)), model(pixels).logits
        assert want.std() > 0.1 and (want - found).abs().max() < 1e-5


def test_another_eps_is_no_convnext() -> None:
    """ConvNeXt has the eps of its blocks in its code: one with another eps stays what it is, layer scale of 0 or not."""
    sizes: dict[str, Any] = dict(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
    other = headed.of(T.DINOv3ConvNextModel(T.DINOv3ConvNextConfig(**sizes, layer_norm_eps=1e-3)), CLASSES, PROCESSOR)
    assert isinstance(other, headed.Headed) and other.head.in_features == 8
    silent = T.DINOv3ConvNextModel(T.DINOv3ConvNextConfig(**sizes, layer_scale_init_value=0.0))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for layer in silent.modules():
            if hasattr(layer, "gamma"):
                layer.gamma.fill_(0.7)
        same = headed.of(silent, CLASSES, PROCESSOR).convnext(pixels).pooler_output
    assert (same - features(silent, pixels)).abs().max() < 1e-5


def test_plain_pipeline_loads_a_convnext(convnext_run: affinage.Run, pictures: Path) -> None:
    assert convnext_run.record["model"]["architecture"] == "ConvNextForImageClassification"
    assert "head_file" not in convnext_run.record["model"] and not (convnext_run.path / headed.HEAD).exists()
    files, want = told(convnext_run, pictures)
    pipe = T.pipeline("image-classification", model=str(convnext_run.path), top_k=None)
    answers = [{one["label"]: one["score"] for one in answer} for answer in pipe([str(file) for file in files])]
    assert np.abs(np.array([[answer[name] for name in CLASSES] for answer in answers]) - want).max() < 1e-4
    assert np.abs(scores(affinage.load(convnext_run.path).predict(files)) - want).max() < 1e-4


# ------------------------------------------------------------------------------------------------------------------ ViT
def test_the_folder_of_a_vit(vit_run: affinage.Run, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """affinage.load predicts what was written; AutoModel and the head's file, by hand, do too; pipeline() cannot."""
    files, want = told(vit_run, pictures)
    assert np.abs(scores(affinage.load(vit_run.path).predict(files)) - want).max() < 1e-5
    assert affinage.load(vit_run.path).evaluate(pictures)["accuracy"] == vit_run.metrics["accuracy"]

    encoder, loading = T.AutoModel.from_pretrained(vit_run.path, output_loading_info=True)
    assert type(encoder) is T.DINOv3ViTModel and not any(loading.values())
    processor = T.AutoImageProcessor.from_pretrained(vit_run.path)
    head = load_file(vit_run.path / headed.HEAD)
    pixels = torch.cat([processor(Image.open(file), return_tensors="pt")["pixel_values"] for file in files])
    by_hand = (features(encoder, pixels) @ head["weight"].T + head["bias"]).softmax(1).numpy()
    assert np.abs(by_hand - want).max() < 1e-4

    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        T.AutoModelForImageClassification.from_pretrained(vit_run.path)
    with pytest.raises(KeyError, match="logits"):  # it takes the bare encoder, which gives no logits
        T.pipeline("image-classification", model=str(vit_run.path))(str(files[0]))
    card = (vit_run.path / "README.md").read_text()
    assert main(["show", "--run", str(vit_run.path)]) == 0
    for text in (card, capsys.readouterr().out):
        assert "no image classifier for DINOv3ViTModel, so plain pipeline() cannot use this folder: affinage.load can" in text
    assert "library_name: affinage" in card and "from transformers import" not in card


@pytest.mark.parametrize("plan", ["frozen", "full", "scratch", "lora", "gradual"])
def test_every_plan(vit: Path, pictures: Path, tmp_path: Path, plan: str) -> None:
    made = affinage.fit(vit, pictures, out=tmp_path / "run", plan=plan, **QUICK)
    assert [row["address"] for row in made.record["model"]["anatomy"]] == ["stem", "blocks.0", "blocks.1", "blocks.2", "head"]
    before, after = load_file(vit / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    assert before.keys() == after.keys()  # LoRA is merged, and nothing of ours is in the encoder's file
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert bool(changed) == (plan != "frozen" and not made.record["stages"][-1]["details"].get("worse_than_before", False))
    files, want = told(made, pictures)
    assert np.abs(scores(affinage.load(made.path).predict(files)) - want).max() < 1e-5


def test_one_block_learns(vit: Path, pictures: Path) -> None:
    """Frozen means the random stretching of DINOv3's positions too, which lies in the stem and acts on every block."""
    ready = inputs.prepare(config.make({"model": vit, "data": pictures, "unfreeze": 1}))
    table = rates.resolve(ready.net, ready.plan.stages[1].rates)
    assert {ready.net.parameters[name] for name, rate in table.items() if rate} == {"blocks.2", "head"}
    rates.train_mode(ready.net, table)
    modes = {name: module.training for name, module in ready.model.named_modules()}
    assert modes["encoder.model.layer.2"] and modes["head"]
    assert not modes["encoder.rope_embeddings"] and not modes["encoder.model.layer.1"]
    rates.train_mode(ready.net, dict.fromkeys(table, 1e-4))
    assert ready.model.encoder.rope_embeddings.training


def test_resume_is_exact(
    vit: Path, vit_run: affinage.Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second epoch, at a checkpoint; the folder is that of the run that was never stopped, bit by bit."""
    monkeypatch.setenv("AFFINAGE_CHECKPOINT_SECONDS", "0")
    save, out = story.Story.save, tmp_path / "run"

    def stop(self: story.Story, fitting: Any = None) -> None:
        save(self, fitting)
        if fitting and fitting.progress.step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(story.Story, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            affinage.fit(vit, pictures, out=out, **QUICK)
    affinage.fit(out=out, resume=True, quiet=True)
    for name in ("model.safetensors", headed.HEAD, "predictions.parquet"):
        assert (out / name).read_bytes() == (vit_run.path / name).read_bytes()


def test_a_run_begins_the_next(vit_run: affinage.Run, convnext_run: affinage.Run, pictures: Path, tmp_path: Path) -> None:
    for run in (vit_run, convnext_run):
        model, _ = task.load(run.path, CLASSES, fresh=False, revision=None)
        want = affinage.load(run.path)._model()[0].state_dict()
        assert all(torch.equal(value, want[name]) for name, value in model.state_dict().items())  # the head came along
        other, _ = task.load(run.path, ("a", "b"), fresh=False, revision=None)
        assert other(torch.randn(1, 3, 32, 32)).logits.shape == (1, 2)
        made = affinage.fit(run.path, pictures, out=tmp_path / run.path.name, plan="frozen", **QUICK)
        assert made.metrics["n"] == 12


def test_an_encoder_in_memory(vit: Path, pictures: Path, tmp_path: Path) -> None:
    encoder = T.AutoModel.from_pretrained(vit)
    processor = T.ViTImageProcessorPil(size={"height": 32, "width": 32})
    made = affinage.fit((encoder, processor), pictures, out=tmp_path / "run", plan="frozen", quiet=True)
    assert made.record["model"]["architecture"] == "DINOv3ViTModel" and len(encoder.config.id2label) == 2  # left as it was
    assert not hasattr(encoder.config, headed.MARK)
    assert headed.is_bare(encoder) and not headed.is_bare(headed.of(encoder, CLASSES, processor))


# --------------------------------------------------------------------------------------------------- others, and refusals
def test_pooled() -> None:
    hidden = torch.randn(2, 5, 8)
    output = T.modeling_outputs.BaseModelOutputWithPooling
    assert headed.pooled(output(last_hidden_state=hidden)).equal(hidden.mean(1))
    assert headed.pooled(output(last_hidden_state=hidden, pooler_output=hidden[:, 0])).equal(hidden[:, 0])
    maps = torch.randn(2, 8, 3, 4)
    assert headed.pooled(output(last_hidden_state=maps)).equal(maps.mean((2, 3)))
    assert headed.pooled(output(last_hidden_state=maps, pooler_output=maps[:, :, :1, :1])).shape == (2, 8)


def test_which_lack_a_head() -> None:
    lacking = [T.DINOv3ViTConfig(), T.DINOv3ConvNextConfig(), T.PixioConfig(), T.CLIPVisionConfig()]
    assert all(headed.lacks_head(one) for one in lacking)
    assert not any(headed.lacks_head(one) for one in (T.ViTConfig(), T.ResNetConfig(), T.BertConfig()))


@pytest.mark.parametrize("name", ["Pixio", "CLIPVision"])
def test_others(name: str) -> None:
    encoder = getattr(T, f"{name}Model")(getattr(T, f"{name}Config")(**VIT))
    model = headed.of(encoder, CLASSES, PROCESSOR)
    assert model(torch.randn(2, 3, 32, 32)).logits.shape == (2, 3) and headed.architecture(model) == f"{name}Model"


@pytest.mark.parametrize(
    ("name", "why"), [("ViTMAE", "answers the same picture differently"), ("VideoMAE", "gives no features of a picture alone")]
)
def test_not_for_pictures_alone(name: str, why: str) -> None:
    encoder = getattr(T, f"{name}Model")(getattr(T, f"{name}Config")(**VIT))
    with pytest.raises(AffinageError, match=f"{name}Model {why}") as error:
        headed.of(encoder, CLASSES, PROCESSOR)
    assert "\n" not in str(error.value)


def without_head(folder: Path) -> None:
    (folder / headed.HEAD).unlink()


def with_no_weights_inside(folder: Path) -> None:
    (folder / headed.HEAD).write_bytes(b"not weights at all")


def with_another_head(folder: Path) -> None:
    save_file({"weight": torch.zeros(3, 7), "bias": torch.zeros(3)}, folder / headed.HEAD)


DAMAGES: dict[Callable[[Path], None], str] = {
    without_head: "has lost its head: expected head.safetensors beside config.json",
    with_no_weights_inside: "is not valid safetensors",
    with_another_head: "is not the head of this encoder: expected `weight` (C, 32)",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_refused_in_one_line(damage: Callable[[Path], None], vit_run: affinage.Run, tmp_path: Path) -> None:
    folder = shutil.copytree(vit_run.path, tmp_path / "run")
    damage(folder)
    with pytest.raises(AffinageError) as error:
        task.load(folder, CLASSES, fresh=False, revision=None)
    assert "\n" not in str(error.value) and str(folder) in str(error.value) and DAMAGES[damage] in str(error.value)


def test_show_names_the_encoder(vit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--model", str(vit)]) == 0
    text = capsys.readouterr().out
    assert "DINOv3ViTModel, image-classification" in text and "blocks.2" in text and "head" in text
