"""Sweeps under a monkey, and under single nasty things that a monkey would meet too rarely."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sweeper.runner import processes
from sweeper.storage.sql import open_store
from tests.chaos import battle, checker
from tests.chaos.arena import COMPLETE, MOODS, ROOT, arena, mount, wait_until
from tests.chaos.proxy import LosingProxy

WITHIN_S = 240.0


@pytest.fixture
def place():
    folder = Path(tempfile.mkdtemp(prefix="sweep-chaos-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def sweep(place, database_url):
    """`sweep(...)`: a dozen well behaved trials, in a database that has its tables."""
    with contextlib.ExitStack() as closing:

        def make(**options):
            open_store(database_url, create=True).close()
            asked = {"trials": 13, "seed": 1, "slots": 2, "manners": False, "cap": False} | options
            return closing.enter_context(arena(place, url=database_url, **asked))

        yield make


def found(one, url, **more):
    report = checker.check(replace(battle.evidence(one, url), **more))
    report.problems += checker.leftovers(one.name, one.home, places=(one.study.parent,))
    return report


def trainers_at_work(one):
    return [running for _, running in one.under_way() if running["trainer"]]


def log(one):
    return one.log.read_text(encoding="utf-8", errors="replace")


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_monkey(place):
    """Eight faults, warm and cold trainers; longer ones follow, and bench/chaos.py."""
    report, monkey = battle.fight(place, seed=7, faults=8, trials=25, module=True)
    assert report.problems == [], str(report)
    assert len(monkey.done) >= 5
    assert report.figures["warm_starts"] > 0


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_monkey_for_longer(place):
    """Through all three stages."""
    report, monkey = battle.fight(place, seed=11, faults=45, trials=130, module=True, verb="run")
    assert report.problems == [], str(report)
    assert len(monkey.done) >= 20  # how many find something to hit depends on the machine
    assert set(report.figures["trials_by_stage"]) == set(checker.STAGES)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_runner_that_wakes_up_after_it_was_given_up(sweep, database_url):
    """Frozen between its start and its claim, its orchestrator killed: it finds that it is too late."""
    one = sweep(slots=1, tau_s=0.2)
    first = one.start(cold=True)
    wait_until(lambda: one.outcomes() >= 1, WITHIN_S, "the first trial")

    def unclaimed():
        for process in one.ours():
            command = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
            spec = next((Path(os.fsdecode(w)) for w in command if w.endswith(b"spec.json")), None)
            if spec is not None and not (spec.parent / "running.json").exists():
                processes.send(process, signal.SIGSTOP)
                if not (spec.parent / "running.json").exists():
                    return process
                processes.send(process, signal.SIGCONT)
        return None

    deadline = time.monotonic() + WITHIN_S
    frozen = None
    while frozen is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            frozen = unclaimed()
    assert frozen is not None
    first.kill()
    first.wait()
    before = one.outcomes()
    second = one.start()
    wait_until(lambda: one.outcomes() >= before + 2, WITHIN_S, "the sweep to go on")
    processes.send(frozen, signal.SIGCONT)
    assert second.wait(WITHIN_S) in COMPLETE
    report = found(one, database_url)
    assert report.problems == [], str(report)
    assert report.figures["attempts_by_reason"]["lost"] == 1
    assert report.figures["trainers"] == report.figures["trials"]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_wall_clocks_that_jump(sweep, database_url):
    """In the orchestrator and in every runner: no limit, lease or clock of a trial may notice."""
    one = sweep(tau_s=0.1)
    jumps = one.folder / "jumps"
    jumps.mkdir()
    (jumps / "sitecustomize.py").write_text(
        "import random, time\n"
        "true_time = time.time\n"
        "time.time = lambda: true_time() + random.choice((-2e5, -3, 0, 7, 2e5))\n"
    )
    one.env["PYTHONPATH"] = f"{jumps}{os.pathsep}{ROOT}"
    assert one.start().wait(WITHIN_S) in COMPLETE
    report = found(one, database_url, wall_clock_is_true=False)
    assert report.problems == [], str(report)
    assert report.figures["attempts_by_reason"] == {"target": report.figures["trials"]}
    started = [json.loads(p.read_text())["started_at"] for p in one.runs.rglob("running.json")]
    assert max(started) - min(started) > 1e5, "the clocks did not jump"


@pytest.mark.long
@pytest.mark.timeout(300)
def test_unicode_and_spaces_all_the_way(sweep, database_url):
    """In the paths of home, study and configuration, and in values: from the study to the tables."""
    one = sweep()
    assert one.start().wait(WITHIN_S) in COMPLETE
    assert " " in str(one.home)
    assert "☃" in str(one.home)
    rows = checker.read_tables(battle.evidence(one, database_url))
    assert {row["point"]["model.mood"] for row in rows.values()} == set(MOODS)
    export = one.folder / "täble.jsonl"
    words = ("export", str(one.study), "--trials", "--out", str(export))
    assert one.start(*words).wait(WITHIN_S) == 0
    lines = [json.loads(line) for line in export.read_text(encoding="utf-8").splitlines()]
    assert {line["point"]["model.mood"] for line in lines} == set(MOODS)
    assert found(one, database_url).problems == []


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_trial_folder_that_is_deleted_while_it_runs(sweep, database_url):
    one = sweep(tau_s=0.5)
    process = one.start()
    wait_until(lambda: len(trainers_at_work(one)) == 2, WITHIN_S, "two trials")
    gone = frozenset(folder for folder, _ in one.under_way())
    for folder in gone:
        shutil.rmtree(folder, ignore_errors=True)
    assert process.wait(WITHIN_S) in COMPLETE
    report = found(one, database_url, gone=gone)
    assert report.problems == [], str(report)
    assert report.figures["attempts_by_reason"]["lost"] == len(gone)


@pytest.fixture
def disk(place):
    """Mounts a small file system where the run folders are; needs root."""
    mounted = []

    def put(one):
        if not mount(one.home / "runs"):
            pytest.skip("mounting a file system needs root")
        mounted.append(one.home / "runs")
        return one.home / "runs"

    yield put
    for where in mounted:
        subprocess.run(["umount", "-l", str(where)], check=False, capture_output=True)


@pytest.mark.timeout(300)
@pytest.mark.long
def test_run_folders_on_a_read_only_mount(sweep, disk, database_url):
    one = sweep()
    runs = disk(one)
    words = ("stage1", str(one.study), "--slots", "2")
    assert one.start(*words, "--max-trials", "3").wait(WITHIN_S) == 6
    subprocess.run(["mount", "-o", "remount,ro", str(runs)], check=True)
    assert one.start(*words).wait(WITHIN_S) == 3
    subprocess.run(["mount", "-o", "remount,rw", str(runs)], check=True)
    assert "the file system is read-only" in log(one)
    assert one.start(*words).wait(WITHIN_S) in COMPLETE
    report = found(one, database_url)
    assert report.problems == [], str(report)


@pytest.mark.timeout(300)
@pytest.mark.long
def test_run_folders_whose_mount_vanishes(sweep, disk, database_url):
    """What ran is lost, and nothing is started on whatever lies below the mount."""
    one = sweep(tau_s=0.5)
    runs = disk(one)
    process = one.start()
    wait_until(lambda: one.outcomes() >= 1 and trainers_at_work(one), WITHIN_S, "a trial")
    kept = one.folder / "kept"
    kept.mkdir()
    subprocess.run(["mount", "--bind", str(runs), str(kept)], check=True)
    try:
        subprocess.run(["umount", "-l", str(runs)], check=True)
        assert process.wait(WITHIN_S) == 3
        assert (
            one.start().wait(WITHIN_S) == 3
        )  # still not there: nothing is given up, nothing started
        assert "is what it was on still mounted?" in log(one)
        assert list(runs.iterdir()) == []
        subprocess.run(["mount", "--bind", str(kept), str(runs)], check=True)
        assert one.start().wait(WITHIN_S) in COMPLETE
        report = found(one, database_url)
        assert report.problems == [], str(report)
    finally:
        subprocess.run(["umount", "-l", str(kept)], check=False)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_database_that_is_away_while_trials_run(place, database_url):
    """Its socket is cut: trainers do not notice, and every event is there afterwards."""
    open_store(database_url, create=True).close()
    with tempfile.TemporaryDirectory(prefix="sweep-proxy-") as folder:
        proxy = LosingProxy(database_url, Path(folder))
        with arena(
            place, url=proxy.url, trials=13, seed=1, slots=2, manners=False, cap=False, tau_s=0.5
        ) as one:
            process = one.start()
            wait_until(lambda: len(trainers_at_work(one)) == 2, WITHIN_S, "two trials")
            before = one.outcomes()
            proxy.go_away()
            wait_until(lambda: one.outcomes() >= before + 2, WITHIN_S, "trials that end meanwhile")
            # Optuna tries again for some seconds before it says anything
            wait_until(lambda: "waiting for it" in log(one), WITHIN_S, "the loop to notice")
            assert process.poll() is None
            proxy.come_back()
            assert process.wait(WITHIN_S) in COMPLETE
            assert "is back after" in log(one)
            report = found(one, database_url)
            assert report.problems == [], str(report)
            target = {"target": report.figures["trials"]}
            assert report.figures["attempts_by_reason"] == target
        proxy.close()


def test_durations_never_come_from_the_wall_clock():
    """No reading of the wall clock is subtracted, added to or compared, anywhere in the program."""
    import ast

    def reads_wall(node):
        return (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("time", "time_ns", "now", "utcnow", "today")
            and ast.unparse(node.func.value).rpartition(".")[2] in ("time", "datetime", "date")
        )

    wrong, stamps = [], 0
    for path in [*(ROOT / "sweeper").rglob("*.py"), *(ROOT / "trainer").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            stamps += reads_wall(node)
            operands = (
                [node.left, node.right]
                if isinstance(node, ast.BinOp)
                else [node.left, *node.comparators]
                if isinstance(node, ast.Compare)
                else []
            )
            if any(reads_wall(operand) for operand in operands):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert stamps > 0
    assert wrong == []


def test_the_monkeys_order_is_its_seeds(place):
    from tests.chaos.monkey import Monkey

    with arena(place, trials=13, seed=1) as one:
        first, again, other = (Monkey(one, seed, 30, 13).order for seed in (5, 5, 6))
    assert first == again != other
