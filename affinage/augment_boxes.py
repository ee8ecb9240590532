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

    def boxes(self, of: int | torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """(n, 4) centre x, centre y, width, height of picture `of`, or of the pictures (n,) that each stands in, where they
        stand in what is seen of it; not clipped."""
        corner, size = self._windows(of, boxes)
        return self._mirrored(of, (boxes - corner) / size)

    def undone(self, of: int | torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """The inverse of `boxes`."""
        corner, size = self._windows(of, boxes)
        return self._mirrored(of, boxes) * size + corner

    def _windows(self, of: int | torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is taken from boxes, and what they are divided by: each (n, 4) or (4,)."""
        corner, size = self.window[of].to(boxes).split(2, -1)
        return torch.cat([corner, torch.zeros_like(corner)], -1), torch.cat([size, size], -1)

    def _mirrored(self, of: int | torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        flip = self.flip[of].to(boxes.device)
        return torch.where(flip[..., None], torch.cat([1 - boxes[:, :1], boxes[:, 1:]], 1), boxes)

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
    counts = torch.tensor([len(one) for one in boxes])
    of = torch.repeat_interleave(torch.arange(len(boxes)), counts)
    cut, enough = clipped(move.boxes(of, torch.cat(list(boxes))))
    # all boxes at once: on a GPU a look at each picture's own waits for the card each time
    kept = torch.nonzero(enough)[:, 0]
    mine = of.to(kept.device)[kept]
    number = kept - (counts.cumsum(0) - counts).to(kept.device)[mine]
    sizes = torch.bincount(mine, minlength=len(boxes)).tolist()
    left = list(zip(cut[kept].split(sizes), number.split(sizes), strict=True))
    return recoloured(move.pictures(pixels, inside), STRENGTH[strength][3]), left
