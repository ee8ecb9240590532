"""The demo runs from end to end, and its table says what its runs say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo.py"


@pytest.mark.slow
def test_the_demo_leaves_its_runs_and_prints_one_row_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None and spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)

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
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None and spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)

    def verdict(two_stage: list[float], scratch: list[float]) -> str:
        return demo.shown({"two-stage": [{"accuracy": a} for a in two_stage], "scratch": [{"accuracy": a} for a in scratch]})

    assert "pretrained network in two stages is better" in verdict([0.9, 0.91, 0.92], [0.8, 0.8, 0.8])
    assert "from scratch is better" in verdict([0.8, 0.8, 0.8], [0.9, 0.91, 0.92])
    assert "no difference" in verdict([0.9, 0.7, 0.8], [0.8, 0.8, 0.8])
