"""Speech recognition: the loss of torch, paths spelled right, vocabularies, and a run that a plain pipeline repeats."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import affinage
from affinage import cli, cut, dictation, hearing, plans, sound
from affinage.errors import AffinageError
from affinage.features import answered
from affinage.inputs import net_of, plan_of
from affinage.tasks.automatic_speech_recognition import made, missing, per_row, plain, spelled, task

from .. import recognisers, tiny

pytest.importorskip("soundfile")


def test_plain() -> None:
    assert plain("  Don't STOP — 'now', said Zoë: e-mail 42!  ") == "don't stop now said zoë e mail 42"
    assert plain("…") == "" and plain("it’s") == "it's"


def test_loss_is_that_of_torch() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 9, 5, requires_grad=True)
    targets = {
        "labels": torch.tensor([[1, 2, 2], [4, -1, -1], [3, 1, -1]]),
        "lengths": torch.tensor([3, 1, 2]),
        "frames": torch.tensor([9, 5, 7]),
        "blank": torch.tensor(0),
    }
    wanted = torch.nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), targets["labels"].clamp(min=0), targets["frames"], targets["lengths"]
    )
    assert torch.allclose(per_row(logits, targets).mean(), wanted)
    # by brute force: all paths of two frames that spell [1]: 11, 01, 10
    p = logits[0, :2].softmax(-1)
    one = {"labels": torch.tensor([[1]]), "lengths": torch.tensor([1]), "frames": torch.tensor([2]), "blank": torch.tensor(0)}
    paths = p[0, 1] * p[1, 1] + p[0, 0] * p[1, 1] + p[0, 1] * p[1, 0]
    assert torch.allclose(per_row(logits[:1, :2], one)[0], -paths.log())
    impossible = {**one, "labels": torch.tensor([[1, 1]]), "lengths": torch.tensor([2])}
    assert per_row(logits[:1, :2], impossible).item() == 0  # no path is long enough: nothing to learn, and nothing infinite


def test_paths_are_spelled_as_the_tokenizer_does() -> None:
    tokenizer = made(sorted("abc'"))
    draw = np.random.default_rng(0)
    for _ in range(50):
        path = draw.integers(0, len(tokenizer), 30)
        path[path == tokenizer.unk_token_id] = tokenizer.pad_token_id
        table = np.full((30, len(tokenizer)), 0.01)
        table[np.arange(30), path] = 0.9
        words = spelled(table, tokenizer)
        assert " ".join(word for word, *_ in words) == " ".join(tokenizer.decode(path).split())
        assert all(0 <= start < end <= 30 and sure == pytest.approx(0.9) for _, start, end, sure in words)
        assert all(a[2] <= b[1] for a, b in itertools.pairwise(words))


def test_vocabulary_of_the_base_or_of_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.wav2vec2(tmp_path / "bare")
    model, processor = task.load(folder, ("a", "b"), fresh=False, revision=None)
    assert model.config.vocab_size == len(processor.tokenizer) == 5 and model.config.pad_token_id == 0
    model.save_pretrained(tmp_path / "own")
    processor.save_pretrained(tmp_path / "own")
    same, kept = task.load(tmp_path / "own", ("b",), fresh=False, revision=None)
    assert (
        torch.equal(same.lm_head.weight, model.lm_head.weight) and kept.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    )
    assert missing(kept.tokenizer, ("a", "é")) == ["é"]
    other, new = task.load(tmp_path / "own", ("a", "é"), fresh=False, revision=None)
    assert "é" in new.tokenizer.get_vocab() and not torch.equal(other.lm_head.weight, model.lm_head.weight)
    forced, old = replace(task, vocabulary="base").load(tmp_path / "own", ("a", "é"), fresh=False, revision=None)
    assert "é" not in old.tokenizer.get_vocab() and "cannot write é" in capsys.readouterr().err
    assert torch.equal(forced.lm_head.weight, model.lm_head.weight)
    with pytest.raises(AffinageError, match="has no vocabulary of its own"):
        replace(task, vocabulary="base").load(folder, ("a",), fresh=False, revision=None)


def test_groups() -> None:
    assert task.groups(["zero", "one"] * 3) == ["zero", "one"] * 3
    assert task.groups(["this is said once", "and so is this"]) == ["row", "row"]


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # WavLM's own
@pytest.mark.parametrize("name", recognisers.FAMILIES)
def test_every_family(name: str, tmp_path: Path) -> None:
    """Loads, learns a step, counts its frames as the network does, answers a row alone as in company, and is cut at the head."""
    model, processor = task.load(recognisers.listener(name, tmp_path), ("a", "b"), fresh=False, revision=None)
    draw = np.random.default_rng(0)
    inputs = [(draw.normal(0, 0.1, n).astype(np.float32), 8_000) for n in (8_000, 5_200, 12_100, 8_000)]
    rows = task.encode(inputs, processor, model)
    aims = task.aims(["ab", "a b", "ba", "b"], rows, processor, model)
    model.train()
    outputs = model(**rows.batch(np.arange(4)))
    assert outputs.logits.shape[1] == rows.lengths.max()
    loss = task.loss(outputs, aims.batch(np.arange(4)), weights=None, smoothing=0.0)
    loss.backward()
    assert loss.isfinite()
    together, alone = answered(task, model, rows, processor, "fp32", aims), []
    for i in range(4):
        with torch.no_grad():
            only = np.array([i])
            alone += task.answer(model, rows.batch(only), rows.lengths[only], processor, aims.batch(only))
    if name not in ("wav2vec2-conformer", "wav2vec2-bert"):  # their convolutions look at what stands beside the padding
        assert [one["loss"] for one in together] == pytest.approx([one["loss"] for one in alone], rel=2e-3)
    net = net_of(task, model, rows.batch(np.arange(1)))
    assert net.head_name is not None or name == "parakeet"
    assert len(net.blocks) == 2


def test_cut_before_the_head_counts_frames(tmp_path: Path) -> None:
    model, processor = task.load(tiny.wav2vec2(tmp_path), ("a", "b"), fresh=False, revision=None)
    inputs = [(np.random.default_rng(i).normal(0, 0.1, 2000 + 700 * i).astype(np.float32), 8_000) for i in range(4)]
    rows = task.encode(inputs, processor, model)
    net = net_of(task, model, rows.batch(np.arange(2)))
    for k in (1, 2):
        found = cut.Cut(net, k, rows)
        batch = found.placed(rows.batch(np.arange(4)))
        wanted = model.eval()(**batch).logits
        got = found._forward(batch, found._unpacked(batch, found.packed(batch))).logits
        mask = rows.mask(batch)
        assert mask is not None and mask.sum(1).tolist() == rows.lengths.tolist()
        assert torch.allclose(wanted[mask.bool()], got[mask.bool()], atol=1e-5)
    assert found.address == "head" and found.share == pytest.approx(1, abs=0.05)


def test_windows_say_what_the_whole_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where attention has nothing to say beyond a window, the seams do not show: frames are in their places."""
    model, processor = task.load(tiny.wav2vec2(tmp_path), ("a", "b"), fresh=False, revision=None)
    for block in model.wav2vec2.encoder.layers:  # what looks at the whole recording
        torch.nn.init.zeros_(block.attention.out_proj.weight)
    rows = task.encode([(np.random.default_rng(0).normal(0, 0.1, 60_000).astype(np.float32), 8_000)], processor, model)
    batch = rows.batch(np.arange(1))
    model.eval()
    with torch.no_grad():
        whole = model(**batch).logits
        monkeypatch.setattr(hearing, "WINDOW", 120)
        monkeypatch.setattr(hearing, "OVERLAP", 30)
        parted = hearing.logits(model, batch, rows.lengths)
    assert parted.shape == whole.shape and torch.allclose(parted, whole, atol=1e-4)


