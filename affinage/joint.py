"""Batch norm of several ranks: the statistics are those of the rows of all of them, as in one process.

torch's own `SyncBatchNorm` runs on GPUs only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from affinage import ranks
from affinage.instead import instead

_counts = True  # whether the rows of this pass count: not those of a rank that has none and only keeps the others company


class Normalised(torch.autograd.Function):
    """x (B, C, ...), weight and bias (C,) or None -> (the same shape and type; mean (C,), variance (C,), rows and places N).

    Ioffe 2015 (arXiv 1502.03167), algorithm 1, over the rows of all ranks: one sum over the ranks there and one back. The
    gradients of weight and bias are those of this rank's rows, as every layer's are.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: Any, bias: Any, eps: float) -> tuple[torch.Tensor, ...]:
        over = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        wide = x.float()
        share = float(_counts)
        sums = torch.stack([wide.sum(over, dtype=torch.float64), wide.double().square().sum(over)]) * share
        count = torch.full((1,), share * x.numel() / x.shape[1], dtype=torch.float64, device=x.device)
        ranks.add([both := torch.cat([sums.flatten(), count])])
        total = both[-1]
        mean, square = (both[:-1] / total).view(2, -1)
        variance = (square - mean.square()).clamp_min(0.0)
        inverse = (variance + eps).rsqrt().float()
        ready = (wide - mean.float().view(shape)) * inverse.view(shape)
        out = ready.clone() if weight is None else ready * weight.view(shape)  # what is kept must not be written into
        if bias is not None:
            out += bias.view(shape)
        ctx.save_for_backward(ready, inverse, weight, total)
        ctx.share = share
        ctx.mark_non_differentiable(mean, variance, total)
        return out.to(x.dtype), mean, variance, total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[Any, ...]:  # type: ignore[override]
        ready, inverse, weight, total = ctx.saved_tensors
        over = [d for d in range(ready.dim()) if d != 1]
        shape = [1, -1, *[1] * (ready.dim() - 2)]
        wide = gradient.float()
        own = torch.stack([wide.sum(over), (wide * ready).sum(over)])
        ranks.add([both := own.clone()])
        mean, slope = (both / total).float()
        scale = ctx.share * (inverse if weight is None else inverse * weight)  # unseen rows moved no statistic
        to_x = (wide - mean.view(shape) - ready * slope.view(shape)) * scale.view(shape)
        return to_x.to(gradient.dtype), own[1] if weight is not None else None, own[0] if ctx.needs_input_grad[2] else None, None


def _forward(layer: _BatchNorm) -> Callable[[torch.Tensor], torch.Tensor]:
    """Over all ranks, the running statistics too."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        out, mean, variance, total = Normalised.apply(x, layer.weight, layer.bias, layer.eps)
        if layer.track_running_stats and layer.running_mean is not None and layer.running_var is not None:
            with torch.no_grad():
                assert layer.num_batches_tracked is not None
                layer.num_batches_tracked += 1
                step = layer.momentum if layer.momentum is not None else 1.0 / float(layer.num_batches_tracked)
                layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), step)
                layer.running_var.lerp_((variance * total / (total - 1).clamp_min(1)).to(layer.running_var.dtype), step)
        return out

    return forward


def layers(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms that look at the other rows now."""
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training]


def statistics(model: nn.Module) -> Callable[[], None]:
    """What puts the running statistics of the batch norms that learn back to what they are now: two launches on a GPU."""
    found = [buffer for layer in layers(model) for buffer in layer.buffers(recurse=False)]
    kinds = [[b for b in found if b.is_floating_point() == real] for real in (True, False)]
    kept = [(live, torch._foreach_add(live, 0)) for live in kinds if live]

    def back() -> None:
        for live, before in kept:
            torch._foreach_copy_(live, before)

    return back


def joint(model: nn.Module) -> AbstractContextManager[None]:
    """While it lasts, batch norms in train mode see the rows of all ranks. All ranks must run them equally often."""
    return instead({layer: _forward(layer) for layer in layers(model)} if ranks.count() > 1 else {})


def lone(model: nn.Module) -> AbstractContextManager[None]:
    """While it lasts, batch norms in train mode that see one value a channel go by their running statistics: one has no spread.

    torch refuses it: LeViT's head, where an epoch leaves one row over.
    """

    def forward(layer: _BatchNorm) -> Callable[[torch.Tensor], torch.Tensor]:
        own = layer.forward

        def run(x: torch.Tensor) -> torch.Tensor:
            if x.numel() > x.shape[1] or layer.running_mean is None:
                return own(x)
            return batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, False, 0.0, layer.eps)

        return run

    return instead({layer: forward(layer) for layer in layers(model)})


@contextmanager
def unseen() -> Iterator[None]:
    """Rows that run along and count for nothing: of a rank that has none left in this pass."""
    global _counts
    _counts = False
    try:
        yield
    finally:
        _counts = True
