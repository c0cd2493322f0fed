"""Owns Muon: momentum, orthogonalisation, NorMuon's variance reduction, and (cautious) decay.

It must not know architectures; it drives whatever matrices it is given, batched by shape.

A plain class: subclassing `torch.optim.Optimizer` imports torch._dynamo, which costs every trial
one to two seconds. Sources: Jordan et al. 2024 (Muon), arXiv 2502.16982 (matching the size of
AdamW's updates), arXiv 2510.05491 (NorMuon), arXiv 2510.12402 (cautious weight decay).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.roles import RoledParameter

SCALINGS: Mapping[str, Callable[[int, int], float]] = {
    "spectral": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "match_rms": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
}
"""Factor of an orthogonal update of (rows, columns): Jordan's, in which a rate is a spectral norm,
and Moonshot's, in which entries are as large as AdamW's, so that its rates can be used."""


@dataclass(frozen=True, slots=True)
class Decay:
    """Weight decay of strength `rate`; `cautious` restricts it to agreeing signs."""

    rate: float = 0.0
    cautious: bool = False


@dataclass(frozen=True, slots=True)
class MomentumWarmUp:
    """Momentum that rises linearly from `start` to its final value over `steps` steps."""

    start: float = 0.85
    steps: int = 0

    def at(self, number: int, final: float) -> float:
        """The momentum of step `number`, counted from 1; `final` from step `steps` + 1 on."""
        if number > self.steps:
            return final
        return self.start + (final - self.start) * (number - 1) / self.steps


class Bank:
    """Matrices of one shape up to transposition, and their state as one stack (N, m, n), m >= n."""

    def __init__(
        self, parameters: Sequence[RoledParameter], *, scaling: str, with_variance: bool
    ) -> None:
        self.names = [parameter.name for parameter in parameters]
        self.matrices = [parameter.tensor for parameter in parameters]  # (..., M, N) each
        like = self.matrices[0]
        short, long = sorted(like.shape[-2:])
        self._wide = [matrix.shape[-2] < matrix.shape[-1] for matrix in self.matrices]
        self._counts = [matrix.numel() // (long * short) for matrix in self.matrices]
        total = sum(self._counts)
        self.momentum = like.new_zeros(total, long, short)
        # One second moment per neuron of the long side; for a square matrix, per row.
        self.variance = like.new_zeros(total, long, 1) if with_variance else None
        gains = [
            gain
            for matrix, count in zip(self.matrices, self._counts, strict=True)
            for gain in [SCALINGS[scaling](matrix.shape[-2], matrix.shape[-1])] * count
        ]
        self.gain = like.new_tensor(gains)[:, None, None]  # (N, 1, 1)

    def stacked(self, tensors: Sequence[Tensor]) -> Tensor:
        """One tensor per parameter, in the parameter's layout, as one new stack (N, m, n)."""
        shape = self.momentum.shape[1:]
        return torch.cat(
            [
                (tensor.mT if wide else tensor).reshape(-1, *shape)
                for tensor, wide in zip(tensors, self._wide, strict=True)
            ]
        )

    def unstacked(self, stack: Tensor) -> list[Tensor]:
        """A stack (N, m, n) as one view per parameter, in the parameter's own layout."""
        return [
            (part.mT if wide else part).view(matrix.shape)
            for part, wide, matrix in zip(
                torch.split(stack, self._counts), self._wide, self.matrices, strict=True
            )
        ]

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Per parameter name: momentum in its own layout, and the second moments (count, m, 1)."""
        named = {
            name: {"momentum": view}
            for name, view in zip(self.names, self.unstacked(self.momentum), strict=True)
        }
        if self.variance is not None:
            for name, part in zip(
                self.names, torch.split(self.variance, self._counts), strict=True
            ):
                named[name]["second_moment"] = part
        return named


class Muon:
    """W <- W - lr * (gain * orthogonal(Nesterov momentum) + decay term), for stacks of matrices.

    Rate and momentum reach the arithmetic as 0-D tensors on the device, so that with `compiled` no
    change of either compiles anything anew.
    """

    def __init__(
        self,
        parameters: Sequence[RoledParameter],
        *,
        lr: float,
        momentum: float,
        orthogonalize: Callable[[Tensor], Tensor],
        warm_up: MomentumWarmUp | None = None,
        variance_beta: float | None = None,
        decay: Decay | None = None,
        scaling: str = "spectral",
        iteration_dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ) -> None:
        """`variance_beta` turns variance reduction on; `iteration_dtype` is bfloat16 on a GPU."""
        self.lr, self.momentum, self.warm_up = lr, momentum, warm_up or MomentumWarmUp()
        self.orthogonalize, self.iteration_dtype = orthogonalize, iteration_dtype
        self.variance_beta, self.decay = variance_beta, decay or Decay()
        by_shape: dict[tuple[int, ...], list[RoledParameter]] = {}
        for parameter in parameters:
            by_shape.setdefault(tuple(sorted(parameter.tensor.shape[-2:])), []).append(parameter)
        self.banks = [
            Bank(group, scaling=scaling, with_variance=variance_beta is not None)
            for group in by_shape.values()
        ]
        self._update = (
            torch.compile(self._update_bank, fullgraph=True, dynamic=False)
            if compiled
            else self._update_bank
        )
        like = parameters[0].tensor
        self._rate, self._fresh = like.new_zeros(()), like.new_zeros(())

    @torch.no_grad()
    def step(self, number: int, lr_scale: float = 1.0) -> None:
        """Update every matrix from its gradient; `number` counts from 1 (momentum warm-up)."""
        self._rate.fill_(self.lr * lr_scale)
        self._fresh.fill_(1 - self.warm_up.at(number, self.momentum))
        for bank in self.banks:
            gradients = [_gradient(matrix) for matrix in bank.matrices]
            self._update(bank, gradients, self._rate, self._fresh)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Per parameter name, the tensors that with the weights determine the next steps."""
        return {name: slots for bank in self.banks for name, slots in bank.state().items()}

    def _update_bank(
        self, bank: Bank, gradients: Sequence[Tensor], rate: Tensor, fresh: Tensor
    ) -> None:
        """One step of one bank; `rate` and `fresh` = 1 - momentum are 0-D."""
        gradient = bank.stacked(gradients)
        bank.momentum.lerp_(gradient, fresh)
        update = gradient.lerp_(bank.momentum, 1 - fresh)  # Nesterov
        update = self.orthogonalize(update.to(self.iteration_dtype)).to(bank.momentum.dtype)
        if self.variance_beta is not None and bank.variance is not None:
            update = reduce_variance(update, bank.variance, self.variance_beta)
        updates = bank.unstacked(update * (bank.gain * rate))
        decay_weights(bank.matrices, updates, rate=rate, decay=self.decay)
        torch._foreach_sub_(bank.matrices, updates)


