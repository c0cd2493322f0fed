"""What this machine has to run trainers on: GPUs by UUID through NVML, and processor cores.

It must not know trials or executors; without NVML there are no GPUs, said in one word.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeper.errors import DeviceUnusable
from sweeper.runner import nvml

NO_MIG = "MIG slices are not supported: times on one depend on its neighbours; use whole GPUs"

_TOPOLOGY = Path("/sys/devices/system/cpu")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_LIMIT_V1 = Path("/sys/fs/cgroup/cpu")


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU. `uuid` names it on this host for good, `index` is NVML's and may change."""

    uuid: str
    index: int
    name: str
    memory_bytes: int


@dataclass(frozen=True)
class GpuSearch:
    """GPUs that were found, or why there are none."""

    gpus: tuple[Gpu, ...]
    why_none: str = ""


def find_gpus() -> GpuSearch:
    """All whole GPUs that NVML shows, narrowed to CUDA_VISIBLE_DEVICES where that is set.

    Never raises: no library, no driver and no GPU are all an empty answer with the reason. A GPU that
    is cut into MIG slices is left out: a slice has no lease, no telemetry and no times of its own here.
    """
    try:
        found = nvml.open_gpus()
    except nvml.NvmlError as error:
        return GpuSearch((), str(error))
    try:
        every = found.names()
    except nvml.NvmlError as error:
        return GpuSearch((), str(error))
    finally:
        found.close()
    gpus = tuple(Gpu(g.uuid, g.index, g.name, g.memory_bytes) for g in every if not g.mig)
    if not gpus:
        return GpuSearch((), NO_MIG if every else "the NVIDIA driver shows no GPU")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = _narrowed(gpus, visible)
        if not gpus:
            why = f"; {NO_MIG}" if "MIG-" in visible else ""
            return GpuSearch((), f"CUDA_VISIBLE_DEVICES = {visible!r} hides all of them{why}")
    return GpuSearch(gpus)


def choose_gpus(gpus: Sequence[Gpu], wanted: str) -> tuple[Gpu, ...]:
    """The GPUs that a comma-separated list of indices or UUIDs (or their beginnings) names.

    Raises:
        DeviceUnusable: a name that no GPU, or more than one, has, or the same GPU twice.
    """
    chosen: list[Gpu] = []
    for word in (w.strip() for w in wanted.split(",") if w.strip()):
        if word.startswith("MIG-"):
            raise DeviceUnusable(f"--devices {wanted}: {NO_MIG}")
        found = [g for g in gpus if _is_called(g, word)]
        if len(found) != 1 or found[0] in chosen:
            have = ", ".join(f"{g.index} ({g.uuid})" for g in gpus) or "none"
            problem = "named twice" if found and found[0] in chosen else "not one GPU's name"
            raise DeviceUnusable(
                f"--devices {wanted}: {word!r} is {problem}; this machine has {have}. "
                "Give indices or UUIDs, separated by commas"
            )
        chosen.append(found[0])
    if not chosen:
        raise DeviceUnusable(f"--devices {wanted!r}: names no GPU; expected indices or UUIDs")
    return tuple(chosen)


def find_cores() -> tuple[int, ...]:
    """Logical processors that we may use, those of different physical cores first.

    A control group's quota (a container's `--cpus`) shortens the list: threads beyond it would only
    be throttled. Outside Linux it is as many as there are, and nothing can be kept on them.
    """
    try:
        allowed = sorted(os.sched_getaffinity(0))
    except AttributeError:
        allowed = list(range(os.cpu_count() or 1))
    seen: dict[str, int] = {}
    ranked = []
    for core in allowed:
        siblings = _read(_TOPOLOGY / f"cpu{core}" / "topology" / "thread_siblings_list")
        rank = seen.get(siblings, 0) if siblings else 0
        seen[siblings] = rank + 1
        ranked.append((rank, core))
    ordered = tuple(core for _, core in sorted(ranked))
    return ordered[: max(1, min(len(ordered), quota_cores()))]


def quota_cores() -> int:
    """Whole processors' worth of time that our control group may use; very many when unlimited."""
    limit = _read(_CGROUP_LIMIT).split()
    if not limit:
        limit = [
            _read(_CGROUP_LIMIT_V1 / "cpu.cfs_quota_us"),
            _read(_CGROUP_LIMIT_V1 / "cpu.cfs_period_us"),
        ]
    try:
        quota, period = int(limit[0]), int(limit[1])
    except (ValueError, IndexError):  # "max", or no such file
        return 1 << 20
    return max(1, quota // period) if quota > 0 and period > 0 else 1 << 20


def _narrowed(gpus: Sequence[Gpu], visible: str) -> tuple[Gpu, ...]:
    """What CUDA would see: names up to the first unknown one, in the order given."""
    chosen: list[Gpu] = []
    for word in visible.split(","):
        found = [g for g in gpus if _is_called(g, word.strip())]
        if len(found) != 1 or found[0] in chosen:
            break
        chosen.append(found[0])
    return tuple(chosen)


def _is_called(gpu: Gpu, word: str) -> bool:
    return bool(word) and (
        word == str(gpu.index) or (word.startswith("GPU-") and gpu.uuid.startswith(word))
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
