"""Speech recognition: a recording in, what was said out; by a CTC head (Graves et al., ICML 2006) or written token by token."""

from __future__ import annotations

import json
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from affinage import beam, dictation, hearing, sound
from affinage.dictation import Begun, TokenAims
from affinage.errors import AffinageError
from affinage.hearing import SoundRows
from affinage.measure.speech import edits, scores
from affinage.types import Answers, Batch, Data, Rows, Split, Task

if TYPE_CHECKING:
    import torch

PART = 256  # rows of predictions that are written at a time
SHOWN = 12  # worst utterances of a split whose recording is kept for the report
TINY = 1e-12  # a probability that is added before logarithms are taken
HEARD = 16_000  # samples a second of those recordings
PAD, UNKNOWN, BETWEEN = "<pad>", "<unk>", "|"  # of a new vocabulary: the blank, what is in none, what stands between words


@dataclass(frozen=True)
class CharacterAims:
    """N transcripts as token numbers, ragged, and how many frames the network gives of each row."""

    ids: list[np.ndarray]  # (N) of (L,) int64
    frames: np.ndarray  # (N,) int64
    blank: int
    counts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """`labels` (B, L) padded with -1, their `lengths` (B,), `frames` (B,), and the number of the `blank`."""
        import torch

        chosen = [self.ids[i] for i in rows]
        lengths = np.array([len(ids) for ids in chosen], np.int64)
        labels = np.full((len(chosen), max(1, int(lengths.max(initial=1)))), -1, np.int64)
        for row, ids in zip(labels, chosen, strict=True):
            row[: len(ids)] = ids
        found = {"labels": labels, "lengths": lengths, "frames": self.frames[rows], "blank": np.array(self.blank)}
        return {name: torch.from_numpy(values) for name, values in found.items()}


def plain(text: str) -> str:
    """Lower case, without punctuation but the apostrophe inside a word; numbers and letters of any script stay."""
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'").replace("-", " ")
    kept = "".join(c if c.isalnum() or c in "' " or unicodedata.category(c).startswith("M") else " " for c in text)
    return " ".join(word for word in (word.strip("'") for word in kept.split()) if word)


