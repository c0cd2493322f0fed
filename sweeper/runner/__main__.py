"""`python -m sweeper.runner SPEC`: reads a spec, runs it, exits.

It must not know anything but how to call the attempt. Exit codes: 0 the outcome file is written;
2 no usable spec; 74 the run folder is full, read-only or gone; 75 another runner has the attempt.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sweeper.runner.attempt import EXIT_SPEC, run
from sweeper.spec import AttemptSpec, SpecError


def main(arguments: list[str]) -> int:
    """Run the spec whose path is the only argument; returns the exit code."""
    if len(arguments) != 1:
        print("usage: python -m sweeper.runner SPEC", file=sys.stderr)
        return EXIT_SPEC
    try:
        spec = AttemptSpec.read(Path(arguments[0]))
    except (SpecError, OSError) as error:
        print(f"runner: {arguments[0]}: {error}", file=sys.stderr)
        return EXIT_SPEC
    return run(spec)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
