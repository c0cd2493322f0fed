"""The seam between the loop and whatever remembers points and suggests new ones.

It must not know processes, limits or targets: it sees points in and values out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from sweeper.space import Point, Value


@dataclass(frozen=True)
class Told:
    """What search is told about a finished trial.

    `value` is seconds (or the metric); None means failed. `violation` above 0 marks a censored
    trial: by how much its best loss missed the target. `curve` holds (milliseconds of training, loss)
    pairs, rising. `artifacts` gives texts by file name, and is asked only where they are stored.
    """

    value: float | None
    violation: float = 0.0
    attributes: Mapping[str, Any] = field(default_factory=dict)
    curve: Sequence[tuple[int, float]] = ()
    artifacts: Callable[[], Mapping[str, str]] = dict


@dataclass(frozen=True)
class Known:
    """A trial as the search library has it: its state, and its value when it is complete."""

    state: Literal["running", "complete", "failed"]
    value: float | None


@dataclass(frozen=True)
class Seen:
    """A trial as a sampler is shown it: its point, and what `Told` says (None while it runs)."""

    point: Point
    told: Told | None


class Suggest(Protocol):
    """Suggests a point of a region, from all that was seen; the same arguments, the same answer."""

    def __call__(
        self, varying: Mapping[str, Sequence[Value]], seen: Sequence[Seen], seed: int
    ) -> Mapping[str, Value]:
        """Values of the varying parameters: numeric within their levels' range, others one of them."""
        ...


class Search(Protocol):
    """One study of the search library; every call is idempotent by trial id."""

    def ask(self, trial_id: str, point: Point, attributes: Mapping[str, Any]) -> None:
        """Register a planned point as running."""
        ...

    def tell(self, trial_id: str, told: Told) -> None:
        """Finish it; a trial that is already finished is left alone."""
        ...

    def known(self) -> Mapping[str, Known]:
        """Every trial by the id it was asked with."""
        ...

    def describe(self, note: str, plots: Mapping[str, Mapping[str, Any]]) -> None:
        """Say on the library's own pages what the study showed: markdown, and plotly figures by id."""
        ...
