"""Tables in memory: the same rows in every form that is accepted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from affinage.data import read
from affinage.errors import AffinageError

ROWS = [{"text": "good", "label": "pos"}, {"text": "bad", "label": "neg"}]


def forms() -> dict[str, Any]:
    datasets = pytest.importorskip("datasets")
    pandas = pytest.importorskip("pandas")
    return {
        "list": ROWS,
        "columns": {"text": ["good", "bad"], "label": ["pos", "neg"]},
        "frame": pandas.DataFrame(ROWS),
        "dataset": datasets.Dataset.from_list(ROWS),
        "selected": datasets.Dataset.from_list(ROWS[::-1]).select([1, 0]),
        "one split": datasets.DatasetDict({"sentences": datasets.Dataset.from_list(ROWS)}),
    }


@pytest.mark.parametrize("form", ["list", "columns", "frame", "dataset", "selected", "one split"])
def test_one_content_in_many_forms(form: str) -> None:
    data = read(forms()[form])
    assert (list(data.train.inputs), list(data.train.targets)) == (["good", "bad"], ["pos", "neg"])
    assert [row.split(":")[1] for row in data.train.ids] == ["0", "1"]


def test_splits_of_any_form() -> None:
    known = forms()
    data = read({"train": known["frame"], "val": ROWS, "test": known["dataset"], "extra": ROWS})
    assert [name for name, _ in data.splits()] == ["train", "validation", "test"]
    assert data.unreadable == (("extra", "a split of this name is not read"),)


def test_class_labels_give_names_and_order_and_a_secret_split_is_left_out() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["zebra", "ant"])})
    train = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [1, 0]}, features=features)
    secret = datasets.Dataset.from_dict({"sentence": ["c"], "label": [-1]}, features=features)
    data = read(datasets.DatasetDict({"train": train, "test": secret}))
    assert (list(data.train.targets), data.classes, data.test) == (["ant", "zebra"], ("zebra", "ant"), None)
    assert data.unreadable == (("test", "split without any label"),)


def test_numbers_of_pandas_and_numpy_are_names() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": ["a", "b", "c"], "label": [1, 2, None]})
    with pytest.raises(AffinageError, match=r"1 of 3 rows of train have no label \(train:2\)"):
        read(frame)
    assert list(read(frame.iloc[:2]).train.targets) == ["1", "2"]  # pandas has made them 1.0 and 2.0
    assert list(read({"text": ["a", "b"], "label": np.array([3, 4])}).train.targets) == ["3", "4"]


def test_images_in_memory_stay_as_they_are() -> None:
    from PIL import Image

    picture = Image.new("RGB", (2, 2))
    data = read([{"image": picture, "label": "a"}, {"image": b"bytes", "label": "b"}])
    assert data.kind == "image"
    assert data.train.inputs[0] is picture
    assert data.train.inputs[1] == b"bytes"


@pytest.mark.parametrize(
    ("source", "word"),
    [
        (3, "cannot read a int"),
        ([], "holds no rows"),
        ({"text": ["a"], "label": []}, "1 values in 'text' and 0 in 'label'"),
        ([{"text": None, "label": "a"}], "1 of 1 rows of train have no text"),
        ([{"image": 3.5, "label": "a"}], "holds a float as image"),
        ({"test": ROWS, "dev": ROWS}, "no split 'train'"),
    ],
)
def test_what_cannot_be_read(source: Any, word: str) -> None:
    with pytest.raises(AffinageError, match=word):
        read(source)
