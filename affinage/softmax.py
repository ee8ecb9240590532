"""Softmax over short rows on a CPU: torch's takes them number by number where they are shorter than one register.

Attention over a text of 12 tokens is 5,760 such rows in a batch of 512 tokens: 1.2 ms a layer, where rows of 16 take 0.17
(`python benchmarks/softmax.py`). Filled up with minus infinity, a short row is one of 16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch.nn import functional

_torchs = functional.softmax


@lru_cache
def width() -> int:
    """Floats in a register as torch's kernels use them; 1 where they use none."""
    return {"AVX512": 16, "AVX2": 8}.get(torch.backends.cpu.get_cpu_capability(), 1)


def softmax(input: torch.Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> torch.Tensor:
    """`torch.nn.functional.softmax`, to 2e-7; another kernel where rows along the last dimension are short and on a CPU."""
    size = input.shape[-1] if input.dim() else 0
    last = dim is not None and dim in (-1, input.dim() - 1)
    if not (last and 1 < size < width()) or input.device.type != "cpu" or torch.compiler.is_compiling():
        return _torchs(input, dim, _stacklevel, dtype)
    filled = functional.pad(input, (0, width() - size), value=-torch.inf)
    return _torchs(filled, -1, dtype=dtype)[..., :size]


@contextmanager
def short_rows() -> Iterator[None]:
    """While it lasts, models that call `torch.nn.functional.softmax` call this one, where blocks are recomputed backwards too."""
    functional.softmax = softmax
    try:
        yield
    finally:
        functional.softmax = _torchs
