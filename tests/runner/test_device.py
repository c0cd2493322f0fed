"""An attempt and its device: real runners, real processes, a GPU that is a recording."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeper.paths import write_json
from sweeper.runner import device_locks, processes, quarantine
from sweeper.runner.device import Device, holder, trouble
from sweeper.runner.nvml import RecordedGpus
from sweeper.spec import AttemptOutcome, Control
from sweeper.trial import Outcome, Reason

_spec = importlib.util.spec_from_file_location(
    "fake_gpu", Path(__file__).resolve().parents[1] / "fakes" / "gpu.py"
)
fake_gpu = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake_gpu)
GIB = fake_gpu.GIB
CORE = min(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def locks(tmp_path, monkeypatch):
    monkeypatch.setenv("SWEEP_DEVICE_LOCKS", str(tmp_path / "locks"))
    return tmp_path / "locks"


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    path = tmp_path / "gpus.json"
    monkeypatch.setenv("SWEEP_NVML", str(path))
    return fake_gpu.FakeGpu(path)


@pytest.fixture
def stranger():
    """A process of this host that belongs to nobody here: its parent has gone."""
    done = subprocess.run(
        ["/bin/sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!"],
        stdout=subprocess.PIPE,
        check=True,
    )
    deadline, started = time.monotonic() + 30, int(done.stdout)
    while Path(f"/proc/{started}/comm").read_text() != "sleep\n":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield started
    os.kill(started, 9)


def cpu(core=CORE, **more):
    return {"kind": "cpu", "index": 0, "cores": [core], **more}


def samples(one):
    return [json.loads(line) for line in one.paths.samples.read_text().splitlines()]


class Hand:
    """A Device driven by hand, without a runner around it."""

    def __init__(self, folder, device, token="t"):
        self.said = []
        self.path = folder / "samples.jsonl"
        self.device = Device(
            device, token=token, holder=holder("study", "s1-A1", 1),
            samples=self.path, say=self.said.append,
        )  # fmt: skip
        self.now = 0.0

    def look(self, session=-1):
        self.now += 1.0
        return self.device.look(self.now, root=os.getpid(), session=session, began_at=0.0)

    def end(self, leftovers=(), meanwhile=lambda: None):
        def until(condition, within_s):
            if not condition():
                meanwhile()

        self.device.give_back(leftovers, until)
        self.device.close()


class TestLease:
    def test_an_attempt_has_its_core_alone_and_says_so(self, attempt, locks):
        one = attempt("--never", device=cpu()).start().until("evaluated")
        said = device_locks.held_by(f"core-{CORE}")["holder"]
        assert (said["pid"], said["study"], said["trial"]) == (one.runner.pid, "tests", "t0")
        assert "token" not in said
        assert one.running().token not in (locks / f"core-{CORE}").read_text()
        write_json(one.paths.control, Control(cancel=True).to_json())
        outcome = one.finish()
        assert outcome.observed["lease"] == "exclusive"
        assert device_locks.held_by(f"core-{CORE}") is None

    def test_a_core_that_is_taken_is_a_failure_of_the_device(self, attempt):
        first = attempt("--never", device=cpu()).start().until("evaluated")
        outcome = attempt("--never", device=cpu()).start().finish()
        assert (outcome.outcome, outcome.reason) == (Outcome.FAILED, Reason.DEVICE)
        assert f"core-{CORE} is taken by process {first.runner.pid} of " in outcome.message
        assert "for tests/t0" in outcome.message
        assert first.runner.poll() is None

    def test_it_is_waited_for_a_while(self, attempt, eventually):
        lock = device_locks.take(f"core-{CORE}")
        one = attempt("--virtual-clock", device=cpu()).start()
        eventually(one.paths.running.exists, "the runner is there")
        time.sleep(0.3)
        assert not one.paths.events.exists()
        lock.release()
        assert one.finish().reason is Reason.TARGET

    def test_waiting_can_be_called_off(self, attempt, eventually, gpu):
        lock = device_locks.take(gpu.uuid)
        one = attempt("--virtual-clock", device=gpu.device).start()
        eventually(one.paths.running.exists, "the runner is there")
        write_json(one.paths.control, Control(cancel=True).to_json())
        assert one.finish().message == "cancelled"
        two = attempt("--virtual-clock", device=gpu.device).start()
        eventually(two.paths.running.exists, "the runner is there")
        two.runner.terminate()
        assert two.finish().reason is Reason.KILLED
        lock.release()

    def test_slots_that_share_a_core_share_its_lease(self, attempt):
        first = attempt("--never", device=cpu(shared=True)).start().until("evaluated")
        second = attempt("--virtual-clock", device=cpu(shared=True)).start().finish()
        assert (second.reason, second.observed["lease"]) == (Reason.TARGET, "shared")
        third = attempt("--virtual-clock", device=cpu()).start().finish()
        assert third.reason is Reason.DEVICE
        assert first.runner.poll() is None

    def test_a_killed_runner_frees_its_device_and_the_next_one_sweeps_it(self, attempt, eventually):
        one = attempt("--never", "--daemon", "--grandchild", device=cpu()).start()
        one.until("evaluated")
        left = {one.child("daemon"), one.child("grandchild")}
        one.runner.kill()
        one.exit()
        assert left <= {p.pid for p in processes.marked(one.running().token)}
        two = attempt("--virtual-clock", device=cpu()).start()
        _, err = two.runner.communicate(timeout=60)
        assert AttemptOutcome.read(two.paths.outcome).reason is Reason.TARGET
        assert b"ending what an earlier attempt left" in err
        assert processes.marked(one.running().token) == []

    def test_a_mark_that_was_copied_to_another_device_ends_nobody(self, attempt, locks):
        one = attempt("--never", device=cpu()).start().until("evaluated")
        copied = (locks / f"core-{CORE}").read_text()
        device_locks.take("GPU-x").release()
        (locks / "GPU-x").write_text(copied)
        hand = Hand(one.paths.folder, {"kind": "cuda", "uuid": "GPU-x"})
        assert hand.device.take() is None
        assert one.runner.poll() is None
        assert processes.marked(one.running().token) != []
        hand.end()

    def test_without_a_usable_folder_it_runs_and_says_so(self, attempt, locks):
        locks.write_text("no folder")
        one = attempt("--virtual-clock", device=cpu()).start()
        _, err = one.runner.communicate(timeout=60)
        outcome = AttemptOutcome.read(one.paths.outcome)
        assert outcome.reason is Reason.TARGET
        assert outcome.observed["lease"].startswith("none: ")
        assert outcome.validity == "valid"
        assert b"no exclusive lease" in err

    def test_the_trainer_does_not_inherit_the_lock(self, attempt):
        one = attempt("--never", device=cpu()).start()
        trainer = one.until_trainer()
        one.until("evaluated")
        open_files = [str(f.readlink()) for f in Path(f"/proc/{trainer}/fd").iterdir()]
        assert not [name for name in open_files if "locks" in name]


class TestGpu:
    def test_an_attempt_on_a_gpu_is_sampled(self, attempt, gpu):
        one = attempt("--never", device=gpu.device, trial_s=2.5).start()
        gpu.set(pids=[one.until_trainer()], memory_bytes=30 * GIB, utilisation=0.9, throttle=4)
        one.until("evaluated")
        time.sleep(1.2)
        gpu.set(pids=[], memory_bytes=GIB // 2)
        outcome = one.finish()
        assert (outcome.outcome, outcome.validity) == (Outcome.CENSORED, "valid")
        assert outcome.observed["telemetry"] == "nvml"
        assert outcome.observed["idle_memory_bytes"] == {gpu.uuid: GIB // 2}
        busy = [s for s in samples(one) if s["memory_bytes"] == 30 * GIB]
        assert busy
        assert busy[0]["utilisation"] == 0.9
        assert busy[0]["power_w"] == 70.0
        assert not any("foreign" in s for s in samples(one))

    def test_a_foreign_process_ends_the_attempt_as_invalid(self, attempt, gpu, stranger):
        one = attempt("--never", device=gpu.device).start().until("evaluated")
        gpu.set(pids=[one.until_trainer(), stranger])
        one.until("evaluated")
        time.sleep(2.5)
        gpu.set(pids=[])
        outcome = one.finish()
        assert (outcome.outcome, outcome.reason) == (Outcome.INVALID, Reason.SHARED_DEVICE)
        assert f"process {stranger} (sleep)" in outcome.message
        assert outcome.validity == "invalid"
        assert one.said("evaluated")

    def test_a_crossing_on_a_shared_device_does_not_count(self, tmp_path, gpu, stranger):
        hand = Hand(tmp_path, gpu.device)
        assert hand.device.take() is None
        gpu.set(pids=[stranger])
        assert hand.look() == ""
        assert hand.device.invalid() is None, "one look may be a process that has just ended"
        assert f"process {stranger}" in hand.look()
        assert hand.device.invalid().reason is Reason.SHARED_DEVICE
        gpu.set(pids=[])
        hand.end()

    def test_processes_of_the_attempt_are_no_strangers(self, tmp_path, gpu):
        marked = subprocess.Popen(
            ["sleep", "60"],
            env={**os.environ, processes.MARKER: "mine"},
            start_new_session=True,
        )
        try:
            hand = Hand(tmp_path, gpu.device, token="mine")
            assert hand.device.take() is None
            gpu.set(pids=[marked.pid, os.getpid(), 2**22 - 1])
            assert [hand.look(session=os.getsid(0)) for _ in range(3)] == ["", "", ""]
            assert hand.device.doubts == []
            gpu.set(pids=[])
            hand.end()
        finally:
            marked.kill()
            marked.wait()

    def test_a_gpu_in_use_before_the_start_is_not_measured_on(self, tmp_path, gpu, stranger):
        gpu.set(pids=[stranger])
        hand = Hand(tmp_path, gpu.device)
        found = hand.device.take()
        assert found.reason is Reason.SHARED_DEVICE
        assert f"process {stranger} (sleep)" in found.message
        assert found.within_s > 0
        gpu.set(pids=[])
        assert hand.device.take() is None
        hand.end()

    def test_memory_that_nobody_shows_is_seen_by_the_devices_own_history(self, tmp_path, gpu):
        first = Hand(tmp_path, gpu.device)
        assert first.device.take() is None
        first.end()
        gpu.set(memory_bytes=20 * GIB)
        second = Hand(tmp_path, gpu.device)
        found = second.device.take()
        assert found.reason is Reason.SHARED_DEVICE
        assert "20480 MiB in use before the start and 512 MiB when idle" in found.message
        gpu.set(memory_bytes=GIB // 2 + (100 << 20))
        assert second.device.take() is None
        second.end()

    def test_somebody_who_came_late_is_seen_at_the_end(self, tmp_path, gpu, stranger, locks):
        hand = Hand(tmp_path, gpu.device)
        assert hand.device.take() is None
        gpu.set(pids=[stranger], memory_bytes=20 * GIB)
        hand.end()
        assert hand.device.invalid().reason is Reason.SHARED_DEVICE
        assert not list(locks.glob("*.quarantine"))

    def test_memory_that_does_not_come_back_is_quarantine(self, attempt, gpu, locks):
        one = attempt("--never", device=gpu.device).start().until("evaluated")
        gpu.set(memory_bytes=9 * GIB)
        write_json(one.paths.control, Control(cancel=True).to_json())
        _, err = one.runner.communicate(timeout=60)
        assert b"is quarantined" in err
        (path,) = locks.glob("*.quarantine")
        gpus = RecordedGpus(gpu.path)
        assert "9216 MiB of its memory were in use" in trouble(gpu.device, gpus)

        outcome = attempt("--virtual-clock", device=gpu.device).start().finish()
        assert (outcome.outcome, outcome.reason) == (Outcome.FAILED, Reason.DEVICE)
        assert "quarantined" in outcome.message
        assert outcome.wall_s < 10

        gpu.set(memory_bytes=GIB // 2)
        assert trouble(gpu.device, gpus) == ""
        assert not path.exists()
        assert (
            attempt("--virtual-clock", device=gpu.device).start().finish().reason is Reason.TARGET
        )

    def test_memory_that_comes_back_late_is_none(self, tmp_path, gpu, locks):
        hand = Hand(tmp_path, gpu.device)
        assert hand.device.take() is None
        gpu.set(memory_bytes=20 * GIB)
        hand.end(meanwhile=lambda: gpu.set(memory_bytes=GIB // 2))
        assert hand.device.doubts == []
        assert not list(locks.glob("*.quarantine"))

    @pytest.mark.parametrize(
        ("hot", "reason", "doubtful"),
        [(0, None, False), (2, None, True), (9, Reason.THROTTLED, True)],
    )
    def test_throttling_by_heat(self, tmp_path, gpu, hot, reason, doubtful):
        hand = Hand(tmp_path, gpu.device)
        assert hand.device.take() is None
        for number in range(20):
            gpu.set(throttle=0x40 if number < hot else 0x4)
            hand.look()
        hand.end()
        found = hand.device.invalid()
        assert (found.reason if found else None) is reason
        assert bool(hand.device.doubts) == doubtful
        assert hand.device.facts()["power_capped_share"] == (20 - hot) / 20

    def test_a_device_that_is_always_hot_is_suspect_and_not_useless(self, tmp_path, gpu):
        reasons = []
        for _ in range(5):
            hand = Hand(tmp_path, gpu.device)
            assert hand.device.take() is None
            gpu.set(throttle=0x20)
            for _ in range(6):
                hand.look()
            hand.end()
            reasons.append(hand.device.invalid().reason if hand.device.invalid() else None)
            assert hand.device.doubts
        assert reasons == [Reason.THROTTLED] * 3 + [None] * 2

    def test_no_driver_degrades_with_a_word(self, attempt, gpu, monkeypatch, tmp_path):
        monkeypatch.setenv("SWEEP_NVML", str(tmp_path / "no-such-library.so"))
        one = attempt("--virtual-clock", device=gpu.device).start()
        _, err = one.runner.communicate(timeout=60)
        outcome = AttemptOutcome.read(one.paths.outcome)
        assert (outcome.reason, outcome.validity) == (Reason.TARGET, "valid")
        assert outcome.observed["telemetry"].startswith("none: no NVIDIA driver")
        assert err.count(b"\n") == 1
        assert b"no telemetry" in err

    def test_a_driver_that_stops_to_answer_does_not_stop_the_attempt(self, tmp_path, gpu):
        hand = Hand(tmp_path, gpu.device)
        assert hand.device.take() is None
        gpu.path.unlink()
        assert hand.look() == ""
        hand.end()
        assert hand.device.facts()["telemetry"].startswith("lost: ")

    @pytest.mark.long
    def test_out_of_memory_beside_a_stranger_is_not_the_configurations_fault(
        self, attempt, gpu, stranger
    ):
        one = attempt(
            "--crash-at", "400", "--stderr", "CUDA out of memory", device=gpu.device
        ).start()
        one.until("evaluated")
        gpu.set(pids=[stranger])
        outcome = one.finish()
        gpu.set(pids=[])
        assert outcome.reason is Reason.SHARED_DEVICE


class TestProcessors:
    def test_shares_of_a_core(self, attempt):
        one = attempt("--never", device=cpu(), trial_s=3.0).start().until("evaluated")
        outcome = one.finish()
        assert outcome.observed["telemetry"] == "kernel"
        found = samples(one)
        assert found
        assert {s["device"] for s in found} == {f"cores {CORE}"}
        assert all(0 <= s["utilisation"] <= 1 and 0 <= s["steal_share"] <= 1 for s in found)

    def test_others_on_the_core_make_it_suspect_and_nothing_more(self, attempt):
        spin = "import os, sys\nos.sched_setaffinity(0, [int(sys.argv[1])])\nwhile True: pass"
        hog = subprocess.Popen([sys.executable, "-S", "-c", spin, str(CORE)])
        try:
            outcome = attempt("--never", device=cpu(), trial_s=6.0).start().finish()
        finally:
            hog.kill()
            hog.wait()
        assert (outcome.outcome, outcome.validity) == (Outcome.CENSORED, "suspect")
        assert outcome.observed["foreign_share"] > 0.1
        assert any("other processes used" in doubt for doubt in outcome.observed["doubts"])

    def test_the_trainers_own_work_is_not_foreign(self, tmp_path):
        hand = Hand(tmp_path, cpu())
        watch, began_at = hand.device._watch, time.monotonic()
        spin = "import time\nend = time.process_time() + 0.6\nwhile time.process_time() < end: pass"
        watch.cores([CORE], os.getpid(), 0.0)
        subprocess.run(["taskset", "-c", str(CORE), sys.executable, "-S", "-c", spin], check=True)
        elapsed_s = time.monotonic() - began_at
        watch.cores([CORE], os.getpid(), elapsed_s)
        (sample,) = [json.loads(line) for line in hand.path.read_text().splitlines()]
        assert sample["utilisation"] > 0.4 / elapsed_s
        assert sample["utilisation"] - sample["foreign_share"] > 0.4 / elapsed_s

    def test_what_could_not_be_ended_quarantines_the_core(self, tmp_path, stranger):
        hand = Hand(tmp_path, cpu())
        assert hand.device.take() is None
        hand.end(leftovers=[stranger])
        assert f"process {stranger} (sleep) could not be ended" in trouble(cpu(), None)
        assert quarantine.standing(f"core-{CORE}", None)


class TestRemoteLease:
    def test_an_attempt_that_nobody_wants_any_more_ends_itself(self, attempt):
        outcome = attempt("--never", lease_s=1.0).start().finish()
        assert (outcome.outcome, outcome.reason) == (Outcome.FAILED, Reason.LOST)
        assert "not renewed for 1 s" in outcome.message

    def test_a_lease_that_is_renewed_goes_on(self, attempt):
        one = attempt("--never", lease_s=2.0).start()
        until = time.monotonic() + 5.0
        while time.monotonic() < until:
            one.paths.lease.touch()
            assert one.runner.poll() is None
            time.sleep(0.2)
        one.paths.lease.unlink()
        assert one.finish().reason is Reason.LOST
