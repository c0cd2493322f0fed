"""Owns a masked language model in the style of LTG-BERT: a pre-norm encoder that sees both sides.

It must not know which tokens are hidden, nor optimizers, data or clocks. Sources: "Trained on 100
million words and still in shape: BERT meets British National Corpus", arXiv 2303.09859 (the whole);
"DeBERTa", arXiv 2006.03654 (attention); "GLU Variants Improve Transformer", arXiv 2002.05202
(GEGLU); "NormFormer", arXiv 2110.09456 (the two further norms). Written from their descriptions,
without dropout.

Letters in shapes: B sequences, T tokens, D width, H heads, K = D / H width of a head, F hidden
units of the MLP, R buckets of distances on each side, V vocabulary (with the mask), N tokens that
are scored. `norm` is layer normalisation without gain and bias, `affine` has both.

    embedding   x = norm(E[token])
    attention   x <- x + affine(W_out mix(norm(x)))
    scores      (q_i k_j + q_i K[i - j] + k_j Q[j - i]) / sqrt(3 K), where K[.] and Q[.] are the key
                and the query of a distance: its embedding through the same W_k and W_q
    MLP         x <- x + W_out norm(u * gelu(g)), (u, g) = W_in norm(x); no biases
    head        E norm(gelu(W_h norm(x) + b_h)) + b, E the token embedding again

Weights are kept in float32. `compute_dtype` is that of the activations, and a weight is cast to it
where it is used, so gradients and updates are in float32 whatever the forward pass computes in.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it
from torch import Generator, Tensor, nn

from trainer.roles import IGNORED, Role, RoledParameter

EPSILON = 1e-7


def norm(x: Tensor) -> Tensor:
    """(..., D) with mean 0 and variance 1 along the last axis, in the dtype of `x`."""
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON)


def distance_buckets(tokens: int, buckets: int, furthest: int) -> Tensor:
    """The bucket of each distance i - j, (T, T) int64 from 0 to 2 * `buckets` - 2.

    Up to half of `buckets` every distance has a bucket of its own; those beyond share the other half
    evenly on a logarithmic scale, the last one at `furthest` - 1 and all that is further. Bucket
    `buckets` - 1 is the distance 0 (DeBERTa's log buckets).
    """
    place = torch.arange(tokens)
    distance = place[:, None] - place[None, :]  # (T, T)
    near = buckets // 2
    far = distance.abs().clamp(min=near, max=max(near, furthest - 1)).double()
    span = math.log(max(furthest - 1, near + 1) / near)
    logarithmic = near + torch.ceil((far / near).log() / span * (near - 1)).long()
    magnitude = torch.where(distance.abs() <= near, distance.abs(), logarithmic)
    return distance.sign() * magnitude.clamp(max=buckets - 1) + buckets - 1


class Affine(nn.Module):
    """Layer normalisation with a learned gain and bias, in the dtype of its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        gain, bias = self.gain.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, gain.shape, gain, bias, eps=EPSILON)


class Attention(nn.Module):
    """Attention to both sides with disentangled positions: content and distance score apart."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Parameter(torch.empty(3 * width, width))  # (3 D, D)
        self.qkv_bias = nn.Parameter(torch.zeros(3 * width))
        self.out = nn.Parameter(torch.empty(width, width))  # (D, D)
        self.out_bias = nn.Parameter(torch.zeros(width))
        self.after = Affine(width)

    def forward(self, x: Tensor, distances: Tensor, buckets: Tensor) -> Tensor:
        """`x` (B, T, D), embedded `distances` (2 R - 1, D), `buckets` (T, T) of i - j -> (B, T, D)."""
        batch, time, width = x.shape
        weight, bias = self.qkv.to(x.dtype), self.qkv_bias.to(x.dtype)
        qkv = F.linear(x, weight, bias).view(batch, time, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, K) each
        of_distance = F.linear(distances.to(x.dtype), weight[: 2 * width], bias[: 2 * width])
        of_distance = of_distance.view(len(distances), 2, self.heads, -1)  # (2 R - 1, 2, H, K)
        q_distance, k_distance = of_distance.permute(1, 2, 3, 0)  # (H, K, 2 R - 1) each
        index = buckets.expand(batch, self.heads, time, time)
        scores = q @ k.transpose(-1, -2)  # (B, H, T, T): rows attend to columns
        scores = scores + (q @ k_distance).gather(-1, index)  # q_i K[i - j]
        # Rows of this table are the j of k_j, and its buckets are of j - i: transpose it to (i, j).
        scores = scores + (k @ q_distance).gather(-1, index).transpose(-1, -2)
        shares = (scores / math.sqrt(3 * q.shape[-1])).softmax(-1)
        mixed = (shares @ v).transpose(1, 2).reshape(batch, time, width)
        out = F.linear(mixed, self.out.to(x.dtype), self.out_bias.to(x.dtype))
        branch: Tensor = self.after(out)
        return branch


class GatedMLP(nn.Module):
    """GEGLU with a norm after the gate."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.into = nn.Parameter(torch.empty(2 * hidden, width))  # (2 F, D): W_u and W_g
        self.out = nn.Parameter(torch.empty(width, hidden))  # (D, F)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        u, gate = F.linear(x, self.into.to(x.dtype)).chunk(2, dim=-1)  # (B, T, F) each
        return F.linear(norm(u * F.gelu(gate)), self.out.to(x.dtype))


