"""Shards: each rank holds a part of the blocks that train: weights, gradients and moments (FSDP2); whole only while they run."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from affinage import ranks
from affinage.errors import AffinageError
from affinage.net import Net


class Shards:
    """The training blocks of a network, each in parts over the ranks, until `undo`. Every call is one of all ranks together.

    `mine`: parameter name -> this rank's part, a plain parameter that shares its memory: optimizer, averages and copies work on
    those as on any other, number by number, so that nothing but a norm and a checkpoint needs the other ranks.
    """

    def __init__(self, net: Net, table: Mapping[str, float | None]) -> None:
        """`table`: name -> learning rate, None if frozen; of all parameters.

        Raises:
            AffinageError: a block shares a parameter with something outside it.
        """
        from torch.distributed.fsdp import fully_shard

        self.net = net
        learning = [name for name, rate in table.items() if rate is not None]
        self.names = [block for block in net.blocks if any(name.startswith(block + ".") for name in learning)]
        where = [(name, id(p)) for name, p in net.model.named_parameters(remove_duplicate=False)]
        self.originals: dict[str, nn.Module] = {}
        for name in self.names:
            inside = {i for n, i in where if n.startswith(name + ".")}
            if other := next((n for n, i in where if i in inside and not n.startswith(name + ".")), None):
                raise AffinageError(f"cannot shard {name}: it shares a weight with {other}; leave --shard out")
        for name in self.names:
            block = net.model.get_submodule(name)
            for parameter in block.parameters():  # FSDP takes no weights that are laid out channels last
                parameter.data = parameter.data.contiguous()
            held = [*block.parameters(), *block.buffers()]
            twin: Any = copy.deepcopy(block, {id(t): t for t in held})  # the same tensors: nothing is held twice
            self.originals[name] = block.to("meta")  # FSDP cannot be taken off a module again, so it never gets the original
            net.model.set_submodule(name, twin)
            fully_shard(twin, reshard_after_forward=True)
            twin.set_gradient_divide_factor(1.0)  # sums: the losses are weighted already
            twin.set_force_sum_reduction_for_comms(True)
        self.parts: dict[str, Any] = {n: p for n, p in net.model.named_parameters() if hasattr(p, "to_local")}
        self.mine = {n: nn.Parameter(p.detach().to_local(), requires_grad=p.requires_grad) for n, p in self.parts.items()}

    def gradients(self) -> None:
        """Hand what the backward pass left, already summed over the ranks, to the parts in `mine`."""
        for name, part in self.parts.items():
            self.mine[name].grad = part.grad.to_local() if part.grad is not None else None
            part.grad = None

    def clip(self, whole: Iterable[torch.Tensor], most: float) -> None:
        """As `clip_grad_norm_` over all gradients: those in parts, and those of `whole`, which every rank has."""
        apart = [p.grad for p in self.mine.values() if p.grad is not None]
        alike = [p.grad for p in whole if p.grad is not None]
        (square,) = ranks.total(sum(float(g.double().square().sum()) for g in apart))
        norm = math.sqrt(square + sum(float(g.double().square().sum()) for g in alike))
        if norm > 0:
            torch._foreach_mul_([*apart, *alike], min(1.0, most / (norm + 1e-6)))

    def laid(self, name: str, part: torch.Tensor) -> torch.Tensor:
        """The tensor in parts (a `DTensor`) of which this is the rank's, laid out as parameter `name`; itself where it is whole.

        `part` may be the whole tensor without memory (on `meta`): then the parts are new ones, with nothing in them yet.
        """
        from torch.distributed.tensor import DTensor, empty

        like = self.parts.get(name)
        if like is None or part.dim() != like.dim():  # a count of steps is not in parts
            return part
        if part.is_meta:
            return empty(*like.shape, dtype=part.dtype, device_mesh=like.device_mesh, placements=like.placements)
        return DTensor.from_local(
            part.detach(), like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )

    @contextmanager
    def together(self) -> Iterator[None]:
        """While it lasts every rank holds the blocks whole and may run them without the others, for a pass without gradients."""
        blocks: list[Any] = [self.net.model.get_submodule(name) for name in self.names]
        for block in blocks:
            block.unshard()
            block.set_reshard_after_forward(False)
        try:
            yield
        finally:
            for block in blocks:
                block.set_reshard_after_forward(True)
                block.reshard()

    @torch.no_grad()
    def undo(self) -> None:
        """The original blocks back in their places, whole, with what was learnt."""
        for name, block in self.originals.items():
            twin: Any = self.net.model.get_submodule(name)
            twin.unshard()
            learnt = {n: t.detach() for n, t in (*twin.named_parameters(), *twin.named_buffers())}
            block.to_empty(device=next(iter(learnt.values())).device)
            for n, tensor in (*block.named_parameters(), *block.named_buffers()):
                tensor.copy_(learnt[n])
            self.net.model.set_submodule(name, block)