@dataclass(frozen=True)
class SpeechRecognition(Task):
    """wav2vec2, HuBERT, WavLM, wav2vec2-BERT, Parakeet and every other architecture that `AutoModelForCTC` knows; Whisper and
    Moonshine, which write with words of their own (`dictation`)."""

    name: str = "automatic-speech-recognition"
    kind: Literal["audio"] = "audio"
    labels: Literal["transcript"] = "transcript"
    metric: str = "wer"
    names: Literal["vocabulary"] = "vocabulary"
    vocabulary: str = "auto"  # "base", "data" or "auto": the base's where it has all that the transcripts need
    transcripts: str = "plain"  # or "as-written"
    language: str | None = None  # of what is spoken, for a Whisper of many languages
    decoding: str = "auto"  # "greedy", "beam", or "auto": beam search where there is a language model
    language_model: Path | str | None = None  # an ARPA file, or a list of words
    language_model_weight: float = 1.0

    # ------------------------------------------------------------------------------------------------------- targets
    def groups(self, targets: Sequence[Any]) -> Sequence[Any]:
        """The transcripts, where each is said twice or more as a rule (digits, commands); else all rows are of one kind."""
        return list(targets) if 2 * len(set(targets)) <= len(targets) else ["row"] * len(targets)

    def number(self, data: Data) -> tuple[Data, tuple[str, ...]]:
        """The transcripts as they are scored, and the characters of train, sorted."""
        splits = {name: Split(s.inputs, self._written(s.targets), s.ids) for name, s in data.splits()}
        characters = sorted({c for text in splits["train"].targets for c in text} - {" "})
        if not characters:
            raise AffinageError(f"the transcripts of {data.source} hold no letter and no digit: check --label-column")
        return data.with_splits(**splits), tuple(characters)

    def known(self, targets: Sequence[Any], names: Sequence[str], source: str) -> Sequence[Any]:
        found = self._written(targets)
        if not any(set(text) & set(names) for text in found):
            raise AffinageError(f"no transcript of {source} has a character that this run can write: check --label-column")
        return found

    def _written(self, targets: Sequence[Any]) -> list[str]:
        return [plain(text) for text in targets] if self.transcripts == "plain" else [str(text) for text in targets]

    # --------------------------------------------------------------------------------------------------------- model
    def load(self, source: str | Path, names: Sequence[str], *, fresh: bool, revision: str | None) -> tuple[Any, Any]:
        """(model, processor). The head is the base's where its vocabulary stays, else fresh."""
        import transformers

        from affinage import pretrained

        pretrained.quiet()
        extractor = hearing.extractor(source, task=self.name, revision=revision)
        own = _tokenizer(source, revision)
        config = pretrained.configured(source, (), task=self.name, revision=revision)
        hearing.settled(config)
        if config.is_encoder_decoder:
            if own is None:
                raise AffinageError(f"{source} has no tokenizer: expected tokenizer.json beside config.json")
            if self.decoding == "beam" or self.language_model is not None:
                raise AffinageError(f"{source} writes token by token: --decoding beam and --language-model are for CTC heads")
            model = dictation.load(config, source, own, self.language, task=self.name, fresh=fresh, revision=revision)
            return model, _processor(model, extractor, own)
        if self.language is not None:
            raise AffinageError(f"{source} writes letter by letter and is not told a language: leave --language out")
        lacking = missing(own, names) if own is not None else list(names)
        if own is None and self.vocabulary == "base":
            raise AffinageError(f"{source} has no vocabulary of its own: leave --vocabulary base out")
        if own is not None and (not lacking or self.vocabulary == "base") and self.vocabulary != "data":
            tokenizer = own
            if lacking:
                print(f"affinage: {source} cannot write {' '.join(lacking)}: learnt as unknown", file=sys.stderr)
        else:
            tokenizer = made(names)
        kept = tokenizer is own
        if not kept or fresh:
            config.vocab_size = len(tokenizer)
        config.pad_token_id = tokenizer.pad_token_id
        self._search(tokenizer)  # a language model that cannot be read is told before anything is trained
        model = pretrained.built(transformers.AutoModelForCTC, source, config, task=self.name, fresh=fresh, revision=revision)
        if not kept and not fresh:
            _anew(model, config)
        return model, _processor(model, extractor, tokenizer)

    def reload(self, folder: Path, names: Sequence[str]) -> tuple[Any, Any]:
        """With the vocabulary that it was left with, wherever that came from."""
        return replace(self, vocabulary="base").load(folder, (), fresh=False, revision=None)

    def adopt(self, model: Any, processor: Any, names: Sequence[str]) -> Any:
        lacking = [] if model.config.is_encoder_decoder else missing(processor.tokenizer, names)
        if lacking:
            raise AffinageError(f"the loaded model cannot write {' '.join(lacking)}: give it a vocabulary that has them")
        hearing.settled(model.config)
        return model

    def ceiling(self, model: Any) -> str | None:
        """The decoder sees what has been written."""
        if not model.config.is_encoder_decoder:
            return None
        decoder = model.get_decoder()
        return next(name for name, module in model.named_modules() if module is decoder)

    def example(self) -> tuple[np.ndarray, int]:
        """A second of noise."""
        return np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32), 16_000

    # ---------------------------------------------------------------------------------------------- batches and loss
    def encode(self, inputs: Sequence[Any], processor: Any, model: Any, *, max_length: int | None = None) -> SoundRows | Begun:
        """Every recording decoded, resampled and turned into what the model reads, once."""
        rows = hearing.rows(inputs, processor.feature_extractor, model)
        return dictation.begun(rows, model) if model.config.is_encoder_decoder else rows

    def aims(self, targets: Sequence[Any], rows: Rows, processor: Any, model: Any) -> CharacterAims | TokenAims:
        if model.config.is_encoder_decoder:
            return dictation.aims(targets, processor.tokenizer, model)
        ids = [np.asarray(one, np.int64) for one in (tokens(processor.tokenizer, text) for text in targets)]
        # a path needs a frame a character, and a blank between two alike
        needed = np.array([len(one) + int((one[1:] == one[:-1]).sum()) for one in ids], np.int64)
        short = int((needed > rows.lengths).sum())
        if short:
            print(
                f"affinage: {short} of {len(ids)} recordings are too short for what they are said to say, and teach nothing",
                file=sys.stderr,
            )
        return CharacterAims(ids, np.asarray(rows.lengths), int(processor.tokenizer.pad_token_id))

    def teach(self, batch: Batch, targets: Any, augment: str) -> tuple[Batch, Any]:
        if "written" in targets:
            batch = {**batch, dictation.WRITTEN: targets["written"]}
        return hearing.changed(batch, augment), targets

    def loss(self, outputs: Any, targets: Any, *, weights: torch.Tensor | None, smoothing: float) -> torch.Tensor:
        """CTC: -log of the probability of all paths that spell the transcript, per character, mean over rows; fp32. Of networks
        that write: cross entropy, mean over tokens."""
        if "written" in targets:
            return dictation.loss(outputs.logits, targets)
        return per_row(outputs.logits, targets).mean()

    # ------------------------------------------------------------------------------------------------------- answers
    def answer(
        self, forward: Callable[..., Any], batch: Batch, lengths: np.ndarray, processor: Any, targets: Any = None
    ) -> list[dict[str, Any]]:
        """`text`, its `words` as [word, from, to (seconds), confidence], `confidence`, and the `loss` where targets are known."""
        if dictation.WRITTEN in batch:
            answers = dictation.answer(forward, batch, processor.tokenizer, targets)
            return [{**one, "text": plain(one["text"])} for one in answers] if self.transcripts == "plain" else answers
        logits = hearing.logits(forward, batch, lengths)
        losses = per_row(logits, targets).tolist() if targets is not None else [None] * len(logits)
        tall = logits.softmax(-1).cpu().numpy()
        search = self._search(processor.tokenizer)
        seconds = hearing.seconds_a_frame(batch, processor.feature_extractor, logits.shape[1])
        found = []
        for row, length, loss in zip(tall, lengths.tolist(), losses, strict=True):
            heard = row[:length]
            words = spelled(heard, processor.tokenizer, search(np.log(heard + TINY)) if search else None)
            text = " ".join(word for word, *_ in words)
            if self.transcripts == "plain":
                text = text.lower()
            # of nothing heard: how sure the frames are that there is nothing
            sure = float(np.mean([word[3] for word in words]) if words else heard[:, processor.tokenizer.pad_token_id].mean())
            timed = [[w, round(a * seconds, 3), round(b * seconds, 3), round(c, 4)] for w, a, b, c in words]
            found.append({"text": text, "words": timed, "confidence": sure, "loss": loss})
        return found

    def _search(self, tokenizer: Any) -> Callable[[np.ndarray], np.ndarray] | None:
        """What finds the path through the frames' log probabilities; None: the best token of each frame."""
        if self.decoding == "greedy" or (self.decoding == "auto" and self.language_model is None):
            return None
        path = Path(self.language_model) if self.language_model is not None else None
        spell = _spell_plain if self.transcripts == "plain" else _spell
        return beam.searcher(tokenizer, path, self.language_model_weight, spell)

    def score(self, answers: Answers, targets: Sequence[Any] | np.ndarray) -> dict[str, Any]:
        found = scores([one["text"] for one in answers], list(targets))
        losses = [one["loss"] for one in answers if one["loss"] is not None]
        if losses:
            n = found.pop("n")
            found |= {"loss": float(np.mean(losses)), "n": n}
        return found

    def rank(self, scores: Mapping[str, Any]) -> list[float]:
        """Word errors, then character errors, then the loss: it falls long before the first word is right."""
        return [-scores["wer"], -scores["cer"], -scores.get("loss", 0.0)]

    def schema(self) -> Any:
        import pyarrow as pa

        return pa.schema(
            {"said": pa.string(), "heard": pa.string(), "confidence": pa.float64(), "words": pa.string(), "audio": pa.binary()}
        )

    def table(self, answers: Answers, split: Split, names: Sequence[str]) -> Iterator[dict[str, Sequence[Any]]]:
        """`words` is JSON; `audio` (FLAC) is kept of the worst utterances alone."""
        wrong = np.array([edits(said.split(), one["text"].split()) for said, one in zip(split.targets, answers, strict=True)])
        worst = {int(i) for i in np.argsort(-wrong, kind="stable")[:SHOWN] if wrong[i]}
        for start in range(0, len(split), PART):
            part = range(start, min(start + PART, len(split)))
            yield {
                "said": [split.targets[i] for i in part],
                "heard": [answers[i]["text"] for i in part],
                "confidence": [float(answers[i]["confidence"]) for i in part],
                "words": [json.dumps(answers[i]["words"]) for i in part],
                "audio": [sound.encoded(sound.heard(split.inputs[i], HEARD), HEARD) if i in worst else None for i in part],
            }

    def said(self, answers: Answers, names: Sequence[str]) -> list[dict[str, Any]]:
        """For each recording `text`, `confidence`, and its `words` with `start` and `end` in seconds."""
        return [
            {
                "text": one["text"],
                "confidence": one["confidence"],
                "words": [dict(zip(("word", "start", "end", "confidence"), word, strict=True)) for word in one["words"]],
            }
            for one in answers
        ]


