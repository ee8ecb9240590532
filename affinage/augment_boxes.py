"""Pictures with boxes changed at random while training, a batch at a time: flip, crop, scale, colour; the boxes move along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import affine_grid, grid_sample

from affinage.augment import recoloured

# (smallest and largest side of the window that is seen, as shares of the picture; its distortion; colour). A window of more
# than 1 shows the picture smaller, on an empty ground.
STRENGTH = {"light": (0.75, 1.15, 0.1, 0.1), "strong": (0.45, 1.5, 0.2, 0.4)}
SEEN = 0.3  # share of a box that must still be in sight for it to be taught


@dataclass(frozen=True)
class Move:
    """For each of B pictures the window that is seen of it, and whether it is mirrored. Coordinates are shares of the picture."""

    window: torch.Tensor  # (B, 4) x, y, width, height
    flip: torch.Tensor  # (B,) bool

    @classmethod
    def drawn(cls, count: int, strength: str) -> Move:
        """From torch's generator, which checkpoints keep."""
        low, high, ratio, _ = STRENGTH[strength]
        side = torch.empty(count).uniform_(low, high)
        bent = torch.empty(count).uniform_(-ratio, ratio).mul(0.5).exp()
        size = torch.stack([side * bent, side / bent], 1)
        return cls(torch.cat([torch.rand(count, 2) * (1 - size), size], 1), torch.rand(count) < 0.5)

    def boxes(self, i: int, boxes: torch.Tensor) -> torch.Tensor:
        """(n, 4) centre x, centre y, width, height of picture i, where they stand in what is seen of it; not clipped."""
        x, y, width, height = self.window[i].tolist()
        moved = (boxes - boxes.new_tensor([x, y, 0, 0])) / boxes.new_tensor([width, height, width, height])
        if self.flip[i]:
            moved = torch.cat([1 - moved[:, :1], moved[:, 1:]], 1)
        return moved

    def undone(self, i: int, boxes: torch.Tensor) -> torch.Tensor:
        """The inverse of `boxes`."""
        if self.flip[i]:
            boxes = torch.cat([1 - boxes[:, :1], boxes[:, 1:]], 1)
        x, y, width, height = self.window[i].tolist()
        return boxes * boxes.new_tensor([width, height, width, height]) + boxes.new_tensor([x, y, 0, 0])

    def pictures(self, pixels: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) what is seen. `inside` (B, 2): the share of the height and the width that each picture fills, from the
        corner at the top left; the rest is padding, and so is what the window has beyond the picture."""
        tall, wide = inside[:, 0], inside[:, 1]
        x, y, width, height = self.window.unbind(1)
        sign = torch.where(self.flip, -1.0, 1.0)
        theta = torch.zeros(len(pixels), 2, 3)
        theta[:, 0, 0] = width * sign
        theta[:, 0, 2] = torch.where(self.flip, 2 * wide * (x + width) - width - 1, 2 * wide * x + width - 1)
        theta[:, 1, 1] = height
        theta[:, 1, 2] = 2 * tall * y + height - 1
        grid = affine_grid(theta.to(pixels.device), list(pixels.shape), align_corners=False)
        return grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def clipped(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """((n, 4) what of the boxes is in the picture, (n,) whether that is enough of them)."""
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    cut = corners.clamp(0, 1)
    size = cut[:, 2:] - cut[:, :2]
    share = size.prod(1) / boxes[:, 2:].prod(1).clamp(min=1e-12)
    return torch.cat([(cut[:, :2] + cut[:, 2:]) / 2, size], 1), (share >= SEEN) & (size > 0).all(1)


def augmented(
    pixels: torch.Tensor, inside: torch.Tensor, boxes: Sequence[torch.Tensor], strength: str
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """(pixels (B, 3, H, W), for each picture (boxes (k, 4), (k,) numbers of those that are left)) as a random look shows them."""
    if strength == "none":
        return pixels, [(one, torch.arange(len(one), device=one.device)) for one in boxes]
    move = Move.drawn(len(pixels), strength)
    left = []
    for i, one in enumerate(boxes):
        cut, enough = clipped(move.boxes(i, one))
        left.append((cut[enough], torch.nonzero(enough)[:, 0]))
    return recoloured(move.pictures(pixels, inside), STRENGTH[strength][3]), left
