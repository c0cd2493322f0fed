"""Confirm in the loop: it looks at 4, 6, 8 and 10 blocks, and stops when the finalists are separated."""

import json
import math
import random

import pytest

from sweeper.analysis.confirm import confirmation
from sweeper.analysis.dataset import StageFacts, StudyFacts
from sweeper.design.confirm import extend_confirm, plan_confirm
from sweeper.executors.replay import Recording
from sweeper.paths import AttemptPaths
from sweeper.replay import replay
from sweeper.spec import AttemptSpec
from sweeper.stages import ConfirmStage
from sweeper.study_file import load
from sweeper.trial import Evaluation, Phases, Reason
from tests.loop.test_sweep import STUDY, argument


@pytest.fixture
def study(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY.replace("CAP", "true"))
    return load(tmp_path / "study.toml")


def points(study, *rates):
    return [study.space.point({"lr": lr, "batch": 64}) for lr in rates]


def run(study, seconds, *, noise, repeats=10, blocks=4):
    """Confirm of finalists whose true times are given by learning rate."""
    finalists = points(study, *seconds)
    plan = plan_confirm(study, finalists, None, repeats, 1, target=2.0, blocks=blocks)

    def find(spec):
        draw = random.Random(f"{spec.trial} {noise}")
        took = seconds[argument(spec, "lr")] * math.exp(draw.gauss(0, noise))
        curve = tuple(
            Evaluation(i, i * 100, Phases(train=took * i / 20), 4 - 2 * i / 20) for i in range(21)
        )
        return Recording(curve, curve[-1].clock, Reason.STEPS)

    end = replay(study, ConfirmStage(study, plan), find, target=2.0).end
    facts = StageFacts(plan=end.record.plan, facts=end.facts, effective_target=2.0)
    return end, confirmation(StudyFacts(study, {"confirm": facts}))


def test_separated_finalists_need_only_the_first_look(study):
    end, found = run(study, {0.01: 10.0, 0.02: 14.0}, noise=0.02)
    assert found.settled
    assert found.blocks == 4
    assert found.looks == (4, 6, 8, 10)  # what was planned decides alpha, not when it stopped
    assert found.alpha == 0.05 / 4
    assert len(end.facts) == 8
    assert end.record.closed_at is not None


def test_equals_use_up_the_budget_and_are_not_called_separated(study):
    end, found = run(study, {0.01: 10.0, 0.02: 10.0}, noise=0.03)
    assert not found.settled
    assert found.blocks == 10
    assert len(end.facts) == 20
    words = found.contrasts[0].words()
    assert "not distinguishable at this budget" in words


def test_a_middling_gap_stops_at_a_look_in_between(study):
    _, found = run(study, {0.01: 10.0, 0.02: 11.0}, noise=0.05)
    assert found.settled
    assert found.blocks in (6, 8, 10)


def test_a_grown_plan_keeps_what_it_had(study):
    whole = plan_confirm(study, points(study, 0.01, 0.02), None, 10, 3)
    first = plan_confirm(study, points(study, 0.01, 0.02), None, 10, 3, blocks=4)
    assert first.trials == whole.trials[:8]
    grown = extend_confirm(study, extend_confirm(study, first, 6), 10)
    assert grown.trials == whole.trials
    assert (grown.entries, grown.design["runs"], grown.design["blocks"]) == (20, 20, 10)


def test_spec_and_control_words_survive_their_files(tmp_path):
    from sweeper.runner.limits import Limits
    from sweeper.spec import Control, SpecError

    document = {
        "v": 1, "study": "s", "trial": "t", "attempt": 1, "argv": [], "cwd": ".", "run_dir": ".",
        "metric": "val_loss", "clock": "train", "target": 2.0, "trial_s": 9.0, "silence_s": 9.0,
        "startup_s": 9.0, "grace_s": 1.0, "max_steps": 9, "cap_s": 3.0, "cap_why": "because",
    }  # fmt: skip
    paths = AttemptPaths(tmp_path)
    paths.spec.write_text(json.dumps(document))
    spec = AttemptSpec.read(paths.spec)
    assert spec.cap_why == "because"
    with pytest.raises(SpecError, match="forecast"):
        Control(forecast=3)
    from sweeper.events import Fold, parse_line

    limits, fold = Limits(spec, 0.0), Fold("val_loss")
    event = parse_line('{"v":1,"seq":0,"event":"evaluated","step":1,"clock":{"train":2},'
                       '"metrics":{"val_loss":3.0}}')  # fmt: skip
    fold.add(event)
    limits.event(event, 2.0)
    assert limits.check(2.0, Phases(train=2.0), fold) is None
    limits.control(Control(cap_s=2.5, forecast="it would not cross"))
    stop = limits.check(2.0, Phases(train=2.0), fold)
    assert (stop.reason, stop.cap_s) == (Reason.FORECAST, 2.5)
    assert stop.message == "stopped at 2.0 s: it would not cross"
    limits.control(Control(cap_s=1.5, cap_why="too slow"))
    assert limits.check(2.0, Phases(train=2.0), fold).message == "stopped at 2.0 s: too slow"
