"""Owns the assembly of optimizers: which rule drives which parameter, decided by role alone.

It must not know architectures; the learning rate of Muon moves the matrices and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainer.config import Optim as OptimConfig
from trainer.optim.adamw import AdamW, Group
from trainer.optim.muon import Decay, Muon
from trainer.optim.orthogonalize import ORTHOGONALIZERS
from trainer.optim.sphere import SphereProjection
from trainer.roles import Role, RoledParameter


class Optimizer:
    """All update rules of one run as a single step, with the projection at its end."""

    def __init__(
        self,
        parameters: Sequence[RoledParameter],
        rules: Sequence[Muon | AdamW],
        projection: SphereProjection,
        learning_rates: Mapping[str, float],
    ) -> None:
        self._tensors = [parameter.tensor for parameter in parameters]
        self._rules = list(rules)
        self._projection = projection
        self.learning_rates = dict(learning_rates)

    def step(self, number: int) -> None:
        """Apply one update; `number` counts from 1 and decides whether weights are projected."""
        for rule in self._rules:
            rule.step()
        self._projection.after_step(number)

    def clear_gradients(self) -> None:
        """Forget the gradients of the last backward pass."""
        for tensor in self._tensors:
            tensor.grad = None

    def gradient_norm(self) -> float:
        """Length of the gradient over all parameters."""
        gradients = [tensor.grad for tensor in self._tensors if tensor.grad is not None]
        norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
        return float(torch.linalg.vector_norm(torch.stack(norms)))

    def state(self) -> list[Tensor]:
        """Weights and optimizer state; not copies. Equal states have equal futures."""
        return self._tensors + [tensor for rule in self._rules for tensor in rule.state()]


def build_optimizer(
    parameters: Sequence[RoledParameter], config: OptimConfig, *, project_every: int
) -> Optimizer:
    """The configured optimizer; the weights are projected to the sphere at once (before step 1)."""
    tensors = {
        role: [parameter.tensor for parameter in parameters if parameter.role is role]
        for role in Role
    }
    adam, muon = config.adam, config.muon
    groups = [
        Group(tensors[Role.EMBEDDING], adam.embedding_lr),
        Group(tensors[Role.HEAD], adam.head_lr),
        Group(tensors[Role.SCALAR], adam.scalar_lr),
    ]
    rates = {
        "embedding": adam.embedding_lr,
        "head": adam.head_lr,
        "scalar": adam.scalar_lr,
    }
    rules: list[Muon | AdamW] = []
    if config.kind == "adamw":
        groups.append(Group(tensors[Role.MATRIX], adam.matrix_lr, adam.weight_decay))
        rates["matrix"] = adam.matrix_lr
    else:
        decay = (
            Decay(muon.cautious_lambda, cautious=True)
            if muon.cautious_weight_decay
            else Decay(muon.weight_decay)
        )
        on_gpu = any(tensor.is_cuda for tensor in tensors[Role.MATRIX])
        rules.append(
            Muon(
                tensors[Role.MATRIX],
                lr=muon.lr,
                momentum=muon.momentum,
                orthogonalize=ORTHOGONALIZERS[muon.orthogonalizer],
                variance_beta=muon.variance_beta if muon.variance_reduction else None,
                decay=decay,
                iteration_dtype=torch.bfloat16 if on_gpu else torch.float32,
            )
        )
        rates["matrix"] = muon.lr
    rules.append(AdamW(groups, beta1=adam.beta1, beta2=adam.beta2, eps=adam.eps))
    projection = SphereProjection(parameters, project_every)
    projection.project()
    return Optimizer(parameters, rules, projection, rates)
