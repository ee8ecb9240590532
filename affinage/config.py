"""The settings of a run: every default with its unit and its reason, from a file, the command line, or both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from affinage.errors import AffinageError, nearest

Auto = Literal["auto"]


def _number(value: Any) -> Any:
    """A number typed as text becomes that number; anything else stays as it is (a path, an address)."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _share(value: Any) -> Any:
    """A share is below 1, and may be 0; a path or nothing passes."""
    value = _number(value)
    if isinstance(value, bool) or (isinstance(value, int | float) and not 0 <= value < 1):
        raise ValueError("not a share")
    return float(value) if isinstance(value, int) else value


def _depth(value: Any) -> Any:
    """'2' becomes 2; a fraction or a negative number of blocks makes no sense."""
    value = _number(value)
    if isinstance(value, bool | float) or (isinstance(value, int) and value < 0):
        raise ValueError("not a number of blocks")
    return value


def _no_switch(value: Any) -> Any:
    """True is not the number 1: `epochs: yes` is a slip, not one epoch."""
    if isinstance(value, bool):
        raise ValueError("a switch where a number belongs")
    return value


def _no_number(value: Any) -> Any:
    """`model: 5` in a file is a slip: what is named in YAML without quotes becomes a number, which names nothing."""
    if isinstance(value, bool | int | float):
        raise ValueError("a number where a name belongs")
    return value


Strict = BeforeValidator(_no_switch)
Named = Annotated[Any, BeforeValidator(_no_number)]
Rate = Annotated[float, Strict, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Strict, Field(ge=0, lt=1)]
Factor = Annotated[float, Strict, Field(gt=0, le=1)]
Count = Annotated[int, Strict, Field(ge=1)]
Seed = Annotated[int, Strict, Field(ge=0, lt=2**32)]
Depth = Annotated[str | int, BeforeValidator(_depth)]
FromHere = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]  # a run is loaded from other folders too
ShareOrPath = Annotated[float | str | Path | None, BeforeValidator(_share)]


def _setting(default: Any, expected: str) -> Any:
    """A field with its default, and the words that its error uses for what it takes."""
    return Field(default, description=expected)


