"""The story of a run, top to bottom: read, check, load, plan, solve, fit, choose, test once, and leave a folder that explains itself."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from affinage import __version__, checkpoint, config, labels, plans, pooling, rates, tasks
from affinage import data as reading
from affinage.errors import AffinageError
from affinage.check import check, clean, summary, without_leaks
from affinage.check import write as write_findings
from affinage.features import auto_precision, device, passed
from affinage.fit import Fitting
from affinage.net import Net
from affinage.progress import Bar
from affinage.record import Record, Records
from affinage.report import card, page
from affinage.solve import Head, solve
from affinage.types import Columns, Cost, Data, Finding, Outcome, Plan, Rows, Split, Stage, Task

HELD_OUT = 100  # fewer validation rows than this choose by luck (arXiv 2105.11447): all labels are trained on instead


# ------------------------------------------------------------------------------------------------------------ inputs
@dataclass
class Inputs:
    """What was read, checked and encoded before anything learns."""

    settings: config.Settings
    task: Task
    data: Data  # with integer targets
    classes: tuple[str, ...]
    findings: list[Finding]
    fingerprint: str
    model: Any
    processor: Any
    pooling: str
    net: Net
    plan: Plan
    precision: str
    rows: dict[str, Rows] = field(default_factory=dict)


def _columns(values: Mapping[str, Any]) -> Columns:
    return Columns(text=values.get("text_column"), image=values.get("image_column"), label=values.get("label_column"))


def check_data(data: Any, *, task: str | None = None, **columns: Any) -> list[Finding]:
    """What is wrong with this data, before anything trains.

    Raises:
        AffinageError: the data cannot be read at all, or the task reads another kind of data.
    """
    test = columns.pop("test", None)
    validation = columns.pop("validation", None)
    kind = tasks.kind(task)
    found = reading.read(data, columns=_columns(columns), test=test, validation=validation, kind=kind)
    return check(found)


def _read(settings: config.Settings) -> tuple[Data, list[Finding], Task]:
    """The data, checked; refuses what would make the result a lie."""
    path = settings.validation if isinstance(settings.validation, (str, Path)) else None
    data = reading.read(settings.data, columns=_columns(settings.model_dump()), validation=path, test=settings.test, kind=tasks.kind(settings.task))
    task = tasks.find(settings.task, data.kind)
    findings = check(data)
    errors = [f for f in findings if f.severity == "error"]
    if errors:
        raise AffinageError(errors[0].message)
    leaks = [f for f in findings if f.severity == "leak"]
    if leaks and settings.leaks == "refuse":
        raise AffinageError(f"{leaks[0].message}; leave them out of training with --leaks drop, or accept them with --leaks allow")
    data = clean(data, findings)
    if leaks and settings.leaks == "drop":
        data = without_leaks(data, findings)
    return data, findings, task


def _splits(data: Data, settings: config.Settings) -> Data:
    """Few labels where asked, and a validation split where none came and enough rows are there."""
    train = data.train
    if settings.labels_per_class:
        train = labels.few(train, settings.labels_per_class, settings.seed)
    validation = data.validation
    share = settings.validation if isinstance(settings.validation, float) else None
    if settings.labels_per_class and share is None and not isinstance(settings.validation, (str, Path)):
        validation = None  # a large validation split beside few labels would be labels that nobody counted
    if validation is None:
        if share is None and round(0.2 * len(train)) >= HELD_OUT:
            share = 0.2
        if share:
            train, validation = labels.holdout(train, share, settings.seed)
    return data.with_splits(train=train, validation=validation)


def _fingerprint(data: Data) -> str:
    """SHA-256 over every row's id, target and content."""
    import hashlib

    total = hashlib.sha256()
    for name, split in data.splits():
        for row, target, thing in zip(split.ids, split.targets, split.inputs, strict=True):
            if isinstance(thing, Path):
                content = thing.read_bytes()
            elif isinstance(thing, str):
                content = thing.encode()
            else:
                content = thing if isinstance(thing, bytes) else np.asarray(thing).tobytes()
            total.update(f"{name}\0{row}\0{target}\0{len(content)}\0".encode())
            total.update(content)
    return total.hexdigest()


