"""Goal "final": ranking, stage 2's top, confirm, words, the step table and the told value."""

import dataclasses
import json
import math

import pytest

from sweeper.analysis.confirm import confirmation
from sweeper.analysis.dataset import StudyFacts
from sweeper.analysis.ranking import search_ranking, stage_summary
from sweeper.analysis.steps import step_table
from sweeper.analysis.verdict import verdict
from sweeper.design.region import choose_top
from sweeper.objective import final_value
from sweeper.report import json_report, markdown
from sweeper.telling import told
from sweeper.trial import Evaluation, Outcome, Phases, Reason, TrialFacts
from tests.fakes.facts import Clockwork, make_study

BASELINE, GOOD, FAST = {}, {"optim.lr": 0.02}, {"optim.lr": 0.03}


def ended(
    facts: TrialFacts, values: list[float], step_s: float, *, cut: bool = False
) -> TrialFacts:
    """The trial as one that ran to the end of its budget with these values, 100 steps apart."""
    curve = tuple(
        Evaluation(100 * i, 1000 * i, Phases(train=100 * i * step_s), value)
        for i, value in enumerate(values)
    )
    attempt = dataclasses.replace(
        facts.counted,
        outcome=Outcome.CENSORED,
        reason=Reason.TIMEOUT if cut else Reason.STEPS,
        curve=curve,
        best_loss=min(values),
        steps=curve[-1].step,
        phases=curve[-1].clock,
    )
    return TrialFacts(facts.trial, (attempt,))


@pytest.fixture
def facts() -> StudyFacts:
    """The fast one crosses the level first, and the good one ends lower."""
    study = make_study()
    objective = study.objective.model_copy(update={"goal": "final", "target": 2.0, "fallback": ()})
    study = study.model_copy(update={"objective": objective})
    work = Clockwork(study)
    found = []
    for name, values, curve, step_s in (
        ("s1-A1", BASELINE, [5.0, 3.0, 2.5], 0.01),
        ("s1-A2", GOOD, [5.0, 3.0, 1.5], 0.03),
        ("s1-A3", FAST, [5.0, 1.8, 1.7], 0.01),
    ):
        found.append(ended(work.trial("stage1", name, values, 1.0), curve, step_s))
    stage1 = dataclasses.replace(work.stage("stage1"), facts=tuple(found), effective_target=2.0)
    found = []
    for block in range(1, 5):
        for arm, values, final in ((1, GOOD, 1.5), (2, FAST, 1.7), (3, BASELINE, 2.5)):
            trial = work.trial(
                "confirm",
                f"c-{block:02d}-{arm}",
                values,
                1.0,
                groups=("baseline",) if not values else ("finalist",),
                block=block,
            )
            found.append(ended(trial, [5.0, 3.0, final + 0.01 * block], 0.02))
    stage = dataclasses.replace(work.stage("confirm"), facts=tuple(found), effective_target=2.0)
    return StudyFacts(study, {"stage1": stage1, "confirm": stage})


def test_the_lowest_final_metric_is_first_and_not_the_fastest(facts):
    assert [row.final for row in search_ranking(facts)] == [1.5, 1.7, 2.5]
    assert [row.seconds for row in search_ranking(facts)][1] < 1.0  # the time is still told
    top = choose_top(facts.study, facts.stages["stage1"].facts, 2, 2.0)
    assert [m.score for m in top.points] == [1.5, 1.7]
    assert not top.flagged


def test_a_run_that_was_cut_off_has_no_final_metric(facts):
    stage = facts.stages["stage1"]
    cut = ended(stage.facts[1], [5.0, 3.0, 1.2], 0.03, cut=True)
    assert final_value(cut.counted) is None
    stage = dataclasses.replace(stage, facts=(stage.facts[0], cut, stage.facts[2]))
    rows = search_ranking(dataclasses.replace(facts, stages={"stage1": stage}))
    assert [row.final for row in rows] == [1.7, 2.5, None]
    assert told(facts.study, cut.counted, 2.0).violation > 0


def test_confirm_compares_the_metric_within_blocks(facts):
    found = confirmation(facts)
    assert found.leader.point["optim.lr"] == 0.02
    baseline = found.against_baseline
    ratios = [(2.5 + 0.01 * b) / (1.5 + 0.01 * b) for b in range(1, 5)]
    assert baseline.time.ratio == pytest.approx(math.exp(sum(map(math.log, ratios)) / 4))
    assert baseline.decided
    assert "lower" in baseline.words()
    assert "faster" not in baseline.words()


def test_the_report_speaks_of_the_metric(facts):
    judged = verdict(facts)
    assert judged.kind == "confirmed"
    assert "ends at val_loss 1.525 after" in judged.sentence
    assert "% lower" in judged.sentence
    assert judged.noise.by_final
    document = json_report.document(facts, generated_at=1.0)
    text = markdown.render(json.loads(json.dumps(document)))
    assert "| final |" in text
    assert "never" in text  # the baseline does not come to every level
    assert told(facts.study, facts.stages["stage1"].facts[1].counted, 2.0).value == 1.5
    summary = stage_summary(facts, "stage1")
    assert [row["final"] for row in summary["top"]] == [1.5, 1.7, 2.5]


def test_steps_to_a_level_are_read_off_the_curve_or_never(facts):
    table = step_table(facts, search_ranking(facts)[0].point).as_dict()
    baseline, good = (next(i for i, a in enumerate(table["arms"]) if a["role"] == role)
                      for role in ("baseline", "winner"))  # fmt: skip
    rows = {row["level"]: row["steps"] for row in table["levels"]}
    assert rows[2.0][baseline] is None
    assert 100 < rows[2.0][good] < 200
    last = table["rows"][-1]
    assert last["changes"][good] == pytest.approx(100 * (1.525 / 2.525 - 1))


def test_nothing_is_raced_and_nothing_said_of_racing(facts):
    document = json_report.document(facts, generated_at=1.0)
    assert document["racing"] == []
    assert "## Racing" not in markdown.render(json.loads(json.dumps(document)))
