"""Stage 1: groups become trials whose ids, seeds and owners never move; finished groups a winner."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.design.groups import complete, is_forbidden, plan_stage1, winner
from sweeper.errors import PlanError
from sweeper.study_file import load
from sweeper.trial import Reason

METHODS = [{}, {"A": {"optim.method": "slow"}}, {"A": {"optim.method": "fast"}}]


def by_id(plan):
    return {trial.id: trial for trial in plan.trials}


def test_rows_in_declared_order(study):
    plan = plan_stage1(study, {})
    assert plan.entries == 12
    assert [t.id for t in plan.trials] == [
        "s1-A1", "s1-A2", "s1-A3", "s1-A4", "s1-B1", "s1-B3", "s1-B4", "s1-C1", "s1-C2",
    ]  # fmt: skip
    assert plan.distinct == 9  # B2 and B5 are A1; B6 sets a batch and has its tied rate, as A3 has
    assert plan.depends_on == {"B": "A"}
    assert plan.open == {"optim.method": "slow"}
    assert by_id(plan)["s1-A1"].groups == ("A", "B")
    assert by_id(plan)["s1-A3"].groups == ("A", "B")
    assert by_id(plan)["s1-B1"].open == ("optim.method",)
    assert [t.id for t in plan.trials if t.open] == ["s1-B1", "s1-B3", "s1-B4"]


def test_ties_scale_what_is_not_set(study):
    plan = by_id(plan_stage1(study, {}))
    assert plan["s1-A3"].point["optim.lr"] == pytest.approx(0.01 * math.sqrt(2), rel=1e-9)
    assert plan["s1-B4"].point["optim.lr"] == pytest.approx(0.01 * math.sqrt(0.5), rel=1e-9)
    assert plan["s1-B3"].point["optim.lr"] == 0.1  # it sets the rate itself
    assert complete(study, {"data.batch": 8})["optim.lr"] == pytest.approx(0.005)


def test_ties_are_clipped_and_chained(study_text, write_study):
    text = study_text.replace("exponent = 0.5", "exponent = 4").replace(
        "[[forbid]]",
        '[[tie]]\nparameter = "optim.momentum"\nfollows = "optim.lr"\nexponent = 0.1\n[[forbid]]',
        1,
    )
    study = load(write_study(text))
    point = complete(study, {"data.batch": 128})
    assert point["optim.lr"] == 0.1  # 0.01 x 4^4 is above the range
    assert point["optim.momentum"] == 0.99  # 0.9 x 10^0.1 is, too
    assert complete(study, {"data.batch": 32}) == complete(study, {})


def test_winner_replaces_the_assumed_level(study):
    plan = by_id(plan_stage1(study, METHODS[2]))
    assert plan["s1-B1"].point["optim.method"] == "fast"
    assert plan["s1-B1"].open == ()
    assert plan["s1-A2"].groups == ("A", "B")


def test_forbidden_entries_are_left_out_with_a_note(study_text, write_study):
    text = study_text.replace('"data.batch" = 128', '"data.batch" = 64')
    study = load(write_study(text))
    plan = plan_stage1(study, {})
    assert "s1-A4" not in by_id(plan)
    assert plan.notes == ("s1-A4 is forbidden and left out: fast batch=64 lr=0.0141421",)
    assert plan.entries == 12
    assert not any(is_forbidden(study, t.point) for t in plan.trials)


def test_group_of_forbidden_entries_is_an_error(study_text, write_study):
    text = study_text.replace('"optim.method" = "fast"\n"data.batch" = 128', '"optim.lr" = 0.02')
    text = text.replace('{ "optim.lr" = 0.05,', '{ "optim.lr" = 0.02,')
    with pytest.raises(PlanError, match=r"^group C: every entry is forbidden"):
        plan_stage1(load(write_study(text)), {})


@pytest.fixture(params=["reuse", "replicate"])
def either(request, study_text, write_study):
    return load(
        write_study(
            study_text.replace("[stage2]", f'[stage1]\nduplicates = "{request.param}"\n[stage2]')
        )
    )


def test_what_may_have_run_never_changes(either):
    plans = [by_id(plan_stage1(either, winners)) for winners in METHODS]
    closed = [t for t in plans[0].values() if not t.open]
    for plan in plans[1:]:
        for trial in closed:
            now = plan[trial.id]
            assert (now.point, now.seed, now.replicate_of) == (
                trial.point, trial.seed, trial.replicate_of,
            )  # fmt: skip
    assert plans[0] == by_id(plan_stage1(either, {}))


def test_replicates_have_seeds_of_their_own(study_text, write_study):
    text = study_text.replace("[stage2]", '[stage1]\nduplicates = "replicate"\n[stage2]')
    plan = plan_stage1(load(write_study(text)), METHODS[1])
    assert len(plan.trials) == plan.entries == 12
    assert plan.distinct == 9
    again = {t.id: t.replicate_of for t in plan.trials if t.replicate_of}
    assert again == {"s1-B2": "s1-A1", "s1-B5": "s1-A1", "s1-B6": "s1-A3"}
    seeds = [(t.point, t.seed) for t in plan.trials]
    assert len(set(seeds)) == 12
    places = [t.id for t in plan.trials]
    assert min(abs(places.index(a) - places.index(b)) for a, b in again.items()) > 3


def test_controls_are_interleaved(study_text, write_study):
    text = study_text.replace("[stage2]", "[stage1]\ncontrol_every = 4\n[stage2]")
    plan = plan_stage1(load(write_study(text)), {})
    controls = [t for t in plan.trials if t.groups == ("control",)]
    assert [plan.trials.index(t) for t in controls] == [4, 9]
    assert {t.replicate_of for t in controls} == {"s1-A1"}
    assert len({t.seed for t in controls}) == 2
    assert plan.entries == 12


# ------------------------------------------------------------------------------------- winner


def group_a(study, make, times):
    """Facts of the whole stage: group A's four trials as given, nothing else ran."""
    trials = plan_stage1(study, {}).trials
    return make.facts_of(trials, lambda t: times.get(t.id))