def _model(settings: config.Settings, task: Task, classes: Sequence[str]) -> tuple[Any, Any]:
    """(model, processor), from a name, or a loaded model given as (model, processor)."""
    fresh = settings.plan == "scratch"
    if isinstance(settings.model, tuple):
        model, processor = settings.model
        folder = Path(getattr(model.config, "name_or_path", "") or ".")
        if fresh:
            raise AffinageError("--plan scratch takes a model's name or folder, not a loaded model: its weights would be thrown away")
        return _fitted(model, classes, folder), processor
    if isinstance(settings.model, torch.nn.Module):
        raise AffinageError("a loaded model comes with its processor: give model=(model, processor)")
    return task.load(settings.model, classes, fresh=fresh, revision=settings.revision)


def _fitted(model: Any, classes: Sequence[str], folder: Path) -> Any:
    """The loaded model, with the names of these classes; its head must have as many outputs.

    Raises:
        AffinageError: another number of outputs.
    """
    if model.config.num_labels != len(classes):
        raise AffinageError(
            f"the loaded model has {model.config.num_labels} outputs and the data {len(classes)} classes: "
            f"load it with num_labels={len(classes)} and ignore_mismatched_sizes=True"
        )
    model.config.id2label = dict(enumerate(classes))
    model.config.label2id = {name: i for i, name in enumerate(classes)}
    return model


def _prepare(settings: config.Settings) -> Inputs:
    """Everything that can be refused is refused here, before a folder is made."""
    data, findings, task = _read(settings)
    data = _splits(data, settings)
    data, classes = labels.encode(data)
    torch.manual_seed(settings.seed)
    np.random.seed(settings.seed % 2**32)
    model, processor = _model(settings, task, classes)
    chosen = _pool(model, settings)
    model.to(device())
    if task.kind == "image":
        model.to(memory_format=torch.channels_last)
    first = task.encode([data.train.inputs[0]], processor, model, max_length=settings.max_length)
    sample = {k: v.to(device()) for k, v in first.batch(np.arange(1)).items()}
    net = Net.of(model, sample)
    wishes = plans.Wishes(**{name: getattr(settings, name) for name in plans.Wishes.__dataclass_fields__})
    plan = plans.make(settings.plan, net, task.kind, len(data.train), wishes, patience=data.validation is not None)
    precision = settings.precision if settings.precision != "auto" else auto_precision()
    return Inputs(settings, task, data, classes, findings, _fingerprint(data), model, processor, chosen, net, plan, precision)


def _pool(model: Any, settings: config.Settings) -> str:
    """Choose and install the pooling: what the checkpoint declares; the mean for an encoder that came without a trained head."""
    wish: str = settings.pooling
    if not pooling.can_mean(model):
        if wish in ("mean", "first"):
            raise AffinageError(
                f"--pooling {wish} cannot be saved as a plain {type(model).__name__}: use --pooling native, or a BERT- or RoBERTa-shaped model"
            )
        return "native"
    if wish == "auto":
        heads = getattr(model.config, "architectures", None) or []
        wish = pooling.declared(settings.model) or ("native" if any("Classification" in h for h in heads) else "mean")
    if wish != "native":
        pooling.install(model, wish)
    return wish


def plan_of(**settings: Any) -> dict[str, Any]:
    """The plan as it would run, with every default filled in; nothing is trained and nothing written."""
    inputs = _prepare(config.make(settings))
    return {"settings": _told(inputs.settings), **_plan_json(inputs)}


def _plan_json(inputs: Inputs) -> dict[str, Any]:
    """task, plan, model and data as they stand in run.json."""
    table: dict[str, float | None] = {}
    for stage in inputs.plan.stages:
        if not (inputs.plan.lora and stage.how == "fit"):
            table = rates.resolve(inputs.net, stage.rates)
    anatomy = []
    groups = inputs.net.addresses()
    for row in inputs.net.anatomy():
        own = {table.get(name) for name in groups[row["address"]]} - {None}
        anatomy.append({**row, "trained": bool(own), "rate": max(r for r in own if r is not None) if own else None})
    data = inputs.data
    return {
        "task": inputs.task.name,
        "plan": asdict(inputs.plan),
        "model": {
            "source": _source(inputs.settings.model),
            "revision": getattr(inputs.model.config, "_commit_hash", None) or inputs.settings.revision,
            "architecture": type(inputs.model).__name__,
            "parameters": sum(p.numel() for p in inputs.model.parameters()),
            "pooling": inputs.pooling,
            "anatomy": anatomy,
        },
        "data": {
            "source": data.source,
            "kind": data.kind,
            "fingerprint": inputs.fingerprint,
            "rows": {name: len(split) for name, split in data.splits()},
            "classes": list(inputs.classes),
            "findings": summary(inputs.findings),
        },
    }


