"""The stages of a run: a head solved to its optimum, and layers that learn; what they freeze runs once between them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from affinage import checkpoint, labels, ranks, replay, spool
from affinage.checkpoint import Saved
from affinage.facts import Clock
from affinage.features import answered, device, flop, passed
from affinage.first import First
from affinage.fit import Fitting
from affinage.frozen import Alike, Frozen, Later, computed_once
from affinage.inputs import Inputs
from affinage.instead import instead
from affinage.net import Net
from affinage.progress import Bar
from affinage.recompute import recomputed
from affinage.record import Record, Records
from affinage.solve import Head, solve
from affinage.story import STAGE, Some, Story
from affinage.types import Cost, Outcome, Rows, Stage

PAYS = 1000  # rows of a pass from which it pays to look whether the last block can be cut short
KEPT = 1e12  # FLOP of a pass over the training rows, some ten seconds of a core, from which other runs find what it gave


def solved(story: Story, stage: Stage, bar: Bar) -> None:
    """Stage 1: features once, the head solved to its optimum."""
    inputs = story.inputs
    clock = Clock()
    linear = inputs.net.head_linear
    assert linear is not None, "prepare() refuses such a network"
    chosen = labels.spread(inputs.data.train, ranks.shared(_held_features(linear)), inputs.settings.seed)
    whole = len(chosen) == len(inputs.data.train)
    frozen = _ahead(story, stage, bar, whole=whole)
    rows: Rows = frozen.rows["train"]
    if not whole:
        rows = Some(rows, chosen)
    bar.start(f"stage {stage.name}: features", len(rows))
    short = First.of(inputs.net, rows) if len(rows) >= PAYS and frozen.facts.get("address") != "head" else None
    replaced = short.cut_short if short else instead
    features, _ = passed(frozen.forward, rows, inputs.precision, linear, lambda n: bar.advance(n, ""), replaced)
    assert features is not None
    bar.say("solving the head")
    targets = np.asarray(inputs.data.train.targets)[chosen]

    def optimum() -> Head:
        return solve(
            features,
            targets,
            len(inputs.names),
            balanced=inputs.settings.class_weights == "balanced",
            bias=linear.bias is not None,
            seed=inputs.settings.seed,
        )

    head = ranks.alone(optimum)
    if head is not None:
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(head.weight))
            if linear.bias is not None:
                linear.bias.copy_(torch.from_numpy(head.bias))
    ranks.same(linear.parameters())
    name = inputs.net.head_name
    story.carried[f"{name}.weight"] = linear.weight.detach().clone()
    if linear.bias is not None:
        story.carried[f"{name}.bias"] = linear.bias.detach().clone()
    validation = _validate(inputs, frozen)
    details: dict[str, Any] = {"trained_parameters": sum(p.numel() for p in linear.parameters())}
    if not whole:  # of more than memory holds the features of
        details["rows"] = len(chosen)
    if head is not None:
        details = {
            "method": head.method,
            "penalty": head.penalty,
            "gradient_norm": head.gradient_norm,
            "iterations": head.iterations,
            "cross_validated": inputs.task.score(head.held_out, targets[head.held_rows]),
            **details,
        }
    story.outcomes.append(Outcome(stage.name, clock.cost(), validation, details))
    story.kept = stage.name
    _record(story.records, stage.name, 0, validation, clock.cost().seconds)


def _held_features(linear: torch.nn.Linear) -> int:
    """How many rows the head is solved on at most: what memory holds of their features and of ten penalties' logits.

    The solver keeps some four copies in double precision. A linear head hardly gains from more rows than that; stage 2 sees all.
    """
    return spool.limit() // (8 * (4 * linear.in_features + 10 * linear.out_features))


def fitted(
    story: Story,
    stage: Stage,
    bar: Bar,
    saved: Saved | None,
) -> None:
    """Stage 2: from the weights carried so far, at low rates; the best of where it began and its epochs goes on.

    `saved`: the checkpoint that the run goes on from, if it lies within this stage.
    """
    inputs = story.inputs
    clock = Clock()
    if stage.name not in story.frozen:
        onto = _below(story, _later(story), bar)
        story.frozen[stage.name] = _frozen(story, stage, bar, ahead=onto is not None, onto=onto)
    frozen, looked = story.frozen.pop(stage.name), clock.cost()
    torch.manual_seed(inputs.settings.seed + 1000 * (story.stage + 1))
    if stage.hand_over != 1.0:
        _temper(inputs.net, stage.hand_over)
    fitting = _fitting(inputs, stage, frozen)
    start = {n: t.clone() for n, t in fitting.learned().items()}
    if saved:
        fitting.restore(_own(fitting, saved), saved.state["fitting"])
        if ranks.count() == 1:  # several draw anew at each step
            checkpoint.set_random_state(saved.tensors, saved.state["random"])
    progress = fitting.progress
    progress.seconds += looked.seconds
    progress.cpu_seconds += looked.cpu_seconds
    before = story.outcomes[-1].validation if story.outcomes else None

    def evaluate() -> list[float] | None:
        scores = _validate(inputs, frozen)
        if not scores:
            return None
        _record(story.records, stage.name, progress.step, scores, progress.seconds)
        return _rank(inputs, scores)

    bar.start(f"stage {stage.name}: training", len(inputs.rows["train"]) * stage.epochs)
    bar.advance(progress.epoch * len(inputs.rows["train"]) + progress.rows, "")
    with recomputed(inputs.model) if inputs.settings.gradient_checkpointing else nullcontext():
        fitting.run(evaluate, story.records, lambda: story.save(fitting), bar.advance)
    details = _details(fitting, compiled=inputs.settings.compile)
    if not before or not progress.best or progress.best >= _rank(inputs, before):
        story.kept = f"{stage.name}, epoch {progress.best_epoch}"
        fitting.join()
        story.carried |= {n: t.clone() for n, t in fitting.learned().items()}
    else:
        fitting.put(start)
        fitting.join()
        story.put()  # the head as it was solved, before the hand-over
        details["worse_than_before"] = True
    scores = _validate(inputs, frozen)
    story.outcomes.append(Outcome(stage.name, Cost(progress.seconds, progress.cpu_seconds), scores, details))


def _fitting(inputs: Inputs, stage: Stage, frozen: Frozen) -> Fitting:
    """The loop of a stage, on the rows that stand for what is frozen."""
    weights = None
    if inputs.settings.class_weights == "balanced":
        targets, classes = np.asarray(inputs.data.train.targets), len(inputs.names)
        counts = np.maximum(np.bincount(targets, minlength=classes), 1)
        weights = torch.tensor(len(targets) / (classes * counts), dtype=torch.float32)
    if frozen.facts.get("views"):  # what trains sees pictures that were changed already
        stage = replace(stage, augment="none")
    return Fitting(
        inputs.net,
        stage,
        inputs.task,
        frozen.rows["train"],
        inputs.aims["train"],
        seed=inputs.settings.seed,
        precision=inputs.precision,
        weights=weights,
        forward=frozen.forward,
        compiled=inputs.settings.compile,
        sharded=inputs.settings.shard and ranks.count() > 1,
        replay=replay.wanted() and not inputs.settings.gradient_checkpointing,
    )


def _details(fitting: Fitting, *, compiled: bool) -> dict[str, Any]:
    """What is worth telling of a stage that has trained."""
    progress = fitting.progress
    details: dict[str, Any] = {
        "epochs": progress.epoch,
        "steps": progress.step,
        "trained_parameters": sum(p.numel() for n, p in fitting.net.model.named_parameters() if n in fitting.trained),
    }
    if counts := fitting.named.counts():
        details["named_rows"] = counts
    if fitting.first:
        details["first_token_layers"] = len(fitting.first.layers)
    if fitting.stage.tolerance:  # a head that was trained, where others are solved
        details["converged"] = progress.done
    if progress.least_pieces > 1:
        details["pieces"] = progress.least_pieces
    if (recorded := fitting.replay) and not recorded.why:
        details["recorded"] = {"shapes": recorded.shapes, "steps": recorded.launched}
    elif recorded:
        details["not_recorded"] = recorded.why
    if compiled:
        details["compiling_seconds"] = fitting.compiling_seconds()
    return details


def _ahead(story: Story, stage: Stage, bar: Bar, *, whole: bool) -> Frozen:
    """The rows that a solve passes to the head: from the cut of the stage that trains next, which is captured on the way.

    So the frozen part runs once in the whole run, and not once for the features and once more for the cut. Where there is no such
    cut and the pass is long, what reaches the head is kept, and other runs find it; not of rows that are not solved on all (not
    `whole`), nor by several ranks, which might not all see it and would then compute it once more.
    """
    inputs = story.inputs
    plain = Frozen(dict(inputs.rows), inputs.model, {})
    if inputs.plan.lora:  # its layers are not there yet
        return plain
    found = _below(story, _later(story), bar)
    if found is not None:
        return plain if found.facts["views"] else found  # the head is solved on the pictures as they are
    if not whole or ranks.count() > 1 or not inputs.net.blocks or not _long(inputs):
        return plain
    logits = replace(stage, rates=((f"{inputs.net.head_name}.*", 1.0), ("*", None)))
    frozen = _frozen(story, logits, bar, ahead=True)
    if not frozen.facts["why"]:
        frozen.rows = {name: Alike(rows) for name, rows in frozen.rows.items()}
    return frozen


def _long(inputs: Inputs) -> bool:
    """Whether a pass over the training rows takes so long that what it gives is worth keeping."""
    rows = inputs.rows["train"]
    middle = np.argsort(rows.lengths, kind="stable")[len(rows) // 2 :][:1]
    row = {name: value.to(device()) for name, value in rows.batch(middle).items()}
    return len(rows) * flop(inputs.model, row) >= KEPT


def _later(story: Story) -> list[Stage]:
    """The stages after this one in which layers learn."""
    return [stage for stage in story.inputs.plan.stages[story.stage + 1 :] if stage.how == "fit"]


def _below(story: Story, stages: Sequence[Stage], bar: Bar) -> Frozen | None:
    """What later stages do not teach, in one pass: each of them teaches more than the one before it, and is kept until it comes.

    The last is cut first, and the others go on from there. None where none of them is cut.
    """
    found: Frozen | None = None
    for stage in reversed(stages):
        if stage.name not in story.frozen:
            held = sum(one.facts["bytes"] for one in story.frozen.values())
            try:
                frozen = _frozen(story, stage, bar, ahead=True, onto=found, held=held)
            except Later:
                continue
            if frozen.facts["why"]:
                continue
            story.frozen[stage.name] = frozen
        found = story.frozen[stage.name]
    return found


def _frozen(story: Story, stage: Stage, bar: Bar, *, ahead: bool = False, onto: Frozen | None = None, held: int = 0) -> Frozen:
    """What the stage does not teach, computed once where that can be and pays; the rest as `computed_once` has it."""
    inputs, settings = story.inputs, story.inputs.settings
    found = computed_once(
        inputs.net,
        stage,
        {name: rows for name, rows in inputs.rows.items() if name in ("train", "validation")},
        precision=inputs.precision,
        budget=settings.cache_gb if settings.cache == "auto" else 0,
        views=settings.views,
        seed=settings.seed,
        before=story.cuts.get(stage.name),
        ahead=ahead,
        onto=onto,
        held=held,
        ceiling=inputs.task.ceiling(inputs.model),
        start=bar.start,
        advance=bar.advance,
        note=bar.note,
    )
    before = story.cuts.setdefault(stage.name, found.facts)
    if found.facts["why"] and not before["why"]:
        if ranks.first():
            print(
                f"affinage: stage {stage.name} goes on uncut ({found.facts['why']}): the same but for rounding", file=sys.stderr
            )
        story.cuts[stage.name] = found.facts
    return found


def _temper(net: Net, factor: float) -> None:
    """Scale the head's logits: no prediction changes, but rows that the head is sure of pull at the layers below it again."""
    linear = net.head_linear
    assert linear is not None, "prepare() refuses to solve such a head"
    with torch.no_grad():
        linear.weight.mul_(factor)
        if linear.bias is not None:
            linear.bias.mul_(factor)


