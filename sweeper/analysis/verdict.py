"""The verdict of a study in words: what won, by how much, what is decided or not, what it cost.

It must not know how it is shown; every sentence is built from values that `Verdict` also carries.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sweeper.analysis.confirm import Confirmation, Contrast, confirmation, lower_by
from sweeper.analysis.dataset import STAGES, StudyFacts
from sweeper.analysis.effects import StageEffects, stage2_effects
from sweeper.analysis.findings import are_times_comparable, findings
from sweeper.analysis.intervals import Interval
from sweeper.analysis.noise import Noise, replicate_noise
from sweeper.analysis.ranking import (
    Failure,
    Row,
    best,
    busy_s,
    failures,
    missing,
    saved_s,
    search_ranking,
    tightest_target,
)
from sweeper.analysis.wording import (
    bracket,
    count,
    duration,
    listed,
    more_or_less,
    ratio,
    significant,
)
from sweeper.trial import Clock, Outcome

Kind = Literal["confirmed", "unconfirmed", "nothing_reached", "nothing_measured"]


@dataclass(frozen=True)
class Speedup:
    """The baseline's time over the winner's, or with goal "final" its metric over the winner's.

    Without confirm there is no interval.

    `at_least`: the baseline did not always reach, so the ratio is a lower bound.
    """

    interval: Interval
    confirmed: bool
    decided: bool
    at_least: bool
    of: Literal["time", "metric"] = "time"

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            **self.interval.as_dict(),
            "of": self.of,
            "confirmed": self.confirmed,
            "decided": self.decided,
            "at_least": self.at_least,
        }


@dataclass(frozen=True)
class Cost:
    """What the study has spent so far; `busy_s` is 0 where it is not known when attempts ran."""

    trials: int
    attempts: int
    train_s: float
    attempts_wall_s: float
    busy_s: float
    saved_s: float

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Verdict:
    """One sentence, the paragraphs under it, and the values that they are made of."""

    kind: Kind
    sentence: str
    paragraphs: tuple[str, ...]
    target: float
    winner: Row | None
    baseline: Row | None
    speedup: Speedup | None
    decided: tuple[str, ...]
    undecided: tuple[str, ...]
    missing: tuple[str, ...]
    cost: Cost
    ranking: tuple[Row, ...]
    failures: tuple[Failure, ...]
    confirmation: Confirmation | None
    effects: StageEffects | None
    noise: Noise
    reachable_target: float | None


def verdict(facts: StudyFacts, *, target: float | None = None) -> Verdict:
    """Judge a study at its effective target, or at any other.

    The winner is confirm's leader once confirm has one that reached; else the fastest of stages 1
    and 2, unconfirmed.
    """
    goal = facts.target if target is None else target
    ranking = search_ranking(facts, target=goal)
    rerun = confirmation(facts, target=goal)
    confirmed = rerun if rerun and rerun.leader.competes else None
    lost = failures(facts.present())
    winner = confirmed.leader if confirmed else best(ranking)
    baseline = _baseline(facts, confirmed, ranking)
    speedup = _speedup(winner, baseline, confirmed)
    comparable = facts.study.objective.is_final or all(map(are_times_comparable, facts.present()))
    if not confirmed and not comparable:
        speedup = None
    wanted = facts.study.stage2.from_top
    reachable = tightest_target(facts.present(), wanted) or tightest_target(facts.present(), 1)
    by_final = facts.study.objective.is_final
    noise = replicate_noise(facts.present(), target=goal, clock=facts.clock, by_final=by_final)
    effects = stage2_effects(facts, target=goal)
    kind: Kind
    if winner is not None:
        kind = "confirmed" if confirmed else "unconfirmed"
        sentence = _winner_sentence(facts, goal, winner, speedup, confirmed or ranking)
    elif ranking:
        kind, sentence = "nothing_reached", _nothing_reached(facts, goal, ranking[0], reachable)
    else:
        kind, sentence = "nothing_measured", _nothing_measured(lost)
    decided, undecided = _decisions(rerun, effects)
    gaps = tuple(_gaps(facts, lost))
    cost = _cost(facts)
    not_again = _not_again(facts, goal, confirmed)
    paragraphs = tuple(
        p
        for p in (
            facts.banner,
            _on_validity(ranking, lost),
            *findings(facts, goal),
            _judged_at(facts, goal),
            not_again or _on_confirm(confirmed, winner, baseline, speedup),
            _on_noise(noise),
            _on_cost(cost),
        )
        if p
    )
    return Verdict(
        kind=kind,
        sentence=sentence,
        paragraphs=paragraphs,
        target=goal,
        winner=winner,
        baseline=baseline,
        speedup=speedup,
        decided=decided,
        undecided=undecided,
        missing=gaps,
        cost=cost,
        ranking=ranking,
        failures=lost,
        confirmation=rerun,
        effects=effects,
        noise=noise,
        reachable_target=reachable,
    )


def _baseline(
    facts: StudyFacts, confirmed: Confirmation | None, ranking: Sequence[Row]
) -> Row | None:
    if confirmed and confirmed.baseline:
        return confirmed.baseline
    point = facts.baseline()
    return next((row for row in ranking if row.point == point), None)


def _speedup(
    winner: Row | None, baseline: Row | None, confirmed: Confirmation | None
) -> Speedup | None:
    if winner is None or baseline is None or winner.point == baseline.point:
        return None
    contrast = confirmed.against_baseline if confirmed else None
    if contrast and contrast.time:
        of: Literal["time", "metric"] = "metric" if winner.by_final else "time"
        return Speedup(contrast.time, True, contrast.decided, contrast.at_least, of)
    if winner.by_final:
        return _single_metric(winner, baseline, confirmed)
    if confirmed or winner.seconds <= 0 or baseline.seconds <= 0:
        return None
    single = Interval(baseline.seconds / winner.seconds, None, None, 1, 0.05)
    return Speedup(single, False, False, not baseline.reached)


def _single_metric(winner: Row, baseline: Row, confirmed: Confirmation | None) -> Speedup | None:
    if confirmed or not winner.final or not baseline.final or winner.final < 0:
        return None
    single = Interval(baseline.final / winner.final, None, None, 1, 0.05)
    return Speedup(single, False, False, False, "metric")


def _metric_at(facts: StudyFacts, target: float) -> str:
    return f"{facts.study.objective.metric} {significant(target, 6)}"


def _clock_words(facts: StudyFacts) -> str:
    words: dict[Clock, str] = {
        "train": "of training",
        "train+eval": "of training and evaluation",
        "wall": "from process start",
    }
    return words[facts.clock]


def _nothing_measured(lost: Sequence[Failure]) -> str:
    if lost:
        return f"Nothing was measured: {count(len(lost), 'trial')} failed ({_reasons(lost)})."
    return "Nothing has been measured yet."


def _nothing_reached(
    facts: StudyFacts, target: float, nearest: Row, reachable: float | None
) -> str:
    far = (
        f"the closest, {nearest.label}, came down to {significant(nearest.best_loss, 5)}"
        if nearest.best_loss is not None
        else "nothing finite was measured"
    )
    goal = _metric_at(facts, target)
    return f"No configuration reached {goal}: {far}{_reachable_words(facts, reachable)}."


def _winner_sentence(
    facts: StudyFacts,
    target: float,
    winner: Row,
    speedup: Speedup | None,
    evidence: Confirmation | Sequence[Row],
) -> str:
    if winner.final is not None and winner.by_final:
        return _final_sentence(facts, target, winner, speedup, evidence)
    goal, time = _metric_at(facts, target), duration(winner.seconds)
    if isinstance(evidence, Confirmation):
        text = f"{winner.label} reaches {goal} in {time} {_clock_words(facts)}"
        equals = [c.other.label for c in evidence.contrasts if not (c.decided or c.is_baseline)]
        tied = f"; not distinguishable from {listed(equals)} at this budget" if equals else ""
        return f"{text}{_speedup_words(speedup)}{tied}."
    reached = sum(row.reached for row in evidence)
    return (
        f"{winner.label} was the fastest of {count(len(evidence), 'configuration')} "
        f"({reached} reached the target): {goal} in {time} {_clock_words(facts)}"
        f"{_speedup_words(speedup)}."
    )


def _final_sentence(
    facts: StudyFacts,
    target: float,
    winner: Row,
    speedup: Speedup | None,
    evidence: Confirmation | Sequence[Row],
) -> str:
    """What won where the metric at the budget's end ranks."""
    metric, steps = facts.study.objective.metric, facts.study.limits.steps
    final, label = winner.final or 0.0, winner.label
    ends = f"{metric} {significant(final, 5)} after {count(steps, 'step')}"
    beats = "at or below" if final <= target else "above"
    level = f"{beats} the level to beat, {significant(target, 6)}"
    if isinstance(evidence, Confirmation):
        equals = [c.other.label for c in evidence.contrasts if not (c.decided or c.is_baseline)]
        tied = f"; not distinguishable from {listed(equals)} at this budget" if equals else ""
        return f"{label} ends at {ends}, {level}{_speedup_words(speedup)}{tied}."
    tried = count(len(evidence), "configuration")
    return f"{label} was the best of {tried}: {ends}, {level}{_speedup_words(speedup)}."


