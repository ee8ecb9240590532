"""What the user did that cannot be done: one line each, exit code 2, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class AffinageError(Exception):
    """Bad input. The message is one line: what was found, what was expected, how to mend it."""

    exit_code = 2


class Diverged(AffinageError):
    """The loss is not finite: going on with the same settings would end the same way."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`", did you mean 'x'?"` for the closest of `known`, or the empty string if none is close."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""


def choose(what: str, word: str, known: Iterable[str]) -> str:
    """`word` if it is one of `known`; otherwise an error that names the nearest.

    Raises:
        AffinageError: `word` is not one of `known`.
    """
    names = list(known)
    if word not in names:
        raise AffinageError(f"unknown {what} '{word}'{nearest(word, names)} (known: {', '.join(names)})")
    return word