def _rank(inputs: Inputs, scores: Mapping[str, Any]) -> list[float]:
    """What selects, higher is better."""
    return inputs.task.rank(scores)


def _own(fitting: Fitting, saved: Saved) -> dict[str, torch.Tensor]:
    """The state of the stage that a checkpoint holds: whole, or, where ranks hold parts, only this rank's, from the disk."""
    if not fitting.shards:
        return saved.under(STAGE)
    parts = checkpoint.read(
        saved.path, lambda name: name.startswith(STAGE), lambda name, like: fitting.laid(name.removeprefix(STAGE), like)
    )
    return {name.removeprefix(STAGE): tensor for name, tensor in parts.items()}


def _validate(inputs: Inputs, frozen: Frozen | None = None) -> dict[str, Any]:
    """The scores of the network as it is on the validation split, or nothing where there is none."""
    if inputs.data.validation is None:
        return {}
    forward, rows = (inputs.model, inputs.rows) if frozen is None else (frozen.forward, frozen.rows)
    task, aims = inputs.task, inputs.aims["validation"]
    answers = answered(task, forward, rows["validation"], inputs.processor, inputs.precision, aims)
    return ranks.shared(task.score(answers, inputs.data.validation.targets))


def _record(records: Records, stage: str, step: int, scores: Mapping[str, Any], seconds: float) -> None:
    for name, value in scores.items():
        if isinstance(value, float):
            records.add(Record(stage, step, "validation", name, value, round(seconds, 3)))
