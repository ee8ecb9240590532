"""Stage 1: a linear head solved to its optimum on features computed once.

Logistic regression by L-BFGS with the penalty chosen by cross-validation, and ridge with exact leave-one-out for tiny sets.
Features are standardised inside and the standardisation is folded into the head: W' = W / sd, b' = b - W mean / sd. One that
hardly moves is not blown up: the next picture in which it does would decide alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

PENALTIES = tuple(
    10.0**p for p in (1, 0.5, 0, -0.5, -1, -1.5, -2, -2.5, -3, -4)
)  # per-row L2 on standardised features, strong to weak
RIDGES = tuple(10.0**p for p in np.arange(-2, 5.01, 0.5))
FLOOR = 0.3  # of the features' usual spread: one that spreads less is scaled as if it spread so much
THREADS = 4  # of a product with one vector, which is over in less than a millisecond
STEPS = 40  # of one fit after which it pays to look at the second moments of the features ...
MANY = 16  # ... where there are so many times as many logits as features
TINY = 4  # rows a class up to which leave-one-out ridge is used: too few for folds that hold every class


@dataclass(frozen=True)
class Head:
    """logits = features @ weight.T + bias, and how it was found."""

    weight: np.ndarray  # (C, D) float32
    bias: np.ndarray  # (C,) float32
    method: str  # "logistic" or "ridge"
    penalty: float
    gradient_norm: float  # largest absolute entry of the objective's gradient at the optimum; 0 for a closed form
    iterations: int
    held_out: np.ndarray  # (M, C) logits of training rows, each by a head that has not seen it
    held_rows: np.ndarray  # (M,) which rows: all N of them, or one fold's where N is large

    def logits(self, features: np.ndarray) -> np.ndarray:
        return features @ self.weight.T + self.bias


def standardise(features: np.ndarray, centre: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(mean, scale), (D,) each: the scale is the sd, or `FLOOR` of the root of the mean variance where that is more.

    Not `centre`d: mean 0, and the root of the mean square instead of the sd.
    """
    mean, sd = features.mean(0), features.std(0)
    if not centre:
        mean, sd = np.zeros_like(mean), np.sqrt(mean**2 + sd**2)
    usual = float(np.sqrt((sd**2).mean())) if sd.size else 0.0
    return mean, np.maximum(sd, FLOOR * usual) if usual > 0 else np.ones_like(sd)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def objective(
    flat: np.ndarray, x: np.ndarray, y: np.ndarray, w: np.ndarray, penalty: float, bias: bool = True
) -> tuple[float, np.ndarray]:
    """Weighted mean cross entropy + penalty / 2 * |W|^2 (the bias is free), and its gradient; flat holds (C, D + 1).

    Without `bias` the last column stays where it is: its gradient is given as 0.
    """
    table = flat.reshape(-1, x.shape[1] + 1).astype(x.dtype, copy=False)
    logp = log_softmax(x @ table[:, :-1].T + table[:, -1])
    rows = np.arange(len(y))
    residual = np.exp(logp)
    residual[rows, y] -= 1.0
    residual *= w[:, None]
    gradient = np.concatenate([residual.T @ x + penalty * table[:, :-1], bias * residual.sum(0)[:, None]], axis=1)
    value = -float(w @ logp[rows, y]) + penalty / 2 * float((table[:, :-1] ** 2).sum())
    return value, gradient.astype(np.float64, copy=False).ravel()


def binary_objective(
    flat: np.ndarray, x: np.ndarray, sign: np.ndarray, w: np.ndarray, penalty: float, bias: bool = True
) -> tuple[float, np.ndarray]:
    """`objective` of two classes at the table (-flat, flat), flat (D + 1,), and its gradient by flat; `sign` (N,) is -1 or 1.

    The optimum has that shape, since what both rows share costs penalty and changes no probability: half the work.
    """
    row = flat.astype(x.dtype, copy=False)
    margin = 2.0 * sign * (x @ row[:-1] + row[-1])
    residual = (-2.0 * sign * w / (1.0 + np.exp(np.minimum(margin, 80.0)))).astype(x.dtype, copy=False)
    gradient = np.append(residual @ x + 2 * penalty * row[:-1], bias * residual.sum())
    value = float(w @ np.logaddexp(0.0, -margin)) + penalty * float(row[:-1] @ row[:-1])
    return value, gradient.astype(np.float64, copy=False)


