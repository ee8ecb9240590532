"""The data check against planted faults, and against known leaks of public data sets."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from affinage.check import check, clean, left_out, readable, summary, without_leaks, write
from affinage.check.content import fold
from affinage.data import read
from affinage.types import Data, Finding, Split


def texts(name: str, *rows: tuple[str, str]) -> Split:
    return Split([text for text, _ in rows], [label for _, label in rows], [f"{name}:{i}" for i in range(len(rows))])


def kinds(findings: list[Finding]) -> dict[str, tuple]:
    return {finding.kind: finding.rows for finding in findings}


def noise(seed: int, side: int = 64) -> Image.Image:
    """A smooth random picture: difference hashes of two are about 32 of 64 bits apart."""
    cells = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, form: str = "PNG", **options: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def pictures(name: str, *rows: object) -> Split:
    return Split(list(rows), ["ab"[i % 2] for i in range(len(rows))], [f"{name}:{i}" for i in range(len(rows))])


def test_clean_data_has_no_finding() -> None:
    assert check(Data("text", "s", texts("train", ("one", "a"), ("two", "a"), ("three", "b"), ("four", "b")))) == []
    assert check(Data("image", "s", pictures("train", *(encoded(noise(i)) for i in range(4))))) == []


def test_text_faults() -> None:
    train = texts(
        "train", ("Same here", "a"), ("Same here", "a"), ("Price: 10 $", "a"), ("clash", "a"), ("clash", "b"), ("rare", "c")
    )
    test = texts("test", ("new", "z"), ("Same here", "a"), ("price 25", "b"), (" ", "a"), ("x" * 10_001, "b"))
    findings = check(Data("text", "s", train, test=test))
    assert kinds(findings) == {
        "duplicate-across-splits": (("train", "train:0", "test", "test:1"), ("train", "train:1", "test", "test:1")),
        "near-duplicate-across-splits": (("train", "train:2", "test", "test:2"),),
        "unreadable": (("test", "test:3", "", ""),),
        "duplicate-in-train": (("train", "train:1", "train", "train:0"), ("train", "train:4", "train", "train:3")),
        "conflicting-labels": (("train", "train:4", "train", "train:3"),),
        "label-only-in-test": (("test", "test:0", "", ""),),
        "rare-label": (("train", "train:4", "", ""), ("train", "train:5", "", "")),
        "long-text": (("test", "test:4", "", ""),),
    }
    assert [finding.severity for finding in findings] == ["leak"] + ["warning"] * 7
    assert "1 of 5 rows of test stand in train" in findings[0].message


def test_near_repeats_in_train() -> None:
    """Texts that differ in case, digits and punctuation, each told with the first of its kind; equal ones are told once."""
    rows = ("Win 100 $ now!", "a"), ("other", "a"), ("win 20 now", "b"), ("win 20 now", "b"), ("1 2 3", "a"), ("4 5 6", "b")
    found = kinds(check(Data("text", "s", texts("train", *rows))))
    assert found == {
        "near-duplicate-in-train": (("train", "train:2", "train", "train:0"),),
        "duplicate-in-train": (("train", "train:3", "train", "train:2"),),
    }


def test_labels() -> None:
    only = check(Data("text", "s", texts("train", ("x", "a"), ("y", "a"))))
    assert [(f.kind, f.severity) for f in only] == [("one-class", "error")]
    assert only[0].message.endswith("expected two labels or more: check the label column")
    skewed = check(Data("text", "s", texts("train", *((f"text {'x' * i}", "b" if i < 2 else "a") for i in range(24)))))
    assert [(f.kind, f.message) for f in skewed] == [("imbalance", "train has 22 rows of 'a' and 2 of 'b', 11 to 1")]
    empty = check(Data("text", "s", texts("train", ("x", "a"), ("y", "b")), test=texts("test")))
    assert ("empty-split", "error") in [(f.kind, f.severity) for f in empty]


def test_a_split_of_which_nothing_can_be_read_says_why() -> None:
    first = check(Data("text", "s", texts("train", ("", "a"), (" ", "b"))))[0]
    assert first.kind == "empty-split" and first.message.startswith("train of s has no readable row; the first, train:0: ")


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("Hello, World!", "hello  world", True),
        ("ｆｕｌｌ width", "FULL WIDTH", True),
        ("STRASSE 12", "straße 7", True),
        ("good", "not good", False),
        ("to day", "today", False),
    ],
)
def test_fold(one: str, two: str, same: bool) -> None:
    assert (fold(one) == fold(two)) is same


def test_numbers_alone_are_not_near_duplicates() -> None:
    assert fold("40184") is fold("!!!") is None


def test_repeats_stay_linear() -> None:
    many = texts("train", *(("same", "a") for _ in range(300)), ("other", "b"))
    (leak,) = [f for f in check(Data("text", "s", many, test=many)) if f.kind == "duplicate-across-splits" and len(f.rows) > 2]
    assert len(leak.rows) == 300 + 299 + 1
    assert {row[1] for row in leak.rows} == {row[3] for row in leak.rows} == set(many.ids)


def test_image_faults(tmp_path: Path) -> None:
    (tmp_path / "whole.jpg").write_bytes(encoded(noise(1, 200), "JPEG", quality=95))
    (tmp_path / "cut.jpg").write_bytes(encoded(noise(2, 200), "JPEG")[:-200])
    (tmp_path / "text.png").write_text("not a picture")
    train = pictures(
        "train", tmp_path / "whole.jpg", tmp_path / "cut.jpg", tmp_path / "text.png", tmp_path / "none.png", noise(3), noise(4)
    )
    test = pictures("test", encoded(noise(1, 200), "JPEG", quality=70), encoded(noise(3)), noise(4), encoded(noise(5)))
    data = Data("image", "s", train, test=test)
    findings = check(data)
    found = kinds(findings)
    assert [row[1] for row in found["unreadable"]] == ["train:1", "train:2", "train:3"]
    write(findings, tmp_path / "found.csv")
    with (tmp_path / "found.csv").open(encoding="utf8", newline="") as file:
        told = {row["id"]: row["message"] for row in csv.DictReader(file) if row["kind"] == "unreadable"}
    assert "truncated" in told["train:1"] and told["train:2"] == "not an image" and told["train:3"] == "no such file"
    whole, why = readable(data, "train")
    assert list(whole.ids) == ["train:0", "train:4", "train:5"] and ": 3 (" in left_out(why)
    assert "image file is truncated;" in left_out(why), "what differs from file to file is not counted apart"
    assert found["duplicate-across-splits"] == (("train", "train:5", "test", "test:2"),)
    assert found["near-duplicate-across-splits"] == (
        ("train", "train:0", "test", "test:0"),
        ("train", "train:4", "test", "test:1"),
    )
    assert list(clean(data, findings).train.ids) == ["train:0", "train:4", "train:5"]
    assert list(without_leaks(clean(data, findings), findings).train.ids) == ["train:0", "train:4"]


def test_plain_pictures_of_different_brightness_are_not_alike() -> None:
    train = pictures("train", *(Image.new("L", (32, 32), shade) for shade in (0, 128)))
    test = pictures("test", Image.new("L", (32, 32), 64))
    assert "near-duplicate-across-splits" not in kinds(check(Data("image", "s", train, test=test)))


def test_too_many_pixels_are_not_decoded() -> None:
    started = time.perf_counter()
    bomb = encoded(Image.new("1", (20_000, 8_000)))  # 160 megapixels in some kilobytes
    findings = check(Data("image", "s", pictures("train", encoded(noise(1)), encoded(noise(2)), bomb)))
    assert [(f.kind, f.rows[0][1]) for f in findings if f.kind == "unreadable"] == [("unreadable", "train:2")]
    assert "over 100 megapixels" in findings[0].message
    assert time.perf_counter() - started < 5


def test_leaks_leave_the_earlier_split() -> None:
    data = Data(
        "text", "s", texts("t", ("x", "a"), ("y", "b"), ("z", "a")), texts("v", ("x", "a"), ("w", "b")), texts("e", ("w", "b"))
    )
    rest = without_leaks(data, check(data))
    assert {name: list(split.ids) for name, split in rest.splits()} == {
        "train": ["t:1", "t:2"],
        "validation": ["v:0"],
        "test": ["e:0"],
    }
    assert not [f for f in check(rest) if f.severity == "leak"]


def test_written_and_summed(tmp_path: Path) -> None:
    findings = [
        Finding("duplicate-across-splits", "leak", "two, rows", (("train", "a,1", "test", "b"), ("train", "c", "test", "b"))),
        Finding("imbalance", "warning", "skewed"),
    ]
    write(findings, tmp_path / "found.csv")
    with (tmp_path / "found.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["kind", "severity", "split", "id", "other_split", "other_id", "message"],
        ["duplicate-across-splits", "leak", "train", "a,1", "test", "b", "two, rows"],
        ["duplicate-across-splits", "leak", "train", "c", "test", "b", "two, rows"],
        ["imbalance", "warning", "", "", "", "", "skewed"],
    ]
    assert [line["rows"] for line in summary(findings)] == [2, 0]


def test_trec_has_ten_test_questions_in_train(shared_data: Path) -> None:
    data = read(shared_data / "trec6")
    (leak,) = [finding for finding in check(data) if finding.severity == "leak"]
    assert leak.message == "10 of 500 rows of test stand in train as well"
    both = set(data.train.inputs) & set(data.test.inputs)  # type: ignore[union-attr]
    assert {data.train.inputs[data.train.ids.index(row[1])] for row in leak.rows} == both
    rest = without_leaks(data, [leak])
    assert not set(rest.train.inputs) & both
    assert len(rest.test) == 500  # type: ignore[arg-type]


def test_a_photograph_saved_anew_is_found_and_no_other(shared_data: Path) -> None:
    data = read(shared_data / "hymenoptera")
    assert check(data) == []  # no photograph of val looks like one of train
    assert data.validation is not None
    anew = [encoded(Image.open(path).convert("RGB").resize((150, 150)), "JPEG", quality=60) for path in data.train.inputs[:40]]
    planted = Split([*data.validation.inputs, *anew], [*data.validation.targets, *data.train.targets[:40]],
                    [*data.validation.ids, *(f"anew:{i}" for i in range(40))])  # fmt: skip
    found = kinds(check(data.with_splits(validation=planted)))["near-duplicate-across-splits"]
    assert {(row[1], row[3]) for row in found} <= {(data.train.ids[i], f"anew:{i}") for i in range(40)}
    assert len(found) >= 36


def test_what_is_no_transcript_and_what_is_no_train(tmp_path: Path) -> None:
    noise = [(np.random.default_rng(i).normal(0, 0.1, 8000).astype(np.float32), 8000) for i in range(3)]
    split = Split(noise, ["one", "?!", "two"], ["a", "b", "c"])
    found = check(Data("audio", "s", split, labels="transcript"))
    assert [(f.kind, f.rows[0][1], f.reasons) for f in found] == [("unreadable", "b", ("no letter or digit in its transcript",))]
    kept, why = readable(Data("audio", "s", split, labels="transcript"), "train")
    assert list(kept.ids) == ["a", "c"] and len(why) == 1
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "x", "split": "test"}\n', encoding="utf8")
    only = Data("text", "s", texts("train", ("one", "a"), ("two", "b")), only="test")
    assert "one split alone, called test" in next(f.message for f in check(only) if f.kind == "one-split")


def test_reasons_add_up() -> None:
    """A row is told with its reason, or counted among the others: the parts are the whole."""
    rows = [(f"{kind}:{i}", f"reason {kind}") for kind in range(7) for i in range(7 - kind)]
    (finding,) = check(Data("text", "s", texts("train", ("a b", "x"), ("c d", "y")), unreadable=tuple(rows)))[:1]
    assert finding.kind == "unreadable" and ": 28 (" in finding.message
    counts = [int(part.split()[0]) for part in finding.message.split("(")[1].split(";")]
    assert sum(counts) == 28 and finding.message.endswith("3 reason 4; 3 for other reasons)")
