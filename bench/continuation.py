"""Steps from a checkpoint to the target, for each strategy of studies/continuation and several seeds.

Steps, unlike seconds, do not depend on what else a machine does. Every seed has its own phase 1; the
strategies of a seed share it. With --memorise instead: what phase 1 and its extension do to so little
data that every window is seen as often as in the document (124 and 1,240 times).

    python bench/continuation.py --seeds 6 --out bench/results/continuation.json
    python bench/continuation.py --memorise --out bench/results/continuation-memorised.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from scipy import stats

from sweeper.paths import write_whole
from sweeper.study_file import load

ROOT = Path(__file__).resolve().parent.parent
CONSTANT = {"kind": "constant"}


def train(folder: Path, config: dict[str, Any], *arguments: str) -> list[dict[str, Any]]:
    """One run of the trainer in a folder; its evaluations on the probe."""
    folder.mkdir(parents=True)
    path = folder / "config.toml"
    path.write_text(tomli_w.dumps(config), encoding="utf-8")
    command = [sys.executable, "-m", "trainer", "train", "--config", str(path), *arguments]
    environment = os.environ | {"SWEEP_RUN_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    environment["SWEEP_EVENTS"] = str(folder / "events.jsonl")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    events = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [e for e in events if e["event"] == "evaluated" and e["slice"] == "probe"]


def merged(config: dict[str, Any], **changes: dict[str, Any]) -> dict[str, Any]:
    """The configuration with keys of its sections changed."""
    return {**config, **{name: {**config.get(name, {}), **new} for name, new in changes.items()}}


def checkpoint(folder: Path) -> str:
    """The one that a run left at its end."""
    return str(max((folder / "checkpoints").glob("step-*.pt")))


def crossing(curve: list[dict[str, Any]], target: float) -> float | None:
    """Steps until the target, interpolated between two evaluations; None: not reached."""
    before = None
    for now in curve:
        loss = now["metrics"]["val_loss"]
        if loss <= target and before is not None:
            was = before["metrics"]["val_loss"]
            share = (was - target) / (was - loss)
            return float(before["step"] + share * (now["step"] - before["step"]))
        before = now
    return None


def strategies(seeds: int) -> Iterator[dict[str, Any]]:
    """Steps from the checkpoint and paired ratios, all so far, after each seed from the second."""
    study = load(ROOT / "studies" / "continuation", scale="small")
    base = tomllib.loads((ROOT / "studies" / "continuation" / "small.toml").read_text())
    phase, target = study.phases["one"].steps, study.objective.target
    found: dict[str, list[float]] = {name: [] for name in study.starts}
    left: list[float] = []
    for seed in range(1, seeds + 1):
        with tempfile.TemporaryDirectory() as place:
            first = Path(place) / "phase"
            run = {"seed": seed, "max_steps": phase}
            curve = train(first, merged(base, schedule=CONSTANT, run=run))
            left.append(curve[-1]["metrics"]["val_loss"])
            for name, start in study.starts.items():
                run = {"seed": seed, "max_steps": start.steps or study.limits.steps}
                words = [w.replace("{checkpoint}", checkpoint(first)) for w in start.arguments]
                whole = merged(base, run={**run, "target": target})
                curve = train(Path(place) / name, whole, *words)
                steps = crossing(curve, target)
                if steps is None:
                    raise SystemExit(f"{name}, seed {seed}: {target} was not reached")
                found[name].append(steps - (phase if "--resume" in words else 0))
                print(
                    f"seed {seed} {name}: {found[name][-1]:.1f} steps from the checkpoint",
                    flush=True,
                )
        if seed > 1:
            others = [name for name in found if name != "extended"]
            yield {
                "target": target,
                "phase_steps": phase,
                "val_loss_at_the_checkpoint": left,
                "steps_from_the_checkpoint": found,
                "ratio_to_extended": {n: ratio(found[n], found["extended"]) for n in others},
            }


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Geometric mean of paired ratios, with Student's 95 % interval of the mean of their logarithms."""
    logs = np.log(np.array(ours) / np.array(theirs))
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    middle = logs.mean()
    low, high = np.exp([middle - half, middle + half])
    return {"ratio": float(np.exp(middle)), "low": float(low), "high": float(high), "n": len(logs)}


def memorise() -> dict[str, Any]:
    """48 windows in steps of 12: 500 and 5,000 steps see each as often as the document's do."""
    base = tomllib.loads((ROOT / "studies" / "continuation" / "small.toml").read_text())
    data = {"kind": "text", "path": str(Path(sysconfig.get_path("stdlib"), "argparse.py"))}
    data |= {"max_bytes": 7300, "validation_share": 0.57, "batch_size": 12, "context": 64}
    base = merged(base, data=data, schedule={"warmup_steps": 50})
    base = merged(base, eval={"probe_tokens": 2048, "confirmation_tokens": 4096})
    with tempfile.TemporaryDirectory() as place:
        first, second = Path(place) / "phase", Path(place) / "more"
        once = train(first, merged(base, schedule=CONSTANT, run={"max_steps": 500}))
        longer = merged(base, run={"max_steps": 5000})
        more = train(second, longer, "--resume", checkpoint(first))
        started = json.loads((second / "events.jsonl").read_text().splitlines()[0])
    curve = [(e["step"], e["metrics"]["val_loss"]) for e in (*once, *more)]
    best = min(curve, key=lambda point: point[1])
    return {"audit": started["data_audit"], "best": best, "end": curve[-1], "curve": curve}


def main() -> None:
    """Measure, print, and write JSON with where it was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--memorise", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    load_before = os.getloadavg()
    where: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count()}
    where |= {"load_before": load_before, "command": sys.argv}
    for found in [memorise()] if options.memorise else strategies(options.seeds):
        where["load_after"] = os.getloadavg()
        write_whole(options.out, json.dumps({**found, "where": where}, indent=1) + "\n")
        print(json.dumps({k: v for k, v in found.items() if k != "curve"}), flush=True)


if __name__ == "__main__":
    main()
