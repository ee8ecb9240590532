"""Layers run something else for a while, and are their own again, after an error too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from affinage.instead import instead, untouched


def test_for_a_while() -> None:
    layer, other = nn.Linear(2, 2), nn.Linear(2, 2)
    x = torch.randn(3, 2)
    own = layer(x)
    with pytest.raises(KeyError), instead({layer: lambda x: x + 1}):
        assert not untouched(layer) and untouched(other)
        assert layer(x).equal(x + 1)
        raise KeyError
    assert untouched(layer) and layer(x).equal(own)
