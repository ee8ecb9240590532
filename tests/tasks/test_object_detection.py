"""Every family of detectors: pictures as its processor gives them, its own loss, boxes where transformers' pipeline puts them."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T
from PIL import Image

from affinage import cli, run
from affinage import data as reading
from affinage.boxes import cleaned
from affinage.check import check
from affinage.cut import Cut, Resumed
from affinage.entry import lowest
from affinage.errors import AffinageError
from affinage.features import answered
from affinage.inputs import net_of
from affinage.lora import adapt, merge
from affinage.rates import decayed, resolve
from affinage.tasks.object_detection import task
from affinage.trained import load

from .. import detectors

pytest.importorskip("faster_coco_eval", reason="pip install 'affinage[detection]' for the scores of detectors")


@pytest.fixture(scope="module", params=detectors.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return detectors.pictures(tmp_path_factory.mktemp("boxes") / "data")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a family's tiny model, made once."""
    root = tmp_path_factory.mktemp("models")
    return lambda name: root / name if (root / name).is_dir() else detectors.saved(root / name, name)


def loaded(folder: Path, names: tuple[str, ...] = ("disc", "square")) -> tuple[Any, Any]:
    torch.manual_seed(0)
    return task.load(folder, names, fresh=False, revision=None)


def test_the_loss_is_the_models_own(family: str, models: Any, source: Path) -> None:
    """What transformers' own forward says of the same pictures with boxes as its processor would encode them."""
    model, processor = loaded(models(family))
    data, _ = task.number(reading.read(source))
    rows = task.encode(data.train.inputs, processor, model)
    aims = task.aims(data.train.targets, rows, processor, model)
    some = np.arange(5)
    batch, targets = task.teach(rows.batch(some), aims.batch(some), "none")
    for kinds, boxes in ((t["class_labels"], t["boxes"]) for t in targets):
        assert len(kinds) == len(boxes) and (boxes >= 0).all() and (boxes <= 1).all()
    with torch.no_grad():
        ours = task.loss(model.eval()(**batch), targets, weights=None, smoothing=0.0)
        fresh = type(model).from_pretrained(models(family)).eval()
        theirs = fresh(**batch).loss
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = model(**batch).loss
    assert low.dtype == torch.float32 and low.isfinite()  # which queries are chosen may differ: the value may, too
    # and taught in train mode, with every augmentation
    model.train()
    for augment in ("none", "light", "strong"):
        batch, targets = task.teach(rows.batch(some), aims.batch(some), augment)
        model(**batch).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_pictures_are_the_processors(family: str, models: Any, source: Path) -> None:
    """The pixels and the mask that the processor gives, picture by picture; all of one size."""
    model, processor = loaded(models(family))
    inputs = reading.read(source).train.inputs
    batch = task.encode(inputs, processor, model).batch(np.arange(len(inputs)))
    for i, path in enumerate(inputs):
        with Image.open(path) as picture:
            theirs = processor(picture.convert("RGB"), return_tensors="pt")
        assert (batch["pixel_values"][i] - theirs["pixel_values"][0]).abs().max() < 1e-4
        if "pixel_mask" in batch:
            assert batch["pixel_mask"][i].equal(theirs["pixel_mask"][0])
    assert ("pixel_mask" in batch) == (family in ("detr", "conditional_detr", "deformable_detr"))


