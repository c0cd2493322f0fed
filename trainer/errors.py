"""Owns the ways in which a run can fail, each with the failure class and exit code it reports.

It must not know how any of them is detected, nor where they are printed.

    TrainerError
    +-- ConfigError      class "config"     exit 2   the configuration or the command line is wrong
    +-- DataError        class "data"       exit 3   the data are missing, too short or damaged
    +-- DivergedError    class "diverged"   exit 4   the loss is not finite, or has exploded
    +-- OutOfMemoryError class "oom"        exit 5   the device or the host has no memory left
    +-- CheckpointError  class "checkpoint" exit 6   a checkpoint cannot be read, used or written

Anything else is a crash: class "crash", exit 1.
"""

from __future__ import annotations

from typing import ClassVar

CRASH_CLASS = "crash"
CRASH_EXIT = 1
INTERRUPTED_EXIT = 130


class TrainerError(Exception):
    """A failure with a name of its own; its message is for the person who started the run."""

    failure: ClassVar[str] = CRASH_CLASS
    exit_code: ClassVar[int] = CRASH_EXIT


class ConfigError(TrainerError):
    """The configuration, the environment variables or the command line cannot be used."""

    failure = "config"
    exit_code = 2


class DataError(TrainerError):
    """The corpus is missing, too short for the slices asked for, or damaged."""

    failure = "data"
    exit_code = 3


class DivergedError(TrainerError):
    """The loss became non-finite or rose above the explosion limit."""

    failure = "diverged"
    exit_code = 4


class OutOfMemoryError(TrainerError):
    """An allocation failed, on the device or on the host."""

    failure = "oom"
    exit_code = 5


class CheckpointError(TrainerError):
    """A checkpoint is missing, cut off, of another run, past the end, or cannot be written."""

    failure = "checkpoint"
    exit_code = 6
