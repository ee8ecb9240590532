"""Intervals agree with scipy and with closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from affinage.measure.interval import paired, sign_flip, wilson

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 30), (30, 30), (7, 10), (450, 1000), (9999, 10000)])
def test_wilson_is_scipys(k: int, n: int) -> None:
    reference = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_wilson_stays_inside_and_refuses_nonsense() -> None:
    assert wilson(0, 5)[0] == 0.0 and wilson(5, 5)[1] == 1.0
    for k, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="expected 0 <= k <= n"):
            wilson(k, n)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 9, 10, 31, 200])
def test_paired_is_scipys_t_interval(n: int) -> None:
    values = np.random.default_rng(n).normal(0.3, 1.0, n)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert paired(values) == pytest.approx((values.mean(), low, high), rel=1e-9)


def test_paired_of_two_by_hand() -> None:
    # t(0.975, 1) = tan(0.475 pi); the standard error of (0, 2) is 1
    half = math.tan(0.475 * math.pi)
    assert paired([0.0, 2.0]) == pytest.approx((1.0, 1 - half, 1 + half))


def test_paired_of_one_claims_nothing() -> None:
    assert paired([0.5]) == (0.5, -math.inf, math.inf)
    for bad in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="finite differences"):
            paired(bad)


@pytest.mark.parametrize("n", [3, 6, 10])
def test_sign_flip_is_scipys_exact_permutation(n: int) -> None:
    values = np.random.default_rng(n).normal(0.4, 1.0, n)
    reference = stats.permutation_test(
        (values,), lambda x, axis: np.sum(x, axis=axis), permutation_type="samples", vectorized=True, n_resamples=np.inf
    )
    assert sign_flip(values) == pytest.approx(reference.pvalue)


def test_sign_flip_closed_forms() -> None:
    assert sign_flip([0.1] * 5) == 2 / 2**5  # only all plus and all minus reach the sum, in spite of rounding
    assert sign_flip([0.0, 0.0]) == 1.0
    assert sign_flip([1.0, -1.0]) == 1.0
    with pytest.raises(ValueError, match="at most 20"):
        sign_flip([1.0] * 21)