def _source(thing: Any) -> str:
    return str(thing) if isinstance(thing, (str, Path)) else type(thing[0] if isinstance(thing, tuple) else thing).__name__


def _told(settings: config.Settings) -> dict[str, Any]:
    """The settings as JSON; what was given in memory is named by its type."""
    plain = {k: v for k, v in settings.model_dump().items() if k not in ("resume", "overwrite", "quiet")}
    return {k: v if isinstance(v, (int, float, str, type(None), bool)) else str(v) if isinstance(v, Path) else _source(v) for k, v in plain.items()}


# --------------------------------------------------------------------------------------------------------------- fit
def fit(model: Any = None, data: Any = None, **settings: Any) -> Run:
    """Fine-tune `model` on `data` by a plan and leave a run folder; `config.Settings` lists what can be said.

    Raises:
        AffinageError: bad input, a leak between splits, a loss that is not finite, no space: one line each, nothing half-written.
    """
    given = {**settings, **{k: v for k, v in (("model", model), ("data", data)) if v is not None}}
    wishes = config.make(given)
    out = Path(wishes.folder())
    if wishes.resume and (out / "run.json").exists():
        wishes = _remembered(out, wishes)
    if wishes.model is None or wishes.data is None:
        raise AffinageError("fit needs a model and data: for example affinage fit --model M --data D")
    state = json.loads((out / "run.json").read_text(encoding="utf8")) if (out / "run.json").exists() else None
    if state and state["status"] == "finished":
        if wishes.resume:
            return load(out)
        if not wishes.overwrite:
            raise AffinageError(f"{out} already holds a finished run: choose another --out, or replace it with --overwrite")
    if state and state["status"] != "finished" and not (wishes.resume or wishes.overwrite):
        raise AffinageError(f"{out} holds a run that was stopped: go on with --resume, or start again with --overwrite")
    if state is None and out.exists() and any(out.iterdir()):  # never ours to delete, whatever --overwrite says
        raise AffinageError(f"{out} is not empty and holds no run: choose another --out")
    inputs = _prepare(wishes)
    if wishes.resume and state and state["data"]["fingerprint"] != inputs.fingerprint:
        raise AffinageError("the data is not what this run began with (its fingerprint differs): restore it, or start again with --overwrite")
    return _execute(inputs, out, state if wishes.resume else None)


def _remembered(out: Path, wishes: config.Settings) -> config.Settings:
    """The settings that the stopped run began with; only what lives in memory is taken from the call."""
    told = json.loads((out / "run.json").read_text(encoding="utf8"))["settings"]
    given = wishes.model_dump()
    for name in ("model", "data"):
        if not isinstance(given[name], (str, Path, type(None))):
            told[name] = given[name]
    return config.make({**told, "out": out, "resume": True, "quiet": wishes.quiet})


class Story:
    """The state that a run carries from stage to stage, and that its checkpoints hold."""

    def __init__(self, inputs: Inputs, out: Path, header: dict[str, Any]) -> None:
        self.inputs, self.out, self.header = inputs, out, header
        self.outcomes: list[Outcome] = []
        self.carried: dict[str, torch.Tensor] = {}  # what the stages so far changed, by parameter name
        self.kept = "base"
        self.order = 0  # of the last checkpoint
        self.stage = 0  # that comes next
        self.records: Records
        self.base_features: np.ndarray | None = None

    def save(self, fitting: Fitting | None = None) -> None:
        tensors, state = fitting.state() if fitting else ({}, {})
        self.records.flush()
        self.order += 1
        whole = {f"carried.{n}": t for n, t in self.carried.items()} | {f"stage.{n}": t for n, t in tensors.items()}
        checkpoint.save(
            self.out / "checkpoints",
            self.order,
            whole,
            {
                "stage": self.stage,
                "outcomes": [asdict(o) for o in self.outcomes],
                "kept": self.kept,
                "records": self.records.count,
                "fitting": state if fitting else None,
                "fingerprint": self.inputs.fingerprint,
            },
        )

    def put(self) -> None:
        """The carried weights into the network."""
        own = {**dict(self.inputs.model.named_parameters()), **dict(self.inputs.model.named_buffers())}
        with torch.no_grad():
            for name, value in self.carried.items():
                own[name].copy_(value)


