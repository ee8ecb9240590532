"""Pictures changed at random while training, a whole batch at a time: flip, crop and scale, colour."""

from __future__ import annotations

import torch
from torch.nn.functional import affine_grid, grid_sample

STRENGTH = {"light": (0.75, 0.05, 0.1), "strong": (0.35, 0.15, 0.4)}  # (smallest share of the area, shift, colour)


def augmented(pixels: torch.Tensor, strength: str) -> torch.Tensor:
    """(B, 3, H, W) normalised pictures, flipped, cropped and recoloured; drawn from torch's generator, which checkpoints keep."""
    if strength == "none":
        return pixels
    area, shift, colour = STRENGTH[strength]
    b = len(pixels)
    side = torch.empty(b).uniform_(area, 1.0).sqrt()  # of the window that is seen, as a share of the picture
    ratio = torch.empty(b).uniform_(-0.15, 0.15).exp()
    flip = torch.where(torch.rand(b) < 0.5, -1.0, 1.0)
    free = (1.0 - side) + shift  # the window may stand this far off the centre
    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0] = side * ratio * flip
    theta[:, 1, 1] = side / ratio
    theta[:, 0, 2] = torch.empty(b).uniform_(-1, 1) * free
    theta[:, 1, 2] = torch.empty(b).uniform_(-1, 1) * free
    grid = affine_grid(theta.to(pixels.device), list(pixels.shape), align_corners=False)
    out = grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return recoloured(out, colour)


def recoloured(pixels: torch.Tensor, colour: float) -> torch.Tensor:
    """(B, 3, H, W) with contrast and tint changed by up to `colour` of a deviation."""
    b = len(pixels)
    gain = torch.empty(b, 1, 1, 1).uniform_(1 - colour, 1 + colour).to(pixels.device)
    bias = torch.empty(b, 3, 1, 1).uniform_(-colour, colour).to(pixels.device) * 0.5
    mean = pixels.mean((2, 3), keepdim=True)
    return (pixels - mean) * gain + mean + bias
