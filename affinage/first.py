"""First: where the head reads one token of the last block, the first, the block computes no more of the others than that needs.

Keys and values are needed of every token; queries, what attention gives, the feed-forward part and the norms of the first alone.
No table per architecture: a layer is cut short where spoiling what it gives for the other tokens changes no logit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import softmax
from torch.nn.modules.batchnorm import _BatchNorm

from affinage.cut import CAPTURED, CLOSE, two_rows
from affinage.instead import evaluating, instead, untouched
from affinage.net import Net
from affinage.types import Batch, Rows

ATTENTION = "affinage_first_token"  # the name by which transformers finds `attention`
KNOWN = ("eager", "sdpa")  # implementations of attention whose masks `attention` reads

Forward = Callable[[torch.Tensor], torch.Tensor]


class First:
    """What the layers of the last block run instead, while `cut_short` lasts. Falsy where the head reads more than one token.

    `layers`: the layers that compute the first token alone. What they give has all tokens, as views of the first one's: nobody
    looks at the others.
    """

    @classmethod
    def of(cls, net: Net, rows: Rows) -> First:
        """By the shortest of the rows and a longer one, where there is one."""
        two, where = np.array(two_rows(rows)), next(net.model.parameters()).device
        return cls(net, {n: value.to(where) for n, value in rows.batch(two).items() if not n.startswith(CAPTURED)})

    def __init__(self, net: Net, batch: Batch) -> None:
        """`batch`: a few rows of different lengths, on the model's device. Draws no random number."""
        self.layers: list[nn.Module] = []
        self._attending: list[Any] = []  # modules that ask their config how to attend
        if not net.blocks:
            return
        try:
            with evaluating(net.model), torch.no_grad():
                self._look(net, batch)
                if self.layers:
                    self._prove(net, batch)
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):
            self.layers, self._attending = [], []  # it is trained all the same

    def __bool__(self) -> bool:
        return bool(self.layers)

    @contextmanager
    def cut_short(self, forwards: Mapping[Any, Callable[..., Any]]) -> Iterator[None]:
        """While it lasts, the layers run `forwards`, as by `instead`, and those of the last block on the first token alone."""
        short = {layer: _short(forwards.get(layer, layer.forward)) for layer in self.layers}
        with _attending(self._attending), instead({**forwards, **short}):
            yield

    def _look(self, net: Net, batch: Batch) -> None:
        model = net.model
        last = net.model.get_submodule(net.blocks[-1])
        tokens, before = _seen(net, model, batch)
        if tokens < 2 or any(isinstance(module, _BatchNorm) for module in last.modules()):
            return
        with instead(before):
            self._spoil(net, batch, last, tokens)

    def _spoil(self, net: Net, batch: Batch, last: nn.Module, tokens: int) -> None:
        """The layers that may be cut short; the blocks before give what they gave."""
        model = net.model
        want = net.seen(model(**batch))
        with _spoiled(last, tokens, inside=False) as calls:
            if not _alike(net.seen(model(**batch)), want) or calls != [True]:
                return
        single = [module for module in last.modules() if not list(module.children()) and _whole(module)]
        for layer in single:
            with _spoiled(layer, tokens) as calls:
                if _alike(net.seen(model(**batch)), want) and calls == [True]:
                    self.layers.append(layer)
        if not any(isinstance(layer, nn.Linear) for layer in self.layers):
            self.layers = []

    def _prove(self, net: Net, batch: Batch) -> None:
        """The logits are those of the whole block, and nothing fails while it trains; else nothing is cut short."""
        model = net.model
        last, want = model.get_submodule(net.blocks[-1]), net.seen(model(**batch))
        asks = [m for m in last.modules() if getattr(getattr(m, "config", None), "_attn_implementation", None) in KNOWN]
        for attending in (asks, []):  # how a module attends may be its own affair
            self._attending = attending
            with self.cut_short({}):
                got = net.seen(model(**batch))
            if all((a - b).abs().max() <= CLOSE * b.abs().max() for a, b in zip(got, want, strict=True)):
                break
        else:
            self.layers, self._attending = [], []
            return
        last.train()  # what writes into views of one token fails here, and not in the first update
        where = next(model.parameters()).device
        with torch.enable_grad(), torch.random.fork_rng([where] if where.type == "cuda" else []), self.cut_short({}):
            model(**batch)


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """(B, T, H, D), all tokens views of what the first attends to; an attention function of transformers.

    `query`, `key`, `value` (B, H, T, D); `attention_mask` (B, 1, T, T), additive or boolean (True keeps).

    Raises:
        ValueError: more goes into the scores than these (a bias of positions, zero now, may learn), or several heads of
            queries share one of keys.
    """
    more = [name for name, value in kwargs.items() if isinstance(value, torch.Tensor) and value.is_floating_point()]
    if more or kwargs.get("softcap") is not None or key.shape[1] != query.shape[1]:
        raise ValueError(f"attention of another kind: {', '.join(more) or 'capped, or grouped queries'}")
    scores = query[:, :, :1] @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        mask = attention_mask[:, :, :1, : key.shape[2]]
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    weights = softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    weights = torch.nn.functional.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).expand(-1, query.shape[2], -1, -1), None