def _execute(inputs: Inputs, out: Path, state: dict[str, Any] | None) -> Run:
    """The stages of the plan in order, then the ending."""
    settings = inputs.settings
    resumed = checkpoint.load(out / "checkpoints") if state else None
    if state is None and out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    header = {"affinage": __version__, "status": "running", "created": _now(), **_plan_json(inputs), "seed": settings.seed, "settings": _told(settings)}
    header |= {"versions": _versions(), "commit": _commit(), "hardware": _hardware(inputs.precision)}
    _write(out / "run.json", header)
    write_findings(inputs.findings, out / "findings.csv")
    story = Story(inputs, out, header)
    tensors: dict[str, torch.Tensor] = {}
    saved: dict[str, Any] = {}
    if resumed:
        tensors, saved, warnings = resumed
        for warning in warnings:
            print(f"affinage: {warning}", file=sys.stderr)
        story.carried = {k.removeprefix("carried."): v.to(device()) for k, v in tensors.items() if k.startswith("carried.")}
        story.outcomes = [Outcome(o["stage"], Cost(**o["cost"]), o["validation"], o["details"]) for o in saved["outcomes"]]
        story.stage, story.kept, story.order = saved["stage"], saved["kept"], saved["order"]
    story.records = Records(out / "records.jsonl", keep=saved.get("records") if resumed else None)
    bar = Bar(quiet=settings.quiet)
    with bar:
        cost = _encode(inputs, bar)
        lora = False
        if not inputs.plan.fresh:
            sample = _sample(inputs.rows["train"])
            story.base_features, _ = passed(inputs.model, sample, inputs.precision, inputs.net.head_linear)
        for index, stage in enumerate(inputs.plan.stages):
            if stage.how == "fit" and inputs.plan.lora and not lora:
                _adapt(inputs)
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
            _merge(inputs.model)
        return _finish(story, cost, bar)


def _sample(rows: Rows, most: int = 512) -> Rows:
    """Up to 512 training rows, evenly taken, on which drift is measured."""
    return _Some(rows, np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64))


class _Some:
    """Some of the rows, in the given order."""

    def __init__(self, rows: Rows, chosen: np.ndarray) -> None:
        self.rows, self.chosen = rows, chosen
        self.lengths = rows.lengths[chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def batch(self, rows: np.ndarray) -> Any:
        return self.rows.batch(self.chosen[rows])


def _encode(inputs: Inputs, bar: Bar) -> Cost:
    """Every split encoded once."""
    clock = _Clock()
    for name, split in inputs.data.splits():
        bar.say(f"encoding {name}")
        inputs.rows[name] = inputs.task.encode(split.inputs, inputs.processor, inputs.model, max_length=inputs.settings.max_length)
    return clock.cost()


def _solve(story: Story, stage: Stage, bar: Bar) -> None:
    """Stage 1: features once, the head solved to its optimum."""
    inputs = story.inputs
    clock = _Clock()
    linear = inputs.net.head_linear
    if linear is None:
        raise AffinageError(f"{type(inputs.model).__name__} has no linear layer that gives the logits: use --plan full")
    rows = inputs.rows["train"]
    bar.start(f"stage {stage.name}: features", len(rows))
    features, _ = passed(inputs.model, rows, inputs.precision, linear, progress=lambda n: bar.advance(n, ""))
    assert features is not None
    bar.say("solving the head")
    targets = np.asarray(inputs.data.train.targets)
    head: Head = solve(features, targets, len(inputs.classes), balanced=inputs.settings.class_weights == "balanced", seed=inputs.settings.seed)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(head.weight))
        if linear.bias is not None:
            linear.bias.copy_(torch.from_numpy(head.bias))
    name = inputs.net.head_name
    story.carried[f"{name}.weight"] = linear.weight.detach().clone()
    if linear.bias is not None:
        story.carried[f"{name}.bias"] = linear.bias.detach().clone()
    validation = _validate(inputs)
    details = {
        "method": head.method,
        "penalty": head.penalty,
        "gradient_norm": head.gradient_norm,
        "iterations": head.iterations,
        "cross_validated": inputs.task.score(head.held_out, targets),
        "trained_parameters": int(linear.weight.numel() + linear.bias.numel()),
    }
    story.outcomes.append(Outcome(stage.name, clock.cost(), validation, details))
    story.kept = stage.name
    _record(story.records, stage.name, 0, validation, clock.cost().seconds)


