"""The card: metadata that the Hub's own reader accepts, and nothing that was not measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, metadata_load

from affinage.report import card


def loaded(folder: Path) -> ModelCard:
    return ModelCard.load(card.write(folder))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_hub_reads_it(reviews_run: Path) -> None:
    data, test = loaded(reviews_run).data, json.loads((reviews_run / "run.json").read_text())["test"]
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-classification")
    assert data.base_model == "sentence-transformers/all-MiniLM-L6-v2" and "affinage" in data.tags
    found = {result.metric_type: result for result in data.eval_results}
    assert found["accuracy"].metric_value == test["accuracy"] and found["f1"].metric_value == test["macro_f1"]
    assert found["accuracy"].dataset_name == "sst2" and found["accuracy"].dataset_split == "test"
    assert metadata_load(reviews_run / "README.md")["model-index"][0]["name"] == "all-MiniLM-L6-v2 on sst2"


def test_a_folder_is_no_base_model_and_no_path_is_told(digits_run: Path) -> None:
    assert loaded(digits_run).data.base_model is None
    assert "/home/someone" not in (digits_run / "README.md").read_text()


def test_fresh_weights_have_no_base(made_run: Any) -> None:
    folder = made_run(["a", "b"])
    assert loaded(folder).data.base_model == "org/model"
    edit(folder, plan={"name": "scratch", "fresh": True, "lora": 0, "stages": []})
    assert loaded(folder).data.base_model is None


def test_without_a_test_split_there_is_no_result_to_publish(made_run: Any) -> None:
    folder = made_run(["a", "b"])
    edit(folder, test={})
    found = loaded(folder)
    assert found.data.eval_results is None and "which also chose what was kept" in found.text


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "a|b", "# x", "[x](http://y)", "---\nlibrary_name: other", "yes: {no"]
)
def test_names_are_only_text(made_run: Any, name: str) -> None:
    folder = made_run([name, "b"], kept=name)
    data = json.loads((folder / "run.json").read_text())["data"]
    edit(folder, data=data | {"source": name, "findings": [{"severity": "warning", "message": name}]})
    found = loaded(folder)
    assert found.data.library_name == "transformers" and "<script" not in found.text
    assert not re.findall(r"(?<!\\)\]\(", found.text)  # the card itself makes no link, so a name makes none either
    assert all(line.count("|") in (0, 4) for line in found.text.replace("\\|", "").splitlines())


def test_a_run_without_anything(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"status": "running", "task": "text-classification", "settings": {}, "data": {}}')
    assert "Nothing has been measured" in loaded(tmp_path).text
