"""Attention of a pass in bf16 on a CPU: exponentials alone, divided by their sum where the values have been summed up.

The usual way (`eager_attention_forward` of BERT and of some seventy other families) turns the scores into fp32, takes torch's
softmax, which is slow in rows shorter than a register, and turns them back: up to an eighth of a pass over such rows, and up to
a twenty-fifth over those of a few dozen tokens (`benchmarks/attention.py`). What is rounded is the same. Where exponentials
could be too large or too small, the usual way is gone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

NAME = "eager_attention_forward"  # by which a file of transformers calls it
SHORT = 64  # tokens of a row from which it gains nothing
LEAST, MOST = 1e-30, 1e30  # sums of exponentials between which none that counts was lost

Attention = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


@contextmanager
def quick_attention(model: nn.Module) -> Iterator[None]:
    """While it lasts, the layers of a model that attend as BERT does are quick about it, in passes without gradients in bf16."""
    before = {file: getattr(file, NAME) for file in _files(model)}
    for file, usual in before.items():
        setattr(file, NAME, quick(usual))
    try:
        yield
    finally:
        for file, usual in before.items():
            setattr(file, NAME, usual)


def quick(usual: Attention) -> Attention:
    """`usual`, BERT's eager attention, or what gives the same but for rounding; no weights beside it."""

    def attend(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **more: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, heads, T, D) each, (B, 1, T or 1, T) -> (B, T, heads, D)."""
        # one for all heads: what differs by head is no mask but a bias, and as good as its digits
        added = attention_mask is None or (attention_mask.is_floating_point() and attention_mask.shape[1] == 1)
        short = query.dtype == torch.bfloat16 and key.shape[2] < SHORT
        if short and added and not (torch.is_grad_enabled() or module.training):
            scores = torch.matmul(query, key.transpose(2, 3)).mul_(query.size(-1) ** -0.5 if scaling is None else scaling)
            if attention_mask is not None:
                scores.add_(attention_mask.to(scores.dtype))
            sums = scores.exp_().sum(-1, keepdim=True, dtype=torch.float32)
            least, most = torch.aminmax(sums)
            if least > LEAST and most < MOST:  # false of what is no number, too
                return torch.matmul(scores, value).mul_(sums.reciprocal_()).transpose(1, 2).contiguous(), None
        return usual(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **more)

    return attend


def _files(model: nn.Module) -> list[ModuleType]:
    """The files of transformers in which layers of the model find BERT's eager attention, to the letter."""
    if getattr(getattr(model, "config", None), "output_attentions", False):
        return []
    named = {type(module).__module__ for module in model.modules()}
    loaded = [sys.modules[name] for name in sorted(named) if name in sys.modules]
    files = [file for file in loaded if isinstance(getattr(file, NAME, None), FunctionType)]
    if not files:
        return []
    from transformers.models.bert import modeling_bert

    known = _letters(modeling_bert.eager_attention_forward)
    return [file for file in files if _letters(getattr(file, NAME)) == known and _proven(getattr(file, NAME))]


def _letters(function: Any) -> tuple[Any, ...]:
    code = function.__code__
    return code.co_code, code.co_consts, code.co_names, code.co_varnames, function.__defaults__


def _proven(usual: Attention) -> bool:
    """Whether what is done here gives what that does, on a few numbers."""
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 2, 5, 8, generator=draw).bfloat16() for _ in range(3))
    mask = torch.zeros(2, 1, 5, 5)
    mask[1, ..., 3:] = torch.finfo(mask.dtype).min
    layer = nn.Identity().eval()
    with torch.no_grad():
        (ours, _), (theirs, _) = (way(layer, query, key, value, mask.bfloat16()) for way in (quick(usual), usual))
    return torch.allclose(ours.float(), theirs.float(), rtol=2e-2, atol=2e-2)
