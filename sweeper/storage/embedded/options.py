"""How a server is run, and how a command tells its supervisor so.

It must not know what the settings mean; they hold no secret, because they are on a command line.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

LOCK_TAKEN = 75  # the supervisor's exit code when another one is there


@dataclass(frozen=True)
class Options:
    """How a server is run; the command that starts it decides.

    Args:
        settings: Settings of Postgres on top of ours, for example `{"fsync": "off"}` in tests.
        linger_s: How long the server outlives its last holder.
        programs: A folder with `postgres` and `initdb` to use instead of looking for one.
        state_root: Where root's data go; an ordinary user's are in the home.
    """

    settings: Mapping[str, str] = field(default_factory=dict)
    linger_s: float = 3.0
    programs: Path | None = None
    state_root: Path = Path("/var/lib/sweep")

    def arguments(self) -> list[str]:
        """The same as a command line, for `parse`."""
        found = [f"--linger={self.linger_s}", f"--state-root={self.state_root}"]
        found += [f"--set={name}={value}" for name, value in self.settings.items()]
        return [*found, f"--programs={self.programs}"] if self.programs else found


def parse(arguments: list[str]) -> tuple[Path, Options]:
    """The database's folder and the options, from the supervisor's command line."""
    parser = argparse.ArgumentParser(prog="sweeper.storage.embedded.supervisor")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--linger", type=float, required=True)
    parser.add_argument("--state-root", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--programs", type=Path)
    given = parser.parse_args(arguments)
    return given.folder, Options(
        settings=dict(setting.split("=", maxsplit=1) for setting in given.set),
        linger_s=given.linger,
        programs=given.programs,
        state_root=given.state_root,
    )
