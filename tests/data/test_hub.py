"""What is a Hub id, what is a path that is not there, and what is said without a network."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from affinage.data import hub, read, readers
from affinage.errors import AffinageError


@pytest.mark.parametrize("source", ["./x", "../x", "/x", "~/x", "a/b/c", "x.csv", "org/x.parquet", "x.jpg"])
def test_a_path_that_is_not_there_asks_no_hub(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # beside the checkout there may be an x
    assert not hub.accepts(source)
    with pytest.raises(AffinageError, match=f"no such file or folder: {source}"):
        read(source)


@pytest.mark.parametrize("source", ["imdb", "stanfordnlp/imdb", "nyu-mll/glue:sst2", "org/v1.2"])
def test_ids(source: str) -> None:
    assert hub.accepts(source)


def test_a_local_path_is_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imdb").mkdir()
    assert not hub.accepts("imdb")


def test_not_found_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def refuse(*_: object) -> None:
        raise FileNotFoundError("Couldn't find\nit")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(AffinageError, match="no file or folder 'org/none', and the Hub gave no data set") as caught:
        read("org/none")
    assert "\n" not in str(caught.value)


def test_found(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"text": "a", "label": "x"}])
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *what: asked.append(what) or datasets.DatasetDict(train=rows))
    assert list(read("org/name:sst2").train.inputs) == ["a"]
    assert asked == [("org/name", "sst2")]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(AffinageError, match=r"pip install 'affinage\[datasets\]'"):
        read("org/name")


def test_every_reader_in_the_folder_is_found_in_order() -> None:
    names = [reader.__name__.rpartition(".")[2] for reader in readers()]
    assert names == sorted(names)
    assert {"file", "folder", "hub", "memory"} <= set(names)
    assert "table" not in names
