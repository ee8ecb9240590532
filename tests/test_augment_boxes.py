"""Boxes go where the picture goes: a painted rectangle is found where its box was moved to, and moving is undone exactly."""

from __future__ import annotations

import pytest
import torch

from affinage.augment_boxes import STRENGTH, Move, augmented, clipped


def painted(boxes: torch.Tensor, height: int, width: int, inside: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) of 0, with 1 where the one box of each picture is; `inside` as in `Move.pictures`."""
    pictures = torch.zeros(len(boxes), 3, height, width)
    for i, (x, y, w, h) in enumerate(boxes.tolist()):
        tall, wide = height * inside[i, 0].item(), width * inside[i, 1].item()
        top, bottom = round((y - h / 2) * tall), round((y + h / 2) * tall)
        pictures[i, :, top:bottom, round((x - w / 2) * wide) : round((x + w / 2) * wide)] = 1
    return pictures


@pytest.mark.parametrize("strength", STRENGTH)
@pytest.mark.parametrize("share", [(1.0, 1.0), (0.75, 0.5)])
def test_the_picture_moves_with_its_box(strength: str, share: tuple[float, float]) -> None:
    torch.manual_seed(0)
    count, height, width = 40, 96, 128
    inside = torch.tensor([share] * count)
    boxes = torch.cat([torch.empty(count, 2).uniform_(0.3, 0.7), torch.empty(count, 2).uniform_(0.2, 0.4)], 1)
    move = Move.drawn(count, strength)
    seen = move.pictures(painted(boxes, height, width, inside), inside)[:, 0] > 0.5
    looked = 0
    for i in range(count):
        where, enough = clipped(move.boxes(i, boxes[i : i + 1]))
        if not enough.item():
            continue
        ys, xs = torch.nonzero(seen[i], as_tuple=True)
        x, y, w, h = where[0].tolist()
        tall, wide = height * share[0], width * share[1]
        found = [xs.min().item(), ys.min().item(), xs.max().item() + 1, ys.max().item() + 1]
        wanted = [(x - w / 2) * wide, (y - h / 2) * tall, (x + w / 2) * wide, (y + h / 2) * tall]
        # painting rounds to whole pixels, and a window of half the side makes two of one
        edge = [wide, tall, wide, tall]  # beyond the picture's own area lies padding, which nothing is held against
        assert all(abs(min(a, e) - b) <= 3 for a, b, e in zip(found, wanted, edge, strict=True)), (i, found, wanted)
        looked += 1
    assert looked > count / 2


def test_moving_is_undone() -> None:
    torch.manual_seed(1)
    move = Move.drawn(20, "strong")
    for i in range(20):
        boxes = torch.rand(7, 4)
        assert torch.allclose(move.undone(i, move.boxes(i, boxes)), boxes, atol=1e-5)
    assert move.flip.any() and not move.flip.all()
    assert (move.window[:, 2] > 1).any() and (move.window[:, 2] < 0.7).any()


def test_nothing_moves_without_a_wish() -> None:
    pixels, boxes = torch.rand(2, 3, 8, 8), [torch.rand(3, 4), torch.zeros(0, 4)]
    seen, left = augmented(pixels, torch.ones(2, 2), boxes, "none")
    assert seen is pixels and left[0][0] is boxes[0] and left[0][1].tolist() == [0, 1, 2] and left[1][1].tolist() == []


def test_what_is_left_lies_in_the_picture() -> None:
    torch.manual_seed(2)
    boxes = [torch.cat([torch.rand(9, 2), torch.rand(9, 2) * 0.3 + 0.02], 1) for _ in range(30)]
    seen, left = augmented(torch.rand(30, 3, 32, 32), torch.ones(30, 2), boxes, "strong")
    assert seen.shape == (30, 3, 32, 32) and seen.isfinite().all()
    total = 0
    for cut, numbers in left:
        assert len(cut) == len(numbers) and (cut[:, 2:] > 0).all()
        assert (cut[:, :2] - cut[:, 2:] / 2 >= -1e-6).all() and (cut[:, :2] + cut[:, 2:] / 2 <= 1 + 1e-6).all()
        total += len(cut)
    assert 100 < total < 270  # some left the picture


def test_a_box_mostly_out_of_sight_is_not_taught() -> None:
    cut, enough = clipped(torch.tensor([[0.0, 0.5, 0.2, 0.2], [-0.08, 0.5, 0.2, 0.2], [1.5, 0.5, 0.2, 0.2]]))
    assert enough.tolist() == [True, False, False] and torch.allclose(cut[0], torch.tensor([0.05, 0.5, 0.1, 0.2]))
