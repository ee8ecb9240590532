"""Audio classification: a run on tones that a plain pipeline repeats, in the architectures that it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import affinage
from affinage import cli, sound
from affinage.tasks.audio_classification import task

from .. import tiny

pytest.importorskip("soundfile")


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tones(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def run(tones: Path, tmp_path_factory: pytest.TempPathFactory) -> affinage.Run:
    folder = tmp_path_factory.mktemp("run")
    return affinage.fit(tiny.wav2vec2(folder / "base"), tones, out=folder / "run", epochs=2, quiet=True)


def test_the_head_is_solved(run: affinage.Run) -> None:
    assert [stage["how"] for stage in run.record["plan"]["stages"]] == ["solve", "fit"]
    assert run.metrics["accuracy"] > 0.6 and run.classes == sorted(tiny.NOTES)
    assert not run.record["cuts"]["body"]["why"]


def test_a_plain_pipeline_says_the_same(run: affinage.Run, tones: Path) -> None:
    import transformers as T

    listen = T.pipeline("audio-classification", model=str(run.path), top_k=3)
    for path in sorted((tones / "test").rglob("*.wav"))[:4]:
        told = listen({"raw": sound.heard(path, 8000), "sampling_rate": 8000})
        scores = run.predict([path])[0]["scores"]
        assert {row["label"]: row["score"] for row in told} == pytest.approx(scores, abs=1e-4)


def test_predict_on_the_command_line(run: affinage.Run, tones: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "--run", str(run.path), str(tones / "test")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 9
    assert cli.main(["predict", "--run", str(run.path), str(tones / "gone.wav")]) == 2
    assert "no recording at" in capsys.readouterr().err


def test_mistakes_can_be_heard(run: affinage.Run) -> None:
    page = (run.path / "report.html").read_text(encoding="utf8")
    assert ("data:audio/flac" in page) == (run.metrics["accuracy"] < 1)


def test_ast(tmp_path: Path) -> None:
    import transformers as T

    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    T.ASTModel(T.ASTConfig(**sizes, max_length=64, num_mel_bins=32)).save_pretrained(tmp_path)
    T.ASTFeatureExtractor(max_length=64, num_mel_bins=32).save_pretrained(tmp_path)
    model, extractor = task.load(tmp_path, ("a", "b"), fresh=False, revision=None)
    rows = task.encode([(tiny.note(440, s, 16_000, 0), 16_000) for s in (0.2, 0.7)], extractor, model)
    batch = rows.batch(np.arange(2))
    assert batch.keys() == {"input_values"} and batch["input_values"].shape == (2, 64, 32)
    assert model(**batch).logits.shape == (2, 2)
    assert task.teach(batch, None, "light")[0]["input_values"].shape == (2, 64, 32)
