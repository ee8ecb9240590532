"""On an accelerator: the same story end to end, and the numbers of the CPU within what its arithmetic allows (`make gpu`)."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import affinage
from affinage import checkpoint, ranks, rates, record, team
from affinage.cli import main
from affinage.features import batched, kernels, passed
from affinage.fit import Fitting
from affinage.net import Net
from affinage.replay import Recorder
from affinage.shards import Shards
from affinage.tasks.text_classification import task

from . import detectors, tiny
from .test_ranks import Ranks
from .zoo import FAMILIES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")]
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 16, "quiet": True}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # dropout is drawn by shape: pieces would differ


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of the test's own."""
    monkeypatch.setenv("AFFINAGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Ranks]:
    made = Ranks(tmp_path)
    yield made
    for starter in made.starters:
        starter.process.communicate(timeout=60)


def losses(run: affinage.Run) -> list[float]:
    return [fact.value for fact in record.read(run.path / "records.jsonl") if fact.name == "loss"]


def recorded(run: affinage.Run) -> dict[str, int]:
    """How many shapes and steps of the last stage were recorded."""
    return run.record["stages"][-1]["details"].get("recorded", {"shapes": 0, "steps": 0})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_text_from_fit_to_a_plain_pipeline(tmp_path: Path, precision: str) -> None:
    import pyarrow.parquet as pq
    import transformers

    run = affinage.fit(
        tiny.bert(tmp_path / "bert"), tiny.csvs(tmp_path / "texts"), out=tmp_path / "run", precision=precision, **QUICK
    )
    assert "gpu" in run.record["hardware"]
    rows = pq.read_table(tmp_path / "run" / "predictions.parquet").to_pylist()
    pipe = transformers.pipeline("text-classification", model=str(tmp_path / "run"), top_k=None, device="cpu")
    for row, told in zip(rows, pipe([row["text"] for row in rows]), strict=True):
        score = {one["label"]: one["score"] for one in told}[row["prediction"]]
        assert score == pytest.approx(row["confidence"], abs=1e-3)


def test_images_learn(tmp_path: Path) -> None:
    run = affinage.fit(tiny.resnet(tmp_path / "resnet"), tiny.pictures(tmp_path / "pictures"), out=tmp_path / "run", **QUICK)
    assert run.metrics["accuracy"] > 1 / 3


def test_features_are_those_of_the_cpu(minilm: Path) -> None:
    model, tokenizer = task.load(minilm, ["a", "b"], fresh=False, revision=None)
    rows = task.encode(["a good film", "not one that I would see again, nor one to tell a friend of"] * 8, tokenizer, model)
    there = passed(model.cuda(), rows, "fp32")[1]
    model.cpu()
    batch = rows.batch(np.arange(len(rows)))
    with torch.inference_mode():
        here = model(**batch).logits.numpy()
    assert np.abs(there - here).max() < 1e-3 * np.abs(here).max()


def test_batches_suit_the_device() -> None:
    """Each row once, and many more at once than a core's cache has room for."""
    found = batched(np.full(10_000, 20), torch.nn.Identity(), "bf16")
    assert sorted(np.concatenate(found).tolist()) == list(range(10_000)) and len(found) < 20


@pytest.mark.parametrize("kind", ["text", "image"])
def test_what_is_frozen_runs_once_to_the_same_losses(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept on the card, or on the disk and read from there onto the card."""
    if kind == "text":
        model, data = tiny.bert(tmp_path / "model", **STILL), tiny.csvs(tmp_path / "data")
    else:
        model, data = tiny.resnet(tmp_path / "model"), tiny.pictures(tmp_path / "data")
    options: dict[str, Any] = dict(QUICK, plan="full", unfreeze=1, epochs=4, precision="fp32", augment="none")
    runs = [affinage.fit(model, data, out=tmp_path / "off", cache="off", learning_rate=3e-3, **options)]
    for name, rate in (("quick", 0.0), ("stored", float("inf")), ("again", float("inf"))):
        monkeypatch.setattr("affinage.filling.WRITTEN", rate)
        monkeypatch.setattr("affinage.filling.batched", lambda lengths, *_: np.array_split(np.argsort(-lengths), 3))
        runs.append(affinage.fit(model, data, out=tmp_path / name, learning_rate=3e-3, **options))
    cuts = [run.record["cuts"]["body"] for run in runs[1:]]
    assert all(cut["address"] for cut in cuts) and [cut["kept"] for cut in cuts] == ["card", "disk", "disk"]
    assert [cut["reused"] for cut in cuts] == [False, False, True]
    for run in runs[1:]:
        assert losses(run) == pytest.approx(losses(runs[0]), rel=1e-3)


@pytest.mark.parametrize(
    "more", [{}, {"plan": "lora"}, {"gradient_checkpointing": True}], ids=["two-stage", "lora", "recomputed"]
)
def test_stopped_and_gone_on_with(more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout and all: the generator of the GPU is in the checkpoint too. Kernels that add in any order leave a rounding."""
    model, data = tiny.bert(tmp_path / "model"), tiny.csvs(tmp_path / "data")
    options: dict[str, Any] = QUICK | {"precision": "fp32", **more}
    whole = affinage.fit(model, data, out=tmp_path / "whole", **options)
    monkeypatch.setenv("AFFINAGE_CHECKPOINT_SECONDS", "0")
    step = Fitting.step

    def broken(self: Fitting, batch: np.ndarray) -> float:
        if self.stage.name == "body" and self.progress.step == 7:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Fitting, "step", broken)
    with pytest.raises(KeyboardInterrupt):
        affinage.fit(model, data, out=tmp_path / "parted", **options)
    monkeypatch.setattr(Fitting, "step", step)
    parted = affinage.fit(resume=True, out=tmp_path / "parted", quiet=True)
    assert losses(parted) == pytest.approx(losses(whole), rel=1e-3) and len(losses(whole)) >= 2


def test_memory_that_does_not_suffice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real limit of the card's memory: updates are made in pieces, and the losses are those without it."""
    sizes = dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)
    model, data = tiny.bert(tmp_path / "model", **STILL, **sizes), tiny.csvs(tmp_path / "data", train=900)
    options: dict[str, Any] = dict(QUICK, plan="full", batch_size=400, precision="fp32", learning_rate=1e-4)
    seen: list[Fitting] = []
    run = Fitting.run
    monkeypatch.setattr(Fitting, "run", lambda self, *args: (seen.append(self), run(self, *args))[1])
    whole = affinage.fit(model, data, out=tmp_path / "whole", **options)
    room, total = 250 * 2**20, torch.cuda.get_device_properties(0).total_memory
    assert torch.cuda.max_memory_allocated() > room, "the limit would not be felt"
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + room) / total)
    try:
        small = affinage.fit(model, data, out=tmp_path / "small", **options)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert [one.progress.least_pieces > 1 for one in seen] == [False, True]
    assert losses(small) == pytest.approx(losses(whole), rel=1e-3)


