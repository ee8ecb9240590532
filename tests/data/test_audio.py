"""Tables of recordings: their usual names, splits, columns; and what is not one is left to the other readers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from affinage import data
from affinage.data import audio
from affinage.errors import AffinageError
from affinage.types import Columns

from .. import tiny

soundfile = pytest.importorskip("soundfile")


def recording(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tiny.note(440, 0.1, 8000, seed), 8000, format="WAV")
    return buffer.getvalue()


def table(folder: Path, text: str, name: str = "metadata.csv", files: int = 6) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(files):
        (folder / f"{i}.wav").write_bytes(recording(i))
    (folder / name).write_text(text, encoding="utf8")
    return folder


@pytest.mark.parametrize("column", ["transcription", "transcript", "sentence", "text"])
@pytest.mark.parametrize("file", ["file_name", "path", "audio"])
def test_usual_names(column: str, file: str, tmp_path: Path) -> None:
    found = data.read(table(tmp_path, f"{file},{column}\n0.wav,one  two\n1.wav,three\n"))
    assert (found.kind, found.labels, found.train.targets) == ("audio", "transcript", ["one two", "three"])
    assert found.train.inputs == [tmp_path / "0.wav", tmp_path / "1.wav"] and found.train.ids[0] == "metadata.csv:2"


def test_jsonl_tsv_and_a_file_itself(tmp_path: Path) -> None:
    lines = '{"file_name": "0.wav", "text": "a"}\n{"file_name": "1.wav", "text": "b"}\n'
    assert data.read(table(tmp_path / "a", lines, "metadata.jsonl")).train.targets == ["a", "b"]
    folder = table(tmp_path / "b", "path\ttext\n0.wav\tx, y\n", "some.tsv")
    assert data.read(folder / "some.tsv").train.targets == ["x, y"]


def test_splits_by_column_and_by_folder(tmp_path: Path) -> None:
    rows = "file_name,text,split\n0.wav,a,train\n1.wav,b,test\n2.wav,c,dev\n3.wav,d,train\n"
    found = data.read(table(tmp_path / "a", rows))
    assert {name: split.targets for name, split in found.splits()} == {"train": ["a", "d"], "validation": ["c"], "test": ["b"]}
    for split in ("train", "test"):
        table(tmp_path / "b" / split, f"file_name,text\n0.wav,{split}\n")
    assert {name: split.targets for name, split in data.read(tmp_path / "b").splits()} == {"train": ["train"], "test": ["test"]}
    with pytest.raises(AffinageError, match="a row whose split is 'tset'"):
        data.read(table(tmp_path / "c", rows.replace(",b,test", ",b,tset")))


def test_classes_and_transcripts_in_one_table(tmp_path: Path) -> None:
    folder = table(tmp_path, "file_name,text,label\n0.wav,one two,x\n1.wav,three,y\n")
    assert data.read(folder).labels == "transcript"
    found = data.read(folder, columns=Columns(labels="class"), kind="audio")
    assert (found.labels, found.train.targets) == ("class", ["x", "y"])
    assert data.read(folder, columns=Columns(label="label")).labels == "class"
    with pytest.raises(AffinageError, match=r"has no label column .*--label-column, or call it label"):
        data.read(table(tmp_path / "b", "file_name,text\n0.wav,a\n"), columns=Columns(labels="class"), kind="audio")


def test_rows_without_sound_or_words_are_left_out_and_named(tmp_path: Path) -> None:
    found = data.read(table(tmp_path, "file_name,text\n0.wav,a\n1.wav,\n9.wav,c\n"))
    assert found.train.targets == ["a"] and dict(found.unreadable) == {
        "metadata.csv:3": "no transcript",
        "metadata.csv:4": "no such file",
    }
    with pytest.raises(AffinageError, match=r"none of the 1 rows of metadata\.csv has a transcript"):
        data.read(table(tmp_path / "b", "file_name,text\n0.wav,\n"))


def test_what_is_wrong_with_a_table_is_told_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.wav", "text": "a"}\n{"file_name": \n', encoding="utf8")
    (tmp_path / "0.wav").write_bytes(recording())
    with pytest.raises(AffinageError, match=r"metadata\.jsonl line 2 is not JSON: Expecting value at column"):
        data.read(tmp_path)
    other = tmp_path / "b"
    other.mkdir()
    (other / "metadata.csv").write_text("file_name,transcription\n0.m4a,a\n", encoding="utf8")
    with pytest.raises(AffinageError, match="or say --task automatic-speech-recognition if these are recordings"):
        data.read(other)
    with pytest.raises(AffinageError, match=r"no recording file; expected one of \.wav"):
        data.read(other, kind="audio", columns=Columns(labels="transcript"))


def test_other_tables_are_not_its(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,b\n", encoding="utf8")
    (tmp_path / "broken.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "none.csv").write_text("", encoding="utf8")
    for name in ("a.csv", "broken.csv", "none.csv", "gone.csv", "."):
        assert not audio.accepts(tmp_path / name)
    assert not audio.accepts([{"text": "a"}])


@pytest.mark.parametrize("cell", ["bytes", "array", "pair", "path"])
def test_in_memory_and_parquet(cell: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "0.wav").write_bytes(recording())
    samples = tiny.note(440, 0.1, 8000, 0)
    thing: Any = {
        "bytes": {"bytes": recording(), "path": None},
        "array": {"array": samples, "sampling_rate": 8000},
        "pair": (samples, 8000),
        "path": str(tmp_path / "0.wav"),
    }[cell]
    found = data.read([{"audio": thing, "sentence": "a"}, {"audio": thing, "sentence": "b"}])
    assert (found.kind, found.labels, found.train.targets) == ("audio", "transcript", ["a", "b"])
    if cell in ("bytes", "path"):
        pq.write_table(pa.table({"audio": [thing, thing], "sentence": ["a", "b"]}), tmp_path / "a.parquet")
        again = data.read(tmp_path / "a.parquet")
        assert (again.kind, again.labels, again.train.targets) == ("audio", "transcript", ["a", "b"])
        assert again.train.inputs == found.train.inputs


def test_large_parquet_goes_to_the_disk_with_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"bytes": recording(i), "path": None} for i in range(8)]
    pq.write_table(pa.table({"audio": rows, "text": [f"t{i}" for i in range(8)]}), tmp_path / "a.parquet")
    held = data.read(tmp_path / "a.parquet")
    monkeypatch.setenv("AFFINAGE_MEMORY_GB", "0.000001")
    spooled = data.read(tmp_path / "a.parquet")
    assert not isinstance(spooled.train.inputs, list)
    assert list(spooled.train.inputs) == list(held.train.inputs) and spooled.labels == held.labels == "transcript"
    assert list(spooled.train.targets) == list(held.train.targets)


def test_class_folders(tmp_path: Path) -> None:
    found = data.read(tiny.tones(tmp_path, 6, 3, 3))
    assert (found.kind, found.labels, len(found.train)) == ("audio", "class", 6) and set(found.train.targets) == set(tiny.NOTES)


@pytest.mark.parametrize("name", ["fsdd", "ljtext_reader", "an4_tiny", "yesno"])
def test_real_sets(name: str, shared_data: Path) -> None:
    found = data.read(shared_data / name)
    assert (found.kind, found.labels) == ("audio", "transcript") and not found.unreadable
    assert {split: len(rows) for split, rows in found.splits()} == {
        "fsdd": {"train": 2700, "test": 300},
        "ljtext_reader": {"train": 141},
        "an4_tiny": {"train": 30, "test": 10},
        "yesno": {"train": 20},
    }[name]
    assert np.isfinite([soundfile.info(str(path)).frames for path in list(found.train.inputs)[:5]]).all()
