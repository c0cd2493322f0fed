"""Turnaround: from the end of one trial's training to the next one's first training step, torch on CPU.

Run: python bench/turnaround.py [--trials 6] [--rounds 3] [--ray-python PYTHON] [--out FILE]

The same trainer (its start, imports, data, model, warm-up step and first evaluation all lie between
two trainings), one trial after the other on one core: `sweep` cold and warm, everything persisted in
Postgres; plain Optuna with a subprocess a trial, in memory; Ray Tune as it comes (a worker process a
trial) and with reused workers. The arms take turns. Ray is run by --ray-python, an interpreter that
has ray, torch and numpy; where that is missing its arms are left out, and the result says so.
Training seconds of the same trials, warm over cold, come with an interval: warm starts must not change
what is measured. Part of every gap is the trial's own: its data, warm-up step and first evaluation,
which no way of starting it can leave out; `above_own_work` is the rest.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from measuring import BENCH, ROOT, fresh_database, machine, outcomes, run_sweep, turns, workplace
from scipy.stats import t as student_t

STEPS = 8
CONFIG = f"""
[model]
kind = "ngpt"
layers = 3
width = 96
heads = 3
hidden = 256
[optim]
kind = "muon"
[optim.muon]
lr = 0.01
[data]
kind = "stdlib"
max_bytes = 3000000
batch_size = 16
context = 64
[eval]
probe_tokens = 8192
confirmation_tokens = 16384
[run]
device = "cpu"
max_steps = {STEPS}
target = 1.0
"""
STUDY = """
[study]
name = "turnaround"
[objective]
target = 1.0
[trainer]
command = ["{{python}}", "-m", "timed_trainer", "train", "--config", "{{config}}"]
config = "base.toml"
cwd = "{bench}"
module = "timed_trainer"
[trainer.env]
BENCH_MARKS = "{marks}"
[limits]
steps = {steps}
trial_s = 60
[resources]
gpus = 0
[racing]
cap = false
[validity]
gate = false  # a busy machine makes it slower, and must not make it another number of trials
[space."optim.muon.lr"]
type = "float"
low = 0.001
high = 0.1
scale = "log"
baseline = 0.01
[[stage1.group]]
name = "A"
vary = {{ "optim.muon.lr" = [{rates}] }}
[stage2]
from_top = 2
"""
RAY = """
import json, os, sys, tomllib
from pathlib import Path
import ray
from ray import tune
folder, trials, reuse, bench = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "reuse", sys.argv[4]
def train(config):
    os.sched_setaffinity(0, {int(os.environ["BENCH_CORE"])})
    sys.path.insert(0, bench)
    from timed_trainer import in_process
    raw = tomllib.loads((folder / "base.toml").read_text())
    raw["optim"]["muon"]["lr"] = config["lr"]
    in_process(raw, folder / "ray.jsonl")
    tune.report({"loss": 1.0})
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[5])
tuner = tune.Tuner(
    tune.with_resources(train, {"cpu": 1}),
    param_space={"lr": tune.grid_search([0.01 + 0.001 * i for i in range(trials)])},
    tune_config=tune.TuneConfig(max_concurrent_trials=1, reuse_actors=reuse),
    run_config=tune.RunConfig(storage_path=str(folder / "ray"), verbose=0),
)
results = tuner.fit()
assert not results.errors, results.errors
ray.shutdown()
"""


def sweep(folder: Path, trials: int, url: str, *words: str) -> dict[str, object]:
    rates = ", ".join(f"{0.01 + 0.001 * i:g}" for i in range(trials))
    values = {"bench": BENCH, "marks": folder / "marks", "steps": STEPS, "rates": rates}
    (folder / "study.toml").write_text(STUDY.format(**values), encoding="utf-8")
    (folder / "base.toml").write_text(CONFIG, encoding="utf-8")
    run_sweep(folder, url, *words)
    found = outcomes(folder)
    assert len(found) == trials and all(o["reason"] == "steps" for o in found), found
    return {
        **gaps(folder),
        "warm": sum(bool(o["warm"]) for o in found),
        "train_s": train_s(folder),
    }


def gaps(folder: Path) -> dict[str, list[float]]:
    """Seconds of every turnaround, and what is left of each without the trial's own work."""
    found = turns(folder / "marks")
    whole = [b["at"] - a["at"] for a, b in found]
    return {
        "gaps_s": whole,
        "above_s": [gap - b["own_s"] for gap, (_, b) in zip(whole, found, strict=True)],
    }


def train_s(folder: Path) -> dict[str, float]:
    """Training seconds of every trial, by its id, as the trainer measured them."""
    found = {}
    for path in (folder / "home").glob("runs/*/*/attempt-1/events.jsonl"):
        last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
        found[path.parent.parent.name] = float(last["clock"]["train"])
    return found


def paired(warm: list[float], cold: list[float]) -> dict[str, object]:
    """Warm over cold training seconds of the same trials in the same rounds: ratio, 95 % interval."""
    logs = [math.log(a / b) for a, b in zip(warm, cold, strict=True)]
    mean, half = statistics.fmean(logs), math.nan
    if len(logs) > 1:
        error = statistics.stdev(logs) / math.sqrt(len(logs))
        half = float(student_t.ppf(0.975, len(logs) - 1)) * error
    return {
        "ratio": round(math.exp(mean), 4),
        "interval_95": [round(math.exp(mean - half), 4), round(math.exp(mean + half), 4)],
        "pairs": len(logs),
    }