def test_winner_is_the_best_on_shared_bases_not_the_fastest_row(study, make):
    # slow has the fastest single row, fast is better on average over the two bases
    times = {"s1-A1": 50.0, "s1-A2": 52.0, "s1-A3": 100.0, "s1-A4": 70.0}
    assert winner(study, "A", group_a(study, make, times), 5.0) == {"optim.method": "fast"}


def test_no_winner_while_a_trial_is_missing(study, make):
    times = {"s1-A1": 50.0, "s1-A2": 52.0, "s1-A3": 100.0}
    assert winner(study, "A", group_a(study, make, times), 5.0) is None
    assert winner(study, "B", group_a(study, make, times), 5.0) is None


def test_failed_level_loses_to_a_measured_one(study, make):
    times = {
        "s1-A1": make.failed(), "s1-A2": 500.0, "s1-A3": make.failed(Reason.OOM), "s1-A4": 700.0,
    }  # fmt: skip
    assert winner(study, "A", group_a(study, make, times), 5.0) == {"optim.method": "fast"}


def test_nothing_finished_is_an_error(study, make):
    times = {f"s1-A{i}": make.failed() for i in range(1, 5)}
    with pytest.raises(PlanError, match=r"^best_of group A: nothing finished, all 4 trials failed"):
        winner(study, "A", group_a(study, make, times), 5.0)


def test_censored_counts_as_at_least_its_bound(study, make):
    # diverged after 2 s is no sign of speed: it counts as the trial limit
    times = {
        "s1-A1": make.censored(20.0, share=0.1, reason=Reason.DIVERGED),
        "s1-A2": 300.0,
        "s1-A3": 100.0,
        "s1-A4": 101.0,
    }
    assert winner(study, "A", group_a(study, make, times), 5.0) == {"optim.method": "fast"}
    # capped early at a base where the other was slow: still not faster than what reached
    times["s1-A1"] = make.censored(900.0, share=0.3, cap_s=270.0)
    times["s1-A4"] = 100.5
    assert winner(study, "A", group_a(study, make, times), 5.0) == {"optim.method": "slow"}


