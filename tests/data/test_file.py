"""Delimited, JSON and Parquet files: what is read, and what is said of a file that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from affinage.data import read
from affinage.errors import AffinageError
from affinage.types import Columns


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "label,text\npos,good\nneg,bad\n"),
        ("a.csv", "\ufefflabel,text\npos,good\nneg,bad\n"),  # a byte order mark
        ("a.csv", "text;label\ngood;pos\nbad;neg\n"),
        ("a.csv", "label\ttext\r\npos\tgood\r\n\r\nneg\tbad\r\n"),  # tabs, CRLF, a blank line
        ("a.tsv", "sentence\tlabel\ngood\tpos\nbad\tneg\n"),
        ("a.csv", 'Label,Text\npos,"good"\n"neg",bad\n'),
        ("a.jsonl", '{"text": "good", "label": "pos"}\n\n{"label": "neg", "text": "bad"}\n'),
        ("a.json", '[{"text": "good", "label": "pos"}, {"text": "bad", "label": "neg"}]'),
    ],
)
def test_one_content_in_many_forms(tmp_path: Path, name: str, content: str) -> None:
    data = read(written(tmp_path / name, content))
    assert (data.kind, data.validation, data.test) == ("text", None, None)
    assert list(data.train.inputs) == ["good", "bad"]
    assert list(data.train.targets) == ["pos", "neg"]


def test_ids_are_the_lines_on_which_rows_begin(tmp_path: Path) -> None:
    data = read(written(tmp_path / "a.csv", 'label,text\npos,"two\nlines, ""quoted"""\nneg,bad\n'))
    assert list(data.train.ids) == ["a.csv:2", "a.csv:4"]
    assert data.train.inputs[0] == 'two\nlines, "quoted"'


def test_a_lone_quotation_mark_in_a_tab_separated_file_swallows_nothing(tmp_path: Path) -> None:
    melted = read(written(tmp_path / "b.tsv", 'label\ttext\nneg\t"sad at first.\npos\tgood in the end."\npos\tfine\n'))
    assert melted.train.inputs == ['"sad at first.', 'good in the end."', "fine"] and melted.train.targets == [
        "neg",
        "pos",
        "pos",
    ]
    data = read(written(tmp_path / "a.tsv", 'label\ttext\npos\t"good\nneg\tbad\npos\t"fine" it is\n'))
    assert list(data.train.inputs) == ['"good', "bad", '"fine" it is']


def test_a_cell_longer_than_the_modules_limit(tmp_path: Path) -> None:
    import csv

    before = csv.field_size_limit()
    assert len(read(written(tmp_path / "a.csv", f"label,text\na,{'x' * 200_000}\nb,y\n")).train.inputs[0]) == 200_000
    assert csv.field_size_limit() == before


def test_labels_that_are_numbers_become_names(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 2.0}, {"text": "c", "label": True}]
    data = read(written(tmp_path / "a.json", json.dumps(rows)))
    assert list(data.train.targets) == ["1", "2", "True"]


