"""The anatomy of a model, as `affinage show --model` prints it: what `--unfreeze` can address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from affinage.errors import AffinageError


def lines(model: str, revision: str | None) -> list[str]:
    """The addresses of a model and how many parameters each holds. Only its architecture is read, never its weights.

    Raises:
        AffinageError: no such model, or one that no task can load.
    """
    import numpy as np

    from affinage import headed, starters, tasks
    from affinage.inputs import net_of

    if model == starters.ANY:
        raise AffinageError("--model starter picks by the task: name the one to show, `affinage models` lists them")
    source = starters.place(model)
    errors: list[AffinageError] = []
    said = _architectures(source, revision)
    for task in sorted(tasks.every(), key=lambda task: not _made_for(task.name, said)):
        try:
            network, processor = task.load(source, ("a", "b"), fresh=True, revision=revision)
        except AffinageError as error:
            errors.append(error)
            continue
        rows = task.encode([task.example()], processor, network)
        net = net_of(task, network, rows.batch(np.arange(1)))
        parts = [f"  {row['address']:<12} {row['parameters']:>13,}" for row in net.anatomy()]
        return [f"{model}: {headed.architecture(network)}, {task.name}", *parts]
    raise errors[0]


def _made_for(task: str, architectures: Sequence[str]) -> bool:
    """Whether the checkpoint says that it is for this very task ("RTDetrForObjectDetection"): others may load it as well."""
    if task == "automatic-speech-recognition":  # its classes are named after how they write
        return any(name.endswith(("ForCTC", "ForConditionalGeneration")) for name in architectures)
    return any(name.endswith("For" + task.title().replace("-", "")) for name in architectures)


def _architectures(source: Any, revision: str | None) -> list[str]:
    """The classes that the checkpoint names in its configuration."""
    import transformers

    try:
        known = transformers.PreTrainedConfig.get_config_dict(source, revision=revision)[0].get("architectures") or []
    except (OSError, ValueError):  # told when it is loaded
        return []
    return [str(name) for name in known]
