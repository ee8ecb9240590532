"""Batch norm over several ranks: in one process it is torch's own, forwards, backwards, and in its running statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from affinage import joint, ranks


def forwarded(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(output, gradients of the input and the parameters) of one pass with a loss that is not the same everywhere."""
    x = x.clone().requires_grad_()
    out = layer(x)
    (out.float() * torch.linspace(-1, 2, out.numel()).view(out.shape)).sum().backward()
    return out.detach(), [x.grad, *(p.grad for p in layer.parameters())]


def _without_bias(layer: nn.Module) -> nn.Module:
    """As newer versions of torch make it with `bias=False`."""
    layer.bias = None
    return layer


@pytest.mark.parametrize(
    ("made", "shape"),
    [
        (nn.BatchNorm2d(5), (4, 5, 6, 7)),
        (nn.BatchNorm1d(5, momentum=None), (8, 5)),
        (nn.BatchNorm1d(5, affine=False), (4, 5, 9)),
        (nn.BatchNorm2d(5, track_running_stats=False), (3, 5, 2, 2)),
        (_without_bias(nn.BatchNorm2d(5)), (3, 5, 2, 2)),
    ],
    ids=["2d", "cumulative", "plain", "no statistics", "no bias"],
)
@pytest.mark.parametrize("training", [True, False])
def test_alone_it_is_the_layers_own(
    made: nn.Module, shape: tuple[int, ...], training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    plain, ours = copy.deepcopy(made).train(training), copy.deepcopy(made).train(training)
    monkeypatch.setattr(ranks, "count", lambda: 2)  # there is no team: sums are those of this process
    x = 3 + 2 * torch.randn(shape)
    for _ in range(2):
        for layer in (plain, ours):
            layer.zero_grad()
        want = forwarded(plain, x)
        with joint.joint(ours):
            got = forwarded(ours, x)
        assert torch.allclose(got[0], want[0], atol=1e-5)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(got[1], want[1], strict=True))
    for name, buffer in plain.named_buffers():
        assert torch.allclose(buffer.float(), dict(ours.named_buffers())[name].float(), atol=1e-6), name
    assert "forward" not in ours.__dict__


def test_rows_that_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks in turn, the sums of the first handed to the second: what is unseen gets the statistics of the others."""
    layer = nn.BatchNorm1d(3).train()
    x, company = torch.randn(6, 3), torch.randn(1, 3)
    sums: list[torch.Tensor] = []
    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr(ranks, "add", lambda tensors: sums.append(tensors[0].clone()))
    with joint.joint(layer), joint.unseen():
        layer(company)
    assert sums[0].tolist() == [0.0] * 7

    def all_of_them(tensors: list[torch.Tensor]) -> None:
        tensors[0] += torch.cat([x.double().sum(0), x.double().square().sum(0), torch.tensor([6.0], dtype=torch.float64)])

    monkeypatch.setattr(ranks, "add", all_of_them)
    asked = company.clone().requires_grad_()
    with joint.joint(layer), joint.unseen():
        out = layer(asked)
    monkeypatch.setattr(ranks, "add", lambda tensors: tensors[0].add_(1.0))  # the gradients of the others
    (0.0 * out.sum()).backward()
    assert asked.grad is not None and not asked.grad.any() and layer.weight.grad is not None and not layer.weight.grad.any()
    want = (company - x.mean(0)) / (x.var(0, unbiased=False) + layer.eps).sqrt()
    assert torch.allclose(out, want, atol=1e-5)


def test_half_stays_half(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.BatchNorm1d(3).train()
    monkeypatch.setattr(ranks, "count", lambda: 2)
    with joint.joint(layer):
        assert layer(torch.randn(6, 3).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("affine", [True, False])
def test_what_comes_out_may_be_written_into(affine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a ReLU in place, as networks of convolutions have it."""
    monkeypatch.setattr(ranks, "count", lambda: 2)
    net = nn.Sequential(nn.BatchNorm1d(3, affine=affine), nn.ReLU(inplace=True))
    x = torch.randn(6, 3, requires_grad=True)
    with joint.joint(net):
        net(x).square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_recomputed_rows_do_not_count_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that runs again on the way back hands over what it handed over before."""
    from torch.utils.checkpoint import checkpoint

    sums: list[torch.Tensor] = []
    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr(ranks, "add", lambda tensors: (sums.append(tensors[0].clone()), tensors[0].add_(1.0))[0])
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with joint.joint(net), joint.unseen():
        checkpoint(net, torch.randn(2, 3), use_reentrant=False).sum().backward()
    forwards = [one for one in sums if one.dim() == 1]
    assert len(forwards) == 2 and not any(one.any() for one in forwards)


def test_a_lone_value_goes_by_the_running_statistics() -> None:
    """torch refuses it; two rows are normalised among themselves, as ever."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    torch.manual_seed(0)
    model(torch.randn(16, 3))
    one, two = torch.randn(1, 3), torch.randn(2, 3)
    with pytest.raises(ValueError, match="more than 1 value"):
        model(one)
    want, before = copy.deepcopy(model).eval()(one), copy.deepcopy(model.state_dict())
    with joint.lone(model):
        assert torch.equal(model(one), want)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        got = model(two)
    assert "forward" not in model[1].__dict__ and torch.allclose(got.mean(0), torch.zeros(4), atol=1e-6)
