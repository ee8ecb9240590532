"""WebDataset tars: the samples that are there, from where they lie, and one line for each way in which a tar can be wrong."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from affinage.cli import main
from affinage.data import archive, read
from affinage.errors import AffinageError
from affinage.types import Columns

PNG = b"a picture"  # no reader decodes one


def tar(path: Path, files: Mapping[str, bytes | str], **options: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as out:  # type: ignore[call-overload]
        for name, content in files.items():
            plain = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(plain)
            out.addfile(info, io.BytesIO(plain))
    return path


def pair(number: int, label: object = "cat", part: str = "jpg") -> dict[str, bytes | str]:
    return {f"{number:06d}.{part}": PNG + bytes([number]), f"{number:06d}.cls": f"{label}\n"}


def test_a_picture_and_its_class(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", pair(0, 7) | pair(1, 3) | pair(2, 7, "PNG"))
    data = read(path)
    assert (data.kind, data.validation, data.test) == ("image", None, None)
    assert list(data.train.inputs) == [PNG + b"\0", PNG + b"\1", PNG + b"\2"]
    assert list(data.train.targets) == ["7", "3", "7"]
    assert list(data.train.ids) == ["a.tar/000000", "a.tar/000001", "a.tar/000002"]
    assert data.train.inputs[1:] == [PNG + b"\1", PNG + b"\2"] and data.train.inputs[-1] == PNG + b"\2"
    with pytest.raises(IndexError):
        data.train.inputs[3]
    assert list(data.train.take([2, 0]).inputs) == [PNG + b"\2", PNG + b"\0"]


@pytest.mark.parametrize(
    "files",
    [
        {"0.jpg": PNG, "0.json": '{"label": "cat", "more": [1]}', "1.jpg": PNG, "1.json": '{"label": "dog"}'},
        {"0.jpg": PNG, "0.txt": "cat", "1.jpg": PNG, "1.txt": "dog"},
        {"0.cls": "cat", "0.jpg": PNG, "0.seg.png": PNG, "0.json": "{}", "1.cls": "dog", "1.webp": PNG},
        {"./0.jpg": PNG, "./0.label": "cat", "./._0.jpg": b"x", "./1.jpg": PNG, "./1.label": "dog"},
        {"a/0.jpg": PNG, "a/0.cls": "cat", "a.b/0.jpg": PNG, "a.b/0.cls": "dog"},
        {"/etc/0.jpg": PNG, "/etc/0.cls": "cat", "../../1.jpg": PNG, "../../1.cls": "dog"},  # only names: nothing is unpacked
        {f"{'long' * 60}/0.jpg": PNG, f"{'long' * 60}/0.cls": "cat", "1.jpg": PNG, "1.cls": "dog", "README": "no part"},
    ],
    ids=["json", "txt", "more parts", "dots", "folders", "outside", "long names"],
)
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_forms_of_a_sample(files: dict[str, bytes | str], form: int, tmp_path: Path) -> None:
    data = read(tar(tmp_path / "a.tar", files, format=form))
    assert list(data.train.inputs) == [PNG, PNG] and list(data.train.targets) == ["cat", "dog"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar"]


def test_texts(tmp_path: Path) -> None:
    files = {"0.txt": "one \u017elu\u0165", "0.cls": "1", "1.json": '{"text": "two", "label": 0}', "2.txt": " ", "2.cls": "1"}
    data = read(tar(tmp_path / "a.tar", files | {"3.txt": b"caf\xe9", "3.cls": "1"}))
    assert data.kind == "text" and list(data.train.inputs) == ["one \u017elu\u0165", "two"]
    assert list(data.train.targets) == ["1", "0"]
    assert data.unreadable == (("a.tar/2", "empty text"), ("a.tar/3", "not UTF-8"))


def test_columns_are_parts_or_keys(tmp_path: Path) -> None:
    sample = {"0.jpg": PNG, "0.png": b"mask", "0.txt": "a caption", "0.json": '{"class": "cat", "colour": "red"}'}
    path = tar(tmp_path / "a.tar", sample)
    assert list(read(path, columns=Columns(image="png", label="class")).train.inputs) == [b"mask"]
    assert list(read(path, columns=Columns(image="jpg", label="colour")).train.targets) == ["red"]
    texts = read(path, columns=Columns(label="class"), kind="text")
    assert list(texts.train.inputs) == ["a caption"] and list(texts.train.targets) == ["cat"]
    with pytest.raises(AffinageError, match="has the pictures jpg, png: name one, for example --image-column jpg"):
        read(path)


def test_splits(tmp_path: Path) -> None:
    for name, numbers in (("train-000001", (2, 3)), ("train-000000", (0, 1)), ("val-000000", (4,)), ("test", (5,))):
        tar(tmp_path / "a" / f"{name}.tar", {k: v for n in numbers for k, v in pair(n, n % 2).items()})
    data = read(tmp_path / "a")
    assert [row.split("/")[1][-1] for row in data.train.ids] == ["0", "1", "2", "3"]
    assert {name: len(split) for name, split in data.splits()} == {"train": 4, "validation": 1, "test": 1}
    for file in (tmp_path / "a").iterdir():
        split = file.name.split("-")[0].removesuffix(".tar")
        (tmp_path / "b" / split).mkdir(parents=True, exist_ok=True)
        (tmp_path / "b" / split / file.name).write_bytes(file.read_bytes())
    again = read(tmp_path / "b")
    assert {name: (list(s.inputs), list(s.ids)) for name, s in again.splits()} == {
        name: (list(s.inputs), list(s.ids)) for name, s in data.splits()
    }
    tar(tmp_path / "c" / "000000.tar", pair(0, 1))
    tar(tmp_path / "c" / "000001.tar", pair(1, 2))
    assert list(read(tmp_path / "c").train.targets) == ["1", "2"]


def test_a_split_without_labels_is_left_out(tmp_path: Path) -> None:
    tar(tmp_path / "train.tar", pair(0) | pair(1))
    tar(tmp_path / "test.tar", {"0.jpg": PNG, "1.jpg": PNG})
    data = read(tmp_path)
    assert data.test is None and data.unreadable == (("test.tar", "split without any label"),)


def test_tars_beside_what_they_were_unpacked_to_are_not_read(tmp_path: Path) -> None:
    tar(tmp_path / "images.tar", pair(0))
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    assert list(read(tmp_path).train.targets) == ["cat", "dog"]
    assert not archive.accepts(tmp_path / "none.tar") and not archive.accepts([{"text": "a"}])


def cut(path: Path, at: int) -> Path:
    path.write_bytes(path.read_bytes()[:at])
    return path


WRONG = {
    "cut in a header": (lambda t: cut(tar(t / "a.tar", pair(0) | pair(1)), 2100), r"a\.tar is (no tar, or )?cut short"),
    "cut in a picture": (lambda t: cut(tar(t / "a.tar", {"0.cls": "a", "0.jpg": PNG * 1000}), 3000), "a.tar is .*cut short"),
    "cut between samples": (lambda t: cut(tar(t / "a.tar", pair(0) | pair(1)), 2048), "a.tar is cut short, or damaged"),
    "no tar": (lambda t: _written(t / "a.tar", b"no tar at all" * 100), "a.tar is no tar, or cut short"),
    "nothing": (lambda t: _written(t / "a.tar", b""), "a.tar is no tar, or cut short"),
    "no samples": (lambda t: tar(t / "a.tar", {}), "a.tar holds no samples"),
    "no label": (lambda t: tar(t / "a.tar", pair(0) | {"1.jpg": PNG}), r"have no label \(a\.tar/1\)"),
    "apart": (lambda t: tar(t / "a.tar", {"0.jpg": PNG, "1.jpg": PNG, "0.cls": "a", "1.cls": "b"}), "follow each other"),
    "unknown": (
        lambda t: tar(t / "a.tar", {"0.mp4": PNG, "0.cls": "a"}),
        "a.tar/0 holds only mp4, cls; expected .* 0.jpg or 0.txt",
    ),
    "twice": (lambda t: tar(t / "a.tar", {"0.jpg": PNG, "0.JPG": PNG}), "holds 0.JPG twice"),
    "again": (lambda t: tar(t / "a.tar", pair(0) | pair(1) | {"./000000.jpg": PNG, "./000000.cls": "a"}), "000000 in two places"),
    "both kinds": (lambda t: tar(t / "a.tar", pair(0) | {"1.txt": "x", "1.cls": "a"}), "mixes pictures and texts, first at 1"),
    "a caption": (lambda t: tar(t / "a.tar", {"0.jpg": PNG, "0.txt": "word " * 200}), "label of 999 characters.*--label-column"),
    "no JSON": (lambda t: tar(t / "a.tar", {"0.jpg": PNG, "0.json": "{"}), "a.tar/0.json is not JSON"),
    "a list": (lambda t: tar(t / "a.tar", {"0.jpg": PNG, "0.json": "[1]"}), "a.tar/0.json holds a list; expected an object"),
    **{
        f"a {part}": (
            lambda t, p=part: tar(t / "a.tar", pair(0) | {f"000000.{p}": b"x"}),
            f"holds 000000.{part}: a pickle may run",
        )
        for part in ("pyd", "pickle", "pth", "meta.pkl")
    },
    "gzip": (
        lambda t: _written(t / "a.tar.gz", gzip.compress(tar(t / "b", pair(0)).read_bytes())),
        "compressed .gzip.*unpack it",
    ),
    "gzip, renamed": (lambda t: _written(t / "a.tar", gzip.compress(b"x" * 99)), "a.tar is compressed .gzip"),
}


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, word = WRONG[name]
    path = make(tmp_path)
    with pytest.raises(AffinageError, match=word):
        read(path)
    if name != "cut between samples":
        return
    assert main(["check", "--data", str(path)]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith("affinage: a.tar is cut short")


def test_links_are_no_samples(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", pair(0))
    with tarfile.open(path, "a") as out:
        link = tarfile.TarInfo("1.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(link)
    assert len(read(path).train) == 1


def test_samples_from_many_tars(tmp_path: Path) -> None:
    """Each sample is found where it lies."""
    draw = np.random.default_rng(0)
    content = [draw.bytes(int(n)) for n in draw.integers(1, 2000, 2000)]
    for shard in range(100):
        numbers = range(20 * shard, 20 * shard + 20)
        tar(
            tmp_path / f"train-{shard:06d}.tar",
            {k: v for n in numbers for k, v in ((f"{n}.jpg", content[n]), (f"{n}.cls", str(n % 5)))},
        )
    data = read(tmp_path)
    order = draw.permutation(2000)
    assert [data.train.inputs[i] for i in order] == [content[i] for i in order]
    assert data.train.targets == [str(n % 5) for n in range(2000)]
