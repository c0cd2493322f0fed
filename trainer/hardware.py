"""Owns the description of where a run computes: device, threads, versions, peak memory.

It must not know what is computed there.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from trainer.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device for `run.device`; "auto" takes CUDA where there is one."""
    if name == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if name == "auto":
        return torch.device("cpu")
    raise ConfigError(
        f'run.device = "{name}": this machine has no CUDA device that torch {torch.__version__} '
        'can use; expected "cpu" or "auto" here'
    )


def describe(device: torch.device) -> dict[str, object]:
    """What the run computes on, for the reader of its events."""
    return {
        "device": device.type,
        "name": device_name(device),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def device_name(device: torch.device) -> str:
    """What the maker calls the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name()


def use_threads(configured: int, environment: Mapping[str, str]) -> None:
    """Compute with `configured` CPU threads, or with OMP_NUM_THREADS, or with torch's choice.

    The variable is applied by hand: in a process forked from one that imported torch, the library
    that reads it was loaded, under another environment, before the fork.
    """
    wanted = configured
    if not wanted:
        text = environment.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
        wanted = int(text) if text.isdecimal() else 0
    if wanted and wanted != torch.get_num_threads():
        torch.set_num_threads(wanted)


def versions() -> dict[str, str]:
    """Versions of everything that can change a loss or a time."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def peak_memory_bytes(device: torch.device) -> int:
    """Most device memory ever allocated; on a CPU, the largest resident size of the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
