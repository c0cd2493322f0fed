"""Who is ahead: one row per distinct point, the summary of a stage, and its exit code.

It must not know how long a trial may still run, nor how a table is drawn.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sweeper.analysis.dataset import SEARCH_STAGES, StageFacts, StudyFacts
from sweeper.errors import (
    EXIT_DONE,
    EXIT_NOTHING_REACHED,
    EXIT_SOME_FAILED,
    EXIT_STOPPED_EARLY,
)
from sweeper.objective import TimeToTarget, final_value, lowest, time_to_target
from sweeper.racing.validity import doubts_of
from sweeper.space import Point, Value
from sweeper.study import Limits, Study
from sweeper.trial import AttemptFacts, Clock, Outcome, PlannedTrial, Reason, StageName, TrialFacts


@dataclass(frozen=True)
class Run:
    """One measured trial of a point: its time at the target that is asked for, its last metric.

    `final` is None where the run did not come to the end of its budget.
    """

    id: str
    stage: StageName
    block: int
    time: TimeToTarget
    best_loss: float | None
    final: float | None
    attempt: AttemptFacts


@dataclass(frozen=True)
class Row:
    """A distinct point with all its measured runs.

    `seconds` is the median over runs, where a run that did not reach counts as slower than every
    run that did. When the middle of that order did not reach, neither did the row, and `seconds` is
    a lower bound: the median with each such run at the time until which it was watched. `steps` and
    `tokens` are those of the runs in the middle: seconds = tokens x seconds per token holds.
    `final` is the median of the runs' last metric; with `by_final` it is what ranks.
    """

    id: str
    label: str
    groups: tuple[str, ...]
    point: Point
    runs: tuple[Run, ...]
    reached: bool
    seconds: float
    steps: float | None
    tokens: float | None
    best_loss: float | None
    final: float | None = None
    by_final: bool = False

    @property
    def competes(self) -> bool:
        """Whether it has what ranks: a time to the target, or the metric at the budget's end."""
        return self.final is not None if self.by_final else self.reached

    @property
    def reached_runs(self) -> int:
        """How many runs reached the target."""
        return sum(run.time.reached for run in self.runs)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What speaks against its times, run by run; nothing where no time ranks."""
        if self.by_final:
            return ()
        return tuple(
            f"{run.id}: {words}"
            for run in self.runs
            if run.attempt.validity == "suspect"
            for words in doubts_of(run.attempt)
        )

    @property
    def seconds_per_step(self) -> float | None:
        """Seconds to the target over steps to the target."""
        return self.seconds / self.steps if self.steps else None

    @property
    def seconds_per_token(self) -> float | None:
        """Seconds to the target over tokens to the target."""
        return self.seconds / self.tokens if self.tokens else None

    def as_dict(self) -> dict[str, Any]:
        """JSON values; times that are not there are null, and a bound is never a time."""
        return {
            "id": self.id,
            "label": self.label,
            "groups": list(self.groups),
            "reached": self.reached,
            "time_to_target_s": self.seconds if self.reached else None,
            "censored_at_s": None if self.reached else self.seconds,
            "steps_to_target": self.steps,
            "tokens_to_target": self.tokens,
            "seconds_per_step": self.seconds_per_step,
            "best_loss": self.best_loss,
            "final": self.final,
            "runs": len(self.runs),
            "reached_runs": self.reached_runs,
            "trials": [run.id for run in self.runs],
            "suspect": list(self.doubts),
            "point": dict(self.point),
        }


@dataclass(frozen=True)
class Failure:
    """A trial that ended without saying anything about its configuration."""

    id: str
    label: str
    stage: StageName
    outcome: Outcome
    reason: Reason
    message: str
    attempts: int
    point: Mapping[str, Value]


def rank(
    stages: Iterable[StageFacts], *, target: float, clock: Clock, by_final: bool = False
) -> tuple[Row, ...]:
    """One row per distinct point over the given stages, best first.

    Rows that reached come first, by seconds; then the others by how far they came: lowest loss
    first, then the one that was watched longest. `by_final` (goal "final"): the lowest metric at
    the budget's end first, then those that did not come to it, by lowest loss.
    """
    rows = []
    for measured in by_point(stages).values():
        runs = []
        for facts, attempt in measured:
            time = time_to_target(attempt, target, clock)
            assert time is not None  # measured trials only
            trial, nearest = facts.trial, _best_loss(attempt)
            last = final_value(attempt)
            runs.append(Run(trial.id, trial.stage, trial.block, time, nearest, last, attempt))
        rows.append(_row([facts.trial for facts, _ in measured], tuple(runs), by_final=by_final))
    return tuple(sorted(rows, key=_order))


def by_point(
    stages: Iterable[StageFacts],
) -> dict[Point, list[tuple[TrialFacts, AttemptFacts]]]:
    """The measured trials of each distinct point, both in plan order."""
    found: dict[Point, list[tuple[TrialFacts, AttemptFacts]]] = {}
    for stage in stages:
        for facts, attempt in stage.measured():
            found.setdefault(facts.trial.point, []).append((facts, attempt))
    return found


class Middle(NamedTuple):
    """What all runs of one configuration come to: see `Row`.

    `seconds` is a time where `reached`, else a lower bound. `runs` are the two in the middle of their
    order by time; with an odd number of runs that is the same one twice.
    """

    reached: bool
    seconds: float
    runs: tuple[TimeToTarget, TimeToTarget]


def middle(times: Sequence[TimeToTarget]) -> Middle:
    """The median over runs, where one that did not reach is slower than every one that did.

    Args:
        times: Each run's time, at least one.
    """
    ordered = sorted(times, key=_reached_first)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    if high.reached:
        return Middle(True, (low.seconds + high.seconds) / 2, (low, high))
    return Middle(False, statistics.median(time.seconds for time in times), (low, high))


def _reached_first(time: TimeToTarget) -> tuple[bool, float]:
    return (not time.reached, time.seconds)


def search_ranking(facts: StudyFacts, *, target: float | None = None) -> tuple[Row, ...]:
    """The ranking over stages 1 and 2 together; confirm is judged by its own pairs alone."""
    return rank(
        facts.present(SEARCH_STAGES),
        target=facts.target if target is None else target,
        clock=facts.clock,
        by_final=facts.study.objective.is_final,
    )


def best(rows: Sequence[Row]) -> Row | None:
    """The best row that competes, or None."""
    return rows[0] if rows and rows[0].competes else None


def top(rows: Sequence[Row], k: int) -> tuple[Row, ...]:
    """The k best rows that compete (fewer when fewer do)."""
    return tuple(row for row in rows if row.competes)[:k]


def failures(stages: Iterable[StageFacts]) -> tuple[Failure, ...]:
    """Trials whose counted attempt failed or is invalid, in plan order."""
    found = []
    for stage in stages:
        for facts in stage.facts:
            attempt = facts.counted
            if attempt and attempt.outcome in (Outcome.FAILED, Outcome.INVALID):
                trial = facts.trial
                found.append(
                    Failure(
                        trial.id,
                        trial.label,
                        trial.stage,
                        attempt.outcome,
                        attempt.reason,
                        attempt.message,
                        len(facts.attempts),
                        trial.point,
                    )
                )
    return tuple(found)


def missing(stage: StageFacts) -> tuple[str, ...]:
    """Ids of planned trials that have no ended attempt."""
    ended = {facts.trial.id for facts in stage.facts if facts.attempts}
    return tuple(trial.id for trial in stage.plan.trials if trial.id not in ended)


def tightest_target(stages: Iterable[StageFacts], k: int) -> float | None:
    """The tightest target that k distinct points came down to, or None when fewer were measured."""
    lowest: dict[Point, float] = {}
    for stage in stages:
        for facts, attempt in stage.measured():
            loss = _best_loss(attempt)
            if loss is not None:
                point = facts.trial.point
                lowest[point] = min(loss, lowest.get(point, math.inf))
    ordered = sorted(lowest.values())
    return ordered[k - 1] if 0 < k <= len(ordered) else None


def exit_code(stage: StageFacts, study: Study, *, stopped_early: bool = False) -> int:
    """Exit code of a stage command (contract): 6, 4, 1 or 0, the first that holds.

    4 is a statement about the target, so it needs at least one measured trial: where everything
    failed, the code is 1.
    """
    if stopped_early:
        return EXIT_STOPPED_EARLY
    targets = {stage.plan.target, stage.effective_target, *study.objective.fallback}
    loosest, clock = max(targets), study.objective.clock
    times = [time for _, time in stage.times(loosest, clock)]
    if times and not any(time.reached for time in times):
        return EXIT_NOTHING_REACHED
    return EXIT_SOME_FAILED if failures([stage]) else EXIT_DONE


def stage_summary(
    facts: StudyFacts,
    name: StageName,
    *,
    stopped_early: bool = False,
    top_k: int | None = None,
) -> dict[str, Any]:
    """The document of `stage1|stage2|confirm|run --json`, from the facts of one stage.

    Counts are of trials. `planned` is the declared entries, so that planned = reached + censored +
    failed + invalid + missing + reused; `trials` is how many of them are run. `best` and `top` hold
    rows that reached the effective target (null and empty when none did: then `closest` is the row
    that came nearest). `wall_s` is time during which at least one attempt ran.

    Args:
        facts: The study's facts, with at least this stage.
        name: Which stage.
        stopped_early: A budget or the circuit breaker ended the stage.
        top_k: Rows in `top`; default what the next stage takes, at least 5.

    Raises:
        KeyError: The stage has no plan.
    """
    study, stage, clock = facts.study, facts.stages[name], facts.clock
    by_final = study.objective.is_final
    rows = rank([stage], target=stage.effective_target, clock=clock, by_final=by_final)
    times = [time for _, time in stage.times(stage.effective_target, clock)]
    lost = failures([stage])
    taken = study.stage2.from_top if stage.plan.stage == "stage1" else study.confirm.top
    winner = best(rows)
    attempts = [attempt for trial in stage.facts for attempt in trial.attempts]
    return {
        "study": study.name,
        "stage": stage.plan.stage,
        "goal": study.objective.goal,
        "target": stage.plan.target,
        "effective_target": stage.effective_target,
        "planned": stage.plan.entries,
        "trials": len(stage.plan.trials),
        "distinct": stage.plan.distinct,
        "reached": sum(time.reached for time in times),
        "censored": sum(not time.reached for time in times),
        "failed": sum(f.outcome is Outcome.FAILED for f in lost),
        "invalid": sum(f.outcome is Outcome.INVALID for f in lost),
        "missing": len(missing(stage)),
        "reused": stage.plan.entries - len(stage.plan.trials),
        "best": winner.as_dict() if winner else None,
        "top": [row.as_dict() for row in top(rows, top_k or max(5, taken))],
        "closest": rows[0].as_dict() if rows and not winner else None,
        "failures": [{"id": f.id, "label": f.label, "reason": f.reason.value} for f in lost],
        "wall_s": busy_s(attempts),
        "train_s": math.fsum(a.own_train_s for a in attempts),
        "saved_s": saved_s(stage, study.limits),
        "exit": exit_code(stage, study, stopped_early=stopped_early),
    }


def busy_s(attempts: Iterable[AttemptFacts]) -> float:
    """Seconds during which at least one of the attempts ran (the union of their intervals)."""
    total, end = 0.0, -math.inf
    for start, stop in sorted((a.started_at, a.started_at + a.wall_s) for a in attempts):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def saved_s(stage: StageFacts, limits: Limits) -> dict[str, float]:
    """Train seconds not spent, per rule.

    For cap and forecast an upper bound: up to the trial limit, in seconds or (at the trial's own
    speed) in steps; how long it would really have taken to cross is what was not measured. For
    reused duplicates: what the trial that stands for them took.
    """
    saved = {"cap": 0.0, "forecast": 0.0, "dedupe": 0.0}
    for facts, attempt in stage.measured():
        train = attempt.phases.train
        if attempt.reason in (Reason.CAP, Reason.FORECAST):
            saved[attempt.reason.value] += unspent_s(attempt, limits)
        if stage.plan.entries > len(stage.plan.trials):
            saved["dedupe"] += train * max(0, len(facts.trial.groups) - 1)
    return saved


def unspent_s(attempt: AttemptFacts, limits: Limits) -> float:
    """Train seconds up to the trial's limits, in seconds or (at its own speed) in steps."""
    train, most = attempt.phases.train, limits.trial_s
    if attempt.steps:
        most = min(most, train / attempt.steps * limits.steps)
    return max(0.0, most - train)


