"""What every store keeps, shown on the one in memory and on the real Postgres, read in both ways."""

import math
import threading
import time
import uuid
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweeper.errors import DatabaseUnusable, StudyBusy
from sweeper.space import Point
from sweeper.storage import light
from sweeper.storage.base import Readable
from sweeper.storage.memory import MemoryStore
from sweeper.trial import (
    OUTCOME_OF,
    AttemptFacts,
    DeviceSample,
    Evaluation,
    Lock,
    Outcome,
    Phases,
    PlannedTrial,
    Reason,
    StagePlan,
)

STAGES = ("stage1", "stage2", "confirm")


class ReadLightly:
    """The store in Postgres, read as `status` reads it: through the driver, each time anew."""

    def __init__(self, store, url):
        self._store, self._url = store, url

    def __getattr__(self, name):
        if not hasattr(Readable, name):
            return getattr(self._store, name)

        def read(*arguments, **keywords):
            with light.reading(self._url) as facts:
                return getattr(facts, name)(*arguments, **keywords)

        return read


@pytest.fixture(params=["memory", "postgres", "light"])
def store(request):
    if request.param == "memory":
        return MemoryStore()
    made = request.getfixturevalue("sql_store")
    if request.param == "light":
        return ReadLightly(made, request.getfixturevalue("migrated_url"))
    return made


def trial(name, stage="stage1", **changes):
    point = Point({"optim.lr": 0.003, "batch": 32, "cautious": True, "coefficients": "polar"})
    made = PlannedTrial(name, stage, f"label {name}", ("A",), point, seed=1)
    return replace(made, **changes)


def plan(*trials, study="demo", stage="stage1", **changes):
    made = StagePlan(study, stage, 4.0, trials, entries=len(trials), distinct=len(trials))
    return replace(made, **changes)


def ended(attempt=1, reason=Reason.TARGET, **changes):
    curve = tuple(
        Evaluation(step, 100 * step, Phases(train=float(step)), 6.0 - step / 10)
        for step in range(0, 30, 10)
    )
    made = AttemptFacts(attempt, OUTCOME_OF[reason], reason, curve=curve, steps=20)
    return replace(made, **changes)


def freeze(store, made, **changes):
    given = {"definition": {"v": 1}, "definition_hash": "abc", "options": {"cap": True}}
    return store.freeze(made, **(given | changes))


def same(left, right):
    """Equal, with NaN equal to itself."""
    return repr(left) == repr(right)