@pytest.mark.parametrize("strength", ["light", "strong"])
def test_changed_rows_keep_their_lengths(strength: str) -> None:
    sounds = torch.zeros(3, 900)
    mask = torch.zeros(3, 900, dtype=torch.int64)
    for i, n in enumerate((900, 500, 700)):
        sounds[i, :n], mask[i, :n] = torch.randn(n), 1
    torch.manual_seed(1)
    one = hearing.changed({"input_values": sounds, "attention_mask": mask}, strength)
    assert not (one["input_values"][mask == 0]).any() and not torch.equal(one["input_values"], sounds)
    torch.manual_seed(1)
    two = hearing.changed({"input_values": sounds, "attention_mask": mask}, strength)
    assert torch.equal(one["input_values"], two["input_values"])
    spectra = torch.rand(2, 40, 8) + 1
    seen = hearing.changed({"input_features": spectra}, strength)["input_features"]
    assert ((seen == spectra) | (seen == 0)).all()
    assert hearing.changed({"input_features": spectra}, "none")["input_features"] is spectra


# --------------------------------------------------------------------------------------------------------------- a run
@pytest.fixture(scope="module")
def melodies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.melodies(tmp_path_factory.mktemp("melodies") / "data", train=16, validation=6, test=6)


@pytest.fixture(scope="module")
def tuned(melodies: Path) -> affinage.Run:
    """Two stages of two epochs each, from a base that knows nothing: enough for the folder, not for the words."""
    base = tiny.wav2vec2(melodies.parent / "base")
    with pytest.MonkeyPatch.context() as few:
        few.setattr(plans, "HEAD_STEPS", 2)
        return affinage.fit(base, melodies, out=melodies.parent / "tuned", epochs=2, quiet=True)


