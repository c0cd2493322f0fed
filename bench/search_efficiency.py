"""What racing saves and what it loses, on really trained curves: figures 1 to 4, results as JSON.

Run: python bench/search_efficiency.py [--seeds 100] [--figures 1,2,3,4] [--limits 2,4,10] [--wide]
     [--out FILE]

The table (bench/data/curves.csv.gz, made by bench/make_curves.py) holds one loss curve for each of 288
configurations of a small GPT, on its own seconds of processor time; with --wide there are 192 more, at
learning rates 2 and 4 times below and above those, of which 55 do not get there within 16 s. A trial in
virtual time follows its curve with its seconds multiplied by noise (lognormal, sd 3 %, one draw per seed
and run). A seed also draws the study's baseline, so that hardly two sweeps have the same plan. Nothing
is on a real clock.
"""

from __future__ import annotations

import argparse
import collections
import csv
import functools
import gzip
import itertools
import json
import math
import os
import platform
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from sweeper.analysis.confirm import confirmation
from sweeper.analysis.dataset import StageFacts, StudyFacts
from sweeper.design.adaptive import plan_adaptive
from sweeper.design.confirm import plan_confirm
from sweeper.design.refine import plan_stage2
from sweeper.design.region import choose_region, choose_top
from sweeper.executors.replay import EPOCH, Recording
from sweeper.objective import crossing
from sweeper.racing.standing import Times
from sweeper.replay import replay, with_racing, without_racing
from sweeper.search.optuna_search import sampler
from sweeper.space import Categorical, Integer, Point, Space
from sweeper.stages import AdaptiveStage, ConfirmStage, FixedStage, Stage1
from sweeper.study import (
    BestOf,
    Confirm,
    Group,
    Limits,
    Objective,
    Racing,
    Stage2,
    Study,
    TrainerCommand,
)
from sweeper.study import Stage1 as Stage1Settings
from sweeper.trial import Evaluation, Phases, Reason

TABLE = Path(__file__).parent / "data" / "curves.csv.gz"
MORE_RATES = Path(__file__).parent / "data" / "curves-more-rates.csv.gz"
TARGET = 2.6
NOISE = 0.03
WITHIN = 1.05
NAMES = ("optimizer", "lr_i", "batch_i", "momentum", "decay", "warmup")
BATCHES = (8, 16, 32)
K, TOP, RUNS = 5, 3, 24
LIMITS = (2, 4, 10)


def _rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Table:
    """Every configuration's curve: (step, tokens, seconds, loss), and its true crossing time."""

    def __init__(self, paths: Sequence[Path], target: float) -> None:
        self.target = target
        self.curves: dict[tuple, tuple[Evaluation, ...]] = {}
        for row in itertools.chain.from_iterable(map(_rows, paths)):
            if row["seed"] != "1":
                continue
            key = self.key({n: row[n] for n in NAMES})
            every, step_s = int(row["every"]), float(row["step_s"])
            losses = [math.nan if x == "" else float(x) for x in row["losses"].split(" ")]
            self.curves[key] = tuple(
                Evaluation(
                    n * every,
                    n * every * int(row["tokens_per_step"]),
                    Phases(train=n * every * step_s),
                    loss,
                )
                for n, loss in enumerate(losses)
            )
        self.rates = tuple(sorted({key[1] for key in self.curves}))
        found = {k: crossing(c, target, "train") for k, c in self.curves.items()}
        self.true = {k: f.seconds for k, f in found.items() if f is not None}
        self.best = min(self.true.values())
        self.median = statistics.median(self.true.values())

    @staticmethod
    def key(values) -> tuple:
        return (
            str(values["optimizer"]),
            int(values["lr_i"]),
            int(values["batch_i"]),
            float(values["momentum"]),
            float(values["decay"]),
            int(values["warmup"]),
        )

    def good(self, key: tuple) -> bool:
        return self.true.get(key, math.inf) <= WITHIN * self.best

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - one table lives as long as the program
    def noisy(self, key: tuple, factor: float) -> tuple[Evaluation, ...]:
        return tuple(
            Evaluation(e.step, e.tokens, Phases(train=e.clock.train * factor), e.value)
            for e in self.curves[key]
        )


def make_space(rates: Sequence[int], drawn: Mapping[str, Any]) -> Space:
    """The table's parameters, with the drawn values as the baseline."""
    parameters = (
        Categorical("optimizer", ("adamw", "muon"), baseline=drawn["optimizer"]),
        Integer("lr_i", rates[0], rates[-1], levels=len(rates), baseline=drawn["lr_i"]),
        Integer("batch_i", 0, 2, levels=3, baseline=drawn["batch_i"]),
        Categorical("momentum", (0.8, 0.95), baseline=drawn["momentum"]),
        Categorical("decay", (0.0, 0.1), baseline=drawn["decay"]),
        Categorical("warmup", (0, 20), baseline=drawn["warmup"]),
    )
    return Space({p.name: p for p in parameters})


