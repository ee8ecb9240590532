"""Layers that run something else for a while, and are their own again afterwards, whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


def untouched(layer: nn.Module) -> bool:
    """Whether the layer runs what its class says: nobody has replaced its forward."""
    return "forward" not in layer.__dict__


@contextmanager
def instead(forwards: Mapping[Any, Callable[..., Any]]) -> Iterator[None]:
    """While it lasts, each of these layers runs the function beside it."""
    for layer, forward in forwards.items():
        layer.forward = forward
    try:
        yield
    finally:
        for layer in forwards:
            del layer.forward


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While it lasts, the model is in eval mode; then each of its modules is in its own again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
