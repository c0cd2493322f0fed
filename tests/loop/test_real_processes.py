"""Racing with real runners and trainers: control.json ends what runs, checkpoints carry it on."""

import json
from pathlib import Path

import pytest

from sweeper.executors.base import Slot
from sweeper.executors.local import LocalExecutor
from sweeper.objective import time_to_target
from sweeper.paths import Home, make_private
from sweeper.replay import Notes
from sweeper.search.memory import MemorySearch
from sweeper.spec import AttemptSpec, Control
from sweeper.stages import Stage1
from sweeper.storage.memory import MemoryStore
from sweeper.study_file import load
from sweeper.sweep import StageRun
from sweeper.trial import Outcome, Reason

TRAINER = Path(__file__).parents[1] / "fakes" / "trivial_trainer.py"
STUDY = """
[study]
name = "real"
[objective]
target = 2.0
stretch = STRETCH
[trainer]
command = ["{python}", "TRAINER", "--config", "{config}", "--eval-every", "2"]
config = "base.json"
resume = RESUME
env = { TRIVIAL = "OPTIONS" }
[limits]
steps = 2000
trial_s = 60
[resources]
gpus = 0
[space.lr]
type = "float"
low = 0.0001
high = 0.1
scale = "log"
baseline = 0.01
[space.step_s]
type = "float"
low = 0.001
high = 1.0
baseline = 0.01
[racing]
order = false
RACING
[[stage1.group]]
name = "A"
configs = CONFIGS
[stage2]
from_top = 2
"""


class Real:
    def __init__(self, folder, configs, *, racing="", options="", stretch="[]", resume=True):
        resumed = '["--resume", "{checkpoint}"]' if resume else "[]"
        text = STUDY.replace("CONFIGS", configs).replace("RACING", racing)
        text = text.replace("OPTIONS", options).replace("STRETCH", stretch)
        text = text.replace("TRAINER", str(TRAINER)).replace("RESUME", resumed)
        (folder / "study.toml").write_text(text)
        (folder / "base.json").write_text('{"lr": 0.01, "step_s": 0.01}')
        self.study = load(folder / "study.toml")
        self.home, self.notes = Home(folder / "home"), Notes()

    def run(self, slots):
        executor = LocalExecutor([Slot(f"p{i}", {"index": i}, {}) for i in range(slots)])
        store = MemoryStore()
        make_private(self.home.study("real"))
        try:
            return StageRun(
                study=self.study,
                stage=Stage1(self.study, keep=2),
                store=store,
                search=lambda _: MemorySearch(),
                executor=executor,
                home=self.home,
                lease=store.acquire("real", "tests", ttl_s=60),
                progress=self.notes,
                target=2.0,
            ).run()
        finally:
            executor.close()


@pytest.mark.timeout(120)
def test_a_cap_that_is_lowered_stops_a_trial_that_runs(tmp_path):
    """The slow trial starts first and uncapped; two fast ones beside it set its cap."""
    configs = "[{ lr = 0.0001 }, { lr = 0.01 }, { lr = 0.011 }]"
    real = Real(tmp_path, configs, racing="forecast = false\nexpect = false", options="--tau-s 1.5")
    end = real.run(slots=2)
    slow = end.facts[0].counted
    paths = real.home.attempt("real", end.facts[0].trial.id, 1)
    assert AttemptSpec.read(paths.spec).cap_s is None
    asked = Control.read(paths.control)
    assert (slow.outcome, slow.reason) == (Outcome.CENSORED, Reason.CAP)
    assert slow.cap_s == asked.cap_s
    assert slow.phases.train >= slow.cap_s
    assert slow.message.startswith("stopped at ")
    assert "cannot enter the top 2, the 2nd best is" in slow.message
    assert {f.counted.reason for f in end.facts[1:]} == {Reason.TARGET}
    assert any("(was none)" in note for note in real.notes.said)


@pytest.mark.timeout(120)
def test_a_forecast_stops_a_trial_that_runs(tmp_path):
    """Equal losses at equal steps, 15 times the time a step: known seconds before its cap."""
    configs = "[{ step_s = 0.01 }, { step_s = 0.011 }, { step_s = 0.15 }]"
    real = Real(tmp_path, configs, racing="slack = 8.0", options="--reach-at 100")
    end = real.run(slots=1)
    late = end.facts[2].counted
    spec = AttemptSpec.read(real.home.attempt("real", end.facts[2].trial.id, 1).spec)
    assert (late.outcome, late.reason) == (Outcome.CENSORED, Reason.FORECAST)
    assert 0.5 * spec.cap_s <= late.phases.train < spec.cap_s
    asked = Control.read(real.home.attempt("real", end.facts[2].trial.id, 1).control)
    assert late.cap_s == (asked.cap_s or spec.cap_s)  # what it was judged against: it may run again
    assert "forecast to cross at" in late.message
    assert "0 wrong stops in 2 finished curves" in late.message


@pytest.mark.timeout(120)
def test_equals_go_on_to_the_stretch_target_from_their_checkpoints(tmp_path):
    configs = "[{ lr = 0.01 }, { lr = 0.0101 }]"
    real = Real(tmp_path, configs, options="--save", stretch="[1.5]", racing="slack = 1.5")
    end = real.run(slots=2)
    assert end.record.effective_target == 1.5
    assert any("within noise of each other" in note for note in real.notes.said)
    for facts in end.facts:
        first, second = facts.attempts
        assert [a.reason for a in facts.attempts] == 2 * [Reason.TARGET]
        folder = real.home.attempt("real", facts.trial.id, 2)
        assert "--resume" in AttemptSpec.read(folder.spec).argv
        started = json.loads(folder.events.read_text().splitlines()[0])
        assert started["resumed_from"]["step"] == first.steps
        seconds = [e.clock.train for e in second.curve]
        assert seconds == sorted(seconds)
        assert seconds[0] == 0.0
        at_first, at_second = (time_to_target(a, 2.0, "train").seconds for a in facts.attempts)
        assert at_first == at_second
        assert 0 < second.own_train_s < second.phases.train
        assert second.device["continues"]["attempt"] == 1


@pytest.mark.timeout(120)
def test_a_trainer_that_cannot_go_on_is_said_and_left_alone(tmp_path):
    configs = "[{ lr = 0.01 }, { lr = 0.0101 }]"
    real = Real(tmp_path, configs, stretch="[1.5]", racing="slack = 1.5", resume=False)
    end = real.run(slots=2)
    assert end.record.effective_target == 2.0
    assert all(len(f.attempts) == 1 for f in end.facts)
    assert any("[trainer] resume does not say" in note for note in real.notes.said)
