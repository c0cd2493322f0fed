"""Owns the scaling of the loss that keeps half-precision gradients from vanishing.

It must not know models or update rules. Source: "Mixed Precision Training", arXiv 1710.03740.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

GROWTH_INTERVAL = 2000
"""Sound steps in a row after which the scale is doubled."""


class LossScaler:
    """Multiplies the loss, divides the gradients, and says whether they can be used.

    A step with a non-finite gradient is to be skipped; it halves the scale. Finding out costs one
    wait for the device per step, which only float16 pays.
    """

    def __init__(self, device: torch.device, *, start: float = 2.0**16) -> None:
        self._scale = torch.tensor(start, device=device)
        self._sound_steps = torch.tensor(0, device=device)
        self._finite = True

    @property
    def scale(self) -> float:
        """The factor of the loss."""
        return float(self._scale)

    def multiply(self, loss: Tensor) -> Tensor:
        """The loss (0-D) to call backward on."""
        return loss * self._scale

    @torch.no_grad()
    def divide(self, gradients: Sequence[Tensor]) -> None:
        """Bring the gradients back to their true size, in place, and look for the non-finite."""
        torch._foreach_mul_(list(gradients), 1 / self._scale)
        lengths = torch._foreach_norm(list(gradients))  # noqa: SLF001 - torch's name of its list form
        self._finite = bool(torch.isfinite(torch.stack(lengths)).all())

    def accept(self) -> bool:
        """Whether the step may be taken; adapts the scale either way. Once per step."""
        if not self._finite:
            self._scale.mul_(0.5).clamp_min_(1.0)
            self._sound_steps.zero_()
            return False
        self._sound_steps.add_(1)
        if int(self._sound_steps) >= GROWTH_INTERVAL:
            self._scale.mul_(2)
            self._sound_steps.zero_()
        return True

    def state(self) -> dict[str, Tensor]:
        """The tensors that determine the next decisions; not copies."""
        return {"scale": self._scale, "sound_steps": self._sound_steps}
