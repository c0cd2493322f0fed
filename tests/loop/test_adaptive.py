"""Stage 2 by Optuna's samplers: in the region, seeded with stage 1, under the same caps."""

import pytest

from sweeper.design.adaptive import plan_adaptive
from sweeper.errors import PlanError
from sweeper.replay import replay
from sweeper.search.base import Seen, Told
from sweeper.search.optuna_search import sampler
from sweeper.stages import AdaptiveStage, Stage1
from sweeper.study_file import load
from sweeper.trial import Outcome
from tests.loop.test_racing import recording
from tests.loop.test_sweep import STUDY


def make_study(tmp_path, strategy):
    text = STUDY.replace("CAP", "true")
    text = text.replace(
        "from_top = 2", f'from_top = 2\nruns = 12\nreplicates = 2\nstrategy = "{strategy}"'
    )
    (tmp_path / "study.toml").write_text(text)
    return load(tmp_path / "study.toml")


@pytest.mark.parametrize(("strategy", "slots"), [("tpe", 1), ("tpe", 3), ("gp", 1)])
def test_a_sampler_fills_stage_two(tmp_path, strategy, slots):
    runs = 12 if strategy == "tpe" else 5  # a Gaussian process takes its time
    study = make_study(tmp_path, strategy)
    first = replay(study, Stage1(study, 2), recording, target=2.0).end.facts
    plan = plan_adaptive(study, first, from_top=2, runs=runs, target=2.0)
    assert [t.replicate_of for t in plan.trials] == [None, "s2-01"]
    stage = AdaptiveStage(study, plan, 2, first, sampler(strategy, study.space), slots)
    run = replay(study, stage, recording, target=2.0, slots=slots)
    facts = run.end.facts
    assert len(facts) == runs
    assert run.end.record.closed_at is not None
    assert len({f.trial.point for f in facts}) >= runs - 2
    for name, levels in plan.varying.items():
        assert all(min(levels) <= f.trial.point[name] <= max(levels) for f in facts)
    assert all(f.counted.outcome in (Outcome.REACHED, Outcome.CENSORED) for f in facts)
    again = AdaptiveStage(study, plan, 2, first, sampler(strategy, study.space), slots)
    same = replay(study, again, recording, target=2.0, slots=slots)
    assert [f.trial.point for f in same.end.facts] == [f.trial.point for f in facts]


def test_a_sampler_prefers_where_times_were_short(tmp_path):
    study = make_study(tmp_path, "tpe")
    seen = [
        Seen(study.space.point({"lr": lr, "batch": batch}), Told(seconds, violation))
        for lr, batch, seconds, violation in [
            (0.003, 32, 10.0, 0.0), (0.0032, 34, 10.5, 0.0), (0.0028, 30, 10.2, 0.0),
            (0.003, 36, 11.0, 0.0), (0.09, 128, 5.0, 1.0), (0.08, 120, 5.0, 1.0),
            (0.05, 100, 60.0, 0.0), (0.06, 110, 70.0, 0.0), (0.07, 90, 80.0, 0.0),
            (0.04, 100, 60.0, 0.0), (0.05, 128, 90.0, 0.0), (0.03, 110, 50.0, 0.0),
        ]
    ]  # fmt: skip
    suggest = sampler("tpe", study.space)
    varying = {"lr": (0.001, 0.1), "batch": (16, 128)}
    drawn = [suggest(varying, seen, seed)["lr"] for seed in range(12)]
    assert sum(lr < 0.02 for lr in drawn) > 8  # a cut-off bound of 5 s is no good time
    assert drawn[0] == suggest(varying, seen, 0)["lr"]


def test_nothing_to_vary_is_said(tmp_path):
    study = make_study(tmp_path, "tpe")
    first = replay(study, Stage1(study, 2), recording, target=2.0).end.facts
    from dataclasses import replace

    alike = [replace(f, trial=replace(f.trial, point=first[0].trial.point)) for f in first]
    with pytest.raises(PlanError, match="nothing to vary"):
        plan_adaptive(study, alike, from_top=2, runs=12, target=2.0)
