"""Class folders with and without splits; names of splits never become labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from affinage.data import read
from affinage.errors import AffinageError


def grow(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"content of {path}")
    return root


@pytest.mark.parametrize("name", ["validation", "val", "valid", "dev"])
def test_splits_are_not_labels(tmp_path: Path, name: str) -> None:
    grow(
        tmp_path,
        "train/cat/1.png",
        "train/dog/2.JPG",
        f"{name}/cat/3.webp",
        "test/dog/4.jpeg",
        ".git/x/5.png",
        "__MACOSX/x/6.png",
    )
    data = read(tmp_path)
    assert {split: list(rows.targets) for split, rows in data.splits()} == {
        "train": ["cat", "dog"],
        "validation": ["cat"],
        "test": ["dog"],
    }
    assert list(data.train.ids) == ["train/cat/1.png", "train/dog/2.JPG"]
    assert data.train.inputs[0] == tmp_path / "train/cat/1.png"


def test_class_folders_alone_are_train(tmp_path: Path) -> None:
    data = read(str(grow(tmp_path, "b/1.png", "a/2.gif", "a/.hidden.png", "a/notes.xml")))
    assert (list(data.train.ids), list(data.train.targets)) == (["a/2.gif", "b/1.png"], ["a", "b"])
    assert data.unreadable == (("a/notes.xml", "files of suffix '.xml' are not read"),)


def test_text_files(tmp_path: Path) -> None:
    grow(tmp_path, "pos/1.txt", "neg/2.txt")
    (tmp_path / "neg/3.txt").write_text("  ")
    (tmp_path / "neg/4.txt").write_bytes(b"caf\xe9")
    data = read(tmp_path)
    assert data.kind == "text"
    assert list(data.train.inputs) == ["content of neg/2.txt", "content of pos/1.txt"]
    assert data.unreadable == (("neg/3.txt", "empty text"), ("neg/4.txt", "not UTF-8"))


@pytest.mark.parametrize(
    ("paths", "word"),
    [
        ((), "holds nothing to read"),
        (("1.png", "2.png"), "2 files and no class folders"),
        (("photo/dog/1.png", "sketch/dog/2.png"), "one folder too deep, in dog/"),
        (("train/a/1.png", "cats/2.png"), "the split train/ beside cats/"),
        (("val/a/1.png", "test/a/2.png"), "no split 'train' .found: test, validation"),
        (("a/1.png", "b/2.txt"), "both images and .txt files; .* --task"),
        (("train/a/1.png", "test/a/2.txt"), "mixes kinds: .*train holds image"),
        (("x.csv", "test.csv"), "test.csv, x.csv and no train file"),
        (("train/a/1.png", "val/a/1.png", "dev/a/1.png"), "for one split"),
    ],
)
def test_other_layouts_are_told_in_one_line(tmp_path: Path, paths: tuple[str, ...], word: str) -> None:
    with pytest.raises(AffinageError, match=word) as caught:
        read(grow(tmp_path, *paths))
    assert "\n" not in str(caught.value)


def test_kind_chooses_among_images_and_their_captions(tmp_path: Path) -> None:
    grow(tmp_path, "a/1.png", "a/1.txt", "b/2.png", "b/2.txt")
    assert list(read(tmp_path, kind="image").train.ids) == ["a/1.png", "b/2.png"]
    assert list(read(tmp_path, kind="text").train.ids) == ["a/1.txt", "b/2.txt"]
