"""Boxes in COCO, Pascal VOC and YOLO: the same pictures read alike, real sets as they are, and clear words for what is broken."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from affinage.boxes import Boxes
from affinage.data import boxes_coco, boxes_voc, boxes_yolo, read
from affinage.data.objects import things
from affinage.errors import AffinageError
from affinage.pictures import size_of

THINGS = {  # picture -> (name, x0, y0, x1, y1); the third picture has none
    "a.jpg": [("cat", 4, 2, 20, 18), ("dog", 10, 10, 40, 30)],
    "b.jpg": [("dog", 0, 0, 15, 32)],
    "c.jpg": [],
}
SIZE = (64, 32)


def pictures(folder: Path, names: Any = THINGS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.fromarray(np.full((SIZE[1], SIZE[0], 3), 40 * i, np.uint8)).save(folder / name)
    return folder


def coco(path: Path, things: dict[str, Any] = THINGS, **changes: Any) -> Path:
    images = [{"id": i + 5, "file_name": name, "width": 64, "height": 32} for i, name in enumerate(things)]
    notes = [
        {"id": 1, "image_id": i + 5, "category_id": {"cat": 7, "dog": 3}[kind], "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0}
        for i, boxes in enumerate(things.values())
        for kind, x0, y0, x1, y1 in boxes
    ]
    whole = {"images": images, "annotations": notes, "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole | changes), encoding="utf8")
    return path


def voc(folder: Path, things: dict[str, Any] = THINGS) -> Path:
    (folder / "Annotations").mkdir(parents=True)
    for name, boxes in things.items():
        objects = "".join(
            f"<object><name>{kind}</name><difficult>{int(kind == 'hard')}</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for kind, x0, y0, x1, y1 in boxes
        )
        note = f"<annotation><filename>{name}</filename>{objects}</annotation>"
        (folder / "Annotations" / f"{Path(name).stem}.xml").write_text(note, encoding="utf8")
    return folder


def yolo(folder: Path, things: dict[str, Any] = THINGS) -> Path:
    (folder / "labels" / "train").mkdir(parents=True)
    for name, boxes in things.items():
        lines = [
            f"{('cat', 'dog').index(k)} {(x0 + x1) / 128} {(y0 + y1) / 64} {(x1 - x0) / 64} {(y1 - y0) / 32}\n"
            for k, x0, y0, x1, y1 in boxes
        ]
        if boxes:  # a picture without boxes needs no file
            (folder / "labels" / "train" / f"{Path(name).stem}.txt").write_text("".join(lines), encoding="utf8")
    (folder / "data.yaml").write_text("path: .\ntrain: images/train\nnames:\n  0: cat\n  1: dog\n", encoding="utf8")
    return folder


def plain(boxes: Boxes) -> list[tuple[Any, ...]]:
    return [(k, *b) for k, b in zip(boxes.classes.tolist(), boxes.boxes.round(4).tolist(), strict=True)]


def test_three_formats_say_the_same(tmp_path: Path) -> None:
    pictures(tmp_path / "coco" / "images")
    coco(tmp_path / "coco" / "train.json")
    pictures(voc(tmp_path / "voc") / "JPEGImages")
    pictures(yolo(tmp_path / "yolo") / "images" / "train")
    for name, reader in (("coco", boxes_coco), ("voc", boxes_voc), ("yolo", boxes_yolo)):
        source = tmp_path / name
        assert reader.accepts(source) and reader.accepts(str(source))
        found = read(source)
        assert found.kind == "image" and len(found.train) == 3 and not found.unreadable
        assert [Path(p).name for p in found.train.inputs] == list(THINGS)
        for boxes, wanted in zip(found.train.targets, THINGS.values(), strict=True):
            assert boxes.size == SIZE and plain(boxes) == [(k, *map(float, box)) for k, *box in wanted]
    assert read(tmp_path / "coco").classes == ("dog", "cat")  # in the order of their numbers
    assert read(tmp_path / "voc").classes is None and read(tmp_path / "yolo").classes == ("cat", "dog")
    assert len(read(tmp_path / "coco" / "train.json").train) == 3
    assert len(read(tmp_path / "yolo" / "data.yaml").train) == 3


def test_places_of_coco(tmp_path: Path) -> None:
    """COCO's own layout, and Roboflow's; captions beside the boxes are no matter."""
    own = tmp_path / "own"
    for split in ("train2017", "val2017"):
        pictures(own / split)
        coco(own / "annotations" / f"instances_{split}.json")
    (own / "annotations" / "captions_train2017.json").write_text(
        json.dumps({"images": [], "annotations": [], "categories": []}), encoding="utf8"
    )
    found = read(own)
    assert [(name, len(split)) for name, split in found.splits()] == [("train", 3), ("validation", 3)]
    export = tmp_path / "export"
    for split in ("train", "valid", "test"):
        pictures(export / split)
        coco(export / split / "_annotations.coco.json")
    assert [name for name, _ in read(export).splits()] == ["train", "validation", "test"]
    coco(own / "annotations" / "instances_train2014.json")
    with pytest.raises(AffinageError, match="for one split; remove one"):
        read(own)


def test_splits_of_voc_and_yolo(tmp_path: Path) -> None:
    root = voc(tmp_path / "voc", THINGS | {"d.jpg": [("hard", 1, 1, 9, 9)]})
    pictures(root / "JPEGImages", [*THINGS, "d.jpg"])
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for word, names in (("train", "a\nb  1\n"), ("val", "c\n"), ("test", "d\n")):
        (root / "ImageSets" / "Main" / f"{word}.txt").write_text(names, encoding="utf8")
    found = read(root)
    assert [(name, len(split)) for name, split in found.splits()] == [("train", 2), ("validation", 1), ("test", 1)]
    assert found.test is not None and found.test.targets[0].crowd.tolist() == [True]  # difficult
    (root / "ImageSets" / "Main" / "train.txt").write_text("nobody\n", encoding="utf8")
    with pytest.raises(AffinageError, match="names no file in Annotations"):
        read(root)
    root = yolo(tmp_path / "yolo")
    pictures(root / "images" / "train")
    pictures(root / "images" / "val", ["e.jpg"])
    (root / "labels" / "val").mkdir()
    polygon = "1 0.25 0.25 0.5 0.25 0.5 0.75\n"
    (root / "labels" / "val" / "e.txt").write_text(polygon, encoding="utf8")
    (root / "data.yaml").write_text("train: ../images/train\nval: images/val\nnames: [cat, dog]\n", encoding="utf8")
    found = read(root)
    assert found.validation is not None and plain(found.validation.targets[0]) == [("dog", 16.0, 8.0, 32.0, 24.0)]


def test_real_sets(shared_data: Path, tmp_path: Path) -> None:
    """The blood cells as their COCO files and their XML have them: the official split, box by box the same."""
    one = read(shared_data / "bccd")
    other = tmp_path / "bccd"
    other.mkdir()
    for name in ("Annotations", "JPEGImages", "ImageSets"):
        (other / name).symlink_to(shared_data / "bccd" / name)
    two = read(other)
    for name, count in (("train", 2804), ("validation", 1137), ("test", 945)):
        first, second = getattr(one, name), getattr(two, name)
        assert sum(len(b) for b in first.targets) == count and len(first) == len(second)
        by_id = dict(zip(second.ids, second.targets, strict=True))
        for row, boxes in zip(first.ids, first.targets, strict=True):
            assert sorted(plain(boxes)) == sorted(plain(by_id[row])), row
    assert sum(count for b in two.train.targets for _, count in b.faults) > 0
    animals = read(shared_data / "raccoon")
    assert [(name, len(split)) for name, split in animals.splits()] == [("train", 160), ("validation", 40)]
    assert animals.classes == ("raccoon",)


def test_faulty_boxes_are_counted_and_the_picture_stays(tmp_path: Path) -> None:
    pictures(tmp_path)
    coco(
        tmp_path / "train.json",
        {"a.jpg": [("cat", float("nan"), 0, 5, 5), ("cat", -9, 0, 5, 5), ("dog", 3, 3, 3, 9)], "b.jpg": []},
    )
    targets = read(tmp_path).train.targets
    assert plain(targets[0]) == [("cat", 0.0, 0.0, 5.0, 5.0)] and dict(targets[0].faults) == {
        "broken": 1,
        "empty": 1,
        "clipped": 1,
    }
    assert len(targets[1]) == 0 and targets[1].faults == ()


def bomb(path: Path, side: int) -> None:
    """A PNG whose header alone says `side` x `side` pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pieces = [(b"IHDR", head), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in pieces)
    )


