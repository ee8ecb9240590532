"""Mean pooling in training and the constant block in the saved folder are one function, to 1e-4 in the logits, padding or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T

from affinage import pooling
from affinage.net import Net

SIZES = dict(
    vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64
)
KINDS = {
    "bert": (T.BertForSequenceClassification, T.BertConfig),
    "roberta": (T.RobertaForSequenceClassification, T.RobertaConfig),
    "xlm-roberta": (T.XLMRobertaForSequenceClassification, T.XLMRobertaConfig),
    "camembert": (T.CamembertForSequenceClassification, T.CamembertConfig),
}


def random_model(kind: str, attention: str = "eager") -> Any:
    """Weights large enough that tokens differ, and a head that tells them apart."""
    model, config = KINDS[kind]
    torch.manual_seed(0)
    pad = dict(pad_token_id=0) if kind == "bert" else dict(pad_token_id=1)
    return model(config(**SIZES, **pad, num_labels=3, initializer_range=0.3, attn_implementation=attention)).eval()


def batch(pad: int, left: bool = False) -> dict[str, torch.Tensor]:
    """Rows of 20, 13, 2 and 1 tokens, padded to 20."""
    torch.manual_seed(1)
    lengths = torch.tensor([20, 13, 2, 1])
    mask = (torch.arange(20)[None] < lengths[:, None]).long()
    ids = torch.randint(5, 90, (4, 20)) * mask + pad * (1 - mask)
    return {"input_ids": ids.flip(1) if left else ids, "attention_mask": mask.flip(1) if left else mask}


@torch.no_grad()
def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model.eval()(**inputs).logits


def away(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("wish", ["mean", "first"])
@pytest.mark.parametrize("kind", KINDS)
def test_exported_is_the_same_function(kind: str, wish: str, attention: str, tmp_path: Path) -> None:
    model, inputs = random_model(kind, attention), batch(0 if kind == "bert" else 1)
    native = logits(model, inputs)
    pooling.install(model, wish)
    assert pooling.installed(model) == wish
    trained = logits(model, inputs)
    assert away(native, trained) > 0.05  # not the native pooler any more
    exported = pooling.exported(model)
    assert type(exported) is type(model) and exported.config.num_hidden_layers == 3 + (wish == "mean")
    assert away(logits(exported, inputs), trained) < 1e-4
    exported.save_pretrained(tmp_path)
    for way in ("eager", "sdpa"):
        loaded = T.AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation=way)
        assert away(logits(loaded, inputs), trained) < 1e-4  # plain transformers, by either attention


@pytest.mark.parametrize("kind", KINDS)
def test_mean_is_the_mean_of_the_unmasked_tokens(kind: str) -> None:
    """By hand: the last hidden states of the tokens that are there, averaged and layer-normed, through the linear layer."""
    model, inputs = random_model(kind), batch(0 if kind == "bert" else 1)
    with torch.no_grad():
        hidden = model.base_model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1).float()
    mean = torch.nn.functional.layer_norm((hidden * mask).sum(1) / mask.sum(1), (32,), eps=1e-12)
    pooling.install(model, "mean")
    head = model.classifier if kind == "bert" else model.classifier.out_proj
    assert away(logits(model, inputs), head(mean).detach()) < 1e-5


def test_padding_changes_nothing() -> None:
    """A row alone, without padding, and among longer ones; before and after the export."""
    model, inputs = random_model("bert"), batch(0)
    pooling.install(model, "mean")
    for form in (model, pooling.exported(model)):
        together = logits(form, inputs)
        for row, length in enumerate((20, 13, 2, 1)):
            alone = logits(form, {name: tensor[row : row + 1, :length] for name, tensor in inputs.items()})
            assert away(alone[0], together[row]) < 1e-4


@pytest.mark.parametrize("wish", ["mean", "first"])
@pytest.mark.parametrize("kind", KINDS)
def test_round_trips(kind: str, wish: str, tmp_path: Path) -> None:
    """Saved, loaded and installed again: the constant block comes off, and a second export is the first, bit by bit."""
    model, inputs = random_model(kind), batch(0 if kind == "bert" else 1)
    pooling.install(model, wish)
    before = logits(model, inputs)
    pooling.exported(model).save_pretrained(tmp_path / "one")
    assert pooling.declared(tmp_path / "one") == wish
    loaded = T.AutoModelForSequenceClassification.from_pretrained(tmp_path / "one", attn_implementation="eager")
    pooling.install(loaded, wish)
    assert loaded.config.num_hidden_layers == 3
    assert len(loaded.base_model.encoder.layer) == 3 + (wish == "mean")
    head = loaded.classifier if kind == "bert" else loaded.classifier.out_proj
    with torch.no_grad():
        head.weight.mul_(pooling.SMALL)  # the solver writes this layer anew; here its scale is put back by hand
    assert away(logits(loaded, inputs), before) < 1e-5
    pooling.exported(loaded).save_pretrained(tmp_path / "two")
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()
    one, two = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "two"))
    assert one == two


def test_the_pool_is_no_block_and_holds_nothing() -> None:
    model = random_model("bert")
    count = sum(p.numel() for p in model.parameters())
    dense = sum(p.numel() for p in model.bert.pooler.parameters())
    pooling.install(model, "mean")
    assert sum(p.numel() for p in model.parameters()) == count - dense
    net = Net.of(model, batch(0))
    assert len(net.blocks) == 3 and net.head_linear is model.classifier


def test_other_architectures_cannot() -> None:
    model = T.DistilBertForSequenceClassification(T.DistilBertConfig(vocab_size=99, dim=32, n_layers=1, n_heads=2, hidden_dim=64))
    assert not pooling.can_mean(model) and pooling.installed(model) is None
    assert pooling.exported(model) is model
    assert pooling.can_mean(random_model("bert"))


def test_declared(tmp_path: Path) -> None:
    """A sentence-transformers folder in its two spellings, a plain folder, and a name that no cache knows."""
    assert pooling.declared(tmp_path) is None
    assert pooling.declared("no-one/has-this-model") is None
    where = tmp_path / "1_Pooling"
    where.mkdir()
    for said, expected in (
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "first"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "cls"}, "first"),
        ({"pooling_mode": "max"}, None),
    ):
        (where / "config.json").write_text(json.dumps(said))
        assert pooling.declared(tmp_path) == expected


def test_minilm(minilm: Path, tmp_path: Path) -> None:
    """The real encoder: it declares the mean; in the folder, the same logits to 1e-4 on texts of 3 to 60 tokens."""
    assert pooling.declared(minilm) == "mean"
    torch.manual_seed(0)
    model = T.AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=4, attn_implementation="eager").eval()
    tokenizer = T.AutoTokenizer.from_pretrained(minilm)
    texts = [
        "ok",
        "a great film",
        "the plot is thin, the acting worse, but what a view " * 4,
        "colourless green ideas sleep furiously",
    ]
    inputs = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        hidden = model.base_model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1).float()
    sentence = (hidden * mask).sum(1) / mask.sum(1)  # the embedding that MiniLM was trained to give
    pooling.install(model, "mean")
    with torch.no_grad():
        model.classifier.weight.normal_(0, 0.5)
        by_hand = model.classifier(torch.nn.functional.layer_norm(sentence, (384,), eps=1e-12))
    trained = logits(model, inputs)
    assert away(trained, by_hand) < 1e-4 and trained.std() > 1
    pooling.exported(model).save_pretrained(tmp_path)
    loaded = T.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert away(logits(loaded, inputs), trained) < 1e-4
    alone = torch.cat([logits(loaded, {n: t[i : i + 1, : int(mask[i].sum())] for n, t in inputs.items()}) for i in range(4)])
    assert away(alone, trained) < 1e-4
