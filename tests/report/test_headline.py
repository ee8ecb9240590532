"""The first screen: what it says of candidates, chance and leaks follows from the records, and is never kinder than they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from affinage.record import Record, Records
from affinage.report import headline, screen
from affinage.report.folder import read


def written(folder: Path, head: float, body: list[float], kept: str, losses: tuple[float, ...] = (), **changes: Any) -> Path:
    """The run with these validation accuracies: of the solved head, and of each epoch of the stage after it."""
    known = json.loads((folder / "run.json").read_text())
    known |= {"kept": kept, "validation": {"accuracy": max([head, *body]), "n": 100}} | changes
    (folder / "run.json").write_text(json.dumps(known))
    (folder / "records.jsonl").unlink()
    log = Records(folder / "records.jsonl")
    log.add(Record("head", 0, "validation", "accuracy", head, 1.0))
    for epoch, value in enumerate(body, 1):
        log.add(Record("body", epoch * 10, "validation", "accuracy", value, 2.0))
    for epoch, value in enumerate(losses, 1):
        log.add(Record("body", epoch * 10, "validation", "log_loss", value, 2.0))
    log.close()
    return folder


def test_a_tuned_network_that_won(made_run: Any) -> None:
    run = read(written(made_run(["a", "b"]), 0.5, [0.6, 0.9, 0.8], "body, epoch 2"))
    frozen, tuned = headline.candidates(run)
    assert (frozen.solved, frozen.value, frozen.kept) == (True, 0.5, False)
    assert (tuned.solved, tuned.value, tuned.step, tuned.kept) == (False, 0.9, 20, True)
    said = headline.verdict(run)
    assert "Tuning helped" in said and "90.0 %" in said and "50.0 %" in said and "luck" not in said


def test_a_small_difference_is_called_what_it_is(made_run: Any) -> None:
    said = headline.verdict(read(written(made_run(["a", "b"]), 0.80, [0.82], "body, epoch 1")))
    assert "On 100 rows the difference may be luck" in said


@pytest.mark.parametrize(
    ("kept", "said"), [("body, epoch 1", "the tuned network was kept"), ("head", "the frozen head was kept")]
)
def test_equal_accuracy_is_not_called_help(made_run: Any, kept: str, said: str) -> None:
    found = headline.verdict(read(written(made_run(["a", "b"]), 0.75, [0.75], kept)))
    assert "Tuning and the frozen head got the same 75.0 %" in found and said in found and "helped" not in found


def test_a_frozen_head_that_won_shows_the_score_that_tuning_really_had(made_run: Any) -> None:
    folder = written(made_run(["a", "b"]), 0.8, [0.6, 0.7], "head")
    said = headline.verdict(read(folder))
    assert "Tuning did not help" in said and "tuning reached 70.0 %" in said
    # and what was put back is not said to have learned, on the page as on the screen
    assert "770 of 22.6 M" in headline.headline(read(folder))
    lines = dict(screen.summary(json.loads((folder / "run.json").read_text()))[1][1])
    assert lines["blocks.3–5"].endswith("put back") and lines["head"].endswith("solved")


def test_equal_accuracy_is_decided_by_the_log_loss(made_run: Any) -> None:
    folder = written(made_run(["a", "b"]), 0.5, [0.9, 0.9], "body, epoch 2", losses=(0.5, 0.3))
    assert headline.candidates(read(folder))[1].step == 20


def test_low_rank_updates_are_counted_as_what_they_are(made_run: Any) -> None:
    folder = written(made_run(["a", "b"]), 0.5, [0.9], "body, epoch 1")
    known = json.loads((folder / "run.json").read_text())
    known["plan"]["lora"] = 8
    known["stages"][1]["details"]["trained_parameters"] = 300_000
    (folder / "run.json").write_text(json.dumps(known))
    assert "300 k of 22.6 M" in headline.headline(read(folder))
    assert dict(screen.summary(known)[1][1])["blocks.3–5"].endswith("low-rank, rate 3.9e-5 to 8e-5")


def test_no_better_than_one_answer(made_run: Any) -> None:
    folder = made_run(["a", "b"], n=300)
    test = {"accuracy": 0.52, "accuracy_interval": [0.46, 0.58], "n": 300}
    said = headline.verdict(read(written(folder, 0.5, [0.5], "head", test=test)))
    assert "No better than always answering" in said


@pytest.mark.parametrize(("leaks", "told"), [("allow", True), ("drop", False)])
def test_a_leak_that_was_allowed_stands_beside_the_score(made_run: Any, leaks: str, told: bool) -> None:
    folder = made_run(["a", "b"], settings={"leaks": leaks})
    assert ("The splits leak" in headline.headline(read(folder))) == told


def test_without_validation_nothing_is_compared(made_run: Any) -> None:
    folder = made_run(["a", "b"], validation={})
    said = headline.verdict(read(folder))
    assert "without a validation split" in said and "Tuning" not in said


def test_a_failed_run_says_why(made_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    failed: dict[str, Any] = {"status": "failed", "error": "the loss is nan", "test": {}, "validation": {}}
    folder = written(made_run(["a", "b"]), 0.5, [], "head")
    (folder / "run.json").write_text(json.dumps(json.loads((folder / "run.json").read_text()) | failed))
    (folder / "predictions.parquet").unlink()
    assert "the loss is nan" in headline.headline(read(folder))
    screen.show(folder)
    out = capsys.readouterr().out
    assert "status: failed" in out and "error: the loss is nan" in out
