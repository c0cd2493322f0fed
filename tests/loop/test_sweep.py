"""The loop on simulated attempts: real files, virtual time, a store and a search in memory."""

import json
import math
import threading
import time

import pytest

from sweeper import attempts
from sweeper.commands.status import status_document
from sweeper.curve import Curve
from sweeper.errors import DatabaseGone, DiskUnusable, PlanError, StudyBusy
from sweeper.executors.simulated import SimulatedExecutor
from sweeper.paths import Home
from sweeper.report.lines import QuietProgress
from sweeper.search.memory import MemorySearch
from sweeper.spec import CANCELLED, AttemptOutcome, Control
from sweeper.stages import Stage1
from sweeper.storage.memory import MemoryStore
from sweeper.study_file import load
from sweeper.sweep import Budget, StageRun, Stop
from sweeper.trial import Outcome, Reason

STUDY = """
[study]
name = "toy"
[objective]
target = 2.0
fallback = [2.5]
[trainer]
command = ["{python}", "-c", "pass", "--lr={lr}", "--batch={batch}"]
[limits]
steps = 100
trial_s = 50
[resources]
gpus = 0
[space.lr]
type = "float"
low = 0.001
high = 0.1
scale = "log"
baseline = 0.01
[space.batch]
type = "int"
low = 16
high = 128
baseline = 64
[racing]
cap = CAP
[[stage1.group]]
name = "A"
vary = { lr = [0.003, 0.01, 0.03] }
[[stage1.group]]
name = "B"
best_of = { group = "A", parameters = ["lr"] }
vary = { batch = [16, 32, 128] }
[stage2]
from_top = 2
"""


def argument(spec, name):
    return float(next(a for a in spec.argv if a.startswith(f"--{name}=")).partition("=")[2])


def seconds_of(spec):
    lr, batch = argument(spec, "lr"), argument(spec, "batch")
    return 10 * (1 + math.log10(lr / 0.01) ** 2) * (1 + math.log2(batch / 64) ** 2 / 4)


def play(spec, *, floor=1.0, fail=None):
    """Loss falls from 4 towards `floor`, reaching 2.0 after `seconds_of`; obeys the cap."""
    reason = fail(spec) if fail else None
    wall_s = seconds_of(spec)
    lines, seq = [], 0

    def line(event, t, **more):
        nonlocal seq
        step = round(t * 10)
        clock = {"train": t}
        lines.append(
            json.dumps(
                {"v": 1, "seq": seq, "event": event, "step": step, "tokens": step, "clock": clock}
                | more
            )
        )
        seq += 1

    if reason is None:
        tau = wall_s / math.log((4 - floor) / (2 - floor)) if floor < 2 else 5.0
        reason, t = Reason.TIMEOUT, 0.0
        while t <= spec.trial_s:
            loss = floor + (4 - floor) * math.exp(-t / tau)
            line("evaluated", t, metrics={"val_loss": loss})
            if loss <= spec.target:
                reason = Reason.TARGET
                break
            if spec.cap_s is not None and t >= spec.cap_s:
                reason = Reason.CAP
                break
            t += 0.5
        wall_s = t
    from sweeper.trial import OUTCOME_OF

    return lines, AttemptOutcome(
        study=spec.study,
        trial=spec.trial,
        attempt=spec.attempt,
        outcome=OUTCOME_OF[reason],
        reason=reason,
        message="simulated",
        exit_code=0,
        signal=None,
        started_at=1e9,
        ended_at=1e9 + wall_s,
        wall_s=wall_s,
        cap_s=spec.cap_s if reason is Reason.CAP else None,
    )


