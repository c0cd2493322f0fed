"""Owns torch.compile for the trainer: what is compiled, how, and where compiled code is kept.

It must not know architectures: a model that can be compiled by block has a list `blocks`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from trainer.config import Run as RunConfig
from trainer.errors import ConfigError
from trainer.files import cache_root
from trainer.hardware import device_name

_KEPT_BY = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


def cache_folder(named: str | None, device: torch.device) -> Path:
    """Where compiled code is kept: one folder per version of torch, device and thread count.

    Code for a CPU has the thread count compiled in, and code for a GPU that GPU's model.
    """
    key = f"torch-{torch.__version__}-{device_name(device)}-{torch.get_num_threads()}-threads"
    return cache_root(named) / re.sub(r"[^A-Za-z0-9.+]+", "-", key)


def keep_compiled_code(named: str | None, device: torch.device) -> Path:
    """Point the compiler at `cache_folder`, unless the environment already names places.

    Must be called before the first compilation. ConfigError when the folder cannot be made.
    """
    folder = cache_folder(named, device)
    for variable, name in _KEPT_BY.items():
        place = folder / name
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"run.compile_cache: {place} cannot be made ({error.strerror}); expected a folder "
                "that can be written"
            ) from None
        os.environ.setdefault(variable, str(place))
    return folder


def compiled(model: Any, config: RunConfig) -> tuple[Callable[..., Any], Callable[[], None]]:
    """The model as `run.compile` wants it, and what to call before each pass."""
    if config.compile == "off":
        return model, _nothing
    mode = None if config.compile_mode == "default" else config.compile_mode
    before = (
        torch.compiler.cudagraph_mark_step_begin if config.compile_mode != "default" else _nothing
    )
    if config.compile == "whole":
        return torch.compile(model, dynamic=False, mode=mode), before
    blocks: Iterable[Any] = model.blocks
    for block in blocks:
        block.compile(dynamic=False, mode=mode)
    return model, before


def uncompiled(call: Callable[..., Any], config: RunConfig) -> Callable[..., Any]:
    """`call` as it is without a compiler: for inputs of many shapes, each of which it would compile."""
    if config.compile == "off":
        return call  # nothing to switch off, and no reason to import the compiler

    def plainly(*inputs: Any) -> Any:
        with torch.compiler.set_stance("force_eager"):
            return call(*inputs)

    return plainly


def _nothing() -> None:
    """Nothing is recorded, so there is nothing to mark."""
