"""The checker, shown to fail: the program with one safeguard taken out, and what is found then.

Each part is taken out in an orchestrator of the test's own (`broken.py`); the same maltreatment of the
whole program leaves nothing to find.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from sweeper.storage.sql import open_store
from tests.chaos import battle, checker
from tests.chaos.arena import COMPLETE, HERE, arena, wait_until

WITHIN_S = 240.0
pytestmark = pytest.mark.long


@pytest.fixture
def place():
    folder = Path(tempfile.mkdtemp(prefix="sweep-chaos-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def sweep(place, url, **options):
    """A dozen trials on two slots, in a database that has its tables."""
    asked = {"trials": 13, "seed": 1, "slots": 2, "manners": False, "cap": False} | options
    store = open_store(url, create=True)
    store.close()
    with arena(place, url=url, **asked) as one:
        yield one


def start(one, part):
    program = (str(HERE / "broken.py"), part)
    words = ("stage1", str(one.study), "--slots", str(one.slots))
    # a runner that is forked from a warm parent would be the whole program's
    cold = ("--cold",) if part == "tree-kill" else ()
    return one.start(*words, *cold, program=program)


def found(one, url):
    """What the checker says of a sweep that has ended, and of what it left running."""
    report = checker.check(battle.evidence(one, url))
    report.problems += checker.leftovers(one.name, one.home, places=(one.study.parent,))
    return report


def trainers_at_work(one):
    return [running for _, running in one.under_way() if running["trainer"]]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", ["nothing", "tree-kill"])
def test_without_the_tree_kill_there_are_orphans(place, database_url, part):
    manners = "--grandchild --daemon"
    with sweep(place, database_url, trivial=manners) as one:
        assert start(one, part).wait(WITHIN_S) in COMPLETE
        report = found(one, database_url)
        if part == "nothing":
            assert report.problems == []
        else:
            # those of each slot's last trial: a runner ends what it finds marked on its own slot
            assert report.count("orphan") >= 2 * one.slots
            assert {p.kind for p in report.problems} == {"orphan"}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", ["nothing", "replay"])
def test_without_replay_there_are_losses(place, database_url, part):
    """Killed while trials run, and started again when those have ended."""
    with sweep(place, database_url, tau_s=0.3) as one:
        first = start(one, part)
        wait_until(lambda: len(trainers_at_work(one)) == 2, WITHIN_S, "two trials")
        first.kill()
        first.wait()
        wait_until(lambda: not one.under_way(), WITHIN_S, "their end")
        assert one.outcomes() >= 2
        assert start(one, part).wait(WITHIN_S) in COMPLETE
        report = found(one, database_url)
        if part == "nothing":
            assert report.problems == []
        else:
            assert report.count("loss") >= 1
            assert report.count("double") >= 1  # what was lost had to be done again


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", ["nothing", "lease"])
def test_without_the_lease_there_are_doubles(place, database_url, part):
    """Two orchestrators on one study."""
    with sweep(place, database_url, tau_s=0.7) as one:
        first = start(one, part)
        wait_until(lambda: trainers_at_work(one), WITHIN_S, "a trial")
        second = start(one, part)
        codes = {first.wait(WITHIN_S), second.wait(WITHIN_S)}
        deadline = time.monotonic() + WITHIN_S
        while not codes & set(COMPLETE) and time.monotonic() < deadline:
            codes.add(start(one, part).wait(WITHIN_S))
        report = found(one, database_url)
        if part == "nothing":
            assert 5 in codes
            assert report.problems == []
        else:
            assert 5 not in codes
            assert report.count("double") >= 1
