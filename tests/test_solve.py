"""The solved head: scikit-learn's optimum, a zero gradient, exact leave-one-out, and standardisation that leaves no trace."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import threadpool_info, threadpool_limits

from affinage.solve import (
    PENALTIES,
    binary_objective,
    folds,
    log_softmax,
    logistic,
    moments,
    objective,
    row_weights,
    solve,
    standardise,
)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """300 rows of 64 pixels, of which some are always 0, and 10 classes."""
    x, y = load_digits(return_X_y=True)
    return x[:300].astype(np.float32), y[:300]


@pytest.mark.parametrize("penalty", [1.0, 0.1, 0.01])
def test_logistic_is_scikit_learns(penalty: float, digits: tuple[np.ndarray, np.ndarray]) -> None:
    """The same objective, sum of losses * C + |W|^2 / 2 with C = 1 / (N penalty); weights of several classes sum to 0 in both."""
    x, y = digits
    mean, sd = standardise(x.astype(np.float64))
    z = (x - mean) / sd
    ours, gradient, iterations = logistic(z, y, row_weights(y, 10, False), 10, penalty)
    theirs = LogisticRegression(C=1 / (len(y) * penalty), tol=1e-8, max_iter=10_000).fit(z, y)
    assert np.abs(ours[:, :-1] - theirs.coef_).max() < 1e-3
    bias = ours[:, -1] - ours[:, -1].mean()  # the common part of the biases is free
    assert np.abs(bias - (theirs.intercept_ - theirs.intercept_.mean())).max() < 1e-3
    assert gradient < 1e-5 and iterations > 3


def unlike(count: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose features go together: most of what moves one moves the others."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((count, width)) * np.logspace(0, -2.5, width) @ np.linalg.qr(draw.standard_normal((width, width)))[0]
    y = (x @ draw.standard_normal((width, classes)) + 0.3 * draw.standard_normal((count, classes))).argmax(1)
    return x / x.std(0), y


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_known_moments_change_the_way_and_not_the_end(classes: int, bias: bool) -> None:
    """The same optimum in fewer steps where features are unlike, and a gradient as small."""
    x, y = unlike(600, 40, classes)
    w = row_weights(y, classes, True)
    plain, _, many = logistic(x, y, w, classes, 1e-3, tolerance=1e-8, bias=bias)
    ours, gradient, few = logistic(x, y, w, classes, 1e-3, tolerance=1e-8, bias=bias, second=moments(x, w, bias))
    assert np.abs(ours - plain).max() < 1e-3 * np.abs(plain).max() and gradient < 1e-6 and few < 0.7 * many, (few, many)
    assert bias or not ours[:, -1].any()


def test_moments_are_looked_at_where_it_takes_long(
    digits: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of features that are unlike, and not of others, nor where they are too many."""
    from affinage import solve as solving

    looked: list[tuple[int, ...]] = []
    monkeypatch.setattr(solving, "moments", lambda x, *rest: looked.append(x.shape) or moments(x, *rest))
    solve(*unlike(2000, 60, 2), 2)
    assert 3 < len(looked) <= 6 and looked[-1] == (2000, 60)  # folds, from the one that took long, and all rows
    looked.clear()
    for x, y in (unlike(300, 60, 2), (np.random.default_rng(0).standard_normal((2000, 60)), np.arange(2000) % 2)):
        solve(x, y, 2)
    assert not looked


def test_second_moments() -> None:
    x, w = np.random.default_rng(0).standard_normal((20, 3)), np.full(20, 0.05)
    wide = np.column_stack([x, np.ones(20)])
    assert np.allclose(moments(x, w), (wide * w[:, None]).T @ wide)
    alone = moments(x, w, bias=False)
    assert np.allclose(alone[:3, :3], moments(x, w)[:3, :3]) and alone[3].tolist() == [0, 0, 0, 1] == alone[:, 3].tolist()


