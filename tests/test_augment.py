"""Augmentation: off is off, the shape stays, the generator of torch decides, and a picture stays the picture that it was."""

from __future__ import annotations

import pytest
import torch

from affinage.augment import STRENGTH, augmented


def smooth(count: int = 64) -> torch.Tensor:
    """A bright corner, dark opposite: (count, 3, 32, 32)."""
    ramp = torch.linspace(-1, 1, 32)
    return (ramp[:, None] + ramp[None, :]).expand(count, 3, 32, 32).clone()


def test_none_is_the_same_tensor() -> None:
    pixels = smooth(2)
    assert augmented(pixels, "none") is pixels


@pytest.mark.parametrize("strength", STRENGTH)
def test_shape_range_and_input(strength: str) -> None:
    pixels = smooth()
    before = pixels.clone()
    torch.manual_seed(0)
    out = augmented(pixels, strength)
    assert out.shape == pixels.shape and out.dtype == pixels.dtype and pixels.equal(before)
    assert out.isfinite().all() and out.abs().max() < 2 * 1.4 + 0.5
    assert not out[0].equal(out[1])  # each picture is changed on its own


def test_drawn_from_torchs_generator() -> None:
    pixels = smooth()
    torch.manual_seed(3)
    one, next_one = augmented(pixels, "strong"), augmented(pixels, "strong")
    torch.manual_seed(3)
    assert augmented(pixels, "strong").equal(one) and not one.equal(next_one)


def test_half_are_mirrored_and_none_upside_down() -> None:
    torch.manual_seed(0)
    out = augmented(smooth(1000), "light").mean(1)
    left_to_right = out[:, :, -8:].mean((1, 2)) - out[:, :, :8].mean((1, 2))
    assert 0.42 < (left_to_right > 0).float().mean() < 0.58
    assert (out[:, -8:].mean((1, 2)) > out[:, :8].mean((1, 2))).all()


def test_strong_changes_more_than_light() -> None:
    """Of each kind the nearer of the picture and its mirror image."""
    pixels = smooth(500)
    away = {}
    for strength in STRENGTH:
        torch.manual_seed(0)
        out = augmented(pixels, strength)
        both = torch.stack([(out - pixels).abs().mean((1, 2, 3)), (out - pixels.flip(3)).abs().mean((1, 2, 3))])
        away[strength] = both.amin(0).mean().item()
    assert 0 < away["light"] < 0.5 * away["strong"]