class Bench:
    """One study with everything around it, to be run again and again."""

    def __init__(self, tmp_path, *, cap=False, player=play, slots=1):
        folder = tmp_path / "study"
        folder.mkdir(exist_ok=True)
        (folder / "study.toml").write_text(STUDY.replace("CAP", str(cap).lower()))
        self.study = load(folder / "study.toml")
        self.home = Home(tmp_path / "home")
        self.store = MemoryStore()
        self.search = MemorySearch()
        self.executor = SimulatedExecutor(player, slots=slots)
        self.names = []

    def run(self, **more):
        lease = self.store.acquire("toy", "tests", ttl_s=60)

        def open_search(name):
            self.names.append(name)
            return self.search

        try:
            return StageRun(
                study=self.study,
                stage=Stage1(self.study, keep=2),
                search=open_search,
                executor=self.executor,
                home=self.home,
                lease=lease,
                progress=QuietProgress(),
                target=2.0,
                **{"store": self.store, "first_rest_s": 0.0} | more,
            ).run()
        finally:
            self.store.release(lease)


def outcomes(end):
    return {f.trial.id: f.counted.outcome for f in end.facts if f.counted}


def test_a_stage_runs_to_its_end_and_finds_the_best(tmp_path):
    bench = Bench(tmp_path)
    end = bench.run()
    assert end.ending == "complete"
    assert end.record.closed_at is not None
    assert set(outcomes(end).values()) == {Outcome.REACHED}
    best = min(end.facts, key=lambda f: f.counted.phases.train)
    assert best.trial.point["lr"] == 0.01
    # group B was opened with the winner of A
    assert {f.trial.point["lr"] for f in end.facts if "B" in f.trial.groups} == {0.01}
    assert bench.names == ["toy/stage1"]
    assert set(bench.search.told) == set(outcomes(end))


def test_what_has_ended_is_kept_in_little_memory(tmp_path):
    bench = Bench(tmp_path)
    for end in (bench.run(), bench.run()):  # as collected, and as read from the store
        ended = [f.counted for f in end.facts]
        assert all(isinstance(a.curve, Curve) and a.curve for a in ended)
        assert len({id(a.fingerprint) for a in ended}) == 1


def test_a_second_run_does_nothing(tmp_path):
    bench = Bench(tmp_path)
    bench.run()
    played = len(bench.executor.played)
    end = bench.run()
    assert len(bench.executor.played) == played
    assert end.ending == "complete"


@pytest.mark.parametrize("slots", [1, 3])
def test_caps_save_time_and_keep_the_top(tmp_path, slots):
    free = Bench(tmp_path / "a" if (tmp_path / "a").mkdir() is None else tmp_path, slots=slots)
    capped = Bench(tmp_path / "b" if (tmp_path / "b").mkdir() is None else tmp_path, cap=True)
    full, raced = free.run(), capped.run()

    def top(end):
        reached = [f for f in end.facts if f.counted.outcome is Outcome.REACHED]
        ordered = sorted(reached, key=lambda f: f.counted.phases.train)
        return [f.trial.id for f in ordered[:2]]

    assert top(full) == top(raced)
    assert capped.executor.now_s < free.executor.now_s or slots > 1
    cut = [f.counted for f in raced.facts if f.counted.reason is Reason.CAP]
    assert cut
    assert all(a.cap_s is not None and a.phases.train >= a.cap_s for a in cut)
    censored = [t for t in capped.search.told.values() if t.violation > 0]
    assert len(censored) == len(cut)
    assert all(t.value in {a.cap_s for a in cut} for t in censored)


def test_the_budget_stops_and_the_next_run_goes_on(tmp_path):
    bench = Bench(tmp_path)
    end = bench.run(budget=Budget(max_trials=2))
    assert end.ending == "budget"
    assert "--max-trials" in end.why
    assert end.record.closed_at is None
    assert len(outcomes(end)) == 2
    assert bench.run().ending == "complete"


def test_an_interrupt_starts_nothing_more(tmp_path):
    bench = Bench(tmp_path)
    end = bench.run(stop=Stop(level=1))
    assert (end.ending, len(outcomes(end))) == ("interrupted", 0)


