"""Layout: how the shape of a tensor between two blocks follows from the batch; it is kept row after row, real tokens alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch


class Uncuttable(Exception):
    """The network cannot be cut there; the message says why, in half a sentence."""


@dataclass(frozen=True)
class Layout:
    """How a tensor's shape follows from the batch, and in what order its dimensions lie in memory."""

    sizes: tuple[int, ...]  # as seen; `batch` and `tokens` tell which of them change
    batch: int | None  # the dimension that grows with the rows, None if there is none
    times: int  # its size, a row
    tokens: tuple[int, ...]  # the dimensions that are as long as the longest row
    order: tuple[int, ...]  # dimensions from the slowest to the fastest in memory, rows first, then tokens
    dtype: torch.dtype

    @classmethod
    def of(cls, one: torch.Tensor, fewer: torch.Tensor, shorter: torch.Tensor, rows: tuple[int, int], tokens: int) -> Layout:
        """From three looks: `one` of `rows[0]` rows of `tokens` tokens, `fewer` of `rows[1]` rows, `shorter` of fewer tokens."""
        if not one.dim() == fewer.dim() == shorter.dim():
            raise Uncuttable("the number of dimensions of what it leaves changes from batch to batch")
        batch, times, long = None, 1, []
        for d, (a, b, c) in enumerate(zip(one.shape, fewer.shape, shorter.shape, strict=True)):
            if a != b and batch is None and a % rows[0] == 0 and a // rows[0] * rows[1] == b:
                batch, times = d, a // rows[0]
            elif a == b and b != c and a == tokens:
                long.append(d)
            elif not a == b == c:
                raise Uncuttable(f"what it leaves has a shape that follows neither rows nor tokens: {tuple(one.shape)}")
        strides = one.stride()
        first = [d for d in (batch, *long) if d is not None]
        rest = sorted((d for d in range(one.dim()) if d not in first), key=lambda d: -strides[d])
        return cls(tuple(one.shape), batch, times, tuple(long), (*first, *rest), one.dtype)

    def shape(self, rows: int, tokens: int) -> tuple[int, ...]:
        """Of the tensor for a batch of `rows` rows, the longest of `tokens` tokens."""
        return tuple(
            rows * self.times if d == self.batch else tokens if d in self.tokens else n for d, n in enumerate(self.sizes)
        )

    @property
    def unit(self) -> tuple[int, ...]:
        """The shape of what is kept a token, or a row where nothing grows with tokens."""
        rest = tuple(self.sizes[d] for d in self.order if d != self.batch and d not in self.tokens)
        return rest if self.tokens else (self.times, *rest)

    def pack(self, tensor: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(units, *unit): row after row; of a row with tokens only the real ones, which `mask` (B, T) tells."""
        laid = tensor.permute(self.order)
        if self.tokens:
            return laid[mask.bool()] if mask is not None else laid.flatten(0, 1)
        return laid.reshape(-1, *self.unit)

    def unpack(self, units: torch.Tensor, mask: torch.Tensor | None, rows: int, tokens: int) -> torch.Tensor:
        """The inverse of `pack`; zeros where a row has no token."""
        units = units.to(self.dtype)
        if not self.tokens:
            laid = units.reshape(rows * self.times, *self.unit[1:])
        elif mask is None:
            laid = units.reshape(rows, tokens, *self.unit)
        else:
            laid = units.new_zeros(rows, tokens, *self.unit)
            laid[mask.bool()] = units
        return laid.permute([self.order.index(d) for d in range(len(self.order))])
