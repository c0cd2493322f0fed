"""A GPU that exists only as a recording: whoever sets its figures plays the device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GIB = 1 << 30


class FakeGpu:
    """One GPU in a file that SWEEP_NVML names; `set` changes what the next look sees."""

    def __init__(self, path: Path, uuid: str = "GPU-11111111-fake") -> None:
        self.path, self.uuid = path, uuid
        self.figures: dict[str, Any] = {
            "uuid": uuid,
            "name": "Fake GPU",
            "total_bytes": 80 * GIB,
            "memory_bytes": GIB // 2,
            "utilisation": 0.0,
            "power_w": 70.0,
            "temperature_c": 30.0,
            "clock_mhz": 1980.0,
            "throttle": 0,
            "pids": [],
        }
        self.set()

    def set(self, **figures: Any) -> None:
        self.figures |= figures
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps({"gpus": [self.figures]}))
        temporary.replace(self.path)

    @property
    def device(self) -> dict[str, Any]:
        """What a slot says of it."""
        return {"kind": "cuda", "uuid": self.uuid, "index": 0, "name": "Fake GPU"}
