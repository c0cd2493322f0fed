"""Owns nGPT, the normalised transformer: every embedding and every weight vector has length 1.

It must not know optimizers, data or clocks. Source: "nGPT: Normalized Transformer with
Representation Learning on the Hypersphere", arXiv 2410.01131, with a gated residual.

Letters in shapes: B sequences, T tokens, D width, H heads, K = D / H width of a head, F hidden
units of the MLP, V vocabulary. `unit(x)` is x divided by its length along the last axis.

    attention   q, k = s_qk * unit(rope(q)), s_qk * unit(rope(k)); softmax scale sqrt(K)
    MLP         W_out (s_u * u  *  silu(s_v * sqrt(D) * v))
    residual    x <- unit(x + rate * (unit(branch) - x)), rate = sigmoid(gate) * alpha
    logits      s_z * (W_head x); there is no other normalisation layer

Projection to the sphere after a step is the optimizer's work; `unit_axis` of each matrix says along
which axis its vectors in embedding space lie: rows for W_q, W_k, W_v, W_u, W_v, embedding and head,
columns for the two matrices that write back into the residual stream.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it
from torch import Generator, Tensor, nn

from trainer.roles import Role, RoledParameter


class _Unit(torch.autograd.Function):
    """`unit` with its derivative written out: half the passes over memory of the derived one.

    It is also one opaque operation: a compiler that fuses the ~90 normalisations of a deep network
    into their neighbours rounds differently in each, and in bfloat16 the errors add up.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        at_least_single = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=at_least_single)
        inverse = length.clamp_min(1e-12).reciprocal().to(x.dtype)
        y: Tensor = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        y, inverse = ctx.saved_tensors
        radial = (gradient * y).sum(dim=-1, keepdim=True)
        return torch.addcmul(gradient, y, radial, value=-1).mul_(inverse)


def unit(x: Tensor) -> Tensor:
    """`x` (..., N) scaled to length 1 along its last axis; a zero vector stays zero."""
    result: Tensor = _Unit.apply(x)  # type: ignore[no-untyped-call]
    return result


class LearnedScale(nn.Module):
    """A vector (N,) that starts at `start` but is stored at the size `stored`.

    Adam's step is absolute, so storing the scale at 1/sqrt(D) makes a step of lr mean a relative
    change of lr * sqrt(D), as it does for the entries of unit vectors (arXiv 2410.01131, 2.5).
    """

    def __init__(self, size: int, *, start: float, stored: float) -> None:
        super().__init__()
        self.stored = nn.Parameter(torch.full((size,), stored))
        self.ratio = start / stored

    def forward(self) -> Tensor:
        """The scale itself, (N,)."""
        return self.stored * self.ratio


class Rotary(nn.Module):
    """Rotary positions: rotates pairs (i, i + K/2) of a head by angles that grow with position."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, context: int, head_width: int, base: float) -> None:
        super().__init__()
        frequency = base ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
        angle = torch.arange(context, dtype=torch.float64)[:, None] * frequency  # (T, K/2)
        self.register_buffer("cosine", angle.cos().float(), persistent=False)
        self.register_buffer("sine", angle.sin().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, ..., H, K) with time on axis 1 -> the same shape."""
        shape = (x.shape[1], *(1,) * (x.ndim - 3), -1)
        cosine = self.cosine[: x.shape[1]].view(shape)
        sine = self.sine[: x.shape[1]].view(shape)
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)


class Attention(nn.Module):
    """Causal attention between unit queries and unit keys."""

    def __init__(self, width: int, heads: int, rotary: Rotary) -> None:
        super().__init__()
        self.heads, self.rotary = heads, rotary
        self.query = nn.Parameter(torch.empty(width, width))  # (D out, D in)
        self.key = nn.Parameter(torch.empty(width, width))
        self.value = nn.Parameter(torch.empty(width, width))
        self.out = nn.Parameter(torch.empty(width, width))
        self.scale_qk = LearnedScale(width, start=1.0, stored=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        batch, time, width = x.shape
        weights = torch.cat((self.query, self.key, self.value))  # (3 D, D): one multiplication
        qkv = F.linear(x, weights).view(batch, time, 3, self.heads, width // self.heads)
        qk, v = torch.split(qkv, [2, 1], dim=2)
        q, k = unit(self.rotary(qk)).unbind(dim=2)  # (B, T, H, K) each
        # s_qk scales both queries and keys, which is the same as its square on the queries alone.
        q = q * self.scale_qk().square().view(self.heads, -1)
        # Dot products of unit vectors have variance 1/K, so the scale is sqrt(K), not 1/sqrt(K).
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2),  # (B, H, T, K)
            k.transpose(1, 2),
            v.squeeze(2).transpose(1, 2),
            is_causal=True,
            scale=math.sqrt(width / self.heads),
        )
        return F.linear(mixed.transpose(1, 2).reshape(batch, time, width), self.out)


