"""Linear models of values of which some are only known to lie above (or below) where they were cut off.

It must not know what the values are; the likelihood is the normal one (Tobin 1958), its small-sample
correction Student's t on the uncensored values alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sweeper.analysis.intervals import t_quantile

FloatArray = npt.NDArray[np.float64]

ABOVE, EXACT, BELOW = 1, 0, -1
"""What is known of a value: that the true one is above it, it itself, that the true one is below."""

_ITERATIONS = 60
_TOLERANCE = 1e-7
_FARTHEST = 12.0  # in log time a factor of 160,000: beyond it an interval is open
_NARROWING = 40


class NotEstimableError(ValueError):
    """The values cannot carry the model; the message says why."""


@dataclass(frozen=True)
class CensoredFit:
    """A linear model fitted by maximum likelihood, with the data that it was fitted to.

    `design` has shape (runs, parameters), `response` and `censored` (runs,); `coefficients` shape
    (parameters,). `sigma` is the residual standard deviation, corrected for the parameters used:
    the maximum likelihood one times sqrt(n / (n - p)), n = uncensored runs.
    """

    design: FloatArray
    response: FloatArray
    censored: npt.NDArray[np.int8]
    coefficients: FloatArray
    sigma: float
    log_likelihood: float

    @property
    def uncensored(self) -> int:
        """Runs whose value is known."""
        return int(np.sum(self.censored == EXACT))

    @property
    def degrees(self) -> int:
        """Uncensored runs less parameters: what Student's t is asked with."""
        return self.uncensored - len(self.coefficients)

    @cached_property
    def covariance(self) -> FloatArray:
        """Of the coefficients, from the observed information, shape (parameters, parameters)."""
        sigma = self.sigma * math.sqrt(self.degrees / self.uncensored)  # the most likely one
        z = (self.response - self.design @ self.coefficients) / sigma
        _, first, second = _derivatives(z, self.censored)
        place = np.column_stack([self.design, z])  # dz = -place / sigma
        information = -(place * second[:, None]).T @ place
        bend = self.design.T @ first
        information[-1, :-1] -= bend
        information[:-1, -1] -= bend
        information[-1, -1] -= 2 * float(first @ z) + self.uncensored
        inverse = np.linalg.pinv(information)[:-1, :-1] * self.sigma**2
        return np.asarray(inverse, dtype=np.float64)

    def interval(self, column: int, alpha: float) -> tuple[float | None, float | None]:
        """Profile likelihood interval of one coefficient at level 1 - alpha.

        Without censoring it is the t-interval. An end that the values do not bound (their
        likelihood stays flat) is None: what is left is a bound.
        """
        if self.degrees + self.design.shape[1] == len(self.response):  # nothing is censored
            best = float(self.coefficients[column])
            half = t_quantile(self.degrees, alpha) * math.sqrt(self.covariance[column, column])
            return best - half, best + half
        return self._end(column, -1.0, alpha), self._end(column, 1.0, alpha)

    def holds(self, column: int, value: float, alpha: float) -> bool:
        """Whether a value of one coefficient lies within its interval."""
        return self._drop(column, value) <= self._allowed(alpha)

    def predict(self, row: FloatArray) -> tuple[float, float]:
        """Expected value at a row of the design, and its standard error."""
        spread = float(row @ self.covariance @ row)
        return float(row @ self.coefficients), math.sqrt(max(0.0, spread))

    def _allowed(self, alpha: float) -> float:
        t = t_quantile(self.degrees, alpha)
        return self.uncensored * math.log1p(t * t / self.degrees)

    def _drop(self, column: int, value: float) -> float:
        """Twice the log likelihood that is lost when one coefficient is held at a value."""
        others = np.delete(self.design, column, axis=1)
        shifted = self.response - value * self.design[:, column]
        start = np.delete(self.coefficients, column)
        return 2 * (
            self.log_likelihood - _maximise(others, shifted, self.censored, start, self.sigma)[2]
        )

    def _end(self, column: int, side: float, alpha: float) -> float | None:
        from scipy.optimize import brentq  # noqa: PLC0415 - its import takes a second

        best = float(self.coefficients[column])
        error = math.sqrt(max(1e-12, float(self.covariance[column, column])))
        allowed = self._allowed(alpha)
        reach = side * t_quantile(self.degrees, alpha) * error
        inner, outer = 0.0, reach

        def beyond(distance: float) -> float:
            return self._drop(column, best + distance) - allowed

        while beyond(outer) < 0:
            inner, outer = outer, 2 * outer
            if abs(inner) > _FARTHEST:
                return None
        tolerance = max(1e-9, 1e-3 * error)
        found = brentq(beyond, inner, outer, xtol=tolerance, maxiter=_NARROWING)
        return best + float(found)


