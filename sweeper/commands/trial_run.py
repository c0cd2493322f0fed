"""One brief run of a script that nobody has read yet: which set, or the protocol, gives its metric.

It must not know how the study file around the script is written; the run is an attempt as any other.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sweeper.attempts import prepare
from sweeper.errors import DeviceUnusable, TrainerUnusable
from sweeper.executors.local import LocalExecutor
from sweeper.paths import AttemptPaths, Home, make_private, write_json
from sweeper.pattern_sets import SETS, patterns
from sweeper.runner.readers import EventsReader, PatternsReader, Reader
from sweeper.runner.tail import last_lines
from sweeper.spec import AttemptOutcome, AttemptSpec, Control, SpecError
from sweeper.study import Study
from sweeper.trial import PlannedTrial

ENOUGH = 2
"""Evaluations after which a script is believed to be readable."""
LOOK_EVERY_S = 0.1
SHOWN_LINES = 12
PROTOCOL = "protocol"
OWN = "own patterns"


@dataclass
class Candidate:
    """One way to read the script, and what it has read so far."""

    name: str
    metric: str | None
    reader: Reader
    curve: list[tuple[int, float]]
    clock: bool = False
    steps: bool = False

    def look(self, *, last: bool = False) -> None:
        """Read what is new; a line without its end only at the `last` look.

        The protocol's metric is the first that an evaluation names.
        """
        events = list(self.reader.read().events)
        while last and self.reader.behind:
            events += self.reader.read().events
        for event in [*events, *(self.reader.rest().events if last else ())]:
            if event.event != "evaluated":
                continue
            metrics = event.body["metrics"]
            self.metric = self.metric or next(iter(metrics), None)
            value = metrics.get(self.metric)
            if isinstance(value, int | float) and not isinstance(value, bool):
                point = (event.step, float(value))
                if not self.curve or self.curve[-1] != point:
                    self.curve.append(point)
                self.clock = event.clock is not None
                self.steps = self.steps or event.step > 0


@dataclass(frozen=True)
class Seen:
    """What the run showed: the way to read it, its metric, and (step, value) of its evaluations."""

    name: str
    metric: str
    curve: tuple[tuple[int, float], ...]
    clock: str
    took_s: float

    def words(self) -> str:
        """One sentence about it."""
        number = len(self.curve)
        first, last = self.curve[0][1], self.curve[-1][1]
        moved = f"{first:g}" if number == 1 else f"{first:g} to {last:g}"
        return (
            f"Read with {self.name!r} in a run of {self.took_s:.1f} s: {number} evaluation"
            f"{'s' if number > 1 else ''} of {self.metric}, {moved}"
        )


def run_briefly(
    study: Study,
    trial: PlannedTrial,
    *,
    metric: str | None,
    own: Mapping[str, str],
    only: str | None,
    deadline_s: float,
    devices: str | None = None,
) -> Seen:
    """Run the study's script at one point until its metric was read twice, it ends, or the deadline.

    `metric` None takes each set's usual name. `own` are patterns that are tried alone, `only` is the
    one set that is.

    Raises:
        DeviceUnusable: no place to run it is free.
        TrainerUnusable: it cannot be started, fails, or prints nothing that any set reads.
    """
    place = Path(tempfile.mkdtemp(prefix="sweep-init-"))
    executor = LocalExecutor.on_devices(gpus=study.resources.gpus, devices=devices)
    try:
        paths = Home(place).attempt(study.name, trial.id, 1)
        make_private(paths.folder.parent.parent)
        began_at = time.monotonic()
        with _running(executor, study, trial, paths):
            candidates = _candidates(AttemptSpec.read(paths.spec), paths, metric, own, only)
            while time.monotonic() - began_at < deadline_s:
                ended = bool(executor.wait(LOOK_EVERY_S))
                found = _look(candidates)
                if ended or (found is not None and len(found.curve) >= ENOUGH):
                    break
            took_s = time.monotonic() - began_at
        found = _look(candidates, last=True)
        if found is None or found.metric is None:
            raise TrainerUnusable(_unreadable(study, paths, candidates, took_s, deadline_s))
        return Seen(found.name, found.metric, tuple(found.curve), _clock(found), took_s)
    finally:
        executor.close()
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _running(
    executor: LocalExecutor, study: Study, trial: PlannedTrial, paths: AttemptPaths
) -> Iterator[None]:
    """The script under way while the block runs; at its end nothing of it is left."""
    free = [slot for slot in executor.slots() if not executor.trouble(slot)]
    if not free:
        why = "; ".join(f"{s.name}: {executor.trouble(s)}" for s in executor.slots())
        raise DeviceUnusable(
            f"no device is free to try the script on: {why}; wait, or use --no-run"
        )
    spec = prepare(
        study,
        trial,
        attempt=1,
        paths=paths,
        slot=free[0],
        target=None,
        fallback=(),
        cap_s=None,
        token=1,
    ).put()
    executor.submit(spec, free[0])
    try:
        yield
    finally:
        write_json(paths.control, Control(cancel=True).to_json(), lasting=False)
        until = time.monotonic() + study.limits.grace_s + 15.0
        while not paths.outcome.exists() and time.monotonic() < until:
            executor.wait(LOOK_EVERY_S)


def _candidates(
    spec: AttemptSpec,
    paths: AttemptPaths,
    metric: str | None,
    own: Mapping[str, str],
    only: str | None,
) -> list[Candidate]:
    def read_with(name: str, named: str, expressions: Mapping[str, str]) -> Candidate:
        asked = dataclasses.replace(
            spec, metric=named, patterns=dict(expressions), reader="patterns"
        )
        return Candidate(name, named, PatternsReader(asked, paths.stdout, paths.stderr), [])

    if own:
        return [read_with(OWN, metric or "val_loss", own)]
    sets = [only] if only is not None else list(SETS)
    found = []
    for name in sets:
        named = metric or SETS[name].metric
        found.append(read_with(name, named, patterns(name, named)))
    if only is None:
        found.insert(0, Candidate(PROTOCOL, metric, EventsReader(paths.raw_events), []))
    return found


def _look(candidates: Sequence[Candidate], *, last: bool = False) -> Candidate | None:
    """The first that has read the metric; of two, one that knows steps goes before one that does not."""
    for candidate in candidates:
        candidate.look(last=last)
    read = [c for c in candidates if any(math.isfinite(value) for _, value in c.curve)]
    return next((c for c in read if c.steps), read[0] if read else None)


def _clock(found: Candidate) -> str:
    if found.name in SETS:
        return SETS[found.name].clock if found.clock or found.name != "modded-nanogpt" else _RUNNERS
    return "the script's own" if found.clock else _RUNNERS


_RUNNERS = "the runner's (from the first line that is read)"


def _unreadable(
    study: Study,
    paths: AttemptPaths,
    candidates: Sequence[Candidate],
    took_s: float,
    deadline_s: float,
) -> str:
    """Why the metric was not found: what was seen, what was tried, what to do."""
    said = {"stdout": _tail(paths.stdout), "stderr": _tail(paths.stderr)}
    lines = [f"  {name}: {line}" for name, text in said.items() for line in text]
    seen = "\n".join(lines) if lines else "  (it printed nothing)"
    tried = ", ".join(f"{c.name} ({c.metric})" if c.metric else c.name for c in candidates)
    try:
        spec = AttemptSpec.read(paths.spec)
        outcome = AttemptOutcome.read(paths.outcome)
    except (SpecError, OSError) as error:
        return f"{study.name}: the script could not be run: {error}; its last lines:\n{seen}"
    command = " ".join(spec.argv)
    if outcome.reason.value == "environment":
        return outcome.message
    if outcome.exit_code not in (0, None) and took_s < deadline_s:
        return (
            f"the script failed after {took_s:.1f} s (exit code {outcome.exit_code}) before its metric "
            f"could be read: `{command}` in {spec.cwd}; its last lines:\n{seen}\nmake that command work "
            "by itself, and give what it needs more after --"
        )
    how = f"was stopped after {took_s:.1f} s" if took_s >= deadline_s else "ended"
    return (
        f"the script {how}, and nothing that it said could be read as its metric: `{command}` in "
        f"{spec.cwd}; its last lines:\n{seen}\ntried: {tried}. Name the metric (--metric), give the "
        "script arguments with which it evaluates early (after --), more time (--deadline S), or an "
        r"expression of your own: --pattern 'step (?P<step>\d+) .* loss (?P<metric>\S+)'"
    )


def _tail(path: Path) -> list[str]:
    lines = [line.rstrip() for line in last_lines(path).splitlines() if line.strip()]
    return [line[:160] for line in lines[-SHOWN_LINES:]]
