"""The matrix products of training in bf16 on a CPU: autocast's, with gradients laid out as the weights are.

Autocast multiplies by the transposed weight, so that the weight's gradient comes out transposed, in bf16; turning it into the
layout and the type of the master weight walks memory column by column, and is a fifth of a step over short rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from affinage.instead import untouched

HALF = torch.bfloat16


@lru_cache
def fused() -> bool:
    """Whether this processor's products in bf16 take packed weights, and their bias as they go."""
    ops = torch.ops.mkldnn
    return hasattr(ops, "_linear_pointwise") and bool(ops._is_mkldnn_bf16_supported())


class Product(torch.autograd.Function):
    """x (..., I), weight (O, I), bias (O,) or None -> (..., O) in bf16; gradients of the types that came in."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        x_half, weight_half = x.to(HALF), weight.to(HALF)
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x_half if needs_weight else None, weight_half if needs_x else None)
        ctx.types = x.dtype, weight.dtype
        return _product(x_half, weight_half, bias.to(HALF) if bias is not None else None)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:  # type: ignore[override]
        x_half, weight_half = ctx.saved_tensors
        x_type, weight_type = ctx.types
        flat = gradient.reshape(-1, gradient.shape[-1])
        # first, while what has just been computed is near
        to_bias = flat.sum(0, dtype=torch.float32).to(weight_type) if ctx.needs_input_grad[2] else None
        to_x = (flat @ weight_half).to(x_type).view(*gradient.shape[:-1], -1) if weight_half is not None else None
        to_weight = (flat.t() @ x_half.reshape(-1, x_half.shape[-1])).to(weight_type) if x_half is not None else None
        return to_x, to_weight, to_bias


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`linear`, which would write the bias over the whole output before the product is added to it."""
    if bias is None or not fused():
        return linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _forward(layer: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    """Rows flattened outside of `Product`: what it gives is then no view of its own making, and may be written into in place."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        return Product.apply(x.reshape(-1, x.shape[-1]), layer.weight, layer.bias).view(*x.shape[:-1], layer.out_features)

    return forward


def products(model: nn.Module, precision: str, where: torch.device) -> dict[nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    """What the plain linear layers of a model that trains in bf16 on a CPU run instead; nothing of one that trains otherwise."""
    if precision != "bf16" or where.type != "cpu":
        return {}
    return {layer: _forward(layer) for layer in model.modules() if type(layer) is nn.Linear and untouched(layer)}
