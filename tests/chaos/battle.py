"""One battle: a sweep, a monkey, and afterwards the checker; its figures as one document.

It must not know whether a test or the long form's command asked for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sweeper.storage import embedded
from tests.chaos import checker
from tests.chaos.arena import GRACE_S, STARTUP_S, TRIAL_S, Arena, arena
from tests.chaos.monkey import Monkey


def evidence(one: Arena, url: str, monkey: Monkey | None = None) -> checker.Evidence:
    """What the checker is to look at."""
    return checker.Evidence(
        study=one.name,
        runs=one.runs,
        url=url,
        diary=one.diary,
        trial_s=TRIAL_S,
        grace_s=GRACE_S,
        startup_s=STARTUP_S,
        gone=frozenset(monkey.gone) if monkey else frozenset(),
        pauses=tuple(monkey.pauses) if monkey else (),
        logs=(one.log,),
    )


def fight(
    folder: Path,
    *,
    seed: int,
    faults: int,
    trials: int,
    module: bool = False,
    verb: str = "stage1",
    say: Callable[[str], None] = lambda _: None,
) -> tuple[checker.Report, Monkey]:
    """Run a sweep under faults to its end on an embedded database, stop that, and check everything."""
    began = time.monotonic()
    with arena(folder, trials=trials, seed=seed, small_disk=True, module=module, verb=verb) as one:
        monkey = Monkey(one, seed, faults, trials, say)
        monkey.run()
        with embedded.open_server(one.home, purpose="the checker") as server:
            found = evidence(one, server.url, monkey)
            report = checker.check(found)
        data = embedded.status(one.home).data
        stopped = one.start("db", "down").wait(60)
        assert stopped == 0, one.log.read_text(encoding="utf-8")[-2000:]
        report.problems += checker.leftovers(one.name, one.home, data, (one.study.parent,))
        report.figures |= {"module": module, "verb": verb}
        report.figures |= figures(report, monkey, seed, time.monotonic() - began)
    return report, monkey


def figures(report: checker.Report, monkey: Monkey, seed: int, wall_s: float) -> dict[str, Any]:
    return {
        "seed": seed,
        "faults": len(monkey.done),
        "faults_by_kind": monkey.counts,
        "orchestrators": len(monkey.exits),
        "lost": report.count("loss"),
        "counted_twice": report.count("double"),
        "orphans": report.count("orphan"),
        "values_that_differ": report.count("value"),
        "past_their_limit": report.count("limit"),
        "search_disagrees": report.count("search"),
        "tracebacks": report.count("traceback"),
        "wall_s": round(wall_s, 1),
    }
