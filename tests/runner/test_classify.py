"""The table of endings: what is known goes in, one reason and a message come out."""

from __future__ import annotations

import math
import signal

import pytest

from sweeper.events import Event, Fold
from sweeper.runner.classify import Ending, classify
from sweeper.runner.limits import Stop
from sweeper.trial import OUTCOME_OF, Phases, Reason


def fold(*values: float, finished: str | None = None, failed: str | None = None, **more) -> Fold:
    made = Fold("val_loss")
    for i, value in enumerate(values):
        shown = value if math.isfinite(value) else None
        body = {"metrics": {"val_loss": shown}, "slice": "probe"}
        made.add(Event("evaluated", i, 10 * i, 0, Phases(train=float(i)), body))
    last = len(values)
    if finished is not None:
        made.add(Event("run_finished", last, 10 * last, 0, Phases(), {"reason": finished}))
    if failed is not None:
        body = {"class": failed, "message": more.get("message", "said so")}
        made.add(Event("run_failed", last, 10 * last, 0, Phases(), body))
    return made


def ending(made: Fold, **known) -> Ending:
    return Ending("val_loss", known.pop("target", 2.0), "train", made, **known)


CAP = Stop(Reason.CAP, "capped", 3.0)
HUNG = Stop(Reason.HUNG, "silent")
LATE = Stop(Reason.HUNG, "did not exit", finished=True)
KILLED = Stop(Reason.KILLED, "cancelled")
BUDGET = Stop(Reason.BUDGET, "asked to stop early")
KILL, TERM, SEGV = signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV


