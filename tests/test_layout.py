"""Layouts: which dimension is the rows, which the tokens, and that what was packed comes back as it lay."""

from __future__ import annotations

import pytest
import torch

from affinage.layout import Layout, Uncuttable


def test_layout_reads_shapes() -> None:
    def look(*shapes: tuple[int, ...]) -> Layout:
        return Layout.of(*(torch.zeros(s) for s in shapes), (3, 2), 9)  # type: ignore[arg-type]

    hidden = look((3, 9, 4), (2, 9, 4), (2, 5, 4))
    assert (hidden.batch, hidden.tokens, hidden.unit, hidden.shape(7, 11)) == (0, (1,), (4,), (7, 11, 4))
    windows = look((12, 9), (8, 9), (8, 9))  # four a row; 9 happens to be the number of tokens
    assert (windows.batch, windows.times, windows.tokens, windows.unit) == (0, 4, (), (4, 9))
    assert look((1, 9, 4), (1, 9, 4), (1, 5, 4)).batch is None
    assert look((3, 2, 9, 9), (2, 2, 9, 9), (2, 2, 5, 5)).tokens == (2, 3)
    for shapes in (((3, 4), (2, 4), (2, 3)), ((3, 4), (2, 4), (2, 4, 1)), ((3, 4), (3, 5), (3, 5))):
        with pytest.raises(Uncuttable):
            look(*shapes)


@pytest.mark.parametrize("left", [False, True])
def test_pack_and_unpack(left: bool) -> None:
    """Real tokens only, whichever side is padded; memory comes back in the order in which it lay."""
    places, lengths = torch.arange(9), torch.tensor([3, 9, 5, 7, 4])[:, None]
    mask = (places >= 9 - lengths if left else places < lengths).long()
    hidden = torch.randn(5, mask.shape[1], 4) * mask[:, :, None]
    layout = Layout((3, 9, 4), 0, 1, (1,), (0, 1, 2), torch.float32)
    units = layout.pack(hidden, mask)
    assert units.shape == (int(mask.sum()), 4)
    assert torch.equal(layout.unpack(units, mask, 5, mask.shape[1]), hidden)
    pictures = torch.randn(5, 3, 6, 7).contiguous(memory_format=torch.channels_last)
    layout = Layout.of(pictures[:3], pictures[:2], pictures[:2], (3, 2), 0)
    back = layout.unpack(layout.pack(pictures, None), None, 5, 0)
    assert torch.equal(back, pictures) and back.stride() == pictures.stride()
