"""What `[on_oom]` makes of a trial that ran out of memory: a smaller micro-batch, the same batch in all.

It must not know how an attempt is run; it sees the declared keys, a point and the attempts before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sweeper.configuration import get_key
from sweeper.space import Value
from sweeper.study import Study
from sweeper.trial import AttemptFacts, Reason


def adjusted(
    study: Study, point: Mapping[str, Value], attempts: Sequence[AttemptFacts]
) -> dict[str, int]:
    """The keys and values that the next attempt differs in from its point; empty without need.

    The micro-batch is halved, and the accumulation doubled, once for every attempt that ran out of
    memory, as long as it can be halved.
    """
    if study.on_oom is None:
        return {}
    micro, accumulation = _declared(study, point)
    times = min(_failures(attempts), _halvings(micro))
    if times == 0:
        return {}
    return {
        study.on_oom.micro_batch: micro >> times,
        study.on_oom.accumulation: accumulation << times,
    }


def may_shrink(study: Study, point: Mapping[str, Value], attempts: Sequence[AttemptFacts]) -> bool:
    """Whether the next attempt would need less memory than every one that ran out of it."""
    if study.on_oom is None or not _failures(attempts):
        return False
    return _failures(attempts) <= _halvings(_declared(study, point)[0])


def outlook(study: Study, point: Mapping[str, Value], attempts: Sequence[AttemptFacts]) -> str:
    """For people: how a trial that has just run out of memory goes on."""
    if study.on_oom is None:
        return "out of memory"
    if may_shrink(study, point, attempts):
        values = adjusted(study, point, attempts)
        return "out of memory: again with " + ", ".join(f"{k} = {v}" for k, v in values.items())
    micro = _declared(study, point)[0] >> _halvings(_declared(study, point)[0])
    why = "is the smallest" if micro == 1 else "is odd: its half would change the batch"
    return f"out of memory for good: {study.on_oom.micro_batch} = {micro} {why}"


def _declared(study: Study, point: Mapping[str, Value]) -> tuple[int, int]:
    """Micro-batch and accumulation of a point; the study file was checked for them."""
    assert study.on_oom is not None
    here = {**study.space.baseline(), **point}
    found = []
    for key in (study.on_oom.micro_batch, study.on_oom.accumulation):
        value = here[key] if key in here else get_key(study.base, key)
        found.append(int(value))
    return found[0], found[1]


def _failures(attempts: Sequence[AttemptFacts]) -> int:
    return sum(1 for attempt in attempts if attempt.reason is Reason.OOM)


def _halvings(micro: int) -> int:
    """How often a number can be halved and stay whole."""
    return (micro & -micro).bit_length() - 1 if micro > 0 else 0
