"""Find the residual blocks of any network, in order, by watching one forward pass: which module runs when, and what it reads."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_layers import GradientCheckpointingLayer

from affinage.instead import evaluating
from affinage.types import Batch

WEIGHTS = 2  # matrices or convolutions that a module must hold to count as a block: one alone is a layer


@dataclass
class Call:
    """One call of a module: `start`/`end` count tensor operations, `enter`/`leave` count module entries and exits."""

    module: nn.Module
    enter: int
    start: int
    first: int | None  # storage of its first floating point argument: what it works on
    leave: int = -1
    end: int = -1
    output: torch.Tensor | None = None  # kept for linear and convolution layers only


@dataclass
class Trace:
    """What one forward pass did. Time is the number of tensor operations so far; tensors are known by their storage."""

    names: dict[nn.Module, str]
    logits: torch.Tensor | None = None
    calls: dict[nn.Module, list[Call]] = field(default_factory=dict)
    born: dict[int, int] = field(default_factory=dict)  # storage -> time at which it was first written
    last_read: dict[int, int] = field(default_factory=dict)  # storage -> time of its last use
    from_input: set[int] = field(default_factory=set)  # storages that depend on the batch
    from_weights: set[int] = field(default_factory=set)  # storages that depend on a parameter or buffer
    first_use: dict[str, int] = field(default_factory=dict)  # parameter name -> time at which it is first read

    def live(self, time: int) -> set[int]:
        """Activations (of weights and input) that exist before `time` and are still needed after it."""
        used = self.from_input & self.from_weights
        return {s for s, born in self.born.items() if born < time <= self.last_read.get(s, -1) and s in used}


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested containers and dataclasses, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from tensors(getattr(value, f.name))


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _Watch(TorchDispatchMode):
    """Logs for each tensor operation what it reads and writes."""

    def __init__(self, trace: Trace, model: nn.Module, batch: Batch) -> None:
        super().__init__()
        self.trace, self.time = trace, 0
        self.alive: list[torch.Tensor] = []  # storages must not be freed and reused while we tell them apart by address
        # Weights read from a file can share one storage: they are told apart by their place in memory.
        spans = [(p.data_ptr(), p.data_ptr() + p.numel() * p.element_size(), name) for name, p in model.named_parameters()]
        self.spans = sorted(span for span in spans if span[0] < span[1])
        self.starts = [span[0] for span in self.spans]
        self.weights = {_storage(t) for t in (*model.parameters(), *model.buffers())}
        inputs = {_storage(t) for t in tensors(batch)}
        self.given = self.weights | inputs  # there before the forward began
        trace.from_weights |= self.weights
        trace.from_input |= inputs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        trace = self.trace
        read, written = list(tensors((args, kwargs))), list(tensors(out))
        sources, results = {_storage(t) for t in read}, {_storage(t) for t in written}
        for t in read:
            if _storage(t) in self.weights:
                self._use(t)
        for s in sources:
            trace.last_read[s] = self.time
        for s in results - self.given - trace.born.keys():
            trace.born[s] = self.time
        for depends in (trace.from_input, trace.from_weights):
            if sources & depends:
                depends |= results
        self.alive += written
        self.time += 1
        return out

    def _use(self, tensor: torch.Tensor) -> None:
        i = bisect_right(self.starts, tensor.data_ptr()) - 1
        if i >= 0 and tensor.data_ptr() < self.spans[i][1]:
            self.trace.first_use.setdefault(self.spans[i][2], self.time)


@torch.no_grad()
def watch(model: nn.Module, batch: Batch) -> Trace:
    """One forward pass of `batch` (two rows are plenty: all activations are kept until it ends) in eval mode.

    Leaves no hook behind, and every module's training flag as it was.
    """
    trace = Trace({module: name for name, module in model.named_modules()})
    ops = _Watch(trace, model, batch)
    stack: list[Call] = []
    ticks = iter(range(2**62))

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        first = next((_storage(t) for t in tensors((args, kwargs)) if t.is_floating_point()), None)
        call = Call(module, next(ticks), ops.time, first)
        trace.calls.setdefault(module, []).append(call)
        stack.append(call)

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = stack.pop()
        call.leave, call.end = next(ticks), ops.time
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            call.output = output

    hooks = []
    try:
        for module in trace.names:
            hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            hooks.append(module.register_forward_hook(leave, with_kwargs=True))
        with evaluating(model), ops:
            output = model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    trace.logits = getattr(output, "logits", None)
    return trace


# ------------------------------------------------------------------------------------------------------------ blocks
def find_blocks(trace: Trace) -> list[str]:
    """Names of the blocks in the order in which they run; empty if the network has no chain of them."""
    chains: dict[str, list[nn.Module]] = {}
    for module, name in trace.names.items():
        if _is_list(module) and (chain := _chain(trace, module)):
            chains[name] = chain
    outer = [c for c in chains if not any(c.startswith(other + ".") for other in chains if other != c)]
    found: list[nn.Module] = []
    for c in outer:
        if len(chains[c]) > 1 or any(len(chains[i]) > 1 for i in chains if i.startswith(c + ".")):
            found += [block for module in chains[c] for block in _expand(trace, chains, module)]
    found.sort(key=lambda block: trace.calls[block][0].enter)
    return [trace.names[block] for block in found]


def _is_list(module: nn.Module) -> bool:
    """A container of numbered children."""
    children = [name for name, _ in module.named_children()]
    return isinstance(module, (nn.ModuleList, nn.Sequential)) or (len(children) > 1 and all(name.isdigit() for name in children))


def _weights(module: nn.Module) -> int:
    return sum(p.dim() >= 2 for p in module.parameters())


def _chain(trace: Trace, container: nn.Module) -> list[nn.Module] | None:
    """The children of `container` that are blocks of one chain: each works on what the one before it made, and little else
    passes by. None if they are not."""
    children = [m for m in container.children() if len(trace.calls.get(m, ())) == 1]
    calls = {m: trace.calls[m][0] for m in children}
    blocks = sorted((m for m in children if _weights(m) >= WEIGHTS), key=lambda m: calls[m].enter)
    if not blocks or 2 * len(blocks) < sum(any(True for _ in m.parameters()) for m in children):
        return None
    for a, b in pairwise(blocks):
        if calls[a].leave > calls[b].enter:
            return None  # one runs inside the other
        if trace.born.get(calls[b].first, 0) < calls[a].start:  # type: ignore[arg-type]
            return None  # its input is older than its neighbour: parallel branches
    if all(isinstance(m, GradientCheckpointingLayer) for m in blocks):
        return blocks  # transformers marks what it can recompute on its own: a block
    # Beside the chain's own tensor at most one may cross: not what came in from outside, nor what all layers leave for later
    # (hidden states gathered for a pyramid). Two or more: the children are the inner layers of a residual block.
    aside = (trace.live(calls[blocks[0]].start) - {calls[blocks[0]].first}) | trace.live(_end(trace, container))
    if any(len(trace.live(calls[m].start) - aside) > 1 for m in blocks[1:]):
        return None
    return blocks


def _end(trace: Trace, container: nn.Module) -> int:
    """When the nearest module that was called (a ModuleList is not) around `container` ended."""
    called = {trace.names[m]: calls[-1].end for m, calls in trace.calls.items()}
    name = trace.names[container]
    while name not in called:
        name = name.rpartition(".")[0]
    return called[name]


def _expand(trace: Trace, chains: dict[str, list[nn.Module]], module: nn.Module) -> list[nn.Module]:
    """The blocks inside a stage, or the block itself."""
    inside = [c for c in chains if c.startswith(trace.names[module] + ".")]
    inside = [c for c in inside if not any(c.startswith(other + ".") for other in inside if other != c)]
    if not inside or any(len({type(m) for m in chains[c]}) > 1 for c in inside):  # unlike children: one block's own parts (T5)
        return [module]
    within = {layer for c in inside for m in chains[c] for layer in m.modules()}
    if sum(isinstance(layer, nn.Linear) and layer in trace.calls for layer in set(module.modules()) - within) >= WEIGHTS:
        return [module]  # a stage has a layer that makes it smaller beside its blocks, a block its attention (MobileBERT)
    return [block for c in inside for m in chains[c] for block in _expand(trace, chains, m)]
