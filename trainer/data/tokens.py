"""Owns where tokens lie and how windows are cut from them: on the device, or in the host's files.

It must not know in which order windows are seen, nor what the tokens mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Parts = Sequence[npt.NDArray[Any]]
"""Arrays (N,) of unsigned integers that follow one another."""

CPU_COPY_BYTES = 2**28
"""On a CPU, tokens of a larger corpus are read from their files instead of being copied."""

GPU_SHARE = 0.25
"""On a GPU, tokens that need more than this share of the free memory stay on the host."""


class TokenStore(Protocol):
    """A long row of tokens from which windows are cut."""

    @property
    def index_device(self) -> torch.device:
        """Where the starts of windows are wanted."""

    def __len__(self) -> int:
        """How many tokens there are."""

    def rows(self, starts: Tensor, length: int) -> Tensor:
        """(B, length) int64 on the computing device: the windows that begin at `starts` (B,)."""


class DeviceTokens:
    """All tokens in one tensor on the device, in the width in which they are stored."""

    def __init__(self, parts: Parts, device: torch.device) -> None:
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        # Signed tensors of 16 bits can be indexed everywhere; the sign is masked away in `rows`.
        if whole.dtype.itemsize > 1:
            whole = whole.view(f"i{whole.dtype.itemsize}")
        self._mask = (1 << 8 * whole.dtype.itemsize) - 1
        self.tensor = torch.tensor(whole).to(device)
        self._within: dict[int, Tensor] = {}

    @property
    def index_device(self) -> torch.device:
        """The device of the tokens."""
        return self.tensor.device

    def __len__(self) -> int:
        return len(self.tensor)

    def rows(self, starts: Tensor, length: int) -> Tensor:
        """(B, length) int64, without any work on the host."""
        if length not in self._within:
            self._within[length] = torch.arange(length, device=self.tensor.device)
        return self.tensor[starts[:, None] + self._within[length]].long() & self._mask


class HostTokens:
    """Tokens in the host's arrays (memory maps, as a rule); each batch is copied to the device."""

    def __init__(self, parts: Parts, device: torch.device) -> None:
        self._parts, self._device = list(parts), device
        self._ends = np.cumsum([len(part) for part in parts])

    @property
    def index_device(self) -> torch.device:
        """The host."""
        return torch.device("cpu")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def rows(self, starts: Tensor, length: int) -> Tensor:
        """(B, length) int64; on a GPU through page-locked memory, without waiting for the copy."""
        windows = np.empty((len(starts), length), np.int64)
        for row, start in zip(windows, starts.tolist(), strict=True):
            self._fill(row, start)
        rows = torch.from_numpy(windows)
        if self._device.type != "cuda":
            return rows.to(self._device)
        return rows.pin_memory().to(self._device, non_blocking=True)

    def _fill(self, row: npt.NDArray[np.int64], start: int) -> None:
        done = 0
        while done < len(row):
            number = int(np.searchsorted(self._ends, start + done, side="right"))
            part = self._parts[number]
            offset = start + done - (int(self._ends[number]) - len(part))
            piece = part[offset : offset + len(row) - done]
            row[done : done + len(piece)] = piece
            done += len(piece)


def place_tokens(parts: Parts, device: torch.device, residence: str = "device") -> TokenStore:
    """The tokens on the device, or on the host; "auto" takes the device where they fit."""
    if residence == "auto":
        size = sum(part.nbytes for part in parts)
        room = (
            int(torch.cuda.mem_get_info(device)[0] * GPU_SHARE)
            if device.type == "cuda"
            else CPU_COPY_BYTES
        )
        residence = "device" if size <= room else "host"
    return DeviceTokens(parts, device) if residence == "device" else HostTokens(parts, device)
