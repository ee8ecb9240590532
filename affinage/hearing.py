"""What tasks that hear have in common: recordings as rows that a model reads, changed at random, and its frames in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affinage import sound, spool
from affinage.errors import AffinageError
from affinage.spool import Block
from affinage.types import Batch

if TYPE_CHECKING:
    import torch

MASK = "attention_mask"
WINDOW, OVERLAP = 1500, 100  # frames: half a minute and two seconds, where one lasts 20 ms
MOST_SECONDS = {"WhisperFeatureExtractor": 30}  # what is longer would be cut off without a word
SHIFT = {"light": 0.05, "strong": 0.1}  # most of a recording's length by which it is moved
NOISE = {"light": (20.0, 40.0), "strong": (10.0, 30.0)}  # decibels of speech over noise, drawn evenly
GAIN = {"light": 3.0, "strong": 6.0}  # most decibels louder or softer
MASKED = {"light": (1, 0.08), "strong": (2, 0.12)}  # stretches of time, and of frequency, that are silenced; their largest share


@dataclass(frozen=True)
class SoundRows:
    """N recordings as the feature extractor leaves them: row i is `values[starts[i]:starts[i + 1]]`, (U, ...) float32."""

    values: np.ndarray | Block  # (sum of U, ...): samples, or frames of a spectrogram; on the disk where they are many
    starts: np.ndarray  # (N + 1,) int64
    lengths: np.ndarray  # (N,) int64: frames that the network makes of each
    name: str  # of the argument of the model's forward
    ragged: bool  # whether rows differ in length, and a mask tells where they end
    frames: Any  # how many frames the network makes of (N,) lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: np.ndarray) -> Batch:
        """(B, U, ...) padded with zeros to the longest, and its `attention_mask` (B, U) where rows differ."""
        import torch

        chosen = [self.values[self.starts[r] : self.starts[r + 1]] for r in rows]
        if not self.ragged:
            return {self.name: torch.from_numpy(np.stack(chosen))}
        lengths = np.array([len(one) for one in chosen])
        padded = np.zeros((len(chosen), int(lengths.max(initial=1)), *chosen[0].shape[1:]), np.float32)
        for row, one in zip(padded, chosen, strict=True):
            row[: len(one)] = one
        mask = np.arange(padded.shape[1])[None, :] < lengths[:, None]
        return {self.name: torch.from_numpy(padded), MASK: torch.from_numpy(mask.astype(np.int64))}

    def mask(self, batch: Batch) -> torch.Tensor | None:
        """(B, T) of the frames that the network makes of what is no padding."""
        import torch

        if MASK not in batch:
            return None
        lengths = torch.from_numpy(np.asarray(self.frames(batch[MASK].sum(1).cpu().numpy())))
        return (torch.arange(int(lengths.max()))[None, :] < lengths[:, None]).to(batch[MASK].device)


def extractor(source: str | Path, *, task: str, revision: str | None) -> Any:
    """The checkpoint's feature extractor.

    Raises:
        AffinageError: no preprocessor_config.json, which says how the model wants its sound.
    """
    import transformers

    from affinage import pretrained, starters

    if Path(source).is_dir() and (Path(source) / "config.json").exists():
        there = [name for name in ("preprocessor_config.json", "processor_config.json") if (Path(source) / name).exists()]
        if not there:
            raise AffinageError(
                f"{source} has no preprocessor_config.json, which says how the model wants its sound (rate, scale): "
                "copy it from the checkpoint that the model came from"
            )

    def found() -> Any:
        try:
            return transformers.AutoFeatureExtractor.from_pretrained(source, revision=revision, trust_remote_code=False)
        except ValueError as error:
            if "Unrecognized feature extractor" not in str(error):
                raise
            raise AffinageError(
                f"{starters.called(source)} is not a model for {task}: it has no feature extractor for sound"
            ) from error

    return pretrained.guarded(found, source, task)


def settled(config: Any) -> None:
    """Without what would make a training step another one each time: blocks left out at random, the model's own masking."""
    for name, value in (("layerdrop", 0.0), ("apply_spec_augment", False), ("mask_time_prob", 0.0), ("mask_feature_prob", 0.0)):
        if hasattr(config, name):
            setattr(config, name, value)


