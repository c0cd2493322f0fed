"""Trials that start from a checkpoint: real processes of the trivial trainer, whose clock is exact."""

import hashlib
import json
import math
import tomllib
from pathlib import Path

import pytest

from sweeper import starts
from sweeper.commands import frozen
from sweeper.errors import CheckpointUnusable, PlanChangedError
from sweeper.executors.base import Slot
from sweeper.executors.local import LocalExecutor
from sweeper.objective import time_to_target
from sweeper.paths import Home, make_private
from sweeper.report.lines import QuietProgress
from sweeper.search.memory import MemorySearch
from sweeper.spec import AttemptSpec
from sweeper.stages import Stage1
from sweeper.storage.memory import MemoryStore
from sweeper.study_file import load
from sweeper.sweep import StageRun
from sweeper.trial import Outcome, Reason

TRAINER = Path(__file__).parents[1] / "fakes" / "trivial_trainer.py"
STUDY = """
[study]
name = "starts"
[objective]
target = 2.0
[trainer]
command = ["{python}", "TRAINER", "--config", "{config}", "--eval-every", "1"]
config = "base.toml"
resume = ["--resume", "{checkpoint}"]
env = { TRIVIAL = "--virtual-clock --save" }
[limits]
steps = 2000
trial_s = 60
[resources]
gpus = 0
[phase.one]
steps = 60
set = { lr = 0.02 }
[start.resumed]
phase = "one"
arguments = ["--resume", "{checkpoint}"]
[start.fresh]
[start.file]
checkpoint = "saved.json"
arguments = ["--resume", "{checkpoint}"]
steps = 500
[space.start_from]
type = "categorical"
choices = ["resumed", "fresh", "file"]
baseline = "fresh"
[space.lr]
type = "float"
low = 0.0001
high = 0.1
scale = "log"
baseline = 0.01
[[stage1.group]]
name = "A"
vary = { start_from = ["resumed", "fresh", "file"] }
[stage2]
from_top = 1
"""


class Starts:
    def __init__(self, folder):
        (folder / "study.toml").write_text(STUDY.replace("TRAINER", str(TRAINER)))
        (folder / "base.toml").write_text("lr = 0.01\nstep_s = 0.01\n[run]\ntarget = 3.0\n")
        self.saved = folder / "saved.json"
        self.study = load(folder / "study.toml")
        self.home, self.store = Home(folder / "home"), MemoryStore()
        make_private(self.home.study("starts"))

    def run(self, stage):
        executor = LocalExecutor([Slot("p0", {"index": 0}, {})])
        lease = self.store.acquire("starts", "tests", ttl_s=60)
        try:
            return StageRun(
                study=self.study,
                stage=stage,
                store=self.store,
                search=lambda _: MemorySearch(),
                executor=executor,
                home=self.home,
                lease=lease,
                progress=QuietProgress(),
                target=2.0,
            ).run()
        finally:
            executor.close()
            self.store.release(lease)

    def phases(self, trials):
        wanted = starts.phase_trials(self.study, trials)
        stage = starts.UnrankedStage(self.study, "prepare", wanted)
        starts.grow(self.store, stage)
        return self.run(stage)


