"""What a run begins with: the data read, checked and split, the model loaded, the plan filled in; all refusals happen here."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from affinage import config, contents, headed, hub, labels, lora, plans, pooling, pretrained, rates, starters, tasks
from affinage import data as reading
from affinage.check import check, clean, leaders, summary, without_leaks
from affinage.errors import AffinageError, choose
from affinage.features import auto_precision, device
from affinage.net import Net
from affinage.types import Aims, Batch, Columns, Data, Finding, Labels, Plan, Rows, Task

HELD_OUT = 100  # fewer validation rows than this choose by luck (arXiv 2105.11447): all labels are trained on instead
HELD_MOST = 50_000  # rows that are held out where nothing was asked for: the interval of an accuracy is half a point by then


@dataclass
class Inputs:
    """What was read, checked and encoded before anything learns."""

    settings: config.Settings
    task: Task
    data: Data  # with the targets that are scored
    names: tuple[str, ...]  # of the head's outputs: classes, or a vocabulary
    findings: list[Finding]
    fingerprint: str  # of the data
    base: str | None  # of what the network and its processor came from; None of a Hub id, whose commit says it
    model: Any
    processor: Any
    pooling: str
    net: Net
    plan: Plan
    precision: str
    rows: dict[str, Rows] = field(default_factory=dict)
    aims: dict[str, Aims] = field(default_factory=dict)


def columns_of(values: Mapping[str, Any], labels: Labels | None = None) -> Columns:
    """The columns that were named; `labels`: what the task learns from, where one was."""
    return Columns(**{name: values.get(f"{name}_column") for name in ("text", "image", "audio", "label")}, labels=labels)


def check_data(data: Any, *, task: str | None = None, **columns: Any) -> list[Finding]:
    """What is wrong with this data, before anything trains.

    Raises:
        AffinageError: the data cannot be read at all, or the task reads another kind of data.
    """
    test = columns.pop("test", None)
    validation = columns.pop("validation", None)
    kind, wanted = tasks.wanted(task)
    found = reading.read(data, columns=columns_of(columns, wanted), test=test, validation=validation, kind=kind)
    if task is not None:
        tasks.find(task, found.kind, found.labels)  # what `fit` would refuse
    return check(found)


def _read(settings: config.Settings) -> tuple[Data, list[Finding], Task]:
    """The data, checked; refuses what would make the result a lie."""
    path = settings.validation if isinstance(settings.validation, (str, Path)) else None
    kind, wanted = tasks.wanted(settings.task)
    data = reading.read(
        settings.data,
        columns=columns_of(settings.model_dump(), wanted),
        validation=path,
        test=settings.test,
        kind=kind,
    )
    task = tasks.find(settings.task, data.kind, data.labels, settings.model_dump())
    findings = check(data)
    errors = [f for f in findings if f.severity == "error"]
    if errors:
        raise AffinageError(errors[0].message)
    leaks = [f for f in findings if f.severity == "leak"]
    if leaks and settings.leaks == "refuse":
        raise AffinageError(
            f"{leaks[0].message}; leave them out of training with --leaks drop, or accept them with --leaks allow"
        )
    data = clean(data, findings)
    if leaks and settings.leaks == "drop":
        data = without_leaks(data, findings)
    return data, findings, task


def _splits(data: Data, settings: config.Settings, findings: Sequence[Finding], task: Task) -> Data:
    """Few labels where asked, and a validation split where none came and enough rows are there; copies stay together."""
    train = data.train
    if settings.labels_per_class:
        train = labels.few(train, settings.labels_per_class, settings.seed, task.groups(train.targets))
    validation = data.validation
    share = settings.validation if isinstance(settings.validation, float) else None
    if share == 0 or (settings.labels_per_class and share is None and not isinstance(settings.validation, (str, Path))):
        validation = None  # as was asked, or: a large validation split beside few labels would be labels that nobody counted
    if validation is None:
        if share is None and round(0.2 * len(train)) >= HELD_OUT:
            share = min(0.2, HELD_MOST / len(train))
        if share:
            alike, groups = leaders(train, findings), task.groups(train.targets)
            train, validation = labels.holdout(train, share, settings.seed, alike, groups)
    return data.with_splits(train=train, validation=validation)


def _fingerprint(data: Data) -> str:
    """SHA-256 over every row's id, target and content."""
    import hashlib

    total = hashlib.sha256()
    for name, split in data.splits():
        for row, target, thing in zip(split.ids, split.targets, split.inputs, strict=True):
            if isinstance(thing, Path):
                content = thing.read_bytes()
            elif isinstance(thing, tuple):  # samples, and their rate
                content = f"{thing[1]}\0".encode() + np.ascontiguousarray(thing[0]).tobytes()
            elif isinstance(thing, str):
                try:
                    content = thing.encode()
                except UnicodeEncodeError:
                    raise AffinageError(
                        f"row {row} of {name} holds half a character (a lone surrogate), which is no text: mend or remove it"
                    ) from None
            else:
                content = thing if isinstance(thing, bytes) else np.asarray(thing).tobytes()
            try:
                total.update(f"{name}\0{row}\0{target}\0{len(content)}\0".encode())
            except UnicodeEncodeError:
                raise AffinageError(f"the name of {row!a} in {name} is not UTF-8: rename the file or its folder") from None
            total.update(content)
    return total.hexdigest()


