"""A callback for Lightning: `Trainer(..., callbacks=[SweepCallback("val_loss")])`.

It must not know how the run is watched: it writes the protocol, and stops at the target it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweeper.integrations.writer import EventWriter, plain, version_of

try:
    from lightning.pytorch.callbacks import Callback
except ImportError:
    try:
        from pytorch_lightning.callbacks import Callback
    except ImportError:  # imported where nobody trains
        Callback = object


class SweepCallback(Callback):  # type: ignore[misc, unused-ignore]
    """Writes what a run measures to SWEEP_EVENTS; without that variable it does nothing.

    Args:
        metric: What `[objective] metric` names, as the module logs it: `self.log("val_loss", ...)`.
        writer: Where events go; one on the environment unless given.

    The train clock leaves out validations and checkpoints, and the sanity check is start-up.
    """

    def __init__(self, metric: str = "val_loss", writer: EventWriter | None = None) -> None:
        self._writer = writer or EventWriter(metric)
        self._training = self._reached = self._saving = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """The clock of training begins here."""
        self._training = True
        if trainer.is_global_zero:
            config = plain(dict(getattr(pl_module, "hparams", {}) or {}))
            versions = version_of("lightning", "pytorch_lightning", "torch")
            self._writer.started(trainer.global_step, config, versions)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Training goes on after a checkpoint, if one was written."""
        if self._saving:
            self._spend()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A batch was trained on; steps are the optimizer's."""
        self._writer.spend("train")
        if trainer.is_global_zero:
            loss = _numbers(outputs if isinstance(outputs, Mapping) else {"loss": outputs}).get(
                "loss"
            )
            figures = {} if loss is None else {"loss": loss}
            self._writer.step(trainer.global_step, figures)
        most = self._writer.max_steps
        if most is not None and trainer.global_step >= most:
            trainer.should_stop = True

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """What the device has yet to do is training, and what follows is not."""
        if self._training:
            self._spend(wait=True)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """A validation has ended; at the target, training does too."""
        if not self._training or trainer.sanity_checking:
            return
        self._writer.spend("eval", wait=True)
        metrics = _numbers(trainer.callback_metrics)
        value, target = metrics.get(self._writer.metric), self._writer.target
        reached = value is not None and target is not None and value <= target
        if trainer.is_global_zero:
            self._writer.evaluated(trainer.global_step, metrics)
        strategy = getattr(trainer, "strategy", None)
        if strategy is not None and target is not None:  # all processes stop, or none
            reached = strategy.reduce_boolean_decision(reached, all=False)
        if reached:
            self._reached = trainer.should_stop = True

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        """A checkpoint is about to be written: what came before was not that."""
        self._spend()
        self._saving = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The end."""
        self._spend(wait=True)
        if trainer.is_global_zero:
            self._writer.finished(trainer.global_step, "target" if self._reached else "steps")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The end too."""
        if trainer.is_global_zero:
            self._writer.failed(trainer.global_step, exception)

    def _spend(self, *, wait: bool = False) -> None:
        """What passed was training, or the writing of a checkpoint."""
        self._writer.spend("checkpoint" if self._saving else "train", wait=wait)
        self._saving = False


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Numbers, and tensors of one number, by name."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, bool) or value is None:
            continue
        try:
            found[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError):
            continue
    return found
