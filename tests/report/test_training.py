"""How it came about: the strip has every part, the costs add up, the curve marks what was kept."""

from __future__ import annotations

import json
import re
from typing import Any

from affinage.report import training
from affinage.report.folder import read


def test_the_strip_has_every_part_and_frozen_ones_have_no_colour(made_run: Any) -> None:
    found = training.learning(read(made_run(["a", "b"])))
    assert re.findall(r"<span>(\w+)</span>", found) == ["stem", "0", "1", "2", "3", "4", "5", "head"]
    assert found.count('<div class="off" title') == 4 and len(re.findall(r'class="on" style="--s:\d+%"', found)) == 4
    assert "rate 3.9e-5 to 8e-5" in found  # neighbours are one row


def test_the_costs_are_told_to_the_last_second(made_run: Any) -> None:
    around = {"encoding": {"seconds": 1.0, "cpu_seconds": 1.0}, "measuring": {"seconds": 0.8, "cpu_seconds": 0.8}}
    found = training.costs(read(made_run(["a", "b"], cost_parts=around)))
    # 446 in all, of which 31.2 + 412 in stages and 1.8 in the parts above
    assert re.findall(r'scope="row">([\w ]+)<', found) == ["reading", "head", "body", "measuring", "the rest", "all"]
    assert '<td class="n">1.0 s</td><td class="n">0.8 s</td>' in found
    assert "7 min 26 s" in found


def test_a_stage_that_was_put_back_shows_its_own_best(made_run: Any) -> None:
    folder = made_run(["a", "b"], kept="head")
    known = json.loads((folder / "run.json").read_text())
    known["stages"][1] |= {"validation": {"accuracy": 0.77}, "details": {"worse_than_before": True, "epochs": 2}}
    (folder / "run.json").write_text(json.dumps(known))
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"stage": "body", "step": 50, "split": "validation", "name": "accuracy", "value": 0.7, "seconds": 1.0}\n')
    found = training.costs(read(folder))
    assert "70.0 %" in found and "put back" in found


def test_the_curve_marks_what_was_kept_and_the_frozen_head(reviews_run: Any) -> None:
    found = training.curves(read(reviews_run))
    assert found.count('class="dots-kept"') == 1 and found.count('class="base"') == 1
