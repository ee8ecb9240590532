"""Beam search: the transcript that all its paths together make likeliest, along the words of a list or an n-gram model."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from affinage import beam
from affinage.errors import AffinageError
from affinage.tasks.automatic_speech_recognition import _spell, _spell_plain, made, spelled

ARPA = """\\data\\
ngram 1=5
ngram 2=2

\\1-grams:
-1.0\t<unk>\t0
-99\t<s>\t-0.1
-1.0\t</s>\t0
-1.5\tsend\t-0.1
-0.3\tlend\t-0.1

\\2-grams:
-0.1\t<s> lend
-2.0\t<s> send

\\end\\
"""


@pytest.fixture(autouse=True)
def installed(request: pytest.FixtureRequest) -> None:
    if "not_installed" not in request.node.name:
        pytest.importorskip("flashlight.lib.text.decoder", reason="pip install 'affinage[beam]' (Python 3.11 and 3.12)")


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    """What a path spells: 0 is the blank; 2, the sign between words, says nothing where a transcript begins."""
    return tuple(token for token, _ in itertools.groupby((2, *path)) if token)[1:]


def frames(text: str, tokenizer: object, sure: float = 0.9) -> np.ndarray:
    """(T, V) probabilities of which the characters of `text` are the best path; a dot is a blank."""
    known = tokenizer.get_vocab()  # type: ignore[attr-defined]
    table = np.full((len(text), len(known)), (1 - sure) / (len(known) - 1), np.float32)
    table[np.arange(len(text)), [known.get(c, 0) for c in text]] = sure
    return table


def written(table: np.ndarray, tokenizer: object, model: Path | None, weight: float = 1.0) -> str:
    path = beam.searcher(tokenizer, model, weight, _spell)(np.log(table))
    assert path.shape == (len(table),)
    return " ".join(word for word, *_ in spelled(table, tokenizer, path))


def test_it_finds_the_likeliest_transcript_of_all() -> None:
    """Against every path there is: the transcript whose paths add up to most, which is often not that of the best path."""
    tokenizer = made("ab")
    size, draw, other = len(tokenizer), np.random.default_rng(0), 0
    search = beam.searcher(tokenizer, None, 1.0, _spell)
    for _ in range(40):
        table = draw.dirichlet(np.full(size, 0.7), 4)
        total: dict[tuple[int, ...], float] = {}
        for path in itertools.product(range(size), repeat=4):
            label = collapsed(path)
            total[label] = total.get(label, 0.0) + float(np.prod(table[np.arange(4), path]))
        found = collapsed(tuple(search(np.log(table)).tolist()))
        assert total[found] == pytest.approx(max(total.values()), rel=1e-4)
        other += found != collapsed(tuple(table.argmax(1).tolist()))
    assert other > 5


def test_a_list_of_words_allows_no_other(tmp_path: Path) -> None:
    """Frames that spell `eiht nin`, the last word without a sign behind it; what a list does not spell cannot be written."""
    words = tmp_path / "words.txt"
    words.write_text("eight\nnine\n\n")
    tokenizer = made("eightn")
    table = frames("ee.i.ht.|.nni.n", tokenizer, 0.6)
    assert written(table, tokenizer, None) == "eiht nin"
    assert written(table, tokenizer, words) == "eight nine"
    times = spelled(table, tokenizer, beam.searcher(tokenizer, words, 1.0, _spell)(np.log(table)))
    assert [word for word, *_ in times] == ["eight", "nine"] and times[0][2] <= times[1][1] and times[1][2] <= len(table)


def test_the_n_grams_count_as_much_as_they_are_told_to(tmp_path: Path) -> None:
    model = tmp_path / "words.arpa"
    model.write_text(ARPA)
    tokenizer = made("slend")
    table = frames("s.e.nn.d", tokenizer)
    table[0] = 0.02
    table[0, tokenizer.get_vocab()["s"]], table[0, tokenizer.get_vocab()["l"]] = 0.6, 0.3
    assert written(table, tokenizer, model, 0.0) == "send"  # 0.6 against 0.3
    assert written(table, tokenizer, model, 1.0) == "lend"  # 0.6 x 0.01 against 0.3 x 0.79
    capital = made("SLENDA")
    other = frames("S.E.NN.D", capital)
    assert written(other, capital, model, 0.0) == "SEND"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "cannot read the language model"),
        ("", "holds no word"),
        ("two words\n", "'two words', which is no word"),
        ("xylophone\n", "can spell no word of .*: expected words of a b$"),
        ("\ufeff\\data\\\nngram 1=9\n", "begins with a byte order mark"),
        (
            "\\data\\\nngram 1=9\n\n\\1-grams:\n-1\tba\n",
            r"is no ARPA file that KenLM reads \(This ngram implementation assumes at least a bigram",
        ),
    ],
)
def test_no_language_model(text: str | None, error: str, tmp_path: Path) -> None:
    path = tmp_path / "words"
    if text is not None:
        path.write_text(text)
    with pytest.raises(AffinageError, match=error) as raised:
        beam.searcher(made("ab"), path, 1.0, _spell)
    assert "\n" not in str(raised.value) and (str(path) in str(raised.value))


def test_a_list_from_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A byte order mark, capitals and signs are folded as transcripts are; what cannot be spelled is said."""
    path, tokenizer = tmp_path / "words.txt", made("slend")
    path.write_text("\ufeffSEND.\nxylophone\nLend\n", encoding="utf8")
    search = beam.searcher(tokenizer, path, 1.0, _spell_plain)
    for said in ("s.e.nn.d", "l.e.n.d"):
        table = frames(said, tokenizer)
        assert [word for word, *_ in spelled(table, tokenizer, search(np.log(table)))] == [
            said.replace(".", "").replace("nn", "n")
        ]
    assert "1 of 3 words of" in (told := capsys.readouterr().err) and "(xylophone)" in told


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashlight.lib.text", None)
    with pytest.raises(AffinageError, match=r"pip install 'affinage\[beam\]'"):
        beam.needed()
