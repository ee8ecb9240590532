"""Image encoders for which transformers has no classifier: the encoder, and one linear layer on what it says of a picture.

DINOv3 ConvNeXt is ConvNeXt under other names: the same convolutions, the same norms, and its pooled output is the layer-normed
mean, which `ConvNextForImageClassification` computes too. It becomes one as it is loaded, and all that follows is native.

DINOv3 ViT turns its queries and keys by the place of their patch in every block, with class and register tokens left as they
are; no classifier of transformers does that (all add positions once, or a bias to the scores). Such an encoder is kept as it is,
and its folder holds the native encoder, which `AutoModel` loads, with the head in a file beside it, which `affinage.load` reads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from affinage import pretrained
from affinage.errors import AffinageError

HEAD = "head.safetensors"  # `weight` (C, D) and `bias` (C,), beside model.safetensors
MARK = "affinage_head"  # the key in config.json by which a folder of ours says that its head is in HEAD

# DINOv3ConvNextModel -> ConvNextModel, one after another
NAMES = (
    (r"^model\.stages\.0\.downsample_layers\.0\.", "embeddings.patch_embeddings."),
    (r"^model\.stages\.0\.downsample_layers\.1\.", "embeddings.layernorm."),
    (r"^model\.", "encoder."),
    (r"\.downsample_layers\.", ".downsampling_layer."),
    (r"\.depthwise_conv\.", ".dwconv."),
    (r"\.pointwise_conv(\d)\.", r".pwconv\1."),
    (r"\.gamma$", ".layer_scale_parameter"),
    (r"(^|\.)layer_norm\.", r"\1layernorm."),
)


class Headed(nn.Module):
    """A native image encoder and a linear head on its pooled output: pixels (B, 3, H, W) -> logits (B, C)."""

    base_model_prefix = ""  # peft asks every module that has a configuration for it

    def __init__(self, encoder: Any, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, classes).to(encoder.dtype)
        nn.init.normal_(self.head.weight, std=0.02)  # as the native classifiers begin
        nn.init.zeros_(self.head.bias)

    @property
    def config(self) -> Any:
        """The encoder's configuration, with the names of the classes."""
        return self.encoder.config

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.head(pooled(self.encoder(pixel_values=pixel_values))))

    def save_pretrained(self, folder: str | Path) -> None:
        """The encoder as transformers saves it, and the head in `head.safetensors` beside it."""
        setattr(self.config, MARK, HEAD)
        self.encoder.save_pretrained(folder)
        save_file({name: value.contiguous() for name, value in self.head.state_dict().items()}, Path(folder) / HEAD)


def pooled(output: Any) -> torch.Tensor:
    """(B, D) of an encoder's output: `pooler_output`, else the mean of `last_hidden_state`, (B, T, D) or (B, D, H, W)."""
    found = getattr(output, "pooler_output", None)
    if found is not None:
        return found.flatten(1)
    hidden = output.last_hidden_state
    return hidden.mean(1) if hidden.dim() == 3 else hidden.mean((-2, -1))


def lacks_head(config: Any) -> bool:
    """Whether transformers has an image encoder for this configuration, but no image classifier."""
    import transformers

    if type(config) in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return False
    return getattr(transformers.MODEL_MAPPING.get(type(config), None), "main_input_name", None) == "pixel_values"


def is_bare(model: Any) -> bool:
    """Whether a loaded model is such an encoder itself, as `AutoModel` gives it, with no head that someone wrote around it."""
    import transformers

    return lacks_head(model.config) and type(model) is transformers.MODEL_MAPPING[type(model.config)]


def load(source: str | Path, classes: Sequence[str], processor: Any, *, task: str, fresh: bool, revision: str | None) -> Any:
    """The encoder of a Hub id or a folder with a head for `classes`; the head of a run of ours where it has as many classes.

    Raises:
        AffinageError: what `pretrained.load` refuses, an encoder that does not answer a picture alone, or a head that is lost.
    """
    import transformers

    encoder = pretrained.load(transformers.AutoModel, source, classes, task=task, fresh=fresh, revision=revision)
    model = of(encoder, classes, processor)
    if isinstance(model, Headed) and getattr(encoder.config, MARK, None) and not fresh:
        _restore(model.head, source, revision)
    return model