def test_recomputed_blocks_in_bf16(tmp_path: Path) -> None:
    """Recomputing takes the attention that the pass forwards took, for batches of many lengths."""
    model, data = tiny.bert(tmp_path / "model", **STILL), tiny.csvs(tmp_path / "data")
    options: dict[str, Any] = QUICK | {"plan": "full", "precision": "bf16"}
    plain, again = (affinage.fit(model, data, out=tmp_path / str(i), gradient_checkpointing=bool(i), **options) for i in (0, 1))
    assert losses(again) == pytest.approx(losses(plain), rel=1e-2)


def test_fp32_is_no_tf32(tmp_path: Path) -> None:
    """A convolution, forwards and backwards, is that of the CPU to 1e-5."""
    torch.manual_seed(0)
    layer, x = torch.nn.Conv2d(64, 64, 3), torch.randn(8, 64, 24, 24)
    layer(x).square().sum().backward()
    here, slope = layer(x).detach(), layer.weight.grad.clone()
    layer.zero_grad()
    layer.cuda()
    with kernels("fp32"):
        there = layer(x.cuda())
        there.square().sum().backward()
    assert (there.cpu() - here).abs().max() < 1e-4 * here.abs().max()
    assert (layer.weight.grad.cpu() - slope).abs().max() < 1e-4 * slope.abs().max()


def test_show_knows_a_model_of_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--model", "starter-vision"]) == 0 and "blocks.0" in capsys.readouterr().out


def test_pictures_mixed_and_changed_on_the_card(tmp_path: Path) -> None:
    """A starter, with all that can be done to a picture, to the end."""
    more: dict[str, Any] = {"augment": "strong", "mix": 0.5, "average": 0.2, "label_smoothing": 0.1}
    run = affinage.fit("starter", tiny.pictures(tmp_path / "pictures"), out=tmp_path / "run", **QUICK, **more)
    assert np.isfinite(losses(run)).all() and run.metrics["accuracy"] > 1 / 3