def test_rows_of_empty_text_are_left_out_and_counted(tmp_path: Path) -> None:
    data = read(written(tmp_path / "a.csv", "label,text\npos,good\nneg,\nneg,  \nneg,bad\n"))
    assert list(data.train.inputs) == ["good", "bad"]
    assert data.unreadable == (("a.csv:3", "empty text"), ("a.csv:4", "empty text"))


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.csv", "label,text\npos,caf\xe9\n".encode("latin-1"), "not UTF-8 .byte 0xe9.*iconv"),
        ("a.csv", "label,text\npos,good\n".encode("utf-16"), "a.csv is UTF-16, not UTF-8 .*iconv -f utf-16"),
        ("a.csv", "", "a.csv is empty"),
        ("a.csv", "label,text\n", "holds no rows"),
        ("a.csv", "class,text\na,b\n", "no label column .found: class, text.*--label-column"),
        ("a.csv", "label,body\na,b\n", "no text or image column .found: label, body.*--text-column"),
        ("a.csv", "label,text,image\na,b,c.png\n", "name one with --text-column or --image-column"),
        ("a.csv", "label,text\na,b,c\n", "line 2 has 3 fields, its header 2"),
        ("a.csv", 'label,text\na,"b\n', "line 2: unexpected end of data"),
        ("a.csv", "label,text\n,x\na,y\nNaN,z\n", "2 of 3 rows of a.csv have no label .a.csv:2, a.csv:4"),
        ("a.csv", "label,image\na,http://x.org/1.png\n", "download"),
        ("a.csv", "label,image\na,1.png\n", "none of the 1 image files"),
        ("a.csv", "label,path\na,1.midi\n", "'1.midi', which is no image file"),
        ("a.jsonl", '{"label": "a", "text": "x"}\n{"label": "a"}\n', "1 of 2 rows of a.jsonl have no text .a.jsonl:2"),
        ("a.jsonl", '{"label": "a", "text": "x"}\n{"label": \n', "line 2 is not JSON"),
        ("a.json", '{"label": "a"}', "not a list of objects"),
        ("a.json", '[{"label": ["a", "b"], "text": "x"}]', "label of type list"),
        ("a.parquet", "PAR1", "not a readable Parquet file"),
        ("a.xlsx", "x", "unknown kind; expected a folder or one of .csv"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(tmp_path: Path, name: str, content: str | bytes, word: str) -> None:
    with pytest.raises(AffinageError, match=word) as caught:
        read(written(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_named_columns(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "label,fine,text,body\na,1,x,y\nb,2,u,v\n")
    data = read(path, columns=Columns(text="body", label="fine"))
    assert (list(data.train.inputs), list(data.train.targets)) == (["y", "v"], ["1", "2"])
    with pytest.raises(AffinageError, match="no column 'boby', did you mean 'body'"):
        read(path, columns=Columns(text="boby"))


def test_image_paths_count_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    written(tmp_path / "pictures" / "1.png", b"not opened here")
    data = read(written(tmp_path / "a.csv", "file_name,label\npictures/1.png,cat\npictures/2.png,dog\n"))
    assert data.kind == "image"
    assert list(data.train.inputs) == [tmp_path / "pictures" / "1.png"]
    assert data.unreadable == (("a.csv:3", "no such file"),)


def test_kind_decides_between_text_and_image(tmp_path: Path) -> None:
    written(tmp_path / "1.png", b"x")
    path = written(tmp_path / "a.csv", "label,text,image\na,words,1.png\n")
    assert read(path, kind="text").train.inputs == ["words"]
    assert read(path, kind="image").train.inputs == [tmp_path / "1.png"]
    assert read(path, columns=Columns(image="image")).kind == "image"


def test_a_folder_of_files_is_one_data_set(tmp_path: Path) -> None:
    for name, text in (("train.csv", "a"), ("dev.tsv", "b"), ("test.jsonl", "c")):
        line = (
            json.dumps({"label": "x", "text": text}) if name.endswith("l") else f"label{'	' if 'tsv' in name else ','}text\n"
        )
        written(tmp_path / name, line if name.endswith("l") else line + line.replace("label", "x").replace("text", text))
    written(tmp_path / "classes.csv", "unrelated,table\n")
    data = read(tmp_path)
    assert {name: list(split.inputs) for name, split in data.splits()} == {"train": ["a"], "validation": ["b"], "test": ["c"]}


def test_paths_for_validation_and_test_replace_the_splits(tmp_path: Path) -> None:
    for name in ("train", "test", "other"):
        written(tmp_path / f"{name}.csv", f"label,text\na,{name}\n")
    data = read(tmp_path, validation=tmp_path / "train.csv", test=tmp_path / "other.csv")
    assert (list(data.validation.inputs), list(data.test.inputs)) == (["train"], ["other"])  # type: ignore[union-attr]
    with pytest.raises(AffinageError, match="no such file or folder"):
        read(tmp_path, test=tmp_path / "none.csv")


def test_text_as_bytes(tmp_path: Path) -> None:
    """As Spark and Hive write strings into Parquet; what is no UTF-8 is left out, what is no text refused."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    texts = [b"good", "schön".encode(), b"\xff"]
    parquet.write_table(pa.table({"text": pa.array(texts, pa.binary()), "label": ["a", "b", "a"]}), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet")
    assert found.train.inputs == ["good", "schön"]
    assert [why for _, why in found.unreadable] == ["text that is not UTF-8"]
    with pytest.raises(AffinageError, match="holds a list where a text is expected: name the column with --text-column"):
        read([{"text": ["good"], "label": "a"}, {"text": ["bad"], "label": "b"}])


def test_parquet_as_the_hub_writes_it(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ant"])})
    rows = {"image": [{"bytes": b"1", "path": None}, {"bytes": b"2", "path": "b.png"}], "label": [1, 0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    data = read(tmp_path)
    assert (data.kind, list(data.train.inputs), list(data.train.targets)) == ("image", [b"1", b"2"], ["ant", "zebra"])
    assert data.classes == ("zebra", "ant")  # the declared order, not the sorted one


@pytest.mark.parametrize(
    ("name", "kind", "sizes"),  # sizes as in each SOURCE.md
    [
        ("sst2", "text", {"train": 6920, "validation": 872, "test": 1821}),
        ("trec6", "text", {"train": 5452, "test": 500}),
        ("customer_reviews", "text", {"train": 3771}),
        ("tweeteval_emotion", "text", {"train": 3257, "validation": 374, "test": 1421}),
        ("cifar10", "image", {"train": 10000, "test": 2000}),
        ("hymenoptera", "image", {"train": 244, "validation": 153}),
        ("pacs/photo", "image", {"train": 630}),
    ],
)
def test_real_data(shared_data: Path, name: str, kind: str, sizes: dict[str, int]) -> None:
    data = read(shared_data / name)
    assert data.kind == kind
    assert {split: len(rows) for split, rows in data.splits()} == sizes
    assert not data.unreadable
    assert all(len(set(split.ids)) == len(split) for _, split in data.splits())


def test_shards_of_one_split_are_read_in_order(tmp_path: Path) -> None:
    """The layout of the Hub: data/SPLIT-0000K-of-0000N.parquet, with or without the hash of older exports."""
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "README.md").write_text("a card")
    for name, rows in {
        "train-00000-of-00002-0123456789abcdef.jsonl": [("a", "x"), ("b", "y")],
        "train-00001-of-00002-fedcba9876543210.jsonl": [("c", "x")],
        "test-00000-of-00001.jsonl": [("d", "y")],
    }.items():
        written(folder / name, "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    for source in (tmp_path, folder):
        data = read(source)
        assert list(data.train.inputs) == ["a", "b", "c"]
        assert list(data.train.targets) == ["x", "y", "x"]
        assert len(set(data.train.ids)) == 3
        assert data.test is not None and list(data.test.inputs) == ["d"]


def test_a_missing_shard_is_told(tmp_path: Path) -> None:
    written(tmp_path / "train-00000-of-00002.jsonl", '{"text": "a", "label": "x"}\n')
    with pytest.raises(AffinageError, match="1 of the 2 shards of train"):
        read(tmp_path)
