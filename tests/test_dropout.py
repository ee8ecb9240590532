"""Cheap dropout is dropout: the share, the scale, the gradient, repeatable draws, and torch's own where it is not meant."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from affinage.dropout import cheap_dropout, dropout, dropped_before, own_rate


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
def test_share_and_scale(p: float, kind: torch.dtype) -> None:
    torch.manual_seed(0)
    count = 200_003  # no multiple of four
    found = dropout(torch.ones(count, dtype=kind), p)
    kept = found[found != 0]
    assert abs(len(kept) / count - (1 - p)) < 5 * math.sqrt(p * (1 - p) / count) + 2**-16
    assert found.dtype == kind and kept.unique().numel() == 1
    assert kept[0].item() == pytest.approx(1 / (1 - p), rel=2**-7 if kind == torch.bfloat16 else 1e-3)


def test_neighbours_know_nothing_of_each_other() -> None:
    """Four elements share a number of the generator: all sixteen patterns of four are as frequent as chance has it."""
    torch.manual_seed(0)
    patterns = (dropout(torch.ones(400_000), 0.5) != 0).view(-1, 4).long() @ torch.tensor([8, 4, 2, 1])
    counts = patterns.bincount(minlength=16).double()
    expected = counts.sum() / 16
    assert ((counts - expected) ** 2 / expected).sum().item() < 37.7  # chi-squared, 15 degrees, p = 0.001


def test_gradient_is_that_of_what_was_kept() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 5, 3, requires_grad=True)
    y = dropout(x, 0.4)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad * x.detach(), y.detach())


def test_draws_repeat() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, two = (dropout(torch.ones(11, 13), 0.3) for _ in range(2))
    torch.set_rng_state(state)
    assert torch.equal(dropout(torch.ones(11, 13), 0.3), one) and not torch.equal(one, two)


@pytest.mark.parametrize("more", [{"training": False}, {"p": 1.0}, {"inplace": True}])
def test_elsewhere_it_is_torchs_own(more: dict[str, Any]) -> None:
    found = []
    for drop in (dropout, nn.functional.dropout):
        torch.manual_seed(0)
        found.append(drop(torch.ones(50), **{"p": 0.5, **more}))
    assert torch.equal(*found)


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_no_probability(p: float) -> None:
    with pytest.raises(ValueError, match="probability"):
        dropout(torch.ones(3), p)


def test_layers_use_it_for_a_while() -> None:
    layer, own = nn.Dropout(0.5), nn.functional.dropout
    torch.manual_seed(0)
    expected = dropout(torch.ones(64), 0.5)
    torch.manual_seed(0)
    with pytest.raises(ZeroDivisionError), cheap_dropout():
        assert torch.equal(layer(torch.ones(64)), expected)
        _ = 1 / 0
    assert nn.functional.dropout is own


def test_recomputed_blocks_drop_the_same(seed: int = 0) -> None:
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(seed)
    block = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8))
    x = torch.randn(4, 8)
    found = []
    for recomputed in (False, True):
        block.zero_grad()
        torch.manual_seed(1)
        with cheap_dropout():
            y = checkpoint(block, x, use_reentrant=False) if recomputed else block(x)
            y.square().sum().backward()
        found.append([p.grad.clone() for p in block.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)) and len(found[0]) == 4


MASK = torch.ones(8, 4, dtype=torch.bool)


class Block(nn.Module):
    """Gives what it reads."""

    def forward(self, mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return x


def test_a_block_reads_its_first_tensor_through_dropout() -> None:
    x = torch.ones(8, 4, 1000)
    for block in (nn.Identity(), Block()):
        run = (lambda b=block: b(x)) if isinstance(block, nn.Identity) else (lambda b=block: b(MASK, x=x))
        with dropped_before(block, 0.25):
            found = run()
            assert set(found.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
            assert abs((found == 0).float().mean().item() - 0.25) < 0.01
            block.eval()
            assert torch.equal(run(), x), "only what learns"
            block.train()
        assert torch.equal(run(), x) and not block._forward_pre_hooks


def test_no_block_nothing_to_drop() -> None:
    with dropped_before(None, 0.5):
        assert torch.equal(nn.Identity()(torch.ones(9)), torch.ones(9))


def test_the_rate_of_a_block_is_that_of_what_it_gives() -> None:
    assert own_rate(nn.Sequential(nn.Dropout(0.3), nn.Linear(2, 2), nn.Dropout(0.2), nn.LayerNorm(2))) == 0.2
    assert own_rate(nn.Linear(2, 2)) == 0.0
