"""Plays recorded curves on a virtual clock, event by event, under the very limits of a real runner.

It must not start processes or know which rule wants what: control.json says it, as in a real run.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeper.events import Fold, finite, parse_line
from sweeper.executors.base import Slot, Submitted
from sweeper.objective import crossing
from sweeper.paths import AttemptPaths, write_json
from sweeper.runner.limits import Limits, Stop
from sweeper.spec import AttemptOutcome, AttemptSpec, Control, SpecError
from sweeper.trial import OUTCOME_OF, Evaluation, Phases, Reason

EPOCH = 1.0e9
"""Unix time at which virtual time starts: for people, and never compared with a real one."""


@dataclass(frozen=True)
class Recording:
    """What a trial did when it was really run: its evaluations, and how it ended without our help.

    `end` is its clock when it ended. A spec that stops earlier cuts it short; one that would have let
    it go on finds `reason`.
    """

    curve: tuple[Evaluation, ...]
    end: Phases
    reason: Reason
    message: str = "the recording ends here"


Find = Callable[[AttemptSpec], Recording]


@dataclass
class _Play:
    """One attempt under way: what is left of its recording, and the runner's own rules."""

    spec: AttemptSpec
    submitted: Submitted
    paths: AttemptPaths
    began_at: float
    recording: Recording
    rest: Iterator[list[Evaluation]]
    limits: Limits
    fold: Fold
    at: Phases = field(default_factory=Phases)
    coming: list[Evaluation] = field(default_factory=list)
    seq: int = 0

    def emit(self, event: str, step: int, tokens: int, clock: Phases, **more: Any) -> None:
        """One line of events.jsonl, as a runner writes it."""
        body = {"v": 1, "seq": self.seq, "event": event, "step": step, "tokens": tokens}
        text = json.dumps(body | {"clock": clock.as_dict()} | more, allow_nan=False)
        self.seq += 1
        parsed = parse_line(text)
        self.fold.add(parsed)
        self.limits.event(parsed, self.began_at + clock.seconds("wall"))
        with self.paths.events.open("a", encoding="utf-8") as file:
            file.write(text + "\n")


class ReplayExecutor:
    """Slots in virtual time: `wait` moves `now_s` to the next recorded evaluation, and never sleeps.

    So the loop looks after every evaluation of any attempt, as it does in real time, and what it
    asks for in control.json holds from the next one on.
    """

    def __init__(self, find: Find, *, slots: int = 1) -> None:
        self._find = find
        self._slots = tuple(
            Slot(f"replay{i}", {"kind": "replay", "index": i}, {}) for i in range(slots)
        )
        self._plays: list[tuple[float, int, _Play]] = []
        self._order = itertools.count()
        self.now_s = 0.0

    def slots(self) -> Sequence[Slot]:
        """All places, whether taken or free."""
        return self._slots

    def trouble(self, slot: Slot) -> str:  # noqa: ARG002 - nobody else has it
        """Nothing is ever in the way."""
        return ""

    def submit(self, spec: Path, slot: Slot) -> None:
        """Begin to play the recording of a spec."""
        asked = AttemptSpec.read(spec)
        recording = self._find(asked)
        by_step = itertools.groupby(recording.curve, key=lambda e: e.step)
        play = _Play(
            spec=asked,
            submitted=Submitted(spec.parent, slot),
            paths=AttemptPaths(spec.parent),
            began_at=self.now_s,
            recording=recording,
            rest=(list(group) for _, group in by_step),
            limits=Limits(asked, self.now_s),
            fold=Fold(asked.metric),
        )
        play.emit("run_started", 0, 0, Phases(), hardware={"device": "replay"})
        self._next(play)

    def adopt(self, folder: Path) -> Slot | None:
        """The slot of an attempt that has not ended: nothing outlives this executor."""
        return next((p.submitted.slot for _, _, p in self._plays if p.paths.folder == folder), None)

    def wait(self, timeout_s: float) -> Sequence[Submitted]:  # noqa: ARG002 - nothing takes time
        """Go to the next evaluation of any attempt; the attempt, if that was its last."""
        if not self._plays:
            return []
        self.now_s, _, play = heapq.heappop(self._plays)
        stop = self._advance(play)
        if stop is None:
            self._next(play)
            return []
        self._end(play, stop)
        return [play.submitted]

    def close(self) -> None:
        """Forget everything."""
        self._plays.clear()

    def _next(self, play: _Play) -> None:
        play.coming = next(play.rest, [])
        clock = play.coming[-1].clock if play.coming else play.recording.end
        limit_s = play.spec.trial_s + clock.startup + clock.compile
        at = play.began_at + min(clock.seconds("wall"), limit_s)
        heapq.heappush(self._plays, (max(at, self.now_s), next(self._order), play))

    def _advance(self, play: _Play) -> Stop | None:
        """Let the next evaluation happen; the reason to stop, if there is one now."""
        spec, recording = play.spec, play.recording
        with contextlib.suppress(OSError, SpecError):
            play.limits.control(Control.read(play.paths.control))
        if not play.coming:
            play.at = _cut_off(recording.end, play.at, spec.trial_s)
            stop = play.limits.check(self.now_s, play.at, play.fold)
            return stop or Stop(recording.reason, recording.message)
        clock = play.coming[0].clock
        if clock.seconds("wall") - clock.startup - clock.compile > spec.trial_s:
            play.at = _cut_off(clock, play.at, spec.trial_s)
            return Stop(Reason.TIMEOUT, f"{spec.trial_s:g} s (trial_s) used up")
        if play.coming[0].step > spec.max_steps:
            return Stop(Reason.STEPS, f"{spec.max_steps} steps used up")
        for one in play.coming:
            metrics = {spec.metric: finite(one.value)}
            play.emit(
                "evaluated", one.step, one.tokens, one.clock, metrics=metrics, slice=one.slice
            )
        play.at = play.coming[-1].clock
        curve = play.fold.curve
        if spec.target is not None and crossing(curve, spec.target, spec.clock) is not None:
            return Stop(Reason.TARGET, f"{spec.metric} reached {spec.target:g}")
        if play.fold.diverged:
            return Stop(Reason.DIVERGED, f"{spec.metric} is not a finite number")
        return play.limits.check(self.now_s, play.at, play.fold)

    def _end(self, play: _Play, stop: Stop) -> None:
        play.emit("run_finished", play.fold.step, play.fold.tokens, play.at, reason=stop.reason)
        spec, wall_s = play.spec, play.at.seconds("wall")
        outcome = AttemptOutcome(
            study=spec.study,
            trial=spec.trial,
            attempt=spec.attempt,
            outcome=OUTCOME_OF[stop.reason],
            reason=stop.reason,
            message=stop.message,
            exit_code=0,
            signal=None,
            started_at=EPOCH + play.began_at,
            ended_at=EPOCH + play.began_at + wall_s,
            wall_s=wall_s,
            cap_s=stop.cap_s,
            events=play.seq,
            device=dict(spec.device),
        )
        write_json(play.paths.outcome, outcome.to_json())


def _cut_off(clock: Phases, before: Phases, trial_s: float) -> Phases:
    """A clock that went beyond the trial limit, at the limit: what is too much was training."""
    over = clock.seconds("wall") - clock.startup - clock.compile - trial_s
    return clock._replace(train=max(before.train, clock.train - over)) if over > 0 else clock
