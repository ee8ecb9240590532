"""Mean pooling for encoders whose native classification head reads the first token, saved so that plain transformers runs it.

Sentence encoders were trained with mean pooling, and their first token says less. While we train, a block without parameters
(`MeanPool`) stands behind the last one. In the saved folder it is an ordinary block with constant weights: a block whose queries
and keys are zero attends evenly to every token, and even attention over the unmasked tokens *is* masked mean pooling:

    LN(k * mean(x) + x_first) -> LN(mean(x)) as k grows      (k = 2^20: the residual connection weighs one part in a million)

Its feed-forward part is zero, and the tanh of the native pooler is passed in its linear range (e x for e = 2^-12, undone in
the classifier). The values leave the range of fp16: load such a folder in fp32 or bf16.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import layer_norm

from affinage import hub

LOUD = 2.0**20  # k above
SMALL = 2.0**-12  # e above: tanh(e x) = e x (1 - e^2 x^2 / 3), one part in 10^6 at |x| = 10
MARK = "affinage_pooling"  # the key in config.json by which a folder of ours is known


class MeanPool(nn.Module):
    """(B, T, D) hidden states and the encoder's own mask -> (B, 1, D): the layer-normed mean over the unmasked tokens."""

    def forward(
        self, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        if attention_mask is None:
            mean = hidden.mean(1, keepdim=True)
        else:
            row = attention_mask[:, 0, -1, :]  # (B, T): additive (0 keeps) or boolean (True keeps)
            keep = (row if row.dtype == torch.bool else row == 0).to(hidden.dtype)
            mean = (keep.unsqueeze(1) @ hidden) / keep.sum(1)[:, None, None]
        # the mean of many tokens is small: the usual eps of 1e-5 would weigh, and the saved block has none to speak of
        return layer_norm(mean.float(), mean.shape[-1:], eps=1e-12)


class FirstToken(nn.Module):
    """(B, T, D) -> (B, D): a pooler that passes the first token on as it is."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[:, 0]


class LinearHead(nn.Module):
    """(B, T, D) -> (B, C): dropout and one linear layer on the first token."""

    def __init__(self, dropout: nn.Module, out_proj: nn.Linear) -> None:
        super().__init__()
        self.dropout = dropout
        self.out_proj = out_proj

    def forward(self, features: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return self.out_proj(self.dropout(features[:, 0]))


def _parts(model: Any) -> tuple[Any, Any] | None:
    """(base model, its list of blocks) where the architecture is one that can carry a pooling block, else None."""
    if getattr(model.config, "model_type", "") not in {"bert", "roberta", "xlm-roberta", "camembert"}:
        return None
    base = model.base_model
    return base, base.encoder.layer


def can_mean(model: Any) -> bool:
    """Whether mean pooling can be saved for this architecture without code of ours."""
    return _parts(model) is not None


def strange(model: Any) -> list[str]:
    """The weights of a loaded model that its class does not make from its configuration: what is saved could not be opened."""
    with torch.device("meta"):
        plain = type(model)(copy.deepcopy(model.config))
    return sorted(model.state_dict().keys() - plain.state_dict().keys())


def declared(source: Any, revision: str | None = None) -> str | None:
    """The pooling that a checkpoint declares: "mean", "first", or None.

    Reads a run of ours, and a sentence-transformers model in a folder or on the Hub.
    """
    folder = Path(str(source))
    if not source or not folder.is_dir():
        found = hub.file(source, "1_Pooling/config.json", revision)
        return _read(found) if found else None
    config = folder / "config.json"
    if config.exists():
        mark = json.loads(config.read_text(encoding="utf8")).get(MARK)
        if mark:
            return str(mark)
    pooling = folder / "1_Pooling" / "config.json"
    return _read(pooling) if pooling.exists() else None


def _read(path: Path) -> str | None:
    modes = json.loads(path.read_text(encoding="utf8"))
    if modes.get("pooling_mode_mean_tokens") or modes.get("pooling_mode") == "mean":
        return "mean"
    return "first" if modes.get("pooling_mode_cls_token") or modes.get("pooling_mode") == "cls" else None


def install(model: Any, pooling: str) -> None:
    """Make a loaded model read the mean ("mean") or the bare first token ("first") through one linear layer, in place."""
    parts = _parts(model)
    assert parts is not None, "can_mean() was not asked"
    base, blocks = parts
    if getattr(model.config, MARK, None) == "mean":  # one of ours: take its constant block off again
        del blocks[-1]
        model.config.num_hidden_layers -= 1
    if pooling == "mean":
        blocks.append(MeanPool())
    if getattr(base, "pooler", None) is not None:
        base.pooler = FirstToken()
    else:
        model.classifier = LinearHead(model.classifier.dropout, model.classifier.out_proj)
    setattr(model.config, MARK, pooling)


def installed(model: Any) -> str | None:
    """The pooling put in by `install`, or None."""
    parts = _parts(model)
    if parts is None:
        return None
    base, _ = parts
    swapped = isinstance(getattr(base, "pooler", None), FirstToken) or isinstance(getattr(model, "classifier", None), LinearHead)
    return getattr(model.config, MARK) if swapped else None


def exported(model: Any) -> Any:
    """The same function as a native transformers model: a pooling block becomes one more layer with constant weights."""
    pooling = installed(model)
    if pooling is None:
        return model
    config = copy.deepcopy(model.config)
    config.num_hidden_layers += pooling == "mean"
    config.architectures = [type(model).__name__]
    native = type(model)(config)
    found = native.load_state_dict(model.state_dict(), strict=False)
    assert not found.unexpected_keys, found.unexpected_keys
    parts = _parts(native)
    assert parts is not None
    base, blocks = parts
    with torch.no_grad():
        if pooling == "mean":
            _average(blocks[-1])
        dense = base.pooler.dense if getattr(base, "pooler", None) is not None else native.classifier.dense
        final = native.classifier if isinstance(native.classifier, nn.Linear) else native.classifier.out_proj
        dense.weight.copy_(torch.eye(dense.out_features) * SMALL)
        dense.bias.zero_()
        final.weight.div_(SMALL)
    return native.eval()


def _average(block: Any) -> None:
    """Make a BERT layer compute LN(mean over tokens) at every position."""
    for parameter in block.parameters():
        parameter.zero_()
    attention = block.attention
    eye = torch.eye(attention.output.dense.out_features)
    attention.self.value.weight.copy_(eye)
    attention.output.dense.weight.copy_(eye * LOUD)
    attention.output.LayerNorm.weight.fill_(1.0)
    block.output.LayerNorm.weight.fill_(1.0)
