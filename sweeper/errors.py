"""The tree of errors, and the exit code that each becomes at the command line.

It must not know who raises them, or how they are printed.

    SweepError
    ├── StudyError                 2  the study file or the command line is wrong
    │   ├── StudyFileError            one place in a study file, with line and key
    │   ├── PlanError                 a plan cannot be made, or not yet (stage 2 before stage 1)
    │   │   └── NothingFinished    1  all trials failed of a group that others build on
    │   └── PlanChangedError          the study differs from its frozen plan
    ├── EnvironmentUnusable        3  database, device, data, trainer command
    │   ├── DatabaseUnusable
    │   │   └── DatabaseGone         waiting may help
    │   ├── DeviceUnusable
    │   ├── TrainerUnusable
    │   ├── MixedFingerprints         another device, version or data than the study's times are of
    │   └── DiskUnusable
    ├── NothingReached             4  no trial reached the target or any fallback
    └── StudyBusy                  5  another orchestrator holds this study
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_SOME_FAILED = 1
EXIT_STUDY = 2
EXIT_ENVIRONMENT = 3
EXIT_NOTHING_REACHED = 4
EXIT_BUSY = 5
EXIT_STOPPED_EARLY = 6
EXIT_INTERRUPTED = 130


class SweepError(Exception):
    """Something a user can act on: the message has the value, the expectation and the next move."""

    exit_code = EXIT_SOME_FAILED


class StudyError(SweepError):
    """The study file or the command line is wrong."""

    exit_code = EXIT_STUDY


class StudyFileError(StudyError):
    """One wrong place in a study file.

    Args:
        file: Path as the user gave it.
        line: 1-based line, or None when the place has no line (a missing table).
        key: Dotted key path, for example `stage1.group[2].vary`.
        problem: What was got, what is allowed, the nearest known key, what to do.
    """

    def __init__(self, *, file: str, line: int | None, key: str, problem: str) -> None:
        self.file, self.line, self.key, self.problem = file, line, key, problem
        place = f"{file}:{line}" if line else file
        super().__init__(f"{place}: {key}: {problem}" if key else f"{place}: {problem}")


class PlanError(StudyError):
    """A plan cannot be made from this study, or not yet."""


class NothingFinished(PlanError):  # noqa: N818 - it reads as what it says
    """Every trial failed of a group that another one builds on: its plan cannot be completed."""

    exit_code = EXIT_SOME_FAILED


class PlanChangedError(StudyError):
    """The study differs from the plan that was frozen when its stage began."""


class EnvironmentUnusable(SweepError):  # noqa: N818 - it reads as what it says
    """The machine cannot run this: database, device, data or trainer command."""

    exit_code = EXIT_ENVIRONMENT


class DatabaseUnusable(EnvironmentUnusable):
    """The database cannot be reached, refuses us, or has the wrong schema."""


class DatabaseGone(DatabaseUnusable):
    """The database cannot be used now but may be later: restarting, unreachable, full, crowded.

    Nothing was recorded by the call that raised it; wait and repeat the call.
    """


class DeviceUnusable(EnvironmentUnusable):
    """A device that was asked for is missing, busy or quarantined."""


class TrainerUnusable(EnvironmentUnusable):
    """The trainer command cannot be started, or refuses every configuration."""


class MixedFingerprints(EnvironmentUnusable):
    """A trial ran under another fingerprint than the study's others: their times do not compare."""


class CheckpointUnusable(EnvironmentUnusable):
    """A checkpoint that a trial is to begin with is not there, or nothing could be done with it."""


class DiskUnusable(EnvironmentUnusable):
    """A run folder cannot be written."""


class Interrupted(SweepError):  # noqa: N818 - it reads as what it says
    """A budget or a person ended this before what was asked for was done; repeat the command."""

    exit_code = EXIT_STOPPED_EARLY


class NothingReached(SweepError):  # noqa: N818 - it reads as what it says
    """No trial reached the target or a fallback, so there is no best configuration."""

    exit_code = EXIT_NOTHING_REACHED


class StudyBusy(SweepError):  # noqa: N818 - it reads as what it says
    """Another orchestrator holds this study."""

    exit_code = EXIT_BUSY
