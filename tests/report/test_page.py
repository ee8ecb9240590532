"""The page: self-contained, safe, the same every time, and whole whatever the run has or lacks."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from affinage.errors import AffinageError
from affinage.report import draw, page, words

VOID = {"meta", "br", "wbr", "img", "path"}
ATTACK = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Strict(HTMLParser):
    """Collects tags and text; fails where a tag is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(folder: Path) -> Strict:
    """The page of a run, checked: balanced, no script, no handler, nothing fetched."""
    parser = Strict()
    parser.feed(page.write(folder).read_text(encoding="utf8"))
    assert not parser.open
    for tag, attributes in parser.seen:
        assert tag not in {"script", "link", "iframe", "object", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in {"href", "srcset"} and (name != "src" or str(value).startswith("data:image/"))
    assert not re.search(r"\b(nan|None|inf)\b", parser.text), re.findall(r".{30}\b(?:nan|None|inf)\b.{10}", parser.text)
    return parser


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_digits(digits_run: Path) -> None:
    found = parsed(digits_run)
    test = json.loads((digits_run / "run.json").read_text())["test"]
    assert words.share(test["accuracy"]) in found.text and words.interval(test, "accuracy") in found.text
    assert sum(tag == "img" for tag, _ in found.seen) == 12
    cells = re.findall(r'title="(\d) → (\d): (\d+) ', (digits_run / "report.html").read_text())
    assert sum(int(n) for _, _, n in cells) == test["n"]
    assert sum(int(n) for a, b, n in cells if a == b) == round(test["accuracy"] * test["n"])


def test_reviews_show_the_surest_mistake_and_the_calibration(reviews_run: Path) -> None:
    import pyarrow.parquet as parquet

    rows = parquet.read_table(reviews_run / "predictions.parquet").to_pylist()
    worst = max((r for r in rows if r["label"] != r["prediction"]), key=lambda r: r["confidence"])
    found = parsed(reviews_run)
    assert worst["text"][:200] in found.text
    ece = json.loads((reviews_run / "run.json").read_text())["test"]["ece"]
    assert f"Expected calibration error {words.share(ece)}" in found.text


def test_it_is_a_pure_function_of_the_folder(digits_run: Path) -> None:
    assert page.write(digits_run).read_bytes() == page.write(digits_run).read_bytes()


def test_no_machine_path_leaves_the_machine(digits_run: Path) -> None:
    assert "/home/someone" not in page.write(digits_run).read_text()


def test_markup_in_labels_texts_and_facts_is_only_text(made_run: Any) -> None:
    folder = made_run([ATTACK, "b"], text=ATTACK, kept=ATTACK, settings={ATTACK: ATTACK})
    data = json.loads((folder / "run.json").read_text())["data"]
    edit(folder, task=ATTACK, data=data | {"source": ATTACK, "findings": [{"severity": ATTACK, "message": ATTACK}]})
    found = parsed(folder)
    assert "<script>alert(1)</script>" in found.text  # as text
    assert not any(tag == "img" for tag, _ in found.seen)


def test_no_test_split_falls_back_to_validation_and_says_so(made_run: Any) -> None:
    folder = made_run(["a", "b"])
    edit(folder, test={})
    (folder / "predictions.parquet").unlink()
    found = parsed(folder)
    assert "81.0 %" in found.text and "there is no test split" in found.text


def test_a_label_that_the_model_never_saw(made_run: Any) -> None:
    folder = made_run(["a", "b", "c"])
    data = json.loads((folder / "run.json").read_text())["data"]
    edit(folder, data=data | {"classes": ["a", "b"]})  # now "c" is predicted: it stays a class
    assert "c" in parsed(folder).text
    import pyarrow as pa
    import pyarrow.parquet as parquet

    table = parquet.read_table(folder / "predictions.parquet")
    table = table.set_column(
        table.column_names.index("label"), "label", pa.array(["unheard"] * 5 + table["label"].to_pylist()[5:])
    )
    parquet.write_table(table, folder / "predictions.parquet")
    assert "(unseen class)" in parsed(folder).text


def test_a_run_that_has_just_begun(made_run: Any) -> None:
    folder = made_run(["a", "b"])
    (folder / "predictions.parquet").unlink()
    (folder / "records.jsonl").write_text('{"stage": "body", "st')  # killed while writing
    (folder / "run.json").write_text(json.dumps({"status": "running", "task": "text-classification", "settings": {}, "data": {}}))
    found = parsed(folder)
    assert "not finished" in found.text and "Nothing has been measured" in found.text


def test_not_a_number_is_left_out_of_the_curves(made_run: Any) -> None:
    folder = made_run(["a", "b"])
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"stage": "body", "step": 100, "split": "train", "name": "loss", "value": NaN, "seconds": 1.0}\n')
    parsed(folder)
    assert "nan" not in (folder / "report.html").read_text().replace("banana", "")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AffinageError, match=r"no run\.json"):
        page.write(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(AffinageError, match=r"is not JSON .* restore"):
        page.write(tmp_path)
    (tmp_path / "run.json").write_text('{"model": "m", "data": "d"}')  # the settings of one, in a file of the same name
    with pytest.raises(AffinageError, match=r"is not the record of a run \(no status, task, settings\)"):
        page.write(tmp_path)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.734, 0.812), (-3, 1e5), (1e-9, 2e-9), (5, 5)])
def test_ticks_are_round_few_and_inside(low: float, high: float) -> None:
    found = draw.ticks(low, high)
    assert 1 <= len(found) <= 6 and all(low - 1e-9 * abs(high) <= t <= high + 1e-9 * abs(high) for t in found)


def test_words() -> None:
    assert [words.share(v) for v in (0.5, 0.9931, 0.99999, 1.0)] == ["50.0 %", "99.31 %", "> 99.99 %", "100.0 %"]
    assert [words.duration(v) for v in (0.04, 59.7, 95.2, 3725)] == ["0.0 s", "1 min 00 s", "1 min 35 s", "1 h 02 min"]
    assert [words.rate(v) for v in (None, 8e-5, 1e-3, 2e-10)] == ["frozen", "8e-5", "1e-3", "2e-10"]
    assert words.hub_id("org/name") and words.hub_id("bert-base-uncased")
    assert not any(words.hub_id(s) for s in ("/a/b", "./a", "a/b/c", "../x", "", None))


def test_long_texts_are_kept_by_their_beginning(tmp_path: Path) -> None:
    """What the page shows of a text is far less; of many, in full, more than memory may be."""
    from affinage.report.folder import TEXT, read

    from .conftest import write_run

    kept = [("validation", "not read"), ("test", "x" * 5000), ("test", None), ("test", "short")]
    rows = [
        {"split": split, "id": str(i), "text": said, "label": "a", "prediction": "b", "confidence": 0.9}
        for i, (split, said) in enumerate(kept)
    ]
    facts = {"status": "finished", "task": "text-classification", "settings": {}, "data": {"classes": ["a", "b"]}}
    found = read(write_run(tmp_path, facts, [], rows)).predictions
    assert found is not None and found.split == "test"
    assert [row["text"] for row in found.rows] == ["x" * TEXT, None, "short"]
    assert TEXT > page.MOST_TEXT