def test_class_heads_are_new_and_box_heads_stay(family: str, models: Any) -> None:
    """Of another number of classes; the frozen rest is the checkpoint's, bit by bit."""
    model, _ = loaded(models(family), ("a", "b", "c"))
    saved = type(model).from_pretrained(models(family)).state_dict()
    own = model.state_dict()
    new = {name for name in own if own[name].shape != saved[name].shape}
    assert new and all("class" in name or "score" in name for name in new), new
    assert all(own[name].equal(saved[name]) for name in own if name not in new and "class" not in name and "score" not in name)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_what_a_cut_leaves_out_changes_nothing(family: str, models: Any, source: Path) -> None:
    """Heads alone: the gradients from what was captured at the cut are those of the whole network, the loss of every layer too."""
    model, processor = loaded(models(family))
    data, _ = task.number(reading.read(source))
    rows = task.encode(data.train.inputs, processor, model)
    aims = task.aims(data.train.targets, rows, processor, model)
    net = net_of(task, model, rows.batch(np.arange(1)))
    heads = [name for name, address in net.parameters.items() if address == "head"]
    assert any("class" in name for name in heads) and any("bbox" in name for name in heads)
    assert not any("backbone" in name or "vit." in name for name in heads)
    table = resolve(net, (("head", 1e-3), ("*", None)))
    k = lowest(net, table)
    assert net.blocks and k is not None, net.why
    ceiling = task.ceiling(model)
    if ceiling is not None:
        place = net.places[ceiling]
        assert place.startswith("blocks."), "the decoder comes after the backbone's blocks"
        k = min(k, int(place.removeprefix("blocks.")))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(table[name] is not None)
    cut = Cut(net, k, rows)
    assert cut.share > 0.05
    some = np.arange(4)
    batch, targets = task.teach(rows.batch(some), aims.batch(some), "none")
    model.eval()
    whole = task.loss(model(**batch), targets, weights=None, smoothing=0.0)
    wanted = torch.autograd.grad(whole, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    units = {f"captured.{i}": u for i, u in enumerate(cut.packed(rows.batch(some)))}
    part = task.loss(Resumed(cut)(**batch, **units), targets, weights=None, smoothing=0.0)
    found = torch.autograd.grad(part, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    assert part.item() == pytest.approx(whole.item(), rel=1e-5)
    for one, other in zip(wanted, found, strict=True):
        assert (one is None) == (other is None) and (one is None or torch.allclose(one, other, atol=1e-4, rtol=1e-3))


def test_head_and_decoder(models: Any, source: Path) -> None:
    for name in ("rt_detr", "detr"):
        model, processor = loaded(models(name))
        rows = task.encode(reading.read(source).train.inputs[:1], processor, model)
        net = net_of(task, model, rows.batch(np.arange(1)))
        table = resolve(net, decayed(net, 1e-4, 0.85, 1e-3, "head+decoder"))
        assert all((rate is None) == ("decoder." not in n and net.parameters[n] != "head") for n, rate in table.items())
        assert any(rate == 1e-4 for rate in table.values()) and any(rate is None for rate in table.values())
    model, processor = loaded(models("yolos"))
    net = net_of(task, model, task.encode([task.example()], processor, model).batch(np.arange(1)))
    with pytest.raises(AffinageError, match="has no decoder"):
        decayed(net, 1e-4, 0.85, 1e-3, "head+decoder")


def test_boxes_are_those_of_the_pipeline(family: str, models: Any, source: Path, tmp_path: Path) -> None:
    """A saved run needs nothing of ours: plain `pipeline` says the same classes, scores and boxes."""
    model, processor = loaded(models(family))
    with torch.no_grad():  # sure of something
        for name, parameter in model.named_parameters():
            if "class" in name and name.endswith("bias"):
                parameter.copy_(torch.linspace(2, 0, len(parameter)))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    paths = [str(p) for p in reading.read(source).train.inputs[:4]]
    answers = answered(task, model.eval(), task.encode(paths, processor, model), processor, "fp32")
    said = task.said(task.completed(answers, paths), ("disc", "square"))
    pipe = T.pipeline("object-detection", model=str(tmp_path))
    compared = 0
    for path, ours in zip(paths, said, strict=True):
        with Image.open(path) as picture:
            assert (ours["width"], ours["height"]) == picture.size
        theirs = sorted(pipe(path, threshold=0.5), key=lambda one: -one["score"])[:100]
        assert len(theirs) == len(ours["boxes"])
        for one, other in zip(theirs, ours["boxes"], strict=True):
            assert one["label"] in ("disc", "square") and abs(one["score"] - other["score"]) < 1e-3
        for other in ours["boxes"]:
            near = [one for one in theirs if one["label"] == other["label"] and abs(one["score"] - other["score"]) < 1e-3]
            ends = [[max(0, one["box"][k]) for k in ("xmin", "ymin", "xmax", "ymax")] for one in near]
            assert any(all(abs(a - b) <= 1.5 for a, b in zip(end, other["box"], strict=True)) for end in ends)
            compared += 1
    assert compared


def test_crowds_and_unknown_classes_are_not_taught() -> None:
    boxes = cleaned(["a", "b", "z"], [[0, 0, 5, 5]] * 3, (10, 10), [False, True, False]).numbered({"a": 0, "b": 1})
    nothing = cleaned([], [], (10, 10)).numbered({})
    aims = task.aims([boxes, nothing], None, None, None)  # type: ignore[arg-type]
    one, other = aims.batch(np.arange(2))
    assert one["class_labels"].tolist() == [0] and one["boxes"].tolist() == [[0.25, 0.25, 0.5, 0.5]]
    assert other["boxes"].shape == (0, 4) and aims.counts.tolist() == [1, 1]


def test_pictures_without_boxes_are_taught_too(family: str, models: Any) -> None:
    model, processor = loaded(models(family))
    rows = task.encode([task.example()] * 2, processor, model)
    aims = task.aims([cleaned([], [], (64, 64)).numbered({})] * 2, rows, processor, model)
    batch, targets = task.teach(rows.batch(np.arange(2)), aims.batch(np.arange(2)), "light")
    loss = task.loss(model.train()(**batch), targets, weights=None, smoothing=0.0)
    loss.backward()
    assert loss.isfinite() and loss.item() > 0


def test_what_cannot_be_loaded_is_told_in_one_line(models: Any, tmp_path: Path) -> None:
    from .. import tiny

    with pytest.raises(AffinageError, match="is not a model for object-detection"):
        loaded(tiny.bert(tmp_path / "bert"))
    folder = tmp_path / "timm"
    folder.mkdir()
    config = {
        "model_type": "detr",
        "use_timm_backbone": True,
        "backbone": "resnet50",
        "architectures": ["DetrForObjectDetection"],
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf8")
    with pytest.raises(AffinageError, match="timm"):
        loaded(folder)
    model, processor = loaded(models("rt_detr"))
    with pytest.raises(AffinageError, match="2 outputs and the data 3 classes"):
        task.adopt(model, processor, ("a", "b", "c"))


def test_classes_follow_the_source(tmp_path: Path) -> None:
    source = detectors.pictures(tmp_path)
    whole = json.loads((source / "train.json").read_text(encoding="utf8"))
    whole["categories"] = [{"id": 1, "name": "square"}, {"id": 0, "name": "disc"}, {"id": 9, "name": "nothing"}]
    (source / "train.json").write_text(json.dumps(whole), encoding="utf8")
    data, names = task.number(reading.read(source))
    assert names == ("disc", "square") and set(data.train.targets[0].classes.tolist()) <= {0, 1}
    whole["annotations"] = []
    (source / "train.json").write_text(json.dumps(whole), encoding="utf8")
    with pytest.raises(AffinageError, match="nothing can be learnt"):
        task.number(reading.read(source))


def test_a_run_from_end_to_end(models: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stages, then everything a run leaves: scores, pictures, boxes for new files, drawn as well."""
    monkeypatch.setenv("AFFINAGE_CACHE", str(tmp_path / "cache"))  # other tests count what is kept
    done = run.fit(models("rt_detr"), source, plan="two-stage", epochs=2, out=tmp_path / "run", quiet=True, batch_size=4,
                   precision="fp32", augment="light", head_learning_rate=1e-3, learning_rate=1e-3)  # fmt: skip
    record = done.record
    assert record["task"] == "object-detection" and record["data"]["classes"] == ["disc", "square"]
    assert record["cuts"]["head"]["address"] and not record["cuts"]["head"]["why"], record["cuts"]
    assert 0 <= record["test"]["map"] <= record["test"]["map50"] <= 1 and record["test"]["n"] == 6
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf8")
    assert "Worst pictures" in page and "Precision and recall" in page and "<svg" in page and "data:image/jpeg" in page
    said = done.predict([source / "images" / "test-0.png"])
    assert said[0]["width"] == 80 and isinstance(said[0]["boxes"], list)
    assert done.evaluate(source)["map"] == record["test"]["map"]
    words = ["predict", "--run", str(tmp_path / "run"), str(source / "images" / "test-0.png"), "--draw"]
    assert cli.main([*words, str(tmp_path / "drawn")]) == 0
    with Image.open(tmp_path / "drawn" / "0001-test-0.png") as picture:
        assert picture.size == (80, 48)
    (tmp_path / "file").write_text("", encoding="utf8")
    assert cli.main([*words, str(tmp_path / "file")]) == 2
    T.pipeline("object-detection", model=str(tmp_path / "run"))(str(source / "images" / "test-0.png"))


def test_one_class(models: Any, source: Path, tmp_path: Path) -> None:
    """A detector of one kind of thing, which is what most people want first, opens again, here and in a plain pipeline."""
    data = tmp_path / "data"
    shutil.copytree(source, data)
    for file in data.glob("*.json"):
        whole = json.loads(file.read_text(encoding="utf8"))
        whole["categories"] = whole["categories"][:1]
        whole["annotations"] = [note | {"category_id": 0} for note in whole["annotations"]]
        file.write_text(json.dumps(whole), encoding="utf8")
    done = run.fit(models("rt_detr"), data, plan="full", epochs=1, out=tmp_path / "run", quiet=True, batch_size=4)
    picture = source / "images" / "test-0.png"
    assert done.classes == ["disc"] and {box["label"] for box in done.predict([picture])[0]["boxes"]} <= {"disc"}
    assert load(tmp_path / "run").evaluate(data)["map"] == done.record["test"]["map"]
    T.pipeline("object-detection", model=str(tmp_path / "run"))(str(picture))


def test_low_rank_updates(family: str, models: Any, source: Path) -> None:
    """Beside every family's blocks; once merged, the network says the same and has its own layers only."""
    model, processor = loaded(models(family))
    batch = task.encode(reading.read(source).train.inputs[:2], processor, model).batch(np.arange(2))
    net = net_of(task, model, batch)
    names = [name for name, _ in model.named_parameters()]
    adapt(model, net.blocks, 2, 0)
    low = [p for name, p in model.named_parameters() if "lora_" in name]
    assert low
    with torch.no_grad():
        for p in low:
            p.add_(0.01)
        before = model.eval()(**batch).logits
        merge(model)
        assert torch.allclose(model(**batch).logits, before, atol=1e-4)
    assert [name for name, _ in model.named_parameters()] == names


# -------------------------------------------------------------------------------------------------------------- bad input
def bomb(path: Path, side: int) -> None:
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pieces = [(b"IHDR", head), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in pieces)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_the_check_counts_what_is_wrong(tmp_path: Path) -> None:
    source = detectors.pictures(tmp_path, 6, 4, 0)
    whole = json.loads((source / "train.json").read_text(encoding="utf8"))
    bomb(source / "images" / "bomb.png", 50_000)
    (source / "images" / "broken.png").write_bytes(b"no picture")
    whole["images"] += [
        {"id": n, "file_name": f"images/{name}"} for n, name in ((90, "bomb.png"), (91, "broken.png"), (92, "gone.png"))
    ]
    whole["annotations"] = [
        {"image_id": 0, "category_id": 0, "bbox": [-9, 0, 20, 20]},
        {"image_id": 0, "category_id": 0, "bbox": [float("nan"), 0, 20, 20]},
        {"image_id": 1, "category_id": 0, "bbox": [5, 5, 0, 20]},
        {"image_id": 1, "category_id": 0, "bbox": [500, 5, 20, 20]},
        {"image_id": 2, "category_id": 0, "bbox": [5, 5, 20, 20], "iscrowd": 1},
        {"image_id": 3, "category_id": 0, "bbox": [5, 5, 20, 20]},
        {"image_id": 404, "category_id": 0, "bbox": [5, 5, 20, 20]},
    ]
    (source / "train.json").write_text(json.dumps(whole), encoding="utf8")
    found = {finding.kind: finding for finding in check(reading.read(source))}
    assert "boxes of train that leave their picture and are clipped to it: 1" in found["box-clipped"].message
    assert "have no area" in found["box-empty"].message and "not finite" in found["box-broken"].message
    assert (
        "outside" in found["box-outside"].message
        and "boxes of train that are crowds or hard to tell: 1" in found["box-crowd"].message
    )
    assert found["no-boxes"].message.startswith("3 of 6 pictures of train have no box: they are kept")
    assert "over 100 megapixels" in found["unreadable"].message and len(found["unreadable"].rows) == 4
    assert "boxes of classes that train does not have (square)" in found["label-only-in-test"].message
    assert not any(finding.severity == "error" for finding in found.values())
    whole["annotations"] = []
    (source / "train.json").write_text(json.dumps(whole), encoding="utf8")
    assert any(f.severity == "error" and "no box in any picture" in f.message for f in check(reading.read(source)))


def test_tables_with_objects(tmp_path: Path) -> None:
    """JSON lines beside the pictures, in split folders, Parquet with bytes, and a Dataset in memory: the same boxes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = detectors.pictures(tmp_path / "coco", 4, 2, 0)
    wanted = reading.read(source)
    flat, parted = tmp_path / "flat", tmp_path / "parted"
    for split, name in (("train", "train"), ("validation", "validation")):
        whole = getattr(wanted, split)
        rows = []
        for path, boxes in zip(whole.inputs, whole.targets, strict=True):
            cells = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes.boxes.tolist()]
            rows.append((path, {"bbox": cells, "categories": boxes.classes.tolist()}))
        for folder in (parted / name, *([flat] if split == "train" else [])):
            folder.mkdir(parents=True, exist_ok=True)
            for path, _ in rows:
                (folder / path.name).write_bytes(path.read_bytes())
            lines = [json.dumps({"file_name": path.name, "objects": cell}) for path, cell in rows]
            (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf8")
        table = [{"image": {"bytes": path.read_bytes(), "path": path.name}, "objects": cell} for path, cell in rows]
        (tmp_path / "parquet").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(table), tmp_path / "parquet" / f"{split}.parquet")
    listed = [{"image": str(path), "objects": {"bbox": cell["bbox"], "category": cell["categories"]}} for path, cell in rows]
    for other in (flat, parted, tmp_path / "parquet", {"train": listed, "validation": listed}):
        found = reading.read(other)
        assert found.labels == "boxes" and found.kind == "image"
        if other is not flat:
            assert found.validation is not None and str(found.validation.targets[1]) == str(wanted.validation.targets[1])  # type: ignore[union-attr]
    assert [str(t) for t in reading.read(flat).train.targets] == [str(t) for t in wanted.train.targets]
    assert reading.read(parted).train.ids[0] == "train/metadata.jsonl:1"


def test_declared_classes_of_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="pip install 'affinage[datasets]'")
    names = ["disc", "square"]
    kinds = datasets.List({"bbox": datasets.List(datasets.Value("float32")), "category": datasets.ClassLabel(names=names)})
    features = datasets.Features({"image": datasets.Image(), "objects": kinds})
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    row = {"image": str(tmp_path / "a.png"), "objects": [{"bbox": [1, 1, 5, 5], "category": 1}]}
    set_ = datasets.Dataset.from_list([row, row], features=features)
    found = reading.read(set_)
    assert found.classes == ("disc", "square") and found.train.targets[0].classes.tolist() == ["square"]
    set_.to_parquet(tmp_path / "train.parquet")
    found = reading.read(tmp_path / "train.parquet")
    assert found.classes == ("disc", "square") and found.train.targets[0].boxes.tolist() == [[1, 1, 6, 6]]


def test_settings_that_are_for_other_tasks(models: Any, source: Path, tmp_path: Path) -> None:
    with pytest.raises(AffinageError, match="--class-weights is for tasks that tell classes apart"):
        run.fit(models("rt_detr"), source, class_weights="balanced", out=tmp_path / "x", quiet=True)
    assert not (tmp_path / "x").exists()