def test_stage_one_trains_the_head_on_what_was_computed_once(tuned: affinage.Run) -> None:
    record = tuned.record
    assert [stage["how"] for stage in record["plan"]["stages"]] == ["fit", "fit"]
    assert record["cuts"]["head"]["address"] == "head" and not record["cuts"]["head"]["why"]
    assert record["cuts"]["body"]["address"] == "blocks.0"
    head = record["stages"][0]
    assert isinstance(head["details"]["converged"], bool)
    assert head["details"]["trained_parameters"] == sum(
        part["parameters"] for part in record["model"]["anatomy"] if part["address"] == "head"
    )


@pytest.mark.slow
def test_it_learns(tmp_path: Path) -> None:
    """From nothing, and then by a head drawn anew on features that tell the tones apart."""
    data = tiny.melodies(tmp_path / "data", train=48)
    base = tiny.wav2vec2(tmp_path / "base", hidden_size=48, num_attention_heads=4)
    scratch = affinage.fit(base, data, plan="scratch", out=tmp_path / "scratch", epochs=60, learning_rate=3e-3, batch_size=8, quiet=True)  # fmt: skip
    assert scratch.metrics["cer"] < 0.5, scratch.metrics
    frozen = affinage.fit(scratch.path, data, plan="frozen", vocabulary="data", out=tmp_path / "frozen", quiet=True)
    assert frozen.metrics["cer"] < 0.6, frozen.metrics
    assert frozen.record["stages"][0]["details"]["steps"] > 30


def test_a_plain_pipeline_says_the_same(tuned: affinage.Run, melodies: Path) -> None:
    import transformers as T

    listen = T.pipeline("automatic-speech-recognition", model=str(tuned.path))
    for path in sorted(melodies.glob("test-*.wav"))[:4]:
        said = tuned.predict([path])[0]
        assert listen({"raw": sound.heard(path, 8000), "sampling_rate": 8000})["text"] == said["text"]
        assert [word["word"] for word in said["words"]] == said["text"].split()
        assert all(0 <= w["start"] < w["end"] <= sound.seconds(path) + 0.02 and 0 < w["confidence"] <= 1 for w in said["words"])


def test_evaluate_and_the_report(tuned: affinage.Run, melodies: Path) -> None:
    assert tuned.evaluate(melodies)["wer"] == pytest.approx(tuned.metrics["wer"])
    page = (tuned.path / "report.html").read_text(encoding="utf8")
    assert "word error rate" in page and "media-src data:" in page
    if tuned.metrics["exact"] < 1:
        assert "data:audio/flac;base64," in page and "What it mishears" in page
    card = (tuned.path / "README.md").read_text(encoding="utf8")
    assert 'pipeline("automatic-speech-recognition"' in card and "word error rate" in card
    import pyarrow.parquet as pq

    table = pq.read_table(tuned.path / "predictions.parquet").to_pylist()
    assert len(table) == 12 and json.loads(table[0]["words"]) is not None
    assert {row["split"] for row in table} == {"validation", "test"}