def moments(x: np.ndarray, w: np.ndarray, bias: bool = True) -> np.ndarray:
    """(D + 1, D + 1) float64: the weighted second moments of (N, D) `x` and of a column of ones, by itself without `bias`."""
    weighted, size = x * w.astype(x.dtype)[:, None], x.shape[1]
    found = np.zeros((size + 1, size + 1))
    found[:size, :size] = weighted.T @ x
    found[size, :size] = found[:size, size] = bias * weighted.sum(0)
    found[size, size] = 1.0
    return found


def _root(second: np.ndarray, classes: int, penalty: float) -> np.ndarray:
    """The lower Cholesky factor of what bounds the Hessian of the objective, class by class (Boehning, Ann. Inst. Stat. Math. 44,
    1992); `second`: the `moments`.
    """
    two, size = classes == 2, len(second) - 1
    bound = second * (1.0 if two else (classes - 1) / classes**2)
    ridge = max((1 + two) * penalty, 1e-4 * float(np.trace(bound)) / max(size, 1))  # what is less is lost in rounding
    bound[np.arange(size), np.arange(size)] += ridge
    bound[size, size] += 1e-6
    return np.linalg.cholesky(bound)


def logistic(
    x: np.ndarray,
    y: np.ndarray,
    w: np.ndarray,
    classes: int,
    penalty: float,
    start: np.ndarray | None = None,
    tolerance: float = 1e-6,
    bias: bool = True,
    second: np.ndarray | None = None,
) -> tuple[np.ndarray, float, int]:
    """(table (C, D + 1), largest gradient entry, iterations) of penalised multinomial logistic regression on (N, D) `x`.

    `w` (N,) sums to one. `second`: the `moments`, where they are known: it is solved in coordinates in which the Hessian is about
    the identity, which takes fewer steps the less alike the features are, and `tolerance` is that of the gradient there.
    """
    from scipy.linalg import solve_triangular
    from scipy.optimize import minimize

    two, width = classes == 2, x.shape[1] + 1
    lower = None if second is None else _root(second, classes, penalty)
    begin = np.zeros((classes, width)) if start is None else start
    first = begin[1:] if two else begin
    inner = binary_objective if two else objective
    given = (x, np.where(y == 1, 1.0, -1.0).astype(x.dtype) if two else y, w.astype(x.dtype), penalty, bias)

    def back(scaled: np.ndarray) -> np.ndarray:
        """(rows of the table, D + 1) as they stand in the table."""
        rows = scaled.reshape(-1, width)
        return rows if lower is None else solve_triangular(lower, rows.T, lower=True, trans="T", check_finite=False).T

    def scaled_objective(scaled: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = inner(back(scaled).ravel(), *given)
        if lower is not None:
            gradient = solve_triangular(lower, gradient.reshape(-1, width).T, lower=True, check_finite=False).T.ravel()
        return value, gradient

    found = minimize(
        scaled_objective,
        (first if lower is None else first @ lower).ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 1000, "gtol": tolerance, "ftol": 1e-15, "maxcor": 20},
    )
    rows = back(found.x)
    _, gradient = inner(rows.ravel(), *given)
    table = np.stack([-rows[0], rows[0]]) if two else rows
    return table, float(np.abs(gradient).max()), int(found.nit)


