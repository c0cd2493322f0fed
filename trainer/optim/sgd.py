"""Owns stochastic gradient descent with (Nesterov) momentum, over groups of tensors.

It must not know architectures. `torch.optim.SGD` is its oracle in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.optim.adamw import Group


class SGD:
    """v <- momentum * v + g + decay * W; W <- W - lr * v, or with Nesterov g + momentum * v.

    The decay is the coupled one of the textbook (an L2 penalty), and there is no dampening.
    """

    def __init__(self, groups: Sequence[Group], *, momentum: float, nesterov: bool) -> None:
        self.groups = [group for group in groups if group.parameters]
        self.momentum, self.nesterov = momentum, nesterov
        # Zeros make the first velocity the first gradient, as it should be.
        self._velocity = [
            [torch.zeros_like(t) for t in group.tensors()] if momentum else []
            for group in self.groups
        ]

    @torch.no_grad()
    def step(self, _number: int = 1, lr_scale: float = 1.0) -> None:
        """One update of every tensor from its gradient."""
        for group, velocity in zip(self.groups, self._velocity, strict=True):
            tensors, direction = group.tensors(), group.gradients()
            if group.weight_decay or self.nesterov:
                direction = [gradient.clone() for gradient in direction]
            if group.weight_decay:
                torch._foreach_add_(direction, tensors, alpha=group.weight_decay)
            if velocity:
                torch._foreach_mul_(velocity, self.momentum)
                torch._foreach_add_(velocity, direction)
            if velocity and self.nesterov:
                torch._foreach_add_(direction, velocity, alpha=self.momentum)
            elif velocity:
                direction = velocity
            torch._foreach_add_(tensors, direction, alpha=-group.lr * lr_scale)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Per parameter name, the tensors that with the weights determine the next steps."""
        return {
            parameter.name: {"velocity": velocity}
            for group, velocities in zip(self.groups, self._velocity, strict=True)
            for parameter, velocity in zip(group.parameters, velocities, strict=False)
        }
