"""Products of training in bf16: autocast's numbers forwards, its gradients backwards, and layers that are left as they were."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from affinage.instead import instead
from affinage.product import Product, products

CPU = torch.device("cpu")


def two(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 8, bias=False), nn.Linear(8, 3))


def grads(model: nn.Module, x: torch.Tensor, *, ours: bool) -> list[torch.Tensor | None]:
    model.zero_grad()
    with instead(products(model, "bf16" if ours else "fp32", CPU)):
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
        out.float().square().sum().backward()
    return [out, x.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("shape", [(6, 24), (2, 5, 24)])
def test_like_autocast(shape: tuple[int, ...]) -> None:
    """The output bit by bit; gradients as near to those of fp32 as autocast's are, in the layout of the weights."""
    model = two()
    inputs = [torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    theirs, ours = grads(model, inputs[0], ours=False), grads(model, inputs[1], ours=True)
    assert ours[0] is not None and theirs[0] is not None and torch.equal(ours[0], theirs[0])
    for one, other, like in zip(ours[1:], theirs[1:], [inputs[0], *model.parameters()], strict=True):
        assert one is not None and other is not None
        assert one.dtype == torch.float32 and one.shape == like.shape and one.stride() == like.stride()
        assert (one - other).norm() <= 0.01 * other.norm()


def test_gradient_is_the_products() -> None:
    """With numbers that bf16 holds exactly, the closed form: G W, G^T X and the column sums of G."""
    draw = torch.Generator().manual_seed(0)
    x, weight, bias, outer = (torch.randint(-3, 4, size, generator=draw).float() for size in ((4, 5), (3, 5), (3,), (4, 3)))
    for tensor in (x, weight, bias):
        tensor.requires_grad_()
    Product.apply(x, weight, bias).backward(outer.bfloat16())
    assert x.grad is not None and torch.equal(x.grad, outer @ weight)
    assert weight.grad is not None and torch.equal(weight.grad, outer.t() @ x)
    assert bias.grad is not None and torch.equal(bias.grad, outer.sum(0))


def test_what_is_frozen_gets_no_gradient() -> None:
    model, x = two(), torch.randn(4, 24)
    for parameter in model[0].parameters():
        parameter.requires_grad = False
    found = grads(model, x, ours=True)
    assert found[1:4] == [None, None, None] and all(g is not None for g in found[4:])


def test_layers_are_left_as_they_were() -> None:
    """Also after an error; fp32 and subclasses of Linear are never touched."""
    model = two()
    before = model(torch.ones(1, 24))
    with pytest.raises(RuntimeError, match="midway"), instead(products(model, "bf16", CPU)):
        assert "forward" in model[0].__dict__
        raise RuntimeError("midway")
    assert torch.equal(model(torch.ones(1, 24)), before) and "forward" not in model[0].__dict__
    with instead(products(model, "fp32", CPU)):
        assert "forward" not in model[0].__dict__

    class Own(nn.Linear):
        pass

    odd = nn.Sequential(Own(2, 2))
    with instead(products(odd, "bf16", CPU)):
        assert "forward" not in odd[0].__dict__


def test_a_processor_without_such_kernels() -> None:
    """bf16 can be asked for anywhere: a pass and an update on a processor of before AVX-512."""
    code = """
import numpy as np, torch
from torch import nn
from affinage.features import autocast, packed
from affinage.instead import instead
from affinage.product import products
model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
with torch.inference_mode(), packed(model, "bf16"), autocast("bf16"):
    seen = model(torch.ones(3, 8))
with instead(products(model, "bf16", torch.device("cpu"))), autocast("bf16"):
    taught = model(torch.ones(3, 8))
    taught.float().sum().backward()
assert torch.allclose(seen.float(), taught.float(), atol=0.05) and model[0].weight.grad.isfinite().all()
"""
    older = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    found = subprocess.run([sys.executable, "-c", code], env=older, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr


def test_what_comes_out_may_be_written_into() -> None:
    """wav2vec2's classifier silences its padding in place."""
    model, x = nn.Linear(6, 4), torch.randn(3, 5, 6)
    with instead(products(model, "bf16", torch.device("cpu"))):
        out = model(x)
        out[out > 0] = 0.0
        out.sum().backward()
    assert model.weight.grad is not None and model.weight.grad.isfinite().all()