def _fit(story: Story, stage: Stage, bar: Bar, tensors: dict[str, torch.Tensor] | None, going: dict[str, Any] | None, whole: dict[str, torch.Tensor]) -> None:
    """Stage 2: from the weights carried so far, at low rates; the best of where it began and its epochs goes on."""
    inputs = story.inputs
    targets = np.asarray(inputs.data.train.targets)
    weights = None
    if inputs.settings.class_weights == "balanced":
        counts = np.maximum(np.bincount(targets, minlength=len(inputs.classes)), 1)
        weights = torch.tensor(len(targets) / (len(inputs.classes) * counts), dtype=torch.float32)
    torch.manual_seed(inputs.settings.seed + 1000 * (story.stage + 1))
    fitting = Fitting(inputs.net, stage, inputs.task, inputs.rows["train"], targets, seed=inputs.settings.seed, precision=inputs.precision, weights=weights)
    start = {n: t.clone() for n, t in fitting.learned().items()}
    if going and tensors is not None:
        fitting.restore(tensors, going)
        checkpoint.set_random_state(whole, _random(story.out))
    before = story.outcomes[-1].validation if story.outcomes else None
    last: dict[str, Any] = {}

    def evaluate() -> list[float] | None:
        scores = _validate(inputs)
        last.clear()
        last.update(scores)
        if not scores:
            return None
        _record(story.records, stage.name, fitting.progress.step, scores, fitting.progress.seconds)
        return [scores[inputs.task.metric], -scores["log_loss"]]

    bar.start(f"stage {stage.name}: training", len(inputs.rows["train"]) * stage.epochs)
    bar.advance(fitting.progress.epoch * len(inputs.rows["train"]) + fitting.progress.rows, "")
    fitting.run(evaluate, story.records, lambda: story.save(fitting), bar.advance)
    progress = fitting.progress
    details: dict[str, Any] = {"epochs": progress.epoch, "steps": progress.step, "trained_parameters": sum(p.numel() for p in fitting.trained.values())}
    better = before is None or not before or not progress.best or progress.best >= [before[inputs.task.metric], -before["log_loss"]]
    if better:
        story.kept = f"{stage.name}, epoch {progress.best_epoch}"
        story.carried |= {n: t.clone() for n, t in fitting.learned().items()}
    else:
        fitting.put(start)
        details["worse_than_before"] = True
    scores = _validate(inputs)
    story.outcomes.append(Outcome(stage.name, Cost(progress.seconds, progress.cpu_seconds), scores, details))


def _random(out: Path) -> dict[str, Any]:
    found = checkpoint.load(out / "checkpoints")
    assert found is not None
    return found[1]["random"]


def _validate(inputs: Inputs) -> dict[str, Any]:
    """The scores of the network as it is on the validation split, or nothing where there is none."""
    if inputs.data.validation is None:
        return {}
    _, logits = passed(inputs.model, inputs.rows["validation"], inputs.precision)
    return inputs.task.score(logits, np.asarray(inputs.data.validation.targets))


def _record(records: Records, stage: str, step: int, scores: Mapping[str, Any], seconds: float) -> None:
    for name, value in scores.items():
        if isinstance(value, float):
            records.add(Record(stage, step, "validation", name, value, round(seconds, 3)))


