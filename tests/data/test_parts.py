"""A column `split` parts a lone table, wherever it is read from: its test rows are never learnt from."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from affinage.data import read
from affinage.errors import AffinageError

SPLITS = ("train", "Test", "train", "dev", "test", "train")
ROWS = [{"text": f"row {i}", "label": "ab"[i % 2], "split": split} for i, split in enumerate(SPLITS)]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf8")
    else:
        with path.open("w", newline="", encoding="utf8") as file:
            table = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    return path


def sources(form: str, folder: Path, rows: list[dict[str, Any]]) -> Any:
    if form == "list":
        return rows
    if form == "columns":
        return {key: [row[key] for row in rows] for key in rows[0]}
    if form == "frame":
        return pytest.importorskip("pandas").DataFrame(rows)
    if form == "dataset":
        return pytest.importorskip("datasets").Dataset.from_list(rows)
    return written(folder / f"reviews{form}", rows)


FORMS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", "list", "columns", "frame", "dataset")


@pytest.mark.parametrize("form", FORMS)
def test_the_column_parts_the_rows(form: str, tmp_path: Path) -> None:
    found = read(sources(form, tmp_path, ROWS))
    assert found.validation is not None and found.test is not None
    assert [list(split.inputs) for split in (found.train, found.validation, found.test)] == [
        ["row 0", "row 2", "row 5"], ["row 3"], ["row 1", "row 4"]]  # fmt: skip
    assert list(found.test.targets) == ["b", "a"]
    ids = [*found.train.ids, *found.validation.ids, *found.test.ids]
    assert len(set(ids)) == 6
    whole = read(sources(form, tmp_path, [{k: row[k] for k in ("text", "label")} for row in ROWS]))
    assert sorted(ids) == sorted(whole.train.ids)  # the numbers of the file, parted or not


@pytest.mark.parametrize("form", FORMS)
def test_a_column_that_names_no_split_is_another_thing(form: str, tmp_path: Path) -> None:
    found = read(sources(form, tmp_path, [{**row, "split": "7-10"} for row in ROWS]))
    assert len(found.train) == 6 and found.test is None


@pytest.mark.parametrize("form", FORMS)
def test_a_slip_of_the_pen_is_told(form: str, tmp_path: Path) -> None:
    with pytest.raises(AffinageError, match=r"a row whose split is 'tset': expected one of train"):
        read(sources(form, tmp_path, [*ROWS, {**ROWS[0], "split": "tset"}]))


def test_a_file_of_one_split_says_which(tmp_path: Path) -> None:
    found = read(written(tmp_path / "later.csv", [{**row, "split": "test"} for row in ROWS]))
    assert found.only == "test" and len(found.train) == 6


def test_a_file_named_after_a_split_beside_others_is_that_split(tmp_path: Path) -> None:
    for name in ("train.csv", "test.csv"):
        written(tmp_path / name, [{**row, "split": "x"} for row in ROWS[: 2 if name == "test.csv" else 4]])
    found = read(tmp_path)
    assert found.test is not None and (len(found.train), len(found.test)) == (4, 2)


def test_a_large_file_is_not_parted_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "large.parquet", ROWS)
    monkeypatch.setenv("AFFINAGE_MEMORY_GB", "1e-9")
    with pytest.raises(AffinageError, match=r"large\.parquet holds several splits, and is too large to part"):
        read(path)