def test_stopped_and_gone_on_with(tuned: affinage.Run, melodies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, in the middle of the second stage."""
    from affinage.fit import Fitting

    monkeypatch.setattr(plans, "HEAD_STEPS", 2)
    asked = {"epochs": 2, "quiet": True, "learning_rate": 1e-3, "augment": "light"}
    whole = affinage.fit(tuned.path, melodies, out=tmp_path / "whole", **asked)
    monkeypatch.setenv("AFFINAGE_CHECKPOINT_SECONDS", "0")
    step = Fitting.step

    def broken(self: Fitting, batch: np.ndarray) -> float:
        if self.stage.name == "body" and self.progress.step == 1:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Fitting, "step", broken)
    with pytest.raises(KeyboardInterrupt):
        affinage.fit(tuned.path, melodies, out=tmp_path / "parted", **asked)
    monkeypatch.setattr(Fitting, "step", step)
    parted = affinage.fit(resume=True, out=tmp_path / "parted", quiet=True)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parted"))
    assert one == two and whole.metrics == parted.metrics


def test_decoding_with_words_that_are_known(tuned: affinage.Run, melodies: Path, tmp_path: Path) -> None:
    """Of a run, and in a fit, which remembers it; what cannot be is refused before anything trains."""
    pytest.importorskip("flashlight.lib.text.decoder", reason="pip install 'affinage[beam]' (Python 3.11 and 3.12)")
    words = tmp_path / "words.txt"
    words.write_text("low\nmid\n")
    paths = sorted(melodies.glob("test-*.wav"))
    heard = affinage.load(tuned.path, language_model=words).predict(paths)
    assert {word for one in heard for word in one["text"].split()} <= {"low", "mid"}
    assert any(one["text"] for one in heard) and heard != tuned.predict(paths)
    with pytest.raises(AffinageError, match="a run is not loaded with language_mode, did you mean 'language_model'"):
        affinage.load(tuned.path, language_mode=words)
    made = affinage.fit(tuned.path, melodies, plan="frozen", epochs=1, language_model=words, out=tmp_path / "run", quiet=True)
    again = affinage.load(made.path)
    assert again.evaluate(melodies)["wer"] == pytest.approx(made.metrics["wer"])
    assert {word for one in again.predict(paths) for word in one["text"].split()} <= {"low", "mid"}
    with pytest.raises(AffinageError, match="cannot read the language model"):
        affinage.fit(tuned.path, melodies, language_model=tmp_path / "gone.arpa", out=tmp_path / "other", quiet=True)
    assert not (tmp_path / "other").exists()


def test_bad_input(tuned: affinage.Run, melodies: Path, tmp_path: Path) -> None:
    import soundfile

    rows = [(f"{i}.wav", ["low", "mid"][i % 2]) for i in range(6)]
    for name, word in rows:
        soundfile.write(tmp_path / name, tiny.note(tiny.NOTES[word], 0.3, 8000, int(name[0])), 8000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(4000), 8000)
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).normal(0, 0.1, 8000 * 121).astype(np.float32), 8000)
    (tmp_path / "empty.wav").write_bytes(b"")
    rows += [("silent.wav", "low"), ("long.wav", "low"), ("empty.wav", "low"), ("gone.wav", "low"), ("0.wav", "")]
    table = tmp_path / "metadata.csv"
    table.write_text("file_name,transcription\n" + "\n".join(",".join(row) for row in rows), encoding="utf8")
    (finding,) = [f for f in affinage.check(tmp_path) if f.kind == "unreadable"]
    assert len(finding.rows) == 5
    from affinage.check.content import sounds
    from affinage.data import read

    found = read(tmp_path)
    told = {why for _, why in found.unreadable} | {why for _, why in sounds(found.train)[1]}
    assert told == {"silent", "longer than 120 seconds: cut it at its pauses", "empty file", "no such file", "no transcript"}
    table.write_text("file_name,transcription\ngone.wav,low\n", encoding="utf8")
    with pytest.raises(AffinageError, match=r"none of the 1 audio files that metadata\.csv names is there"):
        affinage.check(tmp_path)
    with pytest.raises(AffinageError, match=r"silent\.wav is silent .*: there is nothing to hear in it"):
        tuned.predict([tmp_path / "silent.wav"])
    with pytest.raises(AffinageError, match="an empty file"):
        tuned.predict([tmp_path / "empty.wav"])
    for option in ({"class_weights": "balanced"}, {"label_smoothing": 0.1}, {"views": 2}):
        with pytest.raises(AffinageError, match="not for automatic-speech-recognition"):
            plan_of(model=tuned.path, data=melodies, **option)


# --------------------------------------------------------------------------------------------- token by token
LANGUAGE: dict[str, dict[str, Any]] = {"moonshine": {}, "whisper": {"language": "en"}}


@pytest.mark.parametrize("name", recognisers.WRITERS)
def test_token_by_token(name: str, melodies: Path, tmp_path: Path) -> None:
    """Loss of the model's own, a run by the plan full that its folder repeats, and no head that learns alone."""
    folder = recognisers.writer(name, tmp_path / "base")
    model, processor = replace(task, **LANGUAGE[name]).load(folder, ("a",), fresh=False, revision=None)
    rows = task.encode([melodies / "train-0.wav", melodies / "train-2.wav"], processor, model)
    aims = task.aims(["low", "mid high"], rows, processor, model)
    batch, targets = task.teach(rows.batch(np.arange(2)), aims.batch(np.arange(2)), "none")
    model.eval()
    ours = task.loss(model(**batch), targets, weights=None, smoothing=0.0)
    theirs = model(**{k: v for k, v in rows.batch(np.arange(2)).items() if k != "decoder_input_ids"}, labels=targets["labels"])
    assert torch.allclose(ours, theirs.loss, atol=1e-4)
    words = ["low", "mid", "high", "mid low"]
    every = [{"audio": (tiny.note(tiny.NOTES[w.split()[0]], 0.3, 16_000, i), 16_000), "text": w} for i, w in enumerate(words * 2)]
    data = {"train": every[:6], "test": every[6:]}
    with pytest.raises(AffinageError, match="is its table of words, which it reads first: use --plan full"):
        plan_of(model=folder, data=data, **LANGUAGE[name])
    run = affinage.fit(folder, data, plan="full", epochs=1, out=tmp_path / "run", quiet=True, **LANGUAGE[name])
    assert not run.record["plan"]["stages"][0]["rates"][0][0].startswith("head")
    (said,) = run.predict([every[0]["audio"]])
    assert said["words"] == [] and 0 < said["confidence"] <= 1
    assert run.evaluate(data)["cer"] == pytest.approx(run.metrics["cer"])


@pytest.mark.parametrize("name", recognisers.WRITERS)
def test_it_is_as_sure_of_a_transcript_as_of_a_target(name: str, melodies: Path, tmp_path: Path) -> None:
    """Both are read behind the same prompt: with Whisper the language, the task and no times, which `generate` leaves out."""
    model, processor = replace(task, **LANGUAGE[name]).load(
        recognisers.writer(name, tmp_path), ("a",), fresh=False, revision=None
    )
    with torch.no_grad():  # sure of something other than the same token for ever
        for parameter in model.parameters():
            parameter.mul_(3)
    prompt = dictation.prompt(processor.tokenizer, model)
    assert processor.tokenizer.convert_ids_to_tokens(prompt) == (
        ["<s>"] if name == "moonshine" else ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    )
    rows = task.encode([melodies / "train-0.wav"], processor, model)
    (answer,) = answered(task, model.eval(), rows, processor, "fp32")
    batch = {k: v for k, v in rows.batch(np.arange(1)).items() if k != "decoder_input_ids"}
    ids, chances, sayable = list(prompt), [], processor.tokenizer.vocab_size  # behind them come Whisper's times
    with torch.no_grad():
        for _ in range(32):
            found = model(**batch, decoder_input_ids=torch.tensor([ids])).logits[0, -1].float().softmax(-1)
            ids.append(int(found[:sayable].argmax()))
            if ids[-1] in processor.tokenizer.all_special_ids:
                break
            chances.append(float(found[ids[-1]]))
    assert chances and answer["confidence"] == pytest.approx(float(np.exp(np.mean(np.log(chances)))), rel=1e-3)


@pytest.mark.parametrize("name", recognisers.WRITERS)
def test_what_is_frozen_is_heard_once(name: str, tmp_path: Path) -> None:
    """The decoder alone learns: the encoder runs over each recording once, validation or not, and answers are the same."""
    folder = recognisers.writer(name, tmp_path / "base")
    words = ["low", "mid", "high", "mid low"]
    every = [{"audio": (tiny.note(tiny.NOTES[w.split()[0]], 0.3, 16_000, i), 16_000), "text": w} for i, w in enumerate(words * 3)]
    data = {"train": every[:6], "validation": every[6:9], "test": every[9:]}
    options: dict[str, Any] = {"plan": "full", "unfreeze": 1, "epochs": 2, "quiet": True, **LANGUAGE[name]}
    cached = affinage.fit(folder, data, out=tmp_path / "cached", **options)
    assert not cached.record["cuts"]["body"]["why"]  # recordings of one length: Moonshine's norm sees the padding of others
    whole = affinage.fit(folder, data, out=tmp_path / "whole", cache_gb=1e-9, **options)
    assert whole.record["cuts"]["body"]["why"]
    losses = [
        [json.loads(line)["value"] for line in (run.path / "records.jsonl").read_text().splitlines() if '"loss"' in line]
        for run in (cached, whole)
    ]
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert cached.metrics["wer"] == whole.metrics["wer"]

    model, processor = replace(task, **LANGUAGE[name]).load(folder, ("a",), fresh=False, revision=None)
    rows = task.encode([row["audio"] for row in data["test"]], processor, model)
    aims = task.aims([row["text"] for row in data["test"]], rows, processor, model)
    calls: list[int] = []
    model.get_encoder().layers[0].register_forward_hook(lambda *_: calls.append(1))
    answered(task, model.eval(), rows, processor, "fp32", aims)
    assert len(calls) == 1  # for what is written, how sure that is, and the loss


def test_whisper_is_told_its_language(tmp_path: Path, melodies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recognisers.writer("whisper", tmp_path / "base")
    data = {"train": [{"audio": melodies / f"train-{i}.wav", "text": "low"} for i in range(4)]}
    for options, says in (
        ({}, r"the model writes 3 languages: say which one is spoken, as in --language en"),
        ({"language": "fr"}, r"knows no language 'fr'.*: it writes de, en, zh"),
    ):
        with pytest.raises(AffinageError, match=says):
            plan_of(model=folder, data=data, plan="full", **options)
    for other in (recognisers.writer("moonshine", tmp_path / "moonshine"), tiny.wav2vec2(tmp_path / "ctc")):
        with pytest.raises(AffinageError, match="is not told a language: leave --language out"):
            plan_of(model=other, data=data, plan="full", language="en")

    model, processor = replace(task, language="German").load(folder, ("a",), fresh=False, revision=None)
    assert model.generation_config.language == "de" and "<|de|>" in processor.tokenizer.decode(
        processor.tokenizer("low").input_ids
    )
    model.save_pretrained(tmp_path / "run")
    processor.save_pretrained(tmp_path / "run")
    model, processor = task.reload(tmp_path / "run", ())  # the folder names it now
    assert model.generation_config.language == "de" and "<|de|>" in processor.tokenizer.decode(
        processor.tokenizer("low").input_ids
    )
    assert cli.main(["show", "--model", str(folder)]) == 0
    assert "WhisperForConditionalGeneration, automatic-speech-recognition" in capsys.readouterr().out
    with pytest.raises(AffinageError, match="say which one is spoken"):
        affinage.fit(folder, data, plan="scratch", out=tmp_path / "scratch", quiet=True)
    fresh, _ = replace(task, language="en").load(folder, ("a",), fresh=True, revision=None)
    assert fresh.generation_config.lang_to_id == model.generation_config.lang_to_id


def test_whisper_hears_half_a_minute(tmp_path: Path) -> None:
    model, processor = replace(task, language="en").load(
        recognisers.writer("whisper", tmp_path), ("a",), fresh=False, revision=None
    )
    with pytest.raises(AffinageError, match="lasts 31 seconds, and the model hears 30 at most: cut it"):
        task.encode([(np.ones(31 * 8000, np.float32) / 2, 8000)], processor, model)
