"""Networks that write what they hear token by token (Whisper, Moonshine): their rows, targets, loss and answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affinage.errors import AffinageError, nearest
from affinage.hearing import SoundRows
from affinage.types import Batch

if TYPE_CHECKING:
    import torch

WRITTEN = "decoder_input_ids"  # what the decoder has written so far
IGNORED = -100  # of a target: padding
TASK = "transcribe"  # not "translate", which is to English
MOST = 200  # tokens that are written of one recording at most; Whisper's decoder has 448 places, half of them for a prompt


@dataclass(frozen=True)
class Begun:
    """Rows of sound, each with the token that a transcript begins with."""

    sounds: SoundRows
    start: int

    @property
    def lengths(self) -> np.ndarray:
        return self.sounds.lengths

    def __len__(self) -> int:
        return len(self.sounds)

    def batch(self, rows: np.ndarray) -> Batch:
        """The sounds, and `decoder_input_ids` (B, 1)."""
        import torch

        return {**self.sounds.batch(rows), WRITTEN: torch.full((len(rows), 1), self.start, dtype=torch.int64)}

    def mask(self, batch: Batch) -> torch.Tensor | None:
        return self.sounds.mask(batch)


@dataclass(frozen=True)
class TokenAims:
    """N transcripts as tokens, each with its end."""

    ids: list[np.ndarray]  # (N) of (L,) int64
    start: int

    @property
    def counts(self) -> np.ndarray:
        """The loss is a mean over tokens."""
        return np.array([len(ids) for ids in self.ids], np.float64)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """`labels` (B, L), padded with -100, and what the decoder is `written` before each of them (B, L)."""
        import torch

        chosen = [self.ids[i] for i in rows]
        labels = np.full((len(chosen), max(1, max(len(ids) for ids in chosen))), IGNORED, np.int64)
        for row, ids in zip(labels, chosen, strict=True):
            row[: len(ids)] = ids
        before = np.concatenate([np.full((len(labels), 1), self.start), labels[:, :-1]], 1)
        before[before == IGNORED] = self.start  # behind the end: looked at by no target
        return {"labels": torch.from_numpy(labels), "written": torch.from_numpy(before)}


def load(
    config: Any, source: str | Path, tokenizer: Any, language: str | None, *, task: str, fresh: bool, revision: str | None
) -> Any:
    """The model, which writes `language` from now on, and so does the tokenizer.

    Raises:
        AffinageError: as `pretrained.guarded` and `_settle`.
    """
    import transformers

    from affinage import pretrained

    auto = transformers.AutoModelForSpeechSeq2Seq
    model = pretrained.built(auto, source, config, task=task, fresh=fresh, revision=revision)
    if fresh:  # the weights are drawn anew, not what they are asked for
        with suppress(OSError):  # a folder need not have one
            model.generation_config = transformers.GenerationConfig.from_pretrained(source, revision=revision)
    _settle(model, tokenizer, language, source)
    if not fresh:  # to look at the network, which is built without its weights for that, takes no language
        _told(model)
    return model


def _settle(model: Any, tokenizer: Any, language: str | None, source: str | Path) -> None:
    """What is put before each transcript is the same in training, in answers, and in plain pipelines on the run.

    A Whisper of many languages is told the language and the task. Left alone it guesses the language of each recording anew, and
    its tokenizer puts none before what is learnt.

    Raises:
        AffinageError: a language where none is told, or one that the model does not know.
    """
    asked = model.generation_config
    codes = _languages(model)
    if not codes:
        if language is not None:
            raise AffinageError(f"{source} is not told a language: leave --language out")
        return
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    wished = language or getattr(asked, "language", None) or getattr(tokenizer, "language", None)
    if wished is None:
        return
    code = TO_LANGUAGE_CODE.get(wished.lower(), wished.lower()).strip("<|>")
    if code not in codes:
        raise AffinageError(f"{source} knows no language '{wished}'{nearest(code, codes)}: it writes {', '.join(codes)}")
    tokenizer.set_prefix_tokens(language=code, task=TASK)
    asked.language, asked.task, asked.forced_decoder_ids = code, TASK, None


def _languages(model: Any) -> list[str]:
    """The codes of those among which a model is told one, such as "en"; none for a model of one language."""
    asked = model.generation_config
    known = getattr(asked, "lang_to_id", None) if getattr(asked, "is_multilingual", True) else None
    return sorted(token.strip("<|>") for token in known or ())


def _told(model: Any) -> None:
    """Refuse a model of many languages that was told none."""
    if (codes := _languages(model)) and getattr(model.generation_config, "language", None) is None:
        raise AffinageError(f"the model writes {len(codes)} languages: say which one is spoken, as in --language en")


def prompt(tokenizer: Any, model: Any) -> list[int]:
    """The tokens before each transcript: the first, and with Whisper the language, the task, and that no times are wanted."""
    start, ids = int(model.config.decoder_start_token_id), list(tokenizer("").input_ids)
    ids = ids[:-1] if ids[-1:] == [model.config.eos_token_id] else ids
    return ids if ids[:1] == [start] else [start, *ids]


def begun(sounds: SoundRows, model: Any) -> Begun:
    return Begun(sounds, int(model.config.decoder_start_token_id))


def aims(targets: Sequence[str], tokenizer: Any, model: Any) -> TokenAims:
    """Each transcript's tokens, with what the checkpoint puts before them (language, task) and the end.

    Raises:
        AffinageError: a model of many languages that was told none, or a transcript that is too long.
    """
    _told(model)
    start, end = int(model.config.decoder_start_token_id), model.config.eos_token_id
    found = []
    for text in targets:
        ids = list(tokenizer(text).input_ids)
        ids = ids[1:] if ids[:1] == [start] else ids
        if end is not None and ids[-1:] != [end]:
            ids.append(int(end))
        found.append(np.asarray(ids, np.int64))
    longest, places = max(map(len, found), default=0), getattr(model.config, "max_target_positions", None)
    if places and longest > places:
        raise AffinageError(f"a transcript has {longest} tokens, and the model writes {places} at most: cut the recording in two")
    return TokenAims(found, start)


def loss(logits: torch.Tensor, targets: Any) -> torch.Tensor:
    """Cross entropy of (B, L, V) logits, mean over tokens, fp32."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits.float().flatten(0, 1), targets["labels"].flatten(), ignore_index=IGNORED)


