"""Tiny random detectors of every family, each saved with its processor; pictures to find squares in; and what pycocotools says."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T
from PIL import Image, ImageDraw

from affinage.boxes import Boxes

SIDE = 64
PLAIN = dict(image_mean=[0.5] * 3, image_std=[0.25] * 3)
SQUARE = {"height": SIDE, "width": SIDE}
FORM = {"shortest_edge": 48, "longest_edge": 64}


def _resnet(*outs: str) -> T.ResNetConfig:
    return T.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=list(outs)
    )


_DETR = dict(d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
             encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=8, num_labels=2)  # fmt: skip
_NATIVE = dict(backbone=None, use_timm_backbone=False, use_pretrained_backbone=False)
_RT = dict(encoder_hidden_dim=16, encoder_in_channels=[8, 16, 16], encoder_layers=1, encoder_ffn_dim=32, encoder_attention_heads=2,
           d_model=16, num_queries=8, decoder_in_channels=[16] * 3, decoder_ffn_dim=32, decoder_layers=2, decoder_attention_heads=2,
           num_denoising=6, hidden_expansion=0.5, num_labels=2)  # fmt: skip
_THREE = ("stage2", "stage3", "stage4")


def detr() -> tuple[Any, Any]:
    config = T.DetrConfig(backbone_config=_resnet("stage4"), **_NATIVE, **_DETR)
    return T.DetrForObjectDetection(config), T.DetrImageProcessorPil(size=FORM, **PLAIN)


def conditional_detr() -> tuple[Any, Any]:
    config = T.ConditionalDetrConfig(backbone_config=_resnet("stage4"), **_NATIVE, **_DETR)
    return T.ConditionalDetrForObjectDetection(config), T.ConditionalDetrImageProcessorPil(size=FORM, **PLAIN)


def deformable_detr(**more: Any) -> tuple[Any, Any]:
    config = T.DeformableDetrConfig(
        backbone_config=_resnet(*_THREE), num_feature_levels=3, **_NATIVE, **(_DETR | {"d_model": 32}), **more
    )
    return T.DeformableDetrForObjectDetection(config), T.DeformableDetrImageProcessorPil(size=FORM, **PLAIN)


def rt_detr() -> tuple[Any, Any]:
    model = T.RTDetrForObjectDetection(T.RTDetrConfig(backbone_config=_resnet(*_THREE), **_RT))
    return model, T.RTDetrImageProcessorPil(size=SQUARE)


def rt_detr_v2() -> tuple[Any, Any]:
    model = T.RTDetrV2ForObjectDetection(T.RTDetrV2Config(backbone_config=_resnet(*_THREE), **_RT))
    return model, T.RTDetrImageProcessorPil(size=SQUARE)


def d_fine() -> tuple[Any, Any]:
    model = T.DFineForObjectDetection(T.DFineConfig(backbone_config=_resnet(*_THREE), depth_mult=0.34, **_RT))
    return model, T.RTDetrImageProcessorPil(size=SQUARE)


def rf_detr() -> tuple[Any, Any]:
    body = T.RfDetrDinov2Config(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=64, patch_size=8,
                                num_windows=2, window_block_indexes=[0, 2], out_features=["stage2", "stage4"])  # fmt: skip
    config = T.RfDetrConfig(backbone_config=body, d_model=32, intermediate_size=32, decoder_layers=2, decoder_ffn_dim=32,
                            decoder_self_attention_heads=2, decoder_cross_attention_heads=2, num_queries=8, group_detr=2,
                            c2f_num_blocks=1, num_labels=2)  # fmt: skip
    return T.RfDetrForObjectDetection(config), T.ViTImageProcessorPil(size=SQUARE, **PLAIN)


def yolos() -> tuple[Any, Any]:
    config = T.YolosConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=[48, 64],
                           patch_size=16, num_detection_tokens=8, num_labels=2)  # fmt: skip
    return T.YolosForObjectDetection(config), T.YolosImageProcessorPil(size=FORM, **PLAIN)


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    made.__name__: made for made in (detr, conditional_detr, deformable_detr, rt_detr, rt_detr_v2, d_fine, rf_detr, yolos)
}


def saved(folder: Path, family: str = "rt_detr") -> Path:
    """A model folder of that family, for two classes."""
    torch.manual_seed(0)
    model, processor = FAMILIES[family]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def pictures(folder: Path, train: int = 12, validation: int = 6, test: int = 6, seed: int = 0) -> Path:
    """COCO: pictures of 64 x 64 or 80 x 48 with one to three bright squares and discs on dark noise, a file a split."""
    draw = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    for split, count in (("train", train), ("validation", validation), ("test", test)):
        images, notes = [], []
        for i in range(count):
            size = (64, 64) if i % 3 else (80, 48)
            picture = Image.fromarray(draw.integers(0, 60, (size[1], size[0], 3)).astype(np.uint8))
            pen = ImageDraw.Draw(picture)
            for j in range(int(draw.integers(1, 4))):
                side = int(draw.integers(12, 24))
                x, y = int(draw.integers(0, size[0] - side)), int(draw.integers(0, size[1] - side))
                kind = (i + j) % 2
                (pen.rectangle if kind else pen.ellipse)(
                    [x, y, x + side - 1, y + side - 1], fill=(220, 180, 40) if kind else (60, 200, 240)
                )
                notes.append({"id": len(notes) + 1, "image_id": i, "category_id": kind, "bbox": [x, y, side, side], "iscrowd": 0})
            name = f"images/{split}-{i}.png"
            picture.save(folder / name)
            images.append({"id": i, "file_name": name, "width": size[0], "height": size[1]})
        whole = {"images": images, "annotations": notes, "categories": [{"id": 0, "name": "disc"}, {"id": 1, "name": "square"}]}
        if count:
            (folder / f"{split}.json").write_text(json.dumps(whole), encoding="utf8")
    return folder


def pycoco(answers: Sequence[dict[str, Any]], targets: Sequence[Boxes], count: int) -> Any:
    """pycocotools' own evaluation of boxes of `count` classes."""
    coco, evaluation = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    images, things, said = [], [], []
    for i, (answer, truth) in enumerate(zip(answers, targets, strict=True)):
        images.append({"id": i, "width": truth.size[0], "height": truth.size[1]})
        for kind, (x0, y0, x1, y1), many in zip(truth.classes, truth.boxes, truth.crowd, strict=True):
            things.append(
                {"id": len(things) + 1, "image_id": i, "category_id": int(kind), "bbox": [x0, y0, x1 - x0, y1 - y0],
                 "area": (x1 - x0) * (y1 - y0), "iscrowd": int(many)}
            )  # fmt: skip
        for box, score, kind in zip(answer["boxes"], answer["scores"], answer["classes"], strict=True):
            x0, y0, x1, y1 = np.asarray(box) * [*truth.size, *truth.size]
            said.append({"image_id": i, "category_id": kind, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth_of = coco.COCO()
        truth_of.dataset = {
            "images": images,
            "annotations": things,
            "categories": [{"id": k, "name": str(k)} for k in range(count)],
        }
        truth_of.createIndex()
        whole = evaluation.COCOeval(truth_of, truth_of.loadRes(said), "bbox")
        whole.evaluate()
        whole.accumulate()
        whole.summarize()
    return whole
