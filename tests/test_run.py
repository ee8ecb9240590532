"""A run from end to end on tiny models: what the folder holds, what it is equal to, and that bad input leaves none behind."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers as T
from PIL import Image

import affinage
from affinage import config, hold, plans, record, run
from affinage.cli import main
from affinage.errors import AffinageError
from affinage.hold import Hold
from affinage.inputs import prepare
from affinage.run import plan_of
from affinage.trained import remove

from . import tiny

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 16, "quiet": True}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.csvs(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.resnet(tmp_path_factory.mktemp("resnet"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def text_run(bert: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> affinage.Run:
    return affinage.fit(bert, texts, out=tmp_path_factory.mktemp("text") / "run", **QUICK)


@pytest.fixture(scope="module")
def image_run(resnet: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> affinage.Run:
    return affinage.fit(resnet, pictures, out=tmp_path_factory.mktemp("image") / "run", **QUICK)


def predictions(made: affinage.Run, split: str = "test") -> list[dict[str, Any]]:
    return [row for row in pq.read_table(made.path / "predictions.parquet").to_pylist() if row["split"] == split]


def stopped(monkeypatch: pytest.MonkeyPatch, model: Path, data: Any, out: Path) -> None:
    """A run in `out` that is stopped once it has learnt, before it leaves its model."""

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            affinage.fit(model, data, out=out, **QUICK)


def weights(made: affinage.Run) -> bytes:
    return (made.path / "model.safetensors").read_bytes()


# ---------------------------------------------------------------------------------------------------------- the folder
@pytest.mark.parametrize("kind", ["text", "image"])
def test_pipeline_gives_the_predictions(kind: str, request: pytest.FixtureRequest, pictures: Path) -> None:
    """Plain transformers on the folder, and `Run.predict`, against predictions.parquet: 1e-4 in every probability."""
    made: affinage.Run = request.getfixturevalue(f"{kind}_run")
    rows = predictions(made)
    inputs = [row["text"] if kind == "text" else str(pictures / row["id"]) for row in rows]
    tag = "text-classification" if kind == "text" else "image-classification"
    options = {} if kind == "text" else {"image_processor": T.AutoImageProcessor.from_pretrained(made.path, backend="pil")}
    pipe = T.pipeline(tag, model=str(made.path), top_k=None, **options)
    for row, plain, own in zip(rows, pipe(inputs), made.predict(inputs), strict=True):
        theirs = {answer["label"]: answer["score"] for answer in plain}
        assert theirs.keys() == set(made.classes)
        for name, probability in zip(made.classes, row["probabilities"], strict=True):
            assert abs(theirs[name] - probability) < 1e-4 and abs(own["scores"][name] - probability) < 1e-4
        assert own["label"] == row["prediction"] and own["score"] == pytest.approx(row["confidence"], abs=1e-4)
    right = np.mean([row["label"] == row["prediction"] for row in rows])
    assert made.metrics["accuracy"] == pytest.approx(right) and made.metrics["n"] == len(rows)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_what_the_folder_holds(kind: str, request: pytest.FixtureRequest) -> None:
    made: affinage.Run = request.getfixturevalue(f"{kind}_run")
    names = {path.name for path in made.path.iterdir()}
    ours = {"run.json", "records.jsonl", "report.html", "README.md", "predictions.parquet", "findings.csv"}
    processor = {"tokenizer.json", "tokenizer_config.json"} if kind == "text" else {"preprocessor_config.json"}
    assert names == ours | processor | {"config.json", "model.safetensors"}
    config = json.loads((made.path / "config.json").read_text())
    classes = ["fish", "fruit", "tool"] if kind == "text" else ["across", "down", "spot"]
    assert config["id2label"] == {str(i): name for i, name in enumerate(classes)} and made.classes == classes
    assert config["label2id"] == {name: i for i, name in enumerate(classes)}
    splits = [row["split"] for row in pq.read_table(made.path / "predictions.parquet").to_pylist()]
    assert sorted(set(splits)) == ["test", "validation"]
    if kind == "image":
        wrong = [row for row in predictions(made) if row["label"] != row["prediction"]]
        assert all(Image.open(io.BytesIO(row["thumbnail"])).size == (32, 32) for row in wrong)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_run_json(kind: str, request: pytest.FixtureRequest) -> None:
    made: affinage.Run = request.getfixturevalue(f"{kind}_run")
    story = json.loads((made.path / "run.json").read_text())
    assert story == made.record
    began = {"affinage", "created", "task", "plan", "model", "data", "seed", "settings", "versions", "commit", "hardware"}
    ended = {"status", "finished", "stages", "files", "kept", "cuts", "cost", "cost_parts", "drift", "validation", "test"}
    assert story.keys() == began | ended
    assert story["status"] == "finished" and story["task"] == f"{kind}-classification" and story["seed"] == 0
    assert story["model"].keys() == {"source", "revision", "fingerprint", "architecture", "parameters", "pooling", "anatomy"}
    assert story["data"].keys() == {"source", "kind", "fingerprint", "rows", "classes", "findings"}
    assert story["data"]["rows"] == (
        {"train": 90, "validation": 30, "test": 30} if kind == "text" else {"train": 36, "validation": 12, "test": 12}
    )
    assert sum(row["parameters"] for row in story["model"]["anatomy"]) == story["model"]["parameters"]
    assert {"python", "torch", "transformers"} <= story["versions"].keys()
    parts = story["cost_parts"]
    assert parts.keys() == {"encoding", "encoding_by_split", "measuring"}
    each = parts["encoding_by_split"]
    assert list(each) == ["train", "validation", "test"] and all(cost["cpu_seconds"] > 0 for cost in each.values())
    assert sum(cost["seconds"] for cost in each.values()) == pytest.approx(parts["encoding"]["seconds"])
    assert [stage["stage"] for stage in story["stages"]] == ["head", "body"]
    head, body = story["stages"]
    assert {"method", "penalty", "gradient_norm", "cross_validated"} <= head["details"].keys()
    assert body["details"]["steps"] == 2 * int(np.ceil(story["data"]["rows"]["train"] / 16))
    parts = [stage["cost"] for stage in story["stages"]]
    assert story["cost"]["seconds"] > sum(part["seconds"] for part in parts) > 0
    assert all(low <= story["test"]["accuracy"] <= high for low, high in [story["test"]["accuracy_interval"]])
    facts = list(record.read(made.path / "records.jsonl"))
    assert {fact.stage for fact in facts} == {"head", "body"} and {fact.name for fact in facts} >= {
        "loss",
        "accuracy",
        "log_loss",
    }


def test_the_anatomy_says_who_learnt(text_run: affinage.Run) -> None:
    rows = {row["address"]: row for row in text_run.record["model"]["anatomy"]}
    assert list(rows) == ["stem", "blocks.0", "blocks.1", "head"]
    assert not rows["stem"]["trained"] and rows["stem"]["rate"] is None
    assert rows["blocks.1"]["rate"] > rows["blocks.0"]["rate"] > 0 and rows["head"]["trained"]


def test_load_and_evaluate(text_run: affinage.Run, texts: Path, tmp_path: Path) -> None:
    made = affinage.load(text_run.path)
    assert made.metrics == text_run.metrics and made.classes == text_run.classes
    scores = made.evaluate(texts)
    assert scores["split"] == "test"
    assert scores["accuracy"] == text_run.metrics["accuracy"]
    assert scores["log_loss"] == pytest.approx(text_run.metrics["log_loss"], abs=1e-5)
    assert made.evaluate(texts, split="validation")["accuracy"] == text_run.record["validation"]["accuracy"]
    alone = tiny.table(tmp_path / "later.csv", tiny.splits()["test"])
    assert made.evaluate(alone) == scores | {"split": "all"}
    assert made.predict([]) == []
    with pytest.raises(AffinageError, match=r"no split 'tset' in .*, did you mean 'test'\? \(it has train, validation, test\)"):
        made.evaluate(texts, split="tset")
    with pytest.raises(AffinageError, match=r"no label of .* is one that this run knows"):
        made.evaluate([{"text": "apple", "label": "red"}, {"text": "plum", "label": "blue"}])


def test_evaluate_leaves_out_what_fit_leaves_out(
    image_run: affinage.Run, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A broken picture, counted on stderr; data with other labels is refused."""
    shutil.copytree(pictures / "test", tmp_path / "later")
    scores = image_run.evaluate(tmp_path / "later")
    next((tmp_path / "later").glob("*/*.png")).with_name("broken.png").write_bytes(b"no picture")
    assert image_run.evaluate(tmp_path / "later") == scores
    assert "rows that cannot be read and are left out: 1 (1 not an image)" in capsys.readouterr().err
    rows = [{"image": next(pictures.glob("test/*/*.png")), "objects": {"bbox": [[1, 1, 5, 5]], "categories": ["a"]}}]
    with pytest.raises(AffinageError, match=r"learnt from rows with class, but .* has rows with boxes"):
        image_run.evaluate(rows)


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"plan": "frozen", "unfreeze": 2}, "--unfreeze 2 is for the plans two-stage and full: frozen trains the head alone"),
        ({"plan": "scratch", "unfreeze": 2}, "scratch trains all of it"),
        ({"max_length": 5}, "--max-length counts tokens of text"),
    ],
)
def test_settings_that_would_do_nothing(wishes: dict[str, Any], words: str, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(AffinageError, match=words):
        affinage.fit("starter-vision", pictures, out=tmp_path / "run", quiet=True, **wishes)
    assert not (tmp_path / "run").exists()


def test_image_forms(image_run: affinage.Run, pictures: Path) -> None:
    path = next(pictures.glob("test/*/*.png"))
    forms = [path, str(path), path.read_bytes(), Image.open(path).convert("RGB"), np.asarray(Image.open(path))]
    answers = image_run.predict(forms)
    assert all(answer == answers[0] for answer in answers)


def test_load_refuses(tmp_path: Path, text_run: affinage.Run) -> None:
    with pytest.raises(AffinageError, match=r"no run at .*gone: expected a folder with run.json"):
        affinage.load(tmp_path / "gone")
    shutil.copytree(text_run.path, tmp_path / "run")
    story = {**text_run.record, "status": "running"}
    (tmp_path / "run/run.json").write_text(json.dumps(story))
    with pytest.raises(AffinageError, match="was stopped before its end: go on with affinage fit --resume"):
        affinage.load(tmp_path / "run")


# --------------------------------------------------------------------------------------------------------------- plans
@pytest.mark.parametrize("kind", ["text", "image"])
@pytest.mark.parametrize("plan", plans.NAMES)
def test_every_plan(plan: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Each runs, and its folder, loaded anew, gives the logits that were measured."""
    model, data = (request.getfixturevalue(name) for name in (("bert", "texts") if kind == "text" else ("resnet", "pictures")))
    made = affinage.fit(model, data, plan=plan, out=tmp_path / "run", lora_rank=2, **QUICK)
    assert made.record["plan"]["name"] == plan and not (made.path / "checkpoints").exists()
    inputs = [row["text"] if kind == "text" else data / row["id"] for row in predictions(made)]
    for row, answer in zip(predictions(made), made.predict(inputs), strict=True):
        assert np.abs(np.array(row["probabilities"]) - list(answer["scores"].values())).max() < 1e-4
    assert (made.record["drift"] is None) == (plan == "scratch")
    if plan == "frozen":
        assert made.record["drift"] == 0.0
        before, after = (
            torch.cat([p.flatten() for n, p in found.named_parameters() if "embeddings" in n or ".layer" in n][:20])
            for found in (T.AutoModel.from_pretrained(model), T.AutoModel.from_pretrained(made.path))
        )
        assert before.equal(after[: len(before)])


def test_a_worse_second_stage_is_not_kept(bert: Path, texts: Path, tmp_path: Path) -> None:
    """At a rate that ruins the network stage 2 is measured, told, and dropped: the run is the frozen one, bit by bit."""
    same = {**QUICK, "precision": "fp32"}
    frozen = affinage.fit(bert, texts, plan="frozen", out=tmp_path / "frozen", **same)
    ruined = affinage.fit(bert, texts, out=tmp_path / "ruined", learning_rate=0.5, head_learning_rate=0.5, **same)
    assert ruined.record["kept"] == "head"
    assert ruined.record["stages"][1]["details"]["worse_than_before"] is True
    assert weights(ruined) == weights(frozen)
    assert ruined.metrics == frozen.metrics
    best = max(
        fact.value for fact in record.read(ruined.path / "records.jsonl") if (fact.stage, fact.name) == ("body", "accuracy")
    )
    assert best < frozen.record["validation"]["accuracy"]


def test_a_better_second_stage_is_kept(bert: Path, tmp_path: Path) -> None:
    data = tiny.csvs(tmp_path / "data", train=300, validation=100)
    made = affinage.fit(bert, data, out=tmp_path / "run", learning_rate=5e-3, epochs=6, precision="fp32", quiet=True)
    head, body = (stage["validation"] for stage in made.record["stages"])
    assert body["accuracy"] > head["accuracy"] and made.record["kept"].startswith("body, epoch ")
    assert made.record["validation"]["accuracy"] == body["accuracy"] and made.record["drift"] > 0.01


def test_the_hand_over_changes_no_prediction_and_a_worse_stage_undoes_it(bert: Path, texts: Path, tmp_path: Path) -> None:
    from affinage.net import Net
    from affinage.stages import _temper

    model = T.AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3).eval()
    batch = {"input_ids": torch.randint(5, 20, (8, 6)), "attention_mask": torch.ones(8, 6, dtype=torch.long)}
    net = Net.of(model, batch)
    before = model(**batch).logits
    _temper(net, 0.3)
    assert torch.allclose(model(**batch).logits, 0.3 * before, atol=1e-6)


def test_a_broken_picture_takes_no_answer_away(image_run: affinage.Run, pictures: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from affinage.cli import app

    good = sorted(path for path in pictures.rglob("*") if path.suffix in (".png", ".jpg"))[:2]
    for name, path in zip("bc", good, strict=True):
        shutil.copy(path, tmp_path / f"{name}{path.suffix}")
    (tmp_path / f"a{good[0].suffix}").write_bytes(good[0].read_bytes()[:40])
    told = CliRunner().invoke(app, ["predict", "--run", str(image_run.path), str(tmp_path)])
    lines = [json.loads(line) for line in told.stdout.splitlines() if line.startswith("{")]
    assert ["error" in line for line in lines] == [True, False, False]
    assert isinstance(told.exception, AffinageError) and str(told.exception).startswith("1 of 3 inputs could not be read")


def test_a_loss_that_is_not_finite(bert: Path, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(AffinageError, match=r"the loss is .* lower --learning-rate"):
        affinage.fit(bert, texts, plan="full", out=tmp_path / "run", learning_rate=1e30, precision="fp32", **QUICK)
    story = json.loads((tmp_path / "run" / "run.json").read_text())
    assert story["status"] == "failed" and "lower --learning-rate" in story["error"]
    with pytest.raises(AffinageError, match=r"holds a run that failed .* --overwrite"):
        affinage.fit(bert, texts, out=tmp_path / "run", **QUICK)
    with pytest.raises(AffinageError, match=r"failed \(the loss is"):
        affinage.load(tmp_path / "run")
    affinage.fit(bert, texts, plan="frozen", out=tmp_path / "run", overwrite=True, **QUICK)


def test_a_head_without_a_bias(tmp_path: Path, bert: Path, texts: Path) -> None:
    """Decoders score a token without a bias: the head is solved without one, and the folder says what was measured."""
    tokenizer = T.AutoTokenizer.from_pretrained(bert)
    torch.manual_seed(0)
    config = T.GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64, pad_token_id=0, initializer_range=0.2
    )
    T.GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    made = affinage.fit(tmp_path / "gpt2", texts, plan="frozen", out=tmp_path / "run", **QUICK)
    head = made.record["stages"][0]
    assert head["details"]["trained_parameters"] == 3 * 32
    assert abs(head["validation"]["log_loss"] - made.record["validation"]["log_loss"]) < 0.02
    assert made.metrics["accuracy"] > 0.4  # a third by chance
    ratio = head["validation"]["log_loss"] / head["details"]["cross_validated"]["log_loss"]
    assert 0.7 < ratio < 1.4  # what the solver promised is what the network does


# --------------------------------------------------------------------------------------------------------------- inputs
def test_in_memory_is_as_from_files(bert: Path, texts: Path, text_run: affinage.Run, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pandas = pytest.importorskip("pandas")
    parts = tiny.splits()
    forms = {
        "lists": parts,
        "frames": {name: pandas.DataFrame(part) for name, part in parts.items()},
        "datasets": datasets.DatasetDict({name: datasets.Dataset.from_list(part) for name, part in parts.items()}),
    }
    for name, form in forms.items():
        made = affinage.fit(bert, form, out=tmp_path / name, **QUICK)
        assert weights(made) == weights(text_run) and made.metrics == text_run.metrics, name


def test_one_table_in_memory(bert: Path, tmp_path: Path) -> None:
    """A list of rows without splits: no test scores, and none invented; the file of the same rows gives the same weights."""
    datasets = pytest.importorskip("datasets")
    pandas = pytest.importorskip("pandas")
    part = tiny.splits()["train"]
    path = tiny.table(tmp_path / "rows.csv", part)
    forms = {"file": path, "list": part, "frame": pandas.DataFrame(part), "dataset": datasets.Dataset.from_list(part)}
    made = {name: affinage.fit(bert, form, plan="frozen", out=tmp_path / name, **QUICK) for name, form in forms.items()}
    for name, one in made.items():
        assert weights(one) == weights(made["file"]), name
        assert one.metrics == {} and not (one.path / "predictions.parquet").exists()
        assert one.record["data"]["rows"] == {"train": 90}


def test_pictures_in_memory(resnet: Path, pictures: Path, image_run: affinage.Run, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    forms: dict[str, Any] = {"bytes": {}, "pillow": {}}
    for split in ("train", "validation", "test"):
        paths = sorted(
            (pictures / split).rglob("*.png"),
            key=lambda p: [row["id"] for row in all_ids(pictures)].index(str(p.relative_to(pictures))),
        )
        forms["bytes"][split] = [{"image": path.read_bytes(), "label": path.parent.name} for path in paths]
        forms["pillow"][split] = [{"image": Image.open(path).copy(), "label": path.parent.name} for path in paths]
    forms["datasets"] = datasets.DatasetDict(
        {
            split: datasets.Dataset.from_list(
                [{"image": {"bytes": row["image"], "path": None}, "label": row["label"]} for row in rows]
            ).cast_column("image", datasets.Image())
            for split, rows in forms["bytes"].items()
        }
    )
    for name, form in forms.items():
        made = affinage.fit(resnet, form, out=tmp_path / name, **QUICK)
        assert weights(made) == weights(image_run) and made.metrics == image_run.metrics, name


def all_ids(pictures: Path) -> list[dict[str, str]]:
    from affinage import data

    return [{"id": row} for _, split in data.read(pictures).splits() for row in split.ids]


def loaded(folder: Path) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = T.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, attn_implementation="eager")
    return model, T.AutoTokenizer.from_pretrained(folder)


def test_a_loaded_model(bert: Path, texts: Path, text_run: affinage.Run, tmp_path: Path) -> None:
    """The same run as from its folder, twice, and the model that was given stays as it was."""
    model, processor = loaded(bert)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    told = model.config.to_dict()
    for out in ("one", "two"):
        made = affinage.fit((model, processor), texts, out=tmp_path / out, **QUICK)
        assert weights(made) == weights(text_run)
    assert model.state_dict().keys() == before.keys() and model.config.to_dict() == told
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert made.record["model"]["source"] == "BertForSequenceClassification"


def test_what_the_owner_of_a_loaded_model_froze_may_learn(bert: Path, texts: Path) -> None:
    """Its flags are the owner's of before, and no constants of the class: a plan that teaches the table finds it."""
    model, processor = loaded(bert)
    table = "bert.embeddings.position_embeddings.weight"
    model.get_parameter(table).requires_grad_(False)
    given = prepare(config.make({"model": (model, processor), "data": texts}))
    assert table in dict(given.model.named_parameters()) and given.net.parameters[table] == "stem"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_loaded_model_of_half_precision(dtype: torch.dtype, bert: Path, texts: Path, tmp_path: Path) -> None:
    """As transformers 5 loads a checkpoint that was stored so; what learns is fp32, and what was given stays as it is."""
    model, processor = loaded(bert)
    made = affinage.fit((model.to(dtype), processor), texts, out=tmp_path / "run", **QUICK)
    assert model.dtype == dtype
    assert T.AutoModelForSequenceClassification.from_pretrained(made.path).dtype == torch.float32


def test_a_loaded_model_is_refused(bert: Path, texts: Path, tmp_path: Path) -> None:
    model, processor = loaded(bert)
    out = tmp_path / "run"
    with pytest.raises(AffinageError, match=r"a loaded model comes with its processor: give model=\(model, processor\)"):
        affinage.fit(model, texts, out=out)
    with pytest.raises(AffinageError, match="plan scratch takes a model's name or folder"):
        affinage.fit((model, processor), texts, plan="scratch", out=out)
    other = T.AutoModelForSequenceClassification.from_pretrained(bert, num_labels=5)
    with pytest.raises(AffinageError, match="has 5 outputs and the data 3 classes: load it with num_labels=3"):
        affinage.fit((other, processor), texts, out=out)
    torch.nn.utils.parametrizations.weight_norm(model.bert.encoder.layer[0].output.dense)
    with pytest.raises(
        AffinageError, match=r"2 weights that its configuration does not make \(bert.encoder.layer.0.output.dense"
    ):
        affinage.fit((model, processor), texts, out=out)
    assert not out.exists()


@pytest.mark.parametrize("wish", ["mean", "first", "native"])
def test_a_run_is_a_model_to_begin_with(wish: str, bert: Path, texts: Path, tmp_path: Path) -> None:
    """A second run from the folder of a first: the pooling is the first's, and its blocks are as many as the base model's."""
    one = affinage.fit(bert, texts, pooling=wish, out=tmp_path / "one", **QUICK)
    two = affinage.fit(one.path, texts, out=tmp_path / "two", plan="frozen", **QUICK)
    assert two.record["model"]["pooling"] == one.record["model"]["pooling"] == wish
    assert [row["address"] for row in two.record["model"]["anatomy"]] == ["stem", "blocks.0", "blocks.1", "head"]
    assert two.record["drift"] == 0.0


def test_few_labels_and_a_share(bert: Path, texts: Path, tmp_path: Path) -> None:
    few = affinage.fit(bert, texts, plan="frozen", labels_per_class=4, out=tmp_path / "few", **QUICK)
    assert few.record["data"]["rows"] == {"train": 12, "test": 30}  # the validation split would be labels that nobody counted
    assert few.record["stages"][0]["details"]["method"] == "ridge"
    rows = tiny.splits()["train"]
    none = affinage.fit(bert, texts, plan="frozen", validation=0, out=tmp_path / "none", **QUICK)
    assert none.record["data"]["rows"] == {"train": 90, "test": 30}  # all of train, and nothing chosen by what was held out
    held = affinage.fit(bert, rows, plan="frozen", validation=0.2, out=tmp_path / "held", **QUICK)
    assert held.record["data"]["rows"] == {"train": 72, "validation": 18} and held.metrics["n"] == 18


def test_seeds(bert: Path, texts: Path, tmp_path: Path) -> None:
    one, two, other = (
        affinage.fit(bert, texts, plan="full", seed=seed, out=tmp_path / str(i), **QUICK) for i, seed in enumerate((1, 1, 2))
    )
    assert weights(one) == weights(two) != weights(other)


# -------------------------------------------------------------------------------------------------------------- refusals
def pickled(folder: Path) -> Path:
    tiny.bert(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return folder


def leaky(folder: Path) -> Path:
    parts = tiny.splits()
    parts["train"][0] = parts["test"][0]
    parts["train"][1] = parts["validation"][0]
    folder.mkdir()
    for name, part in parts.items():
        tiny.table(folder / f"{name}.csv", part)
    return folder


def one_class(folder: Path) -> Path:
    folder.mkdir()
    return tiny.table(folder / "train.csv", [{"text": text["text"], "label": "same"} for text in tiny.rows(20, 0)])


def half_a_character(folder: Path) -> Path:
    folder.mkdir()
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in tiny.rows(20, 0)) + '{"text": "a \\ud83d b", "label": "fish"}\n')
    return path


def latin(folder: Path) -> Path:
    """Texts in folders of their classes, one with a file name as old archives leave them."""
    for label in ("fish", "fruit"):
        (folder / label).mkdir(parents=True)
        for i in range(4):
            (folder / label / f"{i}.txt").write_text(f"{label} number {i}")
    os.rename(folder / "fish" / "0.txt", os.fsencode(folder) + b"/fish/caf\xe9.txt")
    return folder


def two_headed(folder: Path) -> Path:
    """Its logits are the mean of two layers': no linear layer gives them."""
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16)
    T.DeiTForImageClassificationWithTeacher(T.DeiTConfig(**sizes, num_labels=3)).save_pretrained(folder)
    T.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": "{tmp}/gone"}, "no model at .*gone"),
    "no data": ({"data": "{tmp}/gone"}, "gone"),
    "unknown setting": ({"learning_rat": 1}, "unknown setting 'learning_rat', did you mean 'learning_rate'"),
    "unknown plan, told before the leak": (
        {"plan": "two_stage", "data": leaky},
        "unknown plan 'two_stage', did you mean 'two-stage'",
    ),
    "unknown task": ({"task": "text-clasification"}, "unknown task .*did you mean 'text-classification'"),
    "bad value": ({"epochs": 0}, "epochs is 0; expected a whole number from 1 up"),
    "task of other data": ({"task": "image-classification"}, "image"),
    "model of another task": ({"model": "{resnet}"}, "is not a model for text-classification"),
    "pickle": ({"model": pickled}, "holds its weights as a pickle"),
    "leak": (
        {"data": leaky},
        r"1 of 30 rows of (validation|test) stand in train as well; leave them out of training with --leaks drop",
    ),
    "one class": ({"data": one_class}, "same"),
    "half a character": ({"data": half_a_character}, "half a character|surrogate|UTF-8"),
    "too deep": ({"unfreeze": 7}, "cannot unfreeze 7 blocks: the model has 2"),
    "no such address": ({"unfreeze": "blocks.5"}, "stands for none of the 2 blocks"),
    "no such column": ({"text_column": "txt"}, "txt"),
    "share too small": ({"validation": 1.5}, "validation is 1.5; expected a share"),
    "no pooling for it": ({"model": "{resnet}", "data": "{pictures}", "pooling": "mean"}, "pooling mean cannot be saved"),
    "no head to solve": ({"model": two_headed, "data": "{pictures}"}, "no linear layer that gives the logits: use --plan full"),
    "out is a file": ({"out": "{file}"}, "is a file"),
    "out is not ours": ({"out": "{full}", "overwrite": True}, "is not empty and holds no run"),
    "a name of another code": ({"data": latin}, r"name of .*caf.* in train is not UTF-8: rename"),
    "augmented text": ({"augment": "light"}, "--augment light is for pictures and recordings, not for text-classification"),
    "mixing text": ({"mix": 0.5}, "--mix mixes pictures and their classes, and text-classification has none"),
    "mixing views": ({"model": "{resnet}", "data": "{pictures}", "mix": 0.5, "views": 2}, "give one of the two"),
    "an unknown starter": ({"model": "starter-of-nothing"}, "no starter 'starter-of-nothing'"),
    "nothing to resume": ({"model": None, "data": None, "resume": True}, "no run at .*run"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    name: str, bert: Path, texts: Path, resnet: Path, pictures: Path, tmp_path: Path
) -> None:
    changes, message = BAD[name]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    places = {"tmp": tmp_path, "resnet": resnet, "pictures": pictures, "file": tmp_path / "file", "full": tmp_path / "full"}
    settings: dict[str, Any] = {"model": bert, "data": texts, "out": tmp_path / "run"} | QUICK
    for key, value in changes.items():
        if isinstance(value, str):
            value = value.format(**places)
        elif isinstance(value, Callable):  # type: ignore[arg-type]
            value = value(tmp_path / key)
        settings[key] = value
    before = {path: path.is_dir() or path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(AffinageError, match=message) as error:
        affinage.fit(**settings)
    assert "\n" not in str(error.value)
    assert {path: path.is_dir() or path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_leaks_are_dropped_or_allowed(bert: Path, tmp_path: Path) -> None:
    data = leaky(tmp_path / "data")
    dropped = affinage.fit(bert, data, leaks="drop", plan="frozen", out=tmp_path / "dropped", **QUICK)
    assert dropped.record["data"]["rows"] == {"train": 88, "validation": 30, "test": 30}
    assert {finding["severity"] for finding in dropped.record["data"]["findings"]} >= {"leak"}
    allowed = affinage.fit(bert, data, leaks="allow", plan="frozen", out=tmp_path / "allowed", **QUICK)
    assert allowed.record["data"]["rows"]["train"] == 90
    with (dropped.path / "findings.csv").open(newline="") as file:
        named = [row for row in csv.DictReader(file) if row["severity"] == "leak"]
    assert {(row["split"], row["other_split"]) for row in named} == {("train", "validation"), ("train", "test")}


def test_unknown_labels_in_validation_and_test(bert: Path, tmp_path: Path) -> None:
    """Rows of a class that train does not have count as wrong; a validation split of nothing else does not end the run."""
    parts = tiny.splits()
    for row in parts["validation"]:
        row["label"] = "bird"
    parts["test"][0]["label"] = "bird"
    made = affinage.fit(bert, parts, out=tmp_path / "run", **QUICK)
    assert made.record["validation"]["accuracy"] == 0.0
    rows = predictions(made)
    assert rows[0]["label"] is None and made.metrics["n"] == 30 and made.classes == ["fish", "fruit", "tool"]


def test_a_network_of_pictures_lies_channels_last(resnet: Path, pictures: Path) -> None:
    ready = prepare(config.make({"model": resnet, "data": pictures}))
    kernels = [p for p in ready.model.parameters() if p.dim() == 4 and p.shape[2] > 1]
    assert kernels and all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def test_a_network_without_blocks_learns_uncut_and_says_why(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ALBERT runs one layer again and again: nothing is computed once, and the run ends as any other."""
    model = tiny.bert(tmp_path / "model")
    config = T.AlbertConfig(
        vocab_size=len((model / "vocab.txt").read_text().splitlines()),
        embedding_size=32,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    T.AlbertModel(config).save_pretrained(model)
    made = affinage.fit(model, texts, plan="two-stage", out=tmp_path / "run", **QUICK)
    why = made.record["cuts"]["body"]["why"]
    assert made.record["status"] == "finished" and "no chain of two or more blocks found in Albert" in why
    assert set(made.predict(["a word"])[0]["scores"]) == set(made.record["data"]["classes"])
    with pytest.raises(AffinageError, match=r"cannot unfreeze 1 blocks: the model has 0 .no chain"):
        affinage.fit(model, texts, unfreeze=1, out=tmp_path / "other", **QUICK)
    assert main(["show", "--run", str(made.path)]) == 0
    assert why in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------- again, and resume
def test_a_finished_run_is_left_alone(bert: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings: dict[str, Any] = {"plan": "frozen", "out": out, **QUICK}
    made = affinage.fit(bert, texts, **settings)
    with pytest.raises(AffinageError, match="already holds a finished run: choose another --out, or replace it with --overwrite"):
        affinage.fit(bert, texts, **settings)
    again = affinage.fit(out=out, resume=True)
    assert again.record == made.record  # nothing to go on with: the run as it is
    (out / "mine.txt").write_text("mine")
    replaced = affinage.fit(bert, texts, overwrite=True, **settings)
    assert replaced.record["created"] >= made.record["created"] and (out / "mine.txt").read_text() == "mine"
    assert set(replaced.record["files"]) > {"config.json", "model.safetensors", "predictions.parquet"}


@pytest.mark.parametrize("holds", ["nothing", "a run"])
def test_into_the_folder_one_stands_in(
    holds: str, bert: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which cannot be removed: the run goes into it all the same, and the one that it replaces is not lost for nothing."""
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    monkeypatch.chdir(tmp_path / "run")
    for out in (Path("."), tmp_path / "link"):
        if holds == "nothing":
            for path in Path().iterdir():
                path.unlink()
        made = affinage.fit(bert, texts, plan="frozen", out=out, overwrite=holds == "a run", **QUICK)
        assert made.record["status"] == "finished" and (tmp_path / "run" / "model.safetensors").exists()


def test_a_run_that_began_meanwhile_is_left_alone(
    bert: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look into the folder and the first stage another run may have come to its end there."""
    settings: dict[str, Any] = {"plan": "frozen", "out": tmp_path / "run", **QUICK}
    prepare = run.prepare

    def slowly(wishes: Any) -> Any:
        monkeypatch.setattr(run, "prepare", prepare)
        affinage.fit(bert, texts, seed=1, **settings)
        return prepare(wishes)

    monkeypatch.setattr(run, "prepare", slowly)
    with pytest.raises(AffinageError, match=r"another run began in .* meanwhile: choose another --out"):
        affinage.fit(bert, texts, seed=0, **settings)
    assert affinage.load(tmp_path / "run").record["seed"] == 1


def test_no_copy_of_a_training_row_is_held_out(bert: Path, tmp_path: Path) -> None:
    """Half of the rows stand twice, a quarter once more in capitals: what validates is new to the network."""
    rows = tiny.rows(400, seed=3)
    again = [*rows, *rows[:200], *({**row, "text": row["text"].upper() + "!"} for row in rows[:100])]
    made = affinage.fit(bert, again, plan="frozen", out=tmp_path / "run", **QUICK)
    assert made.record["data"]["rows"]["validation"] > 80
    held = {row["text"].lower().rstrip("!") for row in predictions(made, "validation")}
    counts = Counter(row["text"].lower().rstrip("!") for row in again)
    assert sum(counts[text] for text in held) == made.record["data"]["rows"]["validation"]  # all copies of what is held are held


def test_a_run_goes_on_in_the_numbers_that_it_began_with(
    bert: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine where the other precision is faster, too."""
    from affinage import inputs
    from affinage.fit import Fitting

    monkeypatch.setattr(inputs, "auto_precision", lambda *_: "bf16")
    step = Fitting.step
    monkeypatch.setattr(Fitting, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        affinage.fit(bert, texts, out=tmp_path / "run", **QUICK)
    monkeypatch.setattr(Fitting, "step", step)
    monkeypatch.setattr(inputs, "auto_precision", lambda *_: "fp32")
    made = affinage.fit(out=tmp_path / "run", resume=True, quiet=True)
    assert made.record["hardware"]["precision"] == "bf16" and made.record["settings"]["precision"] == "auto"


def test_what_is_not_the_runs_own_outlives_it(text_run: affinage.Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(text_run.path, out)
    (out / "notes").mkdir()
    (out / "notes/mine.txt").write_text("mine")
    remove(out)
    assert [path.relative_to(out).as_posix() for path in out.rglob("*")] == ["notes", "notes/mine.txt"]
    shutil.rmtree(out)
    shutil.copytree(text_run.path, out)
    remove(out)
    assert not out.exists()


@pytest.mark.parametrize("checkpoints", [True, False])
def test_killed_after_the_finished_mark(text_run: affinage.Run, tmp_path: Path, checkpoints: bool) -> None:
    """The report and the card are written from the folder; a resume writes them where a kill came before."""
    out = tmp_path / "run"
    shutil.copytree(text_run.path, out)
    (out / "report.html").unlink()
    (out / "README.md").unlink()
    if checkpoints:  # without, it was the user who removed the report
        (out / "checkpoints/step-000000001").mkdir(parents=True)
    made = affinage.fit(out=out, resume=True)
    assert made.metrics == text_run.metrics and (out / "report.html").exists() and (out / "README.md").exists()
    assert not (out / "checkpoints").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', '{"status": "finished"}'])
def test_a_record_that_is_none_is_told_in_one_line(bert: Path, texts: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    calls: list[Callable[[], Any]] = [
        lambda: affinage.load(tmp_path),
        lambda: affinage.fit(out=tmp_path, resume=True),
        lambda: affinage.fit(bert, texts, out=tmp_path, overwrite=True, **QUICK),
    ]
    for call in calls:
        with pytest.raises(AffinageError, match=r"run\.json .*restore"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_folder_that_cannot_be_made_is_refused_and_leaves_nothing(bert: Path, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(AffinageError, match=r"cannot write the run in .*Not a directory.* choose another --out"):
        affinage.fit(bert, texts, out=tmp_path / "file" / "run", **QUICK)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_is_full_at_once_leaves_nothing(
    bert: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_text

    def full(path: Path, *words: Any, **more: Any) -> int:
        if path.name == ".run.json.part":
            path.touch()
            raise OSError(28, "No space left on device")
        return write(path, *words, **more)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(AffinageError, match=r"cannot write the run in .*No space left"):
        affinage.fit(bert, texts, out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_low_rank_updates_are_told_where_they_are(bert: Path, texts: Path) -> None:
    rows = {row["address"]: row for row in plan_of(model=bert, data=texts, plan="lora")["model"]["anatomy"]}
    assert (rows["stem"]["trained"], rows["blocks.0"]["trained"], rows["head"]["trained"]) == (False, True, True)
    assert (rows["blocks.0"]["rate"], rows["head"]["rate"]) == (1e-3, 1e-3)


def test_resume_keeps_the_day_it_began(bert: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.BertForSequenceClassification.save_pretrained", full)
        with pytest.raises(AffinageError, match=r"cannot write the model .* free some space, then go on with --resume"):
            affinage.fit(bert, texts, out=out, **QUICK)
    story = json.loads((out / "run.json").read_text())
    assert story["status"] == "running"
    (out / "run.json").write_text(json.dumps({**story, "created": "2001-01-01T00:00:00+00:00"}))
    with pytest.raises(AffinageError, match="holds a run that was stopped: go on with --resume, or start again with --overwrite"):
        affinage.fit(bert, texts, out=out, **QUICK)
    made = affinage.fit(out=out, resume=True, quiet=True)
    assert made.record["created"] == "2001-01-01T00:00:00+00:00" and made.record["status"] == "finished"


def test_resume_with_data_in_memory(bert: Path, text_run: affinage.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lives in memory is given again; everything else is remembered."""
    out = tmp_path / "run"

    stopped(monkeypatch, bert, tiny.splits(), out)
    with pytest.raises(AffinageError):
        affinage.fit(out=out, resume=True)
    made = affinage.fit(data=tiny.splits(), out=out, resume=True)
    assert weights(made) == weights(text_run) and made.record["settings"]["epochs"] == 2


def test_resume_refuses_what_the_run_did_not_begin_with(
    bert: Path, texts: Path, text_run: affinage.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than to drop it without a word; the same command with --resume behind it goes on, from another folder too."""
    out = tmp_path / "run"

    stopped(monkeypatch, bert, texts, out)
    other: dict[str, Any] = {"epochs": 7, "plan": "full", "unfreeze": 1, "seed": 5, "test": texts / "test.csv", "views": 4}
    for name, value in other.items():
        with pytest.raises(AffinageError, match=rf"began with {name} .*, not {value}: leave that out .* or start again with"):
            affinage.fit(out=out, resume=True, **{name: value})
    with pytest.raises(AffinageError, match=r"began with model .*, not .*elsewhere"):
        affinage.fit(tmp_path / "elsewhere", texts, out=out, resume=True)
    with pytest.raises(AffinageError, match="began with labels_per_class not set, not 3: leave that out"):
        affinage.fit(out=out, resume=True, labels_per_class=3)
    moved = tmp_path / "moved"
    shutil.copytree(texts, moved)
    monkeypatch.chdir(bert.parent)
    made = affinage.fit(Path(bert.name), moved, out=out, resume=True, cache="off", **QUICK)
    assert weights(made) == weights(text_run) and made.record["settings"]["epochs"] == 2
    with pytest.raises(AffinageError, match="began with epochs 2, not 7"):
        affinage.fit(out=out, resume=True, epochs=7)


@pytest.mark.parametrize("changed", ["weights", "tokenizer", "loaded", "loaded tokenizer", "loaded activation"])
def test_resume_refuses_another_model_of_the_same_name(
    changed: str, bert: Path, texts: Path, text_run: affinage.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the head that was solved on one network would be joined to the frozen blocks of another, without a word."""
    model, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(bert, model)
    given: Any = loaded(model) if changed.startswith("loaded") else model
    stopped(monkeypatch, given, texts, out)
    for name in ("notes.txt", "eval_results.json", "trainer_state.json"):
        (model / name).write_text("what is no part of the network may change")
    said = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**said, "transformers_version": "5.99"}))
    kept = {path.name: path.read_bytes() for path in model.iterdir()}
    if changed.endswith("activation"):
        given[0].bert.encoder.layer[0].intermediate.intermediate_act_fn = torch.nn.ReLU()
    elif changed.endswith("tokenizer"):
        (model / "tokenizer.json").write_text((model / "tokenizer.json").read_text().replace("garden", "gorden"))
    else:
        network = T.BertModel.from_pretrained(model)
        with torch.no_grad():
            network.encoder.layer[0].output.dense.bias[0] += 1e-3
        network.save_pretrained(model)
    other = None if given is model else given if changed.endswith("activation") else loaded(model)
    with pytest.raises(AffinageError, match=r"the model .* is not what this run began with .* restore it, or start again with"):
        affinage.fit(other, out=out, resume=True, quiet=True)
    for name, content in kept.items():
        (model / name).write_bytes(content)
    made = affinage.fit(None if given is model else loaded(model), out=out, resume=True, quiet=True)
    assert weights(made) == weights(text_run)


def test_a_finished_run_is_looked_at_by_many(text_run: affinage.Run, tmp_path: Path) -> None:
    """`--resume` has nothing to do there, whoever else is at it; `--overwrite` has."""
    out = tmp_path / "run"
    shutil.copytree(text_run.path, out)
    with Hold(out) as other:
        assert other.take() == "" and affinage.fit(out=out, resume=True).record == text_run.record
        with pytest.raises(AffinageError, match="another run is at work in"):
            affinage.fit(text_run.record["model"]["source"], text_run.record["data"]["source"], out=out, overwrite=True)


def test_a_kill_before_the_record_is_there_leaves_no_folder_for_ever(bert: Path, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in (".run.json.part", hold.WORD):
        (tmp_path / "run" / name).write_text("")
    made = affinage.fit(bert, texts, plan="frozen", out=tmp_path / "run", **QUICK)
    assert made.record["status"] == "finished" and not {".run.json.part", hold.WORD} & {p.name for p in made.path.iterdir()}


def test_resume_knows_the_starter_of_the_run(pictures: Path, tmp_path: Path) -> None:
    words: dict[str, Any] = {"plan": "frozen", "out": tmp_path / "run", **QUICK}
    made = affinage.fit("starter", pictures, **words)
    assert made.record["settings"]["model"] == "starter-vision"
    assert affinage.fit("starter", pictures, resume=True, **words).record == made.record
    with pytest.raises(AffinageError, match="began with model starter-vision, not starter-text"):
        affinage.fit("starter-text", pictures, resume=True, **words)


# ------------------------------------------------------------------------------------------------------------- plan only
def test_the_plan_of_a_run_that_goes_on_is_its_own(text_run: affinage.Run) -> None:
    with pytest.raises(AffinageError, match=r"keeps its plan .affinage show --run .*: leave --resume out, or --dry-run"):
        plan_of(out=text_run.path, resume=True)


def test_plan_of_writes_nothing(bert: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = plan_of(model=bert, data=texts)
    assert list(tmp_path.iterdir()) == []
    assert told["plan"]["name"] == "two-stage" and [stage["how"] for stage in told["plan"]["stages"]] == ["solve", "fit"]
    assert told["task"] == "text-classification" and told["data"]["rows"]["train"] == 90
    json.dumps(told)


def test_the_folder_where_none_is_given(bert: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = affinage.fit(bert, texts, plan="frozen", quiet=True)
    assert made.path == Path("runs") / f"{texts.name}-{bert.name}" and (tmp_path / made.path / "run.json").exists()


def test_low_rank_updates_want_blocks(texts: Path, tmp_path: Path) -> None:
    """ALBERT runs one layer again and again: refused before anything is computed, in one line."""
    config = T.AlbertConfig(
        vocab_size=60, embedding_size=16, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    tiny.bert(tmp_path / "model")
    T.AlbertModel(config).save_pretrained(tmp_path / "model")
    with pytest.raises(AffinageError, match=r"low-rank updates beside .* use --plan full"):
        affinage.fit(tmp_path / "model", texts, plan="lora", out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_asks_for_tuples(texts: Path, tmp_path: Path) -> None:
    model = tiny.bert(tmp_path / "model")
    told = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**told, "return_dict": False}))
    run = affinage.fit(model, texts, unfreeze=1, epochs=1, out=tmp_path / "run", quiet=True)
    assert "accuracy" in run.metrics


def test_a_folder_of_the_processor_is_removed_with_the_run(bert: Path, texts: Path, tmp_path: Path) -> None:
    out = affinage.fit(bert, texts, out=tmp_path / "run", **QUICK).path
    (out / "additional_chat_templates").mkdir()
    (out / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    told = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**told, "files": [*told["files"], "additional_chat_templates"]}))
    remove(out)
    assert not out.exists()


def test_a_folder_of_the_processor_that_was_moved_before_a_kill(
    bert: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there when the run goes on and writes it anew."""
    model, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(bert, model)
    tokenizer = T.AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = {"default": "{{ messages }}", "tool": "{{ messages }}"}
    tokenizer.save_pretrained(model)
    replace = os.replace

    def killed(source: Any, target: Any) -> None:
        if Path(source).name == "model.safetensors":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            affinage.fit(model, texts, out=out, **QUICK)
    assert (out / "additional_chat_templates" / "tool.jinja").exists()
    made = affinage.fit(out=out, resume=True, quiet=True)
    assert (out / "additional_chat_templates" / "tool.jinja").exists() and made.record["status"] == "finished"


def test_all_is_on_the_disk_before_the_checkpoints_go(
    bert: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed, fsync, rmtree = set(), os.fsync, shutil.rmtree

    def flush(file: int) -> None:
        flushed.add(os.fstat(file).st_ino)
        fsync(file)

    def gone(path: Any, **more: Any) -> None:
        if Path(path).name == "checkpoints" and Path(path).is_dir():
            names = {file.name for file in out.iterdir() if file.is_file() and file.stat().st_ino not in flushed}
            assert out.stat().st_ino in flushed and names <= {"findings.csv", hold.WORD}
            seen.append(names)
        rmtree(path, **more)

    out, seen = tmp_path / "run", list[Any]()
    out.mkdir()
    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(shutil, "rmtree", gone)
    affinage.fit(bert, texts, out=out, **QUICK)
    assert len(seen) == 1