def answer(forward: Any, batch: Batch, tokenizer: Any, targets: Any = None) -> list[dict[str, Any]]:
    """`text`, its `confidence` (the geometric mean of its tokens' probabilities), and the `loss` where targets are known.

    Written greedily. These networks tell no times, so that `words` is empty.
    """
    import torch

    model = forward if hasattr(forward, "generate") else forward.model  # what is above a cut has its network
    heard = _heard(forward, model, batch)
    places = getattr(model.config, "max_target_positions", None) or getattr(model.config, "max_position_embeddings", None) or MOST
    ids = model.generate(**heard, max_new_tokens=min(MOST, places // 2), do_sample=False, num_beams=1)
    before = ids.new_tensor(prompt(tokenizer, model))
    if ids.shape[1] == 0 or not (ids[:, 0] == before[0]).all():  # Whisper leaves out what it was given to go on from
        ids = torch.cat([before.expand(len(ids), -1), ids], 1)
    ids = ids[:, :places]  # Whisper goes on behind a time stamp, should it write one
    said = model(**heard, **{WRITTEN: ids[:, :-1]}).logits.float().log_softmax(-1) if ids.shape[1] > 1 else None
    losses: list[float | None] = [None] * len(ids)
    if targets is not None:
        logits = model(**heard, **{WRITTEN: targets["written"]}).logits
        losses = [loss(one[None], {"labels": row[None]}).item() for one, row in zip(logits, targets["labels"], strict=True)]
    found = []
    special = set(tokenizer.all_special_ids)
    for i, (row, own) in enumerate(zip(ids.tolist(), losses, strict=True)):
        text = " ".join(tokenizer.decode(row, skip_special_tokens=True).split())
        spoken = [t for t in range(1, len(row)) if row[t] not in special]
        sure = float(np.exp(np.mean([said[i, t - 1, row[t]].item() for t in spoken]))) if said is not None and spoken else 1.0
        found.append({"text": text, "words": [], "confidence": sure, "loss": own})
    return found


def _heard(forward: Any, model: Any, batch: Batch) -> dict[str, Any]:
    """What the encoder makes of the batch, as the model takes it: once for all that is written, above a cut only the rest."""
    found: list[Any] = []
    hook = model.get_encoder().register_forward_hook(lambda module, args, output: found.append(output))
    try:
        forward(**batch)
    finally:
        hook.remove()
    masks = {name: batch[name] for name in ("attention_mask",) if name in batch}
    return {"encoder_outputs": found[0], **masks}
