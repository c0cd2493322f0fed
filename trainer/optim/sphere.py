"""Owns the projection of weight vectors back to length 1, every so many steps.

It must not know architectures: each parameter says itself along which axis it is constrained.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.roles import RoledParameter


class SphereProjection:
    """Lazy projection: after step s, only if s is a multiple of `every`.

    Between two projections a length drifts by about lr^2 / 2 per step, which is harmless at the
    usual rates; what laziness saves is the time of the projection.
    """

    def __init__(
        self, parameters: Sequence[RoledParameter], every: int, *, compiled: bool = False
    ) -> None:
        self._tensors = [p.tensor for p in parameters if p.unit_axis is not None]
        self._axes = [p.unit_axis for p in parameters if p.unit_axis is not None]
        self._every = every
        self._normalize = (
            torch.compile(normalize, fullgraph=True, dynamic=False) if compiled else normalize
        )

    def after_step(self, step: int) -> None:
        """Project if `step` (counted from 1) is due."""
        if self._tensors and step % self._every == 0:
            self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Scale every constrained vector to length 1, in place; a zero vector stays zero."""
        self._normalize(self._tensors, self._axes)


def normalize(tensors: Sequence[Tensor], axes: Sequence[int]) -> None:
    """Scale the vectors of each tensor along its axis to length 1, in place; zeros stay zero."""
    for tensor, axis in zip(tensors, axes, strict=True):
        length = torch.linalg.vector_norm(tensor, dim=axis, keepdim=True)
        tensor.div_(length.clamp_min(1e-12))
