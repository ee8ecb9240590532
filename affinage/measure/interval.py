"""How sure a number is: a share (Wilson), a mean of paired differences (Student; over seeds and rows), exact sign flips."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959963984540054  # the 97.5 % point of the standard normal
MOST_FLIPS = 20  # 2^20 sign patterns are enumerated in about 0.2 s; beyond, an exact test is the wrong tool


def wilson(k: int, n: int) -> tuple[float, float]:
    """95 % interval of the share k/n (Wilson 1927, without continuity correction). Never leaves [0, 1].

    Raises:
        ValueError: not 0 <= k <= n, or n is 0.
    """
    if n <= 0 or not 0 <= k <= n:
        raise ValueError(f"wilson({k}, {n}): expected 0 <= k <= n and n > 0")
    share, z2 = k / n, Z * Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At the ends the bound is exactly 0 or 1; rounding must not leave 1e-17 there.
    return (0.0 if k == 0 else centre - half, 1.0 if k == n else centre + half)


def paired(differences: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high): the mean of paired differences, one a seed, and its 95 % Student interval.

    One difference says nothing about its spread: the interval is then (-inf, inf).

    Raises:
        ValueError: no differences, or one that is not finite.
    """
    values = _finite(differences)
    mean, n = float(values.mean()), len(values)
    if n == 1:
        return mean, -math.inf, math.inf
    half = _student_975(n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    return mean, mean - half, mean + half


def crossed(differences: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high): the mean of paired differences [seeds, rows], and its 95 % interval for other seeds and other rows.

    `paired` over the seeds' means holds for these test rows alone. Here seeds and rows are both drawn: the variance of the mean
    is that between seeds and that between rows, less the noise of a cell, which is in both (Dorfman, Berbaum & Metz 1992, with
    the degrees of freedom of Hillis 2007: seeds are their readers, rows their cases).

    Raises:
        ValueError: not two seeds and two rows at least, or a difference that is not finite.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 2 or min(values.shape) < 2 or not np.isfinite(values).all():
        raise ValueError(f"expected finite differences of two seeds and two rows at least, found shape {values.shape}")
    seeds, rows = values.shape
    mean = float(values.mean())
    by_seed, by_row = values.mean(1) - mean, values.mean(0) - mean
    rest = values - mean - by_seed[:, None] - by_row[None, :]
    between_seeds = rows * float(by_seed @ by_seed) / (seeds - 1)
    between_rows = seeds * float(by_row @ by_row) / (rows - 1)
    noise = float((rest * rest).sum()) / ((seeds - 1) * (rows - 1))
    total = between_seeds + max(between_rows - noise, 0.0)
    if between_seeds == 0.0:  # every seed says the same: only the rows vary
        half = Z * math.sqrt(total / (seeds * rows))
    else:
        half = _student_975_of((seeds - 1) * (total / between_seeds) ** 2) * math.sqrt(total / (seeds * rows))
    return mean, mean - half, mean + half


def _student_975_of(freedom: float) -> float:
    """The 97.5 % point of Student's t with any number of degrees of freedom, whole or not."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def sign_flip(differences: Sequence[float] | np.ndarray) -> float:
    """Exact two-sided p: the share of the 2^n sign patterns whose |sum| is at least the observed one (Fisher 1935).

    With n seeds p cannot fall below 2 / 2^n: five seeds cannot reach 0.05.

    Raises:
        ValueError: no differences, one that is not finite, or more than 20.
    """
    values = _finite(differences)
    if len(values) > MOST_FLIPS:
        raise ValueError(f"sign_flip of {len(values)} differences would need 2^{len(values)} sums; expected at most {MOST_FLIPS}")
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    # Patterns that tie with the observed sum must count in spite of rounding.
    tolerance = 1e-12 * float(np.abs(values).sum())
    return float(np.mean(np.abs(sums) >= abs(float(values.sum())) - tolerance))


def _finite(differences: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"expected a non-empty row of finite differences, found shape {values.shape}: {values[:5]}")
    return values


def _student_975(freedom: int) -> float:
    """The 97.5 % point of Student's t, by bisection of its closed form (Abramowitz & Stegun 26.7.3, 26.7.4)."""
    low, high = 0.0, 13.0  # t(1) is 12.706, and it falls with the degrees of freedom
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_within(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def _student_within(t: float, freedom: int) -> float:
    """P(|T| < t) for `freedom` degrees of freedom."""
    theta = math.atan(t / math.sqrt(freedom))
    sine, square = math.sin(theta), math.cos(theta) ** 2
    odd = freedom % 2
    term = total = math.cos(theta) if odd else 1.0
    for k in range(2 if odd else 1, freedom - 2, 2):
        term *= square * k / (k + 1)
        total += term
    if not odd:
        return sine * total
    return 2 / math.pi * (theta + (sine * total if freedom > 1 else 0.0))
