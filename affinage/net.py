"""Net: a pretrained network seen as stem, blocks and head, in order, whatever its architecture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from affinage.blocks import Trace, find_blocks, tensors, watch
from affinage.types import Batch


@dataclass(frozen=True, eq=False)
class Net:
    """A native transformers model and where everything in it stands. Makes no change to the model.

    stem: what is read before the first block, and what the forward never reads (a mask token).
    blocks.K: the K-th block, and what is first read between it and the next one (a downsampling); the last one has all that
        stands between it and the head (a final norm, a pooler).
    head: the layer that gives the logits, with what lies beside it in the same classifier module (RoBERTa's `classifier.dense`).
    """

    model: nn.Module
    blocks: tuple[str, ...]  # module names, in the order in which they run
    head_name: str | None  # the linear layer whose output is the logits (or from whose rows they are taken, as in GPT-2)
    why: str  # empty, or why the model cannot be cut into blocks
    parameters: dict[str, str]  # parameter name -> address; every parameter once
    places: dict[str, str]  # module name -> address where it is first called
    reads: tuple[str, ...] = ("logits",)  # the fields of the output that count: a cut must leave them as they are

    @classmethod
    def of(cls, model: nn.Module, batch: Batch, beside: Sequence[str] = (), reads: tuple[str, ...] = ("logits",)) -> Net:
        """Look at `model` through one forward pass of `batch` (a few rows, on the model's device).

        `beside`: globs over the names of parameters that are the head's too, wherever they are read.
        """
        trace = watch(model, batch)
        blocks = tuple(find_blocks(trace))
        modules = dict(model.named_modules())
        starts = [trace.calls[modules[name]][0].start for name in blocks]

        def address(time: int) -> str:
            k = sum(start <= time for start in starts) - 1
            return f"blocks.{k}" if k >= 0 else "stem"

        last, exact = _last_layers(trace, blocks, starts[-1] if starts else 0)
        head = {name for layer in last for name in _head_parameters(trace, modules, layer, starts)}
        head |= {name for name, _ in model.named_parameters() if any(fnmatchcase(name, glob) for glob in beside)}
        where = {}
        for name, _ in model.named_parameters():
            if name in head:
                where[name] = "head"
            elif name in trace.first_use:
                where[name] = address(trace.first_use[name])
            else:  # never read: with its block if it lies in one, so that the block is still trained as a whole
                inside = [k for k, block in enumerate(blocks) if name.startswith(block + ".")]
                where[name] = f"blocks.{inside[0]}" if inside else "stem"
        # By order of entry, not by time: what does nothing in eval mode (a Dropout) shares its time with what follows it.
        entries = [trace.calls[modules[name]][0].enter for name in blocks]
        places = {}
        for module, calls in trace.calls.items():
            k = sum(entry <= calls[0].enter for entry in entries) - 1
            places[trace.names[module]] = f"blocks.{k}" if k >= 0 else "stem"
        why = "" if blocks else f"no chain of two or more blocks found in {type(model).__name__}: all but the head is the stem"
        head_name = last[0] if exact and isinstance(modules[last[0]], nn.Linear) else None
        return cls(model, blocks, head_name, why, where, places, reads)

    def seen(self, output: Any) -> list[torch.Tensor]:
        """The tensors of an output that count."""
        return list(tensors([getattr(output, name, None) for name in self.reads]))

    @property
    def head_linear(self) -> nn.Linear | None:
        """The linear layer whose output is the logits; None if there is none (no head, two averaged heads, a convolution)."""
        if self.head_name is None:
            return None
        layer = self.model.get_submodule(self.head_name)
        assert isinstance(layer, nn.Linear)
        return layer

    def addresses(self) -> dict[str, list[str]]:
        """Parameter names by address: "stem", "blocks.0", ..., "head". Every parameter is in exactly one list."""
        groups: dict[str, list[str]] = {a: [] for a in ("stem", *(f"blocks.{k}" for k in range(len(self.blocks))), "head")}
        for name, address in self.parameters.items():
            groups[address].append(name)
        return groups

    def anatomy(self) -> list[dict[str, Any]]:
        """One row an address, in order: `address`, and `parameters`, how many numbers it holds."""
        sizes: Counter[str] = Counter()
        for name, parameter in self.model.named_parameters():
            sizes[self.parameters[name]] += parameter.numel()
        return [{"address": address, "parameters": sizes[address]} for address in self.addresses()]


def _last_layers(trace: Trace, blocks: tuple[str, ...], since: int) -> tuple[list[str], bool]:
    """(names, exact): the layer outside the blocks, called from time `since` on, whose output (or rows of it) the logits are:
    exact. If there is none: all such layers with as many outputs as there are logits (DeiT averages two heads)."""
    if trace.logits is None:
        return [], False
    candidates = []
    for module, calls in trace.calls.items():
        name, output = trace.names[module], calls[-1].output
        width = module.out_features if isinstance(module, nn.Linear) else getattr(module, "out_channels", None)
        inside = any(name.startswith(block + ".") for block in blocks)
        if width == trace.logits.shape[-1] and output is not None and calls[-1].start >= since and not inside:
            candidates.append((calls[-1].leave, name, output))
    candidates.sort(key=lambda c: c[0])
    for _, name, output in reversed(candidates):
        if _are_rows_of(trace.logits, output):
            return [name], True
    return [name for _, name, _ in candidates], False


def _are_rows_of(logits: torch.Tensor, output: torch.Tensor) -> bool:
    """Whether the logits are `output` itself, or one row of it for each example (the last token's)."""
    if output.shape == logits.shape:
        return torch.equal(output.to(logits.dtype), logits)
    if output.dim() != logits.dim() + 1 or output.shape[0] != logits.shape[0] or output.shape[-1] != logits.shape[-1]:
        return False
    return bool((output.to(logits.dtype) == logits.unsqueeze(1)).all(-1).any(1).all())


def _head_parameters(trace: Trace, modules: dict[str, nn.Module], layer: str, starts: list[int]) -> set[str]:
    """Names of a last layer's parameters and of those beside it in the same classifier module.

    A parameter that the forward reads before the last block (tied embeddings) stays where it is first read.
    """
    since = starts[-1] if starts else 0

    def late(names: Iterable[str]) -> set[str]:
        return {name for name in names if trace.first_use.get(name, since) >= since}

    own = late(f"{layer}.{name}" for name, _ in modules[layer].named_parameters())
    parent = layer.rpartition(".")[0]
    if not starts or not parent:
        return own
    beside = {f"{parent}.{name}" for name, _ in modules[parent].named_parameters()}
    classifier = trace.calls.get(modules[parent])  # a module of its own, called once the last block is done
    return late(beside) if classifier and classifier[0].start >= since and late(beside) == beside else own