def test_pictures_that_cannot_be_read_are_listed(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.jpg"])
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    bomb(tmp_path / "d.png", 50_000)
    notes = {name: [("cat", 1, 1, 9, 9)] for name in ("a.jpg", "b.jpg", "gone.jpg", "d.png")}
    coco(tmp_path / "train.json", notes)
    found = read(tmp_path)
    assert found.train.ids == ["a.jpg"]
    why = dict(found.unreadable)
    assert why == {"b.jpg": "not an image", "gone.jpg": "no such file", "d.png": "over 100 megapixels"}


def test_annotations_without_their_picture(tmp_path: Path) -> None:
    pictures(tmp_path)
    path = coco(tmp_path / "train.json")
    whole = json.loads(path.read_text(encoding="utf8"))
    whole["annotations"].append({"id": 9, "image_id": 404, "category_id": 3, "bbox": [0, 0, 4, 4]})
    path.write_text(json.dumps(whole), encoding="utf8")
    assert read(tmp_path).unreadable == (("train.json: image 404", "boxes of an image that is not listed"),)
    for name in THINGS:
        (tmp_path / name).unlink()
    with pytest.raises(AffinageError, match=r"none of the 3 pictures that train\.json names is there"):
        read(tmp_path)


BAD_COCO: list[tuple[dict[str, Any], str]] = [
    ({"annotations": [{"id": 4, "image_id": 5, "category_id": 99, "bbox": [0, 0, 1, 1]}]}, "annotation 4 is of category 99"),
    ({"annotations": [{"id": 4, "image_id": 5, "category_id": 3, "bbox": [0, 0, 1]}]}, r"expected \[x, y, width, height\]"),
    ({"annotations": [{"id": 4, "image_id": 5, "category_id": 3, "bbox": "all"}]}, r"expected \[x, y, width, height\]"),
    ({"images": [{"id": 5}]}, "expected 'images' to be a list of objects with id, file_name"),
    ({"categories": {}}, "expected 'categories'"),
    ({"images": [{"id": [5], "file_name": "a.jpg"}]}, r"the id \[5\] in 'images': expected a number or a text"),
]


@pytest.mark.parametrize(("changes", "words"), BAD_COCO)
def test_what_is_not_coco(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    pictures(tmp_path)
    coco(tmp_path / "train.json", **changes)
    with pytest.raises(AffinageError, match=words):
        read(tmp_path)


BAD_XML = {
    "<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><annotation>&a;</annotation>": "declares a document type",
    "<annotation><object>": "is not XML",
    "<annotation><object><name>cat</name></object></annotation>": "without a name or bndbox",
    "<annotation><object><name>c</name><bndbox><xmin>left</xmin></bndbox></object></annotation>": "that is no number",
}


@pytest.mark.parametrize("note", BAD_XML)
def test_what_is_not_voc(note: str, tmp_path: Path) -> None:
    pictures(voc(tmp_path) / "JPEGImages")
    (tmp_path / "Annotations" / "b.xml").write_text(note, encoding="utf8")
    with pytest.raises(AffinageError, match=BAD_XML[note]):
        read(tmp_path)


def test_what_voc_names_and_lacks_is_told(tmp_path: Path) -> None:
    """A picture that is gone, and a name in a list without its XML: left out, and said so."""
    pictures(voc(tmp_path) / "JPEGImages")
    (tmp_path / "JPEGImages" / "b.jpg").unlink()
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\nnotthere\n", encoding="utf8")
    told = {Path(name).stem: why for name, why in read(tmp_path).unreadable}
    assert told == {"b": "no such file", "notthere": "no such file in Annotations"}
    flat = pictures(tmp_path / "flat")
    for name in THINGS:
        (flat / f"{Path(name).stem}.xml").write_bytes((tmp_path / "Annotations" / f"{Path(name).stem}.xml").read_bytes())
    (flat / "b.jpg").unlink()
    found = read(flat)
    assert len(found.train) == 2 and [why for _, why in found.unreadable] == ["no such file"]


def test_ids_that_differ_in_kind_are_told(tmp_path: Path) -> None:
    pictures(tmp_path)
    coco(tmp_path / "train.json", images=[{"id": str(i + 5), "file_name": name} for i, name in enumerate(THINGS)])
    assert {why.split(",")[0] for _, why in read(tmp_path).unreadable} == {
        "boxes whose image_id is text where the id is a number"
    }


def test_utf16_hides_no_document_type(tmp_path: Path) -> None:
    pictures(voc(tmp_path) / "JPEGImages")
    (tmp_path / "Annotations" / "b.xml").write_text("<!DOCTYPE x [<!ENTITY a 'b'>]><annotation/>", encoding="utf16")
    with pytest.raises(AffinageError, match="declares a document type or is not UTF-8"):
        read(tmp_path)


BAD_YOLO = {
    "0 0.5 0.5 0.1\n": "line 1 is no box",
    "cat 0.5 0.5 0.1 0.1\n": "line 1 is no box",
    "\n7 0.5 0.5 0.1 0.1\n": "line 2 is of class 7, but data.yaml names 0 to 1",
    "0 100 100 50 50\n": "line 1 seems to count in pixels",
}


@pytest.mark.parametrize("line", BAD_YOLO)
def test_what_is_not_yolo(line: str, tmp_path: Path) -> None:
    pictures(yolo(tmp_path) / "images" / "train")
    (tmp_path / "labels" / "train" / "b.txt").write_text(line, encoding="utf8")
    with pytest.raises(AffinageError, match=BAD_YOLO[line]):
        read(tmp_path)


def test_a_yaml_that_says_too_little(tmp_path: Path) -> None:
    pictures(yolo(tmp_path) / "images" / "train")
    for text, words in (
        ("names: [a]", "names no train"),
        ("train: images/train", "names no classes"),
        ("names: [a]\ntrain: x", "not in"),
        ("names: {cat: 0}\ntrain: images/train", "gives the class '0' the number 'cat'"),
    ):
        (tmp_path / "data.yaml").write_text(text, encoding="utf8")
        with pytest.raises(AffinageError, match=words):
            read(tmp_path)


def test_the_cell_objects() -> None:
    """As `datasets` has it, as a list of one an object, with names or numbers."""
    forms = [
        {"bbox": [[4, 2, 16, 16], [10, 10, 30, 20]], "categories": [0, 1]},
        {"bbox": [[4, 2, 16, 16], [10, 10, 30, 20]], "category": ["cat", "dog"]},
        [{"bbox": [4, 2, 16, 16], "label": "cat"}, {"bbox": [10, 10, 30, 20], "label": "dog"}],
        {"bbox": np.array([[4.0, 2, 16, 16], [10, 10, 30, 20]]), "categories": np.array([0, 1])},
    ]
    for cell in forms:
        assert plain(things(cell, ("cat", "dog"), SIZE, "r")) == [("cat", 4, 2, 20, 18), ("dog", 10, 10, 40, 30)]
    assert plain(things(forms[0], None, SIZE, "r"))[0][0] == "0"
    for nothing in (None, [], {"bbox": [], "categories": []}):
        assert len(things(nothing, None, SIZE, "r")) == 0
    marked = {"bbox": [[0, 0, 4, 4]], "categories": [0], "iscrowd": [1]}
    assert things(marked, None, SIZE, "r").crowd.tolist() == [True]
    for wrong in (3, "x", {"bbox": [[0, 0, 1, 1]]}, {"bbox": [[0, 0, 1]], "categories": [0]}, [{"bbox": [0, 0, 1, 1]}]):
        with pytest.raises(AffinageError, match="r has the objects"):
            things(wrong, None, SIZE, "r")
    with pytest.raises(AffinageError, match="category 2, but 2 are declared"):
        things({"bbox": [[0, 0, 1, 1]], "categories": [2]}, ("cat", "dog"), SIZE, "r")


def test_sizes_are_of_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert size_of(tmp_path / "a.jpg") == ((20, 30), "")
    assert size_of((tmp_path / "a.jpg").read_bytes()) == ((20, 30), "") and size_of(Image.new("L", (3, 4))) == ((3, 4), "")
    assert size_of(tmp_path / "gone.jpg")[1] == "no such file" and size_of(b"x")[1] == "not an image"
