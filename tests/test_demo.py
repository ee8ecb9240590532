"""The demos run from end to end, and their tables say what their runs say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script finds the modules beside it."""
    monkeypatch.syspath_prepend(EXAMPLES)


def loaded(name: str) -> ModuleType:
    """A module of examples/."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_demo_leaves_its_runs_and_prints_one_row_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = loaded("demo")

    out = tmp_path / "demo"
    found = demo.main(["--out", str(out), "--seeds", "2"])

    printed = capsys.readouterr().out
    for plan in demo.PLANS:
        assert any(line.startswith("│") and line.split("│")[1].strip() == plan for line in printed.splitlines()), printed
        for seed, row in enumerate(found[plan]):
            facts = json.loads((out / f"{plan}-{seed}" / "run.json").read_text(encoding="utf8"))
            assert facts["test"]["accuracy"] == row["accuracy"]
            assert facts["data"]["rows"]["train"] == demo.LABELS * len(demo.NEW)
            assert {stage["epochs"] for stage in facts["plan"]["stages"] if stage["how"] == "fit"} <= {demo.EPOCHS}  # one budget
            assert (out / f"{plan}-{seed}" / "report.html").stat().st_size > 0
    assert str(out / "two-stage-0" / "report.html") in printed
    assert demo.shown(found) in printed

    base = json.loads((out / "base" / "run.json").read_text(encoding="utf8"))["test"]["accuracy"]
    assert base > 0.9  # of five digits, seen with all their labels
    for plan in ("frozen", "two-stage"):
        assert min(row["accuracy"] for row in found[plan]) > 0.4  # chance is 0.2
    assert all("old" not in row for row in found["scratch"])
    for row in found["frozen"]:
        assert row["old"] == base  # a frozen body under the old head is the base itself, to the last picture


def test_the_verdict_follows_the_interval_whichever_side_it_lies_on() -> None:
    demo = loaded("demo")

    def verdict(two_stage: list[float], scratch: list[float]) -> str:
        return demo.shown({"two-stage": [{"accuracy": a} for a in two_stage], "scratch": [{"accuracy": a} for a in scratch]})

    assert "pretrained network in two stages is better" in verdict([0.9, 0.91, 0.92], [0.8, 0.8, 0.8])
    assert "from scratch is better" in verdict([0.8, 0.8, 0.8], [0.9, 0.91, 0.92])
    assert "no difference" in verdict([0.9, 0.7, 0.8], [0.8, 0.8, 0.8])


@pytest.mark.slow
def test_the_starters_demo_leaves_its_runs_and_the_starter_finds_more_than_scratch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = loaded("boxes")
    found = demo.main(["--out", str(tmp_path), "--seeds", "1"])

    printed = capsys.readouterr().out
    for arm in ("scratch", "two-stage"):
        facts = json.loads((tmp_path / f"{arm}-0" / "run.json").read_text(encoding="utf8"))
        assert facts["test"]["map50"] == found[arm][0]["map50"]
        assert facts["data"]["rows"] == {"train": demo.TRAIN, "test": demo.TEST}
        assert (tmp_path / f"{arm}-0" / "report.html").stat().st_size > 0
    assert demo.shown(found) in printed
    assert found["two-stage"][0]["map50"] > 0.3 > found["scratch"][0]["map50"]


def test_each_box_of_the_starters_demo_holds_one_digit_and_a_seed_is_a_draw() -> None:
    demo = loaded("boxes")
    white = np.full((1, 8, 8), 16.0)
    draw = np.random.default_rng(0)
    for _ in range(20):
        made = demo.picture(white, draw)
        pixels = np.asarray(made["image"], np.int64)
        for x, y, width, height in made["objects"]["bbox"]:
            assert width == height >= 24 and x >= 0 and x + width <= demo.SIDE and y >= 0 and y + height <= demo.SIDE
            inside = pixels[y : y + height, x : x + width].reshape(-1, 3)
            assert (np.abs(inside - np.median(inside, axis=0)).max(1) <= 1).mean() > 0.5  # a square of one colour lies there

    first, again, other = demo.rows(0), demo.rows(0), demo.rows(1)
    assert [r["objects"] for r in first["train"]] == [r["objects"] for r in again["train"]]
    assert [r["objects"] for r in first["train"]] != [r["objects"] for r in other["train"]]
    assert len(first["train"]) == demo.TRAIN and len(first["test"]) == demo.TEST


def test_no_digit_of_the_starters_demo_is_learnt_and_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    demo = loaded("boxes")
    monkeypatch.setattr(demo, "load_digits", lambda: type("Digits", (), {"images": np.arange(1797)}))
    monkeypatch.setattr(demo, "picture", lambda digits, draw: set(digits.tolist()))
    made = demo.rows(0)
    learnt, tested = set.union(*made["train"]), set.union(*made["test"])
    assert len(learnt) == demo.LEARNT and not learnt & tested and len(learnt | tested) == 1797


def test_the_starters_demo_says_what_the_interval_says() -> None:
    demo = loaded("boxes")

    def verdict(starter: list[float], scratch: list[float]) -> str:
        return demo.shown({"two-stage": [{"map50": a} for a in starter], "scratch": [{"map50": a} for a in scratch]})

    assert "starter-detector is better" in verdict([0.5, 0.52], [0.1, 0.1])
    assert "from scratch is better" in verdict([0.1, 0.1], [0.5, 0.52])
    assert "no difference" in verdict([0.1, 0.9], [0.4, 0.5])
