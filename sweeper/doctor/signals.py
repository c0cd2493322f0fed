"""What can be measured on a run, or on the runs of a study: numbers by name, for rules to compare.

It must not know any rule. A signal is a function of a run and of named settings; it gives None where
the run does not tell (too short, a trainer that does not say): then no rule can be judged by it.
"""

from __future__ import annotations

import inspect
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sweeper.doctor.run_log import RunLog

Run = RunLog
Runs = Sequence[RunLog]
Signal = Callable[..., float | None]

RUN: dict[str, Signal] = {}
STUDY: dict[str, Signal] = {}
ENDS = 0.1
"""Share of a window at each of its ends over which noisy readings are averaged."""


def of_run(signal: Signal) -> Signal:
    """Make a function of a run known by its name."""
    RUN[signal.__name__] = signal
    return signal


def of_study(signal: Signal) -> Signal:
    """Make a function of a study's runs known by its name."""
    STUDY[signal.__name__] = signal
    return signal


def settings_of(signal: Signal) -> set[str]:
    """The names of the settings that a signal takes."""
    return set(list(inspect.signature(signal).parameters)[1:])


# ------------------------------------------------------------------------------------- loss


@of_run
def fall(run: Run, of: str = "loss", steps: int = 0, share: float = 0.0) -> float | None:
    """By how much `of` fell over the last `steps` steps, or the last `share` of the steps done.

    Each end is the mean over a tenth of the window. None before the window is full, or with fewer
    than 10 readings in it.
    """
    series = run.series(of)
    window = steps or share * run.step
    inside = [(step, value) for step, value in series if step >= run.step - window]
    if window <= 0 or run.step < window or len(inside) < 10:
        return None
    first = [v for step, v in inside if step <= run.step - window * (1 - ENDS)] or [inside[0][1]]
    last = [v for step, v in inside if step >= run.step - window * ENDS] or [inside[-1][1]]
    return statistics.fmean(first) - statistics.fmean(last)


@of_run
def fall_per_epoch(run: Run, of: str = "loss", share: float = 0.3) -> float | None:
    """The fall over the last `share` of the run, for each pass over the data."""
    fallen, passed = fall(run, of=of, share=share), _own_epochs(run)
    return None if fallen is None or not passed else fallen / (passed * share)


@of_run
def spike(run: Run, of: str = "loss", window: int = 9) -> float | None:
    """The largest jump of `of` above the median of the `window` readings before it, in its unit."""
    jumps = _jumps(run, of, window)
    return max((jump for jump, _ in jumps), default=None)


@of_run
def spike_in_noise(run: Run, of: str = "loss", window: int = 9) -> float | None:
    """That jump, in median absolute deviations of the readings before it."""
    jumps = _jumps(run, of, window)
    if not jumps:
        return None
    jump, noise = max(jumps)
    return jump / max(noise, 1e-9)


def _jumps(run: Run, of: str, window: int) -> list[tuple[float, float]]:
    values = [value for _, value in run.series(of)]
    found = []
    for place in range(window, len(values)):
        before = values[place - window : place]
        middle = statistics.median(before)
        noise = statistics.median(abs(value - middle) for value in before)
        found.append((values[place] - middle, noise))
    return found


@of_run
def rise_over_best(run: Run, of: str = "") -> float | None:
    """By how much the last two probes (their lower one) are above the best; None below 5 probes."""
    values = [value for _, value in run.series(of or run.metric)]
    return min(values[-2:]) - min(values) if len(values) >= 5 else None


@of_run
def value_at(run: Run, of: str = "", epoch: float = 0.0, share: float = 0.0) -> float | None:
    """The first reading of `of` from `epoch` passes over the data (or a `share` of the plan) on."""
    if share:
        planned = planned_steps(run)
        from_step = None if planned is None else share * planned - run.steps_before
    else:
        own, made = _own_epochs(run), epochs(run)
        from_step = None if not own or not made else (epoch - made + own) * run.step / own
    if from_step is None or from_step < 0:  # that was before this run
        return None
    found = (value for step, value in run.series(of or run.metric) if step >= from_step * 0.999)
    return next(found, None)


# ------------------------------------------------------------------------------------- gradient, rate


@of_run
def grad_norm(run: Run, last: int = 10) -> float | None:
    """Median length of the gradient over the `last` reports."""
    values = [value for _, value in run.series("grad_norm")][-last:]
    return statistics.median(values) if len(values) >= last else None


