"""A small study file to bend in every way, and facts as a trainer would have left them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from sweeper.space import Point
from sweeper.study import Study
from sweeper.study_file import load
from sweeper.trial import (
    AttemptFacts,
    Evaluation,
    Outcome,
    Phases,
    PlannedTrial,
    Reason,
    TrialFacts,
)

STUDIES = Path(__file__).resolve().parents[2] / "studies"

BASE = """\
[optim]
lr = 0.01
momentum = 0.9
method = "slow"
restart = false

[data]
batch = 32

[run]
epochs = 7
"""

STUDY = """\
frozen = ["run.epochs"]

[study]
name = "small"

[objective]
metric = "val_loss"
target = 5.0
fallback = [5.5, 6.0]

[trainer]
command = ["{python}", "train.py", "{config}"]
config = "base.toml"

[limits]
steps = 100
trial_s = 600

[space."optim.lr"]
type = "float"
low = 0.001
high = 0.1
scale = "log"
levels = 5

[space."optim.momentum"]
type = "float"
low = 0.8
high = 0.99

[space."optim.method"]
type = "categorical"
choices = ["slow", "fast"]

[space."optim.restart"]
type = "bool"

[space."data.batch"]
type = "int"
low = 8
high = 128
step = 8
scale = "log"

[[tie]]
parameter = "optim.lr"
follows = "data.batch"
exponent = 0.5

[[forbid]]
"optim.method" = "fast"
"data.batch" = 128

[[question]]
text = "Is fast fast?"
parameter = "optim.method"
levels = ["slow", "fast"]
at = { "data.batch" = 32 }

[[stage1.group]]
name = "A"
grid = { "optim.method" = ["slow", "fast"] }
bases = [{}, { "data.batch" = 64 }]

[[stage1.group]]
name = "B"
best_of = { group = "A", parameters = ["optim.method"] }
vary = { "optim.lr" = [0.001, 0.01, 0.1], "data.batch" = [16, 32, 64] }

[[stage1.group]]
name = "C"
configs = [
  { "optim.lr" = 0.02, "optim.restart" = true },
  { "optim.lr" = 0.05, "optim.momentum" = 0.95 },
]

[stage2]
from_top = 4
runs = 12
replicates = 2
interactions = [["optim.lr", "data.batch"]]
"""


@pytest.fixture
def study_text() -> str:
    return STUDY


@pytest.fixture
def write_study(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str, base: str = BASE) -> Path:
        (tmp_path / "base.toml").write_text(base, encoding="utf-8")
        (tmp_path / "study.toml").write_text(text, encoding="utf-8")
        return tmp_path / "study.toml"

    return write


@pytest.fixture
def study(write_study: Callable[[str], Path]) -> Study:
    return load(write_study(STUDY))


@pytest.fixture(scope="session")
def ngpt() -> Study:
    return load(STUDIES / "ngpt")


@pytest.fixture(scope="session")
def quickstart() -> Study:
    return load(STUDIES / "quickstart")


def curve_to(seconds: float, *, start: float = 7.0, target: float = 5.0, until: float = 1.0):
    """A loss that falls exponentially and crosses the target at `seconds`, seen at 8 places of that.

    `until` stops it at that share of the way (or beyond it).
    """
    shares = [i / 8 * until for i in range(9)]
    return tuple(
        Evaluation(
            step=int(share * 800),
            tokens=int(share * 1e6),
            clock=Phases(train=share * seconds),
            value=start * (target / start) ** share,
        )
        for share in shares
    )


def reached(seconds: float) -> AttemptFacts:
    return AttemptFacts(
        1, Outcome.REACHED, Reason.TARGET, curve=curve_to(seconds), phases=Phases(train=seconds)
    )


def censored(
    seconds: float, *, share: float, reason: Reason = Reason.CAP, cap_s: float | None = None
) -> AttemptFacts:
    """Stopped at `share` of the way to the target, which it would have crossed at `seconds`."""
    stopped = share * seconds
    return AttemptFacts(
        1,
        Outcome.CENSORED,
        reason,
        curve=curve_to(seconds, until=share),
        phases=Phases(train=stopped),
        cap_s=cap_s,
    )


def failed(reason: Reason = Reason.CRASHED) -> AttemptFacts:
    return AttemptFacts(1, Outcome.FAILED, reason)


def facts_of(
    trials: Sequence[PlannedTrial], outcome: Callable[[PlannedTrial], AttemptFacts | float | None]
) -> list[TrialFacts]:
    """Facts of trials; a number is a time-to-target, None means that it has not run."""
    facts = []
    for trial in trials:
        found = outcome(trial)
        attempt = reached(found) if isinstance(found, int | float) else found
        facts.append(TrialFacts(trial, () if attempt is None else (attempt,)))
    return facts


class Make:
    """What tests build facts with, as one fixture."""

    curve_to = staticmethod(curve_to)
    reached = staticmethod(reached)
    censored = staticmethod(censored)
    failed = staticmethod(failed)
    facts_of = staticmethod(facts_of)


@pytest.fixture(scope="session")
def make() -> type[Make]:
    return Make


@pytest.fixture(scope="session")
def seconds() -> Callable[[Mapping[str, object]], float]:
    """A made-up truth: fast is 20 % faster, lr best at 0.02, the rest matters little."""

    def time_of(point: Point) -> float:
        lr = float(point["optim.lr"])
        slow = 1.0 if point["optim.method"] == "fast" else 1.25

        return 60 * slow * (1 + 0.3 * math.log(lr / 0.02) ** 2)

    return time_of