def rows(inputs: Sequence[Any], extractor: Any, model: Any) -> SoundRows:
    """Every recording decoded, resampled and given to the extractor alone, so that a row depends on no other.

    Raises:
        AffinageError: one that cannot be read, is silent (a network hears words even there), or is longer than the model hears.
    """
    rate = int(extractor.sampling_rate)
    name = str(extractor.model_input_names[0])
    parts: list[np.ndarray] = []
    spooled: Block | None = None
    starts, size, most = np.zeros(len(inputs) + 1, np.int64), 0, spool.limit()
    ragged = not _fixed(extractor)
    reach = MOST_SECONDS.get(type(extractor).__name__)
    for i, thing in enumerate(inputs):
        samples = sound.heard(thing, rate)
        if np.abs(samples).max() < sound.SILENCE:
            raise AffinageError(f"{sound.name_of(thing)} is silent (nothing above -80 dB): there is nothing to hear in it")
        if reach and len(samples) > reach * rate:
            raise AffinageError(
                f"{sound.name_of(thing)} lasts {len(samples) / rate:.0f} seconds, and the model hears {reach} at most: cut it"
            )
        least = least_samples(model, rate)
        if len(samples) < least:  # too short for one frame: silence behind it
            samples = np.pad(samples, (0, least - len(samples)))
        made = extractor(samples, sampling_rate=rate, return_tensors="np")
        one = np.asarray(made[name][0], np.float32)
        if MASK in made and len(made[MASK][0]) == len(one):
            one = one[: int(made[MASK][0].sum())]
        starts[i + 1] = starts[i] + len(one)
        parts.append(one)
        size += one.nbytes
        if size > most:  # from here on they go to the disk
            spooled = spooled or Block(np.float32, one.shape[1:])
            spooled.add(np.concatenate(parts))
            parts = []
    if spooled is not None and parts:
        spooled.add(np.concatenate(parts))
    values: np.ndarray | Block = spooled if spooled is not None else np.concatenate(parts) if parts else np.zeros(0, np.float32)
    counter = frames_of(model)
    return SoundRows(values, starts, np.asarray(counter(np.diff(starts)), np.int64), name, ragged, counter)


def _fixed(extractor: Any) -> bool:
    """Whether it makes everything as long as the model reads (Whisper's 30 seconds, AST's 10)."""
    return type(extractor).__name__ in ("WhisperFeatureExtractor", "ASTFeatureExtractor")


def frames_of(model: Any) -> Any:
    """How many frames a network makes of (N,) samples or frames of a spectrogram."""
    for owner in (model, getattr(model, "base_model", None), getattr(model, "encoder", None)):
        for name in ("_get_feat_extract_output_lengths", "_get_subsampling_output_length"):
            if hasattr(owner, name):
                counter = getattr(owner, name)
                return lambda lengths: _plain(counter, lengths)
    return lambda lengths: np.asarray(lengths)


def _plain(counter: Any, lengths: np.ndarray) -> np.ndarray:
    """One length at a time: some architectures count no more than one."""
    import torch

    told, where = np.unique(np.asarray(lengths, np.int64), return_inverse=True)
    return np.array([int(counter(torch.tensor([n]))) for n in told.tolist()], np.int64)[where.reshape(np.shape(lengths))]


def least_samples(model: Any, rate: int) -> int:
    """Samples below which the network has not one frame: the reach of its convolutions, or a tenth of a second."""
    kernels, strides = (getattr(model.config, name, None) for name in ("conv_kernel", "conv_stride"))
    if not kernels or not strides:
        return rate // 10
    reach, step = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        reach += (kernel - 1) * step
        step *= stride
    return reach + step