def test_balanced_is_scikit_learns(digits: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = digits
    rows = np.flatnonzero((y < 3) & ~((y == 1) & (np.arange(len(y)) % 4 > 0)))
    z, y = (x[rows] - x[rows].mean(0)) / 4, y[rows]
    w = row_weights(y, 3, balanced=True)
    assert np.allclose([w[y == c].sum() for c in range(3)], 1 / 3)
    ours, _, _ = logistic(z, y, w, 3, 0.1)
    theirs = LogisticRegression(C=1 / (len(y) * 0.1), class_weight="balanced", tol=1e-8, max_iter=10_000).fit(z, y)
    assert np.abs(ours[:, :-1] - theirs.coef_).max() < 1e-3


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_two_classes_are_solved_by_half_the_table(balanced: bool, bias: bool, digits: tuple[np.ndarray, np.ndarray]) -> None:
    """The same value and slope as the whole table's there, and no slope of the whole table at the optimum."""
    x, y = digits
    x, y = x[y < 2].astype(np.float64), y[y < 2]
    w, sign = row_weights(y, 2, balanced), np.where(y == 1, 1.0, -1.0)
    row = np.random.default_rng(0).normal(size=x.shape[1] + 1) / 50
    value, slope = binary_objective(row, x, sign, w, 0.2, bias)
    whole, gradient = objective(np.stack([-row, row]).ravel(), x, y, w, 0.2, bias)
    below, above = gradient.reshape(2, -1)
    assert value == pytest.approx(whole) and np.allclose(slope, above - below)
    table, _, _ = logistic(x / 16, y, w, 2, 0.2, bias=bias)
    assert np.abs(objective(table.ravel(), x / 16, y, w, 0.2, bias)[1]).max() < 2e-6


def test_gradient_by_finite_differences() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(20, 5)), draw.integers(0, 3, 20)
    w = row_weights(y, 3, balanced=True)
    at = draw.normal(size=3 * 6)
    _, gradient = objective(at, x, y, w, 0.3)
    step = 1e-6
    for i in range(len(at)):
        there, back = at.copy(), at.copy()
        there[i] += step
        back[i] -= step
        slope = (objective(there, x, y, w, 0.3)[0] - objective(back, x, y, w, 0.3)[0]) / (2 * step)
        assert abs(slope - gradient[i]) < 1e-8


def test_no_direction_leads_down_from_the_optimum(digits: tuple[np.ndarray, np.ndarray]) -> None:
    """The head that is handed out, standardisation folded in, is the minimum over its own standardised features."""
    x, y = digits
    head = solve(x, y, 10)
    assert head.method == "logistic" and head.penalty in PENALTIES and head.gradient_norm < 1e-5
    mean, sd = standardise(x.astype(np.float64))
    z, w = (x - mean) / sd, row_weights(y, 10, False)
    table = np.concatenate([head.weight * sd, (head.bias + head.weight @ mean)[:, None]], axis=1)
    here, _ = objective(table.ravel(), z, y, w, head.penalty)
    draw = np.random.default_rng(0)
    for _ in range(20):
        away = draw.normal(size=table.size)
        for size in (1e-2, 1e-1):
            assert objective(table.ravel() + size * away / np.linalg.norm(away), z, y, w, head.penalty)[0] > here
    assert np.allclose(head.logits(x), z @ table[:, :-1].T + table[:, -1], atol=1e-4)  # folded: the same logits on raw features


def test_penalty_is_the_best_of_cross_validation(digits: tuple[np.ndarray, np.ndarray]) -> None:
    """By scikit-learn on the same folds: no penalty has a lower held-out log loss, and the one of our held-out logits is theirs.

    The path through the penalties stops each solution early (a gradient of 1e-4): 3 % of the smallest losses.
    """
    x, y = digits
    head = solve(x, y, 10, seed=3)
    mean, sd = standardise(x.astype(np.float64))
    z, fold = (x - mean) / sd, folds(y, 5, 3)
    losses = {}
    for penalty in PENALTIES:
        logp = np.empty((len(y), 10))
        for k in range(5):
            learner = LogisticRegression(C=1 / ((fold != k).sum() * penalty), tol=1e-5, max_iter=2000)
            learner.fit(z[fold != k], y[fold != k])
            logp[fold == k] = learner.predict_log_proba(z[fold == k])
        losses[penalty] = -logp[np.arange(len(y)), y].mean()
    ours = -log_softmax(head.held_out)[np.arange(len(y)), y].mean()
    assert losses[head.penalty] == min(losses.values()) and abs(ours / losses[head.penalty] - 1) < 0.1
    assert (head.held_rows == np.arange(len(y))).all()