def _speedup_words(speedup: Speedup | None) -> str:
    if speedup is None:
        return ""
    if speedup.of == "metric":
        words, blocks = lower_by(speedup.interval), count(speedup.interval.n, "block")
        if not speedup.confirmed:
            return f", {words} than the baseline in single runs, not confirmed"
        if speedup.decided:
            return f", {words} than the baseline (n = {blocks})"
        return f", not distinguishable from the baseline at this budget ({words}, n = {blocks})"
    bound = "at least " if speedup.at_least else ""
    if not speedup.confirmed:
        factor = ratio(speedup.interval.ratio)
        return f", {bound}{factor}x faster than the baseline in single runs, not confirmed"
    interval = bracket(speedup.interval.low, speedup.interval.high)
    blocks = count(speedup.interval.n, "block")
    factor = f"{bound}{ratio(speedup.interval.ratio)}x {interval}".rstrip()
    if speedup.decided:
        return f", {factor} faster than the baseline (n = {blocks})"
    return f", not distinguishable from the baseline at this budget ({factor}, n = {blocks})"


def _reachable_words(facts: StudyFacts, reachable: float | None) -> str:
    if reachable is None:
        return ""
    k = facts.study.stage2.from_top
    crossed = sum(1 for row in search_ranking(facts, target=reachable) if row.reached_runs)
    looser = [t for t in facts.study.objective.fallback if t >= reachable]
    near = f"; the nearest fallback is {significant(min(looser), 6)}" if looser else ""
    who = count(crossed, "configuration")
    enough = "" if crossed >= k else f" (fewer than the {k} that stage 2 wants)"
    return f"; {who} came down to {significant(reachable, 5)}{enough}{near}"