class Settings(BaseModel):
    """All that `affinage fit` can be told. The description of a field says what it expects; it is the text of its error."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    # What, and where
    model: Named = _setting(None, "a Hub id, a model folder, starter, or a loaded model")
    data: Named = _setting(None, "a folder, a file, or a table in memory")
    task: str | None = _setting(None, "a task name such as text-classification")  # none: the kind of data tells
    plan: str = _setting("two-stage", "the name of a plan")  # the head first, then layers; the frozen head stays a candidate
    out: Path | None = _setting(None, "a folder for the run")  # none: runs/DATA-MODEL
    seed: Seed = _setting(0, "a whole number from 0 to 4294967295")  # fixed: the same run twice gives the same numbers

    # Which rows
    labels_per_class: Count | None = _setting(None, "a whole number of rows from 1 up")  # training rows a class; none: all
    # a share of train, or a path; 0: no validation, nor the data's own; none: the data's own split or, where there is none, a
    # fifth of train if that is 100 rows
    validation: ShareOrPath = _setting(None, "a share from 0 up and below 1, or the path of the validation rows")
    test: str | Path | None = _setting(None, "the path of the test rows")  # none: the data's own test split, if any
    leaks: Literal["refuse", "drop", "allow"] = _setting("refuse", "refuse, drop or allow")  # a leak flatters every score
    text_column: str | None = _setting(None, "the name of a column")  # none: found by convention
    image_column: str | None = _setting(None, "the name of a column")  # likewise
    audio_column: str | None = _setting(None, "the name of a column")  # likewise
    label_column: str | None = _setting(None, "the name of a column")  # likewise; of transcripts too
    revision: str | None = _setting(None, "a branch, tag or commit of the model on the Hub")  # none: the Hub's default branch

    # Who learns, and how fast
    # blocks counted from the head, or an address; auto: the plan's own depth
    unfreeze: Depth = _setting("auto", "auto, all, a number of blocks from 0 up, an address (blocks.-2:, stem), or head+decoder")
    learning_rate: Rate | Auto = _setting("auto", "a number above 0, or auto")  # of the layers at the peak; auto: the plan's
    head_learning_rate: Rate | Auto = _setting("auto", "a number above 0, or auto")  # of the head at the peak; auto: the plan's
    layer_decay: Factor | Auto = _setting("auto", "a factor above 0 and up to 1, or auto")  # rate of a block over the one above
    lora_rank: Count = _setting(8, "a whole number from 1 up")  # width of the low-rank update; only the plan lora reads it

    # How long, and how
    epochs: Count | None = _setting(None, "a whole number from 1 up")  # passes over train in each stage; none: the plan's
    batch_size: Count | Auto = _setting("auto", "a whole number from 1 up, or auto")  # rows a step; auto: the plan's
    precision: Literal["auto", "fp32", "bf16"] = _setting("auto", "auto, fp32 or bf16")  # auto: what the machine does well
    # auto: as the model was pretrained; sentence encoders want the mean, native heads read the first token
    pooling: Literal["auto", "mean", "first", "native"] = _setting("auto", "auto, mean, first or native")
    augment: Literal["auto", "none", "light", "strong"] = _setting("auto", "auto, none, light or strong")  # of images and sounds
    # share of the steps; 0: a few epochs on few pictures are too short for it, long training from scratch wants it
    mix: Annotated[float, Strict, Field(ge=0, le=1)] = _setting(0.0, "a share from 0 to 1")
    max_length: Count | None = _setting(None, "a whole number of tokens from 1 up")  # tokens a row; none: the model's limit
    # speech: the base's characters where they are all that the transcripts need, else those of the transcripts
    vocabulary: Literal["auto", "base", "data"] = _setting("auto", "auto, base or data")
    # speech: plain is lower case without punctuation but the apostrophe, as word error rates are usually told
    transcripts: Literal["plain", "as-written"] = _setting("plain", "plain or as-written")
    # speech: Whisper is told which of its languages it hears; none: the one that its folder names
    language: str | None = _setting(None, "a language that the model knows, such as en")
    # speech: beam search pays where words are known beforehand; auto: where there is a language model
    decoding: Literal["auto", "greedy", "beam"] = _setting("auto", "auto, greedy or beam")
    language_model: FromHere | None = _setting(
        None, "an ARPA file, or a list of one word a line"
    )  # none: any word can be written
    # what a step of an n-gram counts beside what the network heard; 0 keeps its words alone
    language_model_weight: Annotated[float, Strict, Field(ge=0, allow_inf_nan=False)] = _setting(1.0, "a number from 0 up")
    class_weights: Literal["none", "balanced"] = _setting(
        "none", "none or balanced"
    )  # none: each row counts once, as in accuracy
    label_smoothing: Share | Auto = _setting(
        "auto", "a share from 0 to below 1, or auto"
    )  # of the target's mass; auto: the plan's
    # where the weights end on the line from before stage 2 (0) to after it (1); auto: the plan's
    interpolate: Factor | Auto = _setting("auto", "a share above 0 and up to 1, or auto")
    # factor on the solved head's logits before the layers below it train; auto: the plan's
    hand_over: Factor | Auto = _setting("auto", "a factor above 0 and up to 1, or auto")
    average: Share | Auto = _setting(
        "auto", "a share from 0 to below 1, or auto"
    )  # window of averaged weights, share of the steps

    # How it is computed: none of these changes what is learnt, but for rounding and the order of random draws
    accumulate: Count = _setting(1, "a whole number of pieces from 1 up")  # pieces a step; more are taken where memory ends
    gradient_checkpointing: bool = _setting(False, "true or false")  # a third more computing for much less memory
    compile: bool = _setting(False, "true or false")  # tens of seconds at the start; pays in long runs only

    # over the processes that torchrun started: a part of the blocks' weights, gradients and moments on each, not all on all
    shard: bool = _setting(False, "true or false")

    # What is computed once
    cache: Literal["auto", "off"] = _setting("auto", "auto or off")  # auto: what is frozen runs once where that pays
    # augmented views of each picture that are computed once and learnt from in turn; 0: drawn anew each time, and nothing cut
    views: Annotated[int, Strict, Field(ge=0)] = _setting(0, "a whole number of views from 0 up")
    cache_gb: Rate = _setting(4.0, "a number of gigabytes above 0")  # 4 GB: 100,000 short sentences of MiniLM

    # What happens to the folder, and on the screen
    resume: bool = _setting(False, "true or false")  # go on from the last checkpoint in `out`
    overwrite: bool = _setting(False, "true or false")  # a folder with a run in it is otherwise left alone
    quiet: bool = _setting(False, "true or false")  # no progress on the screen

    def given(self) -> dict[str, Any]:
        """Only what was set, by name: what a caller passes on, so that defaults are decided in one place."""
        return self.model_dump(exclude_unset=True)

    def folder(self) -> Path:
        """Where the run goes: `out`, or runs/DATA-MODEL by their last names."""
        if self.out is not None:
            return self.out
        names = [_last_name(thing) for thing in (self.data, self.model)]
        return Path("runs") / "-".join(name for name in names if name)


def make(values: Mapping[str, Any], source: str = "settings") -> Settings:
    """Settings from named values.

    Raises:
        AffinageError: an unknown name (the nearest is told) or a value that does not fit (found and expected), in one line.
    """
    fields = Settings.model_fields
    for name in values:
        if name not in fields:
            hint = nearest(str(name), fields) or f"; expected one of {', '.join(fields)}"
            raise AffinageError(f"{source}: unknown setting '{name}'{hint}")
    try:
        return Settings(**values)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise AffinageError(f"{source}: {name} is {_short(values[name])}; expected {fields[name].description}") from None


def load(path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from a YAML or JSON file, with `overrides` (the command line) on top.

    Args:
        path: the file, or None for none.
        overrides: values by name; they win over the file's.

    Raises:
        AffinageError: no such file, not YAML or JSON, an unknown name, a value that does not fit, no model or no data.
    """
    make(overrides or {}, "command line")  # on its own first, so that the error says where the slip is
    values: dict[str, Any] = {}
    if path is not None:
        values = _read(Path(path))
        make(values, str(path))
    settings = make(values | dict(overrides or {}))
    # a run that goes on knows its model and data from its folder
    for name in ("out",) if settings.resume else ("model", "data"):
        if getattr(settings, name) is None:
            raise AffinageError(
                f"no {name} given; expected {Settings.model_fields[name].description}: add --{name} or `{name}:` in --config"
            )
    return settings


