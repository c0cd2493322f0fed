"""Owns the assembly of optimizers: which rule drives which parameter, decided by role alone.

It must not know architectures; the learning rate of Muon moves the matrices and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from trainer.config import Optim as OptimConfig
from trainer.errors import ConfigError
from trainer.optim.adamw import AdamW, Group
from trainer.optim.muon import Decay, MomentumWarmUp, Muon
from trainer.optim.orthogonalize import ORTHOGONALIZERS
from trainer.optim.scaler import LossScaler
from trainer.optim.sgd import SGD
from trainer.optim.sphere import SphereProjection
from trainer.roles import Role, RoledParameter


class Rule(Protocol):
    """What an update rule offers."""

    def step(self, number: int, lr_scale: float) -> None:
        """Update the rule's tensors from their gradients; `number` counts from 1."""

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Per parameter name, the tensors that with the weights determine the next steps."""


class Optimizer:
    """All update rules of one run as a single step, with the projection at its end.

    `learning_rates` are those that the last step applied, before the first step the configured
    ones; `skipped_steps` counts the steps that float16 could not take.
    """

    def __init__(
        self,
        parameters: Sequence[RoledParameter],
        rules: Sequence[Rule],
        projection: SphereProjection,
        learning_rates: Mapping[str, float],
        scaler: LossScaler | None = None,
    ) -> None:
        self._tensors = [parameter.tensor for parameter in parameters]
        self._rules = list(rules)
        self._projection, self._scaler = projection, scaler
        self._configured = dict(learning_rates)
        self.learning_rates = dict(learning_rates)
        self.skipped_steps = 0

    def scale_loss(self, loss: Tensor) -> Tensor:
        """What to call backward on: the loss itself, but for float16."""
        return loss if self._scaler is None else self._scaler.multiply(loss)

    def unscale_gradients(self) -> None:
        """Bring gradients to their true size: once per step, before they are clipped or used."""
        if self._scaler is not None:
            self._scaler.divide(self._gradients())

    @torch.no_grad()
    def clip_gradients(self, max_norm: float) -> Tensor:
        """Shrink the gradient to at most the length `max_norm`; its length before, 0-D.

        Nothing waits for the device. A length that is not finite spoils all gradients.
        """
        gradients = self._gradients()
        norm = _length(gradients)
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp_max(1.0))
        return norm

    def step(self, number: int, lr_scale: float = 1.0) -> None:
        """Apply update `number`, counted from 1, with every learning rate times `lr_scale`.

        The number decides how far the momentum is warmed up and whether weights are projected.
        """
        for role, rate in self._configured.items():
            self.learning_rates[role] = rate * lr_scale
        if self._scaler is not None and not self._scaler.accept():
            self.skipped_steps += 1
            return
        for rule in self._rules:
            rule.step(number, lr_scale)
        self._projection.after_step(number)

    def clear_gradients(self) -> None:
        """Forget the gradients of the last backward pass."""
        for tensor in self._tensors:
            tensor.grad = None

    def gradient_norm(self) -> float:
        """Length of the gradient over all parameters; waits for the device."""
        return float(_length(self._gradients()))

    def state(self) -> list[Tensor]:
        """Weights and optimizer state; not copies. Equal states have equal futures."""
        return self._tensors + [t for slots in self._slots().values() for t in slots.values()]

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The state without the weights, as {parameter name: {slot: tensor}}; not copies."""
        return self._slots()

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy a `state_dict` in; ConfigError, and nothing copied, if it is another optimizer's."""
        own = {
            (name, slot): t for name, slots in self._slots().items() for slot, t in slots.items()
        }
        given = {(name, slot): t for name, slots in state.items() for slot, t in slots.items()}
        for name, slot in sorted(own.keys() ^ given.keys()):
            where = "lacks" if (name, slot) in own else "has, and this run lacks,"
            raise ConfigError(
                f'the optimizer state {where} "{slot}" of {name}: it belongs to another model or to '
                "other [optim] settings; expected those with which the checkpoint was written"
            )
        for (name, slot), tensor in own.items():
            if given[name, slot].shape != tensor.shape:
                raise ConfigError(
                    f'the optimizer state has "{slot}" of {name} with the shape '
                    f"{tuple(given[name, slot].shape)}; expected {tuple(tensor.shape)}"
                )
        for key, tensor in own.items():
            tensor.copy_(given[key])

    def _slots(self) -> dict[str, dict[str, Tensor]]:
        slots = {name: found for rule in self._rules for name, found in rule.state().items()}
        if self._scaler is not None:
            slots["(loss scale)"] = self._scaler.state()
        return slots

    def _gradients(self) -> list[Tensor]:
        return [tensor.grad for tensor in self._tensors if tensor.grad is not None]