def test_the_breaker_opens_when_the_first_trials_fail_alike(tmp_path):
    bench = Bench(tmp_path, player=lambda s: play(s, fail=lambda _: Reason.CRASHED))
    end = bench.run()
    assert end.ending == "breaker"
    assert "crashed" in end.why
    assert len(bench.executor.played) == 3


def test_infrastructure_is_tried_again_and_configurations_are_not(tmp_path):
    def fail(spec):
        if argument(spec, "lr") == 0.003:
            return Reason.DEVICE
        return Reason.OOM if argument(spec, "lr") == 0.03 else None

    bench = Bench(tmp_path, player=lambda s: play(s, fail=fail))
    end = bench.run()
    tries = {f.trial.id: len(f.attempts) for f in end.facts}
    by_lr = {f.trial.point["lr"]: tries[f.trial.id] for f in end.facts if "A" in f.trial.groups}
    assert by_lr == {0.003: 3, 0.01: 1, 0.03: 1}
    again = bench.run(retry_failed=True)
    assert {f.trial.id: len(f.attempts) for f in again.facts}[end.facts[2].trial.id] >= 2


def test_nothing_finished_in_a_group_that_others_need(tmp_path):
    calls = iter([Reason.OOM, Reason.CRASHED, Reason.CONFIG])
    bench = Bench(tmp_path, player=lambda s: play(s, fail=lambda _: next(calls)))
    with pytest.raises(PlanError, match="A"):
        bench.run()
    assert bench.store.stage("toy", "stage1").closed_at is None


def test_a_fallback_becomes_the_effective_target(tmp_path):
    bench = Bench(tmp_path, player=lambda s: play(s, floor=2.2))
    end = bench.run()
    assert end.record.effective_target == 2.5
    assert bench.store.stage("toy", "stage1").effective_target == 2.5


def test_a_lost_attempt_is_recorded_and_run_again(tmp_path):
    bench = Bench(tmp_path)
    plan = bench.run(stop=Stop(level=1)).record.plan
    lease = bench.store.acquire("toy", "killed", ttl_s=60)
    trial = plan.trials[0]
    folder = bench.home.attempt("toy", trial.id, 1).folder
    bench.store.begin("toy", trial, 1, folder=str(folder), slot="sim0", lease=lease)
    bench.store.release(lease)
    end = bench.run()
    first = next(f for f in end.facts if f.trial.id == trial.id)
    assert [a.reason for a in first.attempts] == [Reason.LOST, Reason.TARGET]


def test_what_ended_while_nobody_watched_is_recorded_not_run(tmp_path):
    bench = Bench(tmp_path)
    bench.run(budget=Budget(max_trials=1))
    done = bench.executor.played[0]
    # an orchestrator that was killed between begin and record leaves just this
    other = Bench(tmp_path)
    other.home = bench.home
    other.home.stage_document("toy", "stage1").unlink()
    plan = other.run(stop=Stop(level=1)).record.plan
    trial = next(t for t in plan.trials if t.id == done.trial)
    lease = other.store.acquire("toy", "killed", ttl_s=60)
    other.store.begin("toy", trial, 1, folder=done.run_dir, slot="sim0", lease=lease)
    other.store.release(lease)
    end = other.run()
    assert trial.id not in {s.trial for s in other.executor.played}
    assert next(f for f in end.facts if f.trial.id == trial.id).counted.outcome is Outcome.REACHED


def test_a_cancelled_trial_is_not_run_again_by_itself(tmp_path):
    def cancelled(spec):
        lines, outcome = play(spec, fail=lambda _: Reason.KILLED)
        from dataclasses import replace

        return lines, replace(outcome, message=CANCELLED)

    target = 0.03
    bench = Bench(
        tmp_path, player=lambda s: cancelled(s) if argument(s, "lr") == target else play(s)
    )
    end = bench.run()
    facts = next(f for f in end.facts if f.trial.point["lr"] == target)
    assert len(facts.attempts) == 1