@contextmanager
def _attending(modules: list[Any]) -> Iterator[None]:
    """While it lasts, these modules attend by `attention`."""
    if modules:
        from transformers import AttentionInterface

        AttentionInterface.register(ATTENTION, attention)
    configs = [module.config for module in modules]
    for module in modules:
        module.config = copy.copy(module.config)  # the model makes its mask by its own
        module.config._attn_implementation_internal = ATTENTION
    try:
        yield
    finally:
        for module, config in zip(modules, configs, strict=True):
            module.config = config


def _short(forward: Forward) -> Forward:
    """A layer that works token by token, on the first one: (B, T, D) -> (B, T, E), all tokens views of the first."""

    def run(x: torch.Tensor) -> torch.Tensor:
        one = getattr(x, "_first_token", None)  # what the layer before gave, before it was widened
        out = forward(x[:, :1] if one is None else one)
        wide = out.expand(-1, x.shape[1], -1)
        wide._first_token = out  # type: ignore[attr-defined]
        return wide

    return run


def _whole(layer: nn.Module) -> bool:
    """Whether the layer's own forward can be replaced: nothing hangs on its calls."""
    return untouched(layer) and not layer._forward_hooks and not layer._forward_pre_hooks


def _seen(net: Net, model: nn.Module, batch: Batch) -> tuple[int, dict[nn.Module, Callable[..., Any]]]:
    """(T, the blocks before with what they gave) of the sequence (B, T, D) that the last block reads; T is 0 where it reads none,
    or where a block runs more than once."""
    lengths: list[int] = []
    gave: dict[nn.Module, list[Any]] = {model.get_submodule(name): [] for name in net.blocks[:-1]}

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        first = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)), None)
        lengths.append(first.shape[1] if first is not None and first.dim() == 3 else 0)

    hooks = [model.get_submodule(net.blocks[-1]).register_forward_pre_hook(look, with_kwargs=True)]
    hooks += [block.register_forward_hook(lambda module, args, out: gave[module].append(out)) for block in gave]
    try:
        model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    if len(lengths) != 1 or any(len(outs) != 1 or not untouched(block) for block, outs in gave.items()):
        return 0, {}
    return lengths[0], {block: (lambda *args, out=outs[0], **kwargs: out) for block, outs in gave.items()}


def _alike(got: list[torch.Tensor], want: list[torch.Tensor]) -> bool:
    return len(got) == len(want) and all(map(torch.equal, got, want))


@contextmanager
def _spoiled(layer: nn.Module, tokens: int, inside: bool = True) -> Iterator[list[bool]]:
    """While it lasts, what the layer gives for all tokens but the first is no number. The calls: whether each could be spoiled,
    being of one sequence (B, T, D) to another, token by token; for a whole block, not `inside` one, of anything to a sequence."""
    calls: list[bool] = []

    def spoil(module: nn.Module, args: Any, found: Any) -> Any:
        out = found[0] if isinstance(found, tuple) else found
        able = isinstance(out, torch.Tensor) and out.dim() == 3 and out.shape[1] == tokens and out.is_floating_point()
        if able and inside:
            x = args[0] if len(args) == 1 and out is found else None
            able = isinstance(x, torch.Tensor) and x.dim() == 3 and x.shape[:2] == out.shape[:2]
            able = bool(able) and torch.allclose(module.forward(x[:, :1]), out[:, :1], 1e-4, 1e-5)  # type: ignore[index]
        calls.append(bool(able))
        if not able:
            return None
        out = out.clone()
        out[:, 1:] = torch.nan
        return (out, *found[1:]) if isinstance(found, tuple) else out

    hook = layer.register_forward_hook(spoil)
    try:
        yield calls
    finally:
        hook.remove()
