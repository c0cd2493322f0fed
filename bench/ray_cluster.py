"""Over Ray: what a trial costs beside Ray Tune in the same cluster, and how many GPUs a loop keeps busy.

Run: python bench/ray_cluster.py [--trials 12] [--rounds 3] [--gpus 1 10 30 100] [--quickstart]

Overhead: from the end of one trial's training to the next one's first step, read by a trivial trainer
itself, one trial at a time on one slot; `sweep --executor ray` (facts in a real Postgres, a runner and a
process for each trainer) and Ray Tune as it comes (a worker process a trial) and with reused workers (no
isolation) take turns in one cluster. Scaling: trials that only sleep on made-up GPUs, all on this
machine, so what is measured is the loop and Ray, not training: the share of the slots' time that was
spent sleeping.
Needs the extra `ray`, and ray[tune] for its arms.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from measuring import BENCH, ROOT, fresh_database, gaps_s, machine, outcomes, run_sweep, workplace
from overhead import study

sys.path.insert(0, str(ROOT / "tests" / "fakes"))
from ray_nodes import RayNodes

TUNE = """
import os, sys
from pathlib import Path
import ray
from ray import tune
folder, trials, reuse, bench = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "reuse", sys.argv[4]
def train(config):
    os.environ["BENCH_MARKS"] = str(folder / "marks")
    os.environ["SWEEP_EVENTS"] = os.devnull
    sys.path.insert(0, bench)
    import runpy
    runpy.run_module("ten_lines", run_name="__main__")
    tune.report({"loss": 1.0})
ray.init(address="auto", log_to_driver=False)
tuner = tune.Tuner(
    tune.with_resources(train, {"cpu": 1}),
    param_space={"place": tune.grid_search(list(range(trials)))},
    tune_config=tune.TuneConfig(max_concurrent_trials=1, reuse_actors=reuse),
    run_config=tune.RunConfig(storage_path=str(folder / "tune"), verbose=0),
)
results = tuner.fit()
assert not results.errors, results.errors
"""
SLEEPERS = """
[study]
name = "sleepers"
[objective]
target = 0.5
[trainer]
command = ["{{python}}", "{trainer}", "--run-for", "{seconds}", "--never", "--step-every", "50",
  "--exit-code", "{{place}}"]
[limits]
steps = 1000000
trial_s = 900
[resources]
gpus = 1
[racing]
cap = false
[validity]
gate = false
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


def sweep(folder: Path, trials: int, url: str) -> list[float]:
    (folder / "study.toml").write_text(study(folder, trials), encoding="utf-8")
    run_sweep(folder, url, "--executor", "ray")
    return gaps_s(folder / "marks")


