"""What a stage's runs say about themselves: targets out of reach, times that cannot be compared, causes.

It must not know where the facts came from; each finding is a sentence, or it is not there.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sweeper.analysis.dataset import StageFacts, StudyFacts
from sweeper.analysis.noise import replicate_noise
from sweeper.analysis.wording import count, duration, listed, ratio, significant
from sweeper.objective import lowest, time_to_target
from sweeper.racing.reach import reach
from sweeper.racing.standing import Times
from sweeper.space import Point
from sweeper.trial import AttemptFacts, Outcome, TrialFacts

NOT_COMPARABLE = 1.5
"""Equal configurations on one device do not differ so much in time per token unless it was shared."""
ROUND = 0.05
SHOWN = 5


def findings(facts: StudyFacts, target: float) -> tuple[str, ...]:
    """Everything that must be said before any time in the study is believed."""
    found: list[str] = []
    for stage in facts.present(("stage1", "stage2")):
        found += _out_of_reach(facts, stage, target)
        found += _not_comparable(stage)
        found += _launchers(stage)
        found += _out_of_memory(stage)
        found += _fallback(facts, stage, target)
    return tuple(found)


def _out_of_reach(facts: StudyFacts, stage: StageFacts, target: float) -> Iterator[str]:
    """After how many trials it could be seen that nobody would reach the target."""
    measured = [trial for trial, _ in stage.measured()]
    times = Times(facts.clock)
    if not measured or times.standing(measured, target).medians:
        return
    for number in range(1, len(measured) + 1):
        words = reach(times.standing(measured[:number], target)).words(target)
        if words:
            yield (
                f"After the first {number} of {count(len(measured), 'measured trial')} of "
                f"{stage.plan.stage} it could be seen: {words}. None of the others reached it either."
            )
            return


def slowness(stage: StageFacts) -> Mapping[Point, Sequence[tuple[str, float, float]]]:
    """For points that were run more than once: id, seconds per token and seconds of every run."""
    runs: dict[Point, list[tuple[str, float, float]]] = {}
    for trial, attempt in stage.measured():
        work = attempt.tokens or attempt.steps
        if work and attempt.phases.train > 0:
            seconds = attempt.phases.train
            runs.setdefault(trial.trial.point, []).append((trial.trial.id, seconds / work, seconds))
    return {point: of_point for point, of_point in runs.items() if len(of_point) > 1}


def are_times_comparable(stage: StageFacts) -> bool:
    """Whether equal configurations took about equal time for equal work."""
    return all(_times_more(runs) < NOT_COMPARABLE for runs in slowness(stage).values())


def _not_comparable(stage: StageFacts) -> Iterator[str]:
    bad = [runs for runs in slowness(stage).values() if _times_more(runs) >= NOT_COMPARABLE]
    if not bad:
        return
    bad.sort(key=_times_more, reverse=True)
    parts = []
    for runs in bad:
        seconds = sorted(s for _, _, s in runs)
        parts.append(
            f"{listed([i for i, _, _ in runs], 9)} are one configuration, and their times for equal "
            f"work differ {ratio(_times_more(runs))}-fold ({duration(seconds[0])} to "
            f"{duration(seconds[-1])})"
        )
    yield (
        f"Times are not comparable: {'; '.join(parts)}. Something else used the device meanwhile, so no "
        "effect on speed, and no ranking by time, can be concluded from these runs; tokens and losses "
        "can be compared."
    )


def _times_more(runs: Sequence[tuple[str, float, float]]) -> float:
    rates = [rate for _, rate, _ in runs]
    return max(rates) / min(rates)


def _launchers(stage: StageFacts) -> Iterator[str]:
    """Trials that went on after whatever had launched them believed that they were over."""
    outlived = [
        (trial.trial.id, launcher, attempt)
        for trial, attempt in stage.measured()
        if (launcher := attempt.device.get("launcher")) and "seconds" in launcher
        if launcher["seconds"] < 0.99 * attempt.wall_s
    ]
    if not outlived:
        return
    words = Counter(
        f"{launcher['status']} after {duration(launcher['seconds'])}" for _, launcher, _ in outlived
    )
    yield (
        f"{len(outlived)} of {len(stage.facts)} launches outlived their "
        f"launcher ({', '.join(f'{w}: {n}' for w, n in words.items())}): it ended itself and not the "
        "trial, which ran on beside its successors."
    )


def _out_of_memory(stage: StageFacts) -> Iterator[str]:
    lost: list[tuple[TrialFacts, Mapping[str, Any]]] = []
    for trial in stage.facts:
        attempt = trial.counted
        if attempt is not None and attempt.outcome is Outcome.FAILED:
            observed = attempt.device.get("observed") or {}
            if observed.get("other_processes"):
                lost.append((trial, observed))
    if not lost:
        return
    reasons = Counter(t.counted.reason.value for t, _ in lost if t.counted)
    others = sorted({int(seen["other_processes"]) for _, seen in lost})
    free = [seen["free_mib"] for _, seen in lost if "free_mib" in seen]
    room = f" ({statistics.median(free):.0f} MiB were free, in the median)" if free else ""
    yield (
        f"{len(lost)} trials failed ({', '.join(f'{r} {n}' for r, n in reasons.items())}) while "
        f"{'-'.join(map(str, others[:: max(1, len(others) - 1)]))} other processes held the device"
        f"{room}: {listed([t.trial.id for t, _ in lost])}. Nothing is said about these configurations; "
        "they have to be run again, alone."
    )


def _fallback(facts: StudyFacts, stage: StageFacts, target: float) -> Iterator[str]:
    """The tightest round target that half of the configurations came down to, ranked by tokens."""
    best_of: dict[Point, float] = {}
    for trial, attempt in stage.measured():
        loss = lowest(attempt)
        if loss is not None:
            point = trial.trial.point
            best_of[point] = min(loss, best_of.get(point, math.inf))
    losses = sorted(best_of.values())
    if len(losses) < 2 or losses[0] <= target:
        return
    half = losses[max(facts.study.stage2.from_top, math.ceil(len(losses) / 2), 1) - 1 : None]
    goal = round(math.ceil((half or losses[-1:])[0] / ROUND) * ROUND, 6)
    tokens = _tokens(stage, goal, facts)
    best = sorted(tokens.values(), key=lambda found: found[1])[:SHOWN]
    rows = ", ".join(f"{label} {significant(needed / 1e6)} M" for label, needed in best)
    spread = replicate_noise([_in_tokens(stage)], target=goal, clock="train")
    noise = (
        f" Equal configurations differ by {100 * spread.sd:.2g} % in tokens (standard deviation, "
        f"{spread.df} degrees of freedom): closer ones are not told apart."
        if spread.sd is not None
        else ""
    )
    yield (
        f"The best fallback target is {significant(goal, 4)}: {len(tokens)} of "
        f"{count(len(losses), 'configuration')} crossed it. By tokens to it: {rows}.{noise}"
    )


def _tokens(stage: StageFacts, goal: float, facts: StudyFacts) -> Mapping[Point, tuple[str, float]]:
    """Per configuration that crossed: its label, and the median of its runs' tokens."""
    runs: dict[Point, list[float]] = {}
    labels: dict[Point, str] = {}
    for trial, attempt in stage.measured():
        found = time_to_target(attempt, goal, facts.clock)
        if found is not None and found.tokens:
            labels.setdefault(trial.trial.point, trial.trial.label)
            runs.setdefault(trial.trial.point, []).append(found.tokens)
    return {point: (labels[point], statistics.median(of)) for point, of in runs.items()}


def _in_tokens(stage: StageFacts) -> StageFacts:
    """The stage with tokens in the place of train seconds: what is asked of times, asked of tokens."""

    def on_tokens(attempt: AttemptFacts) -> AttemptFacts:
        curve = tuple(
            e._replace(clock=e.clock._replace(train=float(e.tokens))) for e in attempt.curve
        )
        return replace(attempt, curve=curve)

    changed = tuple(
        TrialFacts(f.trial, tuple(on_tokens(a) for a in f.attempts)) for f in stage.facts
    )
    return replace(stage, facts=changed)
