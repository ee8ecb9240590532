"""Quick attention is the usual one but for rounding, steps aside where it could not be, and leaves no trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as T
from torch import nn
from transformers.models.bert import modeling_bert
from transformers.models.llama import modeling_llama
from transformers.models.roberta import modeling_roberta

from affinage import attention, features
from affinage.attention import quick, quick_attention
from affinage.tasks.text_classification import TokenRows

USUAL = modeling_bert.eager_attention_forward
LAYER = nn.Identity().eval()


def given(tokens: int, kind: torch.dtype = torch.bfloat16, size: float = 1.0) -> tuple[torch.Tensor, ...]:
    """Queries, keys, values (3, 4, T, 32) and a mask that hides the end of the second row."""
    draw = torch.Generator().manual_seed(tokens)
    mask = torch.zeros(3, 1, tokens, tokens)
    mask[1, ..., tokens - tokens // 3 :] = torch.finfo(torch.float32).min
    query, key, value = (torch.randn(3, 4, tokens, 32, generator=draw) for _ in range(3))
    return (size * query).to(kind), key.to(kind), value.to(kind), mask


@pytest.mark.parametrize("tokens", [1, 3, 8, 15, 16, 17, 40, 63])
@torch.no_grad()
def test_it_rounds_no_worse(tokens: int) -> None:
    """Against the usual way in fp32, beside the usual way in bf16; a mask per query or one for all, or none."""
    *three, mask = given(tokens)
    for hides in (mask, mask[:, :, :1], mask.bfloat16(), None):
        exact = USUAL(LAYER, *(one.float() for one in three), None if hides is None else hides.float())[0]
        with torch.autocast("cpu", torch.bfloat16):
            usual = USUAL(LAYER, *three, hides)[0]
        mine, beside = quick(USUAL)(LAYER, *three, hides)
        assert mine.shape == exact.shape and mine.dtype == torch.bfloat16 and beside is None and mine.is_contiguous()
        errors = [float((found.float() - exact).norm() / exact.norm()) for found in (mine, usual)]
        assert errors[0] < max(0.004, 1.25 * errors[1]), errors  # of one token alone the usual way does not round


@torch.no_grad()
def test_where_exponentials_would_be_lost_the_usual_way_is_gone() -> None:
    """Scores beyond what an exponential holds, rows that see nothing, what is no number: the usual answer to the bit."""
    *three, mask = given(9)
    blind = mask.clone()
    blind[0, :, 2] = -torch.inf
    broken = [one.clone() for one in three]
    broken[0][0, 0, 0, 0] = torch.nan
    for queries, keys, values, hides in ((*given(9, size=200)[:3], mask), (*three, blind), (*broken, mask), (*three, mask - 100)):
        with torch.autocast("cpu", torch.bfloat16):
            mine, usual = (way(LAYER, queries, keys, values, hides)[0] for way in (quick(USUAL), USUAL))
        assert mine.equal(usual) or bool((mine.isnan() == usual.isnan()).all() and mine.nan_to_num().equal(usual.nan_to_num()))


@pytest.mark.parametrize("why", ["fp32", "gradients", "training", "a mask of truths", "a bias by head", "long rows"])
def test_it_is_for_passes_over_short_rows_in_bf16(why: str) -> None:
    *three, mask = given(attention.SHORT if why == "long rows" else 9, torch.float32 if why == "fp32" else torch.bfloat16)
    layer = nn.Identity().train(why == "training")
    asked: list[bool] = []

    def usual(*words: Any, **more: Any) -> tuple[torch.Tensor, None]:
        asked.append(True)
        return words[1], None

    with torch.set_grad_enabled(why == "gradients"):
        masks = {"a mask of truths": mask == 0, "a bias by head": mask.expand(-1, 4, -1, -1)}
        quick(usual)(layer, *three, masks.get(why, mask))
    assert asked


def test_it_is_put_in_the_place_of_berts_alone_and_taken_away() -> None:
    """RoBERTa's is the same to the letter; Llama's repeats keys. A model that is asked for its weights keeps all."""
    sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=40)
    llama = T.LlamaForSequenceClassification(T.LlamaConfig(**sizes, pad_token_id=0))
    roberta = T.RobertaForSequenceClassification(T.RobertaConfig(**sizes, attn_implementation="eager"))
    before = modeling_roberta.eager_attention_forward
    with pytest.raises(KeyboardInterrupt), quick_attention(roberta):
        assert modeling_roberta.eager_attention_forward is not before
        assert modeling_bert.eager_attention_forward is USUAL
        raise KeyboardInterrupt
    assert modeling_roberta.eager_attention_forward is before
    theirs = modeling_llama.eager_attention_forward
    with quick_attention(llama):
        assert modeling_llama.eager_attention_forward is theirs
    roberta.config.output_attentions = True
    with quick_attention(roberta):
        assert modeling_roberta.eager_attention_forward is before


def test_a_class_without_a_file() -> None:
    """As one has that was loaded by hand: there is nothing to be put in the place of."""
    lonely = type("Lonely", (nn.Linear,), {"__module__": "nowhere"})
    with quick_attention(layer := lonely(2, 2)):
        assert layer(torch.ones(1, 2)).shape == (1, 2)


def test_what_gives_other_numbers_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "quick", lambda usual: lambda *words, **more: (2 * usual(*words, **more)[0], None))
    with quick_attention(T.BertModel(T.BertConfig(num_hidden_layers=1, vocab_size=40))):
        assert modeling_bert.eager_attention_forward is USUAL


@pytest.mark.skipif(not features.fused(), reason="this processor does not multiply in bf16")
def test_a_pass_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The features of a pass in bf16 lie as near to those in fp32 as with the usual attention, and other modes ask nothing."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, vocab_size=200)
    model = T.BertForSequenceClassification(T.BertConfig(**sizes, attn_implementation="eager")).eval()
    lengths = np.array([5, 9, 9, 14, 30])
    draw = np.random.default_rng(0)
    rows = TokenRows(draw.integers(5, 200, lengths.sum()).astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]), 0)
    calls: list[int] = []
    attend = torch.Tensor.exp_
    monkeypatch.setattr(torch.Tensor, "exp_", lambda self: calls.append(1) or attend(self))
    exact, _ = features.passed(model, rows, "fp32", model.classifier)
    assert not calls
    mine, _ = features.passed(model, rows, "bf16", model.classifier)
    assert len(calls) >= 3
    monkeypatch.setattr(attention, "LEAST", np.inf)
    usual, _ = features.passed(model, rows, "bf16", model.classifier)
    assert exact is not None and mine is not None and usual is not None
    errors = [np.linalg.norm(found - exact) / np.linalg.norm(exact) for found in (mine, usual)]
    assert errors[0] < 1.5 * errors[1] and errors[0] < 0.02, errors
