"""Cut: a network in two at a block. What is frozen below runs once (`capture`); the rest goes on from what it left (`Resumed`).

No table per architecture. Below the cut are the outermost modules that have finished when block k begins. On resuming, the
model's own forward runs with each of them replaced by a stub that returns what the module left. Most of what they left is never
looked at again: which of it reaches the logits is found by spoiling one tensor after the other. So masks, skip connections,
several backbones and encoder outputs need no code of their own. Of what does reach them, a table of tokens by tokens is made
anew by the first module that left it, on zeros where its input is not at hand and does not reach the table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map_only, tree_unflatten
from torch.utils.flop_counter import flop_registry

from affinage.entry import address, begins
from affinage.features import autocast, kernels
from affinage.layout import Layout, Uncuttable
from affinage.net import Net
from affinage.types import Batch, Rows

CAPTURED = "captured."  # the names under which what was captured travels in a batch: captured.0, captured.1, ...
LAID = "laid."  # and once they are laid out again
Place = tuple[int, int]  # which of the calls below the cut, and which leaf of what it left
Values = Mapping[Place, torch.Tensor]

ROUNDS = 4  # of looking what a table hangs on, which is made of another table, and so on
CLOSE = 1e-4  # largest difference of logits, as a share of the largest one, that rounding explains in fp32


class _Stop(Exception):
    """Block k has been reached."""


@dataclass
class Left:
    """One call of a module below the cut: its output, with a layout for each tensor and the value of everything else."""

    module: nn.Module
    name: str
    turn: int  # which call of this module it is, from 0
    spec: TreeSpec
    leaves: list[Any]
    # leaf -> the call and its leaf that is made anew in its stead, by running that call: what hangs on no row (rotary embeddings,
    # a norm of a table), and tables of tokens by tokens, too large to keep (T5's position bias: from the first block for all)
    again: dict[int, Place] = field(default_factory=dict)


class Cut:
    """A network cut before block k. `share`: how much of the arithmetic of a forward pass it saves; `spared`: how much of what
    `capture` takes an epoch is spared by that. Both from 0 to 1.
    """

    def __init__(self, net: Net, k: int, rows: Rows, precision: str = "fp32") -> None:
        """Look at the network through a few rows; leaves it in eval mode, draws no random number. `k` = L: before the head.

        Raises:
            Uncuttable: it has no blocks, or goes on otherwise from what is kept than from the rows themselves.
        """
        if not net.blocks:
            raise Uncuttable(net.why)
        self.below: Cut | None = None
        self.model, self.k, self.block = net.model, k, net.model.get_submodule(begins(net, k))
        self.address, self.seen = address(net, k), net.seen
        self.mask: Callable[[Batch], torch.Tensor | None] = getattr(rows, "mask", _mask)
        self.names = {module: name for name, module in net.model.named_modules()}
        self.where = next(net.model.parameters()).device
        self.model.eval()
        low, long = two_rows(rows)
        looks = [self.placed(rows.batch(np.asarray(chosen))) for chosen in ([long, low, long], [long, low], [low, low])]
        self.left = self._layouts(*looks)
        self.kept = self._kept(looks[0], even=bool(rows.lengths[low] == rows.lengths[long]))  # what is stored, in order
        self.share, self.spared = self._share(looks[0])
        self._check(rows, low, long)
        self.unread = self._unread(looks[0])  # whether what is above leaves the pictures alone
        if precision != "fp32":
            self._retype(looks[0], precision)

    def layouts(self) -> list[Layout]:
        """Of what `capture` returns, in its order."""
        return [self.left[i].leaves[j] for i, j in self.kept]

    @torch.no_grad()
    def after(self, below: Cut, rows: Rows, precision: str) -> bool:
        """Whether `capture` goes on from what `below` captured, from now on, where a batch brings that: if it finds the same bits
        of two rows. `below`: a cut of the same network before an earlier block, or the same one.
        """
        batch = self.placed(rows.batch(np.asarray(two_rows(rows))))
        with kernels(precision), autocast(precision):
            brought = {**batch, **{f"{CAPTURED}{i}": units for i, units in enumerate(below.packed(batch))}}
            want, self.below = self.packed(batch), below
            with suppress(Uncuttable):
                if below.k <= self.k and all(map(torch.equal, self.packed(brought), want)):
                    return True
        self.below = None
        return False

    @torch.no_grad()
    def capture(self, batch: Batch) -> list[torch.Tensor]:
        """Run what is below the cut, and no more; what the rest needs of it. Call it in eval mode."""
        if self.below is not None and f"{CAPTURED}0" in batch:
            inputs, values = self.below.parted(self.below.laid(batch))
            with self.below._stubs(values, _size(inputs), self.below._tokens(inputs)):
                return self.capture(inputs)
        found = self._outputs(batch, {self.left[i].module for i, _ in self.kept})
        made: dict[nn.Module, list[list[Any]]] = defaultdict(list)
        for module, _, leaves in found:
            made[module].append(leaves)
        return [made[self.left[i].module][self.left[i].turn][j] for i, j in self.kept]

    def resume(self, batch: Batch, values: list[torch.Tensor]) -> Any:
        """The model's own output for `batch`, from what `capture` returned for its rows."""
        return self._forward(batch, _copied(dict(zip(self.kept, values, strict=True))))

    def laid(self, batch: Batch) -> Batch:
        """The batch with what was captured laid out for its rows, (B, ...), so that the shapes tell what the network will do."""
        inputs = {k: v for k, v in batch.items() if not k.startswith(CAPTURED)}
        units = [batch[f"{CAPTURED}{i}"] for i in range(len(self.kept))]
        return {**inputs, **{f"{LAID}{i}": v for i, v in enumerate(self._unpacked(inputs, units).values())}}

    def parted(self, laid: Batch) -> tuple[Batch, dict[Place, torch.Tensor]]:
        """(the inputs of the network, what was captured of its rows) of such a batch."""
        inputs = {k: v for k, v in laid.items() if not k.startswith(LAID)}
        return inputs, {place: laid[f"{LAID}{i}"] for i, place in enumerate(self.kept)}

    # ------------------------------------------------------------------------------------------- what happens below the cut
    def _outputs(self, batch: Batch, of: set[nn.Module] | None = None) -> list[tuple[nn.Module, TreeSpec, list[Any]]]:
        """(module, structure, leaves) of each outermost call that ends before the block begins; of all modules or of some."""
        done: list[tuple[tuple[nn.Module, ...], nn.Module, Any]] = []
        stack: list[nn.Module] = []
        around: set[nn.Module] = set()
        hooks = [self.block.register_forward_pre_hook(_stop)]

        def enter(module: nn.Module, args: Any) -> None:
            stack.append(module)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if of is None:
                stack.pop()
            # a copy: what follows may write into it in place
            done.append((tuple(stack), module, tree_map_only(torch.Tensor, torch.clone, output)))

        try:
            for module in self.names if of is None else of:
                if of is None and module is not self.block:
                    hooks.append(module.register_forward_pre_hook(enter))
                hooks.append(module.register_forward_hook(leave))
            self.model(**batch)
            raise Uncuttable(f"{self.names[self.block]} is not called for every batch")
        except _Stop:
            around = set(stack)  # modules that the block stands in: not finished
        finally:
            for hook in hooks:
                hook.remove()
        return [(m, *reversed(tree_flatten(output))) for above, m, output in done if around.issuperset(above)]

    def placed(self, batch: Batch) -> Batch:
        """The batch on the network's device; pictures channels last, as the loop has them."""
        moved = {k: v.to(self.where) for k, v in batch.items()}
        if "pixel_values" in moved:
            moved["pixel_values"] = moved["pixel_values"].contiguous(memory_format=torch.channels_last)
        return moved

    @torch.no_grad()
    def _layouts(self, three: Batch, two: Batch, short: Batch) -> list[Left]:
        """What is left by each call below the cut."""
        looks = [self._outputs(batch) for batch in (three, two, short)]
        if not all([m for m, _, _ in look] == [m for m, _, _ in looks[0]] for look in looks):
            raise Uncuttable("which modules run below it changes from batch to batch")
        found: list[Left] = []
        for (module, spec, leaves), (_, spec2, leaves2), (_, spec3, leaves3) in zip(*looks, strict=True):
            if not spec == spec2 == spec3:
                raise Uncuttable(f"the structure of what {self.names[module]} leaves changes from batch to batch")
            laid = [
                Layout.of(a, b, c, (3, 2), self._tokens(three)) if isinstance(a, torch.Tensor) else a
                for a, b, c in zip(leaves, leaves2, leaves3, strict=True)
            ]
            turn = sum(call.module is module for call in found)
            found.append(Left(module, self.names[module], turn, spec, laid))
        return found

    @torch.no_grad()
    def _retype(self, batch: Batch, precision: str) -> None:
        """The dtypes that the calls leave in another precision; the looks above were in fp32, where errors show."""
        with autocast(precision):
            found = self._outputs(batch)
        for call, (_, _, leaves) in zip(self.left, found, strict=True):
            call.leaves = [
                replace(mine, dtype=new.dtype) if isinstance(mine, Layout) else mine
                for mine, new in zip(call.leaves, leaves, strict=True)
            ]

    @torch.no_grad()
    def _kept(self, batch: Batch, *, even: bool) -> list[Place]:
        """Which of the tensors left below the cut reach the logits: those that change them when spoiled.

        `even`: all rows are of one length, so that no dimension is seen to be that of the tokens.
        """
        values = {
            (i, j): leaf
            for i, (_, _, leaves) in enumerate(self._outputs(batch))
            for j, leaf in enumerate(leaves)
            if isinstance(leaf, torch.Tensor)
        }

        reaching: set[Place] = set()
        places = list(values)
        for _ in range(ROUNDS):
            found = self._reaching(batch, values, places)
            if not found:
                break
            reaching |= found
            last = 0
            for i, j in found:
                layout: Layout = self.left[i].leaves[j]
                if layout.batch is None or len(layout.tokens) > 1:
                    self.left[i].again[j] = source = _first_left(values, (i, j)) if layout.tokens or even else (i, j)
                    last = max(last, source[0])
            places = [place for place in values if place[0] < last and place not in reaching]  # these may reach through it
        else:
            raise Uncuttable("tables of tokens by tokens hang on one another there")
        kept = sorted((i, j) for i, j in reaching if j not in self.left[i].again)
        if not kept:
            raise Uncuttable("nothing below it reaches the logits")
        return kept

    def _reaching(self, batch: Batch, values: Values, places: list[Place]) -> set[Place]:
        """Which of the places change the logits when what was left there is spoiled."""
        want = self.seen(self._forward(batch, _copied(values)))
        found: set[Place] = set()
        for place in places:
            try:
                got = self.seen(self._forward(batch, {**_copied(values), place: _spoiled(values[place])}))
            except Exception:  # an index out of range, a check of the model's own
                got = []
            if len(got) != len(want) or not all(map(torch.equal, got, want)):
                found.add(place)
        return found

    def _share(self, batch: Batch) -> tuple[float, float]:
        """Of the arithmetic of a forward pass (matrix products and convolutions), the share that resuming leaves out; and how
        much that is of what capturing takes: less than all where something is made anew.
        """
        with torch.no_grad():
            with _Arithmetic() as below:
                values = dict(zip(self.kept, self.capture(batch), strict=True))
            with _Arithmetic() as above:
                self._forward(batch, values)
            with _Arithmetic() as whole:
                self.model(**batch)
        left_out = max(0, whole.total - above.total)
        return left_out / max(1, whole.total), min(1.0, left_out / max(1, below.total))

    @torch.no_grad()
    def _check(self, rows: Rows, low: int, long: int) -> None:
        """A row captured alone and resumed beside a longer one, and the other way round, has the logits of the whole network."""
        both, one, other = (self.placed(rows.batch(np.asarray(chosen))) for chosen in ([low, long], [low], [long]))
        alone = self.packed(one)
        joined = [torch.cat(units) for units in zip(alone, self.packed(other), strict=True)]
        parted = [units[: len(mine)] for units, mine in zip(self.packed(both), alone, strict=True)]
        for batch, units in ((both, joined), (one, parted)):
            wanted, found = self.seen(self.model(**batch)), self.seen(self._forward(batch, self._unpacked(batch, units)))
            mask = self.mask(batch)
            for want, got in zip(wanted, found, strict=True):
                if mask is not None and want.shape[:2] == mask.shape and want.dim() == 3:  # a token: padding has no meaning
                    want, got = want[mask.bool()], got[mask.bool()]
                if got.shape != want.shape or not (got - want).abs().max() <= CLOSE * want.abs().max() + 1e-7:
                    raise Uncuttable("what it gives for a row depends on the rows beside it, or on their padding")

    @torch.no_grad()
    def _unread(self, batch: Batch) -> bool:
        """Whether the logits are the same where the pictures are spoiled: then nothing above the cut looks into them."""
        if "pixel_values" not in batch:
            return False
        values = dict(zip(self.kept, self.capture(batch), strict=True))
        spoiled = {**batch, "pixel_values": _spoiled(batch["pixel_values"])}
        wanted, found = (self.seen(self._forward(one, _copied(values))) for one in (batch, spoiled))
        return all(map(torch.equal, wanted, found))

    def packed(self, batch: Batch) -> list[torch.Tensor]:
        """What was captured of a batch, as units: see `Layout.pack`."""
        mask = self.mask(batch)
        return [layout.pack(v, mask) for v, layout in zip(self.capture(batch), self.layouts(), strict=True)]

    def _unpacked(self, batch: Batch, units: list[torch.Tensor]) -> dict[Place, torch.Tensor]:
        mask, size, tokens = self.mask(batch), _size(batch), self._tokens(batch)
        return {
            place: layout.unpack(u, mask, size, tokens) for place, layout, u in zip(self.kept, self.layouts(), units, strict=True)
        }

    # -------------------------------------------------------------------------------------------------------------- stubs
    def _forward(self, batch: Batch, values: Values) -> Any:
        with self._stubs(values, _size(batch), self._tokens(batch)):
            return self.model(**batch)

    def _tokens(self, batch: Batch) -> int:
        """The length of the longest row in tokens; 0 where the input has none."""
        mask = self.mask(batch)
        first = mask if mask is not None else batch.get("input_ids")
        return first.shape[1] if first is not None else 0

    @contextmanager
    def _stubs(self, values: Values, rows: int, tokens: int) -> Iterator[None]:
        """Every module below the cut returns, at its first calls, what is in `values`, or zeros where nothing looks at it."""
        calls: dict[nn.Module, list[int]] = defaultdict(list)
        for i, call in enumerate(self.left):
            calls[call.module].append(i)
        sources = {i for call in self.left for i, _ in call.again.values()}
        anew: dict[int, list[Any]] = {}
        within: list[int] = []  # the call that is being made anew: what runs inside it is itself

        def stub(module: nn.Module, turns: Iterator[int], own: Any) -> Any:
            def forward(*args: Any, **kwargs: Any) -> Any:
                i = None if within else next(turns, None)
                if i is None:  # called once more, above the cut
                    return own(*args, **kwargs)
                call = self.left[i]
                if i in sources:
                    within.append(i)
                    with torch.no_grad():
                        output = own(*args, **kwargs)
                    within.pop()
                    anew[i] = tree_flatten(output)[0]
                    if all((i, j) not in values and call.again.get(j, (i, j)) == (i, j) for j in range(len(call.leaves))):
                        return output  # nothing of it comes from elsewhere
                leaves = [
                    anew[call.again[j][0]][call.again[j][1]]
                    if j in call.again
                    else values[i, j]
                    if (i, j) in values
                    else torch.zeros(leaf.shape(rows, tokens), dtype=leaf.dtype, device=self.where)
                    if isinstance(leaf, Layout)
                    else leaf
                    for j, leaf in enumerate(call.leaves)
                ]
                return tree_unflatten(leaves, call.spec)

            return forward

        before = {module: module.__dict__.get("forward") for module in calls}
        try:
            for module, turns in calls.items():
                module.forward = stub(module, iter(turns), module.forward)  # type: ignore[method-assign]
            yield
        finally:
            for module, forward in before.items():
                if forward is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.forward = forward  # type: ignore[method-assign]


