"""Augmentation: off is off, the shape stays, the generator of torch decides, and a picture stays the picture that it was."""

from __future__ import annotations

import pytest
import torch

from affinage.augment import STRENGTH, augmented, mixed


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


# --------------------------------------------------------------------------------------------------------------- mixing
def numbered(count: int = 16) -> torch.Tensor:
    """Each picture of one value, its number: (count, 3, 8, 8)."""
    return torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(count, 3, 8, 8).clone()


def test_no_mixing_draws_nothing() -> None:
    pixels, before = numbered(), torch.get_rng_state()
    found = mixed(pixels, 0.0)
    assert found.pixels is pixels and found.other is None and found.kept == 1.0
    assert torch.get_rng_state().equal(before)


def test_what_is_kept_is_what_the_picture_shows() -> None:
    """The mean of a picture of one value tells how much of it is its own: exactly `kept`, mixup and CutMix alike."""
    torch.manual_seed(0)
    pixels, pasted = numbered(), 0
    for _ in range(200):
        out, other, kept = mixed(pixels, 1.0)
        assert other is not None and 0 <= kept <= 1 and sorted(other.tolist()) == list(range(16))
        own, theirs = torch.arange(16.0), other.float()
        assert torch.allclose(out.mean((1, 2, 3)), kept * own + (1 - kept) * theirs, atol=1e-4)
        pasted += bool(((out == own[:, None, None, None]) | (out == theirs[:, None, None, None])).all())
    assert pixels.equal(numbered()) and 70 < pasted < 130  # CutMix half of the time


def test_the_share_of_mixed_batches() -> None:
    torch.manual_seed(0)
    count = sum(mixed(numbered(4), 0.3).other is not None for _ in range(1000))
    assert 250 < count < 350


def test_shares_kept_are_spread_over_all() -> None:
    torch.manual_seed(0)
    kept = torch.tensor([mixed(numbered(2), 1.0).kept for _ in range(1000)])
    assert 0.4 < kept.mean() < 0.6 and (kept < 0.1).any() and (kept > 0.9).any()


def test_holes_and_turns() -> None:
    """A quarter of the pictures has a hole of the mean colour; the corner of a turned picture is no longer the brightest spot."""
    torch.manual_seed(0)
    out = augmented(smooth(2000) + 5.0, "strong")
    holes = (out == 0.0).flatten(1).any(1).float().mean()
    assert 0.2 < holes < 0.3
    assert not (augmented(smooth(200) + 5.0, "light") == 0.0).any()
