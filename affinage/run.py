"""The story of a run, top to bottom: prepare, then each stage (solve or fit), choose, and leave a folder that explains itself."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from affinage import __version__, checkpoint, config, ranks, reach, stages, starters, team
from affinage.check import write as write_findings
from affinage.checkpoint import Saved
from affinage.ending import explain, finish
from affinage.errors import AffinageError, Diverged
from affinage.facts import Clock, commit, hardware, now, versions, write_json
from affinage.features import device, passed
from affinage.hold import Hold
from affinage.inputs import Inputs, check_data, net_of, plan_json, plan_of, prepare, told
from affinage.lora import adapt, merge
from affinage.progress import Bar
from affinage.record import Records
from affinage.story import CARRIED, STAGE, Story, sample_of
from affinage.trained import Run, known, load, remove
from affinage.types import Cost, Finding, Outcome

ANEW = {"data", "cache", "cache_gb", "out"}  # what a run that goes on may be told anew: of the data the fingerprint is compared
COMMIT = re.compile("[0-9a-f]{40}")
__all__ = ["Run", "check_data", "fit", "load", "plan_of"]


def fit(model: Any = None, data: Any = None, **settings: Any) -> Run:
    """Fine-tune `model` on `data` by a plan and leave a run folder; `config.Settings` lists what can be said.

    Raises:
        AffinageError: bad input, a leak between splits, a loss that is not finite, no space: one line each, nothing half-written.
    """
    given = {**settings, **{k: v for k, v in (("model", model), ("data", data)) if v is not None}}
    wishes = config.make(given)
    out = Path(wishes.folder())
    with team.joined(out), Hold(out) as hold:
        return _begun(wishes, out, hold)


def _begun(wishes: config.Settings, out: Path, hold: Hold) -> Run:
    """The run in `out` begun, or gone on with; rank 0 alone looks into the folder, and all hear what is there."""
    if out.exists() and not out.is_dir():
        raise AffinageError(f"{out} is a file: --out takes a folder for the run")
    if ranks.shared(ranks.first() and (wishes.overwrite or (wishes.resume and not _done(out))) and (out / "run.json").exists()):
        _take(hold)
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
            if not _done(out):
                explain(out)
            return load(out)
        if not wishes.overwrite:
            raise AffinageError(f"{out} already holds a finished run: choose another --out, or replace it with --overwrite")
    if state and state["status"] == "failed" and not (wishes.resume or wishes.overwrite):
        raise AffinageError(f"{out} holds a run that failed ({state['error']}): start again with --overwrite")
    if state and state["status"] != "finished" and not (wishes.resume or wishes.overwrite):
        raise AffinageError(f"{out} holds a run that was stopped: go on with --resume, or start again with --overwrite")
    if state is None and out.exists() and not reach.empty(out):  # never ours to delete, whatever --overwrite says
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
    if wishes.resume and state and not ranks.shared(_same_model(state["model"], inputs)):
        drawn = "; layers that a checkpoint lacks are drawn at random: seed torch before you load it" if _loaded(wishes) else ""
        raise AffinageError(
            f"the model {state['model']['source']} is not what this run began with (its weights, other files or its pooling "
            f"differ{drawn}): restore it, or start again with --overwrite"
        )
    if wishes.resume and state:  # what "auto" was there may be another thing here
        inputs.precision = state["hardware"]["precision"]
    try:
        return _execute(inputs, out, hold, state if wishes.resume else None)
    except Diverged as error:
        _failed(out, error)
        raise


def _loaded(wishes: config.Settings) -> bool:
    """Whether the model was given in memory."""
    return not isinstance(wishes.model, (str, Path, type(None)))


def _done(out: Path) -> bool:
    """Whether a run is finished, and has explained itself: the mark in run.json may have been its last act."""
    record = known(out)
    told = (out / "report.html").exists() and not (out / "checkpoints").exists()
    return record is not None and record["status"] == "finished" and told


def _take(hold: Hold) -> None:
    """The folder held by rank 0 from here on: two processes would write over each other.

    Raises:
        AffinageError: another process is at work in it, or it cannot be made.
    """
    try:
        other = ranks.shared(hold.take() if ranks.first() else "")
    except OSError as error:
        raise _unwritable(hold.folder, error) from error
    if other:
        raise AffinageError(f"another run is at work in {hold.folder} ({other}): wait for its end, or choose another --out")


def _same_model(began: dict[str, Any], inputs: Inputs) -> bool:
    """Whether the network is the one that a run began with; a run of before this was written down is taken at its word."""
    return began.get("fingerprint", inputs.base) == inputs.base and began["pooling"] == inputs.pooling


def _failed(out: Path, error: Diverged) -> None:
    """The folder says why it holds no result; where not even that can be written, the error on the screen has to do."""
    if not ranks.first():
        return
    with suppress(OSError):
        header = json.loads((out / "run.json").read_text(encoding="utf8"))
        write_json(out / "run.json", header | {"status": "failed", "error": str(error), "finished": now()})


def _remembered(state: dict[str, Any], out: Path, wishes: config.Settings) -> config.Settings:
    """The settings that the stopped run began with; what lives in memory, or on the disk of today, is taken from the call.

    Raises:
        AffinageError: the call says otherwise than the run began.
    """
    here, there = told(wishes), told(config.make(state["settings"]))
    # A run tells the starter that `starter` stood for, and the commit that a branch or tag did: these go on as they began.
    if here["model"] == starters.ANY and str(there["model"]).startswith(starters.PREFIX):
        here["model"] = there["model"]
    if COMMIT.fullmatch(str(there["revision"])) and not COMMIT.fullmatch(str(here["revision"])):
        here["revision"] = there["revision"]
    for name in sorted(wishes.model_fields_set & there.keys() - ANEW):
        if not _alike(here[name], there[name]):
            before = f"{name} {there[name]}" if there[name] is not None else f"{name} not set"
            raise AffinageError(
                f"the run in {out} began with {before}, not {here[name]}: leave that out to go on as it began, "
                "or start again with --overwrite"
            )
    given = wishes.given()
    fresh = {name: given[name] for name in ("data", "cache", "cache_gb") if given.get(name) is not None}
    if _loaded(wishes):
        fresh["model"] = wishes.model
    return config.make({**state["settings"], **fresh, "out": out, "resume": True, "quiet": wishes.quiet})


def _alike(here: Any, there: Any) -> bool:
    """Whether two settings say the same; a path may be told from here or from the root."""
    if isinstance(here, str) and isinstance(there, str):
        return Path(here).expanduser().absolute() == Path(there).expanduser().absolute()
    return bool(here == there)


def _execute(inputs: Inputs, out: Path, hold: Hold, state: dict[str, Any] | None) -> Run:
    """The stages of the plan in order, then the ending."""
    settings = inputs.settings
    _take(hold)
    resumed = _last(out, shard=settings.shard and ranks.count() > 1) if state else None
    # Reading may have taken minutes, in which another run may have begun here.
    if ranks.shared(ranks.first() and state is None and not settings.overwrite and known(out) is not None):
        raise AffinageError(f"another run began in {out} meanwhile: choose another --out")
    if settings.shard and ranks.count() > 1:
        try:
            reach.shared(out)
        except OSError as error:
            raise _unwritable(out, error) from error
    if state is None:
        ranks.alone(lambda: remove(out))
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
        _begin(out, hold, header, inputs.findings)
    story = Story(inputs, out, header)
    if resumed:
        saved = resumed.state
        for warning in resumed.warnings if ranks.first() else ():
            print(f"affinage: {warning}", file=sys.stderr)
        story.carried = {k: v.to(device()) for k, v in resumed.under(CARRIED).items()}
        story.outcomes = [Outcome(o["stage"], Cost(**o["cost"]), o["validation"], o["details"]) for o in saved["outcomes"]]
        story.stage, story.kept, story.order = saved["stage"], saved["kept"], saved["order"]
        story.cuts = saved.get("cuts", {})
    keep = resumed.state.get("records") if resumed else None
    story.records = Records(out / "records.jsonl" if ranks.first() else None, keep=keep)
    with Bar(quiet=settings.quiet or not ranks.first()) as bar, closing(story.records):
        encoding = _encode(inputs, bar)
        lora = False
        if not inputs.plan.fresh:
            sample = sample_of(inputs.rows["train"])
            story.base_features, _ = passed(inputs.model, sample, inputs.precision, inputs.net.head_linear)
        for index, stage in enumerate(inputs.plan.stages):
            if stage.how == "fit" and inputs.plan.lora and not lora:
                adapt(inputs.model, inputs.net.blocks, inputs.plan.lora, settings.seed)
                inputs.model.to(device())
                sample_batch = inputs.rows["train"].batch(np.arange(1))
                inputs.net = net_of(inputs.task, inputs.model, {k: v.to(device()) for k, v in sample_batch.items()})
                lora = True
            if index < story.stage:
                continue
            story.put()
            story.stage = index
            if stage.how == "solve":
                stages.solved(story, stage, bar)
            else:
                within = resumed is not None and index == resumed.state["stage"] and resumed.state["fitting"]
                stages.fitted(story, stage, bar, resumed if within else None)
            story.stage = index + 1
            story.save()
        story.put()
        story.records.close()
        if lora:
            merge(inputs.model)
        return finish(story, encoding, bar)


def _last(out: Path, *, shard: bool) -> Saved | None:
    """The newest checkpoint that can be trusted; rank 0 reads it, and all hear of it.

    `shard`: the state of the stage that goes on is not among its tensors: each rank will read its own part.
    """
    found = ranks.alone(lambda: checkpoint.newest(out / "checkpoints"))
    words: Any = ranks.shared((found.path.name, found.state, found.warnings) if found else None)
    if words is None:
        return None
    name, state, warnings = words
    path = out / "checkpoints" / name
    tensors = ranks.alone(lambda: checkpoint.read(path, lambda tensor: not (shard and tensor.startswith(STAGE))))
    return Saved(path, state, warnings, ranks.sent(tensors or {}))


def _begin(out: Path, hold: Hold, header: dict[str, Any], findings: Sequence[Finding]) -> None:
    """The folder with what is known before anything learns; one that was made in vain does not stay."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "run.json", header)
        write_findings(findings, out / "findings.csv")
    except OSError as error:
        if hold.made:
            shutil.rmtree(out, ignore_errors=True)
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: OSError) -> AffinageError:
    return AffinageError(f"cannot write the run in {out} ({error.strerror}): mend that, or choose another --out")


def _encode(inputs: Inputs, bar: Bar) -> dict[str, Cost]:
    """Every split encoded once, and what each took."""
    costs = {}
    for name, split in inputs.data.splits():
        clock = Clock()
        bar.say(f"encoding {name}")
        inputs.rows[name] = inputs.task.encode(
            split.inputs, inputs.processor, inputs.model, max_length=inputs.settings.max_length
        )
        inputs.aims[name] = inputs.task.aims(split.targets, inputs.rows[name], inputs.processor, inputs.model)
        costs[name] = clock.cost()
    return costs