class TestStages:
    def test_a_frozen_stage_comes_back_whole(self, store):
        made = plan(
            trial("s1-1", groups=("A", "B"), open=("optim.lr",), block=2),
            trial("s1-2", replicate_of="s1-1", seed=2**62),
            entries=3,
            depends_on={"B": "A"},
            locked={"batch": Lock(32, "unanimous"), "cautious": Lock(True, "paired")},
            varying={"z": (0.001, 0.01), "a": (1, 2.0, "x", False)},
            open={"optim.lr": 1e16},
            design={"kind": "fraction", "runs": 36, "balance": [1, 2.0], "b": {"x": None}},
            notes=("first", "second — ünïcode"),
        )
        definition = {"b": 1e22, "a": [1.0, 1], "text": "\u0000 ü"}
        before = time.time()
        frozen = freeze(store, made, definition=definition, exploratory=True)
        assert store.stage("demo", "stage1") == frozen
        assert frozen.plan == made
        assert same(list(frozen.plan.varying.items()), list(made.varying.items()))
        assert same(frozen.definition, definition)
        assert (frozen.definition_hash, frozen.options) == ("abc", {"cap": True})
        assert frozen.exploratory
        assert frozen.target == frozen.effective_target == 4.0
        assert abs(frozen.created_at - before) < 60
        assert frozen.closed_at is None

    def test_what_is_frozen_stays(self, store):
        first = freeze(store, plan(trial("s1-1")))
        again = freeze(store, plan(trial("s1-9"), target=9.0), definition_hash="other")
        assert again == first
        assert [f.trial.id for f in store.facts("demo")] == ["s1-1"]

    def test_stages_come_in_order_and_studies_oldest_first(self, store):
        freeze(store, plan(trial("x"), study="zeta"))
        for stage in reversed(STAGES):
            freeze(store, plan(trial(f"{stage}-1", stage), stage=stage))
        assert [record.stage for record in store.stages("demo")] == list(STAGES)
        assert [f.trial.stage for f in store.facts("demo")] == list(STAGES)
        assert list(store.studies()) == ["zeta", "demo"]
        assert store.stage("demo", "stage2").plan.trials[0].id == "stage2-1"
        heads = store.stages("demo", trials=False)
        assert [(r.stage, len(r.plan.trials), r.target) for r in heads] == [
            (r.stage, 0, r.target) for r in store.stages("demo")
        ]

    def test_what_is_not_there_is_none_or_empty(self, store):
        assert store.stage("demo", "stage1") is None
        assert list(store.stages("demo")) == list(store.studies()) == []
        assert list(store.facts("demo")) == list(store.running("demo")) == []
        assert store.counts("demo") == {}

    def test_a_trial_id_is_used_once_in_a_study(self, store):
        with pytest.raises(ValueError, match="used twice"):
            freeze(store, plan(trial("a"), trial("a")))
        assert list(store.studies()) == []
        freeze(store, plan(trial("a")))
        with pytest.raises(ValueError, match="used twice"):
            freeze(store, plan(trial("a", "stage2"), stage="stage2"))
        assert store.stage("demo", "stage2") is None
        freeze(store, plan(trial("a"), study="other"))

    def test_a_plan_may_resolve_open_levels_and_grow(self, store):
        freeze(store, plan(trial("a"), trial("b", open=("optim.lr",))))
        resolved = trial("b", point=Point({"optim.lr": 0.1}), label="new")
        grown = plan(trial("a"), resolved, trial("c"), open={}, notes=("resolved",))
        store.update_plan(grown)
        store.update_plan(grown)
        assert store.stage("demo", "stage1").plan == grown
        assert [f.trial for f in store.facts("demo")] == [*grown.trials]

    def test_a_plan_neither_loses_trials_nor_changes_what_was_tried(self, store):
        made = plan(trial("a"), trial("b"))
        freeze(store, made)
        freeze(store, plan(trial("taken", "stage2"), stage="stage2"))
        store.record("demo", "a", ended())
        wrong = {
            "not in the new plan": plan(trial("a")),
            "has changed": plan(trial("a", seed=2), trial("b")),
            "used twice": plan(trial("a"), trial("b"), trial("taken")),
            "has no stage1": plan(trial("a"), study="unknown"),
        }
        for message, changed in wrong.items():
            with pytest.raises(ValueError, match=message):
                store.update_plan(changed)
        assert store.stage("demo", "stage1").plan == made

    def test_another_effective_target_leaves_the_declared_one(self, store):
        freeze(store, plan(trial("a")))
        store.set_effective_target("demo", "stage1", 5.5)
        record = store.stage("demo", "stage1")
        assert (record.target, record.effective_target) == (4.0, 5.5)

    def test_closing_twice_keeps_the_first_time(self, store):
        freeze(store, plan(trial("a")))
        store.close_stage("demo", "stage1")
        closed_at = store.stage("demo", "stage1").closed_at
        store.close_stage("demo", "stage1")
        assert closed_at is not None
        assert store.stage("demo", "stage1").closed_at == closed_at