def _reasons(lost: Sequence[Failure]) -> str:
    counted = Counter(failure.reason.value for failure in lost).most_common()
    return ", ".join(f"{reason} {n}" for reason, n in counted)


def _judged_at(facts: StudyFacts, target: float) -> str:
    declared = facts.study.objective.target
    if math.isclose(target, declared):
        return ""
    text = (
        f"Everything here is judged at {_metric_at(facts, target)}; the study declares "
        f"{significant(declared, 6)}."
    )
    if target < min(declared, facts.target):
        text += (
            " Trials stop at the target that they were run for, so a tighter one is seldom seen."
        )
    return text


def _not_again(facts: StudyFacts, target: float, confirmed: Confirmation | None) -> str:
    stage = facts.stages.get("confirm")
    runs = sum(1 for trial in stage.facts if trial.counted) if stage else 0
    final = facts.study.objective.is_final
    if confirmed is not None or not runs:
        return ""
    return (
        f"Confirm ran the finalists and the baseline again ({count(runs, 'run')}), and none of them "
        f"{'came to its end' if final else 'reached ' + _metric_at(facts, target)} in at least half "
        f"of its runs: what was {'best' if final else 'fastest'} in the search is not confirmed, it "
        "may have been luck."
    )


def _on_confirm(
    confirmed: Confirmation | None,
    winner: Row | None,
    baseline: Row | None,
    speedup: Speedup | None,
) -> str:
    if confirmed:
        text = (
            f"Confirm re-ran {count(len(confirmed.rows), 'configuration')} with fresh seeds in "
            f"{count(confirmed.blocks, 'block')}; only these runs count here. Intervals are at "
            f"{100 * (1 - confirmed.alpha):.4g} % because "
            f"{count(len(confirmed.looks), 'look')} at the pairs "
            f"{'is' if len(confirmed.looks) == 1 else 'are'} planned."
        )
        against = confirmed.against_baseline
        return f"{text} {_split_words(against)}".rstrip() if against else text
    if winner is None:
        return ""
    text = (
        "The best of many single runs flatters itself: confirm would re-run the finalists and the "
        "baseline with fresh seeds."
    )
    if baseline is None:
        text += " The baseline was not measured, so there is no speed-up to report."
    elif speedup is None:
        text += " The best configuration is the baseline itself."
    return text


def _split_words(contrast: Contrast) -> str:
    if contrast.learning is None or contrast.speed is None:
        return ""
    tokens, speed = 1 / contrast.learning.ratio, 1 / contrast.speed.ratio
    return (
        f"Against the baseline it needs {more_or_less(tokens, 'more', 'fewer')} tokens to the "
        f"target, at {more_or_less(speed, 'more', 'less')} time per token."
    )


