"""NVIDIA's management library through ctypes: which GPUs there are, what each does, who computes there.

It must not know attempts, leases or what a reading means for them; nothing of it needs a package.

`SWEEP_NVML` names another library file, or (ending in .json) a recording that is read anew at every
look: what tests and machines without a GPU use in its place.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

VARIABLE = "SWEEP_NVML"
LIBRARY = "libnvidia-ml.so.1"

POWER_CAPPED = 0x4
"""The software power limit: usual under full load."""
SLOWED = 0x8 | 0x20 | 0x40 | 0x80
"""Hardware slowdown, software and hardware thermal slowdown, power brake: never usual."""

_INSUFFICIENT_SIZE = 7
_SM_CLOCK = 1
_CORE_TEMPERATURE = 0


class NvmlError(Exception):
    """No library, no driver, no such GPU, or no answer; the message says which."""


@dataclass(frozen=True)
class GpuName:
    """One whole GPU: `uuid` names it on this host for good, `index` is the driver's and may change."""

    uuid: str
    index: int
    name: str
    memory_bytes: int
    mig: bool = False


@dataclass(frozen=True)
class Reading:
    """What a GPU does at one look; None where the driver does not say.

    `utilisation` is a share (0 to 1) of the last sampling period with a kernel running; `throttle` is
    NVML's clocks event reasons, bit by bit; `pids` are compute processes as the driver numbers them.
    """

    memory_bytes: int | None = None
    utilisation: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    clock_mhz: float | None = None
    throttle: int | None = None
    pids: tuple[int, ...] = field(default=())


class Gpus(Protocol):
    """The GPUs of this machine. Every method raises NvmlError when the driver does not answer."""

    def names(self) -> Sequence[GpuName]:
        """All of them, in the driver's order."""
        ...

    def read(self, uuid: str) -> Reading:
        """One look at one of them; a figure that it does not have is None."""
        ...

    def close(self) -> None:
        """Let go of the driver; safe to call twice."""
        ...


def open_gpus() -> Gpus:
    """The driver's library, or what SWEEP_NVML names.

    Raises:
        NvmlError: there is none, or no driver behind it.
    """
    named = os.environ.get(VARIABLE, LIBRARY)
    return RecordedGpus(Path(named)) if named.endswith(".json") else LibraryGpus(named)


