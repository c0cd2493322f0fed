"""Optuna behind its seam, on the real Postgres: idempotent, never pruned, rebuilt, shared."""

from __future__ import annotations

import subprocess
import sys

import optuna
import psycopg2
import pytest
from optuna.trial import TrialState

from sweeper.errors import DatabaseUnusable
from sweeper.search.base import Known, Told
from sweeper.search.memory import MemorySearch
from sweeper.search.optuna_search import OptunaStorage, distribution
from sweeper.space import Bool, Categorical, Float, Integer, Space

pytestmark = pytest.mark.xdist_group("search")  # its fixtures are made once

SPACE = Space(
    {
        p.name: p
        for p in (
            Float("optim.lr", 0.001, 0.1, scale="log", baseline=0.01),
            Integer("data.batch", 16, 250, step=16, scale="log", baseline=64),
            Categorical("optim.method", ("adamw", "muon"), baseline="muon"),
            Bool("model.projection", baseline=False),
            Float("model.scale", 0.0, 1.0, baseline=0.5, when={"model.projection": (True,)}),
        )
    }
)


def point(lr=0.01, **changes):
    values = {"optim.lr": lr, "data.batch": 64, "optim.method": "muon", "model.projection": False}
    return SPACE.point(values | changes)


@pytest.fixture(scope="module")
def storage(search_url):
    storage = OptunaStorage(search_url)
    yield storage
    storage.close()


@pytest.fixture(scope="module")
def search_url(postgres):
    connection = psycopg2.connect(postgres.url.replace("+psycopg2", "", 1))
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE search_tests TEMPLATE template0")
        address, query = postgres.url.split("?", maxsplit=1)
        yield f"{address.rsplit('/', maxsplit=1)[0]}/search_tests?{query}"
        cursor.execute("DROP DATABASE search_tests WITH (FORCE)")
    connection.close()


@pytest.fixture
def name(request):
    return f"study/{request.node.name}"


@pytest.fixture(params=["optuna", "memory"])
def search(request, name):
    """The contract holds for both."""
    if request.param == "memory":
        return MemorySearch()
    return request.getfixturevalue("storage").open(name, SPACE, {})


def trials(storage, name):
    study = optuna.load_study(study_name=name, storage=storage.raw)
    return study, study.get_trials(deepcopy=False)


def test_ask_and_tell_are_idempotent(search):
    for _ in range(2):
        search.ask("s1-A1", point(), {"label": "first"})
    assert search.known() == {"s1-A1": Known("running", None)}
    search.tell("s1-A1", Told(3.5))
    search.tell("s1-A1", Told(99.0))  # what was told first stays
    search.tell("s1-A1", Told(None))
    search.ask("s1-A1", point(), {})
    assert search.known() == {"s1-A1": Known("complete", 3.5)}


def test_a_failure_has_no_value(search):
    search.ask("s1-A1", point(), {})
    search.tell("s1-A1", Told(None))
    search.ask("s1-A1#2", point(), {})
    assert search.known() == {"s1-A1": Known("failed", None), "s1-A1#2": Known("running", None)}


def test_what_was_never_asked_cannot_be_told(search):
    with pytest.raises(KeyError):
        search.tell("s1-A1", Told(1.0))


def test_parameters_of_every_type_come_back(storage, name):
    search = storage.open(name, SPACE, {})
    points = [
        point(),
        point(0.001, **{"data.batch": 16, "optim.method": "adamw"}),
        point(0.1, **{"data.batch": 240, "model.projection": True, "model.scale": 0.25}),
    ]
    for number, one in enumerate(points):
        search.ask(f"s1-A{number}", one, {})
    _, found = trials(storage, name)
    assert [dict(t.params) for t in found] == [dict(p) for p in points]
    assert all(t.state is TrialState.RUNNING for t in found)
    assert "model.scale" not in found[0].params, "inactive parameters are left out"


def test_an_integer_off_its_step_at_the_top():
    found = distribution(SPACE.parameters["data.batch"])
    assert (found.low, found.high, found.step, found.log) == (16, 240, 16, False)