def _model(settings: config.Settings, task: Task, names: Sequence[str]) -> tuple[Any, Any]:
    """(model, processor), from a name, or a loaded model given as (model, processor)."""
    fresh = settings.plan == "scratch"
    if isinstance(settings.model, tuple):
        model, processor = settings.model
        if fresh:
            raise AffinageError(
                "--plan scratch takes a model's name or folder, not a loaded model: its weights would be thrown away"
            )
        # What was given stays as it is. What learns is fp32, as `load` reads it: transformers 5 leaves stored fp16 and bf16 so.
        model, processor = copy.deepcopy(model).float(), copy.copy(processor)
        return task.adopt(model, processor, names), processor
    if isinstance(settings.model, torch.nn.Module):
        raise AffinageError("a loaded model comes with its processor: give model=(model, processor)")
    return task.load(starters.place(settings.model), names, fresh=fresh, revision=settings.revision)


def prepare(settings: config.Settings) -> Inputs:
    """Everything that can be refused is refused here, before a folder is made."""
    choose("plan", settings.plan, plans.NAMES)  # a slip of the pen is told before minutes of reading
    usual = (0, "head") if settings.plan == "frozen" else ("all",)
    if settings.plan in plans.WHOLE and settings.unfreeze not in ("auto", *usual):
        raise AffinageError(
            f"--unfreeze {settings.unfreeze} is for the plans two-stage and full: {settings.plan} {plans.WHOLE[settings.plan]}"
        )
    data, findings, task = _read(settings)
    model = starters.named(settings.model, task.name, task.kind)
    revision = hub.pinned(model, settings.revision) if isinstance(starters.place(model), str) else settings.revision
    settings = settings.model_copy(update={"model": model, "revision": revision})
    _suits(settings, task)
    data = _splits(data, settings, findings, task)
    data, names = task.number(data)
    torch.manual_seed(settings.seed)
    np.random.seed(settings.seed % 2**32)
    model, processor = _model(settings, task, names)
    if not isinstance(settings.model, tuple):  # in a loaded one its owner may have frozen tables that a plan is to teach
        pretrained.fix_constants(model)
    model.config.return_dict = True  # outputs are read by name
    chosen = _pool(model, settings)
    model.to(device())
    if task.kind == "image":
        model.to(memory_format=torch.channels_last)
    first = task.encode([data.train.inputs[0]], processor, model, max_length=settings.max_length)
    row = {k: v.to(device()) for k, v in first.batch(np.arange(1)).items()}
    net = net_of(task, model, row)
    wishes = plans.Wishes(**{name: getattr(settings, name) for name in plans.Wishes.__dataclass_fields__})
    if wishes.augment == "auto":
        wishes = replace(wishes, augment=task.augments)
    plan = plans.make(
        settings.plan,
        net,
        task.kind,
        len(data.train),
        wishes,
        patience=data.validation is not None,
        solves=task.classifies,
    )
    if net.head_linear is None and any(stage.how == "solve" for stage in plan.stages):
        raise AffinageError(f"{type(model).__name__} has no linear layer that gives the logits: use --plan full")
    if plan.lora and not lora.layers(model, net.blocks):
        why = net.why or "its blocks hold no linear layers"
        raise AffinageError(f"{type(model).__name__} has nothing to put low-rank updates beside ({why}): use --plan full")
    update = max((min(stage.batch, len(data.train)) for stage in plan.stages if stage.how == "fit"), default=0)
    precision = settings.precision if settings.precision != "auto" else auto_precision(model, row, update)
    base = _base(settings, net, processor)
    return Inputs(settings, task, data, names, findings, _fingerprint(data), base, model, processor, chosen, net, plan, precision)


def _base(settings: config.Settings, net: Net, processor: Any) -> str | None:
    if isinstance(settings.model, tuple):
        return contents.base(net, processor)
    return pretrained.files_sum(starters.place(settings.model), fresh=settings.plan == "scratch")


def net_of(task: Task, model: Any, sample: Batch) -> Net:
    """The network as the task sees it: with all of its head, and the outputs that count."""
    where = next(model.parameters()).device  # pictures may come on a GPU where the network is not
    sample = {name: value.to(where) for name, value in sample.items()}
    return Net.of(model, sample, beside=task.head(model), reads=task.reads)


