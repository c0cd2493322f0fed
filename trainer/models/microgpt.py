"""Owns microgpt: the smallest GPT that learns names, RMS norms without gains, ReLU, no biases.

It must not know optimizers, data or clocks. Source: the published description of A. Karpathy's
"microgpt"; 1 layer of width 16 with 4 heads, 16 places and 27 symbols has 4,192 parameters.

Letters in shapes: B sequences, T tokens, D width, H heads, K = D / H width of a head, F hidden
units of the MLP, V vocabulary.

    start       x <- norm(W_token[token] + W_place[place]),  norm(x) = x / sqrt(mean(x^2) + eps)
    attention   x <- x + W_out attend(W_q y, W_k y, W_v y),  y = norm(x), softmax scale 1/sqrt(K)
    MLP         x <- x + W_out relu(W_in norm(x))
    logits      W_head x, with a head of its own and no norm before it

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

INITIAL_SD = 0.08
EPS = 1e-5

_ROLES = {"embedding": Role.EMBEDDING, "positions": Role.EMBEDDING, "head": Role.HEAD}


def rms_norm(x: Tensor) -> Tensor:
    """(..., D) -> (..., D) with a mean square of 1 (Zhang and Sennrich 2019, without a gain)."""
    return F.rms_norm(x, x.shape[-1:], eps=EPS)


class Block(nn.Module):
    """One layer: attention, then the MLP, each behind a norm and added to the stream."""

    def __init__(self, width: int, heads: int, hidden: int, backend: str) -> None:
        super().__init__()
        self.heads, self.backend = heads, backend
        self.qkv = nn.Parameter(torch.empty(3 * width, width))
        self.out = nn.Parameter(torch.empty(width, width))
        self.mlp_in = nn.Parameter(torch.empty(hidden, width))
        self.mlp_out = nn.Parameter(torch.empty(width, hidden))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        batch, time, width = x.shape
        head_width = width // self.heads
        qkv = F.linear(rms_norm(x), self.qkv.to(x.dtype))
        q, k, v = qkv.view(batch, time, 3, self.heads, head_width).unbind(2)  # (B, T, H, K) each
        mixed = causal_attention(q, k, v, scale=1 / math.sqrt(head_width), backend=self.backend)
        x = x + F.linear(mixed.reshape(batch, time, width), self.out.to(x.dtype))
        hidden = F.relu(F.linear(rms_norm(x), self.mlp_in.to(x.dtype)))  # (B, T, F)
        return x + F.linear(hidden, self.mlp_out.to(x.dtype))


class MicroGPT(nn.Module):
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
        self.embedding = nn.Parameter(torch.empty(vocabulary, width))  # (V, D)
        self.positions = nn.Parameter(torch.empty(context, width))  # (T, D)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, attention) for _ in range(layers))
        self.head = nn.Parameter(torch.empty(vocabulary, width))  # (V, D)
        with torch.no_grad():
            for tensor in self.parameters():
                tensor.normal_(0.0, INITIAL_SD, generator=generator)

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, V)."""
        x = F.embedding(tokens, self.embedding) + self.positions[: tokens.shape[1]]  # (B, T, D)
        x = rms_norm(x.to(self.compute_dtype or x.dtype))
        for block in self.blocks:
            x = block(x)
        return F.linear(x, self.head.to(x.dtype))

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of `targets` (B, T) given `tokens` (B, T), a 0-D tensor.

        Targets that are IGNORED (-100, padding) do not count.
        """
        logits = self.logits(tokens)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return F.cross_entropy(logits.flatten(0, 1).to(wide), targets.flatten())

    def roled_parameters(self) -> list[RoledParameter]:
        """Every trainable tensor with its role; nothing lies on a sphere."""
        return [
            RoledParameter(name, tensor, _ROLES.get(name, Role.MATRIX), None)
            for name, tensor in self.named_parameters()
        ]