@pytest.mark.parametrize("family", ["rt_detr", "d_fine", "detr"])
def test_detectors(family: str, tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    data = detectors.pictures(tmp_path / "data")
    run = affinage.fit(detectors.saved(tmp_path / "model", family), data, out=tmp_path / "run", augment="light", **QUICK)
    assert np.isfinite(losses(run)).all()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["test"]


def test_speech(tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    data = tiny.melodies(tmp_path / "data")
    run = affinage.fit(
        tiny.wav2vec2(tmp_path / "model"), data, task="automatic-speech-recognition", out=tmp_path / "run", **QUICK
    )
    assert np.isfinite(losses(run)).all() and run.metrics["wer"] <= 1.5


@pytest.mark.filterwarnings("ignore:TensorFloat32")  # meant: fp32 is no TF32
def test_compiled(tmp_path: Path) -> None:
    model, data = tiny.bert(tmp_path / "model", **STILL), tiny.csvs(tmp_path / "data")
    plain, fast = (
        affinage.fit(model, data, out=tmp_path / str(one), compile=one, plan="full", precision="fp32", **QUICK)
        for one in (False, True)
    )
    assert losses(fast) == pytest.approx(losses(plain), rel=1e-3)


def test_two_processes_share_the_card(launch: Ranks, tmp_path: Path) -> None:
    """NCCL refuses two ranks on one GPU: their words travel by gloo, and they are one run."""
    model, data = tiny.bert(tmp_path / "model", **STILL), tiny.csvs(tmp_path / "data")
    words = ["fit", "--model", str(model), "--data", str(data), "--batch-size", "10", "--epochs", "2", "--precision", "fp32"]
    for count in (1, 2):
        launch.run(count, *words, "--out", str(tmp_path / str(count)), LOCAL_RANK="0", LOCAL_WORLD_SIZE=str(count))
    one, two = (affinage.load(tmp_path / str(count)) for count in (1, 2))
    assert two.record["hardware"]["ranks"] == 2 and "gpu" in two.record["hardware"]
    assert losses(two) == pytest.approx(losses(one), rel=1e-3)


# -------------------------------------------------------------------------------------------------- recorded updates
@pytest.mark.parametrize("kind", ["text", "cut", "image", "lora", "everything", "average"])
def test_recorded_updates_give_the_same_losses(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And far fewer launches: all steps but the first two of each shape."""
    options: dict[str, Any] = QUICK | {"plan": "full", "epochs": 6, "precision": "fp32", "augment": "none", "validation": 0}
    options |= {
        "cut": {"plan": "two-stage", "unfreeze": 1, "learning_rate": 3e-3},
        "lora": {"plan": "lora"},
        "everything": {"unfreeze": "everything"},
        "average": {"average": 0.2, "label_smoothing": 0.1},
    }.get(kind, {})
    if kind == "image":
        model, data = tiny.resnet(tmp_path / "model"), tiny.pictures(tmp_path / "data")
    else:
        model, data = tiny.bert(tmp_path / "model", **STILL), tiny.csvs(tmp_path / "data")
    runs = []
    for how in ("off", "on"):
        monkeypatch.setenv("AFFINAGE_GRAPHS", how)
        runs.append(affinage.fit(model, data, out=tmp_path / how, **options))
    plain, found = recorded(runs[0]), recorded(runs[1])
    assert plain["steps"] == 0 and found["shapes"] > 0, runs[1].record["stages"][-1]
    assert found["steps"] > found["shapes"]
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-3)


def test_dropout_is_drawn_as_ever_and_anew_at_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded or not, a step drops the same: attention runs by the same kernels either way."""
    model, data = tiny.bert(tmp_path / "model"), tiny.csvs(tmp_path / "data")
    options: dict[str, Any] = QUICK | {"plan": "full", "epochs": 6, "precision": "fp32"}
    whole = affinage.fit(model, data, out=tmp_path / "whole", **options)
    monkeypatch.setattr("affinage.replay.SEEN", 5)
    later = affinage.fit(model, data, out=tmp_path / "later", **options)
    assert 0 < recorded(later)["steps"] < recorded(whole)["steps"]
    assert losses(later) == pytest.approx(losses(whole), rel=1e-3)


def test_a_recogniser_is_not_recorded(tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    run = affinage.fit(
        tiny.wav2vec2(tmp_path / "model"),
        tiny.melodies(tmp_path / "data"),
        task="automatic-speech-recognition",
        out=tmp_path / "run",
        **QUICK,
    )
    assert "random numbers" in run.record["stages"][-1]["details"]["not_recorded"]  # frames are masked at random, by NumPy


def test_what_is_left_to_chance_is_not_recorded(tmp_path: Path) -> None:
    """Whole layers left out at random: what was recorded would leave out the same ones for ever."""
    model, data = tiny.bert(tmp_path / "model", **STILL), tiny.csvs(tmp_path / "data")
    run = Fitting.run

    def dropping(self: Fitting, *args: Any) -> None:
        layer = self.net.model.get_submodule(self.net.blocks[0])
        layer.register_forward_pre_hook(lambda *_: (torch.rand(()), None)[1])
        run(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fitting, "run", dropping)
        found = affinage.fit(model, data, out=tmp_path / "run", plan="full", **QUICK)
    assert "random numbers" in found.record["stages"][-1]["details"]["not_recorded"]


def test_the_card_goes_on_after_a_recording_that_failed() -> None:
    recorder, x = Recorder(), torch.ones(3, device="cuda")
    with recorder.aside():
        with pytest.raises(RuntimeError):
            recorder.record(lambda: print(x.sum().item()))
        recorder.sound(RuntimeError("recorded what cannot be"))
        launch = recorder.record(lambda: torch._foreach_add_([x], 1.0))
        launch()
        launch()
    assert x.tolist() == [3, 3, 3]


# ------------------------------------------------------------------------------------------------------------- NCCL
@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process that takes itself for one of several, so that it speaks NCCL: two would need two cards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(team, "launched", lambda: True)


def test_a_run_over_nccl(alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    model, data = tiny.bert(tmp_path / "model", **STILL), tiny.csvs(tmp_path / "data")
    spoken: set[str] = set()
    add = ranks.add

    def listening(tensors: Any) -> None:
        spoken.update(dist.get_backend() for _ in tensors)
        spoken.update(f"{t.device.type}" for t in tensors)
        add(tensors)

    monkeypatch.setattr(ranks, "add", listening)
    options: dict[str, Any] = dict(QUICK, plan="full", precision="fp32")
    one = affinage.fit(model, data, out=tmp_path / "one", **options)
    assert "cuda" in spoken and any("nccl" in word for word in spoken), spoken
    monkeypatch.setattr(team, "launched", lambda: False)
    monkeypatch.setenv("AFFINAGE_GRAPHS", "off")
    assert losses(one) == pytest.approx(losses(affinage.fit(model, data, out=tmp_path / "other", **options)), rel=1e-3)


def test_shards_over_nccl(alone: None, tmp_path: Path) -> None:
    """A block in parts (of one rank: whole) gives the gradients that it gives as it is, is saved and read as it lies on the card,
    and comes back as it was.
    """
    model, batch = FAMILIES["bert"].make()
    net = Net.of(model.eval(), batch)
    model.cuda()
    inputs = {name: value.cuda() for name, value in batch.items()}
    model(**inputs).logits.square().sum().backward()
    want = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.zero_grad()
    with team.joined(tmp_path):
        table = rates.resolve(net, (("*", 1.0),))
        shards = Shards(net, table)
        assert shards.mine
        model(**inputs).logits.square().sum().backward()
        shards.gradients()
        for name, part in shards.mine.items():
            if name in want:
                assert torch.allclose(shards.laid(name, part.grad).full_tensor(), want[name], rtol=1e-3, atol=1e-5), name
        saved = checkpoint.save(tmp_path / "made", 1, {n: shards.laid(n, p) for n, p in shards.mine.items()}, {})
        for name, part in checkpoint.read(saved, shards.mine.__contains__, shards.laid).items():
            assert part.to_local().device == shards.mine[name].device and torch.equal(part.to_local(), shards.mine[name]), name
        with torch.no_grad():
            for part in shards.mine.values():
                part.add_(1.0)
        shards.undo()
        for name, parameter in model.named_parameters():
            assert torch.allclose(parameter, before[name] + (1.0 if name in shards.mine else 0.0)), name
