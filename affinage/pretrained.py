"""A native transformers model and its processor, from a Hub id or a folder; no code and no pickle is ever loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from affinage.errors import AffinageError


def quiet() -> None:
    """Keep transformers' own bars and hints (missing head weights: ours are solved) out of the user's terminal."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def guarded(call: Callable[[], Any], source: str | Path, task: str) -> Any:
    """`call()`, with what transformers raises told in one line.

    Raises:
        AffinageError: no such model, no safetensors, or an architecture that the task does not know.
    """
    try:
        return call()
    except (OSError, ValueError, KeyError, ImportError) as error:
        text = str(error)
        first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        folder = Path(source)
        if not folder.exists() and (str(source).startswith((".", "/", "~")) or str(source).count("/") > 1):
            raise AffinageError(
                f"no model at {source}: expected a folder with config.json, or a Hub id such as org/name"
            ) from error
        if folder.is_file():
            raise AffinageError(f"{source} is a file: --model takes a Hub id or a model folder") from error
        if folder.is_dir() and not (folder / "config.json").exists():
            raise AffinageError(f"{source} has no config.json: expected a transformers model folder") from error
        if "Unrecognized configuration class" in text or "Unrecognized model" in text:
            raise AffinageError(
                f"{source} is not a model for {task}: its architecture has no such head; choose another model or --task"
            ) from error
        if (
            folder.is_dir()
            and not list(folder.glob("*.safetensors"))
            and (list(folder.glob("*.bin")) or list(folder.glob("*.pt*")))
        ):
            raise AffinageError(
                f"{source} holds its weights as a pickle, which can run code: expected model.safetensors; "
                "convert it with save_pretrained first"
            ) from error
        if folder.is_dir() and not list(folder.glob("*.safetensors")):
            raise AffinageError(
                f"{source} has no model.safetensors: expected weights beside config.json (or --plan scratch to start fresh)"
            ) from error
        raise AffinageError(f"cannot load the model {source}: {first}") from error
    except Exception as error:  # safetensors raises its own type for a file that is not one
        if "Safetensor" in type(error).__name__:
            raise AffinageError(
                f"the weights in {source} are not valid safetensors ({error}): fetch or save them again"
            ) from error
        raise


def load(auto: Any, source: Any, classes: Sequence[str], *, task: str, fresh: bool, revision: str | None, **options: Any) -> Any:
    """A model of the auto class `auto` with a head for `classes`; `fresh` reuses its architecture only."""
    import transformers

    quiet()
    names = dict(enumerate(classes))
    labels: dict[str, Any] = {"num_labels": len(names), "id2label": names, "label2id": {n: i for i, n in names.items()}}
    config = guarded(
        lambda: transformers.AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False, **labels),
        source,
        task,
    )
    if hasattr(config, "problem_type"):
        config.problem_type = "single_label_classification"
    if fresh:
        return guarded(lambda: auto.from_config(config, trust_remote_code=False, **options), source, task)
    return guarded(
        lambda: auto.from_pretrained(
            source,
            config=config,
            revision=revision,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            **options,
        ),
        source,
        task,
    )
