"""Audio classification: a recording in, one of C classes out (a command, a speaker, an instrument, a noise)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from affinage import hearing, sound
from affinage.classification import Classification
from affinage.hearing import SoundRows
from affinage.types import Batch

HEARD = 16_000  # samples a second of the recordings that the report plays
MOST = 10  # seconds of each


@dataclass(frozen=True)
class AudioClassification(Classification):
    """Any architecture that `AutoModelForAudioClassification` knows: AST, wav2vec2, HuBERT, WavLM, Whisper's encoder."""

    name: str = "audio-classification"
    kind: Literal["audio"] = "audio"

    def load(self, source: str | Path, names: Sequence[str], *, fresh: bool, revision: str | None) -> tuple[Any, Any]:
        """(model, feature extractor)."""
        import transformers

        from affinage import pretrained

        pretrained.quiet()
        extractor = hearing.extractor(source, task=self.name, revision=revision)
        model = pretrained.load(
            transformers.AutoModelForAudioClassification, source, names, task=self.name, fresh=fresh, revision=revision
        )
        hearing.settled(model.config)
        return model, extractor

    def example(self) -> tuple[np.ndarray, int]:
        """A second of noise."""
        return np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32), 16_000

    def encode(self, inputs: Sequence[Any], processor: Any, model: Any, *, max_length: int | None = None) -> SoundRows:
        """Every recording decoded, resampled and turned into what the model reads, once."""
        return hearing.rows(inputs, processor, model)

    def teach(self, batch: Batch, targets: Any, augment: str) -> tuple[Batch, Any]:
        return hearing.changed(batch, augment), targets

    def shown(self, thing: Any) -> dict[str, Any]:
        """The first ten seconds, FLAC."""
        return {"audio": sound.encoded(sound.heard(thing, HEARD)[: MOST * HEARD], HEARD)}


task = AudioClassification()