def logits(forward: Any, batch: Batch, lengths: np.ndarray) -> torch.Tensor:
    """(B, T, V) float32 of a batch; what is longer than `WINDOW` frames goes through in windows that overlap by `OVERLAP` a side.

    Attention looks no farther than a window then, and memory does not grow with the square of an hour.
    """
    import torch

    frames = int(lengths.max(initial=1))
    name = next(iter(batch))
    if frames <= WINDOW or any("." in name for name in batch):  # what was captured of frozen layers is whole
        return forward(**batch).logits.float()
    units = batch[name].shape[1]
    step = max(1, round(units / frames))
    parts, at = [], 0
    while at < frames:
        first = max(0, at - OVERLAP)
        last = min(frames, at + WINDOW - 2 * OVERLAP)
        end = units if last >= frames else min(units, (last + OVERLAP) * step + 4 * step)
        window = {key: value[:, first * step : end] if value.shape[1] == units else value for key, value in batch.items()}
        if MASK in window and not window[MASK].any(1).all():  # a shorter row beside it has ended
            window[MASK] = window[MASK].clone()
            window[MASK][:, : 4 * step] = 1
        told = forward(**window).logits.float()
        parts.append(told[:, at - first : last - first])
        at = last
    return torch.cat(parts, 1)


def seconds_a_frame(batch: Batch, extractor: Any, frames: int) -> float:
    """How long one of the network's `frames` of this batch lasts."""
    rate = float(extractor.sampling_rate)
    if "input_values" in batch and batch["input_values"].dim() == 2:
        return batch["input_values"].shape[1] / rate / max(frames, 1)
    step = getattr(extractor, "hop_length", None) or 0.01 * rate * getattr(extractor, "stride", 1)
    features = next(iter(batch.values()))
    return features.shape[1] * step / rate / max(frames, 1)


def changed(batch: Batch, strength: str) -> Batch:
    """The batch moved in time, louder or softer, in noise, with stretches of time and frequency silenced (SpecAugment, 2019).

    Each row by draws of its own, from torch's generator; the padding stays zero, and so do the lengths. On samples (B, S) the
    band is cut out of the spectrum of the whole recording; on spectrograms (B, U, F) only the silencing is done.
    """
    import torch

    if strength == "none":
        return batch
    name = next(iter(batch))
    sounds, mask = batch[name].clone(), batch.get(MASK)
    lengths = mask.sum(1).tolist() if mask is not None else [sounds.shape[1]] * len(sounds)
    times, share = MASKED[strength]

    def drawn(low: float, high: float) -> float:
        return float(torch.empty(()).uniform_(low, high))

    for row, length in zip(sounds, (int(n) for n in lengths), strict=True):
        own = row[:length]
        if own.dim() == 1 and length > 16:
            most = int(SHIFT[strength] * length)
            own = _moved(own, int(drawn(-most, most + 1)))
            own = own * 10 ** (drawn(-GAIN[strength], GAIN[strength]) / 20)
            loud = own.square().mean().sqrt()
            own = own + torch.randn(length).to(own) * loud * 10 ** (-drawn(*NOISE[strength]) / 20)
            spectrum = torch.fft.rfft(own)
            width = int(drawn(0, share) * len(spectrum))
            at = int(drawn(0, max(len(spectrum) - width, 1)))
            spectrum[at : at + width] = 0
            own = torch.fft.irfft(spectrum, n=length)
        elif own.dim() == 2:
            width = int(drawn(0, share) * own.shape[1])
            at = int(drawn(0, max(own.shape[1] - width, 1)))
            own = own.clone()
            own[:, at : at + width] = 0
        for _ in range(times):
            width = int(drawn(0, share) * length)
            at = int(drawn(0, max(length - width, 1)))
            own[at : at + width] = 0
        row[:length] = own
    return {**batch, name: sounds}


def _moved(samples: torch.Tensor, by: int) -> torch.Tensor:
    """(S,) moved by so many samples to the right, or to the left; silence comes in."""
    import torch

    if by >= 0:
        return torch.cat([samples.new_zeros(by), samples[: len(samples) - by]])
    return torch.cat([samples[-by:], samples.new_zeros(-by)])