def reduce_variance(update: Tensor, second_moment: Tensor, beta: float) -> Tensor:
    """Even out the size of the rows of `update` (N, m, n); the Frobenius norm of each stays.

    `second_moment` (N, m, 1) is updated in place. Bias correction is not needed because of the
    final rescale (NorMuon); both norms follow from sums over rows, without a second pass.
    """
    length: Tensor = torch.linalg.vector_norm(update, dim=-1, keepdim=True)
    mean_square = length.square() / update.shape[-1]
    second_moment.lerp_(mean_square, 1 - beta)
    factor = torch.rsqrt(second_moment.clamp_min(1e-10))
    before = mean_square.sum(dim=-2, keepdim=True)
    after = (mean_square * factor.square()).sum(dim=-2, keepdim=True)
    return update * (factor * torch.sqrt(before / after.clamp_min(1e-30)))


def decay_weights(
    matrices: Sequence[Tensor], updates: Sequence[Tensor], *, rate: Tensor, decay: Decay
) -> None:
    """Subtract rate * decay * weights in place, before the `updates` that will be subtracted are.

    Cautious decay acts only on entries where the update and the weight have the same sign. A decay
    of 0 leaves everything bit for bit as it is.
    """
    if not decay.rate:
        return
    if not decay.cautious:
        torch._foreach_mul_(list(matrices), 1 - rate * decay.rate)
        return
    for matrix, update in zip(matrices, updates, strict=True):
        agrees = (update * matrix >= 0).to(matrix.dtype)
        matrix.sub_(matrix * agrees.mul_(rate * decay.rate))


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