def test_fallback_ladder_decides_when_nothing_reached(study, make):
    # both stop before 5.0; fast crosses 5.5 (share 0.717 of its way) sooner
    times = {
        "s1-A1": make.censored(100.0, share=0.95, reason=Reason.TIMEOUT),
        "s1-A2": make.censored(80.0, share=0.9, reason=Reason.TIMEOUT),
        "s1-A3": make.censored(100.0, share=0.95, reason=Reason.TIMEOUT),
        "s1-A4": make.censored(99.0, share=0.9, reason=Reason.TIMEOUT),
    }
    assert winner(study, "A", group_a(study, make, times), 5.0) == {"optim.method": "fast"}


def test_loss_at_equal_seconds_decides_last(study, make):
    # nobody comes to 6.0 (share 0.458); slow ran much longer and so ended lower, fast fell faster
    times = {
        "s1-A1": make.censored(200.0, share=0.4, reason=Reason.TIMEOUT),
        "s1-A2": make.censored(150.0, share=0.2, reason=Reason.TIMEOUT),
        "s1-A3": make.censored(200.0, share=0.4, reason=Reason.TIMEOUT),
        "s1-A4": make.censored(150.0, share=0.2, reason=Reason.TIMEOUT),
    }
    assert winner(study, "A", group_a(study, make, times), 5.0) == {"optim.method": "fast"}


def test_every_factor_of_a_vary_group_has_its_winner(either, make):
    trials = plan_stage1(either, METHODS[1]).trials
    facts = make.facts_of(
        trials, lambda t: 60.0 + 1000 * abs(t.point["optim.lr"] - 0.01) + t.point["data.batch"]
    )
    assert winner(either, "B", facts, 5.0) == {"optim.lr": 0.01, "data.batch": 16}


def test_later_replicates_never_change_a_winner(study_text, write_study, make):
    """Trials that were planned with it may have run already."""
    text = study_text.replace("[stage2]", '[stage1]\nduplicates = "replicate"\n[stage2]')
    study = load(write_study(text))
    early = {"s1-A1": 80.0, "s1-A2": 90.0, "s1-A3": 100.0, "s1-A4": 99.0}
    late = early | {"s1-B2": 500.0, "s1-B5": 510.0, "s1-B6": 520.0}
    trials = plan_stage1(study, METHODS[1]).trials
    for times in (early, late):
        facts = make.facts_of(trials, lambda t, times=times: times.get(t.id))
        assert winner(study, "A", facts, 5.0) == {"optim.method": "slow"}


def test_equal_configs_are_medianed(study_text, write_study, make):
    again = '  { "optim.lr" = 0.02, "optim.restart" = true },\n'
    text = study_text.replace(again, again * 3)
    text = text.replace("[stage2]", '[stage1]\nduplicates = "replicate"\n[stage2]')
    study = load(write_study(text))
    times = {"s1-C1": 40.0, "s1-C2": 100.0, "s1-C3": 110.0, "s1-C4": 90.0}
    facts = make.facts_of(plan_stage1(study, {}).trials, lambda t: times.get(t.id))
    assert winner(study, "C", facts, 5.0) == {"optim.lr": 0.05, "optim.momentum": 0.95}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1.0, 500.0), min_size=4, max_size=4))
def test_winner_agrees_with_the_mean_log_ratio(ngpt, make, times):
    """On the eight trials of ngpt's group A, against the definition written out: ratios up to 2."""
    trials = plan_stage1(ngpt, {}).trials
    slow, quick = [times[0], times[1], 30.0, 40.0], [times[2], times[3], 35.0, 38.0]
    table = {f"s1-A{1 + 2 * i}": slow[i] for i in range(4)}
    table |= {f"s1-A{2 + 2 * i}": quick[i] for i in range(4)}
    facts = make.facts_of(trials, lambda t: table.get(t.id))
    ratios = [a / b for a, b in zip(slow, quick, strict=True)]
    mean = sum(math.log(min(2, max(0.5, ratio))) for ratio in ratios) / 4
    if abs(mean) > 1e-9:
        expected = "newton_schulz" if mean < 0 else "polar_express"
        assert winner(ngpt, "A", facts, 5.0) == {"optim.muon.orthogonalizer": expected}
