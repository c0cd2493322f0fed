"""Owns the bridges between models, optimizers and data: what a parameter is for, what is scored.

It must not know any of them; models write these records and optimizers read them, and data write
the targets that models read.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

IGNORED = -100
"""The target of a place that is not scored (what torch's cross-entropy ignores)."""


def count_scored(targets: Tensor) -> Tensor:
    """How many of `targets` count, a 0-D tensor on their device: a mean loss is over so many."""
    return (targets != IGNORED).sum()


class Role(StrEnum):
    """What a parameter does, which decides the optimizer and the learning rate that it gets."""

    MATRIX = "matrix"
    EMBEDDING = "embedding"
    HEAD = "head"
    SCALAR = "scalar"


@dataclass(frozen=True, slots=True)
class RoledParameter:
    """One trainable tensor, its role, and the axis along which its vectors must have length 1.

    A matrix may be a stack of matrices of one shape, (..., M, N). `unit_axis` is the axis that lies
    in embedding space (-1: every row is a unit vector, -2: every column is); None means that the
    tensor is not constrained to the sphere.
    """

    name: str
    tensor: Tensor
    role: Role
    unit_axis: int | None
