"""Stage 2 by Optuna's samplers: in the region, seeded with stage 1, under the same caps."""

import pytest

from sweeper.design.adaptive import plan_adaptive
from sweeper.design.refine import plan_stage2
from sweeper.errors import PlanError
from sweeper.replay import replay, without_racing
from sweeper.search.base import Seen, Told
from sweeper.search.optuna_search import sampler
from sweeper.stages import AdaptiveStage, FixedStage, FractionStage, Stage1
from sweeper.study_file import load
from sweeper.trial import Outcome
from tests.loop.test_racing import recording
from tests.loop.test_sweep import STUDY, argument


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


def elsewhere(spec):
    """The best lies where stage 1 never was."""

    class Moved:
        argv = (f"--lr={argument(spec, 'lr') / 1.7}", f"--batch={argument(spec, 'batch') / 1.6}")

    return recording(Moved)


def test_the_predicted_best_point_is_tried_where_it_was_not_run(tmp_path):
    """Sixteen runs of a 5 x 5 region leave its best out; two extra ones may try what it predicts."""
    study = make_study(tmp_path, "fraction")
    study = study.model_copy(
        update={"stage2": study.stage2.model_copy(update={"extra": 2}), "seed": 3}
    )
    first = replay(study, Stage1(study, 2), elsewhere, target=2.0).end.facts
    fixed = plan_stage2(study, first, from_top=2, runs=16, seed=3, target=2.0)
    without = FixedStage(study, fixed, 16, first)
    plain = replay(without_racing(study), without, elsewhere, target=2.0)
    stage = FractionStage(study, fixed, 16, first)
    run = replay(without_racing(study), stage, elsewhere, target=2.0)
    added = run.end.facts[16:]
    assert len(plain.end.facts) == 16
    assert 1 <= len(added) <= 2
    assert added[0].trial.id == "s2-17"
    assert added[0].trial.point not in {f.trial.point for f in (*first, *plain.end.facts)}
    assert all(f.counted.outcome is Outcome.REACHED for f in added)
    fastest = min(f.counted.phases.train for f in plain.end.facts)
    assert added[0].counted.phases.train < 1.1 * fastest
    assert any("s2-17 is predicted to be the best" in note for note in run.notes)
    again = FractionStage(study, run.end.record.plan, 16, first)
    assert again.plan(run.end.facts, run.end.record.plan) == run.end.record.plan
