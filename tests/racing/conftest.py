"""A small study and facts with given times: what the rules of racing see."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from sweeper.space import Categorical, Float, Integer, Space
from sweeper.study import Group, Limits, Objective, Racing, Stage1, Stage2, Study, TrainerCommand
from sweeper.trial import (
    OUTCOME_OF,
    AttemptFacts,
    Evaluation,
    Phases,
    PlannedTrial,
    Reason,
    StagePlan,
    TrialFacts,
)

TARGET = 2.0
START = 4.0


def falling(seconds, *, every=1.0, until=None, target=TARGET, tokens_per_s=1000, floor=1.0):
    """Probes of a loss that falls exponentially and crosses the target at `seconds`."""
    tau = seconds / math.log((START - floor) / (target - floor))
    curve, t = [], 0.0
    while True:
        loss = floor + (START - floor) * math.exp(-t / tau)
        clock = Phases(startup=0.5, train=t, eval=0.01 * len(curve))
        curve.append(Evaluation(round(t * 10), round(t * tokens_per_s), clock, loss))
        if loss <= target or (until is not None and t >= until):
            return tuple(curve)
        t += every


class Bench:
    """A study of lr and batch, and trials with whatever times a test wants."""

    def __init__(self, **racing):
        parameters = (
            Float("lr", 0.0001, 1.0, scale="log", baseline=0.01),
            Integer("batch", 8, 64, baseline=16),
            Categorical("method", ("a", "b"), baseline="a"),
        )
        self.study = Study(
            name="bench",
            folder=Path(),
            objective=Objective(target=TARGET, fallback=(2.5, 3.0)),
            trainer=TrainerCommand(command=("true",)),
            limits=Limits(steps=10_000, trial_s=100.0),
            space=Space({p.name: p for p in parameters}),
            stage1=Stage1(group=(Group(name="A", vary={"batch": (8, 16)}),)),
            stage2=Stage2(from_top=2),
            racing=Racing(**racing),
        )

    def trial(self, name, groups=("A",), seed=1, **values):
        point = self.study.space.point({**self.study.space.baseline(), **values})
        return PlannedTrial(name, "stage1", name, tuple(groups), point, seed)

    def facts(self, trial, seconds=None, *, stopped=None, reason=None, cap_s=None, curve=None):
        """A trial that reached after `seconds`, or was `stopped`, or (neither) has not run."""
        if seconds is None and stopped is None:
            return TrialFacts(trial)
        if reason is None:
            reason = Reason.TARGET if stopped is None else Reason.TIMEOUT
        if curve is None:
            curve = falling(seconds or 10 * stopped, until=stopped, every=(seconds or stopped) / 20)
        attempt = AttemptFacts(
            1, OUTCOME_OF[reason], reason, curve=curve, phases=curve[-1].clock, cap_s=cap_s
        )
        return TrialFacts(trial, (attempt,))

    def plan(self, facts):
        trials = tuple(f.trial for f in facts)
        distinct = len({t.point for t in trials})
        return StagePlan("bench", "stage1", TARGET, trials, len(trials), distinct)


@pytest.fixture
def bench():
    return Bench()
