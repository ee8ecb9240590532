"""Features: one pass in any order gives the rows in theirs, and features through the last layer give the logits."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from affinage import features, pooling
from affinage.features import at_once, batched
from affinage.net import Net
from affinage.pictures import ImageRows
from affinage.tasks.text_classification import TokenRows

from . import tiny
from .zoo import FAMILIES


def texts(count: int = 40, pad: int = 0, left: bool = False) -> TokenRows:
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 30, count)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenRows(draw.integers(5, 90, starts[-1]).astype(np.int32), starts, pad, left)


def pictures(count: int = 70, side: int = 32) -> ImageRows:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (count, 3, side, side)).astype(np.uint8)
    return ImageRows(pixels, np.full(3, 1 / 128, np.float32), np.full(3, -1, np.float32))


def one_by_one(model: nn.Module, rows: Any) -> np.ndarray:
    with torch.no_grad():
        return np.concatenate([model(**rows.batch(np.array([i]))).logits.numpy() for i in range(len(rows))])


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "gpt2", "vit", "resnet", "convnext"])
def test_features_give_the_logits(name: str) -> None:
    model, batch = FAMILIES[name].make()
    net = Net.of(model, batch)
    rows: Any = texts() if "input_ids" in batch else pictures()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    model.train()
    found, logits = features.passed(model, rows, "fp32", net.head_linear)
    assert found is not None and net.head_linear is not None
    assert found.shape == (len(rows), net.head_linear.in_features) and found.dtype == logits.dtype == np.float32
    with torch.no_grad():
        through = net.head_linear(torch.from_numpy(found)).numpy()
    assert np.abs(through - logits).max() < 1e-5  # GPT-2: of the last token that is no padding
    assert np.abs(one_by_one(model.eval(), rows) - logits).max() < 1e-5
    assert all(tensor.equal(before[n]) for n, tensor in model.state_dict().items())  # batch-norm statistics too
    assert not net.head_linear._forward_pre_hooks


def test_gpt2_features_are_those_of_the_last_token() -> None:
    model, batch = FAMILIES["gpt2"].make()
    rows = texts()
    found, _ = features.passed(model, rows, "fp32", Net.of(model, batch).head_linear)
    assert found is not None
    for i in range(10):
        with torch.no_grad():
            hidden = model.transformer(**rows.batch(np.array([i]))).last_hidden_state
        assert np.abs(hidden[0, -1].numpy() - found[i]).max() < 1e-5


def test_mean_pooling_and_left_padding() -> None:
    model, batch = FAMILIES["bert"].make()
    pooling.install(model, "mean")
    net = Net.of(model, batch)
    found, logits = features.passed(model, texts(), "fp32", net.head_linear)
    assert found is not None and np.abs(one_by_one(model, texts()) - logits).max() < 1e-5
    assert np.abs(found.mean(1)).max() < 1e-5 and np.abs(found.std(1) - 1).max() < 1e-2  # layer-normed
    left = texts(left=True).batch(np.arange(5))
    lengths = texts().lengths[:5]
    assert left["attention_mask"].sum(1).tolist() == lengths.tolist() and left["attention_mask"][:, -1].all()


def test_bf16_is_near_fp32() -> None:
    model, batch = FAMILIES["bert"].make()
    linear = Net.of(model, batch).head_linear
    one, other = (features.passed(model, texts(), precision, linear) for precision in ("fp32", "bf16"))
    assert one[0] is not None and other[0] is not None
    near = np.abs(one[0] - other[0]).max()
    assert 0 < near < 0.05 * np.abs(one[0]).max() and other[1].dtype == np.float32


def test_without_a_layer_there_are_logits_only() -> None:
    model, _ = FAMILIES["bert"].make()
    found, logits = features.passed(model, texts(3), "fp32")
    assert found is None and logits.shape == (3, 3)


def test_progress_counts_every_row() -> None:
    model, _ = FAMILIES["bert"].make()
    seen: list[int] = []
    features.passed(model, texts(), "fp32", progress=seen.append)
    assert sum(seen) == 40


def test_no_rows_are_refused() -> None:
    model, _ = FAMILIES["bert"].make()
    with pytest.raises(ValueError, match="no rows"):
        features.passed(model, texts(0), "fp32")


@pytest.mark.skipif(
    torch.cuda.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bf16 products in this processor"
)
def test_packed_weights_give_the_numbers_of_autocast(minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit (attention, which rounds otherwise, has tests of its own), and the layers are their own again afterwards."""
    from affinage.features import autocast, packed
    from affinage.tasks.text_classification import task

    model, tokenizer = task.load(minilm, ["a", "b"], fresh=False, revision=None)
    model.eval()
    batch = task.encode(["a good film", "not one that I would see again"], tokenizer, model).batch(np.arange(2))
    monkeypatch.setattr(features, "quick_attention", lambda model: nullcontext())
    with torch.inference_mode(), autocast("bf16"):
        want = model(**batch).logits
        with packed(model, "bf16", but=model.classifier):
            got = model(**batch).logits
    assert torch.equal(got, want)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_batch_that_did_not_fit_is_halved() -> None:
    """More than two rows at once are refused, in the middle of the network: the numbers are the same."""
    model, _ = FAMILIES["bert"].make()
    rows = texts(12)
    _, whole = features.passed(model, rows, "fp32")

    def refuse(_: nn.Module, args: Any) -> None:
        if len(args[0]) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    model.get_submodule(Net.of(model, rows.batch(np.arange(1))).blocks[1]).register_forward_pre_hook(refuse)
    _, halved = features.passed(model, rows, "fp32")
    assert np.allclose(halved, whole, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU says it itself")
@pytest.mark.parametrize(("flags", "half", "single", "pays"), [
    ("avx2", 1.0, 9.0, False),  # never measured: emulated
    ("avx512_bf16", 1.0, 2.5, True),
    ("avx512_bf16", 1.0, 1.1, False),
    ("avx512_bf16", 2.0, 1.0, False),  # there is such a processor
])  # fmt: skip
def test_bf16_is_taken_where_it_was_measured_to_pay(
    flags: str, half: float, single: float, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features.Path, "read_text", lambda *_, **__: f"flags : fpu {flags} sse")
    seconds = {torch.bfloat16: half, torch.float32: single}
    monkeypatch.setattr(features, "_product_seconds", seconds.__getitem__)
    assert features.bf16_pays.__wrapped__() is pays


def test_a_gpu_takes_bf16_where_an_update_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the FLOP of its products, which are those of a closed form."""
    model, _ = FAMILIES["bert"].make()
    row = texts(1).batch(np.arange(1))
    width, inner, layers = model.config.hidden_size, model.config.intermediate_size, model.config.num_hidden_layers
    tokens = row["input_ids"].shape[1]
    products = layers * tokens * 2 * (4 * width * width + 2 * width * inner)
    attention = layers * 4 * tokens * tokens * width  # which the counter does not know of every kernel
    assert products < features.flop(model, row) <= 1.1 * (products + attention)  # and the head's
    monkeypatch.setattr(features, "bf16_pays", lambda: True)
    monkeypatch.setattr(features, "device", lambda: torch.device("cpu"))
    assert features.auto_precision(model, row, 16) == "bf16"
    monkeypatch.setattr(features, "device", lambda: torch.device("cuda"))
    assert features.auto_precision(model, row, 16) == "fp32"
    assert features.auto_precision(model, row, int(features.SMALL)) == "bf16"
    assert features.auto_precision(model, row, 0) == "bf16"  # a pass, and no update
    monkeypatch.setattr(features, "bf16_pays", lambda: False)
    assert features.auto_precision(model, row, int(features.SMALL)) == "fp32"


def test_weights_that_are_computed_are_counted(tmp_path: Path) -> None:
    """wav2vec2's weight norm: the counter of torch fails on it in inference mode."""
    import transformers

    model = transformers.Wav2Vec2Model.from_pretrained(tiny.wav2vec2(tmp_path / "model"))
    sound = {"input_values": torch.randn(1, 2000)}
    assert features.flop(model, {"input_values": torch.randn(1, 4000)}) > features.flop(model, sound) > 0


def test_what_the_user_told_torch_of_tf32_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 is none, and the flag is as it was afterwards; torch refuses it beside its newer settings, and then those count."""
    flag = torch.backends.cudnn.allow_tf32
    with features._convolutions("fp32"):
        assert not torch.backends.cudnn.allow_tf32
    with features._convolutions("bf16"):
        assert torch.backends.cudnn.allow_tf32 == flag
    assert torch.backends.cudnn.allow_tf32 == flag
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        with pytest.raises(RuntimeError):
            _ = torch.backends.cudnn.allow_tf32
        with features._convolutions("fp32"):
            assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def test_a_product_is_timed() -> None:
    assert 0 < features._product_seconds(torch.float32, repeats=1) < 10


@pytest.mark.parametrize(
    ("width", "precision", "tokens"),
    [(384, "bf16", 1024), (384, "fp32", 512), (768, "bf16", 512), (10**6, "fp32", 128), (32, "fp32", 512)],
)
def test_a_batch_of_text_fills_the_cache_of_a_core(width: int, precision: str, tokens: int) -> None:
    """The same bytes whatever the width and the precision, and not below what keeps a product busy; above a cut as below it."""
    model = torch.nn.Identity()
    model.config = SimpleNamespace(hidden_size=width)
    above = torch.nn.Identity()
    above.model = model
    assert at_once(model, precision) == at_once(above, precision) == tokens
    assert at_once(torch.nn.Identity(), precision) == (1024 if precision == "bf16" else 512)
    if not torch.cuda.is_available():
        found = batched(np.full(3000, 16), above, precision)
        assert max(map(len, found)) == tokens // 16 and sorted(np.concatenate(found).tolist()) == list(range(3000))
