"""Owns Muon: momentum, orthogonalisation, NorMuon's variance reduction, and (cautious) decay.

It must not know architectures; it drives whatever matrices it is given, batched by shape.

A plain class: subclassing `torch.optim.Optimizer` imports torch._dynamo, which costs every trial
one to two seconds. Sources: Jordan et al. 2024 (Muon), arXiv 2510.05491 (NorMuon), arXiv 2510.12402
(cautious weight decay).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Decay:
    """Weight decay of strength `rate`; `cautious` restricts it to agreeing signs."""

    rate: float = 0.0
    cautious: bool = False


class Bank:
    """Matrices of one shape up to transposition, kept as one stack (N, m, n) with m <= n."""

    def __init__(self, matrices: Sequence[Tensor], *, with_variance: bool) -> None:
        self.matrices = list(matrices)
        self.tall = [matrix.shape[0] > matrix.shape[1] for matrix in self.matrices]
        short, long = sorted(self.matrices[0].shape)
        like = self.matrices[0]
        self.momentum = like.new_zeros(len(self.matrices), short, long)
        # One second moment per neuron of the long side; a square has them per output row.
        self.variance_axis = -1 if short == long else -2
        shape = (len(self.matrices), short, 1) if short == long else (len(self.matrices), 1, long)
        self.variance = like.new_zeros(shape) if with_variance else None

    def gradients(self) -> Tensor:
        """The gradients of all matrices, (N, m, n); a missing one counts as zero."""
        return torch.stack(
            [
                (_gradient(matrix).mT if tall else _gradient(matrix))
                for matrix, tall in zip(self.matrices, self.tall, strict=True)
            ]
        )

    def updates(self, stacked: Tensor) -> list[Tensor]:
        """The stack (N, m, n) as one matrix per parameter, each in the parameter's own layout."""
        return [
            update.mT if tall else update
            for update, tall in zip(stacked.unbind(), self.tall, strict=True)
        ]


class Muon:
    """W <- W - lr * (sqrt(max(1, rows/columns)) * orthogonal(momentum) + decay term)."""

    def __init__(
        self,
        matrices: Sequence[Tensor],
        *,
        lr: float,
        momentum: float,
        orthogonalize: Callable[[Tensor], Tensor],
        variance_beta: float | None = None,
        decay: Decay | None = None,
        iteration_dtype: torch.dtype = torch.float32,
    ) -> None:
        """`variance_beta` turns variance reduction on; `iteration_dtype` is bfloat16 on a GPU."""
        self.lr, self.momentum, self.orthogonalize = lr, momentum, orthogonalize
        self.variance_beta, self.decay = variance_beta, decay or Decay()
        self.iteration_dtype = iteration_dtype
        by_shape: dict[tuple[int, ...], list[Tensor]] = {}
        for matrix in matrices:
            by_shape.setdefault(tuple(sorted(matrix.shape)), []).append(matrix)
        self.banks = [
            Bank(group, with_variance=variance_beta is not None) for group in by_shape.values()
        ]

    @torch.no_grad()
    def step(self) -> None:
        """One update of every matrix from its gradient."""
        for bank in self.banks:
            gradient = bank.gradients()
            bank.momentum.lerp_(gradient, 1 - self.momentum)
            update = gradient.lerp_(bank.momentum, self.momentum)  # Nesterov
            update = self.orthogonalize(update.to(self.iteration_dtype)).to(bank.momentum.dtype)
            if self.variance_beta is not None and bank.variance is not None:
                update = reduce_variance(
                    update, bank.variance, self.variance_beta, bank.variance_axis
                )
            for matrix, one in zip(bank.matrices, bank.updates(update), strict=True):
                gain = math.sqrt(max(1.0, matrix.shape[0] / matrix.shape[1]))
                apply_update(matrix, one, lr=self.lr, gain=gain, decay=self.decay)

    def state(self) -> list[Tensor]:
        """The tensors that, with the weights, determine the next steps; not copies."""
        return [
            tensor
            for bank in self.banks
            for tensor in (bank.momentum, bank.variance)
            if tensor is not None
        ]


def reduce_variance(update: Tensor, second_moment: Tensor, beta: float, axis: int) -> Tensor:
    """Even out the size of neurons in `update` (N, m, n); the Frobenius norm of each stays.

    `second_moment` holds one number per neuron, (N, m, 1) for axis -1 or (N, 1, n) for axis -2, and
    is updated in place. Bias correction is not needed because of the final rescale (NorMuon).
    """
    squares = update.square()
    second_moment.lerp_(squares.mean(dim=axis, keepdim=True), 1 - beta)
    shrunk = update * torch.rsqrt(second_moment.clamp_min(1e-10))
    before = squares.sum(dim=(-2, -1), keepdim=True)
    after = shrunk.square().sum(dim=(-2, -1), keepdim=True)
    return shrunk * torch.sqrt(before / after.clamp_min(1e-30))


def apply_update(matrix: Tensor, update: Tensor, *, lr: float, gain: float, decay: Decay) -> None:
    """Subtract lr * (gain * update + decay * weights) in place; all (M, N).

    Cautious decay acts only on entries where the update and the weight have the same sign. A rate
    of 0 leaves the result bit for bit as without decay.
    """
    if decay.rate and decay.cautious:
        agrees = update * matrix >= 0
        matrix.addcmul_(matrix, agrees.to(matrix.dtype), value=-lr * decay.rate)
    elif decay.rate:
        matrix.mul_(1 - lr * decay.rate)
    matrix.add_(update, alpha=-lr * gain)


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
