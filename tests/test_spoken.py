"""Synthetic speech for the recogniser's base: the same command says the same, and what is written is what was said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from affinage.data import read


@pytest.fixture(scope="module")
def spoken(recipe: Callable[[str], ModuleType]) -> ModuleType:
    return recipe("spoken")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts" / "banking77"
    folder.mkdir(parents=True)
    said = ("Where is my card?", "I lost 2 cards", "My card did n't work", "Hi", "Where is my card", "Please, close it!")
    (folder / "train.csv").write_text("label,text\n" + "".join(f'x,"{one}"\n' for one in said), encoding="utf8")
    return folder.parent


def test_sentences_are_of_letters_and_stand_once(spoken: ModuleType, texts: Path, tmp_path: Path) -> None:
    assert spoken.sentences(texts) == ["where is my card", "my card didn't work", "please close it"]
    with pytest.raises(SystemExit, match="no short sentence"):
        spoken.sentences(tmp_path / "nowhere")


def test_each_sentence_comes_before_one_comes_again(spoken: ModuleType) -> None:
    known = [f"sentence {'abcdefghij'[i]}" for i in range(10)]
    said = [spoken.text((0, i), known, np.random.default_rng((0, i))) for i in range(40)]
    whole = [(i, words) for i, words in enumerate(said) if words in known]
    assert 20 < len(whole) < 40  # the others are single words
    for start in range(0, 40, 10):
        of_round = [words for i, words in whole if start <= i < start + 10]
        assert len(of_round) == len(set(of_round))


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed (apt-get install espeak-ng)")
def test_the_same_command_says_the_same(spoken: ModuleType, texts: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        spoken.write(texts, tmp_path / name, 6, seed)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.wav"))
    assert len(files) == 6
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)
    assert any((tmp_path / "one" / f).read_bytes() != (tmp_path / "three" / f).read_bytes() for f in files)
    rows = [json.loads(line) for line in (tmp_path / "one" / "metadata.jsonl").read_text(encoding="utf8").splitlines()]
    found = read(tmp_path / "one")
    assert list(found.train.targets) == [row["transcription"] for row in rows]
