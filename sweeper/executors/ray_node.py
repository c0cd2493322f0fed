"""What Ray runs on a node: the keeper of one attempt as an actor, and a look at the node as a task.

It must not know the loop or the driver. Ray imports it by name there, so nothing of ours is pickled.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray

from sweeper.executors.node import Keeper, look

AFTER_S = 3600.0
"""How long the result of an attempt that nobody asks for is kept where no folder is shared."""


class RayKeeper(Keeper):
    """See `Keeper`. Detached: it outlives the driver, and ends by itself when nobody comes for it."""

    def __init__(self, parcel: Mapping[str, Any]) -> None:
        ids = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        super().__init__({**parcel, "gpus": ids}, ray.nodes)
        self._asked_at = time.monotonic()
        threading.Thread(target=self._leave_at_last, daemon=True).start()

    def turn(self, control: str, offset: int, most_s: float = 1.0) -> dict[str, Any]:
        """See `Keeper.turn`."""
        self._asked_at = time.monotonic()
        return super().turn(control, offset, most_s)

    def _leave_at_last(self) -> None:
        """Give the device back when the attempt has ended and whoever started it is gone."""
        patience_s = self._lease_s if self._shared else AFTER_S
        while not (self.ended and time.monotonic() - self._asked_at > patience_s):
            time.sleep(1.0)
        self.forget()
        os._exit(0)  # an actor cannot leave from another thread than its own


def look_at_node(folder: str, mark: str) -> dict[str, Any]:
    """See `look`."""
    return look(folder, mark)
