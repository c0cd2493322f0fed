"""One attempt from spec to outcome, with a real runner and a real trainer."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import time

import pytest

from sweeper.events import fold_lines
from sweeper.objective import crossing
from sweeper.paths import write_json
from sweeper.runner import processes
from sweeper.spec import Control
from sweeper.trial import Outcome, Reason


def curve(one):
    return fold_lines(one.paths.events.read_bytes().splitlines(), "val_loss").curve


def test_reaching_the_target(attempt):
    one = attempt("--virtual-clock").start()
    outcome = one.finish()
    assert (outcome.outcome, outcome.reason) == (Outcome.REACHED, Reason.TARGET)
    assert (outcome.exit_code, outcome.signal, outcome.clock_source) == (0, None, "trainer")
    found = crossing(curve(one), 2.0, "train")
    assert found.seconds == pytest.approx(math.log(3), abs=0.01)
    events = one.events()
    assert [e["seq"] for e in events] == list(range(len(events)))
    assert (events[0]["event"], events[-1]["event"]) == ("run_started", "run_finished")
    assert events[-1]["clock"]["train"] == pytest.approx(1.1)


def test_files_are_private_and_the_runner_says_who_it_is(attempt):
    one = attempt("--virtual-clock").start()
    one.finish()
    for path in one.paths.folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    known = one.running()
    assert known.pid == one.runner.pid
    assert known.trainer is not None


def test_the_trainer_gets_its_environment(attempt, monkeypatch, tmp_path):
    monkeypatch.setenv("TO_REMOVE", "x")
    names = ["SWEEP_EVENTS", "SWEEP_RUN_DIR", "SWEEP_TARGET", "SWEEP_MAX_STEPS", "SWEEP_ATTEMPT"]
    names += ["PYTHONUNBUFFERED", "TO_REMOVE", "ADDED", "PLACE"]
    code = (
        "import json, os, signal, sys\n"
        f"got = {{n: os.environ.get(n) for n in {names}}}\n"
        "got['stdin'] = sys.stdin.read(); got['sid'] = os.getsid(0) == os.getpid()\n"
        "got['cwd'] = os.getcwd(); got['hup'] = signal.getsignal(signal.SIGHUP) == signal.SIG_DFL\n"
        "got['descriptors'] = sorted(map(int, os.listdir('/proc/self/fd')))\n"
        "got['cores'] = sorted(os.sched_getaffinity(0)); got['nice'] = os.nice(0)\n"
        "print(json.dumps(got))\n"
    )
    core = min(os.sched_getaffinity(0))
    one = attempt(
        argv=[sys.executable, "-c", code],
        env={"TO_REMOVE": None, "ADDED": "a b 'ü'", "PLACE": "{run_dir}"},
        device={"cores": [core]},
    ).start()
    outcome = one.finish()
    got = json.loads(one.paths.stdout.read_text())
    assert got["SWEEP_EVENTS"] == str(one.paths.raw_events)
    assert got["SWEEP_RUN_DIR"] == str(one.paths.folder)
    assert (got["SWEEP_TARGET"], got["SWEEP_MAX_STEPS"]) == ("2.0", "100000")
    assert got["SWEEP_ATTEMPT"] == one.running().token
    assert (got["PYTHONUNBUFFERED"], got["TO_REMOVE"], got["ADDED"]) == ("1", None, "a b 'ü'")
    assert got["PLACE"] == "{run_dir}"
    assert (got["stdin"], got["sid"], got["hup"]) == ("", True, True)
    assert got["cwd"] == str(tmp_path)
    assert got["cores"] == [core]
    assert got["nice"] == os.nice(0)
    assert set(got["descriptors"]) <= {0, 1, 2, 3}  # 3 is the listing itself
    assert outcome.device == {"cores": [core]}
    assert outcome.reason is Reason.CRASHED
    assert "without one evaluation of 'val_loss'" in outcome.message


def test_steps_used_up(attempt):
    outcome = attempt("--virtual-clock", "--never", max_steps=20).start().finish()
    assert (outcome.outcome, outcome.reason) == (Outcome.CENSORED, Reason.STEPS)


def test_no_target_at_all(attempt):
    one = attempt("--virtual-clock", target=None, max_steps=20)
    outcome = one.start().finish()
    assert outcome.reason is Reason.STEPS


def test_a_finished_run_without_a_last_word_still_counts(attempt):
    outcome = attempt("--virtual-clock", "--never", "--no-finish", max_steps=20).start().finish()
    assert outcome.reason is Reason.STEPS


def test_a_torn_last_line_is_dropped(attempt):
    one = attempt("--virtual-clock", "--never", "--torn", max_steps=20).start()
    outcome = one.finish()
    assert (outcome.reason, outcome.ignored_events) == (Reason.STEPS, 0)


def test_a_torn_line_elsewhere_is_counted_and_warned_about(attempt):
    one = attempt("--virtual-clock", "--corrupt-at", "7").start()
    outcome = one.finish()
    assert (outcome.reason, outcome.ignored_events) == (Reason.TARGET, 1)
    assert [w["kind"] for w in one.said("warning")] == ["protocol"]


def test_unknown_events_and_fields_are_ignored_and_counted(attempt):
    one = attempt("--virtual-clock", "--unknown").start()
    outcome = one.finish()
    assert (outcome.reason, outcome.ignored_events) == (Reason.TARGET, 1)
    assert one.said("warning") == []


def test_a_claimed_target_that_was_not_reached_is_no_success(attempt):
    outcome = attempt("--virtual-clock", "--claim-target-at", "10").start().finish()
    assert (outcome.outcome, outcome.reason) == (Outcome.FAILED, Reason.CRASHED)
    assert "says that it reached the target" in outcome.message


def test_a_crash_after_the_crossing_does_not_undo_it(attempt):
    options = ("--virtual-clock", "--reach-at", "10", "--go-on", "--crash-at", "11")
    outcome = attempt(*options).start().finish()
    assert (outcome.reason, outcome.exit_code) == (Reason.TARGET, 1)


def test_a_trainer_that_goes_on_after_its_target_is_stopped(attempt):
    one = attempt("--reach-at", "10", "--go-on").start()
    outcome = one.finish()
    assert (outcome.reason, outcome.signal) == (Reason.TARGET, signal.SIGTERM)


def test_a_trainer_that_does_not_exit_after_its_last_event(attempt):
    options = ("--virtual-clock", "--hang-after-finish")
    outcome = attempt(*options, grace_s=1.0).start().finish()
    assert (outcome.reason, outcome.signal) == (Reason.TARGET, signal.SIGTERM)


@pytest.mark.parametrize("options", [(), ("--foreign",)])
def test_nan_is_divergence(attempt, options):
    one = attempt("--nan-at", "10", *options).start()
    outcome = one.finish()
    assert (outcome.outcome, outcome.reason) == (Outcome.CENSORED, Reason.DIVERGED)
    assert one.said("evaluated")[-1]["metrics"] == {"val_loss": None}


def test_a_crash_keeps_the_end_of_stderr(attempt):
    options = ("--crash-at", "3", "--exit-code", "7", "--stderr", "ValueError: \udcff ü boom")
    outcome = attempt(*options).start().finish()
    assert (outcome.reason, outcome.exit_code) == (Reason.CRASHED, 7)
    assert outcome.message.startswith("exit code 7: ValueError")
    assert "boom" in outcome.stderr_tail


def test_a_segmentation_fault(attempt):
    outcome = attempt("--crash-at", "3", "--signal", str(int(signal.SIGSEGV))).start().finish()
    assert (outcome.reason, outcome.signal, outcome.exit_code) == (
        Reason.CRASHED,
        signal.SIGSEGV,
        None,
    )
    assert "SIGSEGV" in outcome.message


def test_out_of_host_memory(attempt):
    outcome = attempt("--eat-memory", "1024").start().finish()
    assert (outcome.reason, outcome.outcome) == (Reason.OOM, Outcome.FAILED)


def test_out_of_device_memory(attempt):
    text = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert attempt("--crash-at", "3", "--stderr", text).start().finish().reason is Reason.OOM


def test_the_trainer_says_that_its_configuration_is_wrong(attempt):
    options = ("--crash-at", "0", "--fail-class", "config", "--exit-code", "2")
    outcome = attempt(*options).start().finish()
    assert (outcome.reason, outcome.message) == (Reason.CONFIG, "as asked")


def test_a_trainer_that_prints_garbage(attempt):
    outcome = attempt("--garbage").start().finish()
    assert outcome.reason is Reason.CRASHED
    assert outcome.message.startswith("the trainer printed garbage: expected")
    assert outcome.ignored_events > 10


def test_a_metric_that_the_trainer_does_not_have(attempt):
    outcome = attempt("--virtual-clock", "--no-metric", max_steps=20).start().finish()
    assert outcome.reason is Reason.CRASHED
    assert "without one evaluation of 'val_loss'" in outcome.message


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ({"argv": ["no-such-program-here"]}, "'no-such-program-here' does not exist"),
        ({"argv": ["/etc/passwd"]}, "may not be executed"),
        ({"cwd": "/no/such/folder"}, "'/no/such/folder' is no folder"),
        ({"argv": []}, "cannot be started"),
        ({"reader": "patterns", "patterns": {"step": "(unclosed"}}, "(unclosed"),
    ],
)
def test_a_trainer_that_cannot_be_started(attempt, spec, word):
    outcome = attempt(**spec).start().finish()
    assert (outcome.outcome, outcome.reason) == (Outcome.FAILED, Reason.ENVIRONMENT)
    assert word in outcome.message
    assert outcome.exit_code is None


def test_a_script_without_an_interpreter(attempt, tmp_path):
    script = tmp_path / "train.sh"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    outcome = attempt(argv=[str(script)]).start().finish()
    assert outcome.reason is Reason.ENVIRONMENT
    assert "interpreter in the first line" in outcome.message


# -- limits ----------------------------------------------------------------------------------------


def test_the_cap_stops_at_the_first_evaluation_after_it(attempt):
    one = attempt("--never", "--eval-every", "10", cap_s=0.5).start()
    outcome = one.finish()
    assert (outcome.outcome, outcome.reason, outcome.cap_s) == (Outcome.CENSORED, Reason.CAP, 0.5)
    stamps = [e["clock"]["train"] for e in one.said("evaluated")]
    assert stamps[-2] < 0.5 <= stamps[-1]


def test_a_cap_is_lowered_while_the_trial_runs_and_torn_files_are_ignored(attempt, eventually):
    one = attempt("--never", cap_s=1000.0).start().until("evaluated")
    one.paths.control.write_text('{"v": 1, "cap_s": 0.')
    eventually(lambda: one.said("warning"), "a note about the torn file")
    assert "control.json ignored" in one.said("warning")[0]["message"]
    write_json(one.paths.control, {"v": 1, "cap_s": "soon"})
    eventually(lambda: len(one.said("warning")) == 2, "a note about the wrong file")
    write_json(one.paths.control, Control(cap_s=0.25).to_json())
    outcome = one.finish()
    assert (outcome.reason, outcome.cap_s) == (Reason.CAP, 0.25)


def test_a_cap_without_evaluations_has_a_backstop(attempt):
    one = attempt("--never", "--eval-every", "1000000", cap_s=0.4).start()
    outcome = one.finish()
    assert outcome.reason is Reason.CAP
    assert "without an evaluation" in outcome.message


def test_startup_limit(attempt):
    outcome = attempt("--startup", "60", startup_s=0.3).start().finish()
    assert outcome.reason is Reason.HUNG
    assert "startup_s" in outcome.message


def test_compile_time_is_not_the_trials(attempt):
    outcome = attempt("--compile", "1.2", "--virtual-clock", trial_s=1.15).start().finish()
    assert outcome.reason is Reason.TARGET


def test_silence_limit(attempt):
    outcome = attempt("--hang-at", "3", silence_s=0.4).start().finish()
    assert outcome.reason is Reason.HUNG
    assert "silence_s" in outcome.message


def test_a_clock_that_stands_still_does_not_outrun_the_wall(attempt):
    options = ("--never", "--virtual-clock", "--step-every", "0", "--hang-at", "5")
    one = attempt(*options, trial_s=0.6, grace_s=0.2).start()
    outcome = one.finish()
    assert outcome.reason is Reason.TIMEOUT
    assert "on the wall" in outcome.message


def test_drain_lets_the_trainer_checkpoint(attempt):
    one = attempt("--never", "--drain", grace_s=10.0).start().until("evaluated")
    write_json(one.paths.control, Control(drain=True).to_json())
    outcome = one.finish()
    assert (outcome.outcome, outcome.reason) == (Outcome.CENSORED, Reason.BUDGET)
    assert outcome.exit_code == 0
    assert one.said("checkpoint_saved")


# -- foreign writers -------------------------------------------------------------------------------


def test_a_writer_without_a_clock_gets_the_runners(attempt):
    one = attempt("--no-clock", "--tau-s", "0.4").start()
    outcome = one.finish()
    assert (outcome.reason, outcome.clock_source) == (Reason.TARGET, "runner")
    first, last = curve(one)[0], curve(one)[-1]
    assert first.clock.train == 0.0
    assert last.clock.train > 0.2
    assert last.clock.startup > 0


PATTERNS = {
    "evaluated": r"step (?P<step>\d+): train loss [\d.]+, val loss (?P<val_loss>[\d.]+|nan)",
    "step": r"iter (?P<step>\d+): loss (?P<loss>[\d.]+), time (?P<step_ms>[\d.]+)ms",
}


def test_a_script_is_read_through_patterns_and_stopped_at_its_target(attempt):
    one = attempt(
        "--print-patterns", "--go-on", "--tau-s", "0.3", reader="patterns", patterns=PATTERNS
    ).start()
    outcome = one.finish()
    assert (outcome.reason, outcome.clock_source) == (Reason.TARGET, "trainer")
    assert outcome.signal == signal.SIGTERM
    assert crossing(curve(one), 2.0, "train").seconds == pytest.approx(0.3 * math.log(3), abs=0.02)


def test_patterns_without_a_clock_get_the_runners(attempt):
    patterns = {"evaluated": PATTERNS["evaluated"]}
    one = attempt(
        "--print-patterns", "--tau-s", "0.3", reader="patterns", patterns=patterns
    ).start()
    outcome = one.finish()
    assert (outcome.reason, outcome.clock_source) == (Reason.TARGET, "runner")


def test_a_nan_that_a_script_prints(attempt):
    one = attempt("--print-patterns", "--nan-at", "5", reader="patterns", patterns=PATTERNS)
    assert one.start().finish().reason is Reason.DIVERGED


def test_output_that_no_pattern_matches(attempt):
    patterns = {"x": "(?P<val_loss>never)"}
    one = attempt("--print-patterns", "--virtual-clock", reader="patterns", patterns=patterns)
    outcome = one.start().finish()
    assert outcome.reason is Reason.CRASHED
    assert "without one evaluation" in outcome.message


# -- hostile edges ---------------------------------------------------------------------------------


def test_a_ten_megabyte_line_and_a_flood(attempt):
    one = attempt("--virtual-clock", "--long-line", "10", "--flood", "50000").start()
    outcome = one.finish()
    assert outcome.reason is Reason.TARGET
    assert (outcome.ignored_events, outcome.events > 50_000) == (1, True)
    assert one.paths.events.stat().st_size < 1_000_000
    assert len(one.said("step")) < 60


def test_unicode_and_spaces_in_every_path(attempt, tmp_path):
    folder = tmp_path / "läuft gut 'x' $HOME ☃"
    folder.mkdir()
    one = attempt("--virtual-clock", cwd=str(folder), run_dir=str(folder))
    one.paths = type(one.paths)(folder)
    assert one.start().finish().reason is Reason.TARGET


def test_a_run_folder_that_is_deleted_while_the_trial_runs(attempt, eventually):
    one = attempt("--never", "--grandchild").start().until("evaluated")
    token, grandchild = one.running().token, one.child("grandchild")
    trainer = one.until_trainer()
    shutil.rmtree(one.paths.folder)
    code, err = one.exit()
    assert code == 74
    assert "cannot be used" in err
    assert processes.marked(token) == []
    assert processes.look_at(trainer) is None
    assert processes.look_at(grandchild) is None


def test_a_run_folder_that_was_deleted_and_made_anew_is_no_longer_its_own(attempt):
    """Whoever gave the attempt up has left an outcome there, which the runner must not replace."""
    one = attempt("--never").start().until("evaluated")
    trainer = one.until_trainer()
    shutil.rmtree(one.paths.folder)
    one.paths.folder.mkdir()
    one.paths.outcome.write_text("given up")
    code, err = one.exit()
    assert code == 74
    assert "made anew by others" in err
    assert processes.look_at(trainer) is None
    assert [path.name for path in one.paths.folder.iterdir()] == ["outcome.json"]
    assert one.paths.outcome.read_text() == "given up"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB; needs root."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)],
        capture_output=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_ends_the_trainer_and_is_said(attempt, small_disk):
    folder = small_disk / "run"
    one = attempt("--never", run_dir=str(folder), max_steps=1_000_000)
    one.paths = type(one.paths)(folder)
    one.start().until("evaluated")
    (small_disk / "ballast").write_bytes(b"x" * 100_000)
    with (small_disk / "rest").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 512)
        except OSError:
            pass
    token = one.running().token
    code, err = one.exit()
    assert processes.marked(token) == []
    if code == 74:
        assert "No space left" in err
    else:  # the trainer itself could not write, and the outcome still fitted
        assert code == 0
    # Whole or not at all: there is an outcome that can be read, or none.
    if one.paths.outcome.exists():
        json.loads(one.paths.outcome.read_text())


def test_a_read_only_run_folder(attempt, small_disk):
    folder = small_disk / "run"
    one = attempt("--virtual-clock", run_dir=str(folder))
    one.paths = type(one.paths)(folder)
    folder.mkdir()
    write_json(one.paths.spec, one.spec.to_json())
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    one.runner = subprocess.Popen(
        [sys.executable, "-m", "sweeper.runner", str(one.paths.spec)], stderr=subprocess.PIPE
    )
    code, err = one.exit()
    assert code == 74
    assert "Read-only" in err


# -- safe to repeat --------------------------------------------------------------------------------


def test_an_attempt_that_has_ended_is_not_run_again(attempt):
    one = attempt("--virtual-clock").start()
    first = one.finish()
    assert one.start().finish() == first


def test_a_second_runner_on_the_same_attempt_is_refused(attempt):
    one = attempt("--never").start().until("evaluated")
    first = one.runner
    one.start()
    code, err = one.exit()
    assert code == 75
    assert "another runner" in err
    one.runner = first
    first.terminate()
    one.finish()


@pytest.mark.parametrize("text", ["", "{", '{"v": 2}', '{"v": 1, "study": "x"}', "[]"])
def test_a_spec_that_is_none(attempt, tmp_path, text):
    path = tmp_path / "spec.json"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "sweeper.runner", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("runner: ")
    assert "Traceback" not in done.stderr


def test_the_wall_clock_may_jump(attempt):
    """Durations are monotonic: `time.time` is asked for stamps only."""
    before = time.time()
    outcome = attempt("--virtual-clock").start().finish()
    assert before - 1 <= outcome.started_at <= outcome.ended_at <= time.time() + 1
    assert 0 < outcome.wall_s < 60
