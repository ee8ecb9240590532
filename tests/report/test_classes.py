"""Class by class: every row is in the matrix wherever its class is put, and no number of classes breaks the page."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from affinage.report import classes
from affinage.report.folder import read


@pytest.mark.parametrize("many", [2, 30, 31, 120, 121])
def test_any_number_of_classes(made_run: Any, many: int) -> None:
    found = classes.classes(read(made_run([f"c{i}" for i in range(many)], n=500)).predictions)
    assert ('class="heat' in found) == (many <= 120)
    assert ("pairs most often confused" in found) == (many > 30)
    assert (f"<summary>All {many} classes" in found) == (many > 30)


def test_a_sorted_matrix_holds_every_row_and_keeps_its_diagonal(made_run: Any) -> None:
    p = read(made_run([f"c{i}" for i in range(60)], n=900)).predictions
    cells = re.findall(r'<td class="(right|wrong)[^>]* title="(c\d+) → (c\d+): (\d+) ', classes.matrix(p))
    assert sum(int(n) for *_, n in cells) == 900
    assert all((kind == "right") == (a == b) for kind, a, b, _ in cells)
    assert sum(int(n) for kind, *_, n in cells if kind == "right") == p.right.sum()


def test_classes_that_are_confused_become_neighbours() -> None:
    table = np.diag([8] * 6)
    for a, b in ((0, 3), (1, 4), (2, 5)):
        table[a, b] = table[b, a] = 4
    order = classes._neighbours(table).tolist()
    assert sorted(order) == list(range(6))
    assert all(abs(order.index(a) - order.index(b)) == 1 for a, b in ((0, 3), (1, 4), (2, 5)))
