"""What an attempt's run folder tells beside its curve: training loss, rates, every metric, perplexity.

It must not know who draws them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Scalar(NamedTuple):
    """One point of one curve; `seconds` are of training."""

    tag: str
    value: float
    step: int
    seconds: float


def scalars(events: Path, metric: str) -> Iterator[Scalar]:
    """The points of a normalised event stream, `metric` left out: the facts have that.

    `train/loss`, `lr/<group>` (or `lr`), `eval/<metric>` and, of a loss in nats per token (`val_loss`),
    `eval/perplexity`. Nothing where the folder is gone; a torn line is passed over.
    """
    try:
        lines = events.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        step, clock = event.get("step"), event.get("clock") or {}
        if not isinstance(step, int):
            continue
        for tag, value in _values(event, metric):
            if isinstance(value, int | float) and math.isfinite(value):
                yield Scalar(tag, float(value), step, float(clock.get("train", 0.0)))


def _values(event: Mapping[str, Any], metric: str) -> Iterator[tuple[str, Any]]:
    if event.get("event") == "step":
        yield "train/loss", event.get("loss")
        rates = event.get("lr")
        if isinstance(rates, Mapping):
            yield from ((f"lr/{group}", rate) for group, rate in rates.items())
        else:
            yield "lr", rates
    elif event.get("event") == "evaluated" and event.get("slice", "probe") == "probe":
        metrics = event.get("metrics") or {}
        yield from ((f"eval/{name}", value) for name, value in metrics.items() if name != metric)
        loss = metrics.get("val_loss")
        if isinstance(loss, int | float) and loss < 100:
            yield "eval/perplexity", math.exp(loss)
