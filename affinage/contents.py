"""Contents: the key of what is computed once, from all that it depends on: weights, rows, cut, precision, device, versions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from affinage import __version__, entry
from affinage.facts import versions
from affinage.net import Net
from affinage.ragged import Column
from affinage.types import Rows

# What says nothing of the blocks: names of classes, where the model came from, and the head.
ASIDE = {"id2label", "label2id", "num_labels", "architectures", "_name_or_path", "transformers_version", "problem_type"}


def about(net: Net, k: int, precision: str, columns: Sequence[Column], weights_sum: str, rows: Rows) -> dict[str, Any]:
    """All that what is stored depends on."""
    config: Any = net.model.config
    used = versions()
    return {
        "model": type(net.model).__name__,
        "config": _config(net),
        "attention": getattr(config, "_attn_implementation", None),
        "weights": weights_sum,
        "modules": _modules(net, k),
        "rows": _content(rows),
        "view": 0,  # the rows as they are; augmented views would be counted from 1
        "cut": entry.begins(net, k),
        "columns": [(c.dtype, c.shape, c.ragged) for c in columns],
        "precision": precision,
        "products": _products(),
        "device": next(net.model.parameters()).device.type,
        "versions": [__version__, used["torch"], used["transformers"], used["numpy"]],
    }


def _products() -> list[str]:
    """In what torch was told to multiply fp32: it may be TF32 or bf16 in fact."""
    had: Any = torch.backends
    told = [had, had.cuda.matmul, had.cudnn, had.cudnn.conv, had.mkldnn, had.mkldnn.matmul, had.mkldnn.conv]
    return [one.fp32_precision for one in told]


def weights(net: Net, k: int) -> str:
    """SHA-256 of every parameter read before block k and of the buffers of modules that are called before it."""
    below = {"stem", *(f"blocks.{i}" for i in range(k))}
    parameters = dict(net.model.named_parameters())
    read = [(name, parameters[name]) for name in entry.frozen_parameters(net, k)]
    buffers = [(n, b) for n, b in net.model.named_buffers() if net.places.get(n.rpartition(".")[0], "stem") in below]
    return summed((*read, *buffers))


def base(net: Net, processor: Any) -> str:
    """SHA-256 of a network as it was given, but for its head, which learns anew and may have been drawn at random, and of its
    processor."""
    head = set(net.addresses()["head"])
    tensors = summed((name, tensor) for name, tensor in net.model.state_dict().items() if name not in head)
    said = [tensors, _modules(net, len(net.blocks)), _config(net), _said(processor)]
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def _config(net: Net) -> dict[str, Any]:
    config: Any = net.model.config
    return {n: v for n, v in config.to_dict().items() if n not in ASIDE and not n.startswith("affinage")}


def _said(processor: Any) -> Any:
    """What a processor does with its inputs, but for how it was last told to pad and to cut."""
    parts = {
        name: _said(part)
        for name in ("tokenizer", "feature_extractor", "image_processor")
        if (part := getattr(processor, name, None))
    }
    if tokenizer := getattr(processor, "backend_tokenizer", None):
        return {n: v for n, v in json.loads(tokenizer.to_str()).items() if n not in ("padding", "truncation")}
    own = (
        processor.get_vocab() if hasattr(processor, "get_vocab") else processor.to_dict() if hasattr(processor, "to_dict") else ""
    )
    return parts or own


def summed(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 of tensors: their names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name, tensor in tensors:
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _modules(net: Net, k: int) -> str:
    """SHA-256 of what the modules below block k say of themselves: a loaded network may have another activation, epsilon or hook
    than its configuration tells."""
    total = hashlib.sha256()
    below = {"stem", *(f"blocks.{i}" for i in range(k))}
    for name, module in net.model.named_modules():
        if net.places.get(name) in below:
            hooked = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
            hooks = [getattr(hook, "__qualname__", type(hook).__qualname__) for hook in hooked]
            total.update(f"{name}\0{type(module).__qualname__}\0{module.extra_repr()}\0{hooks}\0".encode())
    return total.hexdigest()


def _content(rows: Rows) -> str:
    """SHA-256 of the rows as the network is given them, or of what that is made from, and their number."""
    read = getattr(rows, "raw", rows.batch)
    parts = (np.arange(start, min(start + 64, len(rows))) for start in range(0, len(rows), 64))
    return f"{len(rows)} {summed(tensor for part in parts for tensor in read(part).items())}"
