"""Owns the number formats in which a forward and backward pass can run, and where each exists.

It must not know models. Weights, their gradients and all optimizer state are float32 in each.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from trainer.errors import ConfigError

DTYPES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def supported_precisions(device: torch.device) -> tuple[str, ...]:
    """Those of `DTYPES` in which `device` computes by itself; a CPU does all, if slowly."""
    if device.type == "cpu":
        return tuple(DTYPES)
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("fp32", "bf16", "fp16") if has_bf16 else ("fp32", "fp16")
    return ("fp32",)


def refuse_precision(precision: str, device: torch.device) -> None:
    """ConfigError when `device` lacks the number format that `run.precision` names."""
    supported = supported_precisions(device)
    if precision not in supported:
        raise ConfigError(
            f'run.precision = "{precision}": this {device.type} device lacks it; expected one of '
            + ", ".join(supported)
        )
