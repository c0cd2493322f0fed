"""One long outage of the database in a sweep whose trials are shorter and longer than it.

Run: python bench/outage.py [--away 600] [--out bench/results/outage.json]

The socket between sweep and its database is cut while trainers run, for so many seconds. Some of them
end meanwhile, one trains through all of it, the others start afterwards. Then the checker of tests/chaos
looks at run folders, tables and the trainers' diary. Exit code 1 when anything was lost, doubled or
changed.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.chaos import machine  # noqa: E402
from sweeper.storage import embedded  # noqa: E402
from sweeper.storage.sql import open_store  # noqa: E402
from tests.chaos import battle, checker  # noqa: E402
from tests.chaos.arena import COMPLETE, arena, wait_until  # noqa: E402
from tests.chaos.proxy import LosingProxy  # noqa: E402

SLOTS = 4
# Seconds that trials take, as shares of the outage; the first SLOTS of them are hit by it.
SHARES = (0.25, 0.5, 0.8, 1.08, 0.02, 0.02, 0.02, 0.02)
GROUP = """
[[stage1.group]]
name = "A"
vary = {{ "optim.lr" = {rates} }}
"""


def write_study(path: Path, away_s: float) -> float:
    """Make the arena's study one of trials of those lengths; returns their limit."""
    tau_s = min(SHARES) * away_s / 1.0986  # the trivial trainer reaches 2.0 after tau ln 3
    rates = []
    for i, share in enumerate(SHARES):
        slower = share / min(SHARES) * (1 + 0.01 * i)  # = 1 + 2 log10(lr / 0.01) ** 2
        rates.append(float(f"{0.01 * 10 ** ((max(0.0, slower - 1) / 2) ** 0.5):.6g}"))
    limit_s = 2 * away_s
    text = path.read_text(encoding="utf-8")
    head, _, _ = text.partition("[[stage1.group]]")
    head = head.replace("high = 0.05", "high = 10000.0").replace(
        "trial_s = 2.0", f"trial_s = {limit_s}"
    )
    head = head.replace("silence_s = 1.5", "silence_s = 60").replace(
        "steps = 1000", "steps = 1000000"
    )
    path.write_text(head + GROUP.format(rates=rates), encoding="utf-8")
    base = path.parent / "base ☃.toml"
    lines = base.read_text(encoding="utf-8").replace("step_s = 0.01", "step_s = 0.5")
    base.write_text(lines.replace("tau_s = 0.06", f"tau_s = {tau_s}"), encoding="utf-8")
    return limit_s


def fight(place: Path, away_s: float) -> dict[str, object]:
    """One sweep with one outage; what was seen."""
    home, sockets = place / "db", place / "s"
    sockets.mkdir(mode=0o700)
    with embedded.open_server(home, purpose="bench/outage.py") as server:
        open_store(server.url, create=True).close()
        proxy = LosingProxy(server.url, sockets)
        with arena(
            place,
            url=proxy.url,
            trials=13,
            seed=1,
            slots=SLOTS,
            manners=False,
            cap=False,
            tau_s=0.06,
        ) as one:
            limit_s = write_study(one.study, away_s)
            began = time.monotonic()
            process = one.start()

            def at_work() -> int:
                return sum(r["trainer"] is not None for _, r in one.under_way())

            wait_until(lambda: at_work() == SLOTS, 120, "trainers at work")
            proxy.go_away()
            away_at = time.monotonic()
            beats = one.diary.stat().st_size
            while time.monotonic() - away_at < away_s:
                assert process.poll() is None, one.log.read_text(encoding="utf-8")[-2000:]
                time.sleep(1.0)
            running, ended = at_work(), one.outcomes()
            beats = one.diary.stat().st_size - beats
            proxy.come_back()
            code = process.wait(limit_s)
            log = one.log.read_text(encoding="utf-8")
            found = replace(battle.evidence(one, server.url), trial_s=limit_s)
            report = checker.check(found)
            report.problems += checker.leftovers(one.name, one.home, places=(one.study.parent,))
        proxy.close()
    embedded.stop(home, force=True)
    return {
        "away_s": away_s,
        "exit": code,
        "ended_meanwhile": ended,
        "still_training_when_it_came_back": running,
        "bytes_of_the_trainers_diary_written_meanwhile": beats,
        "said": [
            line for line in log.splitlines() if "waiting for it" in line or "is back" in line
        ],
        "wall_s": round(time.monotonic() - began, 1),
        **report.figures,
        "lost": report.count("loss"),
        "counted_twice": report.count("double"),
        "values_that_differ": report.count("value"),
        "orphans": report.count("orphan"),
        "problems": [str(problem) for problem in report.problems],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--away", type=float, default=600.0, metavar="SECONDS")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "outage.json")
    asked = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="sweep-outage-"))
    place.chmod(0o711)
    try:
        seen = fight(place, asked.away)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    document = {
        "what": "one outage of the database while trials run, then the invariant checker",
        "command": f"python bench/outage.py --away {asked.away:g}",
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        **seen,
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    asked.out.write_text(text, encoding="utf-8")
    print(text)
    meanwhile = seen["ended_meanwhile"] and seen["still_training_when_it_came_back"]
    return int(bool(seen["problems"]) or seen["exit"] not in COMPLETE or not meanwhile)


if __name__ == "__main__":
    sys.exit(main())
