"""Named: of a table of word embeddings, the rows that the training texts name; no other row has a gradient, so only these learn.

A vocabulary is made for all texts, and a data set names a part of it; of a multilingual model most weights are this table. Its
gradient is dense all the same, and so are clipping, the moments and the step. Here a plain parameter of the named rows stands for
the table while a stage trains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import embedding

from affinage.batches import by_tokens
from affinage.instead import evaluating, instead, untouched
from affinage.types import Batch, Rows

PAYS = 1 << 20  # numbers of a table that need not learn: 16 MiB of weight, gradient and moments
TOKENS = 1 << 16  # padded tokens that are looked at together


class Named:
    """The tables whose rows are named by `input_ids`, as what a stage teaches. Nothing is replaced where that cannot be shown.

    `parts`: parameter name -> (n, D) the named rows, which learn in place of the whole (V, D). The rows that no text names stay
    as they are: where a stage decays weights (AdamW's decoupled decay), these are not decayed.
    """

    def __init__(self, model: nn.Module, learning: Mapping[str, nn.Parameter], rows: Rows, forward: Callable[..., Any]) -> None:
        """`learning`: the parameters that learn. `forward`: what gives the output of a batch of these rows."""
        self.parts: dict[str, nn.Parameter] = {}
        self.forwards: dict[nn.Module, Callable[[torch.Tensor], torch.Tensor]] = {}
        self._whole: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        tables = _candidates(model, learning)
        if not tables or not len(rows):
            return
        row = rows.batch(np.zeros(1, np.int64))
        if "input_ids" not in row:
            return
        tables = _read_by_name(model, tables, forward, row)
        if not tables:
            return
        ids = named(rows)
        for name, layer in tables.items():
            if (layer.num_embeddings - len(ids)) * layer.embedding_dim < PAYS:
                continue
            place = layer.weight.device
            kept, index = ids.to(place), torch.full((layer.num_embeddings,), -1, device=place)
            index[kept] = torch.arange(len(kept), device=place)
            part = nn.Parameter(layer.weight.detach()[kept])
            layer.weight.requires_grad_(False)
            layer.weight.grad = None
            self.parts[name], self._whole[name] = part, (layer.weight, kept)
            self.forwards[layer] = _forward(part, index, layer.padding_idx)

    def counts(self) -> dict[str, list[int]]:
        """Parameter name -> [rows that learn, rows]."""
        return {name: [len(kept), len(whole)] for name, (whole, kept) in self._whole.items()}

    def whole(self, name: str, part: torch.Tensor, *, moment: bool) -> torch.Tensor:
        """(V, D) from (n, D), as the stage would have it without this: what no text names as it is, or, of a `moment`, zero."""
        if name not in self._whole or part.dim() != 2:  # a count of steps is one number
            return part
        table, kept = self._whole[name]
        full = torch.zeros_like(table) if moment else table.detach().clone()
        full[kept] = part
        return full

    def part(self, name: str, full: torch.Tensor) -> torch.Tensor:
        """The inverse of `whole`."""
        return full[self._whole[name][1]] if name in self._whole and full.dim() == 2 else full

    @torch.no_grad()
    def put_back(self) -> None:
        """What was learnt, into the tables."""
        for name, (whole, kept) in self._whole.items():
            whole[kept] = self.parts[name]

    def undo(self) -> None:
        """The tables as they were, whole, with what was learnt."""
        self.put_back()
        for whole, _ in self._whole.values():
            whole.requires_grad_(True)
        self.parts, self.forwards, self._whole = {}, {}, {}


def named(rows: Rows) -> torch.Tensor:
    """(n,) int64, sorted: every id in the batches that can be made of these rows, padding too."""
    lengths = rows.lengths
    ends = np.array([lengths.argmax(), lengths.argmin()])  # a batch of these is padded if any batch is
    found = {int(i) for i in np.unique(rows.batch(ends)["input_ids"].numpy())}
    for batch in by_tokens(lengths, TOKENS, most=TOKENS):
        found.update(np.unique(rows.batch(batch)["input_ids"].numpy()).tolist())
    return torch.tensor(sorted(found))


def _forward(part: nn.Parameter, index: torch.Tensor, padding: int | None) -> Callable[[torch.Tensor], torch.Tensor]:
    pad = int(index[padding]) if padding is not None else -1

    def forward(ids: torch.Tensor) -> torch.Tensor:
        return embedding(index[ids], part, pad if pad >= 0 else None)  # an id that no text names is -1, which it refuses

    return forward


def _candidates(model: nn.Module, learning: Mapping[str, nn.Parameter]) -> dict[str, nn.Embedding]:
    """Parameter name -> plain large tables that learn and that no other layer shares."""
    holders = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    return {
        f"{name}.weight": layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Embedding
        and untouched(layer)
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and layer.weight.numel() > PAYS
        and f"{name}.weight" in learning
        and holders[id(layer.weight)] == 1
        and not (layer.sparse or layer.scale_grad_by_freq or layer.max_norm)
    }


@torch.no_grad()
def _read_by_name(
    model: nn.Module, tables: Mapping[str, nn.Embedding], forward: Callable[..., Any], row: Batch
) -> dict[str, nn.Embedding]:
    """Those that are asked for `input_ids` and are read in no other way: one row is passed with nothing but NaN in the table."""
    place = next(model.parameters()).device
    inputs = {name: value.to(place) for name, value in row.items()}
    found = {}
    with evaluating(model):
        for name, layer in tables.items():
            asked: list[torch.Tensor] = []
            true = layer.weight.data

            def look(ids: torch.Tensor, true: torch.Tensor = true, asked: list[torch.Tensor] = asked) -> torch.Tensor:
                asked.append(ids)
                return embedding(ids, true)

            layer.weight.data = true.new_full((1, 1), torch.nan).expand_as(true)
            try:
                with instead({layer: look}):
                    outputs = forward(**inputs)
            finally:
                layer.weight.data = true
            alike = all(ids.shape == inputs["input_ids"].shape and torch.equal(ids, inputs["input_ids"]) for ids in asked)
            if asked and alike and bool(torch.isfinite(outputs.logits).all()):
                found[name] = layer
    return found