class RecordedGpus:
    """GPUs out of a JSON file: `{"gpus": [{"uuid", "name", "total_bytes", "memory_bytes", ...}]}`.

    The further keys are those of `Reading`. The file is read at every look, so whoever rewrites it
    plays the device.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._gpus()

    def names(self) -> Sequence[GpuName]:
        """See `Gpus.names`."""
        return [
            GpuName(
                str(gpu["uuid"]),
                index,
                str(gpu.get("name", "recorded")),
                int(gpu.get("total_bytes", 0)),
                bool(gpu.get("mig", False)),
            )
            for index, gpu in enumerate(self._gpus())
        ]

    def read(self, uuid: str) -> Reading:
        """See `Gpus.read`."""
        for gpu in self._gpus():
            if gpu["uuid"] == uuid:
                known = {k: gpu[k] for k in Reading.__dataclass_fields__ if k in gpu}
                return Reading(**known | {"pids": tuple(gpu.get("pids", ()))})
        raise NvmlError(f"no GPU {uuid} in {self._path}")

    def close(self) -> None:
        """See `Gpus.close`."""

    def _gpus(self) -> Sequence[Mapping[str, Any]]:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            gpus: list[Mapping[str, Any]] = document["gpus"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NvmlError(f"the recording {self._path} cannot be read ({error})") from None
        return gpus


class Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class Utilization(ctypes.Structure):
    """nvmlUtilization_t, percent."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class ProcessInfo(ctypes.Structure):
    """nvmlProcessInfo_t, as of the second and third version of the call."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class ProcessInfoV1(ctypes.Structure):
    """nvmlProcessInfo_v1_t."""

    _fields_ = (("pid", ctypes.c_uint), ("used", ctypes.c_ulonglong))


class LibraryGpus:
    """GPUs through the driver's own library."""

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._nvml = ctypes.CDLL(library)
            start = self._nvml.nvmlInit_v2
        except (OSError, AttributeError):
            raise NvmlError(f"no NVIDIA driver: {library} is not there") from None
        self._handles: dict[str, ctypes.c_void_p] = {}
        self._open = False
        code = start()
        if code != 0:
            raise NvmlError(f"no NVIDIA driver ({self._in_words(code)})")
        self._open = True

    def names(self) -> Sequence[GpuName]:
        """See `Gpus.names`."""
        count = ctypes.c_uint()
        self._must("nvmlDeviceGetCount_v2", ctypes.byref(count))
        return [self._name(index) for index in range(count.value)]

    def read(self, uuid: str) -> Reading:
        """See `Gpus.read`."""
        handle = self._handle(uuid)
        memory, utilization = Memory(), Utilization()
        watts, celsius, mhz = ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint()
        reasons = ctypes.c_ulonglong()
        # The one figure that every device has: when it is not there, the driver is gone.
        self._must("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
        busy = self._may("nvmlDeviceGetUtilizationRates", handle, ctypes.byref(utilization))
        power = self._may("nvmlDeviceGetPowerUsage", handle, ctypes.byref(watts))
        warm = self._may(
            "nvmlDeviceGetTemperature", handle, _CORE_TEMPERATURE, ctypes.byref(celsius)
        )
        clock = self._may("nvmlDeviceGetClockInfo", handle, _SM_CLOCK, ctypes.byref(mhz))
        throttled = self._may(
            "nvmlDeviceGetCurrentClocksEventReasons", handle, ctypes.byref(reasons)
        ) or self._may("nvmlDeviceGetCurrentClocksThrottleReasons", handle, ctypes.byref(reasons))
        return Reading(
            memory_bytes=memory.used,
            utilisation=utilization.gpu / 100 if busy else None,
            power_w=watts.value / 1000 if power else None,
            temperature_c=float(celsius.value) if warm else None,
            clock_mhz=float(mhz.value) if clock else None,
            throttle=reasons.value if throttled else None,
            pids=self._pids(handle),
        )

    def close(self) -> None:
        """See `Gpus.close`."""
        if self._open:
            self._open = False
            self._nvml.nvmlShutdown()

    def _name(self, index: int) -> GpuName:
        handle = ctypes.c_void_p()
        self._must("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
        uuid, name = ctypes.create_string_buffer(96), ctypes.create_string_buffer(96)
        self._must("nvmlDeviceGetUUID", handle, uuid, ctypes.c_uint(96))
        self._must("nvmlDeviceGetName", handle, name, ctypes.c_uint(96))
        memory, now, next_boot = Memory(), ctypes.c_uint(), ctypes.c_uint()
        self._must("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
        mig = self._may("nvmlDeviceGetMigMode", handle, ctypes.byref(now), ctypes.byref(next_boot))
        return GpuName(
            uuid.value.decode("utf-8", "replace"),
            index,
            name.value.decode("utf-8", "replace"),
            memory.total,
            mig and now.value == 1,
        )

    def _handle(self, uuid: str) -> ctypes.c_void_p:
        if uuid not in self._handles:
            handle = ctypes.c_void_p()
            name = ctypes.c_char_p(uuid.encode())
            self._must("nvmlDeviceGetHandleByUUID", name, ctypes.byref(handle))
            self._handles[uuid] = handle
        return self._handles[uuid]

    def _pids(self, handle: ctypes.c_void_p) -> tuple[int, ...]:
        """Compute processes, by the newest form of the call that this driver has."""
        calls: tuple[tuple[str, type[ProcessInfo | ProcessInfoV1]], ...] = (
            ("nvmlDeviceGetComputeRunningProcesses_v3", ProcessInfo),
            ("nvmlDeviceGetComputeRunningProcesses_v2", ProcessInfo),
            ("nvmlDeviceGetComputeRunningProcesses", ProcessInfoV1),
        )
        for call, kind in calls:
            function = getattr(self._nvml, call, None)
            if function is None:
                continue
            room = 64
            while room <= 1 << 14:
                count, found = ctypes.c_uint(room), (kind * room)()
                code = function(handle, ctypes.byref(count), found)
                if code == 0:
                    return tuple(int(found[i].pid) for i in range(min(count.value, room)))
                if code != _INSUFFICIENT_SIZE:
                    break
                room *= 4
        return ()

    def _must(self, call: str, *arguments: object) -> None:
        try:
            code = getattr(self._nvml, call)(*arguments)
        except AttributeError:
            raise NvmlError(f"the NVIDIA driver is too old: no {call}") from None
        if code != 0:
            raise NvmlError(f"the NVIDIA driver does not answer ({call}: {self._in_words(code)})")

    def _may(self, call: str, *arguments: object) -> bool:
        function = getattr(self._nvml, call, None)
        return function is not None and function(*arguments) == 0

    def _in_words(self, code: int) -> str:
        try:
            words = self._nvml.nvmlErrorString
            words.restype = ctypes.c_char_p
            text = words(code)
        except AttributeError:
            return f"error {code}"
        return text.decode("utf-8", "replace") if text else f"error {code}"
