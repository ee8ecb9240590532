"""Boxes are drawn where they are, the surest on top."""

from __future__ import annotations

import numpy as np
from PIL import Image

from affinage.pictures import drawn


def test_drawn() -> None:
    boxes = [
        {"label": "a", "score": 0.9, "box": [10.0, 20.0, 60.0, 80.0]},
        {"label": "b", "score": 0.6, "box": [10.0, 20.0, 60.0, 80.0]},
    ]
    plain = Image.new("RGB", (100, 100))
    found = np.asarray(drawn(plain, boxes))
    assert np.asarray(plain).max() == 0  # the picture itself stays as it is
    assert found[50, 10].tolist() == found[79, 60].tolist() == [255, 122, 47]  # the first class's, as it is the surest
    assert found[50, 35].max() == 0 and found[90, 50].max() == 0
    assert np.array_equal(np.asarray(drawn(plain, [])), np.asarray(plain))
