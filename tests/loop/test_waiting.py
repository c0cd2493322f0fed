"""Who is left to run, followed change by change, is who is left when everybody is asked at once."""

import random

from sweeper.racing.race import Race
from sweeper.trial import PlannedTrial, Reason, TrialFacts
from sweeper.waiting import Waiting
from tests.racing.conftest import TARGET, Bench


def test_following_every_change_is_asking_everybody_anew():
    bench, draw = Bench(), random.Random(2)
    groups = ("A", "B", "control")  # in plan order, and between each other
    trials = [
        bench.trial(f"s1-{n}", groups=(draw.choice(groups),), lr=0.001 * (1 + n % 9))
        for n in range(40)
    ]
    facts = {t.id: TrialFacts(t) for t in trials}
    plan, race = bench.plan(list(facts.values())), Race(bench.study, 2, ordered=True)
    busy, asked = set(), []

    def needs_run(trial: PlannedTrial) -> bool:
        asked.append(trial.id)
        counted = facts[trial.id].counted
        return counted is None or counted.reason is Reason.OOM

    def order(trials, ready):
        return race.order(trials, ready, race.standing(list(facts.values()), TARGET))

    grown, most = Waiting(needs_run, order), 0
    for turn in range(80):
        ended = draw.choice(sorted(busy)) if len(busy) > 5 else ""
        if ended:
            busy.discard(ended)
            reason = draw.choice([Reason.TARGET, Reason.TIMEOUT, Reason.OOM])
            reached = draw.uniform(5, 30) if reason is Reason.TARGET else None
            stopped = None if reached else 20.0
            facts[ended] = bench.facts(facts[ended].trial, reached, stopped=stopped, reason=reason)
        asked.clear()
        grown.follow(plan, facts, set(busy), anew=False)
        most = max(most, len(asked) if turn else 0)
        whole = Waiting(needs_run, order)
        whole.follow(plan, facts, set(busy), anew=True)
        assert [t.id for t in grown] == [t.id for t in whole]
        assert set(grown.again) == set(whole.again)
        assert bool(grown) == bool(list(grown))
        if grown:
            first = next(iter(grown))
            grown.start(first)
            busy.add(first.id)
            assert first not in list(grown)
    assert most < len(trials)
