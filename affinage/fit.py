"""The one training loop: for epoch, for batch, loss, step. Stage 2 of every plan and every task goes through it."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from affinage import checkpoint, ranks, rates
from affinage.ahead import Ahead
from affinage.augment import mixed
from affinage.batches import aligned, pieces, shuffled
from affinage.cut import CAPTURED, Resumed
from affinage.dropout import cheap_dropout, dropped_before
from affinage.entry import entry
from affinage.errors import AffinageError, Diverged
from affinage.features import autocast, device, kernels, out_of_memory, placed
from affinage.first import First
from affinage.instead import instead
from affinage.joint import joint, layers, lone, statistics, unseen
from affinage.named import Named
from affinage.net import Net
from affinage.product import products
from affinage.recompute import recomputes
from affinage.record import Record, Records
from affinage.replay import Replay
from affinage.shards import Shards
from affinage.standing import Progress
from affinage.types import Aims, Batch, Rows, Stage, Task
from affinage.views import Views

ALIGNED = 8  # tokens that a GPU's batches are padded to multiples of


def _parameter(key: str) -> str:
    """The parameter that a tensor of a checkpoint belongs to: weights.NAME, average.NAME, best.NAME or optimizer.NAME.MOMENT."""
    kind, _, name = key.partition(".")
    return name.rpartition(".")[0] if kind == "optimizer" else name


def _clip(parameters: list[torch.nn.Parameter], most: float) -> None:
    """As `clip_grad_norm_`; on a CPU, gradients that are short enough are not multiplied by one."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if norm.is_cuda or not norm <= most:  # a GPU is not waited for
        torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)


def _compiled() -> float:
    """Seconds that torch has compiled for in this process."""
    from torch._dynamo.utils import calculate_time_spent

    return float(calculate_time_spent().get("total_wall_time", 0.0))