def fit(design: FloatArray, response: FloatArray, censored: npt.NDArray[np.int8]) -> CensoredFit:
    """The most likely model.

    Args:
        design: Shape (runs, parameters), with a column of ones if there is to be an intercept.
        response: Shape (runs,): the value, or the bound that a censored one is beyond.
        censored: Shape (runs,) of ABOVE, EXACT and BELOW.

    Raises:
        NotEstimableError: fewer than two uncensored runs more than parameters, or columns that the
            uncensored runs do not tell apart.
    """
    exact = censored == EXACT
    uncensored, parameters = int(exact.sum()), design.shape[1]
    if uncensored < parameters + 2:
        raise NotEstimableError(
            f"{uncensored} runs crossed, and {parameters} parameters need {parameters + 2}"
        )
    if np.linalg.matrix_rank(design[exact]) < parameters:
        raise NotEstimableError("the runs that crossed do not tell the parameters apart")
    start, *_ = np.linalg.lstsq(design[exact], response[exact], rcond=None)
    residual = response[exact] - design[exact] @ start
    spread = max(math.sqrt(float(residual @ residual) / uncensored), 1e-9)
    if exact.all():
        coefficients, sigma = start, spread
        likelihood = _at(design, response, censored, coefficients / sigma, 1 / sigma)
    else:
        coefficients, sigma, likelihood = _maximise(design, response, censored, start, spread)
    corrected = sigma * math.sqrt(uncensored / (uncensored - parameters))
    return CensoredFit(design, response, censored, coefficients, corrected, likelihood)


def _maximise(
    design: FloatArray,
    response: FloatArray,
    censored: npt.NDArray[np.int8],
    start: FloatArray,
    sigma: float,
) -> tuple[FloatArray, float, float]:
    """Coefficients, sigma and log likelihood at the maximum.

    Newton's method in (coefficients / sigma, 1 / sigma), where the log likelihood is concave (Olsen
    1978); a step is halved until it gains.
    """
    exact = censored == EXACT
    if exact.all():
        solved = np.linalg.lstsq(design, response, rcond=None)[0] if design.size else start
        coefficients = np.asarray(solved, dtype=np.float64)
        residual = response - design @ coefficients
        sigma = max(math.sqrt(float(residual @ residual) / len(response)), 1e-12)
        likelihood = _at(design, response, censored, coefficients / sigma, 1 / sigma)
        return coefficients, sigma, likelihood
    at = np.append(start / sigma, 1 / sigma)
    matrix = np.column_stack([-design, response])
    known = int(exact.sum())
    value = _at(design, response, censored, at[:-1], at[-1])
    for _ in range(_ITERATIONS):
        _, first, second = _derivatives(matrix @ at, censored)
        gradient = matrix.T @ first
        gradient[-1] += known / at[-1]
        hessian = (matrix * second[:, None]).T @ matrix
        hessian[-1, -1] -= known / at[-1] ** 2
        try:
            step = -np.linalg.solve(hessian, gradient)
        except np.linalg.LinAlgError:
            step = -np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        gain = float(gradient @ step)
        size = 1.0
        while size > 1e-8:
            there = at + size * step
            if there[-1] > 0:
                better = _at(design, response, censored, there[:-1], there[-1])
                if better >= value:
                    break
            size /= 2
        else:
            break
        at, value = there, better
        if gain < _TOLERANCE:
            break
    return at[:-1] / at[-1], 1 / float(at[-1]), value


def _at(
    design: FloatArray,
    response: FloatArray,
    censored: npt.NDArray[np.int8],
    scaled: FloatArray,
    theta: float,
) -> float:
    """Log likelihood at coefficients / sigma and 1 / sigma."""
    log, _, _ = _derivatives(theta * response - design @ scaled, censored)
    return float(log.sum()) + int((censored == EXACT).sum()) * math.log(theta)


def _derivatives(
    z: FloatArray, censored: npt.NDArray[np.int8]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Log likelihood of each standardised value, and its first and second derivative."""
    from scipy.special import log_ndtr  # noqa: PLC0415 - its import is for reports

    log_density = -0.5 * z * z - 0.5 * math.log(2 * math.pi)
    log, first, second = log_density.copy(), -z, np.full_like(z, -1.0)
    for side in (ABOVE, BELOW):
        some = censored == side
        if some.any():
            toward = side * z[some]
            log[some] = log_ndtr(-toward)
            hazard = np.exp(log_density[some] - log[some])
            first[some] = -side * hazard
            second[some] = -hazard * (hazard - toward)
    return log, first, second