class Outage:
    """A store that is gone for its first calls of one method."""

    def __init__(self, store, method, times):
        self._store, self._method, self._times = store, method, times

    def __getattr__(self, name):
        found = getattr(self._store, name)
        if name != self._method:
            return found

        def call(*args, **kwargs):
            if self._times > 0:
                self._times -= 1
                raise DatabaseGone("gone")
            return found(*args, **kwargs)

        return call


@pytest.mark.parametrize("method", ["freeze", "begin", "record", "close_stage"])
def test_an_outage_costs_only_the_wait(tmp_path, method):
    bench = Bench(tmp_path)
    revived = threading.Event()
    end = bench.run(store=Outage(bench.store, method, 2), revive=revived.set)
    assert end.ending == "complete"
    assert revived.is_set()
    assert all(len(f.attempts) == 1 for f in end.facts)


def test_running_trials_can_be_ended_while_the_database_is_gone(tmp_path):
    """Ctrl-C twice reaches them; what is not recorded then is when the database is back."""
    bench, stop, seen = Bench(tmp_path, slots=2), Stop(), []

    class GoneForTheSecond(Outage):
        def __getattr__(self, name):
            first = name == "begin" and not list(bench.home.study("toy").glob("*/attempt-*"))
            return getattr(self._store, name) if first else super().__getattr__(name)

    def revive():
        stop.level = 2
        seen.append([Control.read(p).drain for p in bench.home.folder.rglob("control.json")])

    store = GoneForTheSecond(bench.store, "begin", 3)
    end = bench.run(store=store, stop=stop, revive=revive)
    assert seen[0] == []
    assert seen[-1] == [True]
    assert end.ending == "interrupted"


class KilledHere(BaseException):
    """What nothing catches."""


class Mortal:
    """A store whose owner dies where the plan would change."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)

    def update_plan(self, plan):
        raise KilledHere


def test_groups_that_wait_are_planned_by_whoever_starts_when_nothing_else_is_left(tmp_path):
    """The orchestrator died after the last run of A, before it had drawn B's plan from it."""
    bench = Bench(tmp_path)
    with pytest.raises(KilledHere):
        bench.run(store=Mortal(bench.store))
    assert all(t.open for t in bench.store.stage("toy", "stage1").plan.trials[3:])
    again = bench.run()
    assert again.record.closed_at is not None
    assert not any(t.open for t in again.record.plan.trials)
    assert len(outcomes(again)) == 6


def test_a_lost_lease_stops_the_loop(tmp_path):
    bench = Bench(tmp_path)

    def player(spec):
        held = bench.store.held("toy")
        if held is not None and held.holder == "tests":
            bench.store.release(held)
            bench.store.acquire("toy", "thief", ttl_s=60)
        return play(spec)

    bench.executor = SimulatedExecutor(player)
    with pytest.raises(StudyBusy):
        bench.run()


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Sleeper:
    """A store whose owner falls asleep at one call, and meanwhile somebody else takes the study."""

    def __init__(self, bench, *, before, meanwhile):
        self._bench, self._before, self._meanwhile = bench, before, meanwhile

    def __getattr__(self, name):
        found = getattr(self._bench.store, name)
        if name != "begin" or self._meanwhile is None:
            return found

        def call(*args, **kwargs):
            meanwhile, self._meanwhile = self._meanwhile, None
            if not self._before:
                found(*args, **kwargs)
            held = self._bench.store.held("toy")
            self._bench.store.release(held)  # it has expired
            meanwhile()
            return found(*args, **kwargs) if self._before else None

        return call


@pytest.mark.parametrize("before", [True, False])
def test_who_lost_the_study_while_asleep_touches_no_run_folder(tmp_path, before):
    """Before the fence (it is refused), and between the fence and the folder (its place is taken)."""
    bench, kept = Bench(tmp_path), {}

    def other():
        bench.run()
        kept.update(files(bench.home.study("toy")))

    with pytest.raises(StudyBusy):
        bench.run(store=Sleeper(bench, before=before, meanwhile=other))
    assert kept
    assert files(bench.home.study("toy")) == kept
    assert bench.store.stage("toy", "stage1").closed_at is not None
    reasons = [a.reason for f in bench.store.facts("toy") for a in f.attempts]
    assert reasons.count(Reason.LOST) == (0 if before else 1)


