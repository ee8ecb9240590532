"""The recipe of starter-bytes: a byte is a token, what is hidden is asked for and nothing else, and a stop changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as T
from safetensors.torch import load_file

from affinage.tasks.text_classification import TokenRows
from affinage.tasks.text_classification import task as texts

from .examples import example


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return example("pretrain/masked_bytes.py")


def encoded(recipe: ModuleType, inputs: list[str]) -> TokenRows:
    model = T.BertForMaskedLM(T.BertConfig(vocab_size=261, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    return texts.encode(inputs, recipe.tokenizer(), model)


def test_every_byte_is_a_token_and_comes_back(recipe: ModuleType, tmp_path: Path) -> None:
    recipe.tokenizer().save_pretrained(tmp_path)
    made = T.AutoTokenizer.from_pretrained(tmp_path)
    text = "GET /é?a=\x00\n\t ÿ" + "".join(map(chr, range(1, 128))) + "日本"
    ids = made(text)["input_ids"]
    assert len(made) == 261 and len(ids) == len(text.encode()) + 2 and made.unk_token_id not in ids
    assert made.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text


def test_what_is_hidden_is_asked_for(recipe: ModuleType) -> None:
    rows = encoded(recipe, ["x" * 100, "abc", "GET /index.html HTTP/1.1"] * 40)
    batch, true = rows.batch(np.arange(120)), recipe.Bytes(rows).batch(np.arange(120))
    before = true.clone()
    torch.manual_seed(0)
    taught, asked = recipe.Masked().teach(batch, true, "none")
    seen, hidden = taught["input_ids"], asked >= 0
    assert true.equal(before) and taught["attention_mask"].equal(batch["attention_mask"])
    assert asked[hidden].equal(true[hidden]) and seen[~hidden].equal(true[~hidden])
    assert hidden.any(1).all() and (true[hidden] >= recipe.FIRST).all()  # every row, never [CLS], [SEP] or padding
    assert 0.12 < hidden.sum() / (true >= recipe.FIRST).sum() < 0.22
    assert 0.7 < (seen[hidden] == recipe.MASK).float().mean() < 0.9
    again, _ = recipe.Masked().teach(batch, true, "none")
    assert not again["input_ids"].equal(seen)  # hidden anew at each step


def test_the_loss_is_that_of_the_hidden_bytes(recipe: ModuleType) -> None:
    rows = encoded(recipe, ["abcdefgh", "12345678"])
    _, asked = recipe.Masked().teach(rows.batch(np.arange(2)), recipe.Bytes(rows).batch(np.arange(2)), "none")
    logits = torch.randn(*asked.shape, 261)
    chances = logits.log_softmax(-1)
    each = [-chances[i, j, asked[i, j]] for i, j in (asked >= 0).nonzero().tolist()]
    loss = recipe.Masked().loss(SimpleNamespace(logits=logits), asked, weights=None, smoothing=0.0)
    assert torch.allclose(loss, torch.stack(each).mean(), atol=1e-5)


@pytest.mark.slow
def test_it_goes_on_where_it_was_stopped(
    recipe: ModuleType, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small encoder, stopped after its third checkpoint: in the end the same weights as without the stop."""
    shape = dict(vocab_size=261, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    (tmp_path / "config.json").write_text(json.dumps(shape | dict(max_position_embeddings=256, type_vocab_size=1)))
    monkeypatch.setattr(recipe, "HELD_OUT", 50)
    words = ["--data", str(shared_data), "--rows", "300", "--epochs", "2", "--config", str(tmp_path / "config.json"), "--out"]
    monkeypatch.setenv("AFFINAGE_CHECKPOINT_SECONDS", "0")
    whole = recipe.main([*words, str(tmp_path / "whole")])
    count, write = 0, recipe.checkpoint.save

    def stopping(*given: object) -> object:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return write(*given)

    monkeypatch.setattr(recipe.checkpoint, "save", stopping)
    with pytest.raises(KeyboardInterrupt):
        recipe.main([*words, str(tmp_path / "parts")])
    monkeypatch.setattr(recipe.checkpoint, "save", write)
    parts = recipe.main([*words, str(tmp_path / "parts")])
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    assert one.keys() == other.keys() and all(t.equal(other[n]) for n, t in one.items())
    told = [json.loads((folder / "run.json").read_text()) for folder in (whole, parts)]
    assert told[0]["validation"] == told[1]["validation"] and told[0]["data"] == told[1]["data"]
    lines = [(folder / "records.jsonl").read_text().splitlines() for folder in (whole, parts)]
    assert len(lines[0]) == len(lines[1]) == 2
