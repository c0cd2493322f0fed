"""A callback for the Trainer of Hugging Face: `Trainer(..., callbacks=[SweepCallback("eval_loss")])`.

It must not know how the run is watched: it writes the protocol, and stops at the target it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweeper.integrations.writer import EventWriter, plain, version_of

try:
    from transformers import TrainerCallback
except ImportError:  # imported where nobody trains
    TrainerCallback = object


class SweepCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Writes what a run measures to SWEEP_EVENTS; without that variable it does nothing.

    Args:
        metric: What `[objective] metric` names, as `evaluate` calls it: `eval_loss`, `eval_accuracy`.
        writer: Where events go; one on the environment unless given.

    The train clock leaves out evaluations and checkpoints. Evaluations need `eval_strategy`, or one
    call of `evaluate()` after `train()`.
    """

    def __init__(self, metric: str = "eval_loss", writer: EventWriter | None = None) -> None:
        self._writer = writer or EventWriter(metric)
        self._figures: dict[str, float] = {}
        self._reached = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The clock of training begins here."""
        if state.is_world_process_zero:
            config = args.to_dict() if hasattr(args, "to_dict") else vars(args)
            versions = version_of("transformers", "torch")
            self._writer.started(state.global_step, plain(config), versions)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """An optimizer step was done."""
        # Asynchronous work of this step belongs to it, and not to the evaluation or checkpoint after it.
        self._writer.spend("train", wait=control.should_evaluate or control.should_save)
        if state.is_world_process_zero:
            self._writer.step(state.global_step, self._figures, _tokens(state))
        most = self._writer.max_steps
        if most is not None and state.global_step >= most:
            control.should_evaluate = True
            control.should_training_stop = True
        return control

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        """The losses of steps are known only when they are logged."""
        names = {"loss": "loss", "learning_rate": "lr", "grad_norm": "grad_norm"}
        for key, name in names.items():
            if isinstance(value := (logs or {}).get(key), int | float):
                self._figures[name] = value

    def on_evaluate(
        self,
        args: Any,
        state: Any,
        control: Any,
        metrics: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> Any:
        """An evaluation has ended; at the target, training does too."""
        self._writer.spend("eval", wait=True)
        if state.is_world_process_zero:
            self._reached = self._writer.evaluated(state.global_step, metrics or {}, _tokens(state))
        elif self._writer.target is not None:
            value = (metrics or {}).get(self._writer.metric)
            self._reached = isinstance(value, int | float) and value <= self._writer.target
        if self._reached:
            control.should_training_stop = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A checkpoint was written."""
        self._writer.spend("checkpoint")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The end, unless the only evaluation comes after it."""
        self._writer.spend("train", wait=True)
        if state.is_world_process_zero and self._writer.measured:
            self._writer.finished(state.global_step, "target" if self._reached else "steps")


def _tokens(state: Any) -> int:
    return int(getattr(state, "num_input_tokens_seen", 0) or 0)
