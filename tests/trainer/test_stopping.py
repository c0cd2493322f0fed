"""Shows when a run ends, which targets count, and where evaluations are placed."""

import math
import random

import pytest

from trainer.config import Stop
from trainer.evaluate import Cadence
from trainer.stopping import Patience, Smoothing, Targets, has_diverged


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


def test_smoothing_is_a_mean_at_first_and_follows_later():
    smoothing = Smoothing(10)
    for loss in (4.0, 2.0, 3.0):
        smoothing.add(loss)
    assert smoothing.value == pytest.approx(3.0)
    for _ in range(100):
        smoothing.add(1.0)
    assert smoothing.value == pytest.approx(1.0, abs=1e-3)
    raw = Smoothing(0)
    raw.add(4.0)
    raw.add(2.0)
    assert raw.value == 2.0


def test_patience_counts_tokens_since_the_last_improvement():
    patience = Patience(100, min_delta=0.1)
    assert not patience.lost(3.0, 10)
    assert not patience.lost(2.95, 109)  # too small an improvement
    assert patience.lost(2.95, 110)
    assert not patience.lost(2.8, 120)
    assert not patience.lost(2.8, 219)
    assert patience.lost(2.8, 220)
    assert not Patience(0).lost(3.0, 10**9)
    # A loss that is no number is no improvement.
    assert patience.lost(math.nan, 230)


def stopped_at(smoothing_steps, *, patience_steps, seed, steps=1000):
    """The step at which patience ends a run of noisy single-example losses that do improve."""
    noise = random.Random(seed)
    smoothing, patience = Smoothing(smoothing_steps), Patience(patience_steps)
    for step in range(steps):
        smoothing.add(2.1 + 1.2 * math.exp(-step / 300) + noise.gauss(0, 0.5))
        if smoothing.settled and patience.lost(smoothing.value, step):
            return step
    return None


def test_patience_on_the_raw_loss_of_single_examples_is_a_trap_that_smoothing_avoids():
    """A published run stopped at step 36 of 1,000 this way, while the model was still learning."""
    hasty = [stopped_at(0, patience_steps=25, seed=seed) for seed in range(20)]
    assert sum(step <= 60 for step in hasty) >= 10
    # The same patience, of 100 steps, raw and smoothed as by default.
    raw = [stopped_at(0, patience_steps=100, seed=seed) for seed in range(20)]
    smooth = [stopped_at(Stop().smoothing_steps, patience_steps=100, seed=s) for s in range(20)]
    assert min(raw) < 150
    assert all(step is None or step > 400 for step in smooth)
    assert Stop().patience_tokens == 0  # and nobody is stopped who did not ask for it


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