def plain_optuna(folder: Path, trials: int, env: dict[str, str], core: int) -> dict[str, object]:
    """What people write: ask, a configuration file, subprocess.run, tell."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize")
    for i in range(trials):
        trial = study.ask()
        rate = trial.suggest_float("lr", 0.01, 0.02)
        config = folder / f"{i}.toml"
        config.write_text(CONFIG.replace("lr = 0.01", f"lr = {rate}", 1), encoding="utf-8")
        command = [sys.executable, "-m", "timed_trainer", "train", "--config", str(config)]
        subprocess.run(
            command,
            cwd=BENCH,
            env=env | {"SWEEP_EVENTS": str(folder / f"{i}.jsonl")},
            check=True,
            capture_output=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        last = (folder / f"{i}.jsonl").read_text().splitlines()[-1]
        study.tell(trial, json.loads(last)["best_loss"])
    return gaps(folder)


def ray_tune(
    folder: Path, trials: int, env: dict[str, str], python: str, *, reuse: bool
) -> dict[str, object]:
    (folder / "base.toml").write_text(CONFIG, encoding="utf-8")
    script = folder / "with_ray.py"
    script.write_text(RAY, encoding="utf-8")
    words = [str(folder), str(trials), "reuse" if reuse else "new", str(BENCH), str(folder / "r")]
    done = subprocess.run(
        [python, str(script), *words],
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(
            f"ray: exit {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
    return gaps(folder)


def has_ray(python: str) -> str:
    """Ray's version there, or "" where it cannot be imported."""
    command = [python, "-c", "import ray.tune, torch; print(ray.__version__)"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def summary(gaps: list[float]) -> dict[str, object]:
    quartiles = statistics.quantiles(gaps, n=4)
    return {
        "median_s": round(statistics.median(gaps), 4),
        "quartiles_s": [round(quartiles[0], 4), round(quartiles[2], 4)],
        "n": len(gaps),
    }


def faster_by(found: dict[str, list[float]]) -> dict[str, float]:
    """Each arm's median over the warm one's."""
    warm = statistics.median(found["warm"])
    return {a: round(statistics.median(v) / warm, 2) for a, v in found.items() if a != "warm"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", default=["warm", "cold", "optuna", "ray", "ray_reuse"])
    parser.add_argument("--ray-python", default=sys.executable)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    ray = has_ray(options.ray_python) if any(a.startswith("ray") for a in options.arms) else ""
    arms = [a for a in options.arms if ray or not a.startswith("ray")]
    core = min(os.sched_getaffinity(0))
    whole: dict[str, list[float]] = {arm: [] for arm in arms}
    above: dict[str, list[float]] = {arm: [] for arm in arms}
    trained: dict[str, list[float]] = {"warm": [], "cold": []}
    with workplace() as (place, server):
        for turn in range(options.rounds):
            for arm in arms:
                folder = place / f"{arm[0]}{arm[-1]}{turn}"  # short: Ray puts sockets below it
                folder.mkdir()
                env = os.environ | {
                    "BENCH_MARKS": str(folder / "marks"),
                    "BENCH_CORE": str(core),
                    "OMP_NUM_THREADS": "1",
                    "PYTHONPATH": f"{BENCH}{os.pathsep}{ROOT}",
                }
                began_at = time.monotonic()
                if arm == "optuna":
                    run = plain_optuna(folder, options.trials, env, core)
                elif arm.startswith("ray"):
                    reuse = arm == "ray_reuse"
                    run = ray_tune(folder, options.trials, env, options.ray_python, reuse=reuse)
                else:
                    words = ["--cold"] if arm == "cold" else []
                    run = sweep(folder, options.trials, fresh_database(server.url), *words)
                    assert run["warm"] == (0 if words else options.trials), run
                    trained[arm] += [seconds for _, seconds in sorted(run["train_s"].items())]
                whole[arm] += run["gaps_s"]
                above[arm] += run["above_s"]
                wall_s = time.monotonic() - began_at
                print(arm, turn, f"{wall_s:.1f} s", summary(run["gaps_s"]), flush=True)
    result = {
        "what": "end of one trial's training to the next one's first training step, seconds",
        "machine": machine(),
        "command": "python bench/" + " ".join([Path(sys.argv[0]).name, *_shown(sys.argv[1:])]),
        "ray": ray or "not installed: its arms were left out",
        "arms": {
            arm: summary(whole[arm]) | {"above_own_work": summary(above[arm])} for arm in arms
        },
    }
    if "warm" in arms:
        result["warm_is_faster_by"] = faster_by(whole)
        result["warm_is_faster_above_own_work_by"] = faster_by(above)
    if len(trained["warm"]) == len(trained["cold"]) > 1:
        result["train_seconds_warm_over_cold"] = paired(trained["warm"], trained["cold"])
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _shown(words: list[str]) -> list[str]:
    """The command line without where an interpreter lies on this machine."""
    shown = list(words)
    for place, word in enumerate(words[:-1]):
        if word == "--ray-python":
            shown[place + 1] = "PYTHON"
    return shown


if __name__ == "__main__":
    main()