def make_study(table: Table, seed: int, limit_s: float) -> Study:
    """A two-stage study with a baseline of its own: 21 entries (the wide table: 29), then 24 runs."""
    draw = random.Random(seed)
    drawn = {
        "optimizer": draw.choice(("adamw", "muon")),
        "lr_i": draw.choice(table.rates),
        "batch_i": draw.randrange(3),
        "momentum": draw.choice((0.8, 0.95)),
        "decay": draw.choice((0.0, 0.1)),
        "warmup": draw.choice((0, 20)),
    }
    space = make_space(table.rates, drawn)
    of_a = BestOf(group="A", parameters=("optimizer", "lr_i"))
    groups = (
        Group(name="A", grid={"optimizer": ("adamw", "muon"), "lr_i": table.rates[1::2]}),
        Group(name="B", best_of=of_a, vary={"batch_i": (0, 1, 2)}),
        Group(name="C", best_of=of_a, vary={"momentum": (0.8, 0.95), "decay": (0.0, 0.1),
                                            "warmup": (0, 20)}),
        Group(name="D", best_of=BestOf(group="A", parameters=("optimizer",)),
              vary={"lr_i": table.rates}),
    )  # fmt: skip
    return Study(
        name="bench",
        folder=Path(),
        objective=Objective(target=table.target, fallback=(3.0,)),
        trainer=TrainerCommand(command=("true", *(f"{{{n}}}" for n in NAMES))),
        limits=Limits(steps=1_000_000, trial_s=limit_s),
        space=space,
        stage1=Stage1Settings(group=groups, duplicates="replicate"),
        stage2=Stage2(from_top=K, runs=RUNS, replicates=3),
        confirm=Confirm(top=TOP),
        seed=1,
        racing=Racing(grace_s=0.05),
    )


def player(table: Table, seed: int, noise: float = NOISE):
    def find(spec):
        key = Table.key(dict(zip(NAMES, spec.argv[1:], strict=True)))
        draw = random.Random(f"{seed} {key} {spec.env['SWEEP_SEED']}")
        curve = table.noisy(key, math.exp(draw.gauss(0, noise)))
        return Recording(curve, curve[-1].clock, Reason.STEPS)

    return find


class Designs:
    """Stage-2 designs by region: the same region gets the same design, which takes seconds to make."""

    def __init__(self) -> None:
        self._known: dict[str, object] = {}

    def plan(self, study: Study, facts, target: float):
        top = choose_top(study, facts, K, target)
        region = choose_region(study, facts, top)
        locked = {n: v.value for n, v in region.locked.items()}
        key = repr((region.varying, locked, top.points[0].point.id, target))
        if key not in self._known:
            self._known[key] = plan_stage2(
                study, facts, from_top=K, runs=RUNS, seed=1, target=target
            )
        return self._known[key]


def sweep(study: Study, table: Table, seed: int, designs: Designs) -> dict:
    """Both stages of one study in virtual time."""
    find = player(table, seed)
    first = replay(study, Stage1(study, K), find, target=table.target)
    goal = first.end.record.effective_target
    earlier = first.end.facts
    if study.stage2.strategy == "fraction":
        stage = FixedStage(study, designs.plan(study, earlier, goal), TOP, earlier)
    else:
        begin = plan_adaptive(study, earlier, from_top=K, runs=RUNS, target=goal)
        stage = AdaptiveStage(study, begin, TOP, earlier, sampler("tpe", study.space))
    second = replay(study, stage, find, target=goal)
    every = (*first.end.facts, *second.end.facts)
    standing = Times("train").standing(every, goal)
    found_s = math.inf
    for offset, run in ((0.0, first), (first.virtual_s, second)):
        for fact in run.end.facts:
            a = fact.counted
            if a.reason is Reason.TARGET and table.good(Table.key(fact.trial.point)):
                found_s = min(found_s, offset + a.ended_at - EPOCH)
    stopped = [f for f in every if f.counted.reason is Reason.FORECAST]
    return {
        "train_s": first.train_s + second.train_s,
        "top1": Times("train").standing(first.end.facts, goal).best(K),
        "top2": standing.best(TOP),
        "goal": goal,
        "found_s": found_s,
        "cut": len([*first.cut(), *second.cut()]),
        "forecast": len(stopped),
        "wrong": sum(
            table.true.get(Table.key(f.trial.point), math.inf) <= (f.counted.cap_s or 0)
            for f in stopped
        ),
    }