def test_held_out_is_worse_than_seen(digits: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = digits
    noise = np.random.default_rng(0).permutation(
        y
    )  # labels that mean nothing: a head that has seen a row knows it, one that has not does not
    head = solve(np.tile(x, 4) + np.random.default_rng(1).normal(size=(300, 256)).astype(np.float32), noise, 10)
    assert (head.held_out.argmax(1) == noise).mean() < 0.25


def test_many_rows_hold_out_one_fold() -> None:
    """Above 20,000 rows one fold of five is held out; only its rows have logits by a head that has not seen them."""
    draw = np.random.default_rng(0)
    y = draw.integers(0, 2, 20_500)
    x = (y[:, None] * [1.0, -1.0] + draw.normal(size=(20_500, 2))).astype(np.float32)
    head = solve(x, y, 2)
    assert head.held_rows.tolist() == np.flatnonzero(folds(y, 5, 0) == 0).tolist()
    accuracy = (head.held_out.argmax(1) == y[head.held_rows]).mean()
    assert abs(accuracy - 0.7602) < 0.02  # the best rule's is Phi(sqrt(2) / 2): the means are sqrt(2) apart


def test_without_a_bias(digits: tuple[np.ndarray, np.ndarray]) -> None:
    """Scikit-learn's optimum without an intercept; few rows a class: its ridge without one, left out one by one."""
    x, y = digits
    _, size = standardise(x.astype(np.float64), centre=False)
    ours, _, _ = logistic(x / size, y, row_weights(y, 10, False), 10, 0.1, bias=False)
    theirs = LogisticRegression(C=1 / (len(y) * 0.1), fit_intercept=False, tol=1e-8, max_iter=10_000).fit(x / size, y)
    assert np.abs(ours[:, :-1] - theirs.coef_).max() < 1e-3 and not ours[:, -1].any()
    head = solve(x, y, 10, bias=False)
    assert not head.bias.any() and head.gradient_norm < 1e-5
    assert (head.held_out.argmax(1) == y).mean() > 0.9

    rows = np.concatenate([np.flatnonzero(y == c)[:4] for c in range(4)])
    x, y = x[rows], y[rows]
    head = solve(x, y, 4, bias=False)
    _, size = standardise(x.astype(np.float64), centre=False)
    targets = np.eye(4)[y] - 0.25
    full = Ridge(alpha=head.penalty, fit_intercept=False).fit(x / size, targets).predict(x / size)
    scale = float(np.round(np.median(head.logits(x) / full)))
    assert np.allclose(head.logits(x), scale * full, atol=1e-4) and not head.bias.any()
    for i in range(len(y)):
        rest = np.arange(len(y)) != i
        left_out = Ridge(alpha=head.penalty, fit_intercept=False).fit(x[rest] / size, targets[rest]).predict(x[i : i + 1] / size)
        assert np.allclose(head.held_out[i] - head.held_out[i].mean(), scale * (left_out - left_out.mean()), atol=1e-6)


@pytest.mark.parametrize("balanced", [False, True])
def test_ridge_leaves_one_out_exactly(balanced: bool, digits: tuple[np.ndarray, np.ndarray]) -> None:
    """Four rows a class: the closed form equals N refits by scikit-learn, each without one row."""
    x, y = digits
    rows = np.concatenate([np.flatnonzero(y == c)[: 4 - (c == 2)] for c in range(4)])
    x, y = x[rows], y[rows]
    head = solve(x, y, 4, balanced=balanced)
    assert head.method == "ridge" and head.gradient_norm == 0
    mean, sd = standardise(x.astype(np.float64))
    z, w, onehot = (x - mean) / sd, row_weights(y, 4, balanced) * len(y), np.eye(4)[y]
    scale = None
    for i in range(len(y)):
        rest = np.arange(len(y)) != i
        refit = Ridge(alpha=head.penalty).fit(z[rest], onehot[rest], sample_weight=w[rest])
        left_out = refit.predict(z[i : i + 1])[0]
        scale = scale or float(np.round(np.median(head.held_out[i] / left_out)))
        assert np.allclose(head.held_out[i], scale * left_out, atol=1e-6)
    full = Ridge(alpha=head.penalty).fit(z, onehot, sample_weight=w)
    assert np.allclose(head.logits(x), scale * full.predict(z), atol=1e-4)  # and standardisation is folded here as well


def test_one_row_a_class() -> None:
    x = np.eye(3, 8, dtype=np.float32) * 5
    head = solve(x, np.arange(3), 3)
    assert (head.logits(x).argmax(1) == np.arange(3)).all() and np.isfinite(head.weight).all()


def test_a_feature_that_hardly_moves_does_not_decide_alone() -> None:
    """Once blown up to a spread of one, its weights were the largest by far, and a picture in which it moved had logits to match."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = rng.standard_normal((60, 8)) + 2.0 * np.eye(3)[y] @ rng.standard_normal((3, 8))
    x[:, 3] = 1e-4 * (y == 1)  # nearly dead, and right by chance
    head = solve(x, y, 3)
    others = np.delete(np.abs(head.weight), 3, axis=1)
    assert np.abs(head.weight[:, 3]).max() < others.max()
    moved = x.copy()
    moved[:, 3] = 1.0
    assert (head.logits(moved).argmax(1) == y).mean() > 0.9
    _, scale = standardise(x)
    usual = np.sqrt((x.std(0) ** 2).mean())
    assert scale[3] == 0.3 * usual and np.array_equal(np.delete(scale, 3), np.delete(x.std(0), 3))


def test_constant_features_stay_out() -> None:
    draw = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = np.stack([np.full(60, 7.0), y + draw.normal(0, 0.3, 60), np.full(60, 0.0)], axis=1).astype(np.float32)
    head = solve(x, y, 2)
    assert np.abs(head.weight[:, [0, 2]]).max() < 1e-6
    assert (head.logits(x).argmax(1) == y).mean() > 0.9
    nothing = solve(np.zeros((20, 4), np.float32), np.arange(20) % 2, 2)
    assert np.abs(nothing.logits(np.zeros((1, 4), np.float32))).max() < 1e-4  # no feature tells anything: even odds


def test_a_class_without_rows_is_never_predicted() -> None:
    """A source may declare classes that train does not have."""
    draw = np.random.default_rng(0)
    y = np.arange(90) % 3 * 2  # classes 0, 2, 4 of 5
    x = (np.eye(5)[y] @ draw.normal(size=(5, 6)) * 2 + draw.normal(size=(90, 6))).astype(np.float32)
    for balanced in (False, True):
        head = solve(x, y, 5, balanced=balanced)
        assert np.isfinite(head.weight).all() and set(head.logits(x).argmax(1)) == {0, 2, 4}


def test_folds_hold_every_class_evenly() -> None:
    y = np.repeat([0, 1, 2], [50, 23, 7])
    fold = folds(y, 5, seed=1)
    for c in range(3):
        counts = np.bincount(fold[y == c], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert (fold == folds(y, 5, seed=1)).all() and (fold != folds(y, 5, seed=2)).any()


def test_repeats_itself(digits: tuple[np.ndarray, np.ndarray]) -> None:
    one, other = (solve(*digits, 10, seed=5) for _ in range(2))
    assert one.weight.tobytes() == other.weight.tobytes() and one.held_out.tobytes() == other.held_out.tobytes()


def test_it_takes_few_threads_and_gives_them_back(digits: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen threads wait for one another longer than they multiply; and there are two BLAS, which must not share a core."""
    seen: list[int] = []

    def threads() -> list[int]:
        return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]

    def watching(*args: object, **kwargs: object) -> object:
        seen.extend(threads())
        return logistic(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("affinage.solve.logistic", watching)
    for cores, before, inside in ((16, 8, 4), (16, 2, 2), (4, 4, 2), (2, 2, 1), (1, 1, 1)):
        monkeypatch.setattr("affinage.solve._cores", lambda cores=cores: cores)
        seen.clear()
        with threadpool_limits(before, user_api="blas"):
            solve(*digits, 10)
            assert set(threads()) == {before}
        assert set(seen) == {inside}
