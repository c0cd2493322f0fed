"""Noise, the exact split, confirm's pairs, and effects, against values worked out by hand."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from scipy import stats

from sweeper.analysis.attribution import difference, split
from sweeper.analysis.confirm import confirmation, looks
from sweeper.analysis.effects import model_columns, model_matrix, stage2_effects
from sweeper.analysis.intervals import geometric, pairs_needed
from sweeper.analysis.noise import replicate_noise
from sweeper.analysis.ranking import rank
from sweeper.study import Confirm
from sweeper.trial import Reason
from tests.fakes.facts import TARGET, Clockwork, make_study, make_sweep

A, B, BASE = {"optim.lr": 0.02}, {"optim.lr": 0.03}, {}


def confirm_facts(blocks):
    """Facts of a confirm stage; a block is a tuple of seconds of A, B and the baseline, or None."""
    study = make_study(confirm=Confirm(top=2, repeats=len(blocks)))
    work = Clockwork(study)
    for number, block in enumerate(blocks, start=1):
        for name, values, seconds in zip("abz", (A, B, BASE), block, strict=False):
            label = {"a": "A", "b": "B", "z": "base"}[name]
            stop = {"reason": Reason.TIMEOUT, "stop_s": 9.0} if seconds is None else {}
            work.trial(
                "confirm", f"c-{name}-{number}", values, seconds, label=label, block=number,
                step_s=0.001, **stop,
            )  # fmt: skip
    return work.facts(confirm=work.stage("confirm"))


def test_geometric_interval_agrees_with_the_t_test():
    logs = [0.31, 0.22, 0.41, 0.28]
    interval = geometric(logs, 0.05)
    low, high = stats.t.interval(
        0.95, 3, loc=statistics.mean(logs), scale=statistics.stdev(logs) / 2
    )
    assert interval.low == pytest.approx(math.exp(low))
    assert interval.high == pytest.approx(math.exp(high))
    assert geometric([0.3], 0.05).low is None


def test_pairs_needed_is_the_first_n_that_separates():
    logs = [0.02, -0.03, 0.05, 0.01]
    n = pairs_needed(logs, 0.05)
    mean, spread = statistics.mean(logs), statistics.stdev(logs)

    def half(k):
        return stats.t.ppf(0.975, k - 1) * spread / math.sqrt(k)

    assert n is not None
    assert half(n) < mean <= half(n - 1)
    assert pairs_needed([0.1], 0.05) is None
    assert pairs_needed([0.1, -0.1], 0.05) is None


def test_noise_pools_over_replicated_points_only():
    work = Clockwork(make_study())
    for name, lr, seconds in (
        ("a", 0.01, 2.0), ("b", 0.01, 2.2), ("c", 0.02, 3.0), ("d", 0.02, 3.6), ("e", 0.03, 9.0),
    ):  # fmt: skip
        work.trial("stage1", name, {"optim.lr": lr}, seconds, step_s=0.001)
    stage = work.stage("stage1")
    noise = replicate_noise([stage], target=TARGET, clock="train")
    expected = math.sqrt(
        (statistics.variance([math.log(2.0), math.log(2.2)])
         + statistics.variance([math.log(3.0), math.log(3.6)])) / 2
    )  # fmt: skip
    assert noise.df == 2
    assert noise.sd == pytest.approx(expected, rel=0.05)
    assert noise.floor > 0.03


def test_without_replicates_the_noise_is_unknown_not_zero():
    work = Clockwork(make_study())
    work.trial("stage1", "a", {"optim.lr": 0.01}, 2.0)
    noise = replicate_noise([work.stage("stage1")], target=TARGET, clock="train")
    assert (noise.sd, noise.floor) == (None, None)


def test_time_is_exactly_tokens_times_seconds_per_token():
    facts = make_sweep()
    rows = [r for r in rank(facts.present(), target=TARGET, clock="train") if r.reached]
    assert len(rows) > 10
    for row in rows:
        of_row = split(row)
        assert of_row.time == pytest.approx(of_row.learning + of_row.speed, abs=1e-12)
        assert row.seconds == pytest.approx(row.tokens * row.seconds_per_token, rel=1e-12)
        apart = difference(rows[0], row)
        assert apart.time == pytest.approx(apart.learning + apart.speed, abs=1e-12)
        assert apart.time == pytest.approx(math.log(row.seconds / rows[0].seconds), abs=1e-12)


def test_the_split_of_a_paired_mean_is_exact_too():
    found = confirmation(make_sweep())
    for contrast in found.contrasts:
        product = contrast.learning.ratio * contrast.speed.ratio
        assert product == pytest.approx(contrast.time.ratio, rel=1e-12)


def test_a_row_that_missed_has_no_split():
    work = Clockwork(make_study())
    work.trial("stage1", "a", {"optim.lr": 0.01}, None, stop_s=2.0)
    (row,) = rank([work.stage("stage1")], target=TARGET, clock="train")
    assert split(row) is None
    assert difference(row, row) is None


def test_looks_are_the_methods_and_end_with_the_budget():
    assert looks(10) == (4, 6, 8, 10)
    assert looks(3) == (3,)
    assert looks(5) == (4, 5)


def test_clear_winner_is_separated_from_finalist_and_baseline():
    found = confirmation(
        confirm_facts([(2.0, 3.0, 4.0), (2.1, 3.1, 4.3), (1.95, 2.9, 3.9), (2.05, 3.1, 4.1)])
    )
    assert found.leader.label == "A"
    assert found.settled
    assert found.alpha == 0.05
    against = found.against_baseline
    assert against.time.ratio == pytest.approx(2.01, abs=0.03)
    assert against.words().startswith("A is 2.0")
    assert "faster than the baseline, n = 4 blocks" in against.words()


def test_equals_are_not_distinguishable_and_more_blocks_are_named():
    found = confirmation(
        confirm_facts([(2.0, 2.2, 4.0), (2.2, 2.1, 4.0), (2.1, 2.15, 4.1), (2.0, 2.1, 3.9)])
    )
    (contrast,) = [c for c in found.contrasts if not c.is_baseline]
    assert not contrast.decided
    assert not found.settled
    assert "not distinguishable" in contrast.words()
    assert "would do" in contrast.words()


def test_blocks_pair_times_and_cancel_what_they_share():
    # The second block ran on a device half as fast: within blocks, A is always 1.5 times faster.
    found = confirmation(confirm_facts([(1.0, 1.5), (2.0, 3.0), (1.2, 1.8), (1.6, 2.4)]))
    (contrast,) = found.contrasts
    assert contrast.time.ratio == pytest.approx(1.5, rel=0.01)
    assert contrast.decided
    assert contrast.time.high / contrast.time.low < 1.02


def test_before_the_first_look_nothing_is_decided():
    blocks = [(2.0, 3.0), (2.1, 3.15), (2.2, 3.3), (2.0, 3.01), (2.1, 3.16)]
    facts = confirm_facts(blocks)
    stage = facts.stages["confirm"]
    for measured, decided in ((3, False), (4, True)):
        part = [t for t in stage.facts if t.trial.block <= measured]
        found = confirmation(work_with(facts, confirm=type(stage)(stage.plan, tuple(part), TARGET)))
        assert found.looks == (4, 5)
        assert found.contrasts[0].time.low > 1.4
        assert found.contrasts[0].decided is decided


def test_a_rival_that_missed_makes_a_bound():
    found = confirmation(
        confirm_facts([(2.0, 3.0, None), (2.1, 3.1, 4.3), (1.95, 2.9, None), (2.05, 3.1, 4.1)])
    )
    against = found.against_baseline
    assert against.at_least
    assert "at least" in against.words()
    assert [pair.other_reached for pair in against.pairs] == [False, True, False, True]


def test_confirm_without_a_single_crossing_says_nothing():
    assert confirmation(confirm_facts([(None, None, None)])) is None
    assert confirmation(make_sweep(confirm=False)) is None


def test_effects_recover_known_effects_within_their_intervals():
    facts = make_sweep()
    found = stage2_effects(facts).at_target
    terms = {(e.column.parameter, e.column.kind): e for e in found.effects}
    # Truth at lr 0.01 -> 0.04, symmetric around 0.02 in the log: no linear effect.
    assert terms["optim.lr", "linear"].low < 1 < terms["optim.lr", "linear"].high
    # Truth at batch 8 -> 24: steps x (8/24)^0.4, seconds per step x (6 + 12) / (6 + 4).
    truth = (8 / 24) ** 0.4 * 18 / 10
    batch = terms["data.batch_size", "linear"]
    assert batch.low < truth < batch.high


def test_effects_agree_with_a_regression_by_numpy():
    facts = make_sweep()
    stage, space = facts.stages["stage2"], facts.study.space
    found = stage2_effects(facts).at_target
    columns = model_columns(space, stage.plan.varying, quadratic=True)
    times = [(t.trial.point, time.seconds) for t, time in stage.times(TARGET, "train")]
    matrix = model_matrix(space, columns, [point for point, _ in times])
    beta, *_ = np.linalg.lstsq(matrix, np.log([s for _, s in times]), rcond=None)
    weights = [2 if e.column.kind == "linear" else 1 for e in found.effects]
    effects = [math.log(e.ratio) / w for e, w in zip(found.effects, weights, strict=True)]
    assert effects == pytest.approx(list(beta[1:]))


def test_too_few_runs_give_a_reason_instead_of_an_effect():
    facts = make_sweep()
    stage = facts.stages["stage2"]
    few = type(stage)(stage.plan, stage.facts[:4], stage.effective_target)
    found = stage2_effects(work_with(facts, stage2=few)).at_target
    assert found.effects == ()
    assert "4 runs crossed" in found.why_none


def test_many_censored_runs_move_the_effects_to_a_target_that_most_crossed():
    facts = make_sweep()
    found = stage2_effects(facts, target=2.46).at_analysis
    assert found.target > 2.46
    assert found.runs >= 0.9 * 12 - 1


def work_with(facts, **stages):
    return type(facts)(facts.study, {**facts.stages, **stages}, facts.versions)
