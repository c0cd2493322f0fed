"""What size costs: 10,000 trials x 100 evaluations in the database, and 5,000 trials on 200 slots.

Run: python bench/load.py [--trials 10000] [--evaluations 100] [--simulated 5000] [--slots 200]

The first part fills a real Postgres and times the commands that people wait for, as processes. The
second runs the loop itself on the simulated executor with the same Postgres and Optuna: how many
seconds of the loop one trial costs, early and late, and so how long trials must last for that many
slots to stay busy; and what the loop's memory does meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import psycopg2
from measuring import ROOT, fresh_database, machine, workplace

from sweeper.executors.simulated import SimulatedExecutor
from sweeper.paths import Home
from sweeper.report.lines import QuietProgress
from sweeper.search.memory import MemorySearch
from sweeper.spec import AttemptOutcome, AttemptSpec
from sweeper.stages import Stage1
from sweeper.storage.sql import open_store
from sweeper.study_file import load
from sweeper.sweep import Budget, StageRun
from sweeper.trial import Outcome, Reason

STUDY = """
[study]
name = "load"
[objective]
target = 2.0
[trainer]
command = ["{{python}}", "-c", "pass", "{{a}}", "{{b}}", "{{c}}", "{{d}}"]
[limits]
steps = 100000
trial_s = 1000
[resources]
gpus = 0
[racing]
cap = {cap}
{space}
[[stage1.group]]
name = "A"
grid = {{ {grid} }}
[stage2]
from_top = 6
"""
FILL = """
INSERT INTO sweep_facts.attempts (trial_key, attempt, folder, slot, recorded_at, outcome, reason,
    message, startup_s, data_s, compile_s, train_s, eval_s, checkpoint_s, idle_s, steps, tokens,
    best_loss, wall_s, started_at, ended_at, exit_code, device, validity, clock_source)
SELECT trial_key, 1, '/none', 'cpu0', now(), 'reached', 'target', 'the target was reached',
    1, 0.1, 0, 20 + position * 0.001, 1, 0, 0, 1000, 1000000, 1.99, 23, 1e9, 1e9 + 23, 0,
    '{"kind": "cpu", "index": 0}', 'valid', 'trainer'
FROM sweep_facts.trials;
INSERT INTO sweep_facts.evaluations (attempt_key, position, slice, step, tokens, value,
    startup_s, data_s, compile_s, train_s, eval_s, checkpoint_s, idle_s)
SELECT attempt_key, n - 1, 'probe', n * 10, n * 10000, 1.99 + 2.5 * (1 - n / EVALS.0),
    1, 0.1, 0, train_s * n / EVALS.0, n * 0.01, 0, 0
