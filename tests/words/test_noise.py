"""What is believed about the noise between equal runs, and the slack that follows from it."""

from __future__ import annotations

import math

import pytest

from sweeper.noise import LEAST_DEGREES, UNKNOWN_SPREAD, known_spread, pooled_spread, slack


def test_the_spread_is_pooled_over_groups_of_equal_runs():
    assert pooled_spread([]) == (None, 0)
    assert pooled_spread([[3.0], [5.0, math.inf], [0.0, 7.0]]) == (None, 0)
    assert pooled_spread([[0.1] * 7, [9.0] * 3]) == (0.0, 8)
    spread, degrees = pooled_spread([[1.0, math.e], [2.0, 2.0, 2.0], [4.0]])
    assert (spread, degrees) == (pytest.approx(math.sqrt(0.5 / 3)), 3)


def test_a_spread_of_few_degrees_is_not_believed():
    assert slack(known_spread(None, 0)) == pytest.approx(1.10)
    assert known_spread(0.01, LEAST_DEGREES - 1) == UNKNOWN_SPREAD
    assert known_spread(0.01, LEAST_DEGREES) == 0.01
    assert known_spread(0.01, 0, unknown=0.5) == 0.5
    assert slack(0.05) == pytest.approx(math.exp(2.33 * math.sqrt(2) * 0.05))
