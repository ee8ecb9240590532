"""Settings: file and command line agree; what does not fit is told in one line that says how to mend it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from affinage import config
from affinage.errors import AffinageError

BOTH = {"model": "m", "data": "d"}


def refused(*args: Any) -> str:
    with pytest.raises(AffinageError) as caught:
        config.load(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("ending", ["yaml", "yml", "json"])
def test_file_and_command_line_agree(tmp_path: Path, ending: str) -> None:
    values = BOTH | {"learning_rate": 3e-5, "epochs": 3, "validation": 0.2, "unfreeze": 2, "resume": False, "out": "runs/x"}
    path = tmp_path / f"run.{ending}"
    path.write_text(json.dumps(values) if ending == "json" else yaml.safe_dump(values), encoding="utf8")
    words = {name: str(value) for name, value in values.items()}
    assert config.load(path) == config.load(None, words)
    assert config.load(path).given().keys() == values.keys()


def test_a_rate_that_yaml_reads_as_text_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ndata: d\nlearning_rate: 2e-5\n", encoding="utf8")  # YAML 1.1: text, for it lacks a dot
    assert config.load(path).learning_rate == 2e-5


def test_the_command_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ndata: d\nepochs: 3\nseed: 7\n", encoding="utf8")
    settings = config.load(path, {"epochs": "5"})
    assert (settings.epochs, settings.seed) == (5, 7)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"validation": "0.2"}, 0.2),
        ({"validation": "0"}, 0.0),
        ({"validation": 0}, 0.0),
        ({"validation": "rows.csv"}, "rows.csv"),
        ({"unfreeze": "2"}, 2),
        ({"unfreeze": "blocks.-2:"}, "blocks.-2:"),
        ({"unfreeze": "all"}, "all"),
        ({"learning_rate": "auto"}, "auto"),
        ({"batch_size": "32"}, 32),
        ({"label_smoothing": "0"}, 0.0),
        ({"layer_decay": "1"}, 1.0),
    ],
)
def test_words_become_what_they_mean(given: dict[str, Any], kept: Any) -> None:
    value = getattr(config.load(None, BOTH | given), next(iter(given)))
    assert value == kept and type(value) is type(kept)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", 5),
        ("data", 2024),
        ("learning_rate", "fast"),
        ("learning_rate", 0),
        ("learning_rate", -1e-3),
        ("learning_rate", "nan"),
        ("learning_rate", "inf"),
        ("epochs", 0),
        ("epochs", True),
        ("epochs", 1.5),
        ("batch_size", "big"),
        ("seed", -1),
        ("validation", 1),
        ("validation", -0.1),
        ("validation", 20),
        ("unfreeze", -1),
        ("unfreeze", "1.5"),
        ("layer_decay", 1.1),
        ("label_smoothing", 1),
        ("precision", "fp16"),
        ("leaks", "ignore"),
        ("augment", True),
        ("mix", 1.1),
        ("mix", True),
        ("resume", "perhaps"),
        ("labels_per_class", 0),
    ],
)
def test_a_wrong_value_says_found_and_expected(name: str, value: Any) -> None:
    message = refused(None, BOTH | {name: value})
    assert name in message and repr(value) in message and str(config.Settings.model_fields[name].description) in message


def test_an_unknown_name_gets_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ndata: d\nlerning_rate: 1e-3\n", encoding="utf8")
    message = refused(path)
    assert "'lerning_rate'" in message and "'learning_rate'" in message and str(path) in message


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("run.yaml", "model: [a\ndata: b", "not valid YAML"),
        ("run.json", '{"model": }', "not valid JSON at line 1"),
        ("run.yaml", "- model\n", "holds a list"),
        ("run.toml", "model = 1", ".yaml, .yml or .json"),
        ("run.yaml", "", "no model given"),
    ],
)
def test_a_file_that_is_no_settings(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf8")
    assert told in refused(tmp_path / name)


def test_no_file(tmp_path: Path) -> None:
    assert "cannot read" in refused(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"model: caf\xe9\n")
    assert "not UTF-8" in refused(tmp_path / "latin.yaml")


def test_model_and_data_are_needed_but_not_to_go_on() -> None:
    assert "no data given" in refused(None, {"model": "m"})
    assert "no out given" in refused(None, {"resume": True})
    assert config.load(None, {"resume": True, "out": "runs/x"}).model is None


def test_the_folder_has_a_name_that_tells(tmp_path: Path) -> None:
    table = tmp_path / "reviews.csv"
    table.write_text("text,label\n", encoding="utf8")
    assert config.load(None, {"model": "org/bert-v1.5", "data": str(table)}).folder() == Path("runs/reviews-bert-v1.5")
    assert config.load(None, BOTH | {"out": "x"}).folder() == Path("x")
    assert config.make({"model": object(), "data": [1]}).folder() == Path("runs/list-object")
