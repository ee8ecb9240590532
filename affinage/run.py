"""The story of a run, top to bottom: prepare, then each stage (solve or fit), choose, and leave a folder that explains itself."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from affinage import __version__, checkpoint, config, labels, ranks, spool
from affinage.check import write as write_findings
from affinage.ending import explain, finish
from affinage.errors import AffinageError, Diverged
from affinage.facts import Clock, commit, hardware, now, versions, write_json
from affinage.features import device, passed
from affinage.fit import Fitting
from affinage.frozen import Frozen, computed_once
from affinage.inputs import Inputs, check_data, plan_json, plan_of, prepare, told
from affinage.lora import adapt, merge
from affinage.net import Net
from affinage.progress import Bar
from affinage.recompute import recomputed
from affinage.record import Record, Records
from affinage.solve import Head, solve
from affinage.story import Some, Story, sample_of
from affinage.trained import Run, known, load, remove
from affinage.types import Cost, Finding, Outcome, Rows, Stage

__all__ = ["Run", "check_data", "fit", "load", "plan_of"]


def fit(model: Any = None, data: Any = None, **settings: Any) -> Run:
    """Fine-tune `model` on `data` by a plan and leave a run folder; `config.Settings` lists what can be said.

    Raises:
        AffinageError: bad input, a leak between splits, a loss that is not finite, no space: one line each, nothing half-written.
    """
    given = {**settings, **{k: v for k, v in (("model", model), ("data", data)) if v is not None}}
    wishes = config.make(given)
    out = Path(wishes.folder())
    with ranks.joined(out):
        return _begun(wishes, out)


def _begun(wishes: config.Settings, out: Path) -> Run:
    """The run in `out` begun, or gone on with; rank 0 alone looks into the folder, and all hear what is there."""
    if out.exists() and not out.is_dir():
        raise AffinageError(f"{out} is a file: --out takes a folder for the run")
    state = ranks.shared(known(out) if ranks.first() else None)
    if wishes.resume and state:
        wishes = _remembered(state, out, wishes)
    elif wishes.resume and (wishes.model is None or wishes.data is None):
        raise AffinageError(f"no run at {out} to go on with: expected a folder with run.json; start one with --model and --data")
    if wishes.model is None or wishes.data is None:
        raise AffinageError("fit needs a model and data: for example affinage fit --model M --data D")
    if state and state["status"] == "finished":
        if wishes.resume:
            if not ranks.first():
                return Run(out, state)
            if (out / "checkpoints").exists() or not (out / "report.html").exists():  # the mark was its last act, or it was lost
                explain(out)
            return load(out)
        if not wishes.overwrite:
            raise AffinageError(f"{out} already holds a finished run: choose another --out, or replace it with --overwrite")
    if state and state["status"] == "failed" and not (wishes.resume or wishes.overwrite):
        raise AffinageError(f"{out} holds a run that failed ({state['error']}): start again with --overwrite")
    if state and state["status"] != "finished" and not (wishes.resume or wishes.overwrite):
        raise AffinageError(f"{out} holds a run that was stopped: go on with --resume, or start again with --overwrite")
    if state is None and out.exists() and any(out.iterdir()):  # never ours to delete, whatever --overwrite says
        raise AffinageError(f"{out} is not empty and holds no run: choose another --out")
    inputs = prepare(wishes)
    seen = ranks.gathered(inputs.fingerprint)
    if len(set(seen)) > 1:
        odd = next(i for i, one in enumerate(seen) if one != seen[0])
        raise AffinageError(f"rank {odd} reads other data than rank 0: expected the same rows under --data on every machine")
    ranks.same([*inputs.model.parameters(), *inputs.model.buffers()])
    if wishes.resume and state and state["data"]["fingerprint"] != inputs.fingerprint:
        raise AffinageError(
            "the data is not what this run began with (its fingerprint differs): restore it, or start again with --overwrite"
        )
    try:
        return _execute(inputs, out, state if wishes.resume else None)
    except Diverged as error:
        _failed(out, error)
        raise


def _failed(out: Path, error: Diverged) -> None:
    """The folder says why it holds no result; where not even that can be written, the error on the screen has to do."""
    if not ranks.first():
        return
    with suppress(OSError):
        header = json.loads((out / "run.json").read_text(encoding="utf8"))
        write_json(out / "run.json", header | {"status": "failed", "error": str(error), "finished": now()})


def _remembered(state: dict[str, Any], out: Path, wishes: config.Settings) -> config.Settings:
    """The settings that the stopped run began with; only what lives in memory is taken from the call."""
    told = dict(state["settings"])
    given = wishes.model_dump()
    for name in ("model", "data"):
        if not isinstance(given[name], (str, Path, type(None))):
            told[name] = given[name]
    return config.make({**told, "out": out, "resume": True, "quiet": wishes.quiet})


def _execute(inputs: Inputs, out: Path, state: dict[str, Any] | None) -> Run:
    """The stages of the plan in order, then the ending."""
    settings = inputs.settings
    resumed = _last(out) if state else None
    if ranks.first() and state is None and out.exists():
        remove(out)
    header = {
        "affinage": __version__,
        "status": "running",
        "created": state["created"] if state else now(),
        **plan_json(inputs),
        "seed": settings.seed,
        "settings": told(settings),
    }
    header |= {"versions": versions(), "commit": commit(), "hardware": hardware(inputs.precision)}
    if ranks.count() > 1:
        header["hardware"]["ranks"] = ranks.count()
    if ranks.first():
        _begin(out, header, inputs.findings)
    story = Story(inputs, out, header)
    tensors: dict[str, torch.Tensor] = {}
    saved: dict[str, Any] = {}
    if resumed:
        tensors, saved, warnings = resumed
        for warning in warnings if ranks.first() else ():
            print(f"affinage: {warning}", file=sys.stderr)
        story.carried = {k.removeprefix("carried."): v.to(device()) for k, v in tensors.items() if k.startswith("carried.")}
        story.outcomes = [Outcome(o["stage"], Cost(**o["cost"]), o["validation"], o["details"]) for o in saved["outcomes"]]
        story.stage, story.kept, story.order = saved["stage"], saved["kept"], saved["order"]
        story.cuts = saved.get("cuts", {})
    keep = saved.get("records") if resumed else None
    story.records = Records(out / "records.jsonl" if ranks.first() else None, keep=keep)
    with Bar(quiet=settings.quiet or not ranks.first()) as bar, closing(story.records):
        cost = _encode(inputs, bar)
        lora = False
        if not inputs.plan.fresh:
            sample = sample_of(inputs.rows["train"])
            story.base_features, _ = passed(inputs.model, sample, inputs.precision, inputs.net.head_linear)
        for index, stage in enumerate(inputs.plan.stages):
            if stage.how == "fit" and inputs.plan.lora and not lora:
                adapt(inputs.model, inputs.net.blocks, inputs.plan.lora, settings.seed)
                inputs.model.to(device())
                inputs.net = Net.of(
                    inputs.model, {k: v.to(device()) for k, v in inputs.rows["train"].batch(np.arange(1)).items()}
                )
                lora = True
            if index < story.stage:
                continue
            story.put()
            story.stage = index
            if stage.how == "solve":
                _solve(story, stage, bar)
            else:
                going = saved.get("fitting") if resumed and index == saved["stage"] else None
                stage_tensors = {k.removeprefix("stage."): v for k, v in tensors.items() if k.startswith("stage.")}
                _fit(story, stage, bar, stage_tensors if going else None, going, tensors)
            story.stage = index + 1
            story.save()
        story.put()
        story.records.close()
        if lora:
            merge(inputs.model)
        return finish(story, cost, bar)


def _last(out: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[str]] | None:
    """The newest checkpoint that can be trusted, as `checkpoint.load` has it; rank 0 reads it, and all hear of it."""
    found = checkpoint.load(out / "checkpoints") if ranks.first() else None
    words: Any = ranks.shared(found[1:] if found else None)
    if words is None:
        return None
    return ranks.sent(found[0] if found else {}), words[0], words[1]


def _begin(out: Path, header: dict[str, Any], findings: Sequence[Finding]) -> None:
    """The folder with what is known before anything learns; one that was made in vain does not stay."""
    new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "run.json", header)
        write_findings(findings, out / "findings.csv")
    except OSError as error:
        if new:
            shutil.rmtree(out, ignore_errors=True)
        raise AffinageError(f"cannot write the run in {out} ({error.strerror}): mend that, or choose another --out") from error


def _encode(inputs: Inputs, bar: Bar) -> Cost:
    """Every split encoded once."""
    clock = Clock()
    for name, split in inputs.data.splits():
        bar.say(f"encoding {name}")
        inputs.rows[name] = inputs.task.encode(
            split.inputs, inputs.processor, inputs.model, max_length=inputs.settings.max_length
        )
    return clock.cost()


def _solve(story: Story, stage: Stage, bar: Bar) -> None:
    """Stage 1: features once, the head solved to its optimum."""
    inputs = story.inputs
    clock = Clock()
    linear = inputs.net.head_linear
    assert linear is not None, "prepare() refuses such a network"
    frozen = _ahead(story, bar)
    rows: Rows = frozen.rows["train"]
    chosen = labels.spread(inputs.data.train, ranks.shared(_held_features(linear)), inputs.settings.seed)
    whole = len(chosen) == len(inputs.data.train)
    if not whole:
        rows = Some(rows, chosen)
    bar.start(f"stage {stage.name}: features", len(rows))
    features, _ = passed(frozen.forward, rows, inputs.precision, linear, progress=lambda n: bar.advance(n, ""))
    assert features is not None
    bar.say("solving the head")
    targets = np.asarray(inputs.data.train.targets)[chosen]

    def solved() -> Head:
        return solve(
            features,
            targets,
            len(inputs.classes),
            balanced=inputs.settings.class_weights == "balanced",
            bias=linear.bias is not None,
            seed=inputs.settings.seed,
        )

    head = ranks.alone(solved)
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


def _fit(
    story: Story,
    stage: Stage,
    bar: Bar,
    tensors: dict[str, torch.Tensor] | None,
    going: dict[str, Any] | None,
    whole: dict[str, torch.Tensor],
) -> None:
    """Stage 2: from the weights carried so far, at low rates; the best of where it began and its epochs goes on."""
    inputs = story.inputs
    targets = np.asarray(inputs.data.train.targets)
    weights = None
    if inputs.settings.class_weights == "balanced":
        counts = np.maximum(np.bincount(targets, minlength=len(inputs.classes)), 1)
        weights = torch.tensor(len(targets) / (len(inputs.classes) * counts), dtype=torch.float32)
    ahead = story.frozen.pop(stage.name, None)
    frozen = ahead or _frozen(story, stage, bar)
    if frozen.facts.get("views"):  # what trains sees pictures that were changed already
        stage = replace(stage, augment="none")
    torch.manual_seed(inputs.settings.seed + 1000 * (story.stage + 1))
    if stage.hand_over != 1.0:
        _temper(inputs.net, stage.hand_over)
    recomputing = recomputed(inputs.model) if inputs.settings.gradient_checkpointing else nullcontext()
    fitting = Fitting(
        inputs.net,
        stage,
        inputs.task,
        frozen.rows["train"],
        targets,
        seed=inputs.settings.seed,
        precision=inputs.precision,
        weights=weights,
        forward=frozen.forward,
        compiled=inputs.settings.compile,
        sharded=inputs.settings.shard and ranks.count() > 1,
    )
    start = {n: t.clone() for n, t in fitting.learned().items()}
    if going and tensors is not None:
        fitting.restore(tensors, going)
        if ranks.count() == 1:  # several draw anew at each step
            checkpoint.set_random_state(whole, _random(story.out))
    if not ahead:  # else the stage that computed it has counted it
        fitting.progress.seconds += frozen.facts.get("seconds", 0.0)
        fitting.progress.cpu_seconds += frozen.facts.get("cpu_seconds", 0.0)
    before = story.outcomes[-1].validation if story.outcomes else None
    last: dict[str, Any] = {}

    def evaluate() -> list[float] | None:
        scores = _validate(inputs, frozen)
        last.clear()
        last.update(scores)
        if not scores:
            return None
        _record(story.records, stage.name, fitting.progress.step, scores, fitting.progress.seconds)
        return _rank(inputs, scores)

    bar.start(f"stage {stage.name}: training", len(inputs.rows["train"]) * stage.epochs)
    bar.advance(fitting.progress.epoch * len(inputs.rows["train"]) + fitting.progress.rows, "")
    with recomputing:
        fitting.run(evaluate, story.records, lambda: story.save(fitting), bar.advance)
    progress = fitting.progress
    details: dict[str, Any] = {
        "epochs": progress.epoch,
        "steps": progress.step,
        "trained_parameters": sum(p.numel() for p in fitting.trained.values()),
    }
    if progress.least_pieces > 1:
        details["pieces"] = progress.least_pieces
    if inputs.settings.compile:
        details["compiling_seconds"] = fitting.compiling_seconds()
    better = before is None or not before or not progress.best or progress.best >= _rank(inputs, before)
    if better:
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


def _ahead(story: Story, bar: Bar) -> Frozen:
    """The rows that a solve passes to the head: from the cut of the stage that trains next, which is captured on the way.

    So the frozen part runs once in the whole run, and not once for the features and once more for the cut.
    """
    inputs = story.inputs
    following = next((stage for stage in inputs.plan.stages[story.stage + 1 :] if stage.how == "fit"), None)
    if following is None or inputs.plan.lora:  # lora's layers are not there yet
        return Frozen(dict(inputs.rows), inputs.model, {})
    frozen = _frozen(story, following, bar)
    if not frozen.facts["why"]:
        story.frozen[following.name] = frozen
    if frozen.facts.get("views"):  # the head is solved on the pictures as they are
        return Frozen(dict(inputs.rows), inputs.model, {})
    return frozen


def _frozen(story: Story, stage: Stage, bar: Bar) -> Frozen:
    """What the stage does not teach, computed once where that can be and pays."""
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
        start=bar.start,
        advance=bar.advance,
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
    """What selects, higher is better: the task's metric, then the log loss (none where no label is known to train)."""
    return [scores[inputs.task.metric], -scores.get("log_loss", 0.0)]


def _random(out: Path) -> dict[str, Any]:
    found = checkpoint.load(out / "checkpoints")
    assert found is not None
    return found[1]["random"]


def _validate(inputs: Inputs, frozen: Frozen | None = None) -> dict[str, Any]:
    """The scores of the network as it is on the validation split, or nothing where there is none."""
    if inputs.data.validation is None:
        return {}
    if frozen is None:
        _, logits = passed(inputs.model, inputs.rows["validation"], inputs.precision)
    else:
        _, logits = passed(frozen.forward, frozen.rows["validation"], inputs.precision)
    return ranks.shared(inputs.task.score(logits, np.asarray(inputs.data.validation.targets)))


def _record(records: Records, stage: str, step: int, scores: Mapping[str, Any], seconds: float) -> None:
    for name, value in scores.items():
        if isinstance(value, float):
            records.add(Record(stage, step, "validation", name, value, round(seconds, 3)))
