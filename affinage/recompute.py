"""Gradient checkpointing: what a layer gave is computed again in the backward pass, not kept (Chen et al., arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from affinage.errors import AffinageError


@contextmanager
def recomputed(model: Any) -> Iterator[None]:
    """While it lasts, the layers that train keep only what enters them. Gradients are the same.

    Raises:
        AffinageError: the architecture does not offer it.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise AffinageError(f"{type(model).__name__} has no gradient checkpointing: leave --gradient-checkpointing out")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()


def recomputes(model: Any) -> bool:
    """Whether some of its layers are computed again in the backward pass."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
