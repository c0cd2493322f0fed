"""Stage 2: the top, what is locked and why, what varies how far, and the fraction in between."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.design.groups import is_forbidden, plan_stage1
from sweeper.design.refine import plan_stage2
from sweeper.design.region import choose_region, choose_top, noise_sd
from sweeper.errors import PlanError
from sweeper.noise import UNKNOWN_SPREAD
from sweeper.space import NUMERIC
from sweeper.study import question_partners
from sweeper.study_file import load
from sweeper.trial import Reason, TrialFacts

FAST = {"A": {"optim.method": "fast"}}


@pytest.fixture
def facts(study, make, seconds):
    return make.facts_of(plan_stage1(study, FAST).trials, lambda t: seconds(t.point))


# ---------------------------------------------------------------------------------------- top


def test_top_is_the_fastest_points_in_order(study, facts, seconds):
    top = choose_top(study, facts, 3, 5.0)
    fastest = sorted((f.trial.point for f in facts), key=seconds)[:3]
    assert [m.point for m in top.points][:3] == fastest
    assert top.target == 5.0
    assert not top.flagged
    assert all(m.reached for m in top.points)
    assert top.points[0].score == pytest.approx(seconds(fastest[0]), rel=0.02)


def test_ties_inside_the_noise_extend_to_twice_k(study, make):
    trials = plan_stage1(study, FAST).trials
    top = choose_top(study, make.facts_of(trials, lambda _: 50.0), 2, 5.0)
    assert len(top.points) == 4
    assert top.notes == ("top 2 became 4: the last 2 are within noise of place 2",)
    apart = make.facts_of(trials, lambda t: 50.0 * 1.2 ** trials.index(t))
    assert len(choose_top(study, apart, 2, 5.0).points) == 2


def test_replicates_are_one_point_with_their_median(study, make):
    trials = plan_stage1(study, FAST).trials
    facts = make.facts_of(trials, lambda t: {"s1-A1": 10.0}.get(t.id, 60.0))
    lucky = next(f for f in facts if f.trial.id == "s1-A1")
    more = [TrialFacts(lucky.trial, (make.reached(s),)) for s in (90.0, 95.0)]
    top = choose_top(study, [*facts, *more], 1, 5.0)
    assert lucky.trial.point not in [m.point for m in top.points]


def test_fallback_ranks_when_too_few_reached(study, make, seconds):
    trials = plan_stage1(study, FAST).trials

    def outcome(trial):  # everybody stops at 80 % of the way, past 5.5 (72 %), before 5.0
        if trial.id == "s1-A1":
            return 500.0
        return make.censored(seconds(trial.point), share=0.8, reason=Reason.TIMEOUT)

    top = choose_top(study, make.facts_of(trials, outcome), 3, 5.0)
    assert top.target == 5.5
    assert not top.flagged
    assert "fewer than 3 points reached 5: ranked by time to 5.5" in top.notes
    fastest = min((t.point for t in trials if t.id != "s1-A1"), key=seconds)
    assert top.points[0].point == fastest


def test_lowest_loss_fills_up_and_is_flagged(study, make):
    trials = plan_stage1(study, FAST).trials

    def outcome(trial):
        if trial.id == "s1-C1":
            return 70.0
        return make.censored(100.0, share=0.1 + 0.02 * trials.index(trial), reason=Reason.STEPS)

    top = choose_top(study, make.facts_of(trials, outcome), 3, 5.0)
    assert top.flagged
    assert top.target == 5.0
    assert [m.trial_ids[0] for m in top.points] == ["s1-C1", trials[-1].id, trials[-3].id]
    assert top.notes == (
        (
            "no target was reached by 3 points: 1 of the 3 best are ranked by time, 2 by lowest loss; "
            "stage 2 aims at 5"
        ),
    )


@pytest.mark.parametrize("outcome", [None, "failed"])
def test_stage_2_before_stage_1(study, make, outcome):
    found = make.failed() if outcome else None
    facts = make.facts_of(plan_stage1(study, {}).trials, lambda _: found)
    for given_facts in (facts, []):
        with pytest.raises(PlanError, match=r"small: nothing has been measured yet.*sweep stage1"):
            plan_stage2(study, given_facts, from_top=3, runs=12, seed=1)


def test_noise_is_pooled_over_replicates(study, make):
    trials = plan_stage1(study, FAST).trials
    assert noise_sd(study, make.facts_of(trials, lambda _: 60.0), 5.0) == (UNKNOWN_SPREAD, 0)
    rng = random.Random(3)
    many = [
        TrialFacts(t, (make.reached(60.0 * math.exp(rng.gauss(0, 0.05))),))
        for t in trials
        for _ in range(60)
    ]
    spread, freedom = noise_sd(study, many, 5.0)
    assert spread == pytest.approx(0.05, rel=0.1)
    assert freedom == 59 * len(trials)


# ---------------------------------------------------------------------------------------- region


def test_unanimity_means_little_where_nearly_all_points_have_it(ngpt, make):
    """32 of 42 points of ngpt have cautious decay off: five of five is no evidence."""
    trials = plan_stage1(ngpt, {"A": {"optim.muon.orthogonalizer": "newton_schulz"}}).trials
    off = "optim.muon.cautious_weight_decay"
    assert sum(1 for p in {t.point for t in trials} if not p[off]) == 32

    def took(trial):  # equal runs differ, by 3 %
        lr = 40 * abs(math.log(trial.point["optim.muon.lr"] / 0.01))
        return (60.0 + lr + 30 * trial.point[off]) * (1.03 if trial.replicate_of else 1.0)

    facts = make.facts_of(trials, took)
    top = choose_top(ngpt, facts, 5, 5.0)
    assert not any(m.point[off] for m in top.points)
    region = choose_region(ngpt, facts, top)
    assert off in region.locked  # by the pairs: on is 30 s slower
    assert "over 2 pairs that differ in it alone it is" in region.locked[off].why
    assert "32 of 42 points of stage 1 have it: by chance" in region.locked[off].why
    best = {"s1-A3": 50.0, "s1-A7": 51.0, "s1-D4": 52.0, "s1-D5": 53.0, "s1-G1": 54.0}
    rng = random.Random(4)
    alike = make.facts_of(trials, lambda t: best.get(t.id, 100.0 * math.exp(rng.gauss(0, 0.04))))
    top = choose_top(ngpt, alike, 5, 5.0)
    assert sorted(i for m in top.points for i in m.trial_ids) == sorted(best)
    assert not any(m.point[off] for m in top.points)
    assert off in choose_region(ngpt, alike, top).varying


def test_unanimity_against_chance_locks(ngpt, make):
    trials = plan_stage1(ngpt, {"A": {"optim.muon.orthogonalizer": "newton_schulz"}}).trials
    name = "data.batch_size"
    facts = make.facts_of(trials, lambda t: 40.0 + 5 * abs(t.point[name] - 64))
    region = choose_region(ngpt, facts, choose_top(ngpt, facts, 5, 5.0))
    assert region.locked[name].value == 64
    assert region.locked[name].why.endswith(
        "of the top have 64; 8 of 42 points of stage 1 have it: by chance 0.0%"
    )


def test_inert_needs_an_interval_inside_the_floor(study, make):
    """Equal times alone do not lock: eight pairs at unknown noise do not, eight at known 1 % do."""
    trials = plan_stage1(study, FAST).trials
    alike = make.facts_of(trials, lambda t: 60.0 + 100 * abs(t.point["optim.lr"] - 0.02))
    region = choose_region(study, alike, choose_top(study, alike, 4, 5.0))
    assert "optim.method" in region.varying
    rng = random.Random(1)

    def quiet(point):
        return 60.0 * math.exp(20 * abs(point["optim.lr"] - 0.02) + rng.gauss(0, 0.005))

    many = [TrialFacts(t, (make.reached(quiet(t.point)),)) for t in trials for _ in range(6)]
    region = choose_region(study, many, choose_top(study, many, 4, 5.0))
    assert region.locked["optim.method"].why.startswith("inert: over ")
    assert "noise floor of 3.0%" in region.locked["optim.method"].why


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_what_caps_cut_off_makes_no_other_region(ngpt, make, seed, asked):
    """Racing must not change the answer: every run is given the bound, and some are given more."""
    study = ngpt if asked else ngpt.model_copy(update={"questions": ()})
    draw = random.Random(seed)
    planned = plan_stage1(study, {"A": {"optim.muon.orthogonalizer": "newton_schulz"}}).trials
    trials = list({t.point: t for t in planned}.values())
    partners = question_partners(study.questions, [t.point for t in trials])
    effects = {}

    def seconds(point):
        logs = [effects.setdefault(level, draw.gauss(0, 0.4)) for level in point.items()]
        return 60.0 * math.exp(sum(logs) + draw.gauss(0, 0.1))

    took = {t.point: seconds(t.point) for t in trials}
    whole = make.facts_of(trials, lambda t: took[t.point])
    top = choose_top(study, whole, 5, 5.0)
    assert top.kth < top.bound < max(took.values())
    attempts = {}
    for point in sorted(took, key=took.get):  # an arm has twice its fastest partner's time
        fast = [took[p] for p in partners.get(point, ()) if isinstance(attempts.get(p), float)]
        arm_s = 2.0 * min(fast, default=top.kth) if point in partners else 0.0
        given = max(top.bound, arm_s) * draw.choice((1.0, draw.uniform(1.0, 3.0)))
        attempts[point] = took[point]
        if took[point] > given:
            attempts[point] = make.censored(took[point], share=given / took[point], cap_s=given)
    cut = make.facts_of(trials, lambda t: attempts[t.point])
    assert cut != whole
    raced_top = choose_top(study, cut, 5, 5.0)
    assert choose_region(study, cut, raced_top) == choose_region(study, whole, top)


def test_numeric_range_is_widened_by_half_a_spacing(study, make):
    trials = plan_stage1(study, FAST).trials
    best = {"s1-C1": 50.0, "s1-C2": 51.0}  # lr 0.02 and 0.05
    facts = make.facts_of(trials, lambda t: best.get(t.id, 300.0))
    region = choose_region(study, facts, choose_top(study, facts, 2, 5.0))
    levels = region.varying["optim.lr"]
    planned = sorted({f.trial.point["optim.lr"] for f in facts})
    below, above = planned[planned.index(0.02) - 1], planned[planned.index(0.05) + 1]
    assert levels[0] == pytest.approx(math.sqrt(below * 0.02), rel=5e-3)
    assert levels[-1] == pytest.approx(math.sqrt(0.05 * above), rel=5e-3)
    assert len(levels) == 5
    assert 0.02 in levels  # the incumbent's own value


def test_parameter_that_was_never_varied_is_locked(study, make, seconds):
    facts = make.facts_of(plan_stage1(study, FAST).trials[:6], lambda t: seconds(t.point))
    region = choose_region(study, facts, choose_top(study, facts, 3, 5.0))
    assert region.locked["optim.restart"].why == "stage 1 never varied it: off everywhere"
    assert region.locked["optim.momentum"].value == 0.9


# ---------------------------------------------------------------------------------------- plan


def test_plan_has_the_incumbent_its_replicates_and_its_properties(study, facts):
    plan = plan_stage2(study, facts, from_top=4, runs=16, seed=5)
    assert [t.id for t in plan.trials] == [f"s2-{i:02d}" for i in range(1, 17)]
    incumbent = choose_top(study, facts, 4, 5.0).points[0].point
    runs = [t for t in plan.trials if t.point == incumbent]
    assert len(runs) == 3
    assert [t.replicate_of for t in runs] == [None, runs[0].id, runs[0].id]
    assert len({(t.point, t.seed) for t in plan.trials}) == 16
    assert plan.distinct == 14
    assert {t.seed for t in plan.trials}.isdisjoint({f.trial.seed for f in facts})
    design = plan.design
    assert design["kind"] == "d-optimal fraction"
    assert design["runs"] == 16
    assert 0.3 < design["d_efficiency"] <= 1.2
    assert 0 <= design["max_alias"] <= 1
    assert set(design["balance"]) == set(plan.varying)
    assert all(sum(n for _, n in levels) == 16 for levels in design["balance"].values())
    assert design["parameters"][0] == "intercept"
    assert all(0 < effect < 5 for effect in design["detectable"].values())
    json.dumps(dict(design), allow_nan=False)


def test_same_facts_and_seed_give_the_same_plan(study, facts):
    one = plan_stage2(study, facts, from_top=4, runs=12, seed=5)
    assert plan_stage2(study, list(facts), from_top=4, runs=12, seed=5) == one
    assert plan_stage2(study, facts, from_top=4, runs=12, seed=6) != one


def test_forbidden_and_out_of_memory_points_are_not_planned(study_text, write_study, make, seconds):
    text = study_text.replace('"data.batch" = 128', '"data.batch" = 64')
    study = load(write_study(text))
    trials = plan_stage1(study, FAST).trials

    def outcome(trial):
        return make.failed(Reason.OOM) if trial.id == "s1-C2" else seconds(trial.point)

    facts = make.facts_of(trials, outcome)
    plan = plan_stage2(study, facts, from_top=4, runs=16, seed=5)
    oom = next(t.point for t in trials if t.id == "s1-C2")
    assert all(not is_forbidden(study, t.point) and t.point != oom for t in plan.trials)


def test_interaction_with_a_locked_parameter_is_dropped_with_a_note(study, make, seconds):
    trials = [t for t in plan_stage1(study, FAST).trials if t.point["data.batch"] == 32]
    facts = make.facts_of(trials, lambda t: seconds(t.point))
    plan = plan_stage2(study, facts, from_top=4, runs=12, seed=5)
    assert "data.batch" in plan.locked
    assert "interaction optim.lr x data.batch dropped: not both of them vary" in plan.notes


def test_more_runs_than_points_is_the_full_factorial(study, make):
    trials = [t for t in plan_stage1(study, FAST).trials if t.id.startswith(("s1-A", "s1-B"))]
    few = make.facts_of(trials, lambda t: 60.0 + t.point["data.batch"] / 10)
    plan = plan_stage2(study, few, from_top=5, runs=200, seed=5)
    combinations = math.prod(len(levels) for levels in plan.varying.values())
    assert combinations < 200
    assert plan.design["kind"] == "full factorial"
    assert plan.distinct <= combinations
    assert any(note.startswith("200 runs cover all") for note in plan.notes)


def test_one_varying_parameter_is_locked_and_the_top_replicated(study, make):
    trials = [t for t in plan_stage1(study, FAST).trials if t.id in ("s1-B1", "s1-B3", "s1-A2")]
    facts = make.facts_of(trials, lambda t: 60.0 + 1000 * abs(t.point["optim.lr"] - 0.01))
    plan = plan_stage2(study, facts, from_top=2, runs=6, seed=5)
    assert plan.varying == {}
    assert plan.locked["optim.lr"].value == 0.01
    assert "only parameter left" in plan.locked["optim.lr"].why
    assert plan.design["kind"] == "replicates"
    assert len(plan.trials) == 6
    assert plan.distinct == 2
    assert len({(t.point, t.seed) for t in plan.trials}) == 6
    assert plan.notes[-1] == "nothing is left to vary: 6 runs replicate the top 2"


def test_too_few_runs_is_our_error(study, facts):
    with pytest.raises(PlanError, match="stage 2 of small cannot be designed: runs = 3"):
        plan_stage2(study, facts, from_top=4, runs=3, seed=5)


def test_fallback_becomes_the_plans_target(study, make, seconds):
    trials = plan_stage1(study, FAST).trials
    facts = make.facts_of(
        trials, lambda t: make.censored(seconds(t.point), share=0.8, reason=Reason.TIMEOUT)
    )
    assert plan_stage2(study, facts, from_top=3, runs=12, seed=1).target == 5.5
    assert plan_stage2(study, facts, from_top=3, runs=12, seed=1, target=6.0).target == 6.0


@settings(max_examples=15, deadline=None)
@given(
    data=st.data(),
    k=st.integers(1, 4),
    runs=st.integers(10, 20),
    seed=st.integers(0, 2**31),
)
def test_invariants_whatever_happened_in_stage_1(quickstart, make, data, k, runs, seed):  # noqa: PLR0917
    trials = plan_stage1(quickstart, {"A": {"optim.muon.orthogonalizer": "polar_express"}}).trials
    fates = st.one_of(
        st.floats(0.5, 10.0),
        st.floats(0.5, 10.0),
        st.sampled_from(["failed", "diverged", "timeout", None]),
    )
    made = {
        "failed": make.failed(),
        "diverged": make.censored(9.0, share=0.2, reason=Reason.DIVERGED),
        "timeout": make.censored(90.0, share=0.15, reason=Reason.TIMEOUT),
    }
    times = {t.id: data.draw(fates) for t in trials}
    target = 5.0  # the curves of these tests fall from 7 to 5
    study = quickstart.model_copy(
        update={"objective": quickstart.objective.model_copy(
            update={"target": target, "fallback": (6.0,), "stretch": ()})}
    )  # fmt: skip
    facts = make.facts_of(
        trials, lambda t: made.get(times[t.id], times[t.id]) if times[t.id] else None
    )
    if not any(isinstance(v, float) or v in ("diverged", "timeout") for v in times.values()):
        return
    top = choose_top(study, facts, k, target)
    assert 1 <= len(top.points) <= 2 * k
    plan = plan_stage2(study, facts, from_top=k, runs=runs, seed=seed)
    assert len(plan.trials) == plan.entries == runs
    assert len({t.id for t in plan.trials}) == runs
    assert plan.distinct == len({t.point for t in plan.trials})
    assert top.points[0].point in [t.point for t in plan.trials]
    assert set(plan.locked) | set(plan.varying) == set(study.space.parameters)
    assert not set(plan.locked) & set(plan.varying)
    for name, levels in plan.varying.items():
        parameter = study.space.parameters[name]
        assert len(levels) >= 2
        assert [parameter.coerce(v) for v in levels] == list(levels)
        assert top.points[0].point[name] in levels
        if isinstance(parameter, NUMERIC):
            assert list(levels) == sorted(levels)
            assert len(levels) <= parameter.levels
    for trial in plan.trials:
        assert study.space.point(trial.point) == trial.point
        for name, lock in plan.locked.items():
            if plan.design["kind"] != "replicates":
                assert trial.point[name] == lock.value
    json.dumps(dict(plan.design), allow_nan=False)
