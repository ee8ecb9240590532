"""Text classification and sentiment: a sentence in, one of C classes out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from affinage import spool
from affinage.classification import Classification
from affinage.errors import AffinageError
from affinage.spool import Block
from affinage.types import Batch

# What is tokenised at once: a tokenizer's own account of it is some 150 bytes a token, those that are cut off afterwards too.
PART = 1024  # texts
CHARACTERS = 2**20


@dataclass(frozen=True)
class TokenRows:
    """N token sequences, ragged: row i is `values[starts[i]:starts[i + 1]]`."""

    values: np.ndarray | Block  # (sum of lengths,) int32, on the disk where they are many
    starts: np.ndarray  # (N + 1,) int64
    padding: int
    left: bool = (
        False  # where the processor pads; decoders with a last-token head are indifferent, encoders with positions are not
    )
    multiple: int = 1  # of what a batch is padded to

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def aligned(self, multiple: int) -> TokenRows:
        """These rows, padded on to lengths that are multiples of it, but to no more than the longest row of all."""
        return replace(self, multiple=multiple)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.lengths.max(initial=1))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def batch(self, rows: np.ndarray) -> Batch:
        """`input_ids` and `attention_mask`, (B, T), padded to the longest of the rows."""
        import torch

        lengths = self.starts[rows + 1] - self.starts[rows]
        longest = int(lengths.max(initial=1))
        if self.multiple > 1:
            longest = max(longest, min(-(-longest // self.multiple) * self.multiple, self.longest))
        places = np.arange(longest)[None, :]
        offset = (places.shape[1] - lengths)[:, None] if self.left else 0
        mask = (places >= offset) & (places < offset + lengths[:, None])
        ids = np.full(mask.shape, self.padding, dtype=np.int64)
        ids[mask] = np.concatenate([self.values[self.starts[r] : self.starts[r + 1]] for r in rows]) if len(rows) else []
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}


def _parts(texts: Sequence[str]) -> Iterator[list[str]]:
    """All texts in order, up to `PART` of them or `CHARACTERS` at a time; a longer one alone."""
    for start in range(0, len(texts), PART):
        part: list[str] = []
        size = 0
        for text in texts[start : start + PART]:
            if part and size + len(text) > CHARACTERS:
                yield part
                part, size = [], 0
            part.append(text)
            size += len(text)
        yield part


@dataclass(frozen=True)
class TextClassification(Classification):
    """Any architecture that `AutoModelForSequenceClassification` knows, and encoders with no such head."""

    name: str = "text-classification"
    kind: Literal["text"] = "text"

    def load(self, source: str | Path, names: Sequence[str], *, fresh: bool, revision: str | None) -> tuple[Any, Any]:
        """(model, tokenizer). Eager attention on a CPU: for short rows it is faster there than the fused kernel."""
        import torch
        import transformers

        from affinage import pretrained

        options: dict[str, Any] = {} if torch.cuda.is_available() else {"attn_implementation": "eager"}
        model = pretrained.load(
            transformers.AutoModelForSequenceClassification,
            source,
            names,
            task=self.name,
            fresh=fresh,
            revision=revision,
            **options,
        )
        tokenizer = pretrained.guarded(
            lambda: transformers.AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False),
            source,
            self.name,
        )
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers makes an empty one where it finds no vocabulary
            raise AffinageError(
                f"{source} has no tokenizer, or an empty one: expected tokenizer.json or a vocabulary beside config.json"
            )
        if tokenizer.pad_token_id is None:  # GPT-2 and others were never padded
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        return model, tokenizer

    def encode(self, inputs: Sequence[Any], processor: Any, model: Any, *, max_length: int | None = None) -> TokenRows:
        """All rows tokenised once, truncated to what the model can read (at most 512 tokens unless told otherwise)."""
        longest = getattr(model.config, "max_position_embeddings", None) or 512
        if "roberta" in model.config.model_type or model.config.model_type == "camembert":
            longest -= 2  # their positions begin after the padding index
        limit = min(max_length or 512, longest, processor.model_max_length)
        held: list[np.ndarray] = [np.zeros(0, np.int32)]
        spooled: Block | None = None
        starts, done, size, most = np.zeros(len(inputs) + 1, np.int64), 0, 0, spool.limit()
        for texts in _parts(inputs):
            rows = processor(texts, truncation=True, max_length=limit, return_attention_mask=False)
            ids = rows["input_ids"]
            starts[done + 1 : done + 1 + len(ids)] = [len(row) for row in ids]
            done += len(ids)
            held += [np.fromiter(itertools.chain.from_iterable(ids), np.int32)]
            size += held[-1].nbytes
            if size > most:  # from here on they go to the disk
                spooled = spooled or Block(np.int32)
                spooled.add(np.concatenate(held))
                held = []
        np.cumsum(starts, out=starts)
        return TokenRows(
            values=np.concatenate(held) if spooled is None else spooled,
            starts=starts,
            padding=int(processor.pad_token_id),
            left=processor.padding_side == "left",
        )

    def example(self) -> str:
        return "a"

    def shows(self) -> Literal["every"]:
        return "every"


task = TextClassification()
