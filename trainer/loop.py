"""Owns the training loop: warm-up, steps, evaluations, checkpoints and the decision to end.

It must not know which model, optimizer or corpus it drives.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import torch
from torch import Tensor

from trainer.checkpoint import CheckpointFolder
from trainer.config import Checkpoint as CheckpointConfig
from trainer.errors import DivergedError
from trainer.evaluate import Cadence, Evaluator
from trainer.events import EventWriter
from trainer.pairs import Milestones
from trainer.roles import RoledParameter, count_scored
from trainer.schedules import Schedule
from trainer.stopping import Patience, Progress, Smoothing, Targets
from trainer.summary import LossRecord
from trainer.timing import PhaseClock

REPORT_EVERY_S = 0.5
"""Silence after which the next step is reported, so that the clock is heard once a second."""

CHECK_EVERY_STEPS = 10
"""Steps between two looks at the training loss, for divergence and patience; each look waits for the
device."""


class StopReason(StrEnum):
    """Why a run that did not fail came to its end."""

    TARGET = "target"
    STEPS = "steps"
    PATIENCE = "patience"
    TERMINATED = "terminated"


class Steppable(Protocol):
    """What the loop needs of an optimizer."""

    @property
    def learning_rates(self) -> Mapping[str, float]:
        """The rates of the last step, by group."""

    def step(self, number: int, lr_scale: float = 1.0) -> None:
        """Apply one update from the gradients; `number` counts from 1."""

    def clear_gradients(self) -> None:
        """Forget the gradients of the last step."""

    def scale_loss(self, loss: Tensor) -> Tensor:
        """What to run backward on (under fp16, a multiple of the loss)."""

    def unscale_gradients(self) -> None:
        """Undo `scale_loss` in the gradients, once a step, after the last pass."""

    def clip_gradients(self, max_norm: float) -> Tensor:
        """Shorten the gradient to at most `max_norm`."""

    def gradient_norm(self) -> float:
        """Length of the gradient over all parameters."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors that, with the weights, decide the next steps."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""


