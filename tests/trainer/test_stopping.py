"""Shows when a run ends, which targets count, and where evaluations are placed."""

import math

import pytest

from trainer.evaluate import Cadence
from trainer.stopping import Targets, has_diverged


def test_a_target_counts_only_when_the_larger_slice_agrees():
    targets = Targets(2.0)
    assert targets.crossed(2.1) == []
    assert targets.crossed(2.0) == [2.0]
    assert targets.confirm([2.0], 2.05) == []
    assert not targets.reached
    assert targets.crossed(1.95) == [2.0]
    assert targets.confirm([2.0], 2.0) == [2.0]
    assert targets.reached
    assert targets.next is None


def test_fallbacks_are_confirmed_on_the_way_and_do_not_end_the_run():
    targets = Targets(2.0, [2.5, 3.0])
    assert (targets.next, targets.waiting) == (3.0, [3.0, 2.5, 2.0])
    crossed = targets.crossed(2.4)
    assert crossed == [3.0, 2.5]
    assert targets.confirm(crossed, 2.6) == [3.0]
    assert (targets.next, targets.reached) == (2.5, False)
    assert targets.confirm(targets.crossed(1.9), 1.9) == [2.5, 2.0]
    assert targets.reached


def test_without_a_target_nothing_is_reached():
    targets = Targets(None)
    assert targets.crossed(0.0) == []
    assert not targets.reached


@pytest.mark.parametrize(
    ("loss", "diverged"),
    [(5.5, False), (2 * math.log(256), False), (11.2, True), (math.nan, True), (math.inf, True)],
)
def test_divergence(loss, diverged):
    assert has_diverged(loss, vocabulary=256, explosion=2.0) is diverged


def test_a_loss_that_is_not_finite_crosses_nothing():
    assert Targets(2.0).crossed(math.nan) == []


CADENCE = Cadence(every_tokens=1000, near=0.4, double_after=10)


@pytest.mark.parametrize(
    ("distance", "spacing"),
    [(None, 1000), (5.0, 1000), (0.41, 1000), (0.4, 500), (0.21, 500), (0.2, 250), (-0.1, 250)],
)
def test_evaluations_tighten_with_the_distance_to_the_target(distance, spacing):
    assert CADENCE.next_after(0, done=0, distance=distance) == spacing
    assert CADENCE.next_after(3000, done=3, distance=distance) == 3000 + spacing


def test_evaluations_lie_on_one_grid_whatever_the_batch():
    # A step that ends at 1100 tokens was looked at late; the next look is back on the grid.
    assert CADENCE.next_after(1100, done=1, distance=None) == 2000
    assert CADENCE.next_after(1100, done=1, distance=0.3) == 1500


def test_the_number_of_evaluations_is_bounded():
    tokens = evaluations = 0
    while tokens < 10_000_000:
        tokens = CADENCE.next_after(tokens, done=evaluations, distance=0.0)
        evaluations += 1
    # 40,000 at the tightest spacing; doubling after every 10 leaves about 10 * log2(4,000).
    assert evaluations < 130
