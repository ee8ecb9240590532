"""A native transformers model and its processor, from a Hub id or a folder; no code and no pickle is ever loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from affinage import starters
from affinage.errors import AffinageError
from affinage.facts import digest

# The files of a model's folder that a run depends on; others may come and go.
WEIGHTS = ("*.safetensors",)
WORDS = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "tokenizer*", "vocab*", "merges.txt", "*.model", "*.spm", "*.bpe", "*.codes", "*.tiktoken"),
)
# What every plain image processor does, and is told by the numbers in preprocessor_config.json.
STEPS = {
    *("do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
}


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
                f"{starters.called(source)} is not a model for {task}: its architecture has no such head; "
                "choose another model or --task"
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


def configured(source: Any, classes: Sequence[str], *, task: str, revision: str | None) -> Any:
    """The model's configuration, with the names of these classes."""
    import transformers

    quiet()
    names = dict(enumerate(classes))
    labels: dict[str, Any] = {"num_labels": len(names), "id2label": names, "label2id": {n: i for i, n in names.items()}}
    config = guarded(
        lambda: transformers.AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False, **labels),
        source,
        task,
    )
    if hasattr(config, "problem_type"):  # of boxes and speech it is none: transformers opens no folder of one class that has it
        config.problem_type = "single_label_classification" if task.endswith("classification") else None
    return config


def load(auto: Any, source: Any, classes: Sequence[str], *, task: str, fresh: bool, revision: str | None, **options: Any) -> Any:
    """A model of the auto class `auto` with a head for `classes`, in fp32; `fresh` reuses its architecture only."""
    config = configured(source, classes, task=task, revision=revision)
    return built(auto, source, config, task=task, fresh=fresh, revision=revision, **options)


def built(auto: Any, source: Any, config: Any, *, task: str, fresh: bool, revision: str | None, **options: Any) -> Any:
    """A model of the auto class `auto` as `config` says, with the weights of `source` where they fit, or with none of them.

    fp32 whatever the file holds: transformers would compute in the type of the file, and neither learn in it nor predict well.
    """
    import torch

    options["dtype"] = torch.float32
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


def fix_constants(model: Any) -> None:
    """What the class holds as parameters that never learn is made buffers, in place, under the same names: no plan teaches these.

    Single numbers (D-FINE's `up` and `reg_scale`, by which its targets are made) and tables (Whisper's sinusoids). Other layers
    that a class freezes (DETR's first convolutions) are weights, and learn where a plan says so.
    """
    from torch import nn

    if not any(p.requires_grad for p in model.parameters()):
        return  # somebody has frozen all of it: what the class would have is not seen
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.requires_grad and (parameter.numel() == 1 or isinstance(module, nn.Embedding)):
                del module._parameters[name]
                module.register_buffer(name, parameter.data)


def files_sum(source: Any, *, fresh: bool) -> str | None:
    """SHA-256 of the files in a model's folder that say what the network and its processor are, by name; None for no folder (a
    Hub id, whose commit says it). `fresh`: the weights are not read.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return None
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and any(path.match(name) for name in (*WORDS, *(() if fresh else WEIGHTS))):
            total.update(f"{path.name}\0{_file_sum(path)}\0".encode())
    return total.hexdigest()


def _file_sum(path: Path) -> str:
    if path.name != "config.json":
        return digest(path)
    said = json.loads(path.read_text(encoding="utf8"))  # by which version it was written says nothing
    return json.dumps({name: value for name, value in said.items() if name != "transformers_version"}, sort_keys=True)


def named(model: Any, names: Sequence[str]) -> Any:
    """The loaded model, with the names of these classes.

    Raises:
        AffinageError: it has another number of outputs.
    """
    if model.config.num_labels != len(names):
        raise AffinageError(
            f"the loaded model has {model.config.num_labels} outputs and the data {len(names)} classes: "
            f"load it with num_labels={len(names)} and ignore_mismatched_sizes=True"
        )
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    return model


def image_processor(source: str | Path, *, task: str, revision: str | None) -> Any:
    """The checkpoint's image processor, of the Pillow backend, so that torchvision is never needed.

    Some (DINOv3's) were written for torchvision alone. What they do is to resize, rescale and normalise by the numbers in
    preprocessor_config.json: ViT's, which does just that with Pillow, takes the same numbers.

    Raises:
        AffinageError: no preprocessor_config.json, or one that does not say what is needed.
    """
    import transformers

    def numbers() -> dict[str, Any]:
        return transformers.ImageProcessingMixin.get_image_processor_dict(source, revision=revision)[0]

    try:
        return transformers.AutoImageProcessor.from_pretrained(source, revision=revision, trust_remote_code=False, backend="pil")
    except OSError as error:
        if "containing a preprocessor_config.json" in str(error):
            raise AffinageError(
                f"{source} has no preprocessor_config.json, which says how the model wants its pictures (size, mean, deviation): "
                "copy it from the checkpoint that the model came from"
            ) from error
        raise AffinageError(f"cannot load the image processor of {source}: {' '.join(str(error).split())}") from error
    except (ImportError, ValueError):  # by whether its type is told in the file or by the model's
        said = {name: value for name, value in guarded(numbers, source, task).items() if value is not None}
    if "auto_map" in said:
        raise AffinageError(f"the image processor of {source} is code of its own, which is never run: choose another model")
    wanted = {"size": "do_resize", "image_mean": "do_normalize", "image_std": "do_normalize"}
    missing = [name for name, step in wanted.items() if said.get(step, True) and name not in said]
    if missing:
        raise AffinageError(
            f"the image processor of {source} needs torchvision, and preprocessor_config.json does not say {', '.join(missing)}, "
            "with which Pillow could do the same: add it"
        )
    return transformers.ViTImageProcessorPil(**{name: value for name, value in said.items() if name in STEPS})
