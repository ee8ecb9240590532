"""Image classification: a picture in, one of C classes out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from affinage.classification import Classification
from affinage.pictures import ImageRows, encoded, enough, opened
from affinage.types import Batch

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ImageClassification(Classification):
    """Any architecture that `AutoModelForImageClassification` knows, and image encoders with no such head (DINOv3)."""

    name: str = "image-classification"
    kind: Literal["image"] = "image"
    augments: str = "light"

    def load(self, source: str | Path, names: Sequence[str], *, fresh: bool, revision: str | None) -> tuple[Any, Any]:
        """(model, image processor); the processor of the Pillow backend, so that torchvision is never needed."""
        import transformers

        from affinage import headed, pretrained

        if headed.lacks_head(pretrained.configured(source, names, task=self.name, revision=revision)):
            processor = pretrained.image_processor(source, task=self.name, revision=revision)
            return headed.load(source, names, processor, task=self.name, fresh=fresh, revision=revision), processor
        model = pretrained.load(
            transformers.AutoModelForImageClassification, source, names, task=self.name, fresh=fresh, revision=revision
        )
        return model, pretrained.image_processor(source, task=self.name, revision=revision)

    def encode(self, inputs: Sequence[Any], processor: Any, model: Any, *, max_length: int | None = None) -> ImageRows:
        """Every picture decoded and resized as the checkpoint's processor does it: once, where memory or the disk holds them.

        A large JPEG is decoded at the size needed (`pictures.enough`).
        """
        return encoded(inputs, processor, least=enough(processor))

    def example(self) -> Image:
        from PIL import Image

        return Image.new("RGB", (64, 64))

    def adopt(self, model: Any, processor: Any, names: Sequence[str]) -> Any:
        from affinage import headed

        if headed.is_bare(model):
            return headed.of(model, names, processor)
        return super().adopt(model, processor, names)

    def teach(self, batch: Batch, targets: Any, augment: str) -> tuple[Batch, Any]:
        from affinage.augment import augmented

        return {**batch, "pixel_values": augmented(batch["pixel_values"], augment)}, targets

    def shown(self, thing: Any) -> dict[str, Any]:
        """A thumbnail: PNG, up to 128 pixels wide and high."""
        image = opened(thing, 256)
        image.thumbnail((128, 128))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return {"thumbnail": buffer.getvalue()}


task = ImageClassification()
