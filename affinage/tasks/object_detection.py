"""Object detection: a picture in, boxes with classes out, by the detectors of transformers that learn by matching (DETR)."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from affinage.boxes import Boxes
from affinage.errors import AffinageError
from affinage.measure import detection
from affinage.pictures import ImageRows, encoded, opened, size_of
from affinage.types import Answers, Batch, Data, Rows, Split, Task

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

PART = 256  # rows of predictions that are written at a time
SHOWN = 24  # pictures of a split that are kept for the report: those with the most mistakes
SIDE = 480  # pixels of such a picture at most
SURE = 0.5  # score from which `predict` tells a box, as transformers' own pipeline has it
UNSEEN = "(unseen class)"

# What belongs to the head, by whatever name: class and box layers of the decoder, and of the encoder where it proposes.
HEAD = (
    *("*class_embed*", "*bbox_embed*", "*class_labels_classifier*", "*bbox_predictor*"),
    *("*enc_score_head*", "*enc_bbox_head*", "*enc_out_class_embed*", "*enc_out_bbox_embed*"),
    *("*lqe_layers*", "*pre_bbox_head*"),
)


@dataclass(frozen=True)
class DetectionRows:
    """N pictures at the size that the model reads; smaller ones fill a part of it from the top left corner."""

    pictures: ImageRows
    filled: np.ndarray | None = None  # (N, 2) int64 height and width in pixels of what is picture; None: all of it

    @property
    def pixels(self) -> Any:
        return self.pictures.pixels

    @property
    def lengths(self) -> np.ndarray:
        return self.pictures.lengths

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, rows: np.ndarray) -> Batch:
        """`pixel_values` (B, 3, H, W) float32, 0 beyond the picture; where some are smaller also `pixel_mask` (B, H, W) int64."""
        import torch

        found = self.pictures.batch(rows)
        if self.filled is None:
            return found
        height, width = found["pixel_values"].shape[-2:]
        tall, wide = torch.from_numpy(self.filled[np.asarray(rows)]).unbind(1)
        mask = (torch.arange(height)[None, :, None] < tall[:, None, None]) & (torch.arange(width) < wide[:, None, None])
        mask = mask.to(found["pixel_values"].device)
        return {"pixel_values": found["pixel_values"] * mask[:, None], "pixel_mask": mask.long()}


@dataclass(frozen=True)
class BoxAims:
    """What is taught of N pictures: crowds are not."""

    things: Sequence[tuple[np.ndarray, np.ndarray]]  # of each: classes (n,) int64, boxes (n, 4) float32 as shares of the picture
    # The loss is a mean over boxes, and over one where there is none.
    counts: np.ndarray  # (N,)

    def __len__(self) -> int:
        return len(self.things)

    def batch(self, rows: np.ndarray) -> list[dict[str, torch.Tensor]]:
        """For each row `class_labels` (n,) and `boxes` (n, 4), centre x, centre y, width, height."""
        import torch

        chosen = [self.things[i] for i in rows]
        return [{"class_labels": torch.from_numpy(kinds), "boxes": torch.from_numpy(boxes)} for kinds, boxes in chosen]


@dataclass(frozen=True)
class ObjectDetection(Task):
    """DETR, Conditional and Deformable DETR, RT-DETR, D-FINE, RF-DETR and YOLOS: what `AutoModelForObjectDetection` knows."""

    name: str = "object-detection"
    kind: Literal["image"] = "image"
    labels: Literal["boxes"] = "boxes"
    metric: str = "map"
    reads: tuple[str, ...] = ("logits", "pred_boxes")
    augments: str = "light"

    # ------------------------------------------------------------------------------------------------------- targets
    def number(self, data: Data) -> tuple[Data, tuple[str, ...]]:
        """Classes in the order that the source declares, else by name; those of which train has no box are none."""
        detection.needed()
        found = {str(kind) for boxes in data.train.targets for kind in boxes.classes[~boxes.crowd]}
        if not found:
            raise AffinageError(f"no picture of {data.source} has a box in train: nothing can be learnt")
        order = [name for name in data.classes or () if name in found]
        names = (*order, *sorted(found.difference(order)))
        splits = {
            name: replace(split, targets=self.known(split.targets, names, data.source, some=name == "train"))
            for name, split in data.splits()
        }
        return replace(data, classes=names).with_splits(**splits), names

    def known(self, targets: Sequence[Any], names: Sequence[str], source: str, *, some: bool = True) -> list[Boxes]:
        """Class numbers in place of names; -1 for what is none of `names`. `some`: refuse where none is known."""
        number = {name: i for i, name in enumerate(names)}
        found = [boxes if boxes.classes.dtype == np.int64 else boxes.numbered(number) for boxes in targets]
        if some and not any((boxes.classes >= 0).any() for boxes in found):
            raise AffinageError(f"no box of {source} is of a class that this run knows ({', '.join(names[:5])}...)")
        return found

    # --------------------------------------------------------------------------------------------------------- model
    def load(self, source: str | Path, names: Sequence[str], *, fresh: bool, revision: str | None) -> tuple[Any, Any]:
        """(model, image processor of the Pillow backend that gives every picture the same size).

        Class heads are drawn anew where the number of classes is another; the box heads are kept.
        """
        import transformers

        from affinage import pretrained

        config = pretrained.configured(source, names, task=self.name, revision=revision)
        if getattr(getattr(config, "backbone_config", None), "model_type", "") == "timm_backbone":
            raise AffinageError(
                f"{source} stands on a backbone of timm, which needs torchvision: choose a checkpoint whose backbone is native "
                "(facebook/detr-resnet-50 has one at --revision no_timm; RT-DETR and D-FINE have)"
            )
        model = pretrained.load(
            transformers.AutoModelForObjectDetection, source, names, task=self.name, fresh=fresh, revision=revision
        )
        processor = pretrained.image_processor(source, task=self.name, revision=revision)
        if config.model_type == "rf_detr" and not hasattr(processor, "post_process_object_detection"):
            # its own was written for torchvision alone; what it does after the model is what Deformable DETR's does
            numbers = {name: getattr(processor, name) for name in pretrained.STEPS if getattr(processor, name, None) is not None}
            processor = transformers.DeformableDetrImageProcessorPil(**numbers, do_pad=False)
        if not hasattr(processor, "post_process_object_detection"):
            raise AffinageError(
                f"the image processor of {source} does not know boxes ({type(processor).__name__}): expected a "
                "preprocessor_config.json of a detector, such as one with image_processor_type RTDetrImageProcessor"
            )
        return self._ready(model), one_size(processor, model)

    def adopt(self, model: Any, processor: Any, names: Sequence[str]) -> Any:
        from affinage import pretrained

        named = pretrained.named(model, names)
        one_size(processor, named)
        return self._ready(named)

    @staticmethod
    def _ready(model: Any) -> Any:
        """The model, its loss in fp32 whatever it computes in: matching and overlaps know no bf16."""
        import torch
        from torch.utils._pytree import tree_map_only

        loss = type(model).loss_function.fget(model)

        def exact(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast(model.device.type, enabled=False):
                args, kwargs = tree_map_only(torch.Tensor, _fp32, (args, kwargs))
                return loss(*args, **kwargs)

        model.loss_function = exact
        return model

    def head(self, model: Any) -> tuple[str, ...]:
        return HEAD

    def ceiling(self, model: Any) -> str | None:
        """The decoder: every layer of it gives boxes that are taught, though the last ones alone are the answer."""
        inner = next((name for name, _ in model.named_modules() if name.rpartition(".")[2] == "decoder"), None)
        return inner or ("vit" if getattr(model.config, "auxiliary_loss", False) else None)

    def example(self) -> Image:
        from PIL import Image

        return Image.new("RGB", (64, 64))

    # ---------------------------------------------------------------------------------------------- batches and loss
    def encode(self, inputs: Sequence[Any], processor: Any, model: Any, *, max_length: int | None = None) -> DetectionRows:
        """Every picture decoded and resized once, where memory or the disk holds them; their shapes are kept by padding."""
        canvas = _canvas(processor)
        if canvas is None:
            return DetectionRows(encoded(inputs, processor))
        from PIL import Image

        whole = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*canvas, 3)).astype(np.uint8))
        rows = encoded(inputs, processor, whole)
        return DetectionRows(rows, np.array([_fitted(_size(thing), canvas) for thing in inputs]).reshape(-1, 2))

    def aims(self, targets: Sequence[Any], rows: Rows, processor: Any, model: Any) -> BoxAims:
        things = []
        for boxes in targets:
            taught = ~boxes.crowd & (boxes.classes >= 0)
            things.append((boxes.classes[taught], boxes.relative()[taught]))
        return BoxAims(things, np.array([max(1, len(kinds)) for kinds, _ in things], np.float64))

    def teach(self, batch: Batch, targets: Any, augment: str) -> tuple[Batch, Any]:
        """The pictures and their boxes moved together, and the boxes beside the pictures: the model computes its own loss."""
        import torch

        from affinage.augment_boxes import augmented

        pixels, mask = batch["pixel_values"], batch.get("pixel_mask")
        inside = torch.ones(len(pixels), 2)
        if mask is not None:
            inside = torch.stack([mask[:, :, 0].float().mean(1), mask[:, 0].float().mean(1)], 1).cpu()
        pixels, left = augmented(pixels, inside, [target["boxes"] for target in targets], augment)
        if mask is not None:
            pixels = pixels * mask[:, None]
        told = [
            {"class_labels": target["class_labels"][kept], "boxes": boxes}
            for target, (boxes, kept) in zip(targets, left, strict=True)
        ]
        return {**batch, "pixel_values": pixels, "labels": told}, told  # type: ignore[dict-item]

    def loss(self, outputs: Any, targets: Any, *, weights: torch.Tensor | None, smoothing: float) -> torch.Tensor:
        """The model's own: matching by the Hungarian method, then classes, box distance and overlap, a mean over boxes."""
        return outputs.loss

    # ------------------------------------------------------------------------------------------------------- answers
    def answer(
        self, forward: Callable[..., Any], batch: Batch, lengths: np.ndarray, processor: Any, targets: Any = None
    ) -> list[dict[str, Any]]:
        """For each picture up to 100 boxes, the surest first: `boxes` (shares of the picture), `scores`, `classes`."""
        outputs = forward(**batch)
        outputs = _Said(outputs.logits.float(), outputs.pred_boxes.float())
        found = []
        for one in processor.post_process_object_detection(outputs, threshold=0.0):
            order = one["scores"].argsort(descending=True, stable=True)[: detection.MOST]
            boxes = one["boxes"][order].clamp(0, 1)
            found.append(
                {
                    "boxes": boxes.cpu().tolist(),
                    "scores": one["scores"][order].cpu().tolist(),
                    "classes": one["labels"][order].cpu().tolist(),
                }
            )
        return found

    def score(self, answers: Answers, targets: Sequence[Any] | np.ndarray) -> dict[str, Any]:
        return detection.scores(answers, list(targets))

    def schema(self) -> Any:
        import pyarrow as pa

        box = pa.list_(pa.float32())
        return pa.schema(
            {
                "width": pa.int32(),
                "height": pa.int32(),
                "picture": pa.binary(),  # JPEG, of those with the most mistakes
                "true": pa.list_(pa.struct({"class": pa.string(), "box": box, "crowd": pa.bool_()})),
                "said": pa.list_(pa.struct({"class": pa.string(), "box": box, "score": pa.float32()})),
            }
        )

    def table(self, answers: Answers, split: Split, names: Sequence[str]) -> Iterator[dict[str, Sequence[Any]]]:
        """Boxes are x0 y0 x1 y1 in pixels."""
        least = detection.best(answers, split.targets)["threshold"]
        mistakes = []
        for answer, truth in zip(answers, split.targets, strict=True):
            right, found = detection.matched(answer, truth, least)
            mistakes.append(int((right == 0).sum() + (found == 0).sum()))
        shown = set(np.argsort(-np.array(mistakes), kind="stable")[:SHOWN].tolist())
        for start in range(0, len(split), PART):
            part = range(start, min(start + PART, len(split)))
            yield {
                "width": [split.targets[i].size[0] for i in part],
                "height": [split.targets[i].size[1] for i in part],
                "picture": [_small(split.inputs[i]) if i in shown else None for i in part],
                "true": [_true(split.targets[i], names) for i in part],
                "said": [_told(answers[i], split.targets[i].size, names) for i in part],
            }

    def completed(self, answers: Answers, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """With the `size` (width, height) of each picture."""
        return [{**answer, "size": list(_size(thing))} for answer, thing in zip(answers, inputs, strict=True)]

    def said(self, answers: Answers, names: Sequence[str]) -> list[dict[str, Any]]:
        """For each picture the `boxes` that the model is sure of (0.5 or more): `label`, `score` and `box`.

        The box is x0 y0 x1 y1 in pixels of a picture of `width` and `height`; in shares of it where these are not known.
        """
        found = []
        for answer in answers:
            size = answer.get("size")
            boxes = [
                {"label": box["class"], "score": box["score"], "box": [round(v, 2 if size else 4) for v in box["box"]]}
                for box in _told(answer, size or (1, 1), names)
                if box["score"] >= SURE
            ]
            found.append({**({"width": size[0], "height": size[1]} if size else {}), "boxes": boxes})
        return found


@dataclass(frozen=True)
class _Said:
    """What the processors look at of a model's output."""

    logits: torch.Tensor
    pred_boxes: torch.Tensor


def _fp32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


# ------------------------------------------------------------------------------------------------------------------- size
def one_size(processor: Any, model: Any) -> Any:
    """The processor, changed so that all pictures come out alike; the run keeps it so, and plain pipelines do the same.

    DETR's keep the form of a picture: those that take a mask get it fitted into the largest landscape, and padded. YOLOS knows no
    mask: pictures fill a square.
    """
    size = dict(processor.size)
    short, long = size.get("shortest_edge"), size.get("longest_edge")
    if not short or size.get("height"):
        return processor
    form = dict if isinstance(processor.size, dict) else type(processor.size)
    if "pixel_mask" in inspect.signature(model.forward).parameters:
        processor.size = form(max_height=short, max_width=max(long or short, short))
        processor.pad_size = form(height=short, width=max(long or short, short))
        processor.do_pad = True
    else:
        patch = getattr(model.config, "patch_size", 1)
        side = max(patch, short // patch * patch)
        processor.size = form(height=side, width=side)
        processor.do_pad = False
    return processor


def _canvas(processor: Any) -> tuple[int, int] | None:
    """(height, width) into which pictures are fitted with their form kept; None where they fill all of it."""
    size = dict(processor.size)
    return (size["max_height"], size["max_width"]) if size.get("max_height") else None


def _fitted(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a picture of `size` (width, height) as the processor fits it into the canvas."""
    scale = min(canvas[0] / size[1], canvas[1] / size[0])
    return int(size[1] * scale), int(size[0] * scale)


def _size(thing: Any) -> tuple[int, int]:
    """(width, height) of the upright picture."""
    if isinstance(thing, np.ndarray):
        return int(thing.shape[1]), int(thing.shape[0])
    return size_of(thing)[0]


# ---------------------------------------------------------------------------------------------------------------- records
def _true(boxes: Boxes, names: Sequence[str]) -> list[dict[str, Any]]:
    rows = zip(boxes.classes.tolist(), boxes.boxes.tolist(), boxes.crowd.tolist(), strict=True)
    return [{"class": names[kind] if kind >= 0 else UNSEEN, "box": box, "crowd": crowd} for kind, box, crowd in rows]


def _told(answer: dict[str, Any], size: tuple[int, int], names: Sequence[str]) -> list[dict[str, Any]]:
    width, height = size
    return [
        {"class": names[kind], "box": [x0 * width, y0 * height, x1 * width, y1 * height], "score": score}
        for (x0, y0, x1, y1), score, kind in zip(answer["boxes"], answer["scores"], answer["classes"], strict=True)
    ]


def _small(picture: Any) -> bytes:
    image = opened(picture)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


task = ObjectDetection()
