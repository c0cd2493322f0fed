"""Owns AdamW as a plain class over groups of tensors, each group with its own learning rate.

It must not know architectures. `torch.optim.AdamW` is its oracle in the tests, not its base class:
importing torch.optim's machinery costs every trial one to two seconds. Source: arXiv 1711.05101.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.roles import RoledParameter


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that share a learning rate and a weight decay."""

    parameters: Sequence[RoledParameter]
    lr: float
    weight_decay: float = 0.0

    def tensors(self) -> list[Tensor]:
        """The parameters themselves."""
        return [parameter.tensor for parameter in self.parameters]

    def gradients(self) -> list[Tensor]:
        """Their gradients; a missing one counts as zero."""
        return [torch.zeros_like(t) if t.grad is None else t.grad for t in self.tensors()]


class AdamW:
    """Adam with decoupled weight decay and bias correction; one fused kernel call per group."""

    def __init__(self, groups: Sequence[Group], *, beta1: float, beta2: float, eps: float) -> None:
        self.groups = [group for group in groups if group.parameters]
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self._first = [[torch.zeros_like(t) for t in group.tensors()] for group in self.groups]
        self._second = [[torch.zeros_like(t) for t in group.tensors()] for group in self.groups]
        # Counted on the device, as the fused kernel wants it: no transfer within a step.
        self._steps = [
            [torch.zeros((), dtype=torch.float32, device=t.device) for t in group.tensors()]
            for group in self.groups
        ]

    @torch.no_grad()
    def step(self, _number: int = 1, lr_scale: float = 1.0) -> None:
        """One update of every tensor from its gradient; the bias correction has its own count."""
        for group, first, second, steps in zip(
            self.groups, self._first, self._second, self._steps, strict=True
        ):
            torch._foreach_add_(steps, 1.0)
            torch._fused_adamw_(
                group.tensors(),
                group.gradients(),
                first,
                second,
                [],
                steps,
                lr=group.lr * lr_scale,
                beta1=self.beta1,
                beta2=self.beta2,
                weight_decay=group.weight_decay,
                eps=self.eps,
                amsgrad=False,
                maximize=False,
            )

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Per parameter name, the tensors that with the weights determine the next steps."""
        return {
            parameter.name: {"first_moment": first, "second_moment": second, "steps": steps}
            for group, firsts, seconds, counts in zip(
                self.groups, self._first, self._second, self._steps, strict=True
            )
            for parameter, first, second, steps in zip(
                group.parameters, firsts, seconds, counts, strict=True
            )
        }