@of_run
def grad_norm_growth(run: Run, last: int = 5) -> float | None:
    """The largest of the `last` lengths of the gradient over the median of all before."""
    values = [value for _, value in run.series("grad_norm")]
    if len(values) < 3 * last:
        return None
    usual = statistics.median(values[:-last])
    return max(values[-last:]) / usual if usual > 0 else None


@of_run
def clip_norm(run: Run) -> float | None:
    """The length at which gradients are clipped; 0: they are not."""
    return _number(run.setting("run.clip_norm"))


@of_run
def clipped_share(run: Run) -> float | None:
    """Share of the reports whose gradient has the length of the clip: it was cut there."""
    limit = clip_norm(run)
    values = [value for _, value in run.series("grad_norm")]
    if not limit or len(values) < 10:
        return None
    return sum(value >= 0.995 * limit for value in values) / len(values)


@of_run
def lr(run: Run, last: int = 3) -> float | None:
    """The largest learning rate of the `last` reports."""
    values = [value for _, value in run.series("lr")][-last:]
    return max(values) if len(values) >= last else None


@of_run
def lr_share(run: Run) -> float | None:
    """The last learning rate over the largest so far."""
    values = [value for _, value in run.series("lr")]
    return values[-1] / max(values) if values and max(values) > 0 else None


# ------------------------------------------------------------------------------------- the plan


@of_run
def planned_steps(run: Run) -> float | None:
    """The steps that the run was told to make at most, those of a run that it goes on from included."""
    return _number(run.setting("run.max_steps")) or None


@of_run
def progress(run: Run) -> float | None:
    """Share of the planned steps that are done."""
    planned = planned_steps(run)
    return (run.steps_before + run.step) / planned if planned else None


@of_run
def schedule_end_share(run: Run) -> float | None:
    """Where the schedule comes to its floor, as a share of the planned steps; None if it is constant."""
    schedule, planned = run.started.get("schedule"), planned_steps(run)
    if not isinstance(schedule, Mapping) or not planned or schedule.get("kind") == "constant":
        return None
    end = _number(schedule.get("end"))
    return None if end is None else end / planned


@of_run
def warmup_share(run: Run) -> float | None:
    """The warm-up as a share of the planned steps."""
    schedule, planned = run.started.get("schedule"), planned_steps(run)
    if not isinstance(schedule, Mapping) or not planned:
        return None
    warmup = _number(schedule.get("warmup"))
    return None if warmup is None else warmup / planned


@of_run
def epochs(run: Run) -> float | None:
    """How often each training token has been learned from, on average, by a run before this too."""
    own, tokens = _own_epochs(run), _data_tokens(run)
    return own + run.tokens_before / tokens if own is not None and tokens else None


def _own_epochs(run: Run) -> float | None:
    tokens = _data_tokens(run)
    return run.tokens / tokens if tokens else None


def _data_tokens(run: Run) -> float | None:
    audit = run.started.get("data_audit")
    return _number(audit.get("tokens")) if isinstance(audit, Mapping) else None


@of_run
def overlap_share(run: Run) -> float | None:
    """Share of a training window that the next one repeats."""
    audit = run.started.get("data_audit")
    if not isinstance(audit, Mapping):
        return None
    overlap, context = _number(audit.get("overlap")), _number(audit.get("context"))
    return overlap / context if overlap is not None and context else None


# ------------------------------------------------------------------------------------- clock, speed


@of_run
def tokens_per_s(run: Run, last: int = 10) -> float | None:
    """Median speed over the `last` reports."""
    values = [value for _, value in run.series("tokens_per_s")][-last:]
    return statistics.median(values) if len(values) >= last else None


@of_run
def speed_drop(run: Run) -> float | None:
    """How much slower the last third of the reports is than the fastest third, 0 to 1, by medians."""
    values = [value for _, value in run.series("tokens_per_s")][1:]  # the first one warms up
    third = len(values) // 3
    if third < 4:
        return None
    thirds = [statistics.median(values[n * third : (n + 1) * third]) for n in (0, 1)]
    last = statistics.median(values[-third:])
    return 1 - last / max(*thirds, last)


@of_run
def evaluation_share(run: Run) -> float | None:
    """Seconds of evaluation over those of training and evaluation; None before 5 s of training."""
    seconds = run.clock.train + run.clock.eval
    return run.clock.eval / seconds if run.clock.train >= 5 else None


