"""Owns the iterations that turn a matrix into the nearest (semi-)orthogonal one, as pure functions.

It must not know optimizers: a stack of matrices goes in, a stack of the same shape comes out.

Every function takes (..., M, N), works on all leading axes at once in the dtype it is given, and
maps a zero matrix to zero. Each singular value s in (0, 1] goes to p(s), an odd quintic applied
several times; the singular vectors stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Coefficients = tuple[float, float, float]
"""(a, b, c) of p(s) = a s + b s^3 + c s^5."""

NEWTON_SCHULZ: Coefficients = (3.4445, -4.7750, 2.0315)
"""Muon's quintic (Jordan et al. 2024): steep at 0, hovers in about [0.7, 1.2] instead of at 1."""

POLAR_EXPRESS: tuple[Coefficients, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Minimax quintic of each iteration for singular values from 1e-3 (Amsel et al., arXiv 2505.16932),
with safety factor 1.02 and cushion 0.02."""

POLAR_EXPRESS_SAFETY = 1.02
EXACT: Coefficients = (2.0, -1.5, 0.5)
"""Converges to 1 from every s in (0, 1], slowly: the oracle of the two above."""

_EPSILON = 1e-7


def newton_schulz(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximate orthogonalisation of (..., M, N) by Muon's quintic; p(s) in about [0.7, 1.2]."""
    return iterate(matrices, [NEWTON_SCHULZ] * steps)


def polar_express(matrices: Tensor) -> Tensor:
    """Approximate orthogonalisation of (..., M, N) in five steps; p(s) in [0.859, 1.141]."""
    return iterate(matrices, POLAR_EXPRESS, safety=POLAR_EXPRESS_SAFETY)


def exact(matrices: Tensor, steps: int = 40) -> Tensor:
    """Orthogonalisation of (..., M, N) to the precision of the dtype, for tests and benchmarks."""
    return iterate(matrices, [EXACT] * steps)


ORTHOGONALIZERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "newton_schulz": newton_schulz,
    "polar_express": polar_express,
}


def iterate(matrices: Tensor, table: Sequence[Coefficients], *, safety: float = 1.0) -> Tensor:
    """Apply the quintics of `table` in turn to the singular values of (..., M, N).

    The input is first divided by `safety` times its Frobenius norm, so that they lie in (0, 1].
    """
    # The Gram matrix is formed on the short side, so the work is cubic in min(M, N) only. The long
    # side lies in front: X^T X of a tall X is what matrix libraries do best.
    tall = matrices.shape[-2] >= matrices.shape[-1]
    stack = matrices if tall else matrices.mT
    x = stack.reshape(-1, *stack.shape[-2:])  # (S, m, n), m >= n
    wide_enough = torch.promote_types(x.dtype, torch.float32)
    single = x.dtype == wide_enough
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=wide_enough)
    x = x / (norm * safety + _EPSILON).to(x.dtype)
    for a, b, c in table:
        gram = torch.bmm(x.mT, x)  # (S, n, n)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        if single:
            # a X as part of the product: cheaper, and the rounding of `a + ...` does not matter.
            polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
            x = torch.bmm(x, polynomial)
        else:
            # In bfloat16 it would: an error of 2.5 to 4.5 % after five steps instead of 1 %.
            x = torch.baddbmm(x, x, polynomial, beta=a)
    x = x.view(stack.shape)
    return x if tall else x.mT
