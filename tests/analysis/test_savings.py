"""What each rule did is told apart, and adds up to what the stage did not run."""

import pytest

from sweeper.analysis.dataset import StageFacts, StudyFacts
from sweeper.analysis.savings import rules
from sweeper.replay import replay, with_racing, without_racing
from sweeper.stages import Stage1
from sweeper.study import Question
from sweeper.study_file import load
from sweeper.trial import Reason
from tests.loop.test_racing import recording
from tests.loop.test_sweep import STUDY


@pytest.fixture
def study(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY.replace("CAP", "true"))
    return load(tmp_path / "study.toml")


def told(study, keep=2, **played):
    end = replay(study, Stage1(study, keep), recording, target=2.0, **played).end
    facts = StageFacts(end.record.plan, end.facts, end.record.effective_target)
    return {rule.name: rule for rule in rules(StudyFacts(study, {"stage1": facts}))}, end.facts


def test_caps_and_forecasts_are_told_apart(study):
    found, facts = told(study)
    by_reason = {r: [f for f in facts if f.counted.reason is r] for r in Reason}
    assert found["cap"].trials == len(by_reason[Reason.CAP]) > 0
    assert found["forecast"].trials == len(by_reason[Reason.FORECAST])
    unspent = sum(study.limits.trial_s - f.counted.phases.train for f in by_reason[Reason.CAP])
    assert 0 < found["cap"].saved_s <= unspent
    assert found["order"].saved_s is None
    assert "sweep replay" in found["order"].words


def test_who_was_not_expected_and_who_fell_at_a_rung_are_told_apart(tmp_path):
    levels = "lr = [0.01, 0.02, 0.03, 0.001, 0.0015, 0.1, 0.08, 0.012, 0.009, 0.011, 0.013]"
    text = STUDY.replace("CAP", "true").replace("lr = [0.003, 0.01, 0.03]", levels)
    (tmp_path / "study.toml").write_text(text)
    study = load(tmp_path / "study.toml")
    switches = {"forecast": False, "order": False}
    found, facts = told(with_racing(study, **switches), keep=4)
    early = [f for f in facts if "not expected in the top" in f.counted.message]
    assert found["expect"].trials == len(early) > 0
    assert found["cap"].trials + found["expect"].trials == sum(
        f.counted.reason is Reason.CAP for f in facts
    )
    found, facts = told(with_racing(study, rungs=True, expect=False, **switches))
    fell = [f for f in facts if f.counted.reason is Reason.FORECAST]
    assert found["rungs"].trials == len(fell) > 0
    assert found["forecast"].trials == 0


def test_what_is_off_saves_nothing(study):
    found, _ = told(without_racing(study))
    assert {n for n, rule in found.items() if rule.on} == {"questions", "replicates", "stretch"}
    assert all(not rule.saved_s for rule in found.values())


def test_a_question_costs_what_its_arms_were_given(study):
    plain = with_racing(study, forecast=False)
    asked = plain.model_copy(update={"questions": (Question(text="batch?", parameter="batch"),)})
    found, _ = told(asked)
    assert found["questions"].trials > 0
    assert found["questions"].saved_s < 0
    assert told(plain)[0]["questions"].trials == 0
