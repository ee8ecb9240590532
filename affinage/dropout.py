"""Dropout on a CPU for less than a third of its price: sixteen random bits an element, where torch draws 53 for each.

And dropout at a cut. Frozen blocks run once, without theirs; what learns above would see the same numbers in every epoch, and
learn them by heart. One dropout of what reaches it, at their own rate, stands for theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

WIDTH = 16  # bits an element; p is met to 2 ** -17
_torchs = functional.dropout


def dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """`torch.nn.functional.dropout`, of the same law but for p, which is rounded to whole parts of 2 ** 16; other draws.

    The bits come of torch's generator of the CPU, so that a run repeats, and goes on, exactly. What is divided by is the share
    that is really kept: the mean stays what it was. Not on a CPU, in a compiled graph, in place or at p = 1 it is torch's own; at
    p = 0 nothing is drawn.

    Raises:
        ValueError: p is not a probability.
    """
    dropped = round(p * 2**WIDTH) if 0 <= p < 1 else 2**WIDTH
    if not training or inplace or dropped == 2**WIDTH or input.device.type != "cpu" or torch.compiler.is_compiling():
        return _torchs(input, p, training, inplace)
    if not dropped:
        return input
    drawn = torch.empty(-(-input.numel() * WIDTH // 64), dtype=torch.int64).random_(-(2**63), None)
    bits = drawn.view(torch.int16)[: input.numel()].view(input.shape)
    kept = torch.ge(bits, dropped - 2 ** (WIDTH - 1), out=torch.empty(input.shape, dtype=input.dtype))
    return input * kept.div_(1 - dropped / 2**WIDTH)


@contextmanager
def cheap_dropout() -> Iterator[None]:
    """While it lasts, layers and attention drop out so. Forwards and, where blocks are recomputed, backwards."""
    functional.dropout = dropout
    try:
        yield
    finally:
        functional.dropout = _torchs


def own_rate(block: nn.Module) -> float:
    """The rate of the last Dropout layer of a block, which what it gives goes through; 0.0 where it has none."""
    return next((layer.p for layer in reversed(list(block.modules())) if isinstance(layer, nn.Dropout)), 0.0)


@contextmanager
def dropped_before(block: nn.Module | None, p: float) -> Iterator[None]:
    """While it lasts, the block in train mode reads its first tensor, (B, T, D), through dropout at `p`; None: nothing changes.

    It is the same whether what is below has run or comes from the store.
    """

    def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        named: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        floats = (key for key, value in named.items() if isinstance(value, torch.Tensor) and value.is_floating_point())
        if not module.training or (first := next(floats, None)) is None:
            return None
        named[first] = functional.dropout(named[first], p)
        return tuple(named[i] for i in range(len(args))), {name: named[name] for name in kwargs}

    hook = block.register_forward_pre_hook(read, with_kwargs=True) if block is not None else None
    try:
        yield
    finally:
        if hook:
            hook.remove()
