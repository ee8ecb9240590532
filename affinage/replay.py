"""Replay: on a GPU an update whose shapes come again is recorded once, and from then on launched as one (CUDA graphs).

A step of a small network is hundreds of kernels of a few microseconds each, and the card waits for the processor that launches
them one by one. Recorded is the pass forwards and backwards, once for each shape, and what clips and steps, once.
"""

from __future__ import annotations

import gc
import os
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from affinage.errors import AffinageError

SEEN = 1  # updates of a shape before it is recorded: what libraries set up at a first call must not be in it
MOST = 128  # shapes that are recorded; others run kernel by kernel

Work = Callable[[], None]


class _Recorded(NamedTuple):
    """The pass of one shape: what it reads, the loss that it leaves, and what runs it."""

    inputs: list[Any]
    loss: torch.Tensor
    launch: Work


class Replay:
    """The updates of a stage, recorded where they can be.

    `why`: why nothing is recorded; `launched`: how many passes were launched as one.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        loss: Callable[[Any, Any], torch.Tensor],
        update: Work,
        recorder: Recorder | None = None,
    ) -> None:
        """`loss(inputs, targets)`: of a batch on the card, with its graph. `update()`: clips their gradients, steps.

        `recorder`: what records; the card's if not given.
        """
        self.model, self.parameters, self._loss, self._plain_update = model, list(parameters), loss, update
        self.recorder = recorder or Recorder()
        self.why, self.launched = "", 0
        self._known: dict[Any, _Recorded] = {}
        self._seen: Counter[Any] = Counter()
        self._used: list[bool] = []  # which parameters have a gradient after a pass
        self._gradients: list[torch.Tensor | None] = []  # where recorded passes leave them
        self._update: Work | None = None
        self._rates = self._peaks = torch.empty(0)  # a number for each group of the optimizer
        self._recordable = False  # whether the optimizer is set so that it can be
        self._there = False  # whether the gradients of the last pass lie there
        self._says: bool | None = None  # what a model's code hears when it asks whether it is recorded
        self._watched = False

    @property
    def shapes(self) -> int:
        """How many shapes are recorded."""
        return len(self._known)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Around an update: what it launches goes to a stream of its own, since nothing is recorded from the default one."""
        self._there = False
        with nullcontext() if self.why else self.recorder.aside():
            yield

    def gradients(self, inputs: Any, targets: Any) -> torch.Tensor:
        """The loss of a batch, a scalar on the card; its gradients are those that `update` goes along."""
        if not self._watched:
            self._watch(inputs, targets)
        if self.why:
            return self._passed(inputs, targets)
        leaves, spec = tree_flatten((inputs, targets))
        shape = (str(spec), *map(_shape, leaves))
        found = self._known.get(shape)
        if found is None and self._seen[shape] >= SEEN and len(self._known) < MOST:
            found = self._recorded(shape, leaves, spec)
        if found is None:
            self._seen[shape] += 1
            loss = self._passed(inputs, targets)
            self._same_parameters()
            return loss
        for mine, new in zip(found.inputs, leaves, strict=True):
            if isinstance(mine, torch.Tensor):
                mine.copy_(new, non_blocking=True)
        found.launch()
        self._there, self.launched = True, self.launched + 1
        return found.loss

    def update(self) -> None:
        """Clip and step along the gradients of the last pass, or of all since the last update."""
        if not self._there:
            # an optimizer that can be recorded asks whether it is, and warns where it is not; another one stops where it is
            with self.recorder.saying(True) if self._recordable else nullcontext():
                self._plain_update()
            return
        if self._update is None:

            def work() -> None:
                for parameter, gradient in zip(self.parameters, self._gradients, strict=True):
                    parameter.grad = gradient
                self._plain_update()
                self._forget()

            self._update = self.recorder.record(work)
        self._update()

    def set_rates(self, optimizer: torch.optim.Optimizer, peaks: Sequence[float], share: float) -> None:
        """The learning rates of the next update: `share` of each group's peak, where what is recorded reads them."""
        if not len(self._rates):
            self._peaks = torch.tensor(peaks, dtype=torch.float32, device=self.parameters[0].device)
            self._rates = self._peaks.clone()
        torch.mul(self._peaks, share, out=self._rates)
        self._recordable = not self.why
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"], group["capturable"] = rate, self._recordable

    def give_up(self, why: str) -> None:
        """Record no more, and let go of what was recorded."""
        self.why, self._says = why, None
        self._known, self._gradients, self._update, self._there = {}, [], None, False

    # ------------------------------------------------------------------------------------------------------- one shape
    def _passed(self, inputs: Any, targets: Any) -> torch.Tensor:
        with nullcontext() if self._says is None else self.recorder.saying(self._says):
            loss = self._loss(inputs, targets)
            loss.backward()
        return loss.detach()

    def _watch(self, inputs: Any, targets: Any) -> None:
        """Learn whether a pass can be recorded, and by which way through the model's code.

        transformers leaves out a mask of ones where it may look into it: which waits for the card, so that code that is recorded
        goes another way. That way some models make a mask that they need not (and lose the fast kernels), so it is the second
        choice. Passes that are not recorded go the same way: what an update gives, dropout and all, does not depend on whether
        it is recorded, and a run that goes on after a stop records anew.
        """
        self._watched = True
        for self._says in (False, True):
            why = self.recorder.watched(self.model, lambda: self._passed(inputs, targets))
            self._forget()
            if not why:
                return
        self.give_up(why)

    def _forget(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def _same_parameters(self) -> bool:
        """Whether the gradients that there are now are of the same parameters as ever; else nothing is recorded any more."""
        used = [parameter.grad is not None for parameter in self.parameters]
        self._used = self._used or used
        if used == self._used:
            return True
        self.give_up("which parameters have a gradient changes from batch to batch")
        return False

    def _recorded(self, shape: Any, leaves: list[Any], spec: Any) -> _Recorded | None:
        """The pass of this shape, recorded; None where that fails."""
        if why := self.recorder.too_full():
            self.give_up(why)
            return None
        mine = [torch.empty_like(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        inputs, targets = tree_unflatten(mine, spec)
        loss = torch.zeros((), device=self.parameters[0].device)
        if not self._gradients:
            self._gradients = [torch.empty_like(p) if used else None for p, used in zip(self.parameters, self._used, strict=True)]

        def work() -> None:
            self._forget()
            loss.copy_(self._passed(inputs, targets))
            if self._same_parameters():
                torch._foreach_copy_(
                    [there for there in self._gradients if there is not None],
                    [p.grad for p in self.parameters if p.grad is not None],
                )
            self._forget()

        try:
            launch = self.recorder.record(work)
        except RuntimeError as error:
            self.give_up(f"recording failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
            self._forget()
            self.recorder.sound(error)
        if self.why:
            return None
        self._known[shape] = _Recorded(mine, loss, launch)
        return self._known[shape]


class Recorder:
    """What records on a card: one stream, and one pool of memory for all that is recorded, which never runs at the same time."""

    def __init__(self) -> None:
        self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While it lasts, work goes to the stream: after what was launched before, and before what is launched afterwards."""
        here = torch.cuda.current_stream()
        self.stream.wait_stream(here)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            here.wait_stream(self.stream)

    @contextmanager
    def saying(self, recorded: bool) -> Iterator[None]:
        """While it lasts, code that asks whether it is recorded hears this, whether it is or not."""
        asked = torch.cuda.is_current_stream_capturing
        torch.cuda.is_current_stream_capturing = lambda: recorded
        try:
            yield
        finally:
            torch.cuda.is_current_stream_capturing = asked

    def record(self, work: Work) -> Work:
        """What does the work again, with the tensors that it then read and wrote; the work itself is not done yet.

        Raises:
            RuntimeError: something in it cannot be recorded.
        """
        graph = torch.cuda.CUDAGraph()
        collects = gc.isenabled()
        gc.disable()  # what a collection freed could be another graph
        try:
            graph.capture_begin(pool=self.pool)
            try:
                work()
            except BaseException:
                self._ended(graph)  # the first error is the one that tells
                raise
            graph.capture_end()
        finally:
            if collects:
                gc.enable()
        return graph.replay

    def _ended(self, graph: torch.cuda.CUDAGraph) -> None:
        """A recording that failed, over: torch leaves its memory and its random numbers in that state (pytorch#171263)."""
        with suppress(RuntimeError):
            graph.capture_end()
        with suppress(RuntimeError, AttributeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self.pool)
        with suppress(RuntimeError):
            graph.reset()
        self.pool = torch.cuda.graph_pool_handle()
        with suppress(RuntimeError):  # one that succeeds sets the generator right
            nothing, cell = torch.cuda.CUDAGraph(), torch.zeros(1, device="cuda")
            nothing.capture_begin()
            cell.zero_()
            nothing.capture_end()

    def watched(self, model: nn.Module, work: Work | Callable[[], object]) -> str:
        """Why the work cannot be recorded, where it waits for the card or what it does depends on chance (layers that are left
        out); else "". It leaves no trace in the model's buffers nor in what is drawn afterwards."""
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        drawn, mode = _drawn(), torch.cuda.get_sync_debug_mode()
        on_card = torch.cuda.get_rng_state()
        said: list[warnings.WarningMessage] = []
        by_chance = False
        try:
            for _ in range(2):  # what is set up at the first pass may wait
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    torch.cuda.set_sync_debug_mode("warn")
                    work()
                torch.cuda.set_sync_debug_mode(mode)
                by_chance = not _same(drawn, _drawn())
                said = [one for one in said if "called a synchronizing" in str(one.message)]
                if not said:
                    break
        finally:
            torch.cuda.set_sync_debug_mode(mode)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            torch.set_rng_state(drawn[0])
            random.setstate(drawn[1])
            np.random.set_state(drawn[2])
            torch.cuda.set_rng_state(on_card)
        if by_chance:
            return "what a pass does depends on random numbers that the card does not draw"
        return f"a pass waits for the card ({os.path.basename(said[0].filename)}, line {said[0].lineno})" if said else ""

    def too_full(self) -> str:
        """Why there may be no room for what another shape holds while it runs; "" where there is."""
        need = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
        if torch.cuda.mem_get_info()[0] < need:
            torch.cuda.empty_cache()
        return "" if torch.cuda.mem_get_info()[0] >= need else "the card's memory has no room for a second pass"

    def sound(self, error: Exception) -> None:
        """Whether the card goes on after a recording that failed.

        Raises:
            AffinageError: it does not.
        """
        try:
            torch.cuda.synchronize()
            torch.empty(1, device="cuda").normal_()
        except RuntimeError:
            raise AffinageError(f"an update could not be recorded ({error}): set AFFINAGE_GRAPHS=off and start again") from error


def wanted() -> bool:
    """Whether updates may be recorded on a GPU: AFFINAGE_GRAPHS is not "off"."""
    return os.environ.get("AFFINAGE_GRAPHS", "on") != "off"


def _drawn() -> tuple[torch.Tensor, Any, Any]:
    """How far the generators of the processor are: torch's, Python's and NumPy's."""
    return torch.get_rng_state(), random.getstate(), np.random.get_state()


def _same(one: tuple[torch.Tensor, Any, Any], other: tuple[torch.Tensor, Any, Any]) -> bool:
    arrays = zip(one[2], other[2], strict=True)
    return torch.equal(one[0], other[0]) and one[1] == other[1] and all(np.array_equal(a, b) for a, b in arrays)


def _shape(leaf: Any) -> Any:
    """What a recording depends on."""
    return (leaf.shape, leaf.dtype, leaf.stride()) if isinstance(leaf, torch.Tensor) else repr(leaf)
