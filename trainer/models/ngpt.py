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

Weights are kept in float32. `compute_dtype` is that of the activations, and a weight is cast to it
where it is used, so gradients and updates are in float32 whatever the forward pass computes in.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it
from torch import Generator, Tensor, nn

from trainer.models.attention import causal_attention
from trainer.models.spherical import gated_units, sphere_step, unit, unit_heads
from trainer.roles import Role, RoledParameter


class LearnedScale(nn.Module):
    """A tensor that starts at `start` (a number, or one per row) but is stored at the size `stored`.

    Adam's step is absolute, so storing the scale at 1/sqrt(D) makes a step of lr mean a relative
    change of lr * sqrt(D), as it does for the entries of unit vectors (arXiv 2410.01131, 2.5).
    """

    ratio: Tensor

    def __init__(self, *shape: int, start: float | tuple[float, ...], stored: float) -> None:
        super().__init__()
        self.stored = nn.Parameter(torch.full(shape, stored))
        ratio = torch.tensor(start, dtype=torch.float64) / stored  # () or (rows,)
        ratio = ratio.view(-1, *(1,) * (len(shape) - 1)) if ratio.ndim else ratio
        self.register_buffer("ratio", ratio.float(), persistent=False)

    def forward(self) -> Tensor:
        """The scale itself, of the shape given."""
        return self.stored * self.ratio


class Rotary(nn.Module):
    """The tables of rotary positions (T, 2, H, K), for `unit_heads`.

    Pair (i, i + K/2) of a head turns by position * base^(-2 i / K).
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, context: int, heads: int, head_width: int, base: float) -> None:
        super().__init__()
        frequency = base ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
        angle = torch.arange(context, dtype=torch.float64)[:, None] * frequency  # (T, K/2)
        cosine, sine = angle.cos(), angle.sin()
        for name, halves in (("cosine", (cosine, cosine)), ("sine", (-sine, sine))):
            table = torch.cat(halves, dim=-1).float()[:, None, None]  # (T, 1, 1, K)
            spelled_out = table.expand(context, 2, heads, head_width).contiguous()
            self.register_buffer(name, spelled_out, persistent=False)


class Attention(nn.Module):
    """Causal attention between unit queries and unit keys."""

    def __init__(self, width: int, heads: int, rotary: Rotary, backend: str) -> None:
        super().__init__()
        self.heads, self.rotary, self.backend = heads, rotary, backend
        self.qkv = nn.Parameter(torch.empty(3, width, width))  # (3, D out, D in)
        self.out = nn.Parameter(torch.empty(width, width))
        self.scale_qk = LearnedScale(width, start=1.0, stored=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        batch, time, width = x.shape
        qkv = F.linear(x, self.qkv.flatten(0, 1).to(x.dtype))  # (B, T, 3 D)
        q, k, v = unit_heads(
            qkv.view(batch, time, 3, self.heads, width // self.heads),
            # s_qk scales both queries and keys: the same as its square on the queries alone.
            self.scale_qk().square().view(self.heads, -1),
            self.rotary.cosine[:time],
            self.rotary.sine[:time],
        )  # (B, T, H, K) each
        # Dot products of unit vectors have variance 1/K, so the scale is sqrt(K), not 1/sqrt(K).
        mixed = causal_attention(q, k, v, scale=math.sqrt(width / self.heads), backend=self.backend)
        return F.linear(mixed.reshape(batch, time, width), self.out.to(x.dtype))


class GatedMLP(nn.Module):
    """SwiGLU with learned scales of its two halves."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.uv = nn.Parameter(torch.empty(2, hidden, width))  # (2, F, D): W_u and W_v
        self.out = nn.Parameter(torch.empty(width, hidden))  # (D, F)
        self.scale_uv = LearnedScale(2, hidden, start=(1.0, math.sqrt(width)), stored=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        # A scale of outputs is a scale of the rows of the weights, which are far fewer numbers.
        weights = (self.uv * self.scale_uv().unsqueeze(-1)).flatten(0, 1)  # (2 F, D)
        uv = F.linear(x, weights.to(x.dtype))  # (B, T, 2 F)
        return F.linear(gated_units(uv), self.out.to(x.dtype))


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
        return sphere_step(x, branch, torch.sigmoid(self.gate) * self.alpha())


class Block(nn.Module):
    """One layer: attention, then the MLP, each behind a gated residual."""

    def __init__(self, width: int, attention: Attention, mlp: GatedMLP, alpha: float) -> None:
        super().__init__()
        self.attention, self.mlp = attention, mlp
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
        attention: str = "auto",
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        """`compute_dtype` None means that of the weights."""
        super().__init__()
        self.compute_dtype = compute_dtype
        rotary = Rotary(context, heads, width // heads, rope_base)
        self.embedding = nn.Parameter(torch.empty(vocabulary, width))  # (V, D)
        self.blocks = nn.ModuleList(
            Block(width, Attention(width, heads, rotary, attention), GatedMLP(width, hidden), alpha)
            for _ in range(layers)
        )
        self.head = nn.Parameter(torch.empty(vocabulary, width))  # (V, D)
        self.scale_logits = LearnedScale(vocabulary, start=logit_scale, stored=width**-0.5)
        self._draw_weights(generator)

    @torch.no_grad()
    def _draw_weights(self, generator: Generator) -> None:
        """Matrices normal with sd 1/sqrt(D), those that write back divided by sqrt(2 L)."""
        width, layers = self.embedding.shape[1], len(self.blocks)
        for parameter in self.roled_parameters():
            if parameter.role is not Role.SCALAR:
                writes_back = parameter.unit_axis == -2
                sd = width**-0.5 / (math.sqrt(2 * layers) if writes_back else 1.0)
                parameter.tensor.normal_(0.0, sd, generator=generator)

    def hidden_states(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, D), each of length 1."""
        x = unit(F.embedding(tokens, self.embedding))  # (B, T, D)
        x = x.to(self.compute_dtype or x.dtype)
        for block in self.blocks:
            x = block(x)
        return x

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, V)."""
        x = self.hidden_states(tokens)
        return F.linear(x, (self.head * self.scale_logits()[:, None]).to(x.dtype))

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of `targets` (B, T) given `tokens` (B, T), a 0-D tensor."""
        logits = self.logits(tokens)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return F.cross_entropy(logits.flatten(0, 1).to(wide), targets.flatten())

    def roled_parameters(self) -> list[RoledParameter]:
        """Every trainable tensor with its role and the axis of its unit vectors."""
        return [
            RoledParameter(name, tensor, *_role(name)) for name, tensor in self.named_parameters()
        ]


_ROLES: dict[str, tuple[Role, int]] = {
    "embedding": (Role.EMBEDDING, -1),
    "head": (Role.HEAD, -1),
    "attention.qkv": (Role.MATRIX, -1),
    "attention.out": (Role.MATRIX, -2),
    "mlp.uv": (Role.MATRIX, -1),
    "mlp.out": (Role.MATRIX, -2),
}


def _role(name: str) -> tuple[Role, int | None]:
    """Role and unit axis of the parameter `name`; inside a block, by what follows its number."""
    within = name.split(".", 2)[-1] if name.startswith("blocks.") else name
    return _ROLES.get(within, (Role.SCALAR, None))
