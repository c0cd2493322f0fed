"""A document's claims against its own arithmetic and against our runs, each with a verdict.

It must not know how a table is drawn; runs come from the facts, the claims from `sweeper.claims`.
"""

from __future__ import annotations

import ast
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sweeper.analysis.dataset import StudyFacts
from sweeper.analysis.intervals import t_quantile
from sweeper.analysis.wording import significant
from sweeper.claims import NEVER, Claim, Claims, contradictions, evaluate, functions_of
from sweeper.objective import final_value
from sweeper.trial import AttemptFacts

ALPHA = 0.05


@dataclass(frozen=True)
class Measured:
    """A claim's expression over the runs: its mean with a 95 % t-interval, `n` independent values.

    `never` counts runs for which it has no finite value: a level that was not come to.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    never: int

    def words(self, unit: str) -> str:
        """`24.1 % [23.0, 25.2], n = 3`, or that it never happened."""
        if self.mean is None:
            return f"never in {self.never} runs" if self.never > 1 else "never in 1 run"
        unit = f" {unit}" if unit else ""
        ends = (
            ""
            if self.low is None or self.high is None
            else f" [{significant(self.low, 4)}, {significant(self.high, 4)}]"
        )
        never = f" (and never in {self.never})" if self.never else ""
        return f"{significant(self.mean, 4)}{unit}{ends}, n = {self.n}{never}"


def claims_table(claims: Claims, facts: StudyFacts | None) -> list[dict[str, Any]]:
    """Each claim with what its own numbers make, what we measured, and a verdict, as JSON values."""
    refuted = {claim.id: words for claim, words in contradictions(claims)}
    rows = []
    for claim in claims.claims:
        made = claims.arithmetic(claim)
        found = _measure(claim, facts) if claim.measured and facts is not None else None
        rows.append(
            {
                "id": claim.id,
                "text": claim.text,
                "stated": claim.stated,
                "unit": claim.unit,
                "own_numbers": None if made is None or not math.isfinite(made) else made,
                "own_numbers_never": made == NEVER,
                "contradiction": refuted.get(claim.id),
                "measured": None if found is None else vars(found),
                "measured_words": "" if found is None else found.words(claim.unit),
                "verdict": _verdict(claim, made, found, contradicted=claim.id in refuted),
                "full_scale": claim.full_scale,
            }
        )
    return rows


def _verdict(
    claim: Claim, made: float | None, found: Measured | None, *, contradicted: bool
) -> str:
    own = ""
    if contradicted:
        own = "contradicts its own numbers"
    elif made is not None and claim.stated is not None:
        own = "agrees with its own numbers"
    return "; ".join(part for part in (own, _on_runs(claim, found)) if part) or "not tested"


def _on_runs(claim: Claim, found: Measured | None) -> str:
    if found is None:
        return ""
    if found.mean is None:
        return "never happened in our runs"
    if found.low is None or found.high is None:
        return "measured once: no interval"
    if claim.stated is None:
        return "measured"
    if claim.judge == "sign":
        if found.low > 0 if claim.stated > 0 else found.high < 0:
            return "direction holds in our runs"
        if found.high < 0 if claim.stated > 0 else found.low > 0:
            return "the opposite in our runs"
        return "not decided by our runs"
    return (
        "within our interval" if found.low <= claim.stated <= found.high else "outside our interval"
    )


def _measure(claim: Claim, facts: StudyFacts) -> Measured | None:
    """The expression once per run: the k-th value uses the k-th run of every configuration in it.

    So no run enters two values, and they are independent. None while a configuration has no run.
    """
    tree = ast.parse(claim.measured, mode="eval")
    ids = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    runs = {name: _runs(facts, name) for name in ids}
    count = min((len(found) for found in runs.values()), default=0)
    if not count:
        return None
    values = [
        evaluate(claim.measured, {}, _functions({name: runs[name][k] for name in ids}))
        for k in range(count)
    ]
    finite = [value for value in values if math.isfinite(value)]
    never = len(values) - len(finite)
    if not finite:
        return Measured(None, None, None, 0, never)
    mean = statistics.fmean(finite)
    if len(finite) == 1:
        return Measured(mean, None, None, 1, never)
    half = t_quantile(len(finite) - 1, ALPHA) * statistics.stdev(finite) / math.sqrt(len(finite))
    return Measured(mean, mean - half, mean + half, len(finite), never)


def _runs(facts: StudyFacts, name: str) -> list[AttemptFacts]:
    """All measured runs of the point that a trial ran, over every stage in plan order.

    `winner` and `baseline` are confirm's leader and the study's baseline there: fresh seeds, in
    blocks.
    """
    from sweeper.analysis.confirm import confirmation  # noqa: PLC0415 - only for these two names

    if name in ("winner", "baseline"):
        found = confirmation(facts)
        row = None if found is None else found.leader if name == "winner" else found.baseline
        return [] if row is None else [run.attempt for run in sorted(row.runs, key=_block)]
    point = next(
        (t.trial.point for s in facts.present() for t in s.facts if t.trial.id == name), None
    )
    return [a for s in facts.present() for t, a in s.measured() if t.trial.point == point]


def _block(run: Any) -> int:
    block: int = run.block
    return block


def _functions(runs: dict[str, AttemptFacts]) -> dict[str, Callable[..., float]]:
    series = {
        name: tuple(
            (float(e.step), e.value)
            for e in run.curve
            if e.slice == "probe" and math.isfinite(e.value)
        )
        for name, run in runs.items()
    }

    def final(name: str) -> float:
        value = final_value(runs[name])
        return math.nan if value is None else value

    return {**functions_of(series), "final": final, "train_s": lambda name: runs[name].phases.train}
