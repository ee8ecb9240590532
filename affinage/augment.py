"""Pictures changed at random while training, a whole batch at a time: flip, turn, crop, scale, colour, holes; mixing two."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.distributions import Beta
from torch.nn.functional import affine_grid, grid_sample


class Strength(NamedTuple):
    """How far a picture may be changed."""

    area: float  # smallest share of the picture that is seen
    shift: float  # farthest off the centre beyond that, as a share of half a side
    colour: float  # largest change of contrast and saturation (a factor), and twice that of a channel (in deviations)
    turn: float  # largest angle, in radians
    holes: float  # share of the pictures that lose a rectangle (random erasing, Zhong 2017, arXiv 1708.04896)


STRENGTH = {"light": Strength(0.75, 0.05, 0.1, 0.0, 0.0), "strong": Strength(0.35, 0.15, 0.4, 0.2, 0.25)}
HOLE = (0.2, 0.6)  # sides of a hole, as a share of the picture's
# of the share that one picture keeps: as DeiT mixes (Touvron 2021, arXiv 2012.12877)
MIXUP, CUTMIX = Beta(0.8, 0.8), Beta(1.0, 1.0)


class Mixed(NamedTuple):
    """A batch in which each picture may hold a part of another: the target is `kept` its own, the rest that of row `other`."""

    pixels: torch.Tensor  # (B, 3, H, W)
    other: torch.Tensor | None  # (B,) int64: whose picture was mixed in; None where nothing was
    kept: float


def augmented(pixels: torch.Tensor, strength: str) -> torch.Tensor:
    """(B, 3, H, W) normalised pictures, changed each on its own; drawn from torch's generator, which checkpoints keep."""
    if strength == "none":
        return pixels
    area, shift, colour, turn, holes = STRENGTH[strength]
    b, where = len(pixels), pixels.device
    side = torch.empty(b).uniform_(area, 1.0).sqrt()  # of the window that is seen, as a share of the picture
    ratio = torch.empty(b).uniform_(-0.15, 0.15).exp()
    flip = torch.where(torch.rand(b) < 0.5, -1.0, 1.0)
    free = (1.0 - side) + shift  # the window may stand this far off the centre
    across, down = side * ratio * flip, side / ratio
    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 2] = torch.empty(b).uniform_(-1, 1) * free
    theta[:, 1, 2] = torch.empty(b).uniform_(-1, 1) * free
    angle = torch.empty(b).uniform_(-turn, turn) if turn else torch.zeros(b)
    theta[:, 0, 0], theta[:, 0, 1] = across * angle.cos(), -down * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = across * angle.sin(), down * angle.cos()
    grid = affine_grid(theta.to(where), list(pixels.shape), align_corners=False)
    out = grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    out = recoloured(out, colour)
    return _with_holes(out, holes) if holes else out


def recoloured(pixels: torch.Tensor, most: float) -> torch.Tensor:
    """Contrast and saturation as one matrix over the channels, and a shift of each; the mean of a picture stays."""
    b, where = len(pixels), pixels.device
    gain = torch.empty(b, 1, 1).uniform_(1 - most, 1 + most)
    bias = torch.empty(b, 3, 1).uniform_(-most, most).to(where) * 0.5
    grey = torch.empty(b, 1, 1).uniform_(0, most)  # towards grey only: more colour than a picture has would leave the range
    matrix = (gain * (torch.eye(3) * (1 - grey) + grey / 3)).to(where)
    flat = pixels.flatten(2)
    mean = flat.mean(2, keepdim=True)
    return torch.baddbmm(mean - matrix @ mean + bias, matrix, flat).view_as(pixels)


def _with_holes(pixels: torch.Tensor, share: float) -> torch.Tensor:
    """A rectangle of the mean colour in that share of the pictures, in place."""
    b, (height, width) = len(pixels), pixels.shape[2:]
    has = torch.rand(b) < share
    inside = _rectangles(torch.rand(b, 2), torch.empty(b, 2).uniform_(*HOLE), height, width) & has[:, None, None]
    return pixels.masked_fill_(inside[:, None].to(pixels.device), 0.0)


def _rectangles(centre: torch.Tensor, sides: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B, H, W) bool, true inside the rectangle with that centre and those sides, (B, 2) each, down and across, 0 to 1."""
    low, high = centre - sides / 2, centre + sides / 2
    down = (torch.arange(height) + 0.5) / height
    across = (torch.arange(width) + 0.5) / width
    rows = (down >= low[:, :1]) & (down < high[:, :1])
    columns = (across >= low[:, 1:]) & (across < high[:, 1:])
    return rows[:, :, None] & columns[:, None, :]


def mixed(pixels: torch.Tensor, share: float) -> Mixed:
    """With probability `share` the batch mixed with itself in another order: blended, or a window of one pasted into the other.

    Half of the time each: mixup (Zhang 2018, arXiv 1710.09412) and CutMix (Yun 2019, arXiv 1905.04899). One share for the whole
    batch, so that the loss is `kept` times that of the own targets and the rest that of the others'. Draws nothing where `share`
    is 0.
    """
    if not share or torch.rand(()) >= share:
        return Mixed(pixels, None, 1.0)
    b, (height, width) = len(pixels), pixels.shape[2:]
    other = torch.randperm(b)
    partner = pixels[other.to(pixels.device)]
    if torch.rand(()) < 0.5:
        kept = float(MIXUP.sample())
        return Mixed(torch.lerp(partner, pixels, kept), other, kept)
    sides = (1.0 - CUTMIX.sample()).sqrt().expand(1, 2)
    inside = _rectangles(torch.rand(1, 2), sides, height, width)
    pasted = torch.where(inside[:, None].to(pixels.device), partner, pixels)
    return Mixed(pasted, other, 1.0 - float(inside.float().mean()))  # what the border cut off counts for neither
