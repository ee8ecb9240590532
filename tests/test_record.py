"""Records: what was written is read back in its order, and what came after a checkpoint is dropped."""

from __future__ import annotations

from pathlib import Path

from affinage.record import Record, Records, read

FACTS = [Record("body", step, "train", "loss", 1 / (step + 3), step * 0.1) for step in range(5)]


def written(path: Path, facts: list[Record], keep: int | None = None) -> Records:
    records = Records(path, keep)
    for fact in facts:
        records.add(fact)
    records.flush()
    return records


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    written(path, FACTS).close()
    assert list(read(path)) == FACTS
    written(path, FACTS[:1]).close()  # a run that starts again
    assert list(read(path)) == FACTS[:1]


def test_what_was_flushed_can_be_read_at_once(tmp_path: Path) -> None:
    records = written(tmp_path / "records.jsonl", FACTS)
    assert list(read(records.path)) == FACTS
    records.close()


def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    written(path, FACTS).close()
    with path.open("a") as file:
        file.write('{"stage": "body", "st')  # the line that a kill cut in half
    records = written(path, FACTS[3:], keep=3)
    assert records.count == 5
    records.close()
    assert list(read(path)) == FACTS


def test_keep_without_a_file(tmp_path: Path) -> None:
    records = written(tmp_path / "records.jsonl", FACTS[:2], keep=0)
    assert records.count == 2
    records.close()
    assert list(read(records.path)) == FACTS[:2]
