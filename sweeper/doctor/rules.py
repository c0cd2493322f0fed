"""Rules as data: a condition on signals, what it means, what to do; read from TOML and applied.

It must not know what a signal measures.

    [[rule]]
    name = "loss_flat"
    severity = "warning"                     # note, warning or serious
    when = [                                 # all must hold
      { signal = "fall", of = "loss", steps = 1500, below = 0.01 },
      { signal = "lr_share", above = 0.2 },
    ]
    meaning = "The loss fell by {fall:.3f} in 1,500 steps, at a learning rate of {lr:.2g}."
    advice = "Raise the rate."

A condition has a `signal`, its settings, and at least one of `below`, `above`, `at_least`, `at_most`;
`as` names its value for the texts where a signal is used twice. Texts may also use the facts of
`facts`. `scope = "study"` is for signals of many runs; `ended = true` waits for the end of the run.
"""

from __future__ import annotations

import operator
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Any

from sweeper.doctor import signals
from sweeper.doctor.run_log import RunLog
from sweeper.errors import StudyError

FILE = "doctor.toml"
"""A study's own rules, beside its study.toml."""

SEVERITIES = ("note", "warning", "serious")
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "below": operator.lt,
    "above": operator.gt,
    "at_least": operator.ge,
    "at_most": operator.le,
}
_RULE_KEYS = {"name", "severity", "when", "meaning", "advice", "scope", "ended"}


@dataclass(frozen=True)
class Condition:
    """One comparison: a signal with its settings, and bounds by the name of the comparison."""

    signal: str
    settings: Mapping[str, Any]
    bounds: Mapping[str, float]
    name: str


@dataclass(frozen=True)
class Rule:
    """When all of `when` hold: what it means and what to do, texts with {values} in them."""

    name: str
    when: tuple[Condition, ...]
    meaning: str
    advice: str
    severity: str = "warning"
    scope: str = "run"
    ended: bool = False


@dataclass(frozen=True)
class Finding:
    """A rule that holds, with its texts filled in and the numbers that made it hold."""

    rule: str
    severity: str
    meaning: str
    advice: str
    values: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**vars(self), "values": dict(self.values)}


@dataclass(frozen=True)
class Diagnosis:
    """What was found, and which rules could not be judged: a signal of theirs was not there."""

    findings: tuple[Finding, ...]
    not_judged: tuple[str, ...]


class _Unknown:
    """Stands in a text for a number that the run does not tell."""

    def __format__(self, spec: str) -> str:
        return "?"


def built_in() -> tuple[Rule, ...]:
    """The rules that come with sweep."""
    file = Path(str(resources.files("sweeper.doctor"))) / "rules.toml"
    return load(file)


def load(file: Path) -> tuple[Rule, ...]:
    """The rules of a TOML file.

    Raises:
        StudyError: it cannot be read, or a rule is wrong; names file, rule, value and expectation.
    """
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(
            f"{file}: cannot be read ({error.strerror}); expected a file of [[rule]] tables"
        ) from None
    except ValueError as error:  # not TOML, not UTF-8
        raise StudyError(f"{file}: not valid TOML: {error}") from None
    tables = document.get("rule")
    if set(document) != {"rule"} or not isinstance(tables, list):
        raise StudyError(f"{file}: got {sorted(document)}, expected [[rule]] tables and no others")
    rules = tuple(_rule(table, f"{file}: rule {n}") for n, table in enumerate(tables, start=1))
    for name in {rule.name for rule in rules}:
        if sum(rule.name == name for rule in rules) > 1:
            raise StudyError(f"{file}: two rules are called {name!r}; expected one of each name")
    return rules


def joined(*sets: Iterable[Rule]) -> tuple[Rule, ...]:
    """All rules; a later one replaces an earlier one of its name."""
    return tuple({rule.name: rule for rules in sets for rule in rules}.values())


def _rule(table: Any, where: str) -> Rule:
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise StudyError(f"{where}: expected a table with a name")
    where = f"{where} ({table['name']})"
    missing = {"name", "when", "meaning", "advice"} - set(table)
    if missing or set(table) - _RULE_KEYS:
        wrong = sorted(missing) or sorted(set(table) - _RULE_KEYS)
        what = "is missing" if missing else "is not known"
        raise StudyError(f"{where}: {wrong[0]} {what}; expected {', '.join(sorted(_RULE_KEYS))}")
    severity, scope = table.get("severity", "warning"), table.get("scope", "run")
    if severity not in SEVERITIES:
        raise StudyError(f"{where}: severity = {severity!r}, expected one of {SEVERITIES}")
    if scope not in ("run", "study"):
        raise StudyError(f"{where}: scope = {scope!r}, expected 'run' or 'study'")
    if not isinstance(table["when"], list) or not table["when"]:
        raise StudyError(f"{where}: when = {table['when']!r}, expected a list of conditions")
    when = tuple(_condition(one, scope, where) for one in table["when"])
    for text in ("meaning", "advice"):
        _refuse_unknown_fields(str(table[text]), {c.name for c in when} | set(FACTS), where)
    return Rule(
        name=table["name"],
        when=when,
        meaning=str(table["meaning"]),
        advice=str(table["advice"]),
        severity=severity,
        scope=scope,
        ended=bool(table.get("ended", False)),
    )