def _length(tensors: Sequence[Tensor]) -> Tensor:
    """The length (0-D) of all tensors as one vector."""
    lengths = torch._foreach_norm(list(tensors))  # noqa: SLF001 - the name of torch's list form
    length: Tensor = torch.linalg.vector_norm(torch.stack(lengths))
    return length


def build_optimizer(
    parameters: Sequence[RoledParameter],
    config: OptimConfig,
    *,
    project_every: int,
    precision: str = "fp32",
    compiled: bool = False,
) -> Optimizer:
    """The configured optimizer; the weights are projected to the sphere at once (before step 1).

    `precision` is that of the forward pass ("fp16" scales the loss); with `compiled`, Muon and the
    projection are compiled, which pays on a GPU only.
    """
    by_role = {role: [p for p in parameters if p.role is role] for role in Role}
    rates, rules = _rules(by_role, config, compiled=compiled)
    projection = SphereProjection(parameters, project_every, compiled=compiled)
    projection.project()
    scaler = LossScaler(parameters[0].tensor.device) if precision == "fp16" else None
    return Optimizer(parameters, rules, projection, rates, scaler)


def _rules(
    by_role: Mapping[Role, Sequence[RoledParameter]], config: OptimConfig, *, compiled: bool
) -> tuple[dict[str, float], list[Rule]]:
    """The learning rate of each role, and the rules that apply them."""
    sgd, adam = config.sgd, config.adam
    matrices = by_role[Role.MATRIX]
    if config.kind == "sgd":
        decays = {Role.MATRIX: sgd.weight_decay}
        groups = [Group(found, sgd.lr, decays.get(role, 0.0)) for role, found in by_role.items()]
        rates = dict.fromkeys(("embedding", "head", "scalar", "matrix"), sgd.lr)
        return rates, [SGD(groups, momentum=sgd.momentum, nesterov=sgd.nesterov)]
    rates = {
        "embedding": adam.lr or adam.embedding_lr,
        "head": adam.lr or adam.head_lr,
        "scalar": adam.lr or adam.scalar_lr,
        "matrix": adam.lr or adam.matrix_lr if config.kind == "adamw" else config.muon.lr,
    }
    groups = [
        Group(by_role[role], rates[role]) for role in (Role.EMBEDDING, Role.HEAD, Role.SCALAR)
    ]
    rules: list[Rule] = []
    if config.kind == "adamw":
        groups.append(Group(matrices, rates["matrix"], adam.weight_decay))
    elif matrices:
        rules.append(_muon(matrices, config, compiled=compiled))
    rules.append(AdamW(groups, beta1=adam.beta1, beta2=adam.beta2, eps=adam.eps))
    return rates, rules


def _muon(matrices: Sequence[RoledParameter], config: OptimConfig, *, compiled: bool) -> Muon:
    muon = config.muon
    if muon.cautious_weight_decay:
        decay = Decay(muon.cautious_lambda, cautious=True)
    else:
        decay = Decay(muon.weight_decay)
    on_gpu = matrices[0].tensor.is_cuda
    return Muon(
        matrices,
        lr=muon.lr,
        momentum=muon.momentum,
        orthogonalize=ORTHOGONALIZERS[muon.orthogonalizer],
        warm_up=MomentumWarmUp(muon.momentum_start, muon.momentum_warmup_steps),
        variance_beta=muon.variance_beta if muon.variance_reduction else None,
        decay=decay,
        scaling=muon.scaling,
        # float16 is unsafe here; bfloat16 is what GPUs since 2020 are fast in.
        iteration_dtype=torch.bfloat16 if on_gpu else torch.float32,
        compiled=compiled,
    )
