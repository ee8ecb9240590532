"""What is frozen runs once: the same weights as without, when it pays and when it cannot be, and where the rows are kept."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertModel

import affinage
from affinage import card, filling, frozen, record, store
from affinage.card import OnCard
from affinage.frozen import Frozen, computed_once
from affinage.net import Net
from affinage.pictures import ImageRows
from affinage.progress import duration
from affinage.store import Store
from affinage.tasks.text_classification import TokenRows
from affinage.types import Rows, Stage
from affinage.views import Augmented, Views

from . import tiny
from .zoo import FAMILIES

TOP: Any = (("head", 1e-3), ("blocks.-1", 1e-3), ("*", None))
STAGE = Stage("body", "fit", TOP, epochs=3, batch=8)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("AFFINAGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def sentences(seed: int = 0, count: int = 12, low: int = 3, high: int = 15) -> TokenRows:
    draw = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum(draw.integers(low, high, count))]).astype(np.int64)
    return TokenRows(draw.integers(5, 90, starts[-1]).astype(np.int32), starts, 0)


def bert() -> Net:
    model, batch = FAMILIES["bert"].make()
    return Net.of(model, batch)


def once(net: Net, stage: Stage = STAGE, rows: dict[str, Rows] | None = None, **options: Any) -> Frozen:
    given = {"train": sentences(), "validation": sentences(1, 5)} if rows is None else rows
    return computed_once(net, stage, given, **{"precision": "fp32", "budget": 1.0, **options})


def logits(found: Frozen, split: str = "train") -> torch.Tensor:
    found.forward.eval()
    rows = found.rows[split]
    with torch.no_grad():
        return found.forward(**rows.batch(np.arange(len(rows)))).logits


# ---------------------------------------------------------------------------------------------------------- what it gives
def test_both_splits_begin_at_the_cut(cache: Path) -> None:
    net = bert()
    plain, found = once(net, budget=0), once(net)
    for split in ("train", "validation"):
        assert (logits(found, split) - logits(plain, split)).abs().max() <= 1e-6
        assert np.array_equal(found.rows[split].lengths, plain.rows[split].lengths)
    facts = found.facts
    tokens = sum(int(rows.lengths.sum()) for rows in plain.rows.values())
    assert facts["address"] == "blocks.2" and facts["why"] == "" and facts["bytes"] == tokens * 32 * 4
    assert facts["share"] == pytest.approx(2 / 3, abs=0.02) and facts["dtype"] == "float32" and facts["kept"] == "disk"
    assert not facts["reused"] and facts["seconds"] > 0 and facts["cpu_seconds"] > 0
    assert len(list(cache.iterdir())) == 2


def test_what_it_will_take_is_told_before_it_begins(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes and seconds of each split before its first row, and what is saved by all; what is there already takes nothing."""
    labels: list[str] = []
    monkeypatch.setattr(frozen, "pace", lambda *_: 0.25)  # seconds a token
    begin: dict[str, Any] = {"start": lambda label, rows: labels.append(label)}
    facts = once(bert(), **begin).facts
    tokens = [int(rows.lengths.sum()) for rows in (sentences(), sentences(1, 5))]
    told = [f"({n * 128 / 1e6:.1f} MB, about {duration(n / 4)})" for n in tokens]
    assert [label[label.index("(") :] for label in labels] == told
    taken = sum(tokens) / 4 + sum(tokens) * 128 / filling.WRITTEN
    assert facts["estimate"] == {"seconds": round(taken, 3), "saved_seconds": 3 * sum(tokens) / 4}
    again = once(bert(), **begin).facts
    assert again["reused"] and "estimate" not in again and len(labels) == 2


