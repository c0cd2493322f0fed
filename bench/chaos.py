"""The long form of tests/chaos: sweeps under a monkey until so many faults were done, then the checker.

Run: python bench/chaos.py [--faults 200] [--seed 1] [--trials 160] [--out bench/results/chaos.json]

Sweeps take turns: stage 1 with trainers that are started anew, stage 1 with trainers forked from a warm
parent (and some orchestrators told to be cold), and all three stages, warm again.

Exit code 1 when anything was lost, counted twice, changed, left running or past its limit.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.chaos import battle  # noqa: E402

FAULTS_A_SWEEP = 70
FORMS = ((False, "stage1"), (True, "stage1"), (True, "run"))
ADDED_UP = (
    "faults", "trials", "attempts", "trainers", "warm_starts", "evaluations", "orchestrators", "lost",
    "counted_twice", "orphans", "values_that_differ", "past_their_limit", "search_disagrees",
    "tracebacks",
)  # fmt: skip
NONE_ALLOWED = ADDED_UP[7:]


def machine() -> dict[str, object]:
    memory = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()[0].split()[1]
    cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    model = next((c.partition(":")[2].strip() for c in cpus if c.startswith("model name")), "")
    return {
        "cpus": os.cpu_count(),
        "cpu": model,
        "memory_gib": round(int(memory) / 2**20, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def sweep(
    seed: int, faults: int, trials: int, module: bool, verb: str
) -> tuple[dict[str, object], list[str]]:
    """One sweep, its figures and its problems."""
    place = Path(tempfile.mkdtemp(prefix="sweep-chaos-"))
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"  {time.monotonic() - began:6.1f} s  {text}", flush=True)

    try:
        report, _ = battle.fight(
            place, seed=seed, faults=faults, trials=trials, module=module, verb=verb, say=say
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)
    report.figures["load_average"] = [round(load, 1) for load in os.getloadavg()]
    return report.figures, [str(problem) for problem in report.problems]


def summary(asked, sweeps, problems, wall_s: float) -> dict[str, object]:
    """All sweeps so far as one document; written after each, so that a stop loses only one."""
    total = {name: sum(s[name] for s in sweeps) for name in ADDED_UP}
    total["worst_past_limit_and_grace_s"] = max(s["worst_past_limit_and_grace_s"] for s in sweeps)

    def added_up(name: str) -> dict[str, int]:
        return dict(sorted(sum((Counter(s[name]) for s in sweeps), Counter()).items()))

    return {
        "what": "sweeps of short trials under a seeded monkey, then the invariant checker",
        "command": f"python bench/chaos.py --faults {asked.faults} --seed {asked.seed} "
        f"--trials {asked.trials}",
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "seeds": [s["seed"] for s in sweeps],
        "total": total,
        "faults_by_kind": added_up("faults_by_kind"),
        "trials_by_stage": added_up("trials_by_stage"),
        "attempts_by_reason": added_up("attempts_by_reason"),
        "wall_s": round(wall_s, 1),
        "problems": problems,
        "sweeps": sweeps,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200, help="at least so many in all")
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first sweep; then the next ones"
    )
    parser.add_argument("--trials", type=int, default=160, help="of each sweep, about")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "chaos.json")
    asked = parser.parse_args()
    began, seed = time.monotonic(), asked.seed
    sweeps, problems = [], []
    while (done := sum(s["faults"] for s in sweeps)) < asked.faults:
        faults = min(FAULTS_A_SWEEP, asked.faults - done)
        module, verb = FORMS[len(sweeps) % len(FORMS)]
        what = f"{verb}, {'warm' if module else 'cold'} trainers"
        print(f"sweep {len(sweeps) + 1}, seed {seed}: {faults} faults, {what}", flush=True)
        figures, found = sweep(seed, faults, asked.trials, module, verb)
        sweeps.append(figures)
        problems += found
        seed += 1
        document = summary(asked, sweeps, problems, time.monotonic() - began)
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        asked.out.write_text(text, encoding="utf-8")
    total = document["total"]
    print(json.dumps(total, indent=2))
    for line in problems:
        print(line)
    return int(bool(problems) or any(total[name] for name in NONE_ALLOWED))


if __name__ == "__main__":
    sys.exit(main())