def test_a_censored_trial_is_behind_every_one_that_reached(storage, name):
    """It was capped at 2 s and its value says so; the other one needed 5 s and did reach."""
    search = storage.open(name, SPACE, {})
    for key, told in {
        "s1-A1": Told(2.0, violation=0.3, attributes={"outcome": "censored"}),
        "s1-A2": Told(5.0, attributes={"outcome": "reached"}),
        "s1-A3": Told(1.0, violation=1e-9, attributes={"outcome": "censored"}),
        "s1-A4": Told(6.0, attributes={"outcome": "reached"}),
        "s1-A5": Told(None, attributes={"outcome": "failed"}),
    }.items():
        search.ask(key, point(), {})
        search.tell(key, told)
    study, found = trials(storage, name)
    assert study.best_trial.user_attrs["sweep:attempt"] == "s1-A2"
    assert study.best_value == 5.0
    states = {t.user_attrs["sweep:attempt"]: t.state for t in found}
    assert states.pop("s1-A5") is TrialState.FAIL
    assert set(states.values()) == {TrialState.COMPLETE}, "never PRUNED"
    assert found[0].user_attrs["outcome"] == "censored"


def test_nothing_but_censored_trials_has_no_best(storage, name):
    search = storage.open(name, SPACE, {})
    search.ask("s1-A1", point(), {})
    search.tell("s1-A1", Told(2.0, violation=0.3))
    study, _ = trials(storage, name)
    with pytest.raises(ValueError, match="feasible"):
        _ = study.best_trial


def test_opening_again_goes_on(storage, name):
    notes = {"study": "x", "title": "before"}
    storage.open(name, SPACE, notes).ask("s1-A1", point(), {})
    again = storage.open(name, SPACE, notes | {"title": "after"})
    again.ask("s1-A1", point(), {})
    again.tell("s1-A1", Told(4.0))
    study, found = trials(storage, name)
    assert len(found) == 1
    assert found[0].value == 4.0
    assert study.user_attrs["title"] == "after"


def test_a_deleted_study_is_rebuilt(storage, name):
    facts = {"s1-A1": (point(0.01), Told(4.0)), "s1-A2": (point(0.02), Told(8.0, 0.5))}

    def rebuild():
        search = storage.open(name, SPACE, {})
        for key, (one, told) in facts.items():
            search.ask(key, one, {})
            search.tell(key, told)
        return search.known()

    before = rebuild()
    assert rebuild() == before
    storage.delete(name)
    storage.delete(name)
    assert name not in storage.names()
    assert rebuild() == before
    assert len(trials(storage, name)[1]) == 2


def test_many_processes_open_a_fresh_database_at_once(postgres, database_url):
    """Optuna itself races with itself here: each process would create the same tables."""
    code = "import sys, sweeper.search.optuna_search as s; s.OptunaStorage(sys.argv[1]).close()"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, database_url], stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said.decode()


def test_a_database_that_cannot_be_used():
    with pytest.raises(DatabaseUnusable) as raised:
        OptunaStorage("postgresql+psycopg2://me:s3cr3t@127.0.0.1:1/db")
    assert "s3cr3t" not in str(raised.value)


def test_people_see_curves_files_and_a_note(search_url, name, tmp_path):
    import optuna_dashboard
    from optuna.artifacts import get_all_artifact_meta

    storage = OptunaStorage(search_url, tmp_path / "artifacts")
    assert storage.artifact_store(tmp_path / "artifacts") is None  # nothing was kept yet
    search = storage.open(name, SPACE, {"shows": "seconds to the target"})
    search.ask("a", point(), {})
    files = {"config.toml": "[optim]\n", "stdout-tail.txt": "step 1\n"}
    told = Told(1.5, curve=((100, 5.5), (200, 4.5)), artifacts=lambda: files)
    search.tell("a", told)
    search.tell("a", told)  # again: nothing is added, and it is no error
    for text in ("first", "last"):
        search.describe(f"# {text}", {"sweep-curves": {"data": [], "layout": {"title": text}}})
    study = optuna.load_study(storage=storage.raw, study_name=name)
    (trial,) = study.trials
    assert trial.intermediate_values == {100: 5.5, 200: 4.5}
    kept = get_all_artifact_meta(trial, storage=storage.raw)
    assert {meta.filename for meta in kept} == set(files)
    assert storage.artifact_store(tmp_path / "artifacts") is not None
    assert study.metric_names == ["seconds to the target"]
    assert optuna_dashboard.get_note(study) == "# last"
    attributes = storage.raw.get_study_system_attrs(study._study_id)
    plots = [v for k, v in attributes.items() if k.startswith("dashboard:plot_data:")]
    assert len(plots) == 1
    assert "last" in plots[0]
    storage.close()