def test_long_work_is_told_in_a_line_that_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it saves; short work is not."""
    notes: list[str] = []
    monkeypatch.setattr(frozen, "pace", lambda *_: 0.25)
    facts = once(bert(), note=notes.append).facts
    taken, saved = (duration(facts["estimate"][name]) for name in ("seconds", "saved_seconds"))
    size = f"{facts['bytes'] / 1e6:.1f} MB"
    assert notes == [f"stage body: to compute once what is frozen ({size}, about {taken}) saves {saved}"]
    monkeypatch.setattr(frozen, "pace", lambda *_: 0.01)
    once(bert(), rows={"train": sentences(3)}, note=notes.append)
    assert len(notes) == 1
    monkeypatch.setattr(frozen, "pace", lambda *_: 0.25)
    facts = once(bert(), Stage("head", "solve", (("classifier.*", 1.0), ("*", None))), ahead=True, note=notes.append).facts
    assert facts["address"] == "head" and notes[1].endswith(" is kept for other runs"), notes


def test_what_does_not_pay_is_not_stored(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes longer than twice what the epochs save; a stage that has begun with its cut goes on with it."""
    monkeypatch.setattr(frozen, "pace", lambda *_: 1e-4)
    monkeypatch.setattr(frozen, "WRITTEN", 1e3)
    labels: list[str] = []
    found = once(bert(), start=lambda label, rows: labels.append(label))
    assert found.facts["address"] == "blocks.2" and not labels and not list(cache.glob("*/*"))
    assert re.fullmatch(r"to compute and write it once would take about 1\d s and save 0.0 s", found.facts["why"])
    assert found.forward is not None and set(found.rows["train"].batch(np.arange(2))) == {"input_ids", "attention_mask"}
    assert once(bert(), before={"why": "", "address": "blocks.2"}).facts["kept"] == "disk"


def test_it_is_found_again(cache: Path) -> None:
    """By another run on the same frozen weights and rows, whatever its head and top; not where anything below differs."""
    first = once(bert())
    net = bert()
    with torch.no_grad():
        for name, parameter in net.model.named_parameters():
            if net.parameters[name] in ("blocks.2", "head"):
                parameter.add_(1.0)
    net.model.config.id2label = {0: "x", 1: "y", 2: "z"}  # type: ignore[union-attr]
    assert once(net).facts["reused"]
    assert torch.equal(logits(once(bert())), logits(first))

    def other(change: str) -> dict[str, Any]:
        net, rows = bert(), {"train": sentences(), "validation": sentences(1, 5)}
        if change == "weights":
            with torch.no_grad():
                net.model.get_parameter("bert.encoder.layer.1.output.dense.bias")[0] += 1e-6
        elif change == "config":
            net.model.config.layer_norm_eps = 1e-6  # type: ignore[union-attr, assignment]
        elif change == "activation":  # of a loaded network, which its configuration need not tell
            net.model.get_submodule("bert.encoder.layer.0.intermediate").intermediate_act_fn = torch.nn.ReLU()
            net = Net.of(net.model, sentences().batch(np.arange(1)))
        elif change == "epsilon":
            net.model.get_submodule("bert.embeddings.LayerNorm").eps = 0.5  # type: ignore[assignment]
        elif change == "hook":
            net.model.get_submodule("bert.encoder.layer.0").register_forward_hook(lambda module, args, output: None)
        elif change == "rows":
            rows["validation"] = sentences(2, 5)
        stage = replace(STAGE, rates=(("blocks.1", 1e-3), *TOP)) if change == "cut" else STAGE
        usual = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if change == "products" else usual)  # fp32 in name, and TF32 where there is any
        try:
            return once(net, stage, rows, precision="bf16" if change == "precision" else "fp32").facts
        finally:
            torch.set_float32_matmul_precision(usual)

    for change in ("weights", "config", "activation", "epsilon", "hook", "rows", "cut", "precision", "products"):
        assert not other(change)["reused"], change


def test_statistics_are_weights(cache: Path) -> None:
    """Batch norm's running mean below the cut is part of the key."""
    for moved in (False, True):
        model, batch = FAMILIES["resnet"].make()
        if moved:
            model.resnet.embedder.embedder.normalization.running_mean += 1
        from affinage.pictures import ImageRows

        draw = np.random.default_rng(0)
        pixels = draw.integers(0, 255, (6, 3, 32, 32)).astype(np.uint8)
        rows: dict[str, Rows] = {"train": ImageRows(pixels, np.full(3, 1 / 64, np.float32), np.full(3, -1, np.float32))}
        net = Net.of(model, batch)
        assert not once(net, rows=rows).facts["reused"]
        assert once(net, rows=rows).facts["reused"]


def test_bf16_halves_what_would_not_fit(cache: Path) -> None:
    net = bert()
    size = once(net).facts["bytes"]
    half = once(net, precision="bf16", budget=0.7 * size / 1e9).facts
    assert half["dtype"] == "bfloat16" and half["bytes"] == size // 2
    assert once(net, precision="bf16").facts["dtype"] == "float32"  # what the network leaves there, where there is room
    found, plain = once(net, precision="bf16", budget=0.7 * size / 1e9), once(net, budget=0)
    assert (logits(found) - logits(plain)).abs().max() < 0.02 * logits(plain).abs().max()


