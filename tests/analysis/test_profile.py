"""The profile of targets says what rankings at those targets say."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from sweeper.analysis.profile import TARGETS, profile
from sweeper.analysis.ranking import search_ranking
from sweeper.analysis.times import SearchTimes
from sweeper.analysis.verdict import verdict
from sweeper.trial import Evaluation, Outcome, Phases, TrialFacts
from tests.fakes.facts import TARGET, Clockwork, make_study, make_sweep


def wandering(draw: random.Random, attempt):
    """The attempt with a curve that goes down and up, with refusals and values that are none."""
    curve, train, value = [], 0.0, draw.uniform(3.0, 5.0)
    for step in range(draw.randint(0, 30)):
        train += draw.choice((0.0, 0.1, draw.random()))
        value += draw.gauss(-0.1, 0.15)
        clock = Phases(0.4, 0.0, 0.0, train, 0.01 * step, 0.0, 0.0)
        shown = draw.choice((value, value, value, value, math.nan, math.inf))
        curve.append(Evaluation(step, step * 64, clock, shown))
        if draw.random() < 0.3:
            larger = draw.choice((shown, math.nan, value + draw.gauss(0, 0.2)))
            curve.append(Evaluation(step, step * 64, clock, larger, "confirmation"))
    phases = curve[-1].clock if curve else attempt.phases
    return replace(attempt, curve=tuple(curve), phases=phases)


def random_sweep(seed: int):
    """Two stages with replicates, over both of them too, and a trial that failed."""
    draw, work = random.Random(seed), Clockwork(make_study())
    for number in range(24):
        values = {"optim.lr": draw.choice((0.003, 0.01, 0.02, 0.03, 0.06))}
        stage = "stage1" if number < 12 else "stage2"
        work.trial(stage, f"s-{(7 * number) % 24:02d}", values, 3.0)
    work.trials = [
        TrialFacts(t.trial, tuple(wandering(draw, a) for a in t.attempts)) for t in work.trials
    ]
    lost = work.trials[3]
    failed = replace(lost.attempts[0], outcome=Outcome.FAILED)
    work.trials[3] = TrialFacts(lost.trial, (failed,))
    return work.facts(stage1=work.stage("stage1"), stage2=work.stage("stage2"))


@pytest.mark.parametrize("facts", [make_sweep(), *map(random_sweep, range(20))])
def test_it_agrees_with_a_ranking_at_each_target(facts):
    judged = verdict(facts)
    shown = profile(facts, judged, SearchTimes(facts))
    assert len(shown) >= TARGETS
    assert [at.target for at in shown] == sorted({at.target for at in shown}, reverse=True)
    for at in shown:
        rows = search_ranking(facts, target=at.target)
        reached = {row.point: row for row in rows if row.reached and row.seconds > 0}
        first = next(iter(reached.values()), None)
        assert (at.reached, at.configurations) == (len(reached), len(rows))
        assert at.fastest == (first.label if first else None)
        assert at.fastest_s == (first.seconds if first else None)
        for row, seconds in ((judged.winner, at.winner_s), (judged.baseline, at.baseline_s)):
            found = reached.get(row.point) if row else None
            assert seconds == (found.seconds if found else None)


def test_it_goes_from_near_the_start_through_the_target_to_the_lowest():
    facts = make_sweep()
    judged = verdict(facts)
    goals = [at.target for at in profile(facts, judged, SearchTimes(facts))]
    lowest = min(row.best_loss for row in judged.ranking)
    assert goals[0] > TARGET
    assert TARGET in goals
    assert goals[-1] == pytest.approx(lowest, abs=1e-6)


def test_nothing_measured_has_none():
    facts = Clockwork(make_study()).facts()
    assert profile(facts, verdict(facts), SearchTimes(facts)) == ()