def tune(folder: Path, trials: int, how: str) -> list[float]:
    command = [sys.executable, "-c", TUNE, str(folder), str(trials), how, str(BENCH)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return gaps_s(folder / "marks")


def overhead(place: Path, url: str, trials: int, rounds: int) -> dict[str, object]:
    arms = {"sweep": lambda folder: sweep(folder, trials, fresh_database(url))}
    if importlib.util.find_spec("ray.tune") and importlib.util.find_spec("pandas"):
        arms["tune"] = lambda folder: tune(folder, trials, "as it comes")
        arms["tune, reused workers"] = lambda folder: tune(folder, trials, "reuse")
    found: dict[str, list[list[float]]] = {name: [] for name in arms}
    with RayNodes() as cluster:
        os.environ.update(cluster.env)
        cluster.add(cpus=1)
        for i in range(rounds):
            for name, arm in arms.items():
                folder = place / f"overhead-{i}-{name.replace(' ', '-')}"
                folder.mkdir()
                found[name].append(arm(folder))
                print(f"{name}: {statistics.median(found[name][-1]):.3f} s", flush=True)
    medians = {name: [round(statistics.median(r), 4) for r in runs] for name, runs in found.items()}
    return {
        "trials": trials,
        "gap_s_median": {
            name: round(statistics.median([x for run in runs for x in run]), 4)
            for name, runs in found.items()
        },
        "gap_s_of_rounds": medians,
        "sweep_over": {
            name: [round(a / b, 3) for a, b in zip(medians["sweep"], medians[name], strict=True)]
            for name in medians
            if name != "sweep"
        },
    }


def scaling(place: Path, url: str, gpus: int, seconds: float) -> dict[str, object]:
    """Two rounds of sleepers on so many GPUs, on nodes of at most ten."""
    folder, trials = place / f"scaling-{gpus}", 2 * gpus
    folder.mkdir()
    places = ", ".join(map(str, range(1, trials + 1)))
    trainer = ROOT / "tests" / "fakes" / "trivial_trainer.py"
    text = SLEEPERS.format(trainer=trainer, seconds=seconds, trials=trials, places=places)
    (folder / "study.toml").write_text(text, encoding="utf-8")
    with RayNodes() as cluster:
        os.environ.update(cluster.env)
        for first in range(0, gpus, 10):
            cluster.add(gpus=min(10, gpus - first))
        began_at = time.monotonic()
        run_sweep(folder, fresh_database(url), "--executor", "ray", "--slots", str(gpus))
        wall_s = time.monotonic() - began_at
    ended = outcomes(folder)
    began, last = min(o["started_at"] for o in ended), max(o["ended_at"] for o in ended)
    counted = sum(o["outcome"] == "censored" for o in ended)
    slept_s = seconds * counted
    return {
        "gpus": gpus,
        "trials": trials,
        "counted": counted,
        "devices": len({o["device"]["uuid"] for o in ended}),
        "wall_s": round(wall_s, 1),
        "busy_share": round(slept_s / (gpus * (last - began)), 3),
        "first_to_last_start_of_a_round_s": round(
            sorted(o["started_at"] for o in ended)[gpus - 1] - began, 1
        ),
    }


def quickstart(place: Path, url: str) -> dict[str, object]:
    """Stage 1 of the quickstart on this machine and on three nodes: the same plan, the same losses?

    Caps and forecasts cut trials at other steps when others run beside them, and a group that builds on
    the fastest one depends on seconds: curves are compared over the steps that both have, of trials
    whose configuration both ran.
    """
    found: dict[str, dict[str, tuple[object, dict[int, float]]]] = {}
    plans: dict[str, object] = {}
    with RayNodes() as cluster:
        os.environ.update(cluster.env)
        for _ in range(3):
            cluster.add(cpus=1)
        for where, words in (("local", ()), ("ray", ("--executor", "ray"))):
            env = os.environ | {
                "SWEEP_HOME": str(place / f"quickstart-{where}"),
                "SWEEP_DATABASE_URL": fresh_database(url),
            }
            cli = [sys.executable, "-m", "sweeper.cli"]
            plan = [*cli, "plan", "quickstart", "--stage", "1", "--json"]
            said = subprocess.run(plan, env=env, cwd=ROOT, capture_output=True, check=True)
            plans[where] = json.loads(said.stdout)["points"]
            stage = [*cli, "stage1", "quickstart", *words]
            subprocess.run(stage, env=env, cwd=ROOT, capture_output=True, check=False)
            export = [*cli, "export", "quickstart", "--trials"]
            said = subprocess.run(export, env=env, cwd=ROOT, capture_output=True, check=True)
            rows = [json.loads(line) for line in said.stdout.splitlines()]
            found[where] = {
                row["id"]: (row["point"], {step: loss for _, step, _, loss in row["curve"]})
                for row in rows
            }
            nodes = {row["device"].get("node") for row in rows}
    compared = same = values = 0
    for name, (point, curve) in found["local"].items():
        other_point, other = found["ray"].get(name, (None, {}))
        if other_point == point and (steps := set(curve) & set(other)):
            compared += 1
            values += len(steps)
            same += all(curve[step] == other[step] for step in steps)
    return {
        "same_plan": plans["local"] == plans["ray"],
        "nodes": len(nodes),
        "trials": {where: len(trials) for where, trials in found.items()},
        "trials_compared": compared,
        "losses_compared": values,
        "trials_with_every_loss_equal_bit_for_bit": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpus", type=int, nargs="*", default=[1, 10, 30, 100])
    parser.add_argument("--quickstart", action="store_true", help="also compare its losses")
    parser.add_argument("--sleep-s", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=BENCH / "results" / "ray_cluster.json")
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    result: dict[str, object] = {"machine": machine(), "command": " ".join(sys.argv)}

    def keep() -> None:  # after every part: what was measured is not lost with what comes after it
        result["load_average_after"] = [round(x, 2) for x in os.getloadavg()]
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    with workplace() as (place, server):
        if args.rounds:
            result["overhead"] = overhead(place, server.url, args.trials, args.rounds)
            keep()
        if args.quickstart:
            result["quickstart"] = quickstart(place, server.url)
            print(result["quickstart"], flush=True)
        result["scaling"] = found = []
        for gpus in args.gpus:
            os.environ["SWEEP_DEVICE_LOCKS"] = str(place / f"locks-{gpus}")
            found.append(scaling(place, server.url, gpus, args.sleep_s))
            print(found[-1], flush=True)
            keep()
    keep()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
