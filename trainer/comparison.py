"""Owns the comparison of finished runs: arms with repeats, five outputs each, ratios with intervals.

It must not import torch, nor know how a run was made; it reads the events that runs have written.

The outputs: convergence (the step from which the running mean of the training loss is stable, and
steps, sequences and seconds until the validation loss came to one level), stability (variance of the
training loss over the last steps), best loss, time, and generated text.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError

EVENT_FILES = ("events.jsonl", "trainer.jsonl")
"""Names under which a folder may hold a run's events, the first that is there is read."""

# Quantile 0.975 of Student's t for 1, 2, ... degrees of freedom; beyond the table the normal's.
_T975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
    2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048,
    2.045, 2.042,
)  # fmt: skip
_NORMAL975 = 1.960


@dataclass(frozen=True)
class FinishedRun:
    """What a run left: its configuration, its validation curve, and its last event.

    `curve` holds (step, tokens, train seconds, validation loss) of each look at the probe.
    """

    config: Mapping[str, Any]
    parameters: int
    threads: int | None
    curve: tuple[tuple[int, int, float, float], ...]
    last: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """The seed of its weights and of its order of data."""
        return int(self.config["run"]["seed"])

    @property
    def train_s(self) -> float:
        """Seconds on the train clock."""
        return float(self.last["clock"]["train"])

    @property
    def wall_s(self) -> float:
        """Seconds on all its clocks, from the start of the process."""
        return math.fsum(self.last["clock"].values())

    @property
    def final_loss(self) -> float:
        """Validation loss where it ended."""
        return self.curve[-1][3]

    @property
    def best_loss(self) -> float:
        """Lowest validation loss."""
        return min(loss for *_, loss in self.curve)

    def until(self, level: float) -> tuple[float, float, float] | None:
        """Steps, sequences and train seconds until the curve came to `level`, or None: it did not.

        Interpolated between the two looks around the crossing.
        """
        per_sequence = self.config["data"]["context"]
        before: tuple[int, int, float, float] | None = None
        for now in self.curve:
            if now[3] <= level:
                if before is None:
                    return (float(now[0]), now[1] / per_sequence, now[2])
                share = (before[3] - level) / (before[3] - now[3])
                step, tokens, seconds = (
                    old + share * (new - old) for old, new in zip(before, now[:3], strict=False)
                )
                return (step, tokens / per_sequence, seconds)
            before = now
        return None


def read_run(events: Iterable[Mapping[str, Any]], source: str) -> FinishedRun | None:
    """The run that these events tell, or None when it has not finished."""
    started: Mapping[str, Any] | None = None
    last: Mapping[str, Any] | None = None
    curve = []
    for event in events:
        if event["event"] == "run_started":
            started = event
        elif event["event"] == "run_finished":
            last = event
        elif event["event"] == "evaluated" and event.get("slice") == "probe":
            loss = event["metrics"].get("val_loss")
            if loss is not None:
                curve.append((event["step"], event["tokens"], event["clock"]["train"], loss))
    if started is None or last is None or not curve:
        return None
    try:
        return FinishedRun(
            config=started["config"],
            parameters=started["parameter_count"],
            threads=started["hardware"].get("threads"),
            curve=tuple(curve),
            last=last,
        )
    except KeyError as error:
        raise ConfigError(
            f"{source}: its events lack {error}; expected a run of this trainer"
        ) from None


def read_runs(paths: Sequence[Path]) -> list[FinishedRun]:
    """All finished runs in event files, and in folders with such files at any depth.

    ConfigError when a path is not there, a line is no event, or no run has finished.
    """
    found = []
    for path in paths:
        for file in _event_files(path):
            try:
                lines = file.read_text(encoding="utf-8").splitlines()
                events = [json.loads(line) for line in lines if line]
                run = read_run(events, str(file))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{file}: not the events of a run ({error})") from None
            if run is not None:
                found.append(run)
    if not found:
        named = ", ".join(map(str, paths))
        raise ConfigError(f"{named}: no finished run; expected event files, or folders with them")
    return found


def _event_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ConfigError(f"{path}: no such file or folder; expected the events of runs")
    folders = sorted({file.parent for name in EVENT_FILES for file in path.rglob(name)})
    return [
        next(folder / name for name in EVENT_FILES if (folder / name).is_file())
        for folder in folders
    ]


