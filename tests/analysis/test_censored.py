"""The censored model against least squares, scipy's own censored fit, and its open ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sweeper.analysis import censored
from sweeper.analysis.censored import ABOVE, BELOW, EXACT, NotEstimableError


def line(n=20, noise=0.1, seed=3):
    rng = np.random.default_rng(seed)
    x = np.linspace(-1, 1, n)
    return np.column_stack([np.ones(n), x]), 2.0 + 0.5 * x + rng.normal(0, noise, n)


def test_without_censoring_it_is_least_squares_with_t_intervals():
    design, y = line()
    found = censored.fit(design, y, np.zeros(20, dtype=np.int8))
    beta, residual, *_ = np.linalg.lstsq(design, y, rcond=None)
    sd = math.sqrt(residual[0] / 18)
    half = stats.t.ppf(0.975, 18) * sd * np.sqrt(np.diag(np.linalg.inv(design.T @ design)))
    assert found.coefficients == pytest.approx(beta)
    assert found.sigma == pytest.approx(sd)
    for place in (0, 1):
        ends = (beta[place] - half[place], beta[place] + half[place])
        assert found.interval(place, 0.05) == pytest.approx(ends, abs=1e-4)
    assert found.covariance == pytest.approx(sd**2 * np.linalg.inv(design.T @ design))


@pytest.mark.parametrize("side", [ABOVE, BELOW])
def test_censored_it_is_the_maximum_that_scipy_finds(side):
    rng = np.random.default_rng(5)
    y = rng.normal(1.0, 0.5, 40)
    cut = y > 1.2 if side == ABOVE else y < 0.8
    bound = 1.2 if side == ABOVE else 0.8
    known = np.where(cut, side, EXACT).astype(np.int8)
    found = censored.fit(np.ones((40, 1)), np.where(cut, bound, y), known)
    kind = "right" if side == ABOVE else "left"
    data = stats.CensoredData(y[~cut], **{kind: np.full(cut.sum(), bound)})
    mean, sigma = stats.norm.fit(data)
    assert found.coefficients[0] == pytest.approx(mean, abs=1e-4)
    assert found.sigma * math.sqrt(found.degrees / found.uncensored) == pytest.approx(
        sigma, abs=1e-4
    )
    low, high = found.interval(0, 0.05)
    assert low < mean < high
    assert found.holds(0, (low + mean) / 2, 0.05)
    assert not found.holds(0, low - 0.02, 0.05)


def test_what_nothing_bounds_is_open():
    design = np.column_stack([np.ones(8), [0, 0, 0, 0, 1, 1, 1, 1]])
    y = np.array([1.0, 1.1, 0.9, 1.05, 1.02, 3.0, 3.0, 3.0])
    known = np.array([0, 0, 0, 0, 0, 1, 1, 1], dtype=np.int8)
    low, high = censored.fit(design, y, known).interval(1, 0.05)
    assert low is not None
    assert high is None or high > 2


def test_too_few_values_say_so():
    design, y = line(4)
    with pytest.raises(NotEstimableError, match="3 runs crossed, and 2 parameters need 4"):
        censored.fit(design, y, np.array([0, 0, 0, 1], dtype=np.int8))
    known = np.zeros(6, dtype=np.int8)
    with pytest.raises(NotEstimableError, match="do not tell"):
        censored.fit(np.ones((6, 2)), np.arange(6.0), known)