class _Arithmetic(TorchDispatchMode):
    """Counts the multiplications and additions of matrix products and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **kwargs, out_val=out)
        return out


class Resumed(nn.Module):
    """The network above a cut: takes the batch of the whole network, with what was captured of its rows as units beside it."""

    def __init__(self, cut: Cut) -> None:
        super().__init__()
        self.model = cut.model
        self.cut = cut

    def forward(self, **batch: torch.Tensor) -> Any:
        return self.cut._forward(*self.cut.parted(batch if f"{LAID}0" in batch else self.cut.laid(batch)))


def two_rows(rows: Rows) -> tuple[int, int]:
    """(the shortest row, a longer one where there is one): the middle one, or the longest."""
    if len(rows) == 0:
        raise Uncuttable("there are no rows")
    order = np.argsort(rows.lengths, kind="stable")
    low, middle = int(order[0]), int(order[len(order) // 2])
    return low, middle if rows.lengths[middle] > rows.lengths[low] else int(order[-1])


def _stop(module: nn.Module, args: Any) -> None:
    raise _Stop


def _size(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _mask(batch: Batch) -> torch.Tensor | None:
    """(B, T) of the tokens that are no padding, where tokens go in."""
    return batch.get("attention_mask")


def _first_left(values: Values, place: Place) -> Place:
    """Where the tensor of `place` was left first, which modules often hand on as it is."""
    wanted = values[place]

    def same(one: torch.Tensor) -> bool:
        return (
            one.shape == wanted.shape and one.dtype == wanted.dtype and one.device == wanted.device and torch.equal(one, wanted)
        )

    return next((found for found, one in values.items() if same(one)), place)


def _copied(values: Values) -> dict[Place, torch.Tensor]:
    """Tensors of their own: the model may write into them in place."""
    return {place: value.clone() for place, value in values.items()}


def _spoiled(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_floating_point():
        return torch.full_like(tensor, float("nan"))
    return ~tensor if tensor.dtype == torch.bool else tensor + 1