# -------------------------------------------------------------------------------------------------------- characters
def made(names: Sequence[str]) -> Any:
    """A tokenizer of these characters, as wav2vec2 has it: one number each, the blank 0."""
    import transformers

    table = {token: i for i, token in enumerate((PAD, UNKNOWN, BETWEEN, *(name for name in names if name != BETWEEN)))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.json"
        path.write_text(json.dumps(table, ensure_ascii=False), encoding="utf8")
        return transformers.Wav2Vec2CTCTokenizer(
            str(path), pad_token=PAD, unk_token=UNKNOWN, word_delimiter_token=BETWEEN, bos_token=None, eos_token=None
        )


def _tokenizer(source: str | Path, revision: str | None) -> Any:
    """The base's own, or None where it has none (a network that was pretrained without transcripts)."""
    import transformers

    try:
        found = transformers.AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception:  # a dozen kinds, by the files that are not there
        return None
    if found.pad_token_id is None or len(found) <= len(found.all_special_tokens):
        return None
    return found


def folded(tokenizer: Any, text: str) -> str:
    """The text in the case in which the vocabulary writes: checkpoints trained on capitals know no other."""
    known = tokenizer.get_vocab()
    if "A" in known and "a" not in known:
        return text.upper()
    return text


def missing(tokenizer: Any, names: Sequence[str]) -> list[str]:
    """Which characters the vocabulary has no token for."""
    unknown = tokenizer.unk_token_id
    return [c for c in names if not (ids := tokens(tokenizer, c)) or unknown in ids]


def tokens(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(folded(tokenizer, text), add_special_tokens=False).input_ids if text else []


def _spell(tokenizer: Any, word: str) -> tuple[int, ...]:
    """The word's tokens; () where one of them is unknown."""
    ids = tokens(tokenizer, word)
    return () if tokenizer.unk_token_id in ids else tuple(ids)


def _spell_plain(tokenizer: Any, word: str) -> tuple[int, ...]:
    """As transcripts are learnt: without capitals and signs; () too for what is then no single word."""
    written = plain(word)
    return _spell(tokenizer, written) if len(written.split()) == 1 else ()


def _anew(model: Any, config: Any) -> None:
    """A head of another vocabulary begins at random, even where the old one has as many outputs."""
    import torch

    last = getattr(model, "lm_head", None) or getattr(model, "ctc_head", None)
    if last is not None:
        with torch.no_grad():
            last.weight.normal_(0.0, getattr(config, "initializer_range", 0.02))
            if last.bias is not None:
                last.bias.zero_()


def _processor(model: Any, extractor: Any, tokenizer: Any) -> Any:
    """What saves both beside the model, so that a plain pipeline finds them."""
    import transformers

    kinds = {"wav2vec2-bert": "Wav2Vec2BertProcessor", "parakeet_ctc": "ParakeetProcessor", "whisper": "WhisperProcessor"}
    kind = getattr(transformers, kinds.get(model.config.model_type, "Wav2Vec2Processor"))
    return kind(feature_extractor=extractor, tokenizer=tokenizer)


# -------------------------------------------------------------------------------------------------------------- paths
def per_row(logits: torch.Tensor, targets: Any) -> torch.Tensor:
    """(B,) CTC losses of (B, T, V) logits, each by the characters of its transcript; 0 where no path is long enough."""
    from torch.nn.functional import ctc_loss

    lengths = targets["lengths"]
    frames = targets["frames"].clamp(max=logits.shape[1])
    losses = ctc_loss(
        logits.float().log_softmax(-1).transpose(0, 1),
        targets["labels"].clamp(min=0),
        frames,
        lengths,
        blank=int(targets["blank"]),
        reduction="none",
        zero_infinity=True,
    )
    return losses / lengths.clamp(min=1)


def spelled(probabilities: np.ndarray, tokenizer: Any, path: np.ndarray | None = None) -> list[tuple[str, int, int, float]]:
    """(word, first frame, frame after its last, confidence) of a path through (T, V): repeats joined, blanks left out.

    `path` (T,): its tokens; the likeliest of each frame where none is given. The confidence of a word is the mean probability of
    the frames that spell it.
    """
    best, blank = probabilities.argmax(1) if path is None else path, tokenizer.pad_token_id
    between = getattr(tokenizer, "word_delimiter_token", None)
    words: list[tuple[list[int], int, int, list[float]]] = []
    open_ = False
    for t, token in enumerate(best.tolist()):
        if token == blank:
            continue
        told, again = tokenizer.convert_ids_to_tokens(token), t > 0 and best[t - 1] == token
        if told == between or told == tokenizer.unk_token:
            open_ = open_ and told != between
            continue
        if not again and (not open_ or told.startswith("▁")):
            words.append(([], t, t, []))
            open_ = True
        ids, start, _, sure = words[-1]
        if not again:
            ids.append(token)
        sure.append(float(probabilities[t, token]))
        words[-1] = (ids, start, t + 1, sure)
    found = []
    for ids, start, end, sure in words:
        written = "".join(tokenizer.convert_ids_to_tokens(ids)).replace("▁", "").strip()
        if written:
            found.append((written, start, end, float(np.mean(sure))))
    return found


task = SpeechRecognition()
