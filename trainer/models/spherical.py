"""Owns the operations of nGPT on unit vectors, and for each a derivative that is written out.

It must not know layers or parameters: tensors go in, tensors come out.

Each operation is defined in plain terms by its `_plain` form. That form runs where a compiler fuses it
(it reads and writes memory once) and for half precision, where it computes in float32: in bfloat16
the errors of the ~90 normalisations of a deep network would add up. For float32 and float64 without
a compiler the written-out form runs: half the passes over memory, which is what a step of a small
model on a CPU is made of. The tests hold the two forms against each other.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it
from torch import Tensor

_SMALLEST_LENGTH = 1e-12


def unit(x: Tensor) -> Tensor:
    """`x` (..., N) scaled to length 1 along its last axis; a zero vector stays zero."""
    if not _written_out(x):
        return unit_plain(x)
    y: Tensor = _Unit.apply(x)  # type: ignore[no-untyped-call]
    return y


def unit_plain(x: Tensor) -> Tensor:
    """`unit`, as it is defined."""
    wide = _widened(x)
    length: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return (wide / length.clamp_min(_SMALLEST_LENGTH)).to(x.dtype)


def sphere_step(x: Tensor, branch: Tensor, rate: Tensor) -> Tensor:
    """unit(x + rate * (unit(branch) - x)): `x` of length 1 and `branch` (..., N), `rate` (N,)."""
    if not _written_out(x):
        return sphere_step_plain(x, branch, rate)
    y: Tensor = _SphereStep.apply(x, branch, rate)  # type: ignore[no-untyped-call]
    return y


def sphere_step_plain(x: Tensor, branch: Tensor, rate: Tensor) -> Tensor:
    """`sphere_step`, as it is defined."""
    wide = _widened(x)
    return unit_plain(torch.lerp(wide, unit_plain(_widened(branch)), _widened(rate))).to(x.dtype)


def unit_heads(
    qkv: Tensor, scale: Tensor, cosine: Tensor, sine: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, values (B, T, H, K) of `qkv` (B, T, 3, H, K), ready for attention.

    Queries and keys are rotated by their position and of length 1, queries then scaled by `scale`
    (H, K); `cosine` and `sine` (T, 2, H, K) as `rotate` wants them.
    """
    if not _written_out(qkv):
        return unit_heads_plain(qkv, scale, cosine, sine)
    q, k, v = _UnitHeads.apply(qkv, scale, cosine, sine)  # type: ignore[no-untyped-call]
    return q, k, v


def unit_heads_plain(
    qkv: Tensor, scale: Tensor, cosine: Tensor, sine: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`unit_heads`, as it is defined."""
    q, k = unit_plain(rotate(_widened(qkv[:, :, :2]), cosine, sine)).unbind(2)
    return (q * scale).to(qkv.dtype), k.to(qkv.dtype), qkv[:, :, 2]


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (i, i + K/2) of `x` (B, T, 2, H, K) by an angle that grows with position.

    The tables (T, 2, H, K) are spelled out to the full shape, and the sine is negative for the first
    of a pair: so everything is done in long contiguous runs.
    """
    swapped = torch.roll(x, x.shape[-1] // 2, -1)
    return torch.addcmul(x * cosine, swapped, sine)


def gated_units(uv: Tensor) -> Tensor:
    """SwiGLU: u * silu(v) (..., F) of `uv` (..., 2 F)."""
    if not _written_out(uv):
        return gated_units_plain(uv)
    units: Tensor = _GatedUnits.apply(uv)  # type: ignore[no-untyped-call]
    return units


def gated_units_plain(uv: Tensor) -> Tensor:
    """`gated_units`, as it is defined."""
    u, v = uv.chunk(2, dim=-1)
    return u * F.silu(v)


def _written_out(x: Tensor) -> bool:
    return x.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling()


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _inverse_length(x: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return length.clamp_min_(_SMALLEST_LENGTH).reciprocal_()


def _tangent(gradient: Tensor, y: Tensor, inverse: Tensor, out: Tensor) -> Tensor:
    """What a gradient by y = x * inverse, of length 1, becomes by x: its tangential part.

    Written to `out`, which may be `gradient`.
    """
    radial = (gradient * y).sum(dim=-1, keepdim=True)
    return torch.addcmul(gradient, y, radial, value=-1, out=out).mul_(inverse)


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        inverse = _inverse_length(x)
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        y, inverse = ctx.saved_tensors
        return _tangent(gradient, y, inverse, out=torch.empty_like(y))


class _SphereStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, rate: Tensor) -> Tensor:
        inverse_branch = _inverse_length(branch)
        direction = branch * inverse_branch
        difference = direction - x
        y = torch.addcmul(x, difference, rate)
        inverse = _inverse_length(y)
        y.mul_(inverse)
        ctx.save_for_backward(direction, difference, y, inverse_branch, inverse, rate)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (gradient,) = gradients
        direction, difference, y, inverse_branch, inverse, rate = ctx.saved_tensors
        of_x = _tangent(gradient, y, inverse, out=torch.empty_like(y))  # so far: of what y was
        of_rate = (of_x * difference).flatten(0, -2).sum(0)
        of_branch = of_x * rate
        of_x.sub_(of_branch)
        return of_x, _tangent(of_branch, direction, inverse_branch, out=of_branch), of_rate


class _UnitHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, scale: Tensor, cosine: Tensor, sine: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        qk, v = qkv[:, :, :2], qkv[:, :, 2]
        inverse = _inverse_length(qk)  # a rotation keeps it
        y = _rotate_into(qk * cosine, qk, sine, sign=1).mul_(inverse)
        ctx.save_for_backward(y, inverse, scale, cosine, sine)
        q, k = y.unbind(2)
        return q * scale, k, v

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        of_q, of_k, of_v = gradients
        y, inverse, scale, cosine, sine = ctx.saved_tensors
        of_scale = (of_q * y[:, :, 0]).sum(dim=(0, 1))
        of_y = torch.empty_like(y)
        torch.mul(of_q, scale, out=of_y[:, :, 0])
        of_y[:, :, 1] = of_k
        of_rotated = _tangent(of_y, y, inverse, out=of_y)
        of_qkv = y.new_empty(*y.shape[:2], 3, *y.shape[3:])
        of_qk = torch.mul(of_rotated, cosine, out=of_qkv[:, :, :2])
        _rotate_into(of_qk, of_rotated, sine, sign=-1)  # back, by the opposite angle
        of_qkv[:, :, 2] = of_v
        return of_qkv, of_scale, None, None


def _rotate_into(out: Tensor, x: Tensor, sine: Tensor, *, sign: int) -> Tensor:
    """Complete `rotate`: `out`, which holds x * cosine, plus sign * sine * (x with swapped pairs)."""
    for here, there in zip(x.tensor_split(2, -1), (1, 0), strict=True):
        half = slice(there * x.shape[-1] // 2, (there + 1) * x.shape[-1] // 2)
        out[..., half].addcmul_(here, sine[..., half], value=sign)
    return out


class _GatedUnits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, uv: Tensor) -> Tensor:
        u, v = uv.chunk(2, dim=-1)
        gate = F.silu(v)
        ctx.save_for_backward(uv, gate)
        return u * gate

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        uv, gate = ctx.saved_tensors
        u, v = uv.chunk(2, dim=-1)
        of_uv = torch.empty_like(uv)
        of_u, of_v = of_uv.chunk(2, dim=-1)
        torch.mul(gradient, gate, out=of_u)
        torch.ops.aten.silu_backward.grad_input(gradient * u, v, grad_input=of_v)
        return of_uv
