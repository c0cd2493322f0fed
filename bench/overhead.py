"""Device idle and CPU that a sweep adds to each trial of a trivial trainer, beside a bare loop.

Run: python bench/overhead.py [--trials 48] [--rounds 3] [--out bench/results/overhead.json]

Idle is what a device would feel: from the end of one trial's training to the next one's first step,
read by the trainer itself on the machine's monotonic clock. The arms take turns; everything that
`sweep` does is persisted in a real Postgres (the embedded one, as a user has it).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from measuring import (
    BENCH,
    fresh_database,
    gaps_s,
    machine,
    outcomes,
    postmaster,
    run_sweep,
    workplace,
)

STUDY = """
[study]
name = "overhead"
[objective]
target = 1.6
[trainer]
command = ["{{python}}", "-m", "ten_lines", "{{place}}"]
cwd = "{bench}"
module = "ten_lines"
[trainer.env]
BENCH_MARKS = "{marks}"
[limits]
steps = 10
trial_s = 30
[resources]
gpus = 0
[racing]
cap = false
[space.place]
type = "int"
low = 1
high = {trials}
baseline = 1
[[stage1.group]]
name = "A"
vary = {{ place = [{places}] }}
[stage2]
from_top = 2
"""


def idle_ms(marks: Path) -> list[float]:
    """From each end of training to the next beginning, milliseconds, in order."""
    return [1e3 * gap for gap in gaps_s(marks)]


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def postgres_cpu_s(pid: int) -> float:
    """The server with every backend that it has collected, and those that live."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            rest = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(folder.name) == pid:
            total += sum(map(int, rest[11:15])) / ticks
        elif int(rest[1]) == pid:
            total += sum(map(int, rest[11:13])) / ticks
    return total


def bare(trials: int, folder: Path) -> dict[str, object]:
    """What no tool can beat without keeping an interpreter: subprocess.run, one after the other."""
    marks = folder / "marks"
    before = children_cpu_s()
    for place in range(trials):
        env = os.environ | {
            "BENCH_MARKS": str(marks),
            "SWEEP_EVENTS": str(folder / f"{place}.jsonl"),
        }
        command = [sys.executable, "-m", "ten_lines"]
        subprocess.run(command, cwd=BENCH, env=env, stdin=subprocess.DEVNULL, check=True)
    return {"idle_ms": idle_ms(marks), "cpu_ms": 1e3 * (children_cpu_s() - before) / trials}


def study(folder: Path, trials: int) -> str:
    """The study of so many trials, whose marks are in the folder."""
    places = ", ".join(map(str, range(1, trials + 1)))
    return STUDY.format(bench=BENCH, marks=folder / "marks", trials=trials, places=places)


def sweep(trials: int, folder: Path, url: str, server: int, *words: str) -> dict[str, object]:
    """The same trials as a stage of a study, through the command line."""
    marks = folder / "marks"
    text = study(folder, trials)
    if "--exec" in words:  # a trainer that cannot be imported: only its runner is forked
        text = text.replace('module = "ten_lines"\n', "")
    (folder / "study.toml").write_text(text, encoding="utf-8")
    words = tuple(word for word in words if word != "--exec")
    before, database = children_cpu_s(), postgres_cpu_s(server)
    began_at = time.monotonic()
    run_sweep(folder, url, *words)
    wall_s = time.monotonic() - began_at
    cpu_s = children_cpu_s() - before
    found = outcomes(folder)
    if (
        "--cold" not in words
    ):  # the kernel collects forked runners: what they used is in their outcomes
        cpu_s += sum(float(o["cpu_s"]) for o in found)
    return {
        "idle_ms": idle_ms(marks),
        "cpu_ms": 1e3 * cpu_s / trials,
        "postgres_cpu_ms": 1e3 * (postgres_cpu_s(server) - database) / trials,
        "wall_s": wall_s,
        "warm": sum(bool(o["warm"]) for o in found),
    }


def summary(runs: list[dict[str, object]], bare_ms: float | None) -> dict[str, object]:
    every = [x for run in runs for x in run["idle_ms"]]
    found: dict[str, object] = {
        "idle_ms_median": statistics.median(every),
        "idle_ms_mean": statistics.fmean(every),
        "idle_ms_p90": statistics.quantiles(every, n=10)[-1],
        "idle_ms_of_rounds": [statistics.median(run["idle_ms"]) for run in runs],
    }
    for name in ("cpu_ms", "postgres_cpu_ms", "wall_s"):
        if name in runs[0]:
            found[name] = statistics.median(run[name] for run in runs)
    if bare_ms is not None:
        found["above_bare_ms"] = statistics.median(every) - bare_ms
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", default=["bare", "warm", "exec", "cold"])
    parser.add_argument("--keep", type=Path, help="work here, and leave it (to be looked at)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    runs: dict[str, list[dict[str, object]]] = {arm: [] for arm in options.arms}
    with workplace(options.keep) as (place, server):
        pid = postmaster(place)
        for turn in range(options.rounds):
            for arm in options.arms:
                folder = place / f"{arm}-{turn}"
                folder.mkdir()
                if arm == "bare":
                    run = bare(options.trials, folder)
                else:
                    words = {"cold": ["--cold"], "exec": ["--exec"]}.get(arm, [])
                    url = fresh_database(server.url)
                    run = sweep(options.trials, folder, url, pid, *words)
                runs[arm].append(run)
                print(arm, turn, json.dumps(summary([run], None)), flush=True)
    bare_ms = (
        statistics.median(x for run in runs["bare"] for x in run["idle_ms"])
        if "bare" in runs
        else None
    )
    result = {
        "machine": machine(),
        "command": f"python bench/overhead.py --trials {options.trials} --rounds {options.rounds}",
        "trials": options.trials,
        "arms": {arm: summary(found, bare_ms) for arm, found in runs.items()},
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