def _on_validity(ranking: Sequence[Row], lost: Sequence[Failure]) -> str:
    """Times that should not be believed, and those that were left out."""
    doubted = [row for row in ranking if row.doubts]
    invalid = [failure for failure in lost if failure.outcome is Outcome.INVALID]
    parts = []
    if doubted:
        first = doubted[0].doubts[0]
        more = "" if len(doubted) == 1 else " (every row says why)"
        parts.append(
            f"{count(len(doubted), 'configuration')} of the ranking "
            f"{'has' if len(doubted) == 1 else 'have'} a suspect time, for example {first}{more}."
        )
    if invalid:
        names = listed([failure.id for failure in invalid])
        parts.append(
            f"Left out of the ranking, invalid in every attempt: {names} ({_reasons(invalid)})."
        )
    return " ".join(parts)


def _on_noise(noise: Noise) -> str:
    if noise.by_final:
        return _on_final_noise(noise)
    if noise.sd is None or noise.floor is None:
        return (
            "No configuration reached the target twice, so how much the times of equal runs differ "
            "is not known."
        )
    return (
        f"Equal runs differ by {significant(100 * noise.sd, 2)} % (standard deviation of log time, "
        f"{noise.df} degrees of freedom): single runs less than {significant(100 * noise.floor, 2)} % "
        "apart are not told apart."
    )


def _on_final_noise(noise: Noise) -> str:
    if noise.sd is None or noise.floor is None:
        return "No configuration was run twice, so how much equal runs differ is not known."
    return (
        f"The final metric of equal runs differs by {significant(100 * noise.sd, 2)} % (standard "
        f"deviation of its logarithm, {noise.df} degrees of freedom): single runs less than "
        f"{significant(100 * noise.floor, 2)} % apart are not told apart."
    )


def _on_cost(cost: Cost) -> str:
    if not cost.attempts:
        return ""
    share = cost.train_s / cost.attempts_wall_s if cost.attempts_wall_s > 0 else 0.0
    return (
        f"It took {count(cost.trials, 'trial')} ({count(cost.attempts, 'attempt')}), "
        f"{duration(cost.train_s)} of training in {duration(cost.attempts_wall_s)} of attempts "
        f"({100 * share:.0f} %)"
        + (f"; something was running for {duration(cost.busy_s)}." if cost.busy_s else ".")
    )


def _decisions(
    confirmed: Confirmation | None, effects: StageEffects | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    decided: list[str] = []
    undecided: list[str] = []
    for contrast in confirmed.contrasts if confirmed else ():
        (decided if contrast.decided else undecided).append(contrast.words())
    if effects is None:
        return tuple(decided), tuple(undecided)
    shown = effects.shown
    where = "" if shown is effects.at_target else f", to {significant(shown.target, 5)}"
    for effect in shown.effects:
        (decided if effect.decided else undecided).append(f"{effect.words()}{where}")
    if not shown.effects:
        undecided.append(f"effects of stage 2's parameters: {shown.why_none}")
    undecided += [
        f"{words}: the effect's sign is another at {significant(effects.at_analysis.target, 5)}"
        for words in effects.turned
    ]
    return tuple(decided), tuple(undecided)


def _gaps(facts: StudyFacts, lost: Sequence[Failure]) -> Iterator[str]:
    for name in STAGES:
        stage = facts.stages.get(name)
        if stage is None:
            yield f"{name} has not been planned"
            continue
        absent = missing(stage)
        if absent:
            yield f"{name} misses {count(len(absent), 'trial')}: {listed(absent)}"
        elif not stage.closed:
            yield f"{name} is still open"
        if stage.exploratory:
            yield f"{name} is exploratory: its study was changed after the plan was frozen"
    if lost:
        names = listed([failure.id for failure in lost])
        yield f"{count(len(lost), 'trial')} failed ({_reasons(lost)}): {names}"


def _cost(facts: StudyFacts) -> Cost:
    trials = [trial for stage in facts.present() for trial in stage.facts if trial.attempts]
    attempts = [attempt for trial in trials for attempt in trial.attempts]
    saved = [saved_s(stage, facts.study.limits) for stage in facts.present()]
    return Cost(
        trials=len(trials),
        attempts=len(attempts),
        train_s=math.fsum(a.own_train_s for a in attempts),
        attempts_wall_s=math.fsum(a.wall_s for a in attempts),
        busy_s=busy_s(attempts) if all(a.started_at > 0 for a in attempts) else 0.0,
        saved_s=math.fsum(seconds for of_stage in saved for seconds in of_stage.values()),
    )
