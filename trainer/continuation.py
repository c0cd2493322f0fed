"""Owns the options with which a run goes on from an earlier one.

It must not import torch, nor know what a checkpoint holds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Continuation:
    """What the command line asks a run to begin with instead of fresh weights.

    `resume` is a checkpoint's path, or "auto" for the newest in the checkpoint folder (and a fresh
    start when there is none); `extend_steps` is the new number of steps in all; `init_from` is a
    checkpoint of which only the weights are taken.
    """

    resume: str | None = None
    extend_steps: int | None = None
    init_from: str | None = None