class Block(nn.Module):
    """One layer: attention, then the MLP, each behind a norm and added to the stream."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.mlp = GatedMLP(width, hidden)

    def forward(self, x: Tensor, distances: Tensor, buckets: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.attention(norm(x), distances, buckets)
        x = x + self.mlp(norm(x))
        return x  # noqa: RET504 - a module's call is untyped; the name gives the type back


class LTGBert(nn.Module):
    """The whole network, from token numbers (some of them the mask) to a loss."""

    buckets: Tensor

    def __init__(
        self,
        *,
        vocabulary: int,
        context: int,
        layers: int,
        width: int,
        heads: int,
        hidden: int,
        position_buckets: int,
        generator: Generator,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        """`vocabulary` counts the mask; `compute_dtype` None means that of the weights."""
        super().__init__()
        self.compute_dtype = compute_dtype
        self.embedding = nn.Parameter(torch.empty(vocabulary, width))  # (V, D), the head too
        self.distances = nn.Parameter(torch.empty(2 * position_buckets - 1, width))  # (2 R - 1, D)
        self.norm_distances = Affine(width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
        self.head = nn.Parameter(torch.empty(width, width))  # (D, D)
        self.head_bias = nn.Parameter(torch.zeros(width))
        self.output_bias = nn.Parameter(torch.zeros(vocabulary))
        self._draw_weights(generator)
        buckets = distance_buckets(context, position_buckets, context)
        self.register_buffer("buckets", buckets, persistent=False)

    @torch.no_grad()
    def _draw_weights(self, generator: Generator) -> None:
        """Normal cut at two sd, sd sqrt(2 / 5D); the MLP of layer n (from 0) / sqrt(2 (1 + n))."""
        sd = math.sqrt(2 / (5 * self.embedding.shape[1]))
        for name, tensor in self.named_parameters():
            if tensor.ndim == 2:
                # A uniform share of the probability within two sd, turned back into a value.
                within = math.erf(math.sqrt(2))
                tensor.uniform_(-within, within, generator=generator)
                tensor.erfinv_().mul_(math.sqrt(2) * sd)
                if ".mlp." in name:
                    tensor.div_(math.sqrt(2 * (1 + int(name.split(".")[1]))))

    def hidden_states(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, D)."""
        x = norm(F.embedding(tokens, self.embedding))  # (B, T, D)
        x = x.to(self.compute_dtype or x.dtype)
        distances = self.norm_distances(self.distances)  # (2 R - 1, D)
        buckets = self.buckets[: tokens.shape[1], : tokens.shape[1]]
        for block in self.blocks:
            x = block(x, distances, buckets)
        return x

    def predict(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., V): the logits of the tokens that stand at these places."""
        dtype = states.dtype
        x = F.linear(norm(states), self.head.to(dtype), self.head_bias.to(dtype))
        return F.linear(norm(F.gelu(x)), self.embedding.to(dtype), self.output_bias.to(dtype))

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, V)."""
        return self.predict(self.hidden_states(tokens))

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats over the scored places, a 0-D tensor; both (B, T) int64.

        `targets` has the true token where it is hidden in `tokens`, and IGNORED elsewhere; at least
        one must be scored. Only those places go through the head, whose table is most of a small
        model.
        """
        scored = targets != IGNORED  # (B, T), N of them
        logits = self.predict(self.hidden_states(tokens)[scored])  # (N, V)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return F.cross_entropy(logits.to(wide), targets[scored])

    def roled_parameters(self) -> list[RoledParameter]:
        """Every trainable tensor with its role; nothing lies on a sphere."""
        return [
            RoledParameter(name, tensor, _role(name, tensor), None)
            for name, tensor in self.named_parameters()
        ]


def _role(name: str, tensor: Tensor) -> Role:
    if name in ("embedding", "distances"):
        return Role.EMBEDDING
    return Role.MATRIX if tensor.ndim == 2 else Role.SCALAR