def _condition(table: Any, scope: str, where: str) -> Condition:
    known = signals.RUN if scope == "run" else signals.STUDY
    if not isinstance(table, dict) or table.get("signal") not in known:
        got = table.get("signal") if isinstance(table, dict) else table
        raise StudyError(f"{where}: signal = {got!r}, expected one of {', '.join(sorted(known))}")
    name = table["signal"]
    bounds = {key: table[key] for key in _COMPARE if key in table}
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in bounds.values())
    if not bounds or not numbers:
        raise StudyError(
            f"{where}: {name}: expected a number for at least one of {', '.join(_COMPARE)}"
        )
    settings = {k: v for k, v in table.items() if k not in {"signal", "as", *_COMPARE}}
    unknown = set(settings) - signals.settings_of(known[name])
    if unknown:
        allowed = ", ".join(sorted(signals.settings_of(known[name]))) or "no settings"
        raise StudyError(f"{where}: {name}: {min(unknown)} is not known; expected {allowed}")
    return Condition(name, settings, bounds, str(table.get("as", name)))


def _refuse_unknown_fields(text: str, known: set[str], where: str) -> None:
    try:
        names = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise StudyError(f"{where}: {text!r} is not a text to fill in: {error}") from None
    if names - known:
        raise StudyError(
            f"{where}: {{{min(names - known)}}} is not known in its text; expected one of "
            + ", ".join(sorted(known))
        )


# ------------------------------------------------------------------------------------- judging


def diagnose(run: RunLog, rules: Iterable[Rule]) -> Diagnosis:
    """Every rule for one run that holds on `run`."""
    chosen = [rule for rule in rules if rule.scope == "run" and (run.over or not rule.ended)]
    return _diagnose(chosen, signals.RUN, run, facts(run))


def diagnose_study(runs: Sequence[RunLog], rules: Iterable[Rule]) -> Diagnosis:
    """Every rule for many runs that holds on `runs`, in the order in which they were started."""
    chosen = [rule for rule in rules if rule.scope == "study"]
    return _diagnose(chosen, signals.STUDY, runs, {})


def _diagnose(
    rules: Iterable[Rule],
    known: Mapping[str, signals.Signal],
    subject: Any,
    facts_of_run: Mapping[str, Any],
) -> Diagnosis:
    findings, not_judged = [], []
    for rule in rules:
        values: dict[str, float] = {}
        holds = True
        for condition in rule.when:
            value = known[condition.signal](subject, **condition.settings)
            if value is None:
                not_judged.append(rule.name)
                holds = False
                break
            values[condition.name] = value
            if not all(_COMPARE[how](value, bound) for how, bound in condition.bounds.items()):
                holds = False
                break
        if holds:
            filled = {name: _Unknown() for name in FACTS} | dict(facts_of_run) | values
            findings.append(
                Finding(
                    rule=rule.name,
                    severity=rule.severity,
                    meaning=rule.meaning.format_map(filled),
                    advice=rule.advice.format_map(filled),
                    values=values,
                )
            )
    findings.sort(key=lambda finding: -SEVERITIES.index(finding.severity))
    return Diagnosis(tuple(findings), tuple(not_judged))


FACTS = ("step", "lr", "peak_lr", "batch_size", "micro_batch", "half_micro_batch", "max_steps")
"""What any rule's text may name: None of them is compared."""


def facts(run: RunLog) -> dict[str, Any]:
    """The FACTS that the run tells."""
    rates = [rate for _, rate in run.series("lr")]
    batch = run.setting("data.batch_size")
    micro = run.setting("data.micro_batch") or batch
    found = {
        "step": run.step,
        "lr": rates[-1] if rates else None,
        "peak_lr": max(rates) if rates else None,
        "batch_size": batch,
        "micro_batch": micro,
        "half_micro_batch": max(1, micro // 2) if isinstance(micro, int) else None,
        "max_steps": run.setting("run.max_steps"),
    }
    return {name: value for name, value in found.items() if value is not None}