def _read(path: Path) -> dict[str, Any]:
    """The mapping in a .yaml, .yml or .json file."""
    import json

    import yaml

    if path.suffix not in (".yaml", ".yml", ".json"):
        raise AffinageError(f"settings file {path} ends in '{path.suffix}'; expected .yaml, .yml or .json")
    try:
        text = path.read_text(encoding="utf8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise AffinageError(f"cannot read settings file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise AffinageError(f"settings file {path} is not UTF-8 text; save it as UTF-8") from None
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else getattr(error, "lineno", None)
        where = f" at line {line}" if line else ""
        raise AffinageError(
            f"settings file {path} is not valid {path.suffix[1:].upper()}{where}; expected lines such as `epochs: 3`"
        ) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise AffinageError(
            f"settings file {path} holds a {type(values).__name__}; expected names with values, such as `epochs: 3`"
        )
    return values


def _last_name(thing: Any) -> str:
    """The last part of an id or path, without its ending; the class name of a thing in memory."""
    if thing is None:
        return ""
    if not isinstance(thing, str | Path):
        return type(thing).__name__.lower()
    path = Path(thing)
    if path.name in ("", "..", "."):
        path = path.resolve()
    # only a file loses its ending: the dot of an id such as bert-v1.5 belongs to its name
    return path.stem if path.is_file() else path.name


def _short(value: Any) -> str:
    """A value in an error: quoted, on one line, and not longer than it helps."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