class Fitting:
    """One `fit` stage: its network, optimizer and progress; `state()` and `restore()` are exact inverses."""

    def __init__(
        self,
        net: Net,
        stage: Stage,
        task: Task,
        rows: Rows,
        aims: Aims,
        *,
        seed: int,
        precision: str,
        weights: torch.Tensor | None,
        forward: torch.nn.Module | None = None,
        compiled: bool = False,
        sharded: bool = False,
        replay: bool = False,
    ):
        """`weights` (C,): of the classes, where `task` classifies. `forward`: what gives the output of a batch where that is not
        the whole network, but what is above a cut.

        `sharded`: each of several ranks holds a part of what trains, until `join`. `replay`: updates are recorded where they can
        be, on a GPU.
        """
        self.net, self.stage, self.task, self.rows, self.aims = net, stage, task, rows, aims
        self.seed, self.precision = seed, precision
        self.forward: Callable[..., Any] = forward if forward is not None else net.model
        self.compiled_before = _compiled() if compiled else 0.0
        if compiled:  # once for all shapes: with one compilation a length it would never pay
            self.forward = torch.compile(self.forward, dynamic=True)
        self.where = device()
        self.plain = compiled or sharded  # the layers as they are: torch compiles them, or takes them apart
        self.weights = weights.to(self.where) if weights is not None else None
        self.table = rates.resolve(net, stage.rates)
        rates.freeze(net, self.table)
        self.shards = Shards(net, self.table) if sharded else None
        if compiled and ranks.count() > 1 and any(isinstance(layer, _BatchNorm) for layer in net.model.modules()):
            raise AffinageError("--compile does not go with batch norm on several ranks: leave it out, or start one process")
        self.trained = {n: p for n, p in net.model.named_parameters() if p.requires_grad}
        if not self.trained:
            raise AffinageError(f"stage {stage.name} trains nothing: give at least one address a rate, for example --unfreeze 1")
        # compiled or in parts, a layer has to be what it is
        self.named = Named(net.model, {} if self.plain else self.trained, rows, self.forward)
        self.trained |= self.named.parts
        self.first = First.of(net, rows) if task.classifies and not self.plain else None
        first = entry(net, self.table) if stage.dropout and stage.cut_dropout else None
        self.entry = net.model.get_submodule(net.blocks[first]) if first else None
        self.forwards = {**self.named.forwards, **products(net.model, "fp32" if self.plain else precision, self.where)}
        self.mine = self.trained | {n: p for n, p in (self.shards.mine if self.shards else {}).items() if n in self.trained}
        groups = rates.groups(net, self.table)
        for group in groups:
            group["params"] = [self.mine[name] for name in group["names"]]
        self.peaks = [group["lr"] for group in groups]
        plain = [{k: v for k, v in group.items() if k != "names"} for group in groups]  # biases and norms carry a decay of 0
        self.optimizer = torch.optim.AdamW(plain, weight_decay=stage.weight_decay, fused=True)
        self.ahead = Ahead(self.where) if self.where.type == "cuda" else None
        self.following: np.ndarray | None = None  # the rows of the next update
        self.replay = None
        if replay and self.ahead and not self.plain and not stage.mix and ranks.count() == 1:
            self.replay = Replay(net.model, list(self.trained.values()), self._loss, self._along)
            self.rows = aligned(rows, ALIGNED)
        self.names = [name for group in groups for name in group["names"]]
        self.progress = Progress()
        self.steps = stage.epochs * math.ceil(len(rows) / stage.batch)
        self.average: dict[str, torch.Tensor] = (
            {n: t.clone() for n, t in self.learned().items() if t.is_floating_point()} if stage.average else {}
        )
        self.best: dict[str, torch.Tensor] = {}
        # not in the checkpoint: a stage that goes on is made where it began, and then restored
        self.start: dict[str, torch.Tensor] = (
            {n: t.clone() for n, t in self.learned().items() if t.is_floating_point()} if stage.interpolate < 1 else {}
        )

    # ---------------------------------------------------------------------------------------------------- weights
    def learned(self) -> dict[str, torch.Tensor]:
        """What this stage may change: trained parameters, and the running statistics of the parts that train."""
        moving: dict[str, torch.Tensor] = {}
        for module_name, module in self.net.model.named_modules():
            own = [f"{module_name}.{n}" if module_name else n for n, _ in module.named_parameters(recurse=False)]
            if own and all(n in self.trained for n in own):
                moving |= {f"{module_name}.{n}": b for n, b in module.named_buffers(recurse=False) if b is not None}
        return {**{n: p.data for n, p in self.mine.items()}, **moving}

    def put(self, weights: dict[str, torch.Tensor]) -> None:
        """Copy `weights` into the network, in place."""
        own = self.learned()
        with torch.no_grad():
            for name, value in weights.items():
                own[name].copy_(value)
        self.named.put_back()

    def candidate(self) -> dict[str, torch.Tensor]:
        """The weights that this stage would hand on now: the running average where there is one, part of the way to it."""
        found = {**{n: t.clone() for n, t in self.learned().items()}, **{n: t.clone() for n, t in self.average.items()}}
        return found | {n: t.lerp(found[n], self.stage.interpolate) for n, t in self.start.items()}

    # -------------------------------------------------------------------------------------------------- checkpoint
    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """(tensors, JSON) that `restore` takes; a tensor in parts over the ranks is a `DTensor`."""
        tensors = {f"weights.{n}": t for n, t in self.learned().items()}
        tensors |= {f"average.{n}": t for n, t in self.average.items()} | {f"best.{n}": t for n, t in self.best.items()}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for name, parameter in zip(self.names, parameters, strict=True):
            tensors |= {f"optimizer.{name}.{k}": v for k, v in self.optimizer.state.get(parameter, {}).items()}
        if self.shards:
            tensors = {k: self.shards.laid(_parameter(k), t) for k, t in tensors.items()}
        tensors = {k: self.named.whole(_parameter(k), t, moment=k.startswith("optimizer.")) for k, t in tensors.items()}
        return tensors, {"progress": vars(self.progress).copy(), "trained": sorted(self.trained), "steps": self.steps}

    def laid(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """What `restore` takes for the tensor `name` of the shape of `like`: for one in parts this rank's, to be read into."""
        return self.shards.laid(_parameter(name), like) if self.shards else like

    def restore(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            AffinageError: the checkpoint trained other parts, or another number of steps.
        """
        if state["trained"] != sorted(self.trained) or state["steps"] != self.steps:
            raise AffinageError(
                "the checkpoint is of another plan (other parts trained, or other steps): resume with the run's own settings"
            )

        local = {k: t.to_local() if hasattr(t, "to_local") else t for k, t in tensors.items()}
        tensors = {k: self.named.part(_parameter(k), t.to(self.where)) for k, t in local.items()}

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v.to(self.where) for k, v in tensors.items() if k.startswith(prefix)}

        self.put(part("weights."))
        average = part("average.")
        self.average = {
            n: average[n] for n in self.average
        }  # a file has an order of its own; `_follow` goes by that of `trained`
        self.best = part("best.")
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for name, parameter in zip(self.names, parameters, strict=True):
            moments = {k.removeprefix(f"optimizer.{name}."): v for k, v in tensors.items() if k.startswith(f"optimizer.{name}.")}
            moments = {k: v for k, v in moments.items() if k in ("step", "exp_avg", "exp_avg_sq")}
            if moments:  # laid out in memory as the parameter (channels last): the fused step walks both at once, blindly
                laid = {k: torch.empty_like(parameter).copy_(v) for k, v in moments.items() if k != "step"}
                self.optimizer.state[parameter] = {**laid, "step": moments["step"].to(self.where)}
        self.progress = Progress(**state["progress"])

    # -------------------------------------------------------------------------------------------------------- loop
    def step(self, batch: np.ndarray) -> float:
        """One update on the given rows; the mean loss before it.

        Raises:
            Diverged: the loss is not finite.
            AffinageError: not even a single row fits in memory.
        """
        self._set_rates()
        ranks.draw(self.seed, self.stage.name, self.progress.step)
        with self.replay.aside() if self.replay else nullcontext():
            return self._step(batch)

    def _step(self, batch: np.ndarray) -> float:
        value = self._gradients(batch)
        (value,) = ranks.total(value)
        if not math.isfinite(value):
            other = " or use --precision fp32" if self.precision != "fp32" else ""
            raise Diverged(
                f"the loss is {value} in stage {self.stage.name}, epoch {self.progress.epoch + 1}, "
                f"step {self.progress.step + 1}: "
                f"lower --learning-rate (peak {max(self.peaks):g}){other}"
            )
        if self.replay:
            self.replay.update()
        else:
            self._along()
        self.progress.step += 1
        self._follow()
        return value

    def _set_rates(self) -> None:
        """The learning rates of the next update; what is recorded reads them from the card."""
        now = rates.share(self.stage, self.progress.step, self.steps)
        if self.replay:
            self.replay.set_rates(self.optimizer, self.peaks, now)
            return
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * now

    def _along(self) -> None:
        """Clip the gradients, and step."""
        self._summed()
        self.optimizer.step()

    def _gradients(self, batch: np.ndarray) -> float:
        """The gradients of the mean loss over the rows, and that loss; in more pieces where memory does not suffice.

        An update that failed begins anew with the random numbers and running statistics that it began with; pieces draw dropout
        and augmentation in another order, the same in law. A batch norm that learns takes each piece by itself: that is said.
        """
        even = self.shards is not None or (ranks.count() > 1 and bool(layers(self.net.model)))
        while True:
            back = statistics(self.net.model)
            drawn = torch.get_rng_state(), torch.cuda.get_rng_state() if self.where.type == "cuda" else None
            try:
                short = self.first.cut_short(self.forwards) if self.first else instead(self.forwards)
                dropped = dropped_before(self.entry, self.stage.cut_dropout)
                with short, dropped, joint(self.net.model), kernels(self.precision), cheap_dropout():
                    return self._in_pieces(batch, even)
            except (RuntimeError, MemoryError) as error:  # a CPU's is a RuntimeError
                if not out_of_memory(error) or even:  # the other ranks wait in the middle of this very pass
                    raise
                if self.progress.least_pieces >= len(batch):
                    longest = int(self.rows.lengths[batch].max(initial=1))
                    raise AffinageError(
                        f"one row of {longest} tokens does not fit in memory: --unfreeze fewer blocks, lower --max-length, "
                        "or give --gradient-checkpointing"
                    ) from None
            self.optimizer.zero_grad(set_to_none=True)
            if self.replay:
                self.replay.give_up("memory did not suffice for an update in one piece")
            if self.progress.least_pieces == 1 and layers(self.net.model):
                print(
                    f"affinage: {len(batch)} rows at once do not fit in memory, and batch norm takes each piece of them by "
                    "itself: the result is that of smaller batches; --gradient-checkpointing, or fewer blocks, needs less",
                    file=sys.stderr,
                )
            self.progress.least_pieces *= 2
            back()
            torch.set_rng_state(drawn[0])
            if drawn[1] is not None:
                torch.cuda.set_rng_state(drawn[1])
                torch.cuda.empty_cache()

    def _in_pieces(self, batch: np.ndarray, even: bool) -> float:
        """The gradients and the loss of one update: each piece's, by its share of the rows; of several ranks, of this one's.

        `even`: as many pieces on each rank, since parts of a pass are joint: blocks in parts, batch norms.
        """
        self.optimizer.zero_grad(set_to_none=True)
        mine = ranks.own(batch)
        least = max(self.stage.accumulate, self.progress.least_pieces)
        parts = [mine[part] for part in pieces(self.rows.lengths[mine], self.stage.tokens, least)] if len(mine) else []
        if even:
            everyone = [self.rows.lengths[batch[r :: ranks.count()]] for r in range(ranks.count())]
            most = max(len(pieces(lengths, self.stage.tokens, least)) for lengths in everyone if len(lengths))
            parts += [np.zeros(0, batch.dtype)] * (most - len(parts))
        if self.replay and len(parts) == 1 and not (len(parts[0]) == 1 and layers(self.net.model)):
            inputs, targets, _, _ = self.shown(parts[0])
            if isinstance(self.forward, Resumed):  # how many tokens there are differs from batch to batch, and is no shape of it
                inputs = self.forward.cut.laid(inputs)
            loss = self.replay.gradients(inputs, targets)
            if self.ahead:  # while the card computes
                self.ahead.read(self.rows, self.following)
            return loss.item()
        total = 0.0
        for part in parts:
            alone = lone(self.net.model) if len(part) == 1 and ranks.count() == 1 else nullcontext()
            with alone if len(part) else unseen():  # backwards too: blocks may be recomputed there
                loss = self.loss(part if len(part) else batch[:1])
                if len(part) < len(batch):
                    loss = loss * self.share_of(part, batch)
                value = loss.item()
                total += value
                if not math.isfinite(value) and not even:
                    break  # the caller says so; no gradient of it is wanted
                back = statistics(self.net.model) if recomputes(self.net.model) else None
                loss.backward()
                if back:  # what is computed again counts once
                    back()
        if self.ahead and ranks.count() == 1:
            self.ahead.read(self.rows, self.following)
        return total

    def _summed(self) -> None:
        """The gradients of all ranks' rows, and no longer than the stage allows."""
        if not self.shards:
            ranks.add_gradients(list(self.trained.values()))
            _clip(list(self.trained.values()), self.stage.clip)
            return
        self.shards.gradients()
        alike = [p for n, p in self.mine.items() if n not in self.shards.mine]
        ranks.add_gradients(alike)
        self.shards.clip(alike, self.stage.clip)

    def join(self) -> None:
        """The network whole again on every rank; the stage is over."""
        self.named.undo()
        if self.shards:
            self.shards.undo()
            self.shards = None
        self.mine = self.trained = {n: p for n, p in self.net.model.named_parameters() if n in self.trained}

    def loss(self, rows: np.ndarray) -> torch.Tensor:
        """The mean loss over the given rows, with its graph."""
        return self._loss(*self.shown(rows))

    def shown(self, rows: np.ndarray) -> tuple[Batch, Any, torch.Tensor | None, float]:
        """(inputs, targets) of the rows as this step shows them, on the network's device, and whose pictures are mixed into them
        (None: nobody's) and how much is their own: see `augment.Mixed`."""
        batch = self.ahead.taken(rows) if self.ahead else None
        inputs: Batch = {k: v.to(self.where) for k, v in (batch or self.rows.batch(rows)).items()}
        inputs, targets = self.task.teach(inputs, placed(self.aims.batch(rows)), self.stage.augment)
        other, kept = None, 1.0
        if "pixel_values" in inputs:
            pictures, other, kept = mixed(inputs["pixel_values"], self.stage.mix)
            if f"{CAPTURED}0" not in inputs:  # convolutions run 1.5 to 2 times faster; above a cut nothing looks into pictures
                inputs["pixel_values"] = pictures.contiguous(memory_format=torch.channels_last)
        return inputs, targets, other, kept

    def _loss(self, inputs: Batch, targets: Any, other: torch.Tensor | None = None, kept: float = 1.0) -> torch.Tensor:
        with autocast(self.precision):
            outputs = self.forward(**inputs)
        loss = self._against(outputs, targets)
        return loss if other is None else kept * loss + (1.0 - kept) * self._against(outputs, targets[other])

    def _against(self, outputs: Any, targets: Any) -> torch.Tensor:
        """The task's mean loss against these targets."""
        return self.task.loss(outputs, targets, weights=self.weights, smoothing=self.stage.label_smoothing)

    def share_of(self, part: np.ndarray, whole: np.ndarray) -> float:
        """What the mean loss over `part` counts in that over `whole`: by rows, their own counts, or their classes' weights."""
        if self.weights is not None:
            weights = self.weights.cpu()
            return float(weights[self.aims.batch(part)].sum() / weights[self.aims.batch(whole)].sum())
        if self.aims.counts is None:
            return len(part) / len(whole)
        return float(self.aims.counts[part].sum() / max(self.aims.counts[whole].sum(), 1e-9))

    def compiling_seconds(self) -> float:
        """What `--compile` has cost this stage so far."""
        return round(_compiled() - self.compiled_before, 1)

    @torch.no_grad()
    def _follow(self) -> None:
        """The running average: uniform at first, then exponential over the last `average` share of all steps."""
        if self.average:
            weight = max(1.0 / self.progress.step, 1.0 / max(1.0, self.stage.average * self.steps))
            own = self.learned()  # batch-norm statistics too: those of other weights would not fit the average
            torch._foreach_lerp_(list(self.average.values()), [own[n] for n in self.average], weight)

    def run(
        self,
        evaluate: Callable[[], list[float] | None],
        records: Records,
        save: Callable[[], None],
        advance: Callable[[int, str], None],
    ) -> None:
        """Train to the end of the stage.

        `evaluate()` scores the network as it stands, higher is better, or returns None without a validation split;
        `save()` writes a checkpoint, every `checkpoint.interval()` seconds;
        `advance(rows, words)` moves the progress bar.
        """
        progress, every = self.progress, checkpoint.interval()
        rates.train_mode(self.net, self.table, dropout=self.stage.dropout)
        clock, cpu, saved = time.perf_counter(), time.process_time(), time.perf_counter()

        def tick() -> None:
            nonlocal clock, cpu
            progress.seconds += time.perf_counter() - clock
            progress.cpu_seconds += time.process_time() - cpu
            clock, cpu = time.perf_counter(), time.process_time()

        while progress.epoch < self.stage.epochs and not progress.done:
            if isinstance(self.rows, Views):
                self.rows.look(progress.epoch)
            batches = shuffled(self.rows.lengths, self.stage.batch, self.seed, progress.epoch)
            left = batches[progress.batch :]
            for batch, self.following in zip(left, [*left[1:], None], strict=False):  # none left: stopped behind the last
                value = self.step(batch)
                progress.batch += 1
                progress.loss_sum += value * len(batch)
                progress.rows += len(batch)
                tick()
                advance(len(batch), f"loss {progress.loss_sum / progress.rows:.3f}")
                if ranks.shared(time.perf_counter() - saved > every):
                    save()
                    saved = time.perf_counter()
            loss = progress.loss_sum / progress.rows
            records.add(Record(self.stage.name, progress.step, "train", "loss", loss, round(progress.seconds, 3)))
            progress.epoch, progress.batch, progress.loss_sum, progress.rows = progress.epoch + 1, 0, 0.0, 0
            apart = self.shards.mine if self.shards else {}
            ranks.same([t for n, t in self.learned().items() if n not in apart])  # other processors round otherwise
            raw = {n: t.clone() for n, t in self.learned().items()} if self.average or self.start else {}
            candidate = self.candidate()
            self.put(candidate)
            with self.shards.together() if self.shards else nullcontext():
                score = evaluate()
            self.put(raw)
            rates.train_mode(self.net, self.table, dropout=self.stage.dropout)
            if progress.judge(score, loss, self.stage):
                self.best = candidate
            tick()
            records.flush()
            # not after every epoch: with few rows it would cost more than the training
            if ranks.shared(time.perf_counter() - saved > every):
                save()
                saved = time.perf_counter()
        self.put(self.best)
