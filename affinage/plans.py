"""Named plans: each is a value, a tuple of stages whose rates were filled in for one network."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from affinage import rates
from affinage.dropout import own_rate
from affinage.entry import entry
from affinage.errors import AffinageError, choose
from affinage.net import Net
from affinage.types import Plan, Rates, Stage

# A head solved to its optimum is sure of most rows, and a row that is right and sure moves nothing below it. At 0.3 of its
# logits it still says where to go, and leaves the layers something to learn (benchmarks/search.py).
HAND_OVER = 0.3
# Updates at least: ten epochs of 16 rows are ten updates, too few for a head that starts at random (2.7 points at 8 labels a
# class, one seed of four text sets: benchmarks/search.py). A solved head needs no more, and gets the same budget.
STEPS = 40
# Rows from which an update takes more of them: what it costs beside its rows (clipping, the optimizer's step, weights cast to
# bf16) is then paid half as often, and there are updates enough (docs/results.md).
MANY = 5_000
FEW_BATCH, MANY_BATCH = 16, {"text": 32, "image": 64, "audio": 64}
BOX_STEPS = 600  # of a detector: it goes on to gain for long (docs/detection.md)

# Plans that say themselves what learns.
WHOLE = {
    "frozen": "trains the head alone",
    "scratch": "trains all of it",
    "lora": "adds to every block",
    "gradual": "goes through the blocks one by one",
}
SMALL = 15e6  # parameters, of networks for pictures
HEAD_RATE = 3e-3  # of a head that trains alone: what it reads does not move
HEAD_STEPS = 600  # updates at most of such a head, where there are few rows
DEEP_RATE = 1e-3  # where it is more than one layer: boxes that were learnt well are lost at more
DEEP_STEPS = 300  # of such a one: each goes through what stands between its layers (a detector's decoder)
NAMES = ("scratch", "frozen", "two-stage", "full", "lora", "gradual")


@dataclass(frozen=True)
class Wishes:
    """What the user said; None or "auto" leaves it to the defaults below."""

    unfreeze: str | int = "auto"
    learning_rate: float | Literal["auto"] = "auto"
    head_learning_rate: float | Literal["auto"] = "auto"
    layer_decay: float | Literal["auto"] = "auto"
    epochs: int | None = None
    batch_size: int | Literal["auto"] = "auto"
    label_smoothing: float | Literal["auto"] = "auto"
    average: float | Literal["auto"] = "auto"
    hand_over: float | Literal["auto"] = "auto"
    interpolate: float | Literal["auto"] = "auto"
    augment: str = "auto"
    mix: float = 0.0
    accumulate: int = 1
    lora_rank: int = 8


def body_rate(kind: str, parameters: int) -> float:
    """Peak rate of the top block. Small networks take, and need, more: 1e-4 for the 22 M of MiniLM, 1e-3 for 3 M of a ResNet.

    With 3e-4 that ResNet stayed 2 to 9 points below in one stage, and 2 below to 0.3 above in two (benchmarks/search.py).
    """
    if kind == "image" and parameters < SMALL:
        return 1e-3
    return 1e-4 if parameters < 50e6 else 5e-5 if parameters < 100e6 else 2e-5


def passes(rows: int, batch: int, least: int = STEPS) -> int:
    """Epochs: ten for few rows, more where these are fewer than `least` updates, fewer as rows grow, never below three."""
    usual = 10 if rows <= 1500 else 5 if rows <= 10_000 else 3
    return max(usual, math.ceil(least / math.ceil(rows / batch)))


def make(name: str, net: Net, kind: str, rows: int, wishes: Wishes, *, patience: bool, solves: bool = True) -> Plan:
    """The plan `name` for this network and `rows` training rows. `patience`: whether a validation split can stop it early.

    `solves`: the head is one linear layer that a solver fits (`Task.classifies`); else the first stage trains it alone.

    Raises:
        AffinageError: no such plan, or an address that matches nothing.
    """
    choose("plan", name, NAMES)
    batch = wishes.batch_size if wishes.batch_size != "auto" else FEW_BATCH if rows < MANY else MANY_BATCH[kind]
    solve = Stage("head", "solve", (("head", 1.0), ("*", None)))  # a solver has no rate: 1 says that the head learns
    if not solves:
        if not net.addresses()["head"] and name not in ("full", "scratch"):
            raise AffinageError(
                f"the head of {type(net.model).__name__} is its table of words, which it reads first: use --plan full"
            )
        rate = wishes.head_learning_rate if wishes.head_learning_rate != "auto" else HEAD_RATE if _one_layer(net) else DEEP_RATE
        alone = Stage("head", "fit", (("head", rate), ("*", None)), batch=batch, accumulate=wishes.accumulate)
        wish = wishes.epochs if name == "frozen" or wishes.unfreeze in (0, "head") else None
        solve = _converged(alone, rows, wish, HEAD_STEPS if _one_layer(net) else DEEP_STEPS)
    if name == "frozen" or wishes.unfreeze in (0, "head"):
        return Plan(name, (solve,))
    fresh = name == "scratch"
    parameters = sum(p.numel() for p in net.model.parameters())
    # a network without blocks, such as ALBERT, which runs one layer again and again, learns whole
    depth = wishes.unfreeze if wishes.unfreeze != "auto" else "all" if net.blocks else "everything"
    if fresh or (kind == "image" and depth == "all"):
        depth = "everything"  # a stem of convolutions is small and learns; a table of word embeddings is neither
    scratch_rate = 3e-4 if kind == "text" else 1e-3
    rate = wishes.learning_rate if wishes.learning_rate != "auto" else scratch_rate if fresh else body_rate(kind, parameters)
    head = wishes.head_learning_rate if wishes.head_learning_rate != "auto" else 1e-3
    # a small detector learns mostly anew: 1 found boxes better than 0.85 on held-out pictures (docs/detection.md)
    detects = kind == "image" and not solves
    level = fresh or (detects and parameters < SMALL)
    decay = wishes.layer_decay if wishes.layer_decay != "auto" else 1.0 if level else 0.85
    epochs = wishes.epochs or passes(rows, batch, BOX_STEPS if detects else STEPS)
    fit = Stage(
        "body",
        "fit",
        rates.decayed(net, rate, decay, max(head, rate) if fresh else head, depth),
        epochs=epochs,
        batch=batch,
        weight_decay=0.05 if fresh else 0.0,
        label_smoothing=wishes.label_smoothing if wishes.label_smoothing != "auto" else 0.0,
        accumulate=wishes.accumulate,
        average=wishes.average if wishes.average != "auto" else 0.0,
        augment=wishes.augment if wishes.augment != "auto" else "light" if kind == "image" else "none",
        mix=wishes.mix,
        interpolate=wishes.interpolate if wishes.interpolate != "auto" else 1.0,
        # a rate that falls over the whole stage gains most at its end: a short flat stretch is no reason to stop there
        patience=max(3, round(0.3 * epochs)) if patience else 0,
    )
    fit = _dropping(net, fit, kind)
    if name in ("scratch", "full"):
        return Plan(name, (fit,), fresh=fresh)
    if solves:  # what was trained and not solved stops before it is too sure
        fit = replace(fit, hand_over=wishes.hand_over if wishes.hand_over != "auto" else HAND_OVER)
    if name == "lora":
        rate = (
            wishes.learning_rate if wishes.learning_rate != "auto" else 1e-3
        )  # ten times that of full training (LoRA without regret)
        table: Rates = (("*lora_*", rate), ("head", head), ("*", None))
        return Plan(name, (solve, replace(fit, rates=table, cut_dropout=0.0)), lora=wishes.lora_rank)
    if name == "gradual":
        return Plan(name, (solve, *(_dropping(net, stage, kind) for stage in _gradual(net, fit, rate, decay, head))))
    return Plan(name, (solve, fit))


def _dropping(net: Net, stage: Stage, kind: str) -> Stage:
    """The stage with dropout where its frozen blocks end, at the rate of the last of them; measured for texts, not for others
    (docs/results.md)."""
    first = entry(net, rates.resolve(net, stage.rates)) if kind == "text" else None
    return replace(stage, cut_dropout=own_rate(net.model.get_submodule(net.blocks[first - 1])) if first else 0.0)


def _one_layer(net: Net) -> bool:
    """Whether the head is the layer of the logits and no more."""
    return {name.rpartition(".")[0] for name in net.addresses()["head"]} == {net.head_name}


def _converged(stage: Stage, rows: int, wish: int | None, steps: int) -> Stage:
    """The head alone, on what reaches it, computed once: steps are cheap, so it goes on until it gains nothing.

    With a validation split that is told by its score; without one by the training loss, which must fall by half a per cent in
    one of `patience` epochs. `wish`: the epochs that were asked for, where this is the only stage; else about
    `steps` updates.
    """
    epochs = wish or max(passes(rows, stage.batch), math.ceil(steps / math.ceil(rows / stage.batch)))
    return replace(stage, epochs=epochs, schedule="constant", patience=max(3, epochs // 10), tolerance=5e-3)


def _gradual(net: Net, fit: Stage, rate: float, decay: float, head: float) -> list[Stage]:
    """One stage a depth (ULMFiT): the top block first, one more in each; together as many epochs as the plain stage."""
    depth = max(1, len(net.blocks))
    steps = sorted({max(1, round(depth * (i + 1) / min(depth, fit.epochs))) for i in range(min(depth, fit.epochs))})
    share = [fit.epochs // len(steps) + (i < fit.epochs % len(steps)) for i in range(len(steps))]
    return [
        replace(
            fit,
            name=f"top-{k}",
            rates=rates.decayed(net, rate, decay, head, k),
            epochs=n,
            hand_over=fit.hand_over if k == steps[0] else 1.0,
        )
        for k, n in zip(steps, share, strict=True)
    ]
