"""Which free slots may be used now: others may have a device, or something may be left on it.

It must not know trials or what runs in a slot; it asks the executor and tells people what changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sweeper.errors import DeviceUnusable
from sweeper.executors.base import Executor, Slot

WITHIN_S = 60.0
"""How long a stage waits, with nothing running, for a device that it cannot use."""


class Places:
    """Remembers what was said of which slot, so that people hear of each change once."""

    def __init__(self, executor: Executor, note: Callable[[str], None]) -> None:
        self._executor, self._note, self._within_s = executor, note, WITHIN_S
        self._left_out: dict[str, str] = {}
        self._since: float | None = None

    def is_left_out(self, slot: Slot) -> bool:
        """Whether nothing should be started in a free slot now."""
        why = self._executor.trouble(slot)
        before = self._left_out.pop(slot.name, "")
        if why:
            self._left_out[slot.name] = why
        else:
            self._since = None
        if why and why != before:
            self._note(f"{slot.name} is left out: {why}")
        elif before and not why:
            self._note(f"{slot.name} is free again")
        return bool(why)

    def wait(self) -> bool:
        """With nothing running: whether to wait on, because every slot is left out for now.

        Raises:
            DeviceUnusable: that has lasted too long.
        """
        left_out = self._left_out
        if not left_out and not self._executor.slots():
            left_out = {"everywhere": "no node is there"}
        if not left_out:
            return False
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since < self._within_s:
            return True
        said = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise DeviceUnusable(
            f"no device was free for {self._within_s:g} s: {said}. The same command goes on from "
            "here; --devices or --slots choose others"
        )
