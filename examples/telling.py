"""How both demos tell what they found: a mean with its interval, a table, and a verdict that follows the interval."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from affinage.measure.interval import paired


def between(values: Sequence[float], unit: str = "%", sign: str = "") -> str:
    """Mean and 95 % Student interval of shares, one a seed; no interval for one seed."""
    middle, low, high = (100 * value for value in paired(values))
    text = f"{middle:{sign}.1f}{unit}"
    return text if len(values) == 1 else f"{text} ({low:{sign}.1f} to {high:{sign}.1f})"


def verdict(differences: Sequence[float], one: str, other: str, score: str) -> str:
    """Which of the two is better, by the differences of their scores (one minus other, a seed each), if either is shown to be."""
    _, low, high = paired(differences)
    says = (
        f"{one} is better than {other}"
        if low > 0
        else f"{other} is better than {one}"
        if high < 0
        else f"no difference between {one} and {other} is shown"
    )
    return f"{says}: {between(differences, ' points', '+')} of {score}, paired over {len(differences)} seeds."


def table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print the rows; what stands in the first column names them."""
    made = Table(title=title)
    for i, heading in enumerate(headings):
        made.add_column(heading, justify="right" if i else "left", no_wrap=bool(i))
    for row in rows:
        made.add_row(*row)
    Console().print(made)
