"""What every executor promises, held against each of them: one class, one subclass an executor."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeper.errors import DiskUnusable
from sweeper.executors.local import LocalExecutor, cpu_slots
from sweeper.executors.simulated import SimulatedExecutor
from sweeper.paths import AttemptPaths, write_json
from sweeper.runner import processes
from sweeper.spec import AttemptOutcome, AttemptSpec, Running
from sweeper.trial import Outcome, Reason

TRAINER = Path(__file__).resolve().parents[1] / "fakes" / "trivial_trainer.py"


class ExecutorContract:
    """Subclasses give `executor`, a fixture with two slots."""

    @pytest.fixture(autouse=True)
    def _home(self, tmp_path):
        self.home, self.made = tmp_path, 0
        yield
        for path in tmp_path.glob("*/running.json"):
            for process in processes.marked(Running.read(path).token):
                processes.send(process, 9)

    def prepare(self, slot, *options: str) -> Path:
        """A spec in a folder of its own, as the loop leaves it."""
        self.made += 1
        paths = AttemptPaths(self.home / f"attempt {self.made}")
        paths.folder.mkdir()
        spec = AttemptSpec(
            study="tests", trial=f"t{self.made}", attempt=1,
            argv=[sys.executable, "-S", str(TRAINER), "--virtual-clock", *options],
            cwd=str(self.home), run_dir=str(paths.folder), metric="val_loss", clock="train",
            target=2.0, trial_s=60, silence_s=60, startup_s=60, grace_s=1, max_steps=500,
            env=dict(slot.env), device=dict(slot.device),
        )  # fmt: skip
        write_json(paths.spec, spec.to_json())
        return paths.spec

    def all_gone(self, executor, count: int):
        """Everything that `wait` gives until `count` attempts have ended."""
        gone, deadline = [], time.monotonic() + 30
        while len(gone) < count:
            assert time.monotonic() < deadline
            gone += executor.wait(1.0)
        return gone

    def test_slots_have_names_of_their_own(self, executor):
        assert len({slot.name for slot in executor.slots()}) == len(executor.slots()) == 2

    def test_nothing_to_wait_for(self, executor):
        before = time.monotonic()
        assert list(executor.wait(0.05)) == []
        assert time.monotonic() - before < 10

    def test_an_attempt_leaves_its_outcome_and_is_given_once(self, executor):
        slot = executor.slots()[0]
        spec = self.prepare(slot)
        executor.submit(spec, slot)
        (ended,) = self.all_gone(executor, 1)
        assert (ended.folder, ended.slot) == (spec.parent, slot)
        outcome = AttemptOutcome.read(AttemptPaths(ended.folder).outcome)
        assert (outcome.outcome, outcome.reason) == (Outcome.REACHED, Reason.TARGET)
        assert AttemptPaths(ended.folder).events.exists()
        assert list(executor.wait(0)) == []

    def test_slots_work_side_by_side(self, executor):
        specs = []
        for slot in executor.slots():
            specs.append(self.prepare(slot))
            executor.submit(specs[-1], slot)
        gone = self.all_gone(executor, 2)
        assert {g.folder for g in gone} == {s.parent for s in specs}
        assert {g.slot.name for g in gone} == {s.name for s in executor.slots()}

    def test_an_attempt_that_has_ended_is_not_adopted(self, executor):
        slot = executor.slots()[0]
        spec = self.prepare(slot)
        executor.submit(spec, slot)
        self.all_gone(executor, 1)
        assert executor.adopt(spec.parent) is None

    def test_a_folder_in_which_nothing_was_started_is_not_adopted(self, executor):
        spec = self.prepare(executor.slots()[0])
        assert executor.adopt(spec.parent) is None
        assert executor.adopt(self.home / "no such folder") is None

    def test_closing_forgets(self, executor):
        executor.close()
        assert list(executor.wait(0)) == []


class TestSimulatedExecutor(ExecutorContract):
    @staticmethod
    def play(spec: AttemptSpec):
        outcome = AttemptOutcome(
            study=spec.study, trial=spec.trial, attempt=spec.attempt, outcome=Outcome.REACHED,
            reason=Reason.TARGET, message="", exit_code=0, signal=None, started_at=0.0,
            ended_at=0.0, wall_s=float(spec.trial[1:]), device=dict(spec.device),
        )  # fmt: skip
        return ['{"v":1,"seq":0,"event":"run_started","step":0}'], outcome

    @pytest.fixture
    def executor(self):
        return SimulatedExecutor(self.play, slots=2)

    def test_time_is_virtual_and_ends_are_in_order(self, executor):
        specs = [self.prepare(slot) for slot in executor.slots()]
        for spec, slot in reversed(list(zip(specs, executor.slots(), strict=True))):
            executor.submit(spec, slot)
        assert [g.folder for g in executor.wait(0)] == [specs[0].parent]
        assert executor.now_s == 1.0
        assert not AttemptPaths(specs[1].parent).outcome.exists()
        assert executor.adopt(specs[1].parent) == executor.slots()[1]
        assert [g.folder for g in executor.wait(0)] == [specs[1].parent]
        assert executor.now_s == 2.0


class TestLocalExecutor(ExecutorContract):
    @pytest.fixture
    def executor(self):
        cores = sorted(os.sched_getaffinity(0))
        executor = LocalExecutor(*cpu_slots(cores, 2))
        yield executor
        executor.close()

    def running(self, spec: Path) -> Running:
        path, deadline = AttemptPaths(spec.parent).running, time.monotonic() + 30
        while not (path.exists() and Running.read(path).trainer):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return Running.read(path)

    def test_runners_outlive_the_loop_and_are_adopted_by_the_next(self, executor):
        slot = executor.slots()[1]
        spec = self.prepare(slot, "--startup", "1")
        executor.submit(spec, slot)
        known = self.running(spec)
        assert os.getsid(known.pid) == known.pid != os.getsid(0)
        executor.close()
        second = LocalExecutor(executor.slots())
        assert second.adopt(spec.parent) == slot
        (ended,) = self.all_gone(second, 1)
        assert (ended.folder, ended.slot) == (spec.parent, slot)
        assert AttemptPaths(spec.parent).outcome.exists()
        os.waitpid(known.pid, 0)

    def test_an_attempt_on_a_slot_that_is_no_more_is_adopted_with_its_own(self, executor):
        slot = executor.slots()[1]
        spec = self.prepare(slot, "--startup", "1")
        executor.submit(spec, slot)
        known = self.running(spec)
        executor.close()
        second = LocalExecutor(executor.slots()[:1])
        adopted = second.adopt(spec.parent)
        assert adopted.device == slot.device
        assert adopted.name != second.slots()[0].name
        self.all_gone(second, 1)
        os.waitpid(known.pid, 0)

    def test_a_reused_pid_is_not_adopted(self, executor):
        spec = self.prepare(executor.slots()[0])
        me = processes.look_at(os.getpid())
        for start_time, boot in ((me.start_time - 1, processes.boot_id()), (me.start_time, "old")):
            running = Running(os.getpid(), start_time, boot, "no-such-token", 0.0)
            write_json(AttemptPaths(spec.parent).running, running.to_json())
            assert executor.adopt(spec.parent) is None

    def test_what_a_killed_runner_left_is_ended_before_its_slot_is_free(self, executor):
        slot = executor.slots()[0]
        spec = self.prepare(slot, "--never", "--grandchild", "--hang-at", "1")
        executor.submit(spec, slot)
        known = self.running(spec)
        pid_file = spec.parent / "grandchild.pid"
        deadline = time.monotonic() + 30
        while not pid_file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(known.pid, 9)
        (ended,) = self.all_gone(executor, 1)
        assert processes.marked(known.token) == []
        assert not AttemptPaths(ended.folder).outcome.exists()

    def test_what_a_killed_runner_left_is_ended_by_the_next_orchestrator(self, executor):
        slot = executor.slots()[0]
        spec = self.prepare(slot, "--never", "--grandchild", "--daemon", "--hang-at", "1")
        executor.submit(spec, slot)
        known = self.running(spec)
        while not (spec.parent / "daemon.pid").exists():
            time.sleep(0.02)
        executor.close()
        os.kill(known.pid, 9)
        os.waitpid(known.pid, 0)
        assert processes.marked(known.token) != []
        assert LocalExecutor(executor.slots()).adopt(spec.parent) is None
        assert processes.marked(known.token) == []

    def test_who_carries_the_token_and_descends_from_no_runner_is_ended_too(self, executor):
        """As a server that was there before would start it for the trainer."""
        slot = executor.slots()[0]
        spec = self.prepare(slot, "--startup", "1")
        executor.submit(spec, slot)
        environment = os.environ | {processes.MARKER: self.running(spec).token}
        stranger = subprocess.Popen(["sleep", "60"], env=environment, start_new_session=True)
        self.all_gone(executor, 1)
        executor.wait(0.1)
        assert stranger.wait(10) == -9

    def test_and_by_the_next_orchestrator_where_the_first_was_killed(self, executor):
        slot = executor.slots()[0]
        spec = self.prepare(slot)
        executor.submit(spec, slot)
        token = self.running(spec).token
        while not AttemptPaths(spec.parent).outcome.exists():
            time.sleep(0.02)
        environment = os.environ | {processes.MARKER: token}
        stranger = subprocess.Popen(["sleep", "60"], env=environment, start_new_session=True)
        os.waitpid(executor._runners.pop().pid, 0)  # as if it had been killed now
        assert LocalExecutor(executor.slots()).adopt(spec.parent) is None
        assert stranger.wait(10) == -9

    def test_of_two_runners_of_one_attempt_the_one_that_has_it_is_waited_for(self, executor):
        """As when a warm parent answers after it was given up: the other leaves, and nothing is lost."""
        slot = executor.slots()[0]
        spec = self.prepare(slot, "--startup", "2")
        executor.submit(spec, slot)
        self.running(spec)
        executor.submit(spec, slot)
        ended = self.all_gone(executor, 1)
        assert AttemptOutcome.read(AttemptPaths(spec.parent).outcome).reason is Reason.TARGET
        assert {e.folder for e in ended} == {spec.parent}

    def test_secrets_stay_here(self, executor, monkeypatch):
        monkeypatch.setenv("SWEEP_DATABASE_URL", "postgresql://me:s3kr1t@host/db")
        slot = executor.slots()[0]
        spec = self.prepare(slot, "--startup", "0.5")
        executor.submit(spec, slot)
        known = self.running(spec)
        for pid in (known.pid, known.trainer):
            assert b"s3kr1t" not in Path(f"/proc/{pid}/environ").read_bytes()
        self.all_gone(executor, 1)

    def test_a_runner_that_cannot_write_its_log(self, executor):
        with pytest.raises(DiskUnusable, match=r"runner\.log"):
            executor.submit(self.home / "gone" / "spec.json", executor.slots()[0])
