"""How long the report of a synthetic sweep of 84 trials takes, in a fresh process, and its size.

Run: python bench/report_time.py [--rounds 5] [--out FILE]

The sweep is made up (tests/fakes/facts.py): 48 trials of stage 1 and 36 of stage 2, about 100
evaluations each, three questions. Imports are measured apart: a command pays them once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def facts():
    import itertools
    import random

    from sweeper.study import Limits, Question
    from tests.fakes.facts import Clockwork, make_study, true_seconds

    questions = tuple(
        Question(text=f"Which {name}?", parameter=name)
        for name in ("optim.method", "optim.lr", "data.batch_size")
    )
    study = make_study(questions=questions, limits=Limits(steps=4000, trial_s=60.0))
    work, draw = Clockwork(study), random.Random(3)
    rates, batches = (0.003, 0.006, 0.01, 0.02, 0.03, 0.06), (8, 16, 24, 32)
    cells = list(itertools.product(rates, batches, ("newton_schulz", "polar_express")))
    for number, (lr, batch, method) in enumerate(cells):  # 48
        values = {"optim.lr": lr, "data.batch_size": batch, "optim.method": method}
        add(work, "stage1", f"s1-A{number}", values, draw=draw, true_seconds=true_seconds)
    for number in range(36):
        values = {
            "optim.lr": rates[number % 5], "data.batch_size": batches[number // 5 % 4],
            "optim.method": "polar_express", "model.projection": bool(number % 2),
        }  # fmt: skip
        add(work, "stage2", f"s2-{number}", values, draw=draw, true_seconds=true_seconds)
    varying = {"optim.lr": rates[:5], "data.batch_size": batches, "model.projection": (False, True)}
    second = work.stage("stage2", varying=varying, design={"kind": "fraction", "runs": 36})
    return work.facts(stage1=work.stage("stage1"), stage2=second)


def add(work, stage, name, values, *, draw, true_seconds) -> None:
    seconds, step_s = true_seconds({**work.study.space.baseline(), **values})
    wobble = draw.gauss(1, 0.03)
    if seconds > 6:
        work.trial(stage, name, values, None, stop_s=5.0, step_s=step_s / 8)
    else:
        work.trial(stage, name, values, seconds * wobble, step_s=step_s / 8)


def once() -> dict[str, float]:
    began = time.monotonic()
    import scipy.optimize
    import scipy.special  # noqa: F401

    from sweeper.report import (  # noqa: F401 - what write_report imports
        answers,
        figures,
        html,
        json_report,
        markdown,
        write_report,
    )  # fmt: skip

    imported = time.monotonic()
    found = facts()
    made = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        written = write_report(found, Path(folder))
        done = time.monotonic()
        return {
            "trials": sum(len(s.facts) for s in found.stages.values()),
            "evaluations": sum(
                len(t.counted.curve) for s in found.stages.values() for t in s.facts
            ),
            "imports_s": imported - began,
            "report_s": done - made,
            "cpu_s": time.process_time(),
            "html_bytes": written.html.stat().st_size,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--once", action="store_true")
    args = parser.parse_args()
    if args.once:
        print(json.dumps(once()))
        return
    rounds = []
    for _ in range(args.rounds):
        done = subprocess.run(
            [sys.executable, __file__, "--once"], capture_output=True, text=True, check=True
        )
        rounds.append(json.loads(done.stdout))
        print(rounds[-1])
    document = {
        "machine": {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "load_average": list(os.getloadavg()),
        },
        "command": f"python bench/report_time.py --rounds {args.rounds}",
        "rounds": rounds,
    }
    if args.out:
        args.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