def _suits(settings: config.Settings, task: Task) -> None:
    """Refuse what only makes sense for other tasks."""
    if not task.classifies:
        for name, idle in (("class_weights", "none"), ("label_smoothing", "auto"), ("hand_over", "auto")):
            if getattr(settings, name) not in (idle, 0.0):
                raise AffinageError(f"--{name.replace('_', '-')} is for tasks that tell classes apart, not for {task.name}")
    fields = task.__dataclass_fields__ if hasattr(task, "__dataclass_fields__") else {}
    spoken: dict[str, Any] = {
        "vocabulary": "auto",
        "transcripts": "plain",
        "language": None,
        "decoding": "auto",
        "language_model": None,
        "language_model_weight": 1.0,
    }
    for name, idle in spoken.items():
        if getattr(settings, name) != idle and name not in fields:
            raise AffinageError(f"--{name.replace('_', '-')} is for speech recognition, not for {task.name}")
    if settings.max_length is not None and task.kind != "text":
        raise AffinageError(f"--max-length counts tokens of text, and {task.name} has none: leave it out")
    if settings.augment not in ("auto", "none") and task.kind == "text":
        raise AffinageError(f"--augment {settings.augment} is for pictures and recordings, not for {task.name}: leave it out")
    if settings.views and not (task.classifies and task.kind == "image"):
        raise AffinageError(f"--views is for image classification, not for {task.name}")
    if settings.mix and not (task.classifies and task.kind == "image"):
        raise AffinageError(f"--mix mixes pictures and their classes, and {task.name} has none: leave it out")
    if settings.mix and settings.views:
        raise AffinageError("--mix draws pictures anew and --views computes them once: give one of the two")


def _pool(model: Any, settings: config.Settings) -> str:
    """Choose and install the pooling: what the checkpoint declares; the mean for an encoder that came without a trained head."""
    wish: str = settings.pooling
    if not pooling.can_mean(model):
        if wish in ("mean", "first"):
            raise AffinageError(
                f"--pooling {wish} cannot be saved as a plain {type(model).__name__}: "
                "use --pooling native, or a BERT- or RoBERTa-shaped model"
            )
        return "native"
    if isinstance(settings.model, tuple) and (names := pooling.strange(model)):
        raise AffinageError(
            f"the loaded {type(model).__name__} has {len(names)} weights that its configuration does not make ({names[0]}): "
            "a run of it could not be opened again; give one whose layers were not changed"
        )
    if wish == "auto":
        heads = getattr(model.config, "architectures", None) or []
        source = model.config.name_or_path if isinstance(settings.model, tuple) else starters.place(settings.model)
        wish = (
            getattr(model.config, pooling.MARK, None)
            or pooling.declared(source, settings.revision)
            or ("native" if any("Classification" in h for h in heads) else "mean")
        )
    if wish != "native":
        pooling.install(model, wish)
    return wish


def plan_of(**settings: Any) -> dict[str, Any]:
    """The plan as it would run, with every default filled in; nothing is trained and nothing written.

    Raises:
        AffinageError: bad input, or the plan of a run that goes on.
    """
    wishes = config.make(settings)
    if wishes.resume:
        raise AffinageError(
            f"a run that goes on keeps its plan (affinage show --run {wishes.folder()}): leave --resume out, or --dry-run"
        )
    inputs = prepare(wishes)
    return {"settings": told(inputs.settings), **plan_json(inputs)}


def plan_json(inputs: Inputs) -> dict[str, Any]:
    """task, plan, model and data as they stand in run.json."""
    table: dict[str, float | None] = {}
    low_rank: dict[str, float | None] = {}
    for stage in inputs.plan.stages:
        if inputs.plan.lora and stage.how == "fit":
            low_rank = dict(stage.rates)  # of parameters that are not there yet
        else:
            table = rates.resolve(inputs.net, stage.rates)
    anatomy = []
    groups = inputs.net.addresses()
    for row in inputs.net.anatomy():
        own = {table.get(name) for name in groups[row["address"]]} - {None}
        if low_rank:  # beside the layers of the blocks, whose own weights stay
            part = row["address"].split(".")[0]
            own = {{"blocks": low_rank.get("*lora_*"), "head": low_rank.get("head")}.get(part)} - {None}
        anatomy.append({**row, "trained": bool(own), "rate": max(r for r in own if r is not None) if own else None})
    data = inputs.data
    return {
        "task": inputs.task.name,
        "plan": asdict(inputs.plan),
        "model": {
            "source": _source(inputs.settings.model),
            "revision": inputs.settings.revision,
            "fingerprint": inputs.base,
            "architecture": headed.architecture(inputs.model),
            "parameters": sum(p.numel() for p in inputs.model.parameters()),
            "pooling": inputs.pooling,
            "anatomy": anatomy,
            **({"head_file": headed.HEAD} if isinstance(inputs.model, headed.Headed) else {}),
        },
        "data": {
            "source": data.source,
            "kind": data.kind,
            "fingerprint": inputs.fingerprint,
            "rows": {name: len(split) for name, split in data.splits()},
            inputs.task.names: list(inputs.names),
            "findings": summary(inputs.findings),
        },
    }


def _source(thing: Any) -> str:
    return str(thing) if isinstance(thing, (str, Path)) else type(thing[0] if isinstance(thing, tuple) else thing).__name__


def told(settings: config.Settings) -> dict[str, Any]:
    """The settings as JSON; what was given in memory is named by its type."""
    plain = {k: v for k, v in settings.model_dump().items() if k not in ("resume", "overwrite", "quiet")}
    return {
        k: v if isinstance(v, (int, float, str, type(None), bool)) else str(v) if isinstance(v, Path) else _source(v)
        for k, v in plain.items()
    }