def test_a_batch_that_did_not_fit_is_halved(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than two rows at once are refused below the cut: what is stored is the same but for rounding."""
    rows: dict[str, Rows] = {"train": sentences()}
    plain, small = once(bert(), rows=rows), bert()
    refused: list[int] = []

    def refuse(_: torch.nn.Module, args: Any) -> None:
        if len(args[0]) > 2:
            refused.append(len(args[0]))
            raise torch.OutOfMemoryError("full")

    monkeypatch.setenv("AFFINAGE_CACHE", str(cache / "other"))
    looked = frozen._columns  # what a look at two batches says of the shapes is not what is tested
    monkeypatch.setattr(frozen, "_columns", lambda *args: (looked(*args), _hooked())[0])

    def _hooked() -> None:
        small.model.get_submodule(small.blocks[1]).register_forward_pre_hook(refuse)

    halved = once(small, rows=rows)
    assert max(refused) == 12 and not halved.facts["why"] and not halved.facts["reused"]
    whole, parts = (found.rows["train"].batch(np.arange(12)) for found in (plain, halved))
    assert whole.keys() == parts.keys()
    assert all(torch.allclose(whole[name].float(), parts[name].float(), atol=1e-5) for name in whole)


# -------------------------------------------------------------------------------------------------------------- on a card
@pytest.fixture
def on_card(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands for a card with room for everything."""
    monkeypatch.setattr(card, "room", lambda where, size: True)


def test_what_a_card_makes_fast_stays_there(on_card: None, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is the same to the last bit as what would have been stored; nothing is written."""
    monkeypatch.setattr(filling, "WRITTEN", 0.0)
    net = bert()
    found = once(net)
    assert found.facts["kept"] == "card" and not found.facts["reused"] and not cache.exists()
    assert isinstance(found.rows["train"], frozen.Captured) and isinstance(found.rows["train"].entry, OnCard)
    monkeypatch.setattr(card, "room", lambda where, size: False)
    for split in ("train", "validation"):
        assert torch.equal(logits(found, split), logits(once(net), split))


def test_what_takes_a_card_long_is_stored_too(on_card: None, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "WRITTEN", float("inf"))
    monkeypatch.setattr("affinage.filling.batched", lambda lengths, *_: np.array_split(np.argsort(-lengths), 3))
    net = bert()
    first, again = once(net), once(net)
    assert first.facts["kept"] == again.facts["kept"] == "disk" and not first.facts["reused"] and again.facts["reused"]
    assert len(list(cache.iterdir())) == 2
    for found in (first, again):
        assert isinstance(found.rows["train"], frozen.Captured) and isinstance(found.rows["train"].entry, OnCard)
        assert torch.equal(logits(found), logits(first))


def test_a_card_that_has_no_room_after_all(on_card: None, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(OnCard, "__init__", full)
    net = bert()
    found = once(net)
    assert found.facts["kept"] == "disk" and (logits(found) - logits(once(net, budget=0))).abs().max() <= 1e-6


# ----------------------------------------------------------------------------------------------------------------- pictures
def photographs(count: int = 6) -> ImageRows:
    draw = np.random.default_rng(0)
    return ImageRows(
        draw.integers(0, 255, (count, 3, 32, 32)).astype(np.uint8), np.full(3, 1 / 64, np.float32), np.full(3, -1, np.float32)
    )


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_pictures_are_not_read_above_a_cut(family: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = FAMILIES[family].make()
    net, rows = Net.of(model, batch), photographs()
    plain, found = once(net, budget=0, rows={"train": rows}), once(net, rows={"train": rows})
    monkeypatch.setattr(ImageRows, "batch", None)
    seen = found.rows["train"].batch(np.arange(6))["pixel_values"]
    assert seen.shape == (6, 3, 32, 32) and seen.untyped_storage().nbytes() == 4 and not found.facts["why"]
    got = logits(found)
    monkeypatch.undo()
    assert (got - logits(plain)).abs().max() <= 1e-6


def test_pictures_that_are_read_above_a_cut_are_there(cache: Path) -> None:
    model, batch = FAMILIES["resnet"].make()
    forward = model.forward

    def brighter(pixel_values: torch.Tensor, **more: Any) -> Any:
        found = forward(pixel_values, **more)
        found.logits = found.logits + pixel_values.mean((1, 2, 3))[:, None]
        return found

    model.forward = brighter
    net, rows = Net.of(model, batch), photographs()
    plain, found = once(net, budget=0, rows={"train": rows}), once(net, rows={"train": rows})
    assert not found.facts["why"] and (logits(found) - logits(plain)).abs().max() <= 1e-6


def test_how_bytes_become_numbers_is_part_of_the_key(cache: Path) -> None:
    model, batch = FAMILIES["resnet"].make()
    net, rows = Net.of(model, batch), photographs()
    for shown, reused in ((rows, False), (rows, True), (replace(rows, shift=rows.shift + 1), False)):
        assert once(net, rows={"train": shown}).facts["reused"] is reused


# ------------------------------------------------------------------------------------------------------------- when it is not
@pytest.mark.parametrize(
    ("stage", "options", "why", "address"),
    [
        (STAGE, {"budget": 0}, "the cache is off", None),
        (replace(STAGE, epochs=1), {}, "one epoch looks at each row once", "blocks.2"),
        (replace(STAGE, augment="light"), {}, "augmentation 'light' changes the rows each time", "blocks.2"),
        (replace(STAGE, mix=0.5), {"views": 2}, "pictures are mixed anew each time", "blocks.2"),
        (replace(STAGE, rates=(("*", 1e-3),)), {}, "what stands before the first block learns", None),
        (replace(STAGE, rates=(("blocks", 1e-3), ("*", None))), {}, "it saves 0% of a forward pass", None),
        (STAGE, {"budget": 1e-6}, "MB are more than --cache-gb 1e-06", "blocks.2"),
        (STAGE, {"rows": {"train": sentences(0, 0)}}, "there are no rows", "blocks.2"),
        (
            STAGE,
            {"rows": {"train": sentences(0, 5, 4, 5), "validation": sentences(0, 5, 6, 7)}},
            "each split has rows of one length only",
            "blocks.2",
        ),
    ],
)
def test_why_not(stage: Stage, options: dict[str, Any], why: str, address: str | None, cache: Path) -> None:
    net = bert()
    found = once(net, stage, **options)
    assert why in found.facts["why"] and found.facts["address"] == address
    assert found.forward is net.model and not any(isinstance(rows, frozen.Captured) for rows in found.rows.values())
    assert not cache.exists()


def test_no_blocks(cache: Path) -> None:
    model, batch = FAMILIES["albert_shares_one_block"].make()
    found = once(Net.of(model, batch), replace(STAGE, rates=(("head", 1e-3), ("*", None))))
    assert "no chain of two or more blocks" in found.facts["why"] and found.facts["address"] is None


def test_a_look_that_fails_is_no_reason_to_stop(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("a shape\nthat nobody expected")

    monkeypatch.setattr(frozen, "Cut", broken)
    assert once(bert()).facts["why"] == "looking at it failed (RuntimeError: a shape that nobody expected)"


def test_a_stage_goes_on_as_it_began(cache: Path) -> None:
    before = {"address": "blocks.2", "why": "0.1 MB fit neither in x nor in memory"}
    assert once(bert(), before=before).facts == before
    assert once(bert(), before=once(bert()).facts).facts["reused"]


# ----------------------------------------------------------------------------------------------------------- when it goes wrong
def test_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("AFFINAGE_CACHE", str(tmp_path / "file" / "cache"))
    net = bert()
    found = once(net)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("cannot be written (Not a directory)" in line for line in lines)  # one a split
    assert "MB stay in memory, for this run only" in lines[0]
    assert found.facts["kept"] == "memory" and (logits(found) - logits(once(net, budget=0))).abs().max() <= 1e-6

    monkeypatch.setattr(filling, "_free_memory", lambda: 1000.0)
    found = once(net)
    assert "in memory it would take" in capsys.readouterr().err
    assert "fit neither in" in found.facts["why"] and found.forward is net.model


def test_the_disk_fills_up_on_the_way(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    net = bert()
    kept = once(net)
    calls = iter(range(10))
    add = store.Writer.add

    def full(self: store.Writer, *args: Any) -> None:
        if self.part is not None and next(calls) == 0:
            raise OSError(28, "No space left on device")
        add(self, *args)

    monkeypatch.setattr(store.Writer, "add", full)
    other = {"train": sentences(5)}
    found = once(net, rows=other)
    assert "No space left on device" in capsys.readouterr().err and found.facts["kept"] == "memory"
    assert (logits(found) - logits(once(net, rows=other, budget=0))).abs().max() <= 1e-6
    assert once(net).facts["reused"] and kept.facts["kept"] == "disk"  # what was finished is still there
    assert not list(cache.glob(".*"))


def test_damage_is_told_and_mended(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = bert()
    first = logits(once(net))
    for entry in cache.iterdir():
        data = bytearray((entry / "0.bin").read_bytes())
        data[5] ^= 1
        (entry / "0.bin").write_bytes(data)
    found = once(net)
    assert capsys.readouterr().err.count("is damaged (0.bin is not the file that was written): it is computed again") == 2
    assert not found.facts["reused"] and torch.equal(logits(found), first)
    assert once(net).facts["reused"] and capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------------------------------------ whole runs
def texts(folder: Path, words: int | None = None) -> Path:
    """The tiny texts; with `words`, up to 40 a split of that many words: five whole batches of eight."""
    tiny.csvs(folder, **(dict(train=240, validation=60, test=60) if words else {}))
    for path in folder.glob("*.csv") if words else ():
        head, *lines = path.read_text().splitlines()
        chosen = [line for line in lines if len(line.split(",")[0].split()) == words][:40]
        path.write_text("\n".join([head, *chosen]) + "\n")
    return folder


def facts_of(run: affinage.Run) -> list[Any]:
    return [fact._replace(seconds=0) for fact in record.read(run.path / "records.jsonl")]


@pytest.mark.parametrize("kind", ["text", "image"])
def test_the_same_weights_bit_by_bit(kind: str, cache: Path, tmp_path: Path) -> None:
    """Dropout and all, in fp32: losses, scores and weights of the run that goes through the whole network every time.

    The texts have one length, 8 tokens: in batches of another shape the kernels may round otherwise (see below).
    """
    if kind == "text":
        model, data = tiny.bert(tmp_path / "model"), texts(tmp_path / "data", words=6)
    else:
        model, data = tiny.resnet(tmp_path / "model"), tiny.pictures(tmp_path / "data")
    options: dict[str, Any] = dict(plan="full", unfreeze=1, epochs=4, batch_size=8, precision="fp32", augment="none", quiet=True)
    runs = [
        affinage.fit(model, data, out=tmp_path / str(i), cache=how, learning_rate=3e-3, **options)
        for i, how in enumerate(("off", "auto", "auto"))
    ]
    for run in runs[1:]:
        assert facts_of(run) == facts_of(runs[0])
        assert (run.path / "model.safetensors").read_bytes() == (runs[0].path / "model.safetensors").read_bytes()
    assert runs[0].record["data"]["rows"]["train"] == (40 if kind == "text" else 36)
    assert len({fact.value for fact in facts_of(runs[0]) if fact.name == "loss"}) == 4
    cuts = [run.record["cuts"]["body"] for run in runs]
    assert cuts[0] == {"address": None, "why": "the cache is off"}
    assert cuts[1]["address"] == ("blocks.1" if kind == "text" else "blocks.2") and not cuts[1]["reused"] and cuts[2]["reused"]
    assert cuts[1]["bytes"] == sum(one.bytes for one in Store(cache, 0).entries())
    assert runs[1].record["stages"][0]["cost"]["cpu_seconds"] > cuts[1]["cpu_seconds"] > 0
    (stage,) = runs[1].record["plan"]["stages"]
    assert stage["cut_dropout"] == (0.1 if kind == "text" else 0.0), "the same where what is below has run, and where it has not"


def test_rows_of_any_length(cache: Path, tmp_path: Path) -> None:
    """Losses within a millionth of the run without, and the head first; a second plan finds what the first one stored."""
    model, data = tiny.bert(tmp_path / "model"), texts(tmp_path / "data")
    options: dict[str, Any] = dict(unfreeze=1, epochs=2, batch_size=8, precision="fp32", quiet=True)
    plain = affinage.fit(model, data, out=tmp_path / "plain", cache="off", **options)
    run = affinage.fit(model, data, out=tmp_path / "run", **options)
    for one, other in zip(facts_of(plain), facts_of(run), strict=True):
        assert one[:4] == other[:4] and one.value == pytest.approx(other.value, abs=1e-6)
    again = affinage.fit(model, data, out=tmp_path / "again", plan="full", **options)
    assert again.record["cuts"]["body"]["reused"]


def test_a_long_pass_to_the_head_is_kept_for_other_runs(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen plan, and one that teaches every block, leave what reaches the head: another seed, another plan find it, and the
    head is that of a run without a store, bit by bit. Of a short pass nothing is kept."""
    model, data = tiny.bert(tmp_path / "model"), texts(tmp_path / "data")
    options: dict[str, Any] = dict(precision="fp32", validation=0, quiet=True)
    short = affinage.fit(model, data, plan="frozen", out=tmp_path / "short", **options)
    assert not short.record["cuts"] and not Store(cache, 0).entries()
    monkeypatch.setattr("affinage.stages.KEPT", 0)
    runs = {
        "full": affinage.fit(model, data, unfreeze="all", epochs=1, out=tmp_path / "full", **options),
        "frozen": affinage.fit(model, data, plan="frozen", seed=1, out=tmp_path / "frozen", **options),
    }
    cuts = {name: run.record["cuts"]["head"] for name, run in runs.items()}
    assert all(cut["address"] == "head" and not cut["why"] and cut["share"] > 0.9 for cut in cuts.values()), cuts
    assert [cuts[name]["reused"] for name in runs] == [False, True]
    again = affinage.fit(model, data, plan="frozen", out=tmp_path / "again", **options)
    assert again.record["cuts"]["head"]["reused"]
    assert (again.path / "model.safetensors").read_bytes() == (short.path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("pooling", ["native", "first"])
def test_what_reaches_the_head_hangs_on_its_other_layers(
    pooling: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another pooler makes other features, though encoder and texts are the same; the bare first token does not ask it."""
    monkeypatch.setattr("affinage.stages.KEPT", 0)
    data = texts(tmp_path / "data")
    options: dict[str, Any] = dict(plan="frozen", pooling=pooling, precision="fp32", quiet=True)
    model = tiny.bert(tmp_path / "model")
    affinage.fit(model, data, out=tmp_path / "one", **options)
    other = BertModel.from_pretrained(model)
    with torch.no_grad():
        other.pooler.dense.bias += 1.0
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "other")
    run = affinage.fit(tmp_path / "other", data, out=tmp_path / "two", **options)
    assert run.record["cuts"]["head"]["address"] == "head"
    assert run.record["cuts"]["head"]["reused"] == (pooling == "first")
    plain = affinage.fit(tmp_path / "other", data, out=tmp_path / "plain", cache="off", **options)
    assert run.metrics["accuracy"] == plain.metrics["accuracy"]
    for name in ("classifier.weight", "classifier.bias"):
        one, two = (load_file(r.path / "model.safetensors")[name] for r in (run, plain))
        assert (one - two).abs().max() <= 1e-4 * two.abs().max()


def test_a_vector_a_token_is_not_kept_for_other_runs_alone(cache: Path) -> None:
    """A decoder's head looks at every token, of which one is picked after it."""
    net = Net.of(*FAMILIES["gpt2"].make())
    alone = Stage("head", "solve", ((f"{net.head_name}.*", 1.0), ("*", None)))
    found = once(net, alone, ahead=True)
    assert found.facts["address"] == "head" and "a vector a token" in found.facts["why"] and not Store(cache, 0).entries()


def test_one_epoch_behind_a_solved_head_is_cut(cache: Path, tmp_path: Path) -> None:
    """The head looks at each row as well; where it is not solved, one look is all, and the run says so."""
    model, data = tiny.bert(tmp_path / "model"), texts(tmp_path / "data")
    options: dict[str, Any] = dict(unfreeze=1, epochs=1, quiet=True)
    run = affinage.fit(model, data, out=tmp_path / "two", **options)
    assert run.record["cuts"]["body"]["address"] == "blocks.1" and not run.record["cuts"]["body"]["why"]
    run = affinage.fit(model, data, plan="full", out=tmp_path / "full", **options)
    assert run.record["cuts"]["body"] == {"address": "blocks.1", "why": "one epoch looks at each row once"}


def test_the_frozen_part_runs_once_in_two_stages(cache: Path, tmp_path: Path) -> None:
    """Rows that enter the first block in a whole run: each once, beside what drift and the final scores take."""
    model, data = tiny.bert(tmp_path / "model"), texts(tmp_path / "data")
    seen: dict[int, int] = {}

    def count(module: torch.nn.Module, args: Any) -> None:
        if type(module).__name__ == "BertLayer" and "forward" not in module.__dict__:
            seen[id(module)] = seen.get(id(module), 0) + len(args[0])

    handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        run = affinage.fit(model, data, out=tmp_path / "run", unfreeze=1, epochs=3, batch_size=8, quiet=True)
    finally:
        handle.remove()
    rows = run.record["data"]["rows"]
    first = next(iter(seen.values()))
    once = rows["train"] + rows["validation"]
    others = 2 * rows["train"] + 2 * rows["validation"] + rows["test"]  # drift before and after; the scores of the end
    assert once <= first <= once + others + 16  # and a few rows to look at the network
    assert run.record["stages"][0]["cost"]["cpu_seconds"] > run.record["cuts"]["body"]["cpu_seconds"] > 0


@pytest.mark.parametrize("epochs", [4, 8])
def test_the_frozen_part_runs_once_for_all_stages(
    epochs: int, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stage of `gradual` teaches a block more than the one before it: what it freezes passed when the head was solved."""
    model, data = tiny.bert(tmp_path / "model", num_hidden_layers=4), texts(tmp_path / "data")
    options: dict[str, Any] = dict(plan="gradual", epochs=epochs, precision="fp32", quiet=True)
    seen = {"filled": 0, "all": 0}
    filled = frozen.filled

    def filling(*args: Any) -> Any:
        before = seen["all"]
        found = filled(*args)
        seen["filled"] += seen["all"] - before
        return found

    def count(module: torch.nn.Module, args: Any, out: Any) -> None:
        if type(module).__name__ == "BertLayer" and "forward" not in module.__dict__:
            seen["all"] += len(args[0])

    monkeypatch.setattr(frozen, "filled", filling)
    handle = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        run = affinage.fit(model, data, out=tmp_path / "run", **options)
    finally:
        handle.remove()
    cuts, rows = run.record["cuts"], run.record["data"]["rows"]
    assert {name: cut["address"] for name, cut in cuts.items() if not cut["why"]} == {
        "top-1": "blocks.3",
        "top-2": "blocks.2",
        "top-3": "blocks.1",
    }
    assert seen["filled"] == 3 * (rows["train"] + rows["validation"])  # three blocks, once each
    plain = affinage.fit(model, data, out=tmp_path / "plain", cache="off", **options)
    mine = load_file(run.path / "model.safetensors")
    for name, tensor in load_file(plain.path / "model.safetensors").items():
        if not name.endswith("key.bias"):  # has no gradient but rounding, of which Adam makes a whole step
            assert torch.allclose(mine[name], tensor, atol=1e-5), name
    again = affinage.fit(model, data, out=tmp_path / "again", **options)
    assert all(cut["reused"] for cut in again.record["cuts"].values() if not cut["why"])
    assert (again.path / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()


def test_what_does_not_fit_beside_the_others_waits_for_its_turn(cache: Path, tmp_path: Path) -> None:
    model, data = tiny.bert(tmp_path / "model", num_hidden_layers=3), texts(tmp_path / "data")
    options: dict[str, Any] = dict(plan="gradual", epochs=6, precision="fp32", quiet=True)
    wide = affinage.fit(model, data, out=tmp_path / "wide", **options).record["cuts"]
    one = wide["top-1"]["bytes"]
    run = affinage.fit(model, data, out=tmp_path / "run", **options, cache_gb=1.5 * one / 1e9)
    cuts = run.record["cuts"]
    assert [cuts[name]["address"] for name in ("top-1", "top-2")] == ["blocks.2", "blocks.1"]
    assert not cuts["top-1"]["why"] and not cuts["top-2"]["why"]
    assert list(cuts) == ["top-3", "top-2", "top-1"] == list(wide)


def test_every_stage_has_a_cut_of_its_own(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from affinage.report.screen import show

    model, data = tiny.bert(tmp_path / "model", num_hidden_layers=3), texts(tmp_path / "data")
    run = affinage.fit(model, data, out=tmp_path / "run", plan="gradual", epochs=6, batch_size=16, quiet=True)
    cuts = run.record["cuts"]
    assert {name: cut["address"] for name, cut in cuts.items()} == {"top-1": "blocks.2", "top-2": "blocks.1", "top-3": None}
    show(run.path)
    told = capsys.readouterr().out
    assert "cut before blocks.2: 66." in told and "of each forward pass computed once in" in told and "on the disk" in told
    story = json.loads((run.path / "run.json").read_text())
    story["cuts"]["top-1"] = {"address": "blocks.2", "why": "augmentation 'light' changes the rows each time"}
    (run.path / "run.json").write_text(json.dumps(story))
    show(run.path)
    assert "not cut before blocks.2: augmentation 'light'" in capsys.readouterr().out


def test_the_default_augmentation_of_pictures_is_told(cache: Path, tmp_path: Path) -> None:
    model, data = tiny.resnet(tmp_path / "model"), tiny.pictures(tmp_path / "data")
    run = affinage.fit(model, data, out=tmp_path / "run", unfreeze=1, epochs=2, quiet=True)
    assert "--augment none computes it once" in run.record["cuts"]["body"]["why"] and not cache.exists()


def test_cache_commands(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from affinage.cli import main

    once(bert())
    assert main(["cache", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "model BertForSequenceClassification, cut blocks.2, split " in lines[0]
    assert lines[2].startswith("2 entries, 0.0 MB in ")
    assert main(["cache", "list", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["entries"]) == 2
    assert main(["cache", "clear"]) == 0
    assert capsys.readouterr().out.startswith("0.0 MB freed in ") and list(cache.iterdir()) == []
    shutil.rmtree(cache)
    assert main(["cache", "list"]) == 0 and main(["cache", "clear"]) == 0
    assert capsys.readouterr().out.startswith("0 entries") and os.environ["AFFINAGE_CACHE"] == str(cache)


def test_free_memory() -> None:
    assert 10**7 < filling._free_memory() < 10**14


def test_stored_views(cache: Path, tmp_path: Path) -> None:
    """Each epoch learns from the next view; a view is what the whole network makes of those changed pictures."""
    model, data = tiny.resnet(tmp_path / "model"), tiny.pictures(tmp_path / "data")
    options: dict[str, Any] = dict(unfreeze=1, epochs=5, views=2, precision="fp32", quiet=True)
    run = affinage.fit(model, data, out=tmp_path / "run", **options)
    facts = run.record["cuts"]["body"]
    assert facts["views"] == 2 and not facts["why"] and facts["address"] == "blocks.2"
    stored = Store(cache, 0).entries()
    assert len(stored) == 2 + ("validation" in run.record["data"]["rows"])
    again = affinage.fit(model, data, out=tmp_path / "again", **options)
    assert again.record["cuts"]["body"]["reused"]
    assert (again.path / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()
    more = affinage.fit(model, data, out=tmp_path / "more", **options | {"views": 3})
    assert len(Store(cache, 0).entries()) == len(stored) + 1  # the third view; the others are found
    losses = [[fact.value for fact in facts_of(one) if fact.name == "loss"] for one in (run, more)]
    assert losses[0][:2] == losses[1][:2] and losses[0][2] != losses[1][2]  # the third epoch sees another view


def test_views_that_are_there_are_not_made_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a view is follows from the pictures as they are: the key looks at those."""
    model, batch = FAMILIES["resnet"].make()
    net, rows, stage = Net.of(model, batch), photographs(), replace(STAGE, augment="light")
    made: list[int] = []
    show = Augmented.batch
    monkeypatch.setattr(Augmented, "batch", lambda self, numbers: (made.append(self.view), show(self, numbers))[1])
    for want in ([1, 2], []):
        made.clear()
        assert once(net, stage, {"train": rows}, views=2).facts["reused"] is not bool(want) and made == want


def test_a_view_is_what_the_network_makes_of_the_changed_picture(cache: Path) -> None:
    model, batch = FAMILIES["resnet"].make()
    model.eval()
    net = Net.of(model, batch)
    draw = np.random.default_rng(0)
    rows = ImageRows(
        draw.integers(0, 255, (10, 3, 32, 32)).astype(np.uint8), np.full(3, 0.02, np.float32), np.zeros(3, np.float32)
    )
    stage = Stage("body", "fit", (("head", 1e-3), ("blocks.-1", 1e-3), ("*", None)), epochs=4, augment="light")
    state = torch.get_rng_state()
    found = computed_once(net, stage, {"train": rows}, precision="fp32", budget=1.0, views=3, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    train = found.rows["train"]
    assert isinstance(train, Views) and len(train.views) == 3
    logits = []
    for epoch in range(4):
        train.look(epoch)
        with torch.no_grad():
            logits.append(found.forward(**train.batch(np.arange(10))).logits)
            changed = Augmented(rows, "light", 7, epoch % 3 + 1).batch(np.arange(10))
            assert torch.allclose(logits[-1], model(**changed).logits, atol=1e-5)
    assert torch.equal(logits[3], logits[0]) and not torch.allclose(logits[1], logits[0], atol=1e-3)
