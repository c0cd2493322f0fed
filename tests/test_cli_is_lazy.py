import subprocess
import sys

import pytest

from sweeper.space import Point
from sweeper.storage.sql import open_store
from sweeper.trial import AttemptFacts, Evaluation, Outcome, Phases, PlannedTrial, Reason, StagePlan

HEAVY = ("optuna", "sqlalchemy", "torch", "numpy", "scipy", "pydantic", "rich", "alembic")


def test_help_imports_nothing_heavy():
    code = (
        "import sys, sweeper.cli as c\n"
        "c.build_parser().format_help()\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


@pytest.fixture
def facts(database_url):
    """A database with the ready study `quickstart`: a trial that has ended, and one that runs."""
    store = open_store(database_url, create=True)
    point = Point({"a": 1})
    trials = [PlannedTrial(name, "stage1", name, ("A",), point, 1) for name in ("one", "two")]
    plan = StagePlan("quickstart", "stage1", 4.0, tuple(trials), 2, 1)
    store.freeze(plan, definition={}, definition_hash="h", options={})
    curve = [Evaluation(1, 1, Phases(train=1.0), 3.5)]
    ended = AttemptFacts(1, Outcome.REACHED, Reason.TARGET, curve=curve, best_loss=3.5)
    store.record("quickstart", "one", ended)
    lease = store.acquire("quickstart", "me", ttl_s=60)
    store.begin("quickstart", trials[1], 1, folder="/none", slot="cpu0", lease=lease)
    store.close()
    return database_url


@pytest.mark.parametrize(
    ("words", "imported"), [(["--json"], ["pydantic"]), ([], ["pydantic", "rich"])]
)
def test_status_imports_no_numbers_no_sampler_and_no_sqlalchemy(
    facts, monkeypatch, tmp_path, words, imported
):
    monkeypatch.setenv("SWEEP_DATABASE_URL", facts)
    monkeypatch.setenv("SWEEP_HOME", str(tmp_path))
    code = (
        "import sys, sweeper.cli as c\n"
        f"assert c.main({['status', 'quickstart', *words]!r}) == 0\n"
        f"print([m for m in {(*HEAVY, 'rich.live')!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    lines = done.stdout.splitlines()
    assert lines[-1] == str(imported)
    assert len(lines) > 1