def test_a_begun_attempt_that_was_given_up_cannot_be_started_any_more(tmp_path):
    bench = Bench(tmp_path)
    trial = bench.run(stop=Stop(level=1)).record.plan.trials[0]
    paths = bench.home.attempt("toy", trial.id, 1)
    prepared = attempts.prepare(
        bench.study,
        trial,
        attempt=1,
        paths=paths,
        slot=bench.executor.slots()[0],
        target=2.0,
        fallback=(),
        cap_s=None,
        token=7,
    )
    assert not paths.folder.exists()
    assert attempts.give_up(paths, "begun, and then nothing")
    assert AttemptOutcome.read(paths.outcome).reason is Reason.LOST
    with pytest.raises(FileExistsError):
        prepared.put()
    assert [p.name for p in paths.folder.parent.iterdir()] == ["attempt-1"]


def test_a_run_folder_that_the_database_does_not_know_is_left_alone(tmp_path):
    bench = Bench(tmp_path)
    bench.run(budget=Budget(max_trials=1))
    kept = files(bench.home.study("toy"))
    bench.store = MemoryStore()  # as after an older copy was put back
    with pytest.raises(DiskUnusable, match="db rebuild"):
        bench.run()
    assert files(bench.home.study("toy")) == kept
    assert bench.store.stage("toy", "stage1") is None
    bench.home.stage_document("toy", "stage1").unlink()  # then each folder speaks for itself
    with pytest.raises(DiskUnusable, match="db rebuild"):
        bench.run()
    now = files(bench.home.study("toy"))
    assert {path: data for path, data in now.items() if path.parts[0] != "stage1.json"} == {
        path: data for path, data in kept.items() if path.parts[0] != "stage1.json"
    }


def test_run_folders_that_are_gone_stop_the_stage_before_anything_is_given_up(tmp_path):
    bench = Bench(tmp_path)
    bench.run(budget=Budget(max_trials=1))
    folder = bench.home.study("toy")
    folder.rename(tmp_path / "unmounted")
    with pytest.raises(DiskUnusable, match="mounted"):
        bench.run()
    assert not folder.exists()
    (tmp_path / "unmounted").rename(folder)
    assert bench.run().ending == "complete"


def test_a_trial_rests_before_it_is_tried_again_and_others_go_first(tmp_path):
    """Twice as long before every further try, and other trials are not held up."""
    started = []

    def player(spec):
        started.append((time.monotonic(), argument(spec, "lr"), argument(spec, "batch")))
        return play(spec, fail=lambda s: Reason.DEVICE if argument(s, "lr") == 0.003 else None)

    end = Bench(tmp_path, player=player).run(first_rest_s=0.2)
    assert end.ending == "complete"
    tries = [at for at, lr, _ in started if lr == 0.003]
    assert len(tries) == 3
    assert tries[1] - tries[0] >= 0.2
    assert tries[2] - tries[1] >= 0.4
    assert any(tries[0] < at < tries[1] for at, lr, _ in started if lr != 0.003)


def test_status_counts_names_the_fastest_and_says_how_long_it_takes(tmp_path):
    bench = Bench(tmp_path)
    bench.run(budget=Budget(max_trials=3))
    early = status_document(bench.study, bench.store)
    assert [(s["stage"], s["done"], s["closed"]) for s in early["stages"]] == [("stage1", 3, False)]
    assert early["eta_s"] > 0
    end = bench.run()
    found = status_document(bench.study, bench.store)
    assert found["stages"][0]["planned"] == found["stages"][0]["done"] == len(end.facts)
    best = min(end.facts, key=lambda f: f.counted.phases.train)
    assert found["incumbent"]["id"] == best.trial.id
    assert found["incumbent"]["point"] == dict(best.trial.point)
    assert found["eta_s"] is None