def arms_of(
    runs: Sequence[FinishedRun], named: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[FinishedRun]]:
    """Runs by arm. An arm of `named` has the runs whose configuration agrees with all its keys.

    Without names, runs that differ in nothing but the seed are an arm, called by what differs
    between the arms. Runs that no named arm has are left out; an arm without runs is an error.
    """
    flat = [flattened(run.config) for run in runs]
    if named:
        arms: dict[str, list[FinishedRun]] = {name: [] for name in named}
        for run, values in zip(runs, flat, strict=True):
            for name, wanted in named.items():
                if all(values.get(key) == value for key, value in wanted.items()):
                    arms[name].append(run)
                    break
        for name, found in arms.items():
            if not found:
                raise ConfigError(f"arm {name}: no finished run has {dict(named[name])}")
        return arms
    varied = [key for key in flat[0] if len({repr(values.get(key)) for values in flat}) > 1]
    varied = [key for key in varied if key not in ("run.seed", "checkpoint.folder")]
    grouped: dict[str, list[FinishedRun]] = {}
    for run, values in zip(runs, flat, strict=True):
        words = ", ".join(f"{key.rpartition('.')[2]} {values.get(key)}" for key in varied)
        grouped.setdefault(words or "all runs", []).append(run)
    return grouped


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flattened(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@dataclass(frozen=True)
class Spread:
    """Mean of n values with the half width of its 95 % interval (Student's t); None for one value.

    `missing` counts runs that had no such value.
    """

    mean: float
    half: float | None
    n: int
    missing: int = 0

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """None where no run has a value."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        half = None
        if len(known) > 1:
            half = t975(len(known) - 1) * statistics.stdev(known) / math.sqrt(len(known))
        return cls(statistics.fmean(known), half, len(known), len(values) - len(known))

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"mean": self.mean, "half_width_95": self.half, "n": self.n, "missing": self.missing}


def t975(degrees: int) -> float:
    """The 0.975 quantile of Student's t."""
    return _T975[degrees - 1] if degrees <= len(_T975) else _NORMAL975


def ratio(
    ours: Sequence[float | None], theirs: Sequence[float | None]
) -> tuple[float, float, float] | None:
    """Geometric mean of theirs over that of ours, with its 95 % interval (Welch's, on logarithms).

    None where either side has fewer than two values, or one that is missing or not above 0: a run
    that did not come to the level has no time, and leaving it out would flatter its arm.
    """
    if any(value is None or value <= 0 for value in (*ours, *theirs)):
        return None
    logs = [[math.log(value) for value in side if value is not None] for side in (ours, theirs)]
    if any(len(side) < 2 for side in logs):
        return None
    means = [statistics.fmean(side) for side in logs]
    parts = [statistics.variance(side) / len(side) for side in logs]
    if (variance := math.fsum(parts)) == 0:
        exact = math.exp(means[1] - means[0])
        return (exact, exact, exact)
    below = math.fsum(part**2 / (len(side) - 1) for part, side in zip(parts, logs, strict=True))
    half = t975(max(1, int(variance**2 / below))) * math.sqrt(variance)
    difference = means[1] - means[0]
    return (math.exp(difference), math.exp(difference - half), math.exp(difference + half))


def compare(
    arms: Mapping[str, Sequence[FinishedRun]], level: float | None = None
) -> dict[str, Any]:
    """The outputs of each arm, and its speed relative to the first arm, as JSON values.

    `level` is the validation loss whose crossing measures convergence without the noise of training
    losses; without one, the loosest final loss over all runs, rounded up to 0.01, which all reached.
    """
    if level is None:
        level = math.ceil(max(run.best_loss for runs in arms.values() for run in runs) * 100) / 100
    rows = [_row(name, runs, level) for name, runs in arms.items()]
    first = next(iter(arms.values()))
    for row, runs in zip(rows, arms.values(), strict=True):
        crossings = [[run.until(level) for run in side] for side in (runs, first)]
        row["faster_than_first"] = {
            name: ratio(*([c and c[place] for c in side] for side in crossings))
            for place, name in enumerate(("steps", "sequences", "train_s"))
        }
    return {"level": level, "arms": rows}


def _row(name: str, runs: Sequence[FinishedRun], level: float) -> dict[str, Any]:
    crossings = [run.until(level) for run in runs]

    def spread(values: Sequence[float | None]) -> dict[str, Any] | None:
        found = Spread.of(values)
        return found.as_dict() if found else None

    def of_last(key: str) -> list[float | None]:
        return [run.last.get(key) for run in runs]

    return {
        "arm": name,
        "runs": len(runs),
        "parameters": runs[0].parameters,
        "threads": runs[0].threads,
        "steps": spread([run.last["step"] for run in runs]),
        "stopped_by": sorted({run.last["reason"] for run in runs}),
        "stable_from_step": spread(of_last("stable_from_step")),
        "steps_to_level": spread([c and c[0] for c in crossings]),
        "sequences_to_level": spread([c and c[1] for c in crossings]),
        "train_s_to_level": spread([c and c[2] for c in crossings]),
        "loss_variance": spread(of_last("loss_variance")),
        "best_step_loss": spread(of_last("best_step_loss")),
        "best_smoothed_loss": spread(of_last("best_smoothed_loss")),
        "best_val_loss": spread([run.best_loss for run in runs]),
        "final_val_loss": spread([run.final_loss for run in runs]),
        "train_s": spread([run.train_s for run in runs]),
        "wall_s": spread([run.wall_s for run in runs]),
        "samples": list(min(runs, key=lambda run: run.seed).last.get("samples", [])),
    }
