"""The command line: parse, call, print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from affinage import asked, team
from affinage.complaint import Stopped, explained
from affinage.errors import AffinageError

app = typer.Typer(
    name="affinage",
    help="Adapt a pretrained model to your data: a head solved on frozen features, then chosen layers, gently.",
    epilog="--debug, anywhere: show the whole traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

cache_app = typer.Typer(help="What was computed once and is kept on the disk.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

Word = str | None


def _option(metavar: str, text: str) -> Any:
    """An option that takes one word; `config.Settings` checks it, so that file and command line fail with the same words."""
    return typer.Option(metavar=metavar, help=text)


Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
RunFolder = Annotated[str, typer.Option("--run", help="The folder of a run.", metavar="DIR")]
TextColumn = Annotated[Word, _option("NAME", "The column that holds the text.")]
ImageColumn = Annotated[Word, _option("NAME", "The column that holds the image.")]
AudioColumn = Annotated[Word, _option("NAME", "The column that holds the recording.")]
LabelColumn = Annotated[Word, _option("NAME", "The column that holds the class, or the transcript.")]
Decoding = Annotated[Word, _option("auto|greedy|beam", "Speech: how characters are read off the frames.")]
LanguageModel = Annotated[Word, _option("FILE", "Speech: an ARPA file or a list of words, for beam search.")]
LanguageModelWeight = Annotated[Word, _option("N", "What it counts beside what was heard; 1 where not given.")]
Revision = Annotated[Word, _option("REV", "Branch, tag or commit of the model on the Hub.")]


def _version(asked: bool) -> None:
    if asked:
        from affinage import __version__

        typer.echo(f"affinage {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass  # --version does its work as it is parsed


# All defaults are None here: an option that was not given must not win over the file; `config.Settings` holds the defaults.
@app.command()
def fit(
    model: Annotated[Word, _option("MODEL", "A Hub id, a model folder, a run, or starter: the one for the task.")] = None,
    data: Annotated[Word, _option("DATA", "A folder, a file (CSV, JSON lines, Parquet, WebDataset tar) or a data set.")] = None,
    task: Annotated[Word, _option("TASK", "Told by the data where not given.")] = None,
    plan: Annotated[Word, _option("PLAN", "scratch, frozen, two-stage (the default), full, lora or gradual.")] = None,
    out: Annotated[Word, _option("DIR", "Where the run goes; runs/DATA-MODEL where not given.")] = None,
    seed: Annotated[Word, _option("N", "Same seed, same run; 0 where not given.")] = None,
    labels_per_class: Annotated[Word, _option("N", "Use only so many training rows a class.")] = None,
    validation: Annotated[Word, _option("SHARE|PATH", "A share of train, such as 0.2, or a path; 0 for none.")] = None,
    test: Annotated[Word, _option("PATH", "The test rows, where the data does not bring them.")] = None,
    unfreeze: Annotated[Word, _option("auto|all|N|ADDRESS", "Layers that learn in stage 2; also head+decoder.")] = None,
    learning_rate: Annotated[Word, _option("auto|RATE", "Peak rate of the unfrozen layers.")] = None,
    head_learning_rate: Annotated[Word, _option("auto|RATE", "Peak rate of the head.")] = None,
    layer_decay: Annotated[Word, _option("auto|FACTOR", "Rate of a block over that of the block above.")] = None,
    lora_rank: Annotated[Word, _option("N", "Rank of the low-rank update, of the plan lora; 8 where not given.")] = None,
    epochs: Annotated[Word, _option("N", "Passes over the training rows.")] = None,
    batch_size: Annotated[Word, _option("auto|N", "Rows a step.")] = None,
    precision: Annotated[Word, _option("auto|fp32|bf16", "Numbers that the network computes in.")] = None,
    pooling: Annotated[Word, _option("auto|mean|first|native", "How tokens become one vector.")] = None,
    augment: Annotated[Word, _option("auto|none|light|strong", "Random changes of images and sounds.")] = None,
    mix: Annotated[Word, _option("SHARE", "Share of the steps that learn from mixed pictures (mixup, CutMix).")] = None,
    max_length: Annotated[Word, _option("N", "Tokens a row at most.")] = None,
    vocabulary: Annotated[Word, _option("auto|base|data", "Speech: whose characters are written.")] = None,
    transcripts: Annotated[Word, _option("plain|as-written", "Speech: without case and punctuation, or as they are.")] = None,
    language: Annotated[Word, _option("CODE", "Speech: the language that is spoken, for a Whisper of many.")] = None,
    decoding: Decoding = None,
    language_model: LanguageModel = None,
    language_model_weight: LanguageModelWeight = None,
    class_weights: Annotated[Word, _option("none|balanced", "Weigh rare classes up.")] = None,
    label_smoothing: Annotated[Word, _option("auto|SHARE", "Share of the target spread over all classes.")] = None,
    hand_over: Annotated[
        Word, _option("auto|FACTOR", "Factor on the solved head's logits before the layers below it train.")
    ] = None,
    interpolate: Annotated[Word, _option("auto|SHARE", "How far the weights go from before stage 2 (0) to after it (1).")] = None,
    average: Annotated[Word, _option("auto|SHARE", "Window of averaged weights, a share of the steps.")] = None,
    leaks: Annotated[Word, _option("refuse|drop|allow", "What to do with rows found in two splits.")] = None,
    accumulate: Annotated[Word, _option("N", "Pieces that a step is computed in, at least; the gradient is the same.")] = None,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option("--gradient-checkpointing", help="Compute layers twice rather than keep what they gave.")
    ] = None,
    compile: Annotated[bool | None, typer.Option("--compile", help="Compile the network first: pays in long runs.")] = None,
    shard: Annotated[
        bool | None, typer.Option("--shard", help="Under torchrun: each process holds a part of what trains (FSDP).")
    ] = None,
    cache: Annotated[Word, _option("auto|off", "Compute what is frozen once, and keep it on the disk.")] = None,
    views: Annotated[Word, _option("V", "Augmented views of each picture that are computed once; 0 where not given.")] = None,
    cache_gb: Annotated[Word, _option("GB", "Most that is kept there; 4 where not given.")] = None,
    text_column: TextColumn = None,
    image_column: ImageColumn = None,
    audio_column: AudioColumn = None,
    label_column: LabelColumn = None,
    revision: Revision = None,
    config: Annotated[Word, _option("FILE", "Settings from a YAML or JSON file; options given here win.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan as it would run, and stop.")] = False,
    resume: Annotated[bool | None, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = None,
    overwrite: Annotated[bool | None, typer.Option("--overwrite", help="Replace the run that is in --out.")] = None,
    quiet: Annotated[bool | None, typer.Option("--quiet", help="No progress on the screen.")] = None,
    as_json: Json = False,
) -> None:
    """Adapt a model to labelled data, and leave a run folder."""
    given = _given(**locals())
    options = {name: value for name, value in given.items() if name not in ("config", "dry_run", "as_json")}
    from affinage.config import load as load_settings

    settings = load_settings(config, options)
    values = settings.given()
    if dry_run:
        from affinage import run

        _print_plan(run.plan_of(**values), as_json)
        return
    folder = settings.folder()
    values["out"] = folder
    if as_json:
        values["quiet"] = True
    try:
        from affinage import run

        done = run.fit(**values)
    except KeyboardInterrupt:
        raise Stopped(folder) from None
    if not team.speaks():
        return
    if as_json:
        _print_json({"run": str(done.path), "metrics": done.metrics})
    else:
        _show(done.path)


@app.command()
def evaluate(
    run: RunFolder,
    data: Annotated[str, _option("DATA", "Labelled rows.")],
    split: Annotated[Word, _option("NAME", "Which split; test where there is one.")] = None,
    text_column: TextColumn = None,
    image_column: ImageColumn = None,
    audio_column: AudioColumn = None,
    label_column: LabelColumn = None,
    decoding: Decoding = None,
    language_model: LanguageModel = None,
    language_model_weight: LanguageModelWeight = None,
    as_json: Json = False,
) -> None:
    """Score a run on labelled rows."""
    from affinage.run import load

    columns = _given(text_column=text_column, image_column=image_column, audio_column=audio_column, label_column=label_column)
    read = _given(decoding=decoding, language_model=language_model, language_model_weight=language_model_weight)
    scores = load(run, **read).evaluate(data, split=split, **columns)
    if as_json:
        _print_json(scores)
        return
    for name, value in scores.items():
        if isinstance(value, int | float | str):
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            ends = [f"{end:.4g}" for end in scores.get(f"{name}_interval", ())]
            typer.echo(f"{name:<24} {text}" + (f"  [{', '.join(ends)}]" if ends else ""))


@app.command()
def predict(
    run: RunFolder,
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Text, files, folders of images or sounds, or - for lines of stdin.")
    ],
    draw: Annotated[Word, _option("DIR", "Object detection: save each picture there, with its boxes drawn on it.")] = None,
    decoding: Decoding = None,
    language_model: LanguageModel = None,
    language_model_weight: LanguageModelWeight = None,
) -> None:
    """Predict, one JSON line an input."""
    from affinage.run import load

    read = _given(decoding=decoding, language_model=language_model, language_model_weight=language_model_weight)
    loaded = load(run, **read)
    if draw is not None and loaded.task.labels != "boxes":
        raise AffinageError(f"--draw is for object detection, and this run does {loaded.task.name}: leave it out")
    things = list(asked.things(inputs, loaded.task.kind))
    if not things:
        raise AffinageError(
            "nothing to predict: the inputs hold no line and no file to read; expected text, files or folders of images or sounds"
        )
    step = 256  # inputs at once: lines come out while a long input is still being read
    unread = number = 0
    for start in range(0, len(things), step):
        part = things[start : start + step]
        try:
            answers = loaded.predict(part)
        except AffinageError:
            if len(things) == 1:
                raise
            answers = [_answer(loaded, thing) for thing in part]  # one broken picture takes no other's answer away
        for thing, answer in zip(part, answers, strict=True):
            unread += "error" in answer
            if draw is not None and "error" not in answer:
                number += 1
                _draw(Path(draw), number, Path(thing), answer["boxes"])
            typer.echo(json.dumps({"input": str(thing), **answer}, default=_plain, ensure_ascii=False))
    if unread:
        raise AffinageError(f'{unread} of {len(things)} inputs could not be read: their lines hold an "error"')


def _draw(folder: Path, number: int, picture: Path, boxes: Sequence[dict[str, Any]]) -> None:
    """The picture with its boxes in the folder, under its own name; the number keeps apart those of one name."""
    from affinage.pictures import drawn

    image = drawn(picture, boxes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number:04d}-{picture.stem}.png")
    except OSError as error:
        raise AffinageError(f"cannot write in {folder} ({error.strerror or error}): name another folder with --draw") from error


def _answer(run: Any, thing: Any) -> dict[str, Any]:
    """The prediction for one input, or why there is none."""
    try:
        answer: dict[str, Any] = run.predict([thing])[0]
    except AffinageError as error:
        return {"error": str(error)}
    return answer


@app.command()
def show(
    run: Annotated[Word, _option("DIR", "The folder of a run: its scores and what they cost.")] = None,
    model: Annotated[Word, _option("MODEL", "A Hub id, folder or starter: its stem, blocks and head.")] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the run's report in the browser.")] = False,
    revision: Revision = None,
) -> None:
    """Show a run, or the anatomy of a model."""
    if (run is None) == (model is None):
        raise AffinageError("show takes one of --run DIR and --model MODEL")
    if model is not None:
        from affinage import anatomy

        for line in anatomy.lines(model, revision):
            typer.echo(line)
        return
    folder = Path(str(run))
    if not (folder / "run.json").is_file():
        raise AffinageError(f"no run at {folder}; expected a folder with run.json, as `affinage fit --out` leaves")
    _show(folder)
    if open_:
        import webbrowser

        page = folder / "report.html"
        if not page.is_file():
            raise AffinageError(
                f"no report.html in {folder}; it is written when a fit ends: affinage fit --resume --out {folder}"
            )
        if not webbrowser.open(page.resolve().as_uri()):
            raise AffinageError(f"no browser found; open {page} yourself")


@app.command()
def models(as_json: Json = False) -> None:
    """List the models that need no download: starters, installed ones, and the cache of the Hub."""
    from affinage import models as known

    found = known.every()
    if as_json:
        _print_json([one.__dict__ for one in found])
        return
    wide = max((len(one.name) for one in found), default=0)
    for one in found:
        told = (f"{one.bytes / 1e6:8,.1f} MB", f"{one.where:<7}", one.task or "task not told", one.licence or "licence not told")
        typer.echo(f"{one.name:<{wide}}  {'  '.join(told)}")


@app.command()
def check(
    data: Annotated[str, _option("DATA", "A folder, a file or a data set.")],
    task: Annotated[Word, _option("TASK", "Told by the data where not given.")] = None,
    out: Annotated[Word, _option("FILE", "Write every offending row to a CSV file.")] = None,
    text_column: TextColumn = None,
    image_column: ImageColumn = None,
    audio_column: AudioColumn = None,
    label_column: LabelColumn = None,
    as_json: Json = False,
) -> None:
    """Look for leaks between splits and faults in the data; exit code 1 if there are any."""
    from affinage.run import check_data

    findings = check_data(
        data,
        **_given(
            task=task, text_column=text_column, image_column=image_column, audio_column=audio_column, label_column=label_column
        ),
    )
    if out is not None:
        from affinage.check import write

        try:
            write(findings, Path(out))
        except OSError as error:
            raise AffinageError(f"cannot write {out} ({error.strerror}): name a file in a folder that is there") from error
    if as_json:
        _print_json([finding.__dict__ for finding in findings])
    else:
        for finding in findings:
            typer.echo(f"{finding.severity:<8} {finding.kind}: {finding.message}")
        if not findings:
            typer.echo("nothing found")
    if any(finding.severity in ("leak", "error") for finding in findings):
        raise typer.Exit(1)


@cache_app.command("list")
def cache_list(as_json: Json = False) -> None:
    """What is kept, the latest used first."""
    import time

    from affinage import store

    folder = store.folder()
    entries = store.Store(folder, 0).entries()
    if as_json:
        rows = [{"key": one.path.name, "bytes": one.bytes, "used": one.used, **one.about} for one in entries]
        _print_json({"folder": str(folder), "entries": rows})
        return
    for one in entries:
        about = ", ".join(f"{name} {value}" for name, value in one.about.items())
        hours = (time.time() - one.used) / 3600
        typer.echo(f"{one.path.name[:12]}  {one.bytes / 1e6:10,.1f} MB  used {hours:,.1f} hours ago  {about}")
    typer.echo(f"{len(entries)} entries, {sum(one.bytes for one in entries) / 1e6:,.1f} MB in {folder}")


@cache_app.command("clear")
def cache_clear() -> None:
    """Drop all of it; runs that are reading go on."""
    from affinage import store

    folder = store.folder()
    freed = store.Store(folder, 0).clear()
    typer.echo(f"{freed / 1e6:,.1f} MB freed in {folder}")


# ------------------------------------------------------------------------------------------------------------ helpers
def _given(**values: Any) -> dict[str, Any]:
    """The values that were given."""
    return {name: value for name, value in values.items() if value is not None}


def _show(folder: Path) -> None:
    from affinage.report.screen import show

    show(folder)


def _plain(value: Any) -> Any:
    """What JSON does not know, as what it does: arrays as lists, numpy numbers as numbers, paths as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, default=_plain, ensure_ascii=False))


def _print_plan(plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(plan)
        return
    import yaml

    plain = json.loads(json.dumps(plan, default=_plain))  # tuples and paths as YAML knows them
    typer.echo(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), nl=False)


# --------------------------------------------------------------------------------------------------------------- main
def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 found or failed, 2 bad input, 130 stopped.

    Args:
        args: the words after the program's name; `sys.argv[1:]` where not given.
    """
    words = list(sys.argv[1:] if args is None else args)
    end = words.index("--") if "--" in words else len(words)  # what follows -- is input, not options
    debug = "--debug" in words[:end]
    words = [word for word in words[:end] if word != "--debug"] + words[end:]
    try:
        code = app(args=words, prog_name="affinage", standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:
        if debug and not isinstance(error, SystemExit | Stopped):
            import traceback

            traceback.print_exc()
            code = explained(error)[1]
            team.leave(code)
            return code
        message, code = explained(error)
        if message:
            team.tell(f"affinage: {message}")
        team.leave(code)
        return code
    if code == 130:  # typer turns an interrupt into this code
        team.tell("affinage: stopped")
    code = code if isinstance(code, int) else 0
    team.leave(code)
    return code
