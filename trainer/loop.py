"""Owns the training loop: warm-up, steps, evaluations and the decision to end.

It must not know which model, optimizer or corpus it drives.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor

from trainer.errors import DivergedError
from trainer.evaluate import Cadence, Evaluator
from trainer.events import EventWriter
from trainer.models import LanguageModel
from trainer.stopping import Progress, Targets
from trainer.timing import PhaseClock

REPORT_EVERY_S = 0.5
"""Silence after which the next step is reported, so that the clock is heard once a second."""

CHECK_EVERY_STEPS = 10
"""Steps between two looks at the training loss for divergence; each look waits for the device."""


class StopReason(StrEnum):
    """Why a run that did not fail came to its end."""

    TARGET = "target"
    STEPS = "steps"
    TERMINATED = "terminated"


class Steppable(Protocol):
    """What the loop needs of an optimizer."""

    learning_rates: dict[str, float]

    def step(self, number: int) -> None:
        """Apply one update from the gradients; `number` counts from 1."""

    def clear_gradients(self) -> None:
        """Forget the gradients of the last backward pass."""

    def gradient_norm(self) -> float:
        """Length of the gradient over all parameters."""

    def state(self) -> Sequence[Tensor]:
        """Every tensor that a step changes; not copies."""


class Batches(Protocol):
    """What the loop needs of the data."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one step learns from."""

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) of step number `step`, counted from 0."""


@dataclass(slots=True)
class TrainingLoop:
    """One run, built from its parts; `run` drives it to a StopReason or a DivergedError."""

    model: LanguageModel
    optimizer: Steppable
    batches: Batches
    evaluator: Evaluator
    cadence: Cadence
    targets: Targets
    has_diverged: Callable[[float], bool]
    max_steps: int
    stop_requested: Callable[[], bool]
    progress: Progress
    clock: PhaseClock
    events: EventWriter
    say: Callable[[str], None]
    _evaluations: int = field(default=0, init=False)
    _evaluate_at_tokens: int = field(default=0, init=False)
    _reported_at: float = field(default=0.0, init=False)
    _reported_clock: tuple[float, int] = field(default=(0.0, 0), init=False)

    def run(self) -> StopReason:
        """Warm up, look at the untrained model, then step and look until something ends the run."""
        with self.clock.during("compile"):
            self._warm_up()
        self.clock.enter("train")
        self._evaluate()
        while (reason := self._stop_reason()) is None:
            self._step()
            if (
                self.progress.tokens >= self._evaluate_at_tokens
                or self.progress.step == self.max_steps
            ):
                self._evaluate()
        return reason

    def _stop_reason(self) -> StopReason | None:
        if self.targets.reached:
            return StopReason.TARGET
        if self.progress.step >= self.max_steps:
            return StopReason.STEPS
        return StopReason.TERMINATED if self.stop_requested() else None

    def _warm_up(self) -> None:
        """One step and one evaluation pass on real shapes, then everything back to where it was."""
        tensors = self.optimizer.state()
        before = [tensor.detach().clone() for tensor in tensors]
        random_state = torch.random.get_rng_state()
        self._learn(step=0)
        self.evaluator.warm_up()
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
        self.optimizer.clear_gradients()
        torch.random.set_rng_state(random_state)
        # What exists now lives to the end of the run: the collector, which the command line keeps
        # off while torch is imported, need not walk it again.
        gc.freeze()
        gc.enable()

    def _learn(self, step: int) -> Tensor:
        """Forward, backward and update on batch number `step`; the loss before the update."""
        tokens, targets = self.batches.at(step)
        self.optimizer.clear_gradients()
        loss = self.model(tokens, targets)
        torch.autograd.backward(loss)
        self.optimizer.step(step + 1)
        return loss.detach()

    def _step(self) -> None:
        progress = self.progress
        loss = self._learn(progress.step)
        progress.step += 1
        progress.tokens += self.batches.tokens_per_step
        silent_s = time.monotonic() - self._reported_at
        if progress.step == 1 or silent_s >= REPORT_EVERY_S:
            self._report(float(loss))
        if progress.step % CHECK_EVERY_STEPS == 0:
            self._refuse_divergence("training", float(loss))

    def _report(self, loss: float) -> None:
        train_s = self.clock.read()["train"]
        former_s, former_tokens = self._reported_clock
        tokens = self.progress.tokens
        self._reported_clock = (train_s, tokens)
        self._emit(
            "step",
            loss=loss,
            lr=self.optimizer.learning_rates,
            grad_norm=self.optimizer.gradient_norm(),
            tokens_per_s=(tokens - former_tokens) / max(train_s - former_s, 1e-9),
        )

    def _evaluate(self) -> None:
        """Look at the probe; where it is at or below a target, at the confirmation slice too."""
        progress, targets = self.progress, self.targets
        with self.clock.during("eval"):
            probe = self.evaluator.loss("probe")
        self._evaluations += 1
        self._emit("evaluated", metrics={"val_loss": probe}, slice="probe")
        self._refuse_divergence("validation", probe)
        if progress.best_loss is None or probe < progress.best_loss:
            progress.best_loss = probe
        self._tell(f"val loss {probe:.4f}")
        if crossed := targets.crossed(probe):
            self._confirm(crossed)
        distance = None if targets.next is None else probe - targets.next
        self._evaluate_at_tokens = self.cadence.next_after(
            progress.tokens, done=self._evaluations, distance=distance
        )

    def _confirm(self, crossed: Sequence[float]) -> None:
        with self.clock.during("eval"):
            loss = self.evaluator.loss("confirmation")
        agreed = self.targets.confirm(crossed, loss)
        refused = [target for target in crossed if target not in agreed]
        self._emit(
            "evaluated",
            metrics={"val_loss": loss},
            slice="confirmation",
            confirmed=agreed,
            refused=refused,
        )
        verdicts = [f"{target:g} confirmed" for target in agreed]
        verdicts += [f"{target:g} not confirmed" for target in refused]
        self._tell(f"confirmation loss {loss:.4f}: {', '.join(verdicts)}")

    def _refuse_divergence(self, what: str, loss: float) -> None:
        if self.has_diverged(loss):
            raise DivergedError(f"the {what} loss was {loss:g} at step {self.progress.step}")

    def _emit(self, event: str, **fields: object) -> None:
        self.events.emit(event, self.progress.step, self.progress.tokens, **fields)
        self._reported_at = time.monotonic()

    def _tell(self, what: str) -> None:
        progress = self.progress
        train_s = self.clock.read()["train"]
        self.say(f"step {progress.step:5d}  {progress.tokens:10,} tokens  {train_s:8.2f} s  {what}")