def folds(y: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(N,) the fold of each row, stratified by class."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    fold = np.empty(len(y), dtype=np.int64)
    fold[order] = np.arange(len(y)) % count
    return fold


def row_weights(y: np.ndarray, classes: int, balanced: bool) -> np.ndarray:
    """(N,) weights that sum to one; balanced: every class weighs the same."""
    if not balanced:
        return np.full(len(y), 1.0 / len(y))
    counts = np.bincount(y, minlength=classes)
    weights = 1.0 / counts[y]
    return weights / weights.sum()


def solve(
    features: np.ndarray, targets: np.ndarray, classes: int, *, balanced: bool = False, bias: bool = True, seed: int = 0
) -> Head:
    """The best linear head for (N, D) features and (N,) integer targets; without `bias`, the best whose bias is 0 (decoders)."""
    with _few_threads():
        mean, sd = standardise(features.astype(np.float64), centre=bias)
        x = (features - mean) / sd
        counts = np.bincount(targets, minlength=classes)
        if counts[counts > 0].min() <= TINY:
            return _ridge(x, targets, classes, mean, sd, balanced, bias)
        return _logistic(x, targets, classes, mean, sd, balanced, bias, seed)


def _cores() -> int:
    """Of this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _few_threads() -> Iterator[None]:
    """No more than `THREADS` in a product, since sixteen mostly waited for one another; nor than half the cores.

    NumPy and SciPy bring a BLAS each, whose threads wait busily: together they may take no more cores than there are. Two threads
    each on two cores took up to 7 times as long as one (`benchmarks/solve_threads.py`).
    """
    from threadpoolctl import threadpool_info, threadpool_limits

    most = min((one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"), default=1)
    with threadpool_limits(max(1, min(most, THREADS, _cores() // 2)), user_api="blas"):
        yield


def _logistic(
    x: np.ndarray, y: np.ndarray, classes: int, mean: np.ndarray, sd: np.ndarray, balanced: bool, bias: bool, seed: int
) -> Head:
    """The penalty with the lowest held-out log loss over a warm-started path from strong to weak, then the fit on all rows."""
    fold = folds(y, 5, seed)
    tried = 5 if len(y) <= 20_000 else 1  # one fold is plenty where each holds thousands of rows
    single = x.astype(np.float32)  # the path only chooses; the head itself is solved in double precision
    held = np.zeros((len(PENALTIES), len(y), classes))
    tables: list[np.ndarray | None] = [None] * tried
    seconds: list[np.ndarray | None] = [None] * tried  # moments of each fold's training rows
    hard = False
    losses: list[float] = []
    for i, penalty in enumerate(PENALTIES):
        for k in range(tried):
            train, test = fold != k, fold == k
            part, w = single[train], row_weights(y[train], classes, balanced)
            if hard and seconds[k] is None:
                seconds[k] = moments(part, w, bias)
            table, _, steps = logistic(part, y[train], w, classes, penalty, tables[k], 1e-4, bias, seconds[k])
            hard = hard or (steps > STEPS and len(y) * classes >= MANY * x.shape[1])
            held[i, test] = x[test] @ table[:, :-1].T + table[:, -1]
            tables[k] = table
        seen = np.flatnonzero(fold < tried)
        losses.append(float(-log_softmax(held[i, seen])[np.arange(len(seen)), y[seen]].mean()))
        if i - int(np.argmin(losses)) >= 2:  # past the valley: weaker penalties only cost more iterations
            break
    rows = np.flatnonzero(fold < tried)
    best = int(np.argmin(losses))
    w = row_weights(y, classes, balanced)
    second = moments(x, w, bias) if hard else None
    table, gradient, iterations = logistic(x, y, w, classes, PENALTIES[best], bias=bias, second=second)
    weight = table[:, :-1] / sd
    offset = table[:, -1] - weight @ mean
    weight, offset = weight.astype(np.float32), offset.astype(np.float32)
    return Head(weight, offset, "logistic", PENALTIES[best], gradient, iterations, held[best][rows], rows)


def _ridge(x: np.ndarray, y: np.ndarray, classes: int, mean: np.ndarray, sd: np.ndarray, balanced: bool, bias: bool) -> Head:
    """Weighted ridge on one-hot targets; exact leave-one-out residuals e_i / (1 - h_i) from one SVD; scores scaled to be logits.

    The scale is the one with the lowest leave-one-out log loss, so that the probabilities mean something.
    """
    w = row_weights(y, classes, balanced) * len(y)
    onehot = np.eye(classes)[y]
    root = np.sqrt(w)[:, None]
    centre_x, centre_y = (w[:, None] * x).sum(0) / w.sum(), (w[:, None] * onehot).sum(0) / w.sum()
    if not bias:  # even odds at the origin: what is added to all classes alike changes no probability
        centre_x, centre_y = np.zeros(x.shape[1]), np.full(classes, 1.0 / classes)
    xc, yc = (x - centre_x) * root, (onehot - centre_y) * root
    u, s, vt = np.linalg.svd(xc, full_matrices=False)
    best: tuple[float, float, float, np.ndarray] | None = None
    for alpha in RIDGES:
        shrink = s**2 / (s**2 + alpha)
        fitted = u @ (shrink[:, None] * (u.T @ yc))
        leverage = (u**2) @ shrink + bias * w / w.sum()
        residual = (yc - fitted) / root / np.maximum(1.0 - leverage, 1e-9)[:, None]
        left_out = onehot - residual
        for scale in (1.0, 2.0, 4.0, 8.0, 16.0):
            loss = -log_softmax(scale * left_out)[np.arange(len(y)), y].mean()
            if best is None or loss < best[0]:
                best = (float(loss), alpha, scale, scale * left_out)
    assert best is not None
    _, alpha, scale, held = best
    weight = (vt.T @ ((s / (s**2 + alpha))[:, None] * (u.T @ yc))).T * scale
    offset = (centre_y * scale if bias else np.zeros(classes)) - weight @ centre_x
    weight = weight / sd
    offset = offset - weight @ mean
    return Head(weight.astype(np.float32), offset.astype(np.float32), "ridge", float(alpha), 0.0, 0, held, np.arange(len(y)))