MODES = {
    "off": without_racing,
    "cap": lambda s: with_racing(s, expect=False, order=False, forecast=False),
    "cap + expect": lambda s: with_racing(s, order=False, forecast=False),
    "cap + expect + order": lambda s: with_racing(s, forecast=False),
    "cap + expect + order + forecast (default)": lambda s: s,
    "default, nothing expected": lambda s: with_racing(s, expect=False),
    "default, with rungs": lambda s: with_racing(s, rungs=True),
}


def figures_1_and_3(table: Table, seeds: int, limits) -> dict:
    """Saved share, changed top k, lost winner per trial limit and set of rules."""
    designs = Designs()
    rows = collections.defaultdict(list)
    for seed in range(seeds):
        for times in limits:
            study = make_study(table, seed, times * table.median)
            for mode, change in MODES.items():
                rows[times, mode].append(sweep(change(study), table, seed, designs))
        if seed % 10 == 9:
            print(f"figure 1: {seed + 1} seeds", flush=True)
    return {
        f"{times} x median crossing": {
            mode: summary(table, rows[times, "off"], rows[times, mode]) for mode in MODES
        }
        for times in limits
    }


def summary(table: Table, off: list[dict], rows: list[dict]) -> dict:
    saved = [1 - r["train_s"] / o["train_s"] for o, r in zip(off, rows, strict=True)]
    same_goal = [(o, r) for o, r in zip(off, rows, strict=True) if o["goal"] == r["goal"]]

    def best_true(row: dict) -> float:
        return min((table.true[Table.key(p)] for p in row["top2"]), default=math.inf)

    slower = [best_true(r) / best_true(o) - 1 for o, r in same_goal]
    return {
        "sweeps": len(rows),
        "saved_median": round(statistics.median(saved), 4),
        "saved_min": round(min(saved), 4),
        "stage1_top5_changed": sum(o["top1"] != r["top1"] for o, r in same_goal),
        "final_top3_changed": sum(o["top2"] != r["top2"] for o, r in same_goal),
        "winner_changed": sum(o["top2"][:1] != r["top2"][:1] for o, r in same_goal),
        "best_of_top3_truly_slower_by_more_than_5_percent": sum(s > 0.05 for s in slower),
        "best_of_top3_truly_slower_at_worst": round(max(slower, default=0.0), 4),
        "cut_mean": round(statistics.fmean(r["cut"] for r in rows), 1),
        "forecast_stops": sum(r["forecast"] for r in rows),
        "forecast_stops_that_would_have_crossed_by_their_cap": sum(r["wrong"] for r in rows),
        "fallback_used": sum(r["goal"] != table.target for r in rows),
    }


# -- figure 2 ---------------------------------------------------------------------------------------


def loss_at(curve, seconds: float) -> float:
    return min((e.value for e in curve if e.clock.train <= seconds and not math.isnan(e.value)),
               default=math.inf)  # fmt: skip


def run_trial(table: Table, curve, limit_s: float, cap_s: float, prune=None) -> tuple[float, bool]:
    """Seconds spent and whether it crossed, stopping at the first evaluation at or after a cap."""
    found = crossing(curve, table.target, "train")
    for place, e in enumerate(curve):
        at = e.clock.train
        if found is not None and at >= found.upper_s:
            return at, True
        if at >= min(cap_s, limit_s) or (prune is not None and prune(place, e)):
            return min(at, limit_s), False
    return curve[-1].clock.train, False