@of_run
def compile_s(run: Run) -> float | None:
    """Seconds of compilation and warm-up."""
    return run.clock.compile if run.reports else None


@of_run
def compile_after_start_s(run: Run) -> float | None:
    """Seconds of compilation after the first step: something is compiled again and again."""
    return run.clock.compile - run.reports[0].clock.compile if run.reports else None


@of_run
def slice_difference(run: Run) -> float | None:
    """Median distance between probe and confirmation slice where both were measured at one step."""
    probes = dict(run.series(run.metric))
    confirmed = dict(run.series(run.metric, "confirmation"))
    found = [
        abs(probes[s] - confirmed[s]) for s in probes if confirmed.get(s, probes[s]) != probes[s]
    ]
    return statistics.median(found) if found else None


@of_run
def failed_as(run: Run, reason: str) -> float | None:
    """1 when the run failed for this reason ("oom", "diverged", ...), else 0."""
    said = {
        str(body.get(key))
        for body in (run.failed, run.outcome)
        if body
        for key in ("class", "reason")
    }
    return float(reason in said)


# ------------------------------------------------------------------------------------- many runs


@of_study
def noise_over_differences(runs: Runs) -> float | None:
    """Spread of repeats over the spread of configurations, both sd of the metric at equal tokens.

    Repeats are runs that differ in their seed alone; the metric is read at the largest token count
    that all have been measured at. None with no repeats or fewer than 3 configurations.
    """
    curves = [_by_tokens(run) for run in runs if run.measured and run.started]
    known = [run for run in runs if run.measured and run.started]
    common = set.intersection(*map(set, curves)) - {0} if curves else set()
    if not common:
        return None
    at = max(common)
    by_configuration: dict[str, list[float]] = {}
    for run, curve in zip(known, curves, strict=True):
        by_configuration.setdefault(_configuration(run), []).append(curve[at])
    repeats = [values for values in by_configuration.values() if len(values) > 1]
    means = [statistics.fmean(values) for values in by_configuration.values()]
    if not repeats or len(means) < 3:
        return None
    freedom = sum(len(values) - 1 for values in repeats)
    noise = math.sqrt(sum(statistics.variance(v) * (len(v) - 1) for v in repeats) / freedom)
    differences = statistics.stdev(means)
    return noise / differences if differences > 0 else math.inf


@of_study
def later_compile_s(runs: Runs) -> float | None:
    """Median seconds of compilation of all runs but the first; None below 3 runs."""
    found = [seconds for seconds in map(compile_s, runs) if seconds is not None]
    return statistics.median(found[1:]) if len(found) >= 3 else None


@of_study
def later_compile_share(runs: Runs) -> float | None:
    """That, over the seconds of the first run: near 1 means that nothing was kept."""
    found = [seconds for seconds in map(compile_s, runs) if seconds is not None]
    return statistics.median(found[1:]) / found[0] if len(found) >= 3 and found[0] > 0 else None


@of_study
def failed_share(runs: Runs, reason: str) -> float | None:
    """Share of the runs that failed for this reason; None below 3 runs."""
    return statistics.fmean(failed_as(r, reason) or 0.0 for r in runs) if len(runs) >= 3 else None


@of_study
def speed_spread(runs: Runs) -> float | None:
    """Fastest over slowest median speed of runs of one configuration; None without repeats."""
    speeds: dict[str, list[float]] = {}
    for run in runs:
        speed = tokens_per_s(run, last=3)
        if speed and run.started:
            speeds.setdefault(_configuration(run), []).append(speed)
    return max((max(v) / min(v) for v in speeds.values() if len(v) > 1), default=None)


def _by_tokens(run: Run) -> dict[int, float]:
    return {
        m.tokens: m.metrics[run.metric]
        for m in run.measured
        if m.slice == "probe" and run.metric in m.metrics
    }


def _configuration(run: Run) -> str:
    """The configuration without its seed and target, to tell repeats."""
    config = json.loads(json.dumps(run.started.get("config") or {"run": run.name}))
    if isinstance(config.get("run"), dict):
        for key in ("seed", "target", "fallback_targets"):
            config["run"].pop(key, None)
    return json.dumps(config, sort_keys=True)


def _number(value: Any) -> float | None:
    ok = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if ok else None