def of(encoder: Any, classes: Sequence[str], processor: Any) -> Any:
    """A loaded encoder with a fresh head: a native ConvNeXt where that computes the same, else `Headed`.

    Raises:
        AffinageError: the encoder does not answer a picture alone, or not twice the same.
    """
    encoder.config.id2label = dict(enumerate(classes))
    encoder.config.label2id = {name: i for i, name in enumerate(classes)}
    return as_convnext(encoder) or Headed(encoder, _width(encoder, processor), len(classes))


def architecture(model: Any) -> str:
    """The name of the transformers class."""
    return type(model.encoder if isinstance(model, Headed) else model).__name__


def as_convnext(encoder: Any) -> Any:
    """A DINOv3 ConvNeXt as the native `ConvNextForImageClassification` with a fresh head, or None if it is none."""
    import transformers

    config = encoder.config
    # ConvNeXt writes the eps of its blocks into its code: with another one it would compute something else
    if config.model_type != "dinov3_convnext" or config.layer_norm_eps != 1e-6:
        return None
    same = ("num_channels", "hidden_sizes", "depths", "hidden_act", "initializer_range", "layer_norm_eps", "drop_path_rate")
    native_config = transformers.ConvNextConfig(
        **{name: getattr(config, name) for name in (*same, "image_size", "id2label", "label2id")},
        num_stages=config.num_stages,
        layer_scale_init_value=max(config.layer_scale_init_value, 1e-6),  # at 0 ConvNeXt would leave out what the weights fill
    )
    native_config._name_or_path = config._name_or_path
    native = transformers.ConvNextForImageClassification(native_config).to(device=encoder.device, dtype=encoder.dtype)
    native.convnext.load_state_dict({_renamed(name): value for name, value in encoder.state_dict().items()})
    return native.eval()


def _renamed(name: str) -> str:
    for old, new in NAMES:
        name = re.sub(old, new, name)
    return name


@torch.no_grad()
def _width(encoder: Any, processor: Any) -> int:
    """D of the pooled output, asked of the encoder itself: configurations name it in many ways."""
    from PIL import Image

    encoder.eval()
    kind = type(encoder).__name__
    try:
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
        pixels = processor(noise, return_tensors="pt")["pixel_values"].to(encoder.device, encoder.dtype)
        first, second = (pooled(encoder(pixel_values=pixels)) for _ in range(2))
    except Exception as error:  # whatever a model raises that wants a text, a video, or another size
        why = " ".join(str(error).split())[:200]
        raise AffinageError(f"{kind} gives no features of a picture alone ({why}): choose another model") from error
    if first.dim() != 2 or len(first) != 1:
        raise AffinageError(f"{kind} gives features of shape {tuple(first.shape)} for one picture, expected (1, D)")
    if not torch.equal(first, second):  # ViT-MAE hides three quarters of the picture, drawn anew each time
        raise AffinageError(f"{kind} answers the same picture differently each time (random masking): choose another model")
    return first.shape[1]


def _restore(head: nn.Linear, source: str | Path, revision: str | None) -> None:
    """The saved weights into the head; another number of classes leaves it fresh."""
    from transformers.utils import cached_file

    try:
        saved = load_file(cached_file(source, HEAD, revision=revision))
    except OSError as error:
        raise AffinageError(f"{source} has lost its head: expected {HEAD} beside config.json; restore it") from error
    except Exception as error:  # safetensors raises its own type
        raise AffinageError(f"{HEAD} in {source} is not valid safetensors ({error}): fetch or save it again") from error
    if saved.keys() != {"weight", "bias"} or saved["weight"].shape[1:] != head.weight.shape[1:]:
        raise AffinageError(f"{HEAD} in {source} is not the head of this encoder: expected `weight` (C, {head.in_features})")
    if len(saved["weight"]) == head.out_features:
        head.load_state_dict(saved)