class TestAttempts:
    def test_begun_then_recorded(self, store):
        one = trial("a")
        freeze(store, plan(one, trial("b")))
        lease = store.acquire("demo", "me", ttl_s=60)
        store.begin("demo", one, 1, folder="/runs/ü a/1", slot="gpu0", lease=lease)
        (running,) = store.running("demo")
        assert (running.trial_id, running.attempt) == ("a", 1)
        assert (running.folder, running.slot) == ("/runs/ü a/1", "gpu0")
        assert store.facts("demo")[0].attempts == ()
        assert store.record("demo", "a", ended(), lease=lease) is True
        assert list(store.running("demo")) == []
        assert store.facts("demo")[0].attempts == (ended(),)

    def test_beginning_twice_is_one_attempt_and_the_later_place_holds(self, store):
        one = trial("a")
        freeze(store, plan(one))
        lease = store.acquire("demo", "me", ttl_s=60)
        for slot in ("gpu0", "gpu0", "gpu1"):
            store.begin("demo", one, 1, folder="/r", slot=slot, lease=lease)
        assert [r.slot for r in store.running("demo")] == ["gpu1"]

    def test_beginning_what_has_ended_changes_nothing(self, store):
        one = trial("a")
        freeze(store, plan(one))
        lease = store.acquire("demo", "me", ttl_s=60)
        store.record("demo", "a", ended(), lease=lease)
        store.begin("demo", one, 1, folder="/r", slot="gpu0", lease=lease)
        assert list(store.running("demo")) == []
        assert store.facts("demo")[0].attempts == (ended(),)

    def test_the_first_outcome_stays(self, store):
        freeze(store, plan(trial("a")))
        assert store.record("demo", "a", ended())
        assert not store.record("demo", "a", ended(reason=Reason.CRASHED, curve=()))
        assert not store.record("demo", "a", ended())
        assert store.facts("demo")[0].attempts == (ended(),)

    def test_a_late_result_of_an_old_attempt_is_kept_as_its_own(self, store):
        freeze(store, plan(trial("a")))
        late, newer = ended(1, Reason.TIMEOUT), ended(2)
        store.record("demo", "a", newer)
        store.record("demo", "a", late)
        assert store.facts("demo")[0].attempts == (late, newer)

    def test_an_unknown_trial_says_so(self, store):
        freeze(store, plan(trial("a")))
        with pytest.raises(DatabaseUnusable, match="does not know trial nope of study demo"):
            store.record("demo", "nope", ended())

    def test_text_that_no_database_holds_is_replaced(self, store):
        freeze(store, plan(trial("a")))
        store.record("demo", "a", ended(message="nul \0 half \ud800 ü", device={"m": "\0\ud800"}))
        (attempt,) = store.facts("demo")[0].attempts
        assert attempt.message == "nul \ufffd half \ufffd ü"
        assert attempt.device == {"m": "\0\ud800"}

    def test_not_a_number_comes_back_as_such(self, store):
        freeze(store, plan(trial("a")))
        last = Evaluation(3, 3, Phases(train=1.5), math.nan)
        store.record("demo", "a", ended(reason=Reason.DIVERGED, curve=(last, last)))
        assert same(tuple(store.facts("demo")[0].attempts[0].curve), (last, last))

    def test_facts_of_one_stage_in_plan_order(self, store):
        freeze(store, plan(trial("b"), trial("a"), trial("c")))
        freeze(store, plan(trial("z", "stage2"), stage="stage2"))
        store.record("demo", "z", ended())
        assert [f.trial.id for f in store.facts("demo", "stage1")] == ["b", "a", "c"]
        assert [f.trial.id for f in store.facts("demo", "stage2")] == ["z"]
        assert [len(f.attempts) for f in store.facts("demo")] == [0, 0, 0, 1]

    def test_counts_are_a_partition_by_the_attempt_that_counts(self, store):
        names = ("reached", "after failure", "failed", "again", "waiting", "invalid")
        freeze(store, plan(*map(trial, names)))
        freeze(store, plan(stage="confirm"))
        lease = store.acquire("demo", "me", ttl_s=60)
        store.record("demo", "reached", ended(1))
        store.record("demo", "reached", ended(2, Reason.LOST))
        store.record("demo", "after failure", ended(1, Reason.OOM))
        store.record("demo", "after failure", ended(2, Reason.CAP))
        store.record("demo", "failed", ended(1, Reason.THROTTLED))
        store.record("demo", "failed", ended(2, Reason.OOM))
        store.record("demo", "again", ended(1, Reason.CRASHED))
        store.begin("demo", trial("again"), 2, folder="", slot="", lease=lease)
        store.record("demo", "invalid", ended(1, Reason.THROTTLED))
        assert store.counts("demo") == {
            "stage1": {
                "planned": 6,
                "running": 1,
                "reached": 1,
                "censored": 1,
                "failed": 1,
                "invalid": 1,
            },
            "confirm": dict.fromkeys(
                ("planned", "running", "reached", "censored", "failed", "invalid"), 0
            ),
        }
        for facts in store.facts("demo"):
            assert facts.counted is None or facts.counted.outcome in Outcome


