"""Owns causal attention and the choice of the kernel that computes it.

It must not know what queries and keys mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it
from torch import Tensor

from trainer.errors import ConfigError
from trainer.models.precision import DTYPES

KERNELS = {
    "flash": "FLASH_ATTENTION",
    "cudnn": "CUDNN_ATTENTION",
    "efficient": "EFFICIENT_ATTENTION",
    "math": "MATH",
}
"""Names in the configuration, and torch's own. "auto" leaves the choice to torch."""


def causal_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float, backend: str) -> Tensor:
    """Softmax(scale * q k^T) v over the past of each token; all (B, T, H, K)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T, K)
    if backend == "auto":
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    else:
        # Imported here: torch.nn.attention takes time that no other run should pay.
        from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: PLC0415

        with sdpa_kernel(getattr(SDPBackend, KERNELS[backend])):
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return mixed.transpose(1, 2)


def refuse_attention(backend: str, device: torch.device, precision: str = "fp32") -> None:
    """ConfigError when `model.attention` names a kernel that cannot run here, found by trying it."""
    q = torch.zeros(1, 16, 1, 64, dtype=DTYPES[precision], device=device, requires_grad=True)
    try:
        torch.autograd.backward(causal_attention(q, q, q, scale=1.0, backend=backend).sum())
    except RuntimeError as error:
        # torch also says why each kernel was refused, in warnings that belong to its own log.
        raise ConfigError(
            f'model.attention = "{backend}": this kernel cannot run on {device.type} in {precision} '
            f'({str(error).splitlines()[0]}); expected "auto" or another kernel'
        ) from None