class Contestant:
    """One search method over the table, trial after trial, until the virtual budget is spent."""

    def __init__(self, table: Table, seed: int, limit_s: float, *, sampler: str, pruner: str = "",
                 cap: bool = False, rungs: bool = False) -> None:  # fmt: skip
        self.table, self.limit_s, self.cap, self.rungs = table, limit_s, cap, rungs
        self.draw = random.Random(f"contestant {seed}")
        samplers = {
            "random": lambda: optuna.samplers.RandomSampler(seed=seed),
            "tpe": lambda: optuna.samplers.TPESampler(seed=seed),
        }
        pruners = {
            "": optuna.pruners.NopPruner,
            "median": optuna.pruners.MedianPruner,
            "hyperband": lambda: optuna.pruners.HyperbandPruner(
                min_resource=1, max_resource=40, reduction_factor=3
            ),
        }
        self.study = optuna.create_study(sampler=samplers[sampler](), pruner=pruners[pruner]())
        self.pruner = pruner
        self.times: list[float] = []
        self.tracks: list = []
        self.seed = seed

    def suggest(self, trial) -> tuple:
        return Table.key(
            {
                "optimizer": trial.suggest_categorical("optimizer", ["adamw", "muon"]),
                "lr_i": trial.suggest_int("lr_i", self.table.rates[0], self.table.rates[-1]),
                "batch_i": trial.suggest_int("batch_i", 0, 2),
                "momentum": trial.suggest_categorical("momentum", [0.8, 0.95]),
                "decay": trial.suggest_categorical("decay", [0.0, 0.1]),
                "warmup": trial.suggest_categorical("warmup", [0, 20]),
            }
        )

    def found_s(self, budget_s: float) -> float:
        spent = 0.0
        while spent < budget_s:
            trial = self.study.ask()
            key = self.suggest(trial)
            curve = self.table.noisy(key, math.exp(self.draw.gauss(0, NOISE)))
            cap_s = 1.10 * min(self.times) if self.cap and self.times else math.inf
            took, reached = run_trial(
                self.table, curve, self.limit_s, cap_s, self.prune(trial, cap_s)
            )
            spent += took
            self.tracks.append((curve, took))
            if reached:
                self.times.append(took)
                if self.table.good(key):
                    return spent
            self.study.tell(trial, took if reached else min(max(cap_s, took), self.limit_s * 2))
        return math.inf

    def prune(self, trial, cap_s: float):
        if self.pruner:

            def by_optuna(place: int, e: Evaluation) -> bool:
                trial.report(e.value, place)
                return place > 0 and trial.should_prune()

            return by_optuna
        if self.rungs and len(self.tracks) >= 6:

            def by_rung(_: int, e: Evaluation) -> bool:
                for share in (1 / 9, 1 / 3):
                    at = share * min(cap_s, self.limit_s)
                    if e.clock.train >= at:
                        known = sorted(loss_at(c, at) for c, t in self.tracks if t >= at)
                        if len(known) >= 6 and e.value > known[len(known) // 3]:
                            return True
                return False

            return by_rung
        return None


CONTESTANTS = {
    "random": {"sampler": "random"},
    "random + cap": {"sampler": "random", "cap": True},
    "TPE": {"sampler": "tpe"},
    "TPE + MedianPruner": {"sampler": "tpe", "pruner": "median"},
    "TPE + Hyperband": {"sampler": "tpe", "pruner": "hyperband"},
    "TPE + cap": {"sampler": "tpe", "cap": True},
    "TPE + cap + rungs": {"sampler": "tpe", "cap": True, "rungs": True},
}


def with_stages(study: Study, *, stage1: dict | None = None, stage2: dict | None = None) -> Study:
    return study.model_copy(
        update={
            "stage1": study.stage1.model_copy(update=stage1 or {}),
            "stage2": study.stage2.model_copy(update=stage2 or {}),
        }
    )


STAGED = {
    "two stages, racing (default)": lambda s: s,
    "two stages, stage 2 by TPE, racing": lambda s: with_stages(s, stage2={"strategy": "tpe"}),
    "two stages, racing, duplicates reused": lambda s: with_stages(
        s, stage1={"duplicates": "reuse"}
    ),
    "two stages, racing with rungs, duplicates reused": lambda s: with_racing(
        with_stages(s, stage1={"duplicates": "reuse"}), rungs=True
    ),
}


def figure_2(table: Table, seeds: int, *, staged_only: bool = False) -> dict:
    """Virtual seconds until a configuration within 5 % of the table's best was found and finished."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    designs, found = Designs(), collections.defaultdict(list)
    limit_s = 4 * table.median
    for seed in range(seeds):
        study = make_study(table, seed, limit_s)
        free = sweep(without_racing(study), table, seed, designs)
        found["two stages, no racing"].append(free["found_s"])
        for name, change in STAGED.items():
            found[name].append(sweep(change(study), table, seed, designs)["found_s"])
        for name, options in ({} if staged_only else CONTESTANTS).items():
            contestant = Contestant(table, seed, limit_s, **options)
            found[name].append(contestant.found_s(budget_s=free["train_s"]))
    return {
        "budget": "the train seconds of the same seed's two stages without racing",
        "good_configurations": sum(table.good(k) for k in table.curves),
        "methods": {
            name: {
                "median_s": finite(statistics.median(times)),
                "found_share": round(sum(map(math.isfinite, times)) / len(times), 3),
                "median_s_where_found": finite(
                    statistics.median([t for t in times if math.isfinite(t)] or [math.inf])
                ),
            }
            for name, times in found.items()
        },
    }


def finite(value: float) -> float | None:
    return round(value, 2) if math.isfinite(value) else None


# -- figure 4 ---------------------------------------------------------------------------------------


def confirm_run(study: Study, points: list[Point], truth, noise: float, seed: int):
    """Confirm of these points with given true seconds; what analysis says of it."""
    plan = plan_confirm(study, points, None, 10, seed, target=2.0, blocks=4)

    def find(spec):
        key = Table.key(dict(zip(NAMES, spec.argv[1:], strict=True)))
        draw = random.Random(f"{seed} {spec.trial} {noise}")
        took = truth(key) * math.exp(draw.gauss(0, noise))
        curve = (
            Evaluation(0, 0, Phases(), 4.0),
            Evaluation(1, 1, Phases(train=took), 2.0),
        )
        return Recording(curve, curve[-1].clock, Reason.STEPS)

    end = replay(study, ConfirmStage(study, plan), find, target=2.0).end
    facts = StageFacts(plan=end.record.plan, facts=end.facts, effective_target=2.0)
    return confirmation(StudyFacts(study, {"confirm": facts}))


def figure_4(table: Table, seeds: int) -> dict:
    """48 single runs of random configurations, the 3 fastest confirmed; and two equals confirmed."""
    study = make_study(table, 0, 100.0)
    study = study.model_copy(update={"limits": Limits(steps=1_000_000, trial_s=1e6)})
    keys = sorted(table.true)
    result = {}
    for noise in (0.01, 0.03, 0.10):
        single = confirmed = declared = declared_right = separated = blocks = 0
        regret_single, regret_confirm = [], []
        for seed in range(seeds):
            draw = random.Random(f"figure 4 {seed}")
            drawn = draw.sample(keys, 48)
            seen = {k: table.true[k] * math.exp(draw.gauss(0, noise)) for k in drawn}
            best = min(drawn, key=table.true.__getitem__)
            finalists = sorted(drawn, key=seen.__getitem__)[:TOP]
            points = [study.space.point(dict(zip(NAMES, k, strict=True))) for k in finalists]
            found = confirm_run(study, points, table.true.__getitem__, noise, seed)
            leader = Table.key(found.leader.point)
            single += finalists[0] == best
            confirmed += leader == best
            declared += found.settled
            declared_right += found.settled and leader == best
            blocks += found.blocks
            regret_single.append(table.true[finalists[0]] / table.true[best] - 1)
            regret_confirm.append(table.true[leader] / table.true[best] - 1)
            equal = confirm_run(study, points[:2], lambda _: 10.0, noise, seed)
            separated += equal.settled
        result[f"noise {noise:.0%}"] = {
            "fastest_single_run_is_true_best": single / seeds,
            "confirm_leader_is_true_best": confirmed / seeds,
            "confirm_declares_a_winner": declared / seeds,
            "declared_winner_is_true_best": declared_right / declared if declared else None,
            "mean_loss_of_time_single": round(statistics.fmean(regret_single), 4),
            "mean_loss_of_time_confirm": round(statistics.fmean(regret_confirm), 4),
            "blocks_mean": blocks / seeds,
            "two_equals_called_separated": separated / seeds,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--figures", default="1,2,4", help="3 comes with 1")
    parser.add_argument("--table", type=Path, nargs="+", default=[TABLE])
    parser.add_argument("--wide", action="store_true", help="with 4 more learning rates")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--limits", default=",".join(map(str, LIMITS)), help="x median crossing")
    parser.add_argument("--staged-only", action="store_true", help="figure 2: our stages alone")
    options = parser.parse_args()
    limits = [int(times) for times in options.limits.split(",")]
    table = Table([*options.table, *([MORE_RATES] if options.wide else [])], TARGET)
    figures = options.figures.split(",")
    document = {
        "command": "python " + " ".join(sys.argv),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors; virtual seconds only",
        "table": {
            "configurations": len(table.curves),
            "target": TARGET,
            "crossed": len(table.true),
            "best_s": round(table.best, 3),
            "median_s": round(table.median, 3),
            "noise_sd": NOISE,
        },
        "seeds": options.seeds,
    }
    print(document["table"], flush=True)
    if "1" in figures:
        document["figures 1 and 3: racing off and on"] = figures_1_and_3(
            table, options.seeds, limits
        )
    if "2" in figures:
        document["figure 2: seconds to within 5 %"] = figure_2(
            table, options.seeds, staged_only=options.staged_only
        )
        print(json.dumps(document["figure 2: seconds to within 5 %"], indent=1), flush=True)
    if "4" in figures:
        document["figure 4: confirm"] = figure_4(table, options.seeds)
        print(json.dumps(document["figure 4: confirm"], indent=1), flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