class TestLeases:
    def test_a_live_lease_is_refused_by_name(self, store):
        store.acquire("demo", "host-a:17", ttl_s=60)
        with pytest.raises(StudyBusy, match=r"demo is being run by host-a:17.*ends in \d+ s"):
            store.acquire("demo", "host-b:18", ttl_s=60)
        store.acquire("other", "host-b:18", ttl_s=60)

    def test_a_released_lease_is_free_and_good_for_nothing(self, store):
        one = trial("a")
        freeze(store, plan(one))
        first = store.acquire("demo", "a", ttl_s=60)
        store.release(first)
        with pytest.raises(StudyBusy):
            store.renew(first, ttl_s=60)
        with pytest.raises(StudyBusy):
            store.begin("demo", one, 1, folder="", slot="", lease=first)
        second = store.acquire("demo", "b", ttl_s=60)
        assert second.token > first.token
        store.release(first)
        store.renew(second, ttl_s=60)

    def test_an_expired_lease_can_be_taken_and_fences_its_old_holder(self, store):
        one = trial("a")
        freeze(store, plan(one))
        old = store.acquire("demo", "old", ttl_s=0.05)
        store.begin("demo", one, 1, folder="", slot="", lease=old)
        time.sleep(0.1)
        store.begin("demo", one, 1, folder="", slot="", lease=old)  # nobody took it: still its own
        new = store.acquire("demo", "new", ttl_s=60)
        for write in (
            lambda: store.renew(old, ttl_s=60),
            lambda: store.begin("demo", one, 2, folder="", slot="", lease=old),
            lambda: store.record("demo", "a", ended(), lease=old),
        ):
            with pytest.raises(StudyBusy, match="lease of old"):
                write()
        assert store.facts("demo")[0].attempts == ()
        assert store.record("demo", "a", ended(), lease=new)

    def test_renewing_holds_a_lease_beyond_its_first_end(self, store):
        lease = store.acquire("demo", "a", ttl_s=0.2)
        store.renew(lease, ttl_s=60)
        time.sleep(0.3)
        with pytest.raises(StudyBusy):
            store.acquire("demo", "b", ttl_s=60)

    def test_a_lease_is_good_for_its_own_study_only(self, store):
        one = trial("a")
        freeze(store, plan(one))
        other = store.acquire("other", "me", ttl_s=60)
        store.acquire("demo", "me", ttl_s=60)
        with pytest.raises(StudyBusy):
            store.begin("demo", one, 1, folder="", slot="", lease=other)

    def test_of_many_threads_one_gets_it(self, store):
        won, lost, start = [], [], threading.Barrier(6)

        def race(name):
            start.wait(timeout=30)
            try:
                won.append(store.acquire("demo", name, ttl_s=60))
            except StudyBusy:
                lost.append(name)

        threads = [threading.Thread(target=race, args=(f"t{n}",)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert (len(won), len(lost)) == (1, 5)


def documents(inner):
    return st.dictionaries(names, inner, max_size=3)


names = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
finite = st.floats(allow_nan=False, allow_infinity=False)
measured = st.floats().map(lambda value: value + 0.0)  # a column has one zero
seconds = st.floats(0.0, 1e9).map(abs)
whole = st.integers(0, 2**63 - 1)
values = st.booleans() | st.integers() | finite | names
json_values = st.recursive(
    st.none() | values, lambda inner: st.lists(inner, max_size=3) | documents(inner), max_leaves=6
)


phases = st.builds(Phases, *(seconds,) * 7)
evaluations = st.builds(
    Evaluation, whole, whole, phases, measured, st.sampled_from(["probe", "confirmation"])
)


@st.composite
def attempts(draw):
    reason = draw(st.sampled_from(list(Reason)))
    return AttemptFacts(
        attempt=1,
        outcome=OUTCOME_OF[reason],
        reason=reason,
        message=draw(names | st.just("")),
        curve=tuple(draw(st.lists(evaluations, max_size=4))),
        phases=draw(phases),
        steps=draw(whole),
        tokens=draw(whole),
        best_loss=draw(st.none() | measured),
        tokens_per_s=draw(st.none() | seconds),
        peak_memory_bytes=draw(st.none() | whole),
        cap_s=draw(st.none() | seconds),
        wall_s=draw(seconds),
        started_at=draw(seconds),
        ended_at=draw(seconds),
        exit_code=draw(st.none() | st.integers(-64, 255)),
        device=draw(documents(json_values)),
        fingerprint=draw(documents(json_values)),
        validity=draw(names),
        clock_source=draw(st.sampled_from(["trainer", "runner"])),
    )


@st.composite
def planned(draw):
    rows = tuple(
        PlannedTrial(
            id=f"t{number}",
            stage="stage1",
            label=draw(names),
            groups=tuple(draw(st.lists(names, max_size=3))),
            point=Point(draw(st.dictionaries(names, values, max_size=4))),
            seed=draw(whole),
            replicate_of=draw(st.none() | names),
            open=tuple(draw(st.lists(names, max_size=2))),
            block=draw(st.integers(0, 1000)),
        )
        for number in range(draw(st.integers(1, 3)))
    )
    levels = st.lists(values, max_size=4).map(tuple)
    return StagePlan(
        study="property",
        stage="stage1",
        target=draw(finite.map(abs)),
        trials=rows,
        entries=draw(st.integers(0, 99)),
        distinct=draw(st.integers(0, 99)),
        depends_on=draw(documents(names)),
        locked=draw(documents(st.builds(Lock, values, names))),
        varying=draw(documents(levels)),
        open=draw(documents(values)),
        design=draw(documents(json_values)),
        notes=tuple(draw(st.lists(names, max_size=2))),
    )


class TestRoundTrip:
    @settings(
        max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(made=planned(), facts=attempts())
    def test_any_plan_and_attempt_come_back_equal(self, store, made, facts):
        made = replace(made, study=f"study-{uuid.uuid4()}")  # an example may be tried again
        record = freeze(store, made)
        assert record.plan == made
        assert same(record.plan, made)  # 1, 1.0 and True are not the same level
        assert same(store.stage(made.study, "stage1"), record)
        store.record(made.study, "t0", facts)
        found = store.facts(made.study)
        assert same([f.trial for f in found], list(made.trials))
        assert same([replace(a, curve=tuple(a.curve)) for a in found[0].attempts], [facts])


class TestSamples:
    def test_looks_at_a_device_come_back_equal_and_once(self, store):
        freeze(store, plan(trial("a")))
        store.record("demo", "a", ended())
        kept = [
            DeviceSample("GPU-b", 0.5, 0.25, 3 << 40, 312.5, 61.0, 1755.0),
            DeviceSample("GPU-a", 1.5),
            DeviceSample("GPU-a", 0.5, utilisation=0.0),
        ]
        store.record_samples("demo", "a", 1, kept)
        store.record_samples("demo", "a", 1, [*kept, DeviceSample("GPU-a", 2.5)])
        found = store.samples("demo", "a", 1)
        assert list(found) == [kept[2], kept[1], DeviceSample("GPU-a", 2.5), kept[0]]

    def test_none_at_all_is_fine(self, store):
        freeze(store, plan(trial("a")))
        store.record("demo", "a", ended())
        store.record_samples("demo", "a", 1, [])
        assert list(store.samples("demo", "a", 1)) == list(store.samples("demo", "b", 1)) == []

    def test_an_attempt_that_is_not_recorded_has_none(self, store):
        freeze(store, plan(trial("a")))
        with pytest.raises(ValueError, match="a attempt 1 is not recorded"):
            store.record_samples("demo", "a", 1, [DeviceSample("GPU-a", 1.0)])


def test_facts_of_some_trials_and_without_curves(store):
    made = plan(trial("a"), trial("b"))
    freeze(store, made)
    lease = store.acquire("demo", "me", ttl_s=60)
    for name in ("a", "b"):
        store.record("demo", name, ended(), lease=lease)
    (only,) = store.facts("demo", trials=["b"])
    assert only.trial.id == "b"
    assert only.attempts == (ended(),)
    bare = store.facts("demo", curves=False)
    assert [f.trial.id for f in bare] == ["a", "b"]
    assert [f.attempts for f in bare] == [(replace(ended(), curve=()),)] * 2
    assert store.facts("demo", trials=[]) == []
    facts = ended()
    assert store.brief("demo") == [
        (name, facts.outcome, facts.wall_s, facts.best_loss, facts.phases) for name in ("a", "b")
    ]
