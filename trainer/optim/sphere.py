"""Owns the projection of weight vectors back to length 1, every so many steps.

It must not know architectures: each parameter says itself along which axis it is constrained.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trainer.roles import RoledParameter


class SphereProjection:
    """Lazy projection: after step s, only if s is a multiple of `every`.

    Between two projections a length drifts by about lr^2 / 2 per step, which is harmless at the
    usual rates; what laziness saves is the time of the projection.
    """

    def __init__(self, parameters: Sequence[RoledParameter], every: int) -> None:
        self._constrained = [p for p in parameters if p.unit_axis is not None]
        self._every = every

    def after_step(self, step: int) -> None:
        """Project if `step` (counted from 1) is due."""
        if step % self._every == 0:
            self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Scale every constrained vector to length 1, in place; a zero vector stays zero."""
        for parameter in self._constrained:
            tensor = parameter.tensor
            length = torch.linalg.vector_norm(tensor, dim=parameter.unit_axis, keepdim=True)
            tensor.div_(length.clamp_min(1e-12))