FROM sweep_facts.attempts, generate_series(1, EVALS) n;
ANALYZE;
"""


def study_in(folder: Path, trials: int, *, cap: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    levels = {"a": 10, "b": 10, "c": 10, "d": trials // 1000}
    space = "\n".join(
        f'[space.{name}]\ntype = "int"\nlow = 1\nhigh = 10\nbaseline = 1' for name in levels
    )
    grid = ", ".join(f"{name} = {list(range(1, n + 1))}" for name, n in levels.items())
    text = STUDY.format(space=space, grid=grid, cap=str(cap).lower())
    (folder / "study.toml").write_text(text, encoding="utf-8")
    return folder / "study.toml"


def commands(folder: Path, url: str, trials: int, evaluations: int) -> dict[str, object]:
    """Fill the database, then time the commands."""
    path = study_in(folder, trials, cap=False)
    study = load(path)
    store = open_store(url, create=True)
    plan = Stage1(study, keep=6).plan(())
    definition = study.definition("stage1")
    store.freeze(
        plan, definition=definition, definition_hash=study.definition_hash("stage1"), options={}
    )
    store.close()
    began_at = time.monotonic()
    connection = psycopg2.connect(url.replace("+psycopg2", "", 1))
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(FILL.replace("EVALS", str(evaluations)))
    connection.close()
    found: dict[str, object] = {"fill_s": round(time.monotonic() - began_at, 1)}
    env = os.environ | {"SWEEP_HOME": str(folder / "home"), "SWEEP_DATABASE_URL": url}
    env["PYTHONPATH"] = str(ROOT)
    for name, words, times in (
        ("help", ["--help"], 5),
        ("status", ["status", str(path)], 5),
        ("report", ["report", str(path)], 1),
    ):
        found[name] = min(
            (timed([sys.executable, "-m", "sweeper.cli", *words], env) for _ in range(times)),
            key=lambda figures: figures["wall_s"],
        )
        print(name, found[name], flush=True)
    return found


def timed(command: list[str], env: dict[str, str]) -> dict[str, float]:
    """Wall and processor seconds of a command, and its largest memory."""
    began_at = time.monotonic()
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    wall_s = time.monotonic() - began_at
    if os.waitstatus_to_exitcode(status) not in (0, 4):
        raise SystemExit(f"{command}: {said.decode()}")
    return {
        "wall_s": round(wall_s, 3),
        "cpu_s": round(used.ru_utime + used.ru_stime, 3),
        "peak_mb": round(used.ru_maxrss / 1024),
    }


def play(spec: AttemptSpec) -> tuple[list[str], AttemptOutcome]:
    """100 evaluations on the way to the target; how long depends on the place."""
    place = int("".join(spec.argv[-4:]))
    wall_s = 20 + 10 * math.sin(place) ** 2
    lines = []
    for n in range(100):
        body = {"v": 1, "seq": n, "event": "evaluated", "step": n, "tokens": n}
        body |= {"clock": {"train": wall_s * (n + 1) / 100}, "slice": "probe"}
        lines.append(json.dumps(body | {"metrics": {"val_loss": 2.0 + 2.5 * (99 - n) / 99}}))
    outcome = AttemptOutcome(
        study=spec.study, trial=spec.trial, attempt=spec.attempt, outcome=Outcome.REACHED,
        reason=Reason.TARGET, message="simulated", exit_code=0, signal=None,
        started_at=1e9, ended_at=1e9 + wall_s, wall_s=wall_s, device=dict(spec.device),
    )  # fmt: skip
    return lines, outcome


class Watched(SimulatedExecutor):
    """Notes, at each wait, how many slots are busy, how far the loop is, and its memory."""

    def __init__(self, slots: int) -> None:
        super().__init__(play, slots=slots)
        self.busy: list[int] = []
        self.marks: list[tuple[int, float, float, float]] = []

    def wait(self, timeout_s: float):
        self.busy.append(len(self._running))
        done = len(self.played)
        if not self.marks or done - self.marks[-1][0] >= 250:
            memory = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
            self.marks.append((done, time.monotonic(), time.process_time(), memory))
        return super().wait(timeout_s)


def simulated(
    folder: Path, url: str, trials: int, slots: int, *, cap: bool, optuna: bool, most: int | None
) -> dict[str, object]:
    study = load(study_in(folder, trials, cap=cap))
    store = open_store(url, create=True)
    executor = Watched(slots)
    lease = store.acquire(study.name, "bench", ttl_s=3600)

    def search(name: str):
        if not optuna:
            return MemorySearch()
        from sweeper.search.optuna_search import OptunaStorage

        return OptunaStorage(url).open(name, study.space, {})

    began_at, cpu_s = time.monotonic(), time.process_time()
    StageRun(
        study=study, stage=Stage1(study, keep=6), store=store, search=search, executor=executor,
        home=Home(folder / "home"), lease=lease, progress=QuietProgress(), target=2.0,
        budget=Budget(max_trials=most),
    ).run()  # fmt: skip
    wall_s, cpu_s = time.monotonic() - began_at, time.process_time() - cpu_s
    store.close()
    ended = len(executor.played)
    full = executor.busy[: max(1, len(executor.busy) - slots)]
    per_trial = [
        1e3 * (b[2] - a[2]) / (b[0] - a[0])
        for a, b in zip(executor.marks, executor.marks[1:], strict=False)
    ]
    return {
        "trials": trials,
        "ended": ended,
        "slots": slots,
        "cap": cap,
        "optuna": optuna,
        "wall_s": round(wall_s, 1),
        "wall_ms_per_trial": round(1e3 * wall_s / ended, 2),
        "cpu_ms_per_trial": round(1e3 * cpu_s / ended, 2),
        "cpu_ms_per_trial_early": round(per_trial[1], 2) if len(per_trial) > 1 else None,
        "cpu_ms_per_trial_late": round(per_trial[-2], 2) if len(per_trial) > 1 else None,
        "busy_slots_median": sorted(full)[len(full) // 2],
        "busy_slots_min": min(full),
        "memory_mb_of_trials": [
            [m[0], round(m[3])] for m in executor.marks[:: max(1, len(executor.marks) // 8)]
        ],
        "slots_stay_busy_with_trials_longer_than_s": round(wall_s / ended * slots, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000, help="a multiple of 1000")
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--simulated", type=int, default=5000)
    parser.add_argument("--slots", type=int, default=200)
    parser.add_argument("--most", type=int, help="simulate only so many of these trials")
    parser.add_argument("--cap", action="store_true", help="simulate with racing on, too")
    parser.add_argument(
        "--optuna", action="store_true", help="simulate with Optuna on Postgres, too"
    )
    parser.add_argument("--parts", nargs="+", default=["commands", "simulated"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    shown = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    result: dict[str, object] = {"machine": machine(), "command": f"python bench/{shown}"}
    with workplace() as (place, server):
        if "commands" in options.parts:
            url = fresh_database(server.url)
            result["commands"] = commands(place / "c", url, options.trials, options.evaluations)
        if "simulated" in options.parts:
            url = fresh_database(server.url)
            result["simulated"] = simulated(
                place / "s",
                url,
                options.simulated,
                options.slots,
                cap=options.cap,
                optuna=options.optuna,
                most=options.most,
            )
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
