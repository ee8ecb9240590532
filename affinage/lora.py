"""Low-rank updates (peft) beside the layers of the blocks while training, added into them at the end."""

from __future__ import annotations

import warnings

import torch


def layers(model: torch.nn.Module, blocks: tuple[str, ...]) -> list[str]:
    """The linear layers and convolutions of the blocks, by name, beside which a low-rank update can stand."""
    from transformers.pytorch_utils import Conv1D  # a linear layer, of GPT and GPT-2

    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | Conv1D)
        and getattr(module, "groups", 1) == 1
        and any(name == b or name.startswith(b + ".") for b in blocks)
    ]


def adapt(model: torch.nn.Module, blocks: tuple[str, ...], rank: int, seed: int) -> None:
    """Put a low-rank update beside every linear layer and convolution of the blocks, in place; alpha is twice the rank."""
    import peft

    torch.manual_seed(seed)
    without = [module for module in model.modules() if _has_no_embeddings(module)]
    inside = layers(model, blocks)
    try:
        for module in without:  # peft asks for them in vain (D-FINE, Deformable DETR)
            module.get_input_embeddings = torch.nn.Module  # type: ignore[assignment]
        with warnings.catch_warnings():  # that weights of GPT-2's kind lie the other way round: peft turns them
            warnings.filterwarnings("ignore", "fan_in_fan_out")
            peft.inject_adapter_in_model(
                peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=inside), model
            )
    finally:
        for module in without:
            del module.get_input_embeddings


def _has_no_embeddings(module: torch.nn.Module) -> bool:
    """Whether a model of transformers has no answer when it is asked for its input embeddings."""
    try:
        asked = getattr(module, "get_input_embeddings", None)
        if callable(asked):
            asked()
    except NotImplementedError:
        return True
    return False


def merge(model: torch.nn.Module) -> None:
    """The low-rank updates added into the layers beside which they stood."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()  # type: ignore[operator]
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.get_base_layer())