# -------------------------------------------------------------------------------------------------------------- lora
def _adapt(inputs: Inputs) -> None:
    """Low-rank updates beside every linear layer and convolution of the blocks (peft), and the network seen anew."""
    import peft

    blocks = set(inputs.net.blocks)
    inside = [
        name
        for name, module in inputs.model.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and getattr(module, "groups", 1) == 1 and any(name == b or name.startswith(b + ".") for b in blocks)
    ]
    torch.manual_seed(inputs.settings.seed)
    made = peft.LoraConfig(r=inputs.plan.lora, lora_alpha=2 * inputs.plan.lora, lora_dropout=0.0, target_modules=inside)
    peft.inject_adapter_in_model(made, inputs.model)
    inputs.model.to(device())
    first = {k: v.to(device()) for k, v in inputs.rows["train"].batch(np.arange(1)).items()}
    inputs.net = Net.of(inputs.model, first)


def _merge(model: torch.nn.Module) -> None:
    """The low-rank updates added into the layers beside which they stood."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()  # type: ignore[operator]
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.get_base_layer())


# ------------------------------------------------------------------------------------------------------------ ending
def _finish(story: Story, encoding: Cost, bar: Bar) -> Run:
    """Export, test once, and write the folder: weights last but one, the finished mark last."""
    inputs, out = story.inputs, story.out
    clock = _Clock()
    bar.say("measuring drift")
    drift = None
    if story.base_features is not None:
        now, _ = passed(inputs.model, _sample(inputs.rows["train"]), inputs.precision, inputs.net.head_linear)
        assert now is not None
        drift = float(np.linalg.norm(now - story.base_features) / np.linalg.norm(story.base_features))
    native = pooling.exported(inputs.model.cpu())
    part = out / ".writing"
    shutil.rmtree(part, ignore_errors=True)
    try:
        native.save_pretrained(part)
        inputs.processor.save_pretrained(part)
    except OSError as error:
        raise AffinageError(f"cannot write the model in {out} ({error}): free some space, then go on with --resume") from error
    native.to(device())
    clock_test = _Clock()
    scores: dict[str, dict[str, Any]] = {"validation": {}, "test": {}}
    frames = []
    for name in ("validation", "test"):
        split: Split | None = getattr(inputs.data, name)
        if split is None:
            continue
        bar.start(f"measuring on {name}", len(split))
        _, logits = passed(native, inputs.rows[name], "fp32", progress=lambda n: bar.advance(n, ""))
        scores[name] = inputs.task.score(logits, np.asarray(split.targets))
        frames.append(_predictions(name, split, logits, inputs))
    if frames:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.concat_tables(frames), part / "predictions.parquet")
    for path in part.iterdir():
        os.replace(path, out / path.name)
    part.rmdir()
    total = encoding + clock.cost()
    for outcome in story.outcomes:
        total = total + outcome.cost
    header = story.header | {
        "status": "finished",
        "finished": _now(),
        "stages": [asdict(o) for o in story.outcomes],
        "kept": story.kept,
        "cost": asdict(total),
        "cost_parts": {"encoding": asdict(encoding), "measuring": asdict(clock_test.cost())},
        "drift": drift,
        **scores,
    }
    _write(out / "run.json", header)
    page.write(out)
    card.write(out)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return load(out)


def _predictions(name: str, split: Split, logits: np.ndarray, inputs: Inputs) -> Any:
    """The rows of one split in predictions.parquet."""
    import pyarrow as pa

    shifted = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = shifted / shifted.sum(1, keepdims=True)
    predicted = probabilities.argmax(1)
    confidence = probabilities[np.arange(len(predicted)), predicted]
    targets = np.asarray(split.targets)
    wrong = np.flatnonzero(predicted != targets)
    shown = set(wrong[np.argsort(-confidence[wrong])][:24].tolist()) if inputs.task.kind == "image" else set()
    return pa.table(
        {
            "split": [name] * len(split),
            "id": list(split.ids),
            "text": pa.array([str(x) if inputs.task.kind == "text" else None for x in split.inputs], pa.string()),
            "thumbnail": pa.array([_thumbnail(split.inputs[i]) if i in shown else None for i in range(len(split))], pa.binary()),
            "label": [inputs.classes[t] if t >= 0 else None for t in targets],
            "prediction": [inputs.classes[p] for p in predicted],
            "confidence": confidence.astype(np.float64),
            "probabilities": list(probabilities.astype(np.float32)),
        }
    )


def _thumbnail(picture: Any) -> bytes:
    import io

    from affinage.tasks.image_classification import opened

    image = opened(picture)
    image.thumbnail((128, 128))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _write(path: Path, content: dict[str, Any]) -> None:
    """JSON, all of it or nothing."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=1, default=float), encoding="utf8")
    os.replace(part, path)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("torch", "transformers", "safetensors", "peft", "numpy", "scipy", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _commit() -> str | None:
    """The commit of affinage itself where it runs from a checkout, with '+' for local changes."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "-C", here, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(["git", "-C", here, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if dirty else "")


def _hardware(precision: str) -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0] if models else name
    found = {"cpu": name, "threads": torch.get_num_threads(), "precision": precision}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


class _Clock:
    """Wall and CPU seconds since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def cost(self) -> Cost:
        return Cost(time.perf_counter() - self.wall, time.process_time() - self.cpu)


# --------------------------------------------------------------------------------------------------------------- run
class Run:
    """A finished run: its folder, its metrics, and its model, loaded at first use."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self.record = record  # run.json
        self._loaded: tuple[Any, Any] | None = None

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.record['plan']['name']}, {self.metrics})"

    @property
    def metrics(self) -> dict[str, Any]:
        """The test scores, or those of validation where there is no test split."""
        return self.record.get("test") or self.record.get("validation") or {}

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the logits."""
        return self.record["data"]["classes"]

    @property
    def task(self) -> Task:
        return tasks.find(self.record["task"], self.record["data"]["kind"])

    def _model(self) -> tuple[Any, Any]:
        if self._loaded is None:
            model, processor = self.task.load(self.path, self.classes, fresh=False, revision=None)
            self._loaded = model.to(device()).eval(), processor
        return self._loaded

    def _logits(self, inputs: Sequence[Any]) -> np.ndarray:
        model, processor = self._model()
        rows = self.task.encode(inputs, processor, model, max_length=self.record["settings"].get("max_length"))
        return passed(model, rows, "fp32")[1]

    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """For each text or picture: `label`, its `score`, and the `scores` of all classes."""
        if not len(inputs):
            return []
        logits = self._logits(inputs)
        shifted = np.exp(logits - logits.max(1, keepdims=True))
        table = shifted / shifted.sum(1, keepdims=True)
        return [
            {"label": self.classes[row.argmax()], "score": float(row.max()), "scores": dict(zip(self.classes, map(float, row), strict=True))}
            for row in table
        ]

    def evaluate(self, data: Any, split: str | None = None, **columns: Any) -> dict[str, Any]:
        """The scores on labelled rows: the test split of `data` if it has one, else its only one.

        Raises:
            AffinageError: no such split, another kind of data, or no label that the run knows.
        """
        found = reading.read(data, columns=_columns(columns))
        if found.kind != self.task.kind:
            raise AffinageError(f"this run does {self.task.name}, but {data} is {found.kind} data")
        splits = dict(found.splits())
        name = split or ("test" if "test" in splits else "validation" if "validation" in splits else "train")
        if name not in splits:
            raise AffinageError(f"no split '{name}' in {data}: it has {', '.join(splits)}")
        chosen = splits[name]
        number = {label: i for i, label in enumerate(self.classes)}
        targets = np.asarray([number.get(str(t), -1) for t in chosen.targets])
        if (targets < 0).all():
            raise AffinageError(f"no label of {data} is one that this run knows ({', '.join(self.classes[:5])}...): check --label-column")
        return {"split": name, **self.task.score(self._logits(chosen.inputs), targets)}


def load(path: str | Path) -> Run:
    """A finished run from its folder.

    Raises:
        AffinageError: no folder, no run in it, or one that was stopped.
    """
    folder = Path(path)
    file = folder / "run.json"
    if not file.exists():
        raise AffinageError(f"no run at {folder}: expected a folder with run.json, as `affinage fit --out` leaves it")
    record = json.loads(file.read_text(encoding="utf8"))
    if record["status"] != "finished":
        raise AffinageError(f"the run at {folder} was stopped before its end: go on with affinage fit --resume --out {folder}")
    return Run(folder, record)
