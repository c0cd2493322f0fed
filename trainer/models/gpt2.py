"""Owns GPT-2: pre-LN blocks, learned positions, GELU, biases, and a head tied to the embedding.

It must not know optimizers, data or clocks. Source: Radford et al. 2019, "Language Models are
Unsupervised Multitask Learners", without dropout.

Letters in shapes: B sequences, T tokens, D width, H heads, K = D / H width of a head, F hidden
units of the MLP, V vocabulary.

    attention   x <- x + W_out attend(W_qkv ln(x)), softmax scale 1/sqrt(K)
    MLP         x <- x + W_out gelu(W_in ln(x))
    logits      W_embedding ln(x)

Weights are kept in float32. `compute_dtype` is that of the activations, and a weight is cast to it
where it is used, so gradients and updates are in float32 whatever the forward pass computes in.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it
from torch import Generator, Tensor, nn

from trainer.models.attention import causal_attention
from trainer.roles import Role, RoledParameter

INITIAL_SD = 0.02


class LayerNorm(nn.Module):
    """Layer normalisation with a learned gain and bias, in the dtype of its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return F.layer_norm(x, self.gain.shape, self.gain.to(x.dtype), self.bias.to(x.dtype))


class Linear(nn.Module):
    """An affine map of the last axis, with float32 weights cast to the dtype of the input."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, into))
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        """(..., into) -> (..., out)."""
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class Attention(nn.Module):
    """Causal attention with several heads."""

    def __init__(self, width: int, heads: int, backend: str) -> None:
        super().__init__()
        self.heads, self.backend = heads, backend
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        batch, time, width = x.shape
        head_width = width // self.heads
        qkv = self.qkv(x).view(batch, time, 3, self.heads, head_width)
        q, k, v = qkv.unbind(2)  # (B, T, H, K) each
        mixed = causal_attention(q, k, v, scale=1 / math.sqrt(head_width), backend=self.backend)
        out: Tensor = self.out(mixed.reshape(batch, time, width))
        return out


class Block(nn.Module):
    """One layer: attention, then the MLP, each behind a layer norm and added to the stream."""

    def __init__(self, width: int, heads: int, hidden: int, backend: str) -> None:
        super().__init__()
        self.norm_attention = LayerNorm(width)
        self.attention = Attention(width, heads, backend)
        self.norm_mlp = LayerNorm(width)
        self.mlp_in = Linear(width, hidden)
        self.mlp_out = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.attention(self.norm_attention(x))
        hidden = F.gelu(self.mlp_in(self.norm_mlp(x)), approximate="tanh")  # (B, T, F)
        out: Tensor = x + self.mlp_out(hidden)
        return out


class GPT2(nn.Module):
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
        generator: Generator,
        attention: str = "auto",
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        """`compute_dtype` None means that of the weights."""
        super().__init__()
        self.compute_dtype = compute_dtype
        self.embedding = nn.Parameter(torch.empty(vocabulary, width))  # (V, D), the head too
        self.positions = nn.Parameter(torch.empty(context, width))  # (T, D)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, attention) for _ in range(layers))
        self.norm = LayerNorm(width)
        self._draw_weights(generator)

    @torch.no_grad()
    def _draw_weights(self, generator: Generator) -> None:
        """Normal with sd 0.02, divided by sqrt(2 L) where a matrix writes into the stream."""
        for name, tensor in self.named_parameters():
            if tensor.ndim == 2:
                writes_back = name.endswith((".attention.out.weight", ".mlp_out.weight"))
                sd = INITIAL_SD / (math.sqrt(2 * len(self.blocks)) if writes_back else 1.0)
                tensor.normal_(0.0, sd, generator=generator)

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, V)."""
        x = F.embedding(tokens, self.embedding) + self.positions[: tokens.shape[1]]  # (B, T, D)
        x = x.to(self.compute_dtype or x.dtype)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.to(x.dtype))

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of `targets` (B, T) given `tokens` (B, T), a 0-D tensor."""
        logits = self.logits(tokens)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return F.cross_entropy(logits.flatten(0, 1).to(wide), targets.flatten())

    def roled_parameters(self) -> list[RoledParameter]:
        """Every trainable tensor with its role; nothing lies on a sphere."""
        return [
            RoledParameter(name, tensor, _role(name, tensor), None)
            for name, tensor in self.named_parameters()
        ]


def _role(name: str, tensor: Tensor) -> Role:
    if name in ("embedding", "positions"):
        return Role.EMBEDDING
    return Role.MATRIX if tensor.ndim == 2 else Role.SCALAR