@pytest.mark.timeout(120)
def test_trials_start_from_a_phase_a_file_or_afresh_and_count_from_there(tmp_path):
    world = Starts(tmp_path)
    stage = Stage1(world.study, keep=1)
    planned = stage.plan(()).trials

    prepared = world.phases(planned).facts
    assert [f.trial.id for f in prepared] == ["p-one-1"]
    counted = prepared[0].counted
    assert (counted.outcome, counted.reason, counted.steps) == (
        Outcome.CENSORED, Reason.STEPS, 60,
    )  # fmt: skip
    assert counted.phases.train == pytest.approx(60 * 0.01)
    paths = world.home.attempt("starts", "p-one-1", 1)
    assert tomllib.loads(paths.config.read_text()) == {
        "lr": 0.02, "step_s": 0.01, "run": {"seed": 1, "max_steps": 60},
    }  # fmt: skip
    assert "SWEEP_TARGET" not in {k for k, v in AttemptSpec.read(paths.spec).env.items() if v}

    # The file has been there all along; it is the phase's checkpoint.
    left = starts.left_by(world.study, world.home, "p-one-1")[1]
    world.saved.write_bytes(left.read_bytes())
    end = world.run(stage)
    seconds = {}
    for facts in end.facts:
        assert facts.counted.reason is Reason.TARGET
        name = facts.trial.point["start_from"]
        seconds[name] = time_to_target(facts.counted, 2.0, "train").seconds
        spec = AttemptSpec.read(world.home.attempt("starts", facts.trial.id, 1).spec)
        assert spec.max_steps == (500 if name == "file" else 2000)
        assert ("--resume" in spec.argv) == (name != "fresh")
    whole = math.log(3)  # what the trivial trainer needs from the beginning
    assert seconds["fresh"] == pytest.approx(whole, abs=0.01)
    assert seconds["resumed"] == pytest.approx(whole - 60 * 0.01, abs=0.01)
    assert seconds["file"] == pytest.approx(seconds["resumed"])
    resumed = next(f for f in end.facts if f.trial.point["start_from"] == "resumed").counted
    said = resumed.device["starts_from"]
    assert (said["start"], said["of"], said["attempt"], said["step"]) == (
        "resumed", "p-one-1", 1, 60,
    )  # fmt: skip
    assert resumed.steps == pytest.approx(seconds["resumed"] / 0.01, abs=2)

    # A seed that comes later gets a checkpoint of its own; what is there stays.
    other = [t.__class__(**{**vars(t), "seed": 7}) for t in planned]
    assert [f.trial.id for f in world.phases(other).facts] == ["p-one-1", "p-one-7"]
    assert len(prepared[0].attempts) == 1

    # And an extension counts on, with the first part of its curve from the trial that it extends.
    about = {
        "of": "s1-A1", "attempt": 1, "before": {k: said[k] for k in ("step", "tokens", "clock")},
        "checkpoint": str(starts.left_by(world.study, world.home, "s1-A1")[1]),
        "steps": 400, "target": None, "changes": {},
    }  # fmt: skip
    first = next(f for f in end.facts if f.trial.id == "s1-A1").trial
    more = first.__class__(**{**vars(first), "id": "x-s1-A1-1", "stage": "extend"})
    longer = world.run(starts.UnrankedStage(world.study, "extend", (more,), {more.id: about}))
    extended = longer.facts[0].counted
    assert extended.reason is Reason.STEPS
    assert extended.steps == 400 - 60
    steps = [e.step for e in extended.curve]
    assert steps == sorted(steps)
    assert len(extended.curve) > len(resumed.curve)
    assert time_to_target(extended, 2.0, "train").seconds == pytest.approx(seconds["resumed"])


def test_a_checkpoint_that_is_not_there_is_said_before_anything_starts(tmp_path):
    world = Starts(tmp_path)
    with pytest.raises(
        CheckpointUnusable, match=r"\[start\.file\] checkpoint: .*saved\.json is not"
    ):
        starts.need_files(world.study)
    world.saved.write_text("{}")
    with pytest.raises(CheckpointUnusable, match="p-one-1 has left no checkpoint; see `sweep show"):
        world.run(Stage1(world.study, keep=1))
    assert not list(world.home.study("starts").glob("s1-A1/attempt-*"))


@pytest.mark.timeout(120)
def test_another_checkpoint_file_under_the_same_name_is_another_configuration(tmp_path):
    world = Starts(tmp_path)
    stage = Stage1(world.study, keep=1)
    world.phases(stage.plan(()).trials)
    left = starts.left_by(world.study, world.home, "p-one-1")[1].read_bytes()
    world.saved.write_bytes(left)
    record = world.store.freeze(
        stage.plan(()),
        definition=world.study.definition("stage1"),
        definition_hash=world.study.definition_hash("stage1"),
        options={},
        exploratory=False,
    )
    first = record.definition["start"]["file"]["sha256"]
    assert first == hashlib.sha256(left).hexdigest()
    assert not frozen.has_changed(world.study, record, exploratory=False)

    world.saved.write_bytes(left + b" ")
    with pytest.raises(PlanChangedError, match=rf"start\.file\.sha256: '{first[:9]}"):
        frozen.has_changed(world.study, record, exploratory=False)
    with pytest.raises(CheckpointUnusable, match=f"is another file than .*was {first[:12]}"):
        world.run(stage)  # replaced while the sweep ran: its command has looked at it already

    world.saved.write_bytes(left)
    begun = [f.counted.device.get("starts_from", {}) for f in world.run(stage).facts]
    assert sorted(b.get("sha256", "") for b in begun) == ["", "", first]


def test_the_definition_that_a_plan_is_frozen_on_has_starts_and_phases(tmp_path):
    study = Starts(tmp_path).study
    definition = study.definition("stage1")
    assert definition["phase"]["one"]["steps"] == 60
    assert json.dumps(definition["start"])
    without = study.model_copy(update={"starts": {}, "phases": {}})
    assert "phase" not in without.definition("stage1")
