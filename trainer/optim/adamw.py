"""Owns AdamW as a plain class over groups of tensors, each group with its own learning rate.

It must not know architectures. `torch.optim.AdamW` is its oracle in the tests, not its base class:
importing torch.optim's machinery costs every trial one to two seconds. Source: arXiv 1711.05101.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that share a learning rate and a decoupled weight decay."""

    tensors: Sequence[Tensor]
    lr: float
    weight_decay: float = 0.0


class AdamW:
    """Adam with decoupled weight decay and bias correction; one fused kernel call per group."""

    def __init__(self, groups: Sequence[Group], *, beta1: float, beta2: float, eps: float) -> None:
        self.groups = [group for group in groups if group.tensors]
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self._first = [[torch.zeros_like(t) for t in group.tensors] for group in self.groups]
        self._second = [[torch.zeros_like(t) for t in group.tensors] for group in self.groups]
        # Counted on the device, as the fused kernel wants it: no transfer within a step.
        self._steps = [
            [torch.zeros((), dtype=torch.float32, device=t.device) for t in group.tensors]
            for group in self.groups
        ]

    @torch.no_grad()
    def step(self) -> None:
        """One update of every tensor from its gradient."""
        for group, first, second, steps in zip(
            self.groups, self._first, self._second, self._steps, strict=True
        ):
            torch._foreach_add_(steps, 1.0)
            gradients = [torch.zeros_like(t) if t.grad is None else t.grad for t in group.tensors]
            torch._fused_adamw_(
                list(group.tensors),
                gradients,
                first,
                second,
                [],
                steps,
                lr=group.lr,
                beta1=self.beta1,
                beta2=self.beta2,
                weight_decay=group.weight_decay,
                eps=self.eps,
                amsgrad=False,
                maximize=False,
            )

    def state(self) -> list[Tensor]:
        """The tensors that, with the weights, determine the next steps; not copies."""
        return [
            tensor
            for nested in (self._first, self._second, self._steps)
            for per_group in nested
            for tensor in per_group
        ]
