"""Texts become the tokens that transformers' own padding gives, cut to what the model can read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as T
from transformers.modeling_outputs import SequenceClassifierOutput as Output

from affinage.tasks.text_classification import TokenRows, task

from .. import tiny

TEXTS = ["apple", "the old salmon of the river", "", "hammer and saw and drill " * 30, "Zebra plum"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bert(tmp_path_factory.mktemp("bert"))


def test_batches_are_the_tokenizers(folder: Path) -> None:
    model, tokenizer = task.load(folder, ("a", "b"), fresh=False, revision=None)
    rows = task.encode(TEXTS, tokenizer, model)
    theirs = tokenizer(TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt")
    ours = rows.batch(np.arange(5))
    for name in ("input_ids", "attention_mask"):
        assert ours[name].equal(theirs[name])
    assert rows.lengths.tolist() == theirs["attention_mask"].sum(1).tolist() and len(rows) == 5
    some = rows.batch(np.array([4, 0]))
    assert some["input_ids"].shape == (2, rows.lengths[[4, 0]].max())
    assert some["input_ids"][0, : rows.lengths[4]].equal(theirs["input_ids"][4, : rows.lengths[4]])


def test_left_padding_is_the_tokenizers(folder: Path) -> None:
    model, tokenizer = task.load(folder, ("a", "b"), fresh=False, revision=None)
    tokenizer.padding_side = "left"
    ours = task.encode(TEXTS, tokenizer, model).batch(np.arange(5))
    theirs = tokenizer(TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt")
    assert ours["input_ids"].equal(theirs["input_ids"]) and ours["attention_mask"].equal(theirs["attention_mask"])


@pytest.mark.parametrize(("wish", "expected"), [(None, 64), (10, 10), (1000, 64)])
def test_what_the_model_cannot_read_is_cut(wish: int | None, expected: int, folder: Path) -> None:
    model, tokenizer = task.load(folder, ("a", "b"), fresh=False, revision=None)
    rows = task.encode(TEXTS, tokenizer, model, max_length=wish)
    assert rows.lengths.max() == expected
    assert rows.values[rows.starts[4] - 1] == tokenizer.sep_token_id  # cut rows still end as they should


def test_roberta_positions_begin_after_the_padding(folder: Path) -> None:
    tokenizer = T.AutoTokenizer.from_pretrained(folder, model_max_length=10**9)
    config = T.RobertaConfig(
        vocab_size=99,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=34,
    )
    model = T.RobertaForSequenceClassification(config)
    rows = task.encode(TEXTS, tokenizer, model)
    assert rows.lengths.max() == 32
    with torch.no_grad():
        assert model(**rows.batch(np.arange(5))).logits.isfinite().all()


def test_load(folder: Path) -> None:
    """The head has the real names, fresh weights are others, and loading twice with one seed gives one head."""
    torch.manual_seed(0)
    one, tokenizer = task.load(folder, ("ham", "spam", "eggs"), fresh=False, revision=None)
    torch.manual_seed(0)
    other, _ = task.load(folder, ("ham", "spam", "eggs"), fresh=False, revision=None)
    fresh, _ = task.load(folder, ("ham", "spam", "eggs"), fresh=True, revision=None)
    assert one.config.id2label == {0: "ham", 1: "spam", 2: "eggs"} and one.config.label2id["eggs"] == 2
    assert all(p.equal(q) for p, q in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    words = "bert.embeddings.word_embeddings.weight"
    saved = T.BertModel.from_pretrained(folder).state_dict()["embeddings.word_embeddings.weight"]
    assert one.state_dict()[words].equal(saved) and not fresh.state_dict()[words].equal(saved)
    assert one.config.pad_token_id == tokenizer.pad_token_id == 0


def test_a_tokenizer_that_never_padded(tmp_path: Path) -> None:
    """GPT-2's has no padding token: the end of text stands in, in the model's configuration too."""
    folder = tiny.bert(tmp_path)
    tokenizer = T.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="[SEP]", unk_token="[UNK]")
    config = T.GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64)
    where = tmp_path / "gpt2"
    T.GPT2ForSequenceClassification(config).save_pretrained(where)
    tokenizer.save_pretrained(where)
    model, found = task.load(where, ("a", "b"), fresh=False, revision=None)
    assert found.pad_token == "[SEP]" and model.config.pad_token_id == found.eos_token_id
    rows = task.encode(TEXTS[:2], found, model)
    with torch.no_grad():
        both = model.eval()(**rows.batch(np.arange(2))).logits
        alone = model(**rows.batch(np.arange(1))).logits
    assert torch.allclose(both[0], alone[0], atol=1e-6)


def test_no_rows() -> None:
    rows = TokenRows(np.zeros(0, np.int32), np.zeros(1, np.int64), 0)
    assert len(rows) == 0 and rows.lengths.tolist() == []


def test_loss_is_cross_entropy() -> None:
    """By hand, weighted and smoothed: -sum_i w_i log p_i / sum_i w_i, the target's mass (1 - s) + s / C."""
    logits, targets = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]]), torch.tensor([0, 1])
    p = logits.softmax(1)
    plain = -(p[0, 0].log() + p[1, 1].log()) / 2
    assert torch.allclose(task.loss(Output(logits=logits), targets, weights=None, smoothing=0.0), plain)
    weights = torch.tensor([1.0, 3.0, 1.0])
    weighted = -(p[0, 0].log() + 3 * p[1, 1].log()) / 4
    assert torch.allclose(task.loss(Output(logits=logits), targets, weights=weights, smoothing=0.0), weighted)
    smooth = 0.7 * plain + 0.3 * -p.log().mean()
    assert torch.allclose(task.loss(Output(logits=logits), targets, weights=None, smoothing=0.3), smooth)
    assert torch.allclose(
        task.loss(Output(logits=logits.bfloat16()), targets, weights=None, smoothing=0.0), plain, atol=1e-5
    )  # in fp32
