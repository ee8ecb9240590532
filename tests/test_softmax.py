"""Short rows filled up to a register: torch's numbers and gradients, and torch's own kernel wherever the rows are not short."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from affinage import softmax as own
from affinage.features import kernels
from affinage.softmax import short_rows, softmax


@pytest.fixture(autouse=True)
def registers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sixteen, whatever this processor has."""
    monkeypatch.setattr(own, "width", lambda: 16)


@pytest.mark.parametrize("size", [1, 2, 7, 15, 16, 17, 40])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("into", [None, torch.float32])
def test_torchs_numbers_and_gradients(size: int, kind: torch.dtype, into: torch.dtype | None) -> None:
    draw = torch.Generator().manual_seed(size)
    scores = (5 * torch.randn((3, 2, 4, size), generator=draw)).to(kind)
    outer = torch.randn((3, 2, 4, size), generator=draw).to(into or kind)
    found = []
    for compute in (softmax, functional.softmax):
        x = scores.clone().requires_grad_()
        y = compute(x, dim=-1, dtype=into)
        y.backward(outer)
        assert y.dtype == (into or kind) and y.shape == x.shape and x.grad is not None
        found.append((y.detach(), x.grad))
    close = dict(rtol=0, atol=2**-8) if kind == torch.bfloat16 else dict(rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, **close)


@pytest.mark.parametrize("hidden", [torch.finfo(torch.float32).min, -torch.inf])
def test_masked_tokens_get_nothing(hidden: float) -> None:
    scores = torch.tensor([[1.0, 2.0, hidden, hidden], [hidden] * 4])
    found = softmax(scores, -1)
    assert torch.equal(found[0, 2:], torch.zeros(2)) and found[0].sum().item() == pytest.approx(1)
    expected = functional.softmax(scores, -1)  # of a row that is all hidden: even, or nan
    assert torch.equal(found[1].isnan(), expected[1].isnan()) and torch.equal(found[1].nan_to_num(), expected[1].nan_to_num())


@pytest.mark.parametrize("dim", [0, 1, -2])
def test_along_another_dimension_it_is_torchs_own(dim: int) -> None:
    x = torch.randn(3, 4, 5)
    assert torch.equal(softmax(x, dim), functional.softmax(x, dim))


def test_the_last_dimension_by_its_number() -> None:
    x = torch.randn(3, 4, 5)
    torch.testing.assert_close(softmax(x, 2), softmax(x, -1), rtol=0, atol=0)
    assert softmax(torch.tensor(3.0), 0).item() == 1


def test_models_use_it_for_a_while() -> None:
    layer, before = nn.Softmax(-1), functional.softmax
    x = torch.randn(2, 5)
    with pytest.raises(ZeroDivisionError), short_rows():
        assert functional.softmax is softmax and torch.equal(layer(x), softmax(x, -1))
        _ = 1 / 0
    assert functional.softmax is before
    if not torch.cuda.is_available():
        with kernels("fp32"):
            assert functional.softmax is softmax
    assert functional.softmax is before
