"""Intervals agree with scipy and with closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from affinage.measure.interval import crossed, paired, sign_flip, wilson

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


def test_crossed_is_paired_where_rows_do_not_matter() -> None:
    """Rows that differ by no more than chance add nothing, and what is left is Student's interval of the seeds' means."""
    seeds = np.array([0.3, -0.1, 0.2, 0.5])
    values = np.repeat(seeds[:, None], 9, axis=1)
    assert crossed(values) == pytest.approx(paired(seeds), abs=1e-12)


def test_crossed_is_a_normal_interval_where_seeds_do_not_matter() -> None:
    rows = np.random.default_rng(0).normal(0.1, 1.0, 500)
    half = 1.959963984540054 * rows.std(ddof=1) / math.sqrt(500)
    for seeds in (2, 7):  # the same answers from each: as sure as one of them
        expected = (rows.mean(), rows.mean() - half, rows.mean() + half)
        assert crossed(np.repeat(rows[None], seeds, axis=0)) == pytest.approx(expected, abs=1e-12)


def test_crossed_holds_the_truth_as_often_as_it_says() -> None:
    """Six seeds, 300 rows, both with an effect of their own; the seeds' interval alone is far too sure of itself."""
    draw, held, naive, runs = np.random.default_rng(1), 0, 0, 600
    for _ in range(runs):
        values = 0.5 + draw.normal(0, 0.03, (6, 1)) + draw.normal(0, 0.8, (1, 300)) + draw.normal(0, 0.5, (6, 300))
        (_, low, high), (_, near, far) = crossed(values), paired(values.mean(1))
        held, naive = held + (low <= 0.5 <= high), naive + (near <= 0.5 <= far)
    assert 0.93 <= held / runs <= 0.98 and naive / runs < 0.9


@pytest.mark.parametrize("values", [[[0.1, 0.2]], [[0.1], [0.2]], [0.1, 0.2], [[0.1, math.nan], [0.1, 0.2]]])
def test_crossed_refuses_one_seed_or_one_row(values: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="expected finite differences of two seeds and two rows"):
        crossed(np.array(values))