@pytest.mark.parametrize(
    ("made", "known", "reason"),
    [
        # a crossing counts, whatever came later
        (fold(3, 1.9), {}, Reason.TARGET),
        (fold(3, 1.9, finished="target"), {}, Reason.TARGET),
        (fold(3, 1.9), {"exit_code": 1, "stderr_tail": "boom"}, Reason.TARGET),
        (fold(3, 1.9, failed="oom"), {"exit_code": 5}, Reason.TARGET),
        (fold(3, 1.9, math.nan), {}, Reason.TARGET),
        (fold(3, 1.9), {"stop": CAP, "signal": TERM, "exit_code": None}, Reason.TARGET),
        (fold(3, 1.9), {"stop": KILLED, "signal": KILL, "exit_code": None}, Reason.TARGET),
        # what the runner stopped
        (fold(3, 2.5), {"stop": CAP, "signal": TERM, "exit_code": None}, Reason.CAP),
        (fold(3, finished="terminated"), {"stop": CAP}, Reason.CAP),
        (fold(3, math.nan), {"stop": CAP, "signal": TERM, "exit_code": None}, Reason.DIVERGED),
        (fold(3), {"stop": HUNG, "signal": KILL, "exit_code": None}, Reason.HUNG),
        (fold(3, math.nan), {"stop": KILLED, "signal": KILL, "exit_code": None}, Reason.KILLED),
        (fold(3), {"stop": BUDGET, "signal": TERM, "exit_code": None}, Reason.BUDGET),
        (fold(), {"stop": BUDGET, "signal": TERM, "exit_code": None}, Reason.KILLED),
        (fold(), {"stop": HUNG, "bad_lines": 3, "first_bad": "x"}, Reason.CRASHED),
        # a run that was over before its process would go
        (fold(3, 1.9, finished="target"), {"stop": LATE, "signal": KILL}, Reason.TARGET),
        (fold(3, 2.5, finished="steps"), {"stop": LATE, "signal": KILL}, Reason.STEPS),
        (fold(3, failed="config"), {"stop": LATE, "signal": KILL}, Reason.CONFIG),
        # what the trainer said
        (fold(3, 2.5, finished="steps"), {}, Reason.STEPS),
        (fold(3, 2.5, finished="whatever"), {}, Reason.STEPS),
        (fold(3, 2.5, finished="terminated"), {}, Reason.KILLED),
        (fold(3, 2.5, finished="diverged"), {}, Reason.DIVERGED),
        (fold(3, math.nan, finished="steps"), {}, Reason.DIVERGED),
        (fold(3, 2.5, finished="target"), {}, Reason.CRASHED),
        (fold(finished="target"), {}, Reason.CRASHED),
        (fold(finished="steps"), {}, Reason.CRASHED),
        (fold(3, finished="target"), {"target": None}, Reason.STEPS),
        (fold(3, failed="config"), {"exit_code": 2}, Reason.CONFIG),
        (fold(3, failed="oom"), {"exit_code": 5}, Reason.OOM),
        (fold(3, failed="data"), {"exit_code": 3}, Reason.ENVIRONMENT),
        (fold(3, failed="checkpoint"), {"exit_code": 6}, Reason.ENVIRONMENT),
        (fold(3, failed="diverged"), {"exit_code": 4}, Reason.DIVERGED),
        (fold(3, failed="crash"), {"exit_code": 1}, Reason.CRASHED),
        (fold(3, failed="ValueError"), {"exit_code": 2}, Reason.CONFIG),
        (fold(3, failed="x", message="CUDA out of memory"), {"exit_code": 1}, Reason.OOM),
        # what its process did
        (fold(3), {"exit_code": 1}, Reason.CRASHED),
        (fold(3), {"exit_code": 2, "stderr_tail": "usage: x"}, Reason.CRASHED),
        (fold(3), {"signal": SEGV, "exit_code": None}, Reason.CRASHED),
        (fold(3), {"signal": KILL, "exit_code": None}, Reason.KILLED),
        (fold(3), {"signal": KILL, "exit_code": None, "memory_short": True}, Reason.OOM),
        (fold(3), {"exit_code": 137, "memory_short": True}, Reason.OOM),
        (fold(3), {"exit_code": 137}, Reason.KILLED),
        (fold(3), {"exit_code": 1, "memory_short": True}, Reason.CRASHED),
        (fold(3), {"signal": TERM, "exit_code": None}, Reason.KILLED),
        (fold(3), {"exit_code": 1, "stderr_tail": "x\nMemoryError"}, Reason.OOM),
        (fold(3), {"exit_code": 134, "stderr_tail": "what(): std::bad_alloc"}, Reason.OOM),
        (fold(3), {"exit_code": 1, "stderr_tail": "CUDA out of memory. Tried"}, Reason.OOM),
        (fold(3), {"exit_code": 1, "stderr_tail": "NoMemoryErrorHere"}, Reason.CRASHED),
        (fold(3), {"exit_code": 1, "stderr_tail": "RuntimeError: GPU is lost"}, Reason.DEVICE),
        (fold(3, math.nan), {"exit_code": 1}, Reason.DIVERGED),
        (fold(3, 2.5), {}, Reason.STEPS),
        (fold(), {}, Reason.CRASHED),
        (fold(), {"bad_lines": 2, "first_bad": "x"}, Reason.CRASHED),
        (fold(), {"exit_code": 1, "bad_lines": 2, "first_bad": "x"}, Reason.CRASHED),
        (fold(), {"start_error": "no such program"}, Reason.ENVIRONMENT),
    ],
)
def test_the_reason(made, known, reason):
    verdict = classify(ending(made, **known))
    assert verdict.reason is reason
    assert verdict.message
    assert verdict.reason in OUTCOME_OF


def test_a_confirmation_that_refuses_is_no_success():
    made = fold(3, 1.9)
    body = {"metrics": {"val_loss": 2.1}, "slice": "confirmation"}
    made.add(Event("evaluated", 2, 10, 0, Phases(train=1.0), body))
    assert classify(ending(made, exit_code=0)).reason is Reason.STEPS


def test_messages_say_what_to_do():
    message = classify(ending(fold(finished="steps"))).message
    assert "'val_loss'" in message
    assert "[objective] metric" in message
    message = classify(ending(fold(), bad_lines=2, first_bad="line of noise")).message
    assert "SWEEP_EVENTS" in message
    assert "line of noise" in message
    message = classify(ending(fold(3), exit_code=1, stderr_tail="a\nKeyError: 'x'\n\n")).message
    assert message == "exit code 1: KeyError: 'x'"
    assert "SIGSEGV" in classify(ending(fold(3), signal=SEGV, exit_code=None)).message