class GatedMLP(nn.Module):
    """SwiGLU with learned scales of its two halves."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(hidden, width))  # (F, D)
        self.gate = nn.Parameter(torch.empty(hidden, width))
        self.out = nn.Parameter(torch.empty(width, hidden))  # (D, F)
        self.scale_up = LearnedScale(hidden, start=1.0, stored=1.0)
        self.scale_gate = LearnedScale(hidden, start=1.0, stored=1.0)
        self.root_width = math.sqrt(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        # A scale of outputs is a scale of the rows of the weights, which are far fewer numbers.
        up = self.up * self.scale_up()[:, None]
        gate = self.gate * (self.scale_gate() * self.root_width)[:, None]
        u, v = F.linear(x, torch.cat((up, gate))).chunk(2, dim=-1)  # (B, T, F) each
        return F.linear(u * F.silu(v), self.out)


class GatedResidual(nn.Module):
    """A step on the sphere from x towards the normalised branch, with a learned rate per channel.

    The rate is sigmoid(gate) * alpha: gate (D,) starts at 0, so the first rate is alpha / 2.
    Without the normalisation of the branch a block would be nearly the identity.
    """

    def __init__(self, width: int, alpha: float) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(width))
        self.alpha = LearnedScale(1, start=alpha, stored=width**-0.5)

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """Both (B, T, D), `x` of length 1 -> (B, T, D) of length 1."""
        rate = torch.sigmoid(self.gate) * self.alpha()
        return unit(torch.lerp(x, unit(branch), rate))


class Block(nn.Module):
    """One layer: attention, then the MLP, each behind a gated residual."""

    def __init__(self, width: int, heads: int, hidden: int, alpha: float, rotary: Rotary) -> None:
        super().__init__()
        self.attention = Attention(width, heads, rotary)
        self.mlp = GatedMLP(width, hidden)
        self.after_attention = GatedResidual(width, alpha)
        self.after_mlp = GatedResidual(width, alpha)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = self.after_attention(x, self.attention(x))
        x = self.after_mlp(x, self.mlp(x))
        return x  # noqa: RET504 - a module's call is untyped; the name gives the type back


class NGPT(nn.Module):
    """The whole network, from token numbers to a loss."""

    def __init__(
        self,
        *,
        vocabulary: int,
        context: int,
        layers: int,
        width: int,
        heads: int,
        hidden: int,
        alpha: float,
        logit_scale: float,
        rope_base: float,
        generator: Generator,
    ) -> None:
        super().__init__()
        rotary = Rotary(context, width // heads, rope_base)
        self.embedding = nn.Parameter(torch.empty(vocabulary, width))  # (V, D)
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden, alpha, rotary) for _ in range(layers)
        )
        self.head = nn.Parameter(torch.empty(vocabulary, width))  # (V, D)
        self.scale_logits = LearnedScale(vocabulary, start=logit_scale, stored=width**-0.5)
        self._draw_weights(generator)

    def _draw_weights(self, generator: Generator) -> None:
        """Matrices normal with sd 1/sqrt(D), those that write back divided by sqrt(2 L)."""
        width, layers = self.embedding.shape[1], len(self.blocks)
        with torch.no_grad():
            for parameter in self.roled_parameters():
                if parameter.role is not Role.SCALAR:
                    writes_back = parameter.unit_axis == 0
                    sd = width**-0.5 / (math.sqrt(2 * layers) if writes_back else 1.0)
                    parameter.tensor.normal_(0.0, sd, generator=generator)

    def hidden_states(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, D), each of length 1."""
        x = unit(F.embedding(tokens, self.embedding))  # (B, T, D)
        for block in self.blocks:
            x = block(x)
        return x

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, V)."""
        return F.linear(self.hidden_states(tokens), self.head * self.scale_logits()[:, None])

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of `targets` (B, T) given `tokens` (B, T), a 0-D tensor."""
        logits = self.logits(tokens)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def roled_parameters(self) -> list[RoledParameter]:
        """Every trainable tensor with its role and the axis of its unit vectors."""
        roles = []
        for name, tensor in self.named_parameters():
            role, unit_axis = _role(name)
            roles.append(RoledParameter(name, tensor, role, unit_axis))
        return roles


_READS = ("query", "key", "value", "up", "gate")
_WRITES = ("out",)


def _role(name: str) -> tuple[Role, int | None]:
    """Role and unit axis of the parameter `name`, by the module that holds it."""
    if name == "embedding":
        return Role.EMBEDDING, 1
    if name == "head":
        return Role.HEAD, 1
    owner, _, leaf = name.rpartition(".")
    if owner.endswith((".attention", ".mlp")):
        if leaf in _READS:
            return Role.MATRIX, 1
        if leaf in _WRITES:
            return Role.MATRIX, 0
    return Role.SCALAR, None
