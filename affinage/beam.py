"""Beam search over the frames of a CTC head, free or along the words of a language model, by flashlight-text.

What it finds is a path, one token a frame, as in greedy decoding: words, times and confidence are read off it alike.
Scores of paths that spell the same are summed (prefix beam search: Graves 2012; Hannun et al. 2014, arXiv 1408.2873).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from affinage.errors import AffinageError

WIDTH = 50  # beginnings of a transcript that are followed at once
THRESHOLD = 50.0  # nats below the best one at which a beginning is dropped
NATS = float(np.log(10.0))  # ARPA files hold logarithms to base 10


def needed() -> Any:
    """The module that searches.

    Raises:
        AffinageError: it is not installed.
    """
    try:
        from flashlight.lib.text import decoder
    except ImportError:
        raise AffinageError(
            "beam search needs flashlight-text, which is not installed (Python 3.11 and 3.12 have it): "
            "pip install 'affinage[beam]', or leave --decoding and --language-model out"
        ) from None
    return decoder


def words_of(path: Path) -> tuple[list[str], bool]:
    """(the words, whether the file is an n-gram model) of an ARPA file, or of a list of one word a line.

    Raises:
        AffinageError: no such file, or no word in it.
    """
    try:
        with path.open(encoding="utf8") as file:
            first = next((line for line in file if line.strip()), "").strip()
            mark, first = first.startswith("\ufeff"), first.lstrip("\ufeff")
            ngrams = first == "\\data\\"
            if ngrams and mark:  # which a list may have: KenLM reads no such file
                raise AffinageError(f"{path} begins with a byte order mark, as no ARPA file does: save it as UTF-8 without one")
            found = list(_unigrams(file)) if ngrams else [first, *(line.strip() for line in file)]
    except (OSError, UnicodeDecodeError) as error:
        raise AffinageError(
            f"cannot read the language model {path} ({error}): expected an ARPA file, or a list of one word a line"
        ) from error
    words = [word for word in found if word and word.lower() not in ("<s>", "</s>", "<unk>")]
    wrong = next((word for word in words if len(word.split()) > 1), None)
    if not words or wrong:
        raise AffinageError(
            f"the language model {path} holds {f'{wrong[:40]!r}, which is no word' if wrong else 'no word'}: "
            "expected an ARPA file, or a list of one word a line"
        )
    return words, ngrams


def _unigrams(lines: Iterator[str]) -> Iterator[str]:
    """The words of an ARPA file's first section of n-grams, from its lines below \\data\\."""
    inside = False
    for line in lines:
        if line.startswith("\\"):
            if inside:
                return
            inside = line.strip() == "\\1-grams:"
        elif inside and line.strip():
            yield line.split()[1]


@lru_cache(maxsize=4)
def searcher(
    tokenizer: Any, language_model: Path | None, weight: float, spell: Callable[[Any, str], tuple[int, ...]]
) -> Callable[[np.ndarray], np.ndarray]:
    """What takes (T, V) log probabilities, natural, to (T,) tokens: the path of the best transcript.

    `language_model`: an ARPA file, whose score counts `weight` times beside that of the frames, or a list of words; no other
    words are then found. `spell(tokenizer, word)`: its tokens, none of which is unknown, or ().

    Raises:
        AffinageError: flashlight-text is not installed, or the file is no language model for this vocabulary.
    """
    library = needed()
    blank, size = int(tokenizer.pad_token_id), len(tokenizer)
    between = getattr(tokenizer, "word_delimiter_token_id", None)
    gap = int(between) if between is not None else blank
    kind = library.CriterionType.CTC
    if language_model is None:
        options = library.LexiconFreeDecoderOptions(WIDTH, size, THRESHOLD, 0.0, 0.0, True, kind)
        decoder = library.LexiconFreeDecoder(options, library.ZeroLM(), gap, blank, [])
        return lambda logs: _path(decoder, logs, blank)
    if between is None:
        raise AffinageError("a language model needs a vocabulary with a sign between words, and this one has none")
    words, ngrams = words_of(language_model)
    spelled = {word: ids for word in dict.fromkeys(words) if (ids := spell(tokenizer, word))}
    unknown = [word for word in words if word not in spelled]
    if not spelled:
        letters = " ".join(sorted(token for token in tokenizer.get_vocab() if len(token) == 1 and token.isalnum()))
        raise AffinageError(
            f"this vocabulary can spell no word of {language_model} ({', '.join(words[:5])}...): expected words of {letters}"
        )
    if unknown:
        print(
            f"affinage: {len(unknown)} of {len(words)} words of {language_model} cannot be spelled with this vocabulary, and are "
            f"never heard ({', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''})",
            file=sys.stderr,
        )
    from flashlight.lib.text.dictionary import create_word_dict

    numbers = create_word_dict({**{word: [[word]] for word in spelled}, "<unk>": [[]]})
    model = _ngrams(language_model, numbers) if ngrams else library.ZeroLM()
    start = model.start(False)
    trie = library.Trie(size, gap)
    for word, ids in spelled.items():
        number = numbers.get_index(word)
        trie.insert([*ids, gap], number, model.score(start, number)[1] if ngrams else 0.0)
    trie.smear(library.SmearingMode.MAX)  # a beginning of a word is worth what its best word is
    options = library.LexiconDecoderOptions(WIDTH, size, THRESHOLD, NATS * weight, 0.0, -np.inf, 0.0, True, kind)
    decoder = library.LexiconDecoder(options, trie, model, gap, blank, numbers.get_index("<unk>"), [], False)
    return lambda logs: _path(decoder, logs, gap)


def _ngrams(path: Path, numbers: Any) -> Any:
    from flashlight.lib.text.decoder.kenlm import KenLM

    try:
        with _hushed():
            return KenLM(str(path), numbers)
    except (RuntimeError, ValueError, OSError) as error:
        why = " ".join(str(error).strip().splitlines()[-1].split())  # the lines before it say where in KenLM's source
        raise AffinageError(f"the language model {path} is no ARPA file that KenLM reads ({why[:160]})") from error


@contextmanager
def _hushed() -> Iterator[None]:
    """Without what a C library tells the terminal as it reads."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _path(decoder: Any, logs: np.ndarray, end: int) -> np.ndarray:
    """(T,) tokens: the library puts one more at either end.

    `end`: the token of a frame that is added behind the last one. With it the last word ends where the recording does, and what
    ends in a blank and what does not come together, which the library keeps apart.
    """
    last = np.full((1, logs.shape[1]), -THRESHOLD, np.float32)
    last[0, end] = 0.0
    frames = np.ascontiguousarray(np.concatenate([logs, last]), dtype=np.float32)
    found = decoder.decode(frames.ctypes.data, *frames.shape)
    return np.asarray(found[0].tokens, np.int64)[1 : len(logs) + 1]
