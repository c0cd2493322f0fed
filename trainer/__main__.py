"""Owns the command line of the trainer: its verbs, their exit codes, and the report of a failure.

It must not import torch before a configuration is known to be good.

    python -m trainer train --config FILE          run one configuration (TOML or JSON)
    python -m trainer check --config FILE...       say what is wrong with each, run nothing
    python -m trainer check --stdin                a JSON list of configurations in, errors out
    python -m trainer schema                       every key with type, default and bounds, as JSON

Exit codes: 0 finished (target, steps, or told to stop by SIGTERM) · 1 crash · 2 bad configuration
or command line · 3 bad data · 4 diverged · 5 out of memory · 130 interrupted from the keyboard.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from trainer.config import (
    Problem,
    examine,
    fill_from_environment,
    load,
    parse,
    schema,
)
from trainer.errors import CRASH_CLASS, CRASH_EXIT, INTERRUPTED_EXIT, ConfigError, TrainerError
from trainer.events import EventWriter, open_sink
from trainer.stopping import Progress
from trainer.timing import PhaseClock


class StopRequest:
    """Remembers that SIGTERM or SIGINT came; the loop asks after each step."""

    def __init__(self) -> None:
        self.signal: int | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def __call__(self) -> bool:
        """Whether the run is to end."""
        return self.signal is not None

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        # A second signal takes its usual course, for those who do not want to wait.
        signal.signal(number, signal.SIG_DFL)


def train_command(path: Path) -> int:
    """`train`: run the configuration in `path`; the exit code of the process."""
    clock, progress, stop = PhaseClock(), Progress(), StopRequest()
    events: EventWriter | None = None
    try:
        events = EventWriter(open_sink(os.environ), clock.read)
        config = parse(fill_from_environment(load(path), os.environ), str(path))
        from trainer.train import train  # noqa: PLC0415 - torch takes a second to import

        train(
            config,
            events=events,
            clock=clock,
            progress=progress,
            stop_requested=stop,
            say=_say,
        )
    except TrainerError as error:
        _report_failure(events, progress, error.failure, str(error))
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the boundary of the process: name it and go
        traceback.print_exc()
        _report_failure(events, progress, CRASH_CLASS, f"{type(error).__name__}: {error}")
        return CRASH_EXIT
    return INTERRUPTED_EXIT if stop.signal == signal.SIGINT else 0


def check_command(paths: Sequence[Path]) -> int:
    """`check --config`: one line per good file, one per problem of a bad one; 0 or 2."""
    good = True
    for path in paths:
        try:
            parse(load(path), str(path))
        except ConfigError as error:
            good = False
            print(error, file=sys.stderr)
        else:
            print(f"{path}: ok")
    return 0 if good else ConfigError.exit_code


def check_stdin_command() -> int:
    """`check --stdin`: for each configuration of a JSON list, the list of its problems; 0 or 2."""
    try:
        configs = json.load(sys.stdin)
    except ValueError as error:
        print(f"standard input is not valid JSON: {error}", file=sys.stderr)
        return ConfigError.exit_code
    if not isinstance(configs, list):
        print("standard input: expected a JSON list of configurations", file=sys.stderr)
        return ConfigError.exit_code
    answers = [[_as_json(problem) for problem in examine(config)[1]] for config in configs]
    json.dump(answers, sys.stdout)
    print()
    return ConfigError.exit_code if any(answers) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run its verb; the exit code of the process."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer", description="Train one small language model to a loss target."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("train", help="run one configuration")
    run.add_argument("--config", type=Path, required=True, metavar="FILE")
    check = verbs.add_parser("check", help="say what is wrong with configurations; run nothing")
    source = check.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, nargs="+", metavar="FILE")
    source.add_argument("--stdin", action="store_true", help="a JSON list of configurations")
    verbs.add_parser("schema", help="every key with type, default and bounds, as JSON")
    options = parser.parse_args(arguments)
    if options.verb == "train":
        return train_command(options.config)
    if options.verb == "check":
        return check_stdin_command() if options.stdin else check_command(options.config)
    json.dump({"keys": schema()}, sys.stdout, indent=2)
    print()
    return 0


def _report_failure(
    events: EventWriter | None, progress: Progress, failure: str, message: str
) -> None:
    print(f"trainer: {message}", file=sys.stderr)
    if events is None:
        return
    try:
        events.emit(
            "run_failed",
            progress.step,
            progress.tokens,
            **{"class": failure, "message": message, "best_loss": progress.best_loss},
        )
    except OSError as error:
        print(f"trainer: the failure could not be recorded: {error}", file=sys.stderr)


def _as_json(problem: Problem) -> dict[str, object]:
    return {
        "key": problem.key,
        "value": problem.value,
        "expected": problem.expected,
        "nearest": problem.nearest,
        "message": str(problem),
    }


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    # Importing torch makes a million objects that all live to the end: do not walk them meanwhile,
    # nor when the interpreter is torn down (0.2 s and 0.3 s of every trial).
    gc.disable()
    code = main()
    gc.freeze()
    sys.exit(code)
