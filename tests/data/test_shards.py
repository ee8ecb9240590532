"""Parquet beyond memory gives the very rows that Parquet in memory gives, and says the same of what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from affinage.check import check, without_leaks
from affinage.data import read, shards
from affinage.errors import AffinageError
from affinage.spool import Cells
from affinage.types import Columns, Data

from .. import tiny

Small = Callable[[], None]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Small:
    """Called: from now on nothing fits in memory."""
    return lambda: monkeypatch.setenv("AFFINAGE_MEMORY_GB", "0")


def parquet(path: Path, columns: dict[str, Any], group: int = 7, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=group, **options)
    return path


def texts(count: int = 30, first: int = 0) -> dict[str, Any]:
    rows = tiny.rows(first + count, 0)[first:]
    return {"text": [row["text"] for row in rows], "label": [row["label"] for row in rows], "other": list(range(count))}


def told(data: Data) -> dict[str, Any]:
    parts = {name: (list(split.inputs), list(split.targets), list(split.ids)) for name, split in data.splits()}
    return {"kind": data.kind, "classes": data.classes, "unreadable": data.unreadable, **parts}


def both(source: Path, small: Small, **more: Any) -> Data:
    """The data as read without memory, once it is known to be that in memory."""
    in_memory = read(source, **more)
    small()
    lazy = read(source, **more)
    assert isinstance(in_memory.train.inputs, list) and isinstance(lazy.train.inputs, Cells)
    assert told(lazy) == told(in_memory)
    return lazy


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_texts_in_shards(compression: str, tmp_path: Path, small: Small) -> None:
    for i in range(3):
        parquet(tmp_path / f"train-{i:05d}-of-00003.parquet", texts(30, 30 * i), compression=compression)
    parquet(tmp_path / "validation.parquet", texts(10, 90))
    data = both(tmp_path, small)
    assert len(data.train) == 90 and data.train.ids[31] == "train-00001-of-00003.parquet:1"
    taken = data.train.take([89, 0, 5]).take([2, 0])
    assert list(taken.inputs) == [data.train.inputs[5], data.train.inputs[89]] and taken.ids[:] == taken.ids[0:2]


def test_pictures(tmp_path: Path, small: Small) -> None:
    files = sorted(tiny.pictures(tmp_path / "folder").rglob("train/*/*.png"))
    cells = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    parquet(tmp_path / "data" / "train.parquet", {"image": cells, "label": [file.parent.name for file in files]})
    data = both(tmp_path / "data", small)
    assert data.kind == "image" and data.train.inputs[3] == files[3].read_bytes()


def test_paths_of_pictures(tmp_path: Path, small: Small) -> None:
    files = sorted(tiny.pictures(tmp_path / "folder").rglob("train/*/*.png"))
    names = [*(str(file.relative_to(tmp_path)) for file in files), "none.png"]
    parquet(tmp_path / "train.parquet", {"path": names, "label": [*(file.parent.name for file in files), "spot"]})
    data = both(tmp_path / "train.parquet", small)
    assert list(data.train.inputs) == files and data.unreadable == (("train.parquet:36", "no such file"),)


def test_declared_classes(tmp_path: Path, small: Small) -> None:
    schema = pa.schema([("text", pa.string()), ("label", pa.int64())])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": {"label": {"names": ["b", "a"]}}}})})
    pq.write_table(pa.table({"text": ["x", "y", "z"], "label": [0, 1, 0]}, schema=schema), tmp_path / "train.parquet")
    assert both(tmp_path / "train.parquet", small).train.targets == ["b", "a", "b"]


def test_empty_texts_and_a_secret_test(tmp_path: Path, small: Small) -> None:
    rows = texts(20)
    rows["text"][11] = "  "
    parquet(tmp_path / "train.parquet", rows)
    parquet(tmp_path / "test.parquet", {"text": ["a", "b"], "label": pa.array([None, None], pa.string())}, group=1)
    data = both(tmp_path, small)
    assert data.test is None and ("train.parquet:11", "empty text") in data.unreadable


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        ({"text": ["a", "b"], "label": ["x", None]}, "have no label"),
        ({"text": ["a", None], "label": ["x", "y"]}, "have no text"),
        ({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}, "holds no rows"),
        ({"text": ["a"], "class": ["x"]}, "no label column"),
        ({"image": ["http://a/b.png"], "label": ["x"]}, "web addresses"),
    ],
)
def test_what_is_wrong_is_said_as_ever(columns: dict[str, Any], word: str, tmp_path: Path, small: Small) -> None:
    parquet(tmp_path / "train.parquet", columns)
    for _ in range(2):
        with pytest.raises(AffinageError, match=word):
            read(tmp_path / "train.parquet")
        small()


def test_a_damaged_file(tmp_path: Path, small: Small) -> None:
    path = parquet(tmp_path / "train.parquet", texts(300), compression="zstd")
    whole = path.read_bytes()
    small()
    path.write_bytes(whole[:1000] + bytes(500) + whole[1500:])
    with pytest.raises(AffinageError, match=r"train\.parquet is not a readable Parquet file"):
        read(path)
    path.write_bytes(whole[:-20])
    with pytest.raises(AffinageError, match=r"train\.parquet is not a readable Parquet file"):
        read(path)


def test_pictures_beside_paths_are_refused(tmp_path: Path, small: Small) -> None:
    file = next(tiny.pictures(tmp_path / "folder").rglob("*.png"))
    cells = [{"bytes": file.read_bytes(), "path": None}, {"bytes": None, "path": str(file)}]
    parquet(tmp_path / "train.parquet", {"image": cells, "label": ["a", "b"]})
    small()
    with pytest.raises(AffinageError, match=r"train\.parquet:1 .*mix encoded pictures with paths"):
        read(tmp_path / "train.parquet")


def test_the_threshold_is_told_by_the_footer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = shards.looked(parquet(tmp_path / "train.parquet", texts(30)), Columns(), None)
    assert (shard.kind, shard.input, shard.label, shard.rows) == ("text", "text", "label", 30)
    content = sum(len(text) + 4 for text in texts(30)["text"])
    assert content <= shard.bytes < 2 * content + 1000
    monkeypatch.setenv("AFFINAGE_MEMORY_GB", str((shard.bytes + 30 * shards.A_CELL) / 10**9))
    assert not shards.large([shard]) and shards.large([shard, shard])


def test_no_room_is_told_before_the_work(tmp_path: Path, small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "train.parquet", texts(30))
    small()
    monkeypatch.setattr("affinage.spool.free", lambda: 10)
    with pytest.raises(AffinageError, match=r"the column 'text' of train\.parquet needs .*AFFINAGE_CACHE"):
        read(path)


def test_the_check_finds_what_it_finds_in_memory(tmp_path: Path, small: Small) -> None:
    rows = texts(40)
    rows["text"][7], rows["text"][8], rows["label"][8] = rows["text"][3], "A  b!", "tool"
    parquet(tmp_path / "train.parquet", rows)
    parquet(tmp_path / "test.parquet", {"text": [rows["text"][5], "a B", "new"], "label": ["fish", "fish", "tool"]})
    in_memory = read(tmp_path)
    small()
    lazy = read(tmp_path)
    found = check(lazy)
    assert found == check(in_memory)
    assert {"duplicate-across-splits", "near-duplicate-across-splits", "duplicate-in-train"} <= {one.kind for one in found}
    assert told(without_leaks(lazy, found)) == told(without_leaks(in_memory, found))