def _best_loss(attempt: AttemptFacts) -> float | None:
    found = lowest(attempt)
    return attempt.best_loss if found is None else found


def _row(trials: Sequence[PlannedTrial], runs: tuple[Run, ...], *, by_final: bool) -> Row:
    reached, seconds, (low, high) = middle([run.time for run in runs])
    losses = [run.best_loss for run in runs if run.best_loss is not None]
    finals = [run.final for run in runs if run.final is not None]
    return Row(
        id=trials[0].id,
        label=trials[0].label,
        groups=tuple(dict.fromkeys(name for trial in trials for name in trial.groups)),
        point=trials[0].point,
        runs=runs,
        reached=reached,
        seconds=seconds,
        steps=((low.steps or 0.0) + (high.steps or 0.0)) / 2 if reached else None,
        tokens=((low.tokens or 0.0) + (high.tokens or 0.0)) / 2 if reached else None,
        best_loss=min(losses, default=None),
        final=statistics.median(finals) if 2 * len(finals) > len(runs) else None,
        by_final=by_final,
    )


def _order(row: Row) -> tuple[bool, float, float, str]:
    if row.by_final and row.final is not None:
        return (False, row.final, 0.0, row.id)
    if row.by_final:
        return (True, math.inf if row.best_loss is None else row.best_loss, 0.0, row.id)
    if row.reached:
        return (False, row.seconds, 0.0, row.id)
    return (True, math.inf if row.best_loss is None else row.best_loss, -row.seconds, row.id)