class Batches(Protocol):
    """What the loop needs of the data."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one step learns from."""

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) of step number `step`, counted from 0."""


@dataclass(slots=True)
class TrainingLoop:
    """One run, built from its parts; `run` drives it to a StopReason or a DivergedError.

    `model` maps inputs and targets (B, T) to the mean loss. A step is made of passes over
    `micro_batch` sequences each, so that one compiled graph serves every batch size. Without
    `warm_evaluation` the warm-up leaves evaluation out: for a processor nothing is compiled or loaded
    before its first pass, and that one is on the evaluation's clock, never on training's. `logits`
    draws text at the end of a run.
    """

    model: Callable[[Tensor, Tensor], Tensor]
    parameters: Sequence[RoledParameter]
    optimizer: Steppable
    batches: Batches
    micro_batch: int
    clip_norm: float
    schedule: Schedule
    evaluator: Evaluator
    cadence: Cadence
    targets: Targets
    smoothing: Smoothing
    patience: Patience
    patience_on_validation: bool
    has_diverged: Callable[[float], bool]
    max_steps: int
    stop_requested: Callable[[], bool]
    checkpoints: CheckpointFolder
    checkpointing: CheckpointConfig
    identity: Mapping[str, Any]
    before_pass: Callable[[], None]
    progress: Progress
    clock: PhaseClock
    events: EventWriter
    say: Callable[[str], None]
    record: LossRecord
    logits: Callable[[Tensor], Tensor]
    warm_evaluation: bool = True
    milestones: Milestones | None = None
    warnings: list[tuple[str, str]] = field(default_factory=list)
    _evaluations: int = field(default=0, init=False)
    _evaluate_at_tokens: int = field(default=0, init=False)
    _saved_at_step: int = field(default=-1, init=False)
    _pairs_at_step: int = field(default=-1, init=False)
    _patience_lost: bool = field(default=False, init=False)
    _reported_at: float = field(default=0.0, init=False)
    _reported_clock: tuple[float, int] = field(default=(0.0, 0), init=False)

    def run(self) -> StopReason:
        """Warm up, look at the untrained model, then step and look until something ends the run."""
        with self.clock.during("compile"):
            self.warm_up()
        self.clock.enter("train")
        self._reported_clock = (self.clock.read()["train"], self.progress.tokens)
        with _frozen_garbage():
            if not self._evaluations:
                self._evaluate()
            while (reason := self._stop_reason()) is None:
                self._step()
                if (
                    self.progress.tokens >= self._evaluate_at_tokens
                    or self.progress.step == self.max_steps
                ):
                    self._evaluate()
                if self._due(self.checkpointing.every_steps):
                    self._save("periodic")
                if self.milestones is not None and self.progress.step in self.milestones.steps:
                    self._score_pairs()
        told = reason is StopReason.TERMINATED and self.checkpointing.on_term
        if (self.checkpointing.at_end or told) and self._saved_at_step != self.progress.step:
            self._save("end")
        if reason is not StopReason.TERMINATED:  # whoever ended it does not wait for this
            self._score_pairs()
        return reason

    def _due(self, every: int) -> bool:
        return every > 0 and self.progress.step % every == 0 and self.progress.step > 0

    def _stop_reason(self) -> StopReason | None:
        if self.targets.reached:
            return StopReason.TARGET
        if self.progress.step >= self.max_steps:
            return StopReason.STEPS
        if self._patience_lost:
            return StopReason.PATIENCE
        return StopReason.TERMINATED if self.stop_requested() else None

    def warm_up(self) -> None:
        """One step (and one evaluation pass) on real shapes, then everything back to where it was."""
        weights = [parameter.tensor.detach().clone() for parameter in self.parameters]
        former = _copied(self.optimizer.state_dict())
        random_state = self._random_state()
        self.learn(self.progress.step)
        if self.warm_evaluation:
            self.evaluator.warm_up()
        with torch.no_grad():
            for parameter, value in zip(self.parameters, weights, strict=True):
                parameter.tensor.copy_(value)
        self.optimizer.load_state_dict(former)
        self.optimizer.clear_gradients()
        self._set_random_state(random_state)

    def learn(self, step: int) -> Tensor:
        """Forward, backward and update on batch number `step`; the loss before the update."""
        tokens, targets = self.batches.at(step)
        self.optimizer.clear_gradients()
        size = self.micro_batch or len(tokens)
        parts = list(zip(torch.split(tokens, size), torch.split(targets, size), strict=True))
        whole = count_scored(targets) if len(parts) > 1 else None
        total: Tensor | None = None
        for x, y in parts:
            self.before_pass()
            loss = self.model(x, y)
            # As many passes with as many targets as this one has make the batch.
            passes = 1 if whole is None else whole / count_scored(y)
            torch.autograd.backward(self.optimizer.scale_loss(loss / passes))
            # Into memory of our own: a recorded graph writes the next loss over this one.
            part = loss.detach() / passes
            total = part if total is None else total + part
        self.optimizer.unscale_gradients()
        if self.clip_norm:
            self.optimizer.clip_gradients(self.clip_norm)
        self.optimizer.step(step + 1, lr_scale=self.schedule.at(step))
        assert total is not None
        return total

    def _step(self) -> None:
        progress = self.progress
        loss = self.learn(progress.step)
        progress.step += 1
        progress.tokens += self.batches.tokens_per_step
        if self.patience.tokens:
            self.smoothing.add(loss)
        self.record.add(loss)
        silent_s = time.monotonic() - self._reported_at
        if progress.step == 1 or silent_s >= REPORT_EVERY_S:
            self._report(float(loss))
        if progress.step % CHECK_EVERY_STEPS == 0:
            self._refuse_divergence("training", float(loss))
            watched = self.patience.tokens and not self.patience_on_validation
            if watched and self.smoothing.settled:
                self._lose_patience(float(self.smoothing.value))

    def _lose_patience(self, loss: float) -> None:
        if self.patience.lost(loss, self.progress.tokens):
            self._patience_lost = True
            since = self.progress.tokens - self.patience.best_at_tokens
            self._tell(f"no improvement for {since:,} tokens (best {self.patience.best:.4f})")

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
        self._emit("evaluated", metrics=self.evaluator.metrics("probe", probe), slice="probe")
        self._refuse_divergence("validation", probe)
        improved = progress.best_loss is None or probe < progress.best_loss
        if improved:
            progress.best_loss = probe
        self._tell(f"val loss {probe:.4f}")
        if self.patience.tokens and self.patience_on_validation:
            self._lose_patience(probe)
        if crossed := targets.crossed(probe):
            self._confirm(crossed)
        distance = None if targets.next is None else probe - targets.next
        self._evaluate_at_tokens = self.cadence.next_after(
            progress.tokens, done=self._evaluations, distance=distance
        )
        if improved and self.checkpointing.keep_best:
            self._save("best")

    def _score_pairs(self) -> None:
        """Score the minimal pairs, where there are any and it has not been done at this step."""
        if self.milestones is None or self._pairs_at_step == self.progress.step:
            return
        self._pairs_at_step = self.progress.step
        with self.clock.during("eval"):
            accuracy = self.milestones.measure()
        self._emit("evaluated", metrics=accuracy, slice="pairs")
        self._tell(f"minimal pairs {accuracy['blimp']:.1%}")

    def _confirm(self, crossed: Sequence[float]) -> None:
        with self.clock.during("eval"):
            loss = self.evaluator.loss("confirmation")
        agreed = self.targets.confirm(crossed, loss)
        refused = [target for target in crossed if target not in agreed]
        self._emit(
            "evaluated",
            metrics=self.evaluator.metrics("confirmation", loss),
            slice="confirmation",
            confirmed=agreed,
            refused=refused,
        )
        verdicts = [f"{target:g} confirmed" for target in agreed]
        verdicts += [f"{target:g} not confirmed" for target in refused]
        self._tell(f"confirmation loss {loss:.4f}: {', '.join(verdicts)}")

    def _random_state(self) -> dict[str, Any]:
        """Where torch's random numbers are, on the host and on the GPUs in use."""
        on_gpu = any(parameter.tensor.is_cuda for parameter in self.parameters)
        cuda = torch.cuda.get_rng_state_all() if on_gpu else []
        return {"cpu": torch.random.get_rng_state(), "cuda": cuda}

    def _set_random_state(self, state: Mapping[str, Any]) -> None:
        torch.random.set_rng_state(state["cpu"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])

    def snapshot(self) -> dict[str, Any]:
        """Everything that decides how the run goes on, as plain values and tensors."""
        progress = self.progress
        smoothed = self.smoothing.value
        return {
            "identity": dict(self.identity),
            "weights": {p.name: p.tensor.detach() for p in self.parameters},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.as_dict(),
            "max_steps": self.max_steps,
            "progress": [progress.step, progress.tokens, progress.best_loss],
            "evaluations": [self._evaluations, self._evaluate_at_tokens],
            "confirmed": list(self.targets.confirmed),
            "smoothing": [None if smoothed is None else float(smoothed), self.smoothing.seen],
            "patience": [self.patience.best, self.patience.best_at_tokens],
            "random": self._random_state(),
            "clock": self.clock.read(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a `snapshot` of the same run."""
        progress, patience = self.progress, self.patience
        with torch.no_grad():
            for parameter in self.parameters:
                parameter.tensor.copy_(state["weights"][parameter.name])
        self.optimizer.load_state_dict(state["optimizer"])
        progress.step, progress.tokens, progress.best_loss = state["progress"]
        self._evaluations, self._evaluate_at_tokens = state["evaluations"]
        self.targets.confirmed = list(state["confirmed"])
        self.smoothing.value, self.smoothing.seen = state["smoothing"]
        patience.best, patience.best_at_tokens = state["patience"]
        self._set_random_state(state["random"])
        self.clock.carry(state["clock"])

    def _save(self, why: str) -> None:
        """A checkpoint of this instant; `why` is "periodic", "best" or "end"."""
        with self.clock.during("checkpoint"):
            path = self.checkpoints.save(self.snapshot(), self.progress.step, best=why == "best")
            size = path.stat().st_size
        if why != "best":
            self._saved_at_step = self.progress.step
        self._emit("checkpoint_saved", path=str(path), why=why, bytes=size)
        self._tell(f"saved {path}")

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


@contextmanager
def _frozen_garbage() -> Iterator[None]:
    """No collection while training: a walk over a million objects is a pause of half a second.

    Training makes no cycles; what exists now lives to the end of the run.
    """
    was_enabled = gc.isenabled()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def _copied(value: Any) -> Any:
    """`value` with a copy of every tensor in it."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value
