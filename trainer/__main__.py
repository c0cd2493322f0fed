"""Owns the command line of the trainer: its verbs, their exit codes, and the report of a failure.

It must not import torch before a configuration is known to be good.

    python -m trainer train --config FILE          run one configuration (TOML or JSON)
        [--resume PATH|auto] [--extend-steps N]    go on from a checkpoint, to N steps in all
        [--init-from PATH]                         begin with a checkpoint's weights
    python -m trainer check --config FILE...       say what is wrong with each, run nothing
    python -m trainer check --stdin                a JSON list of configurations in, errors out
    python -m trainer schema                       every key with type, default and bounds, as JSON
    python -m trainer schedule --config FILE       the learning rates that would be applied
        [--resume PATH|auto | --after FILE] [--extend-steps N] [--svg FILE]
    python -m trainer bench [--config FILE]        where the time of a step goes, as JSON
    python -m trainer bench --quick                small architectures side by side on names
        [--repeats N] [--steps N] [--svg FILE]
    python -m trainer compare PATH...              the runs in event files or folders, arm by arm
        [--arms FILE] [--level LOSS] [--svg FILE] [--out FILE]
    python -m trainer prepare fineweb|text|stdlib  make token shards
    python -m trainer prepare bpe FILE             train a byte-level BPE on a text

Exit codes: 0 finished (target, steps, patience, or told to stop by SIGTERM) · 1 crash · 2 bad
configuration or command line · 3 bad data · 4 diverged · 5 out of memory · 6 bad checkpoint ·
130 interrupted from the keyboard.
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
from typing import Any

from trainer.config import (
    examine,
    fill_from_environment,
    load,
    parse,
    schema,
)
from trainer.continuation import Continuation
from trainer.errors import CRASH_CLASS, CRASH_EXIT, INTERRUPTED_EXIT, ConfigError, TrainerError
from trainer.events import EventWriter, open_sink
from trainer.files import write_whole
from trainer.settings import Problem
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


def train_command(path: Path, continuation: Continuation) -> int:
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
            continuation=continuation,
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


def schedule_command(
    path: Path, continuation: Continuation, svg: Path | None, after: Path | None = None
) -> int:
    """`schedule`: print the learning rates that `train` with the same options would apply.

    `after` is the configuration of a run that this one will go on from, before there is a checkpoint.
    """
    from trainer.origin import planned_schedule  # noqa: PLC0415 - reads checkpoints with torch
    from trainer.schedule_view import as_svg, base_rates, described  # noqa: PLC0415

    config = parse(fill_from_environment(load(path), os.environ), str(path))
    former = parse(load(after), str(after)) if after else None
    schedule, first, max_steps = planned_schedule(config, continuation, former)
    print(described(schedule, first, max_steps, base_rates(config.optim)))
    if svg is not None:
        write_whole(svg, as_svg(schedule, first, max_steps).encode())
    return 0


def bench_command(path: Path | None, steps: int, out: Path | None) -> int:
    """`bench`: measure the configuration in `path`; JSON on standard output, or in `out`."""
    clock = PhaseClock()
    config = parse(load(path) if path else {}, str(path))
    from trainer.bench import measure  # noqa: PLC0415 - torch takes a second to import

    text = json.dumps(measure(config, steps=steps, clock=clock), indent=2, allow_nan=False) + "\n"
    if out is None:
        sys.stdout.write(text)
    else:
        write_whole(out, text.encode())
    return 0


def quick_bench_command(options: argparse.Namespace) -> int:
    """`bench --quick`: the fixed small benchmark of architectures; a table, JSON and a figure."""
    from trainer.quick import architectures  # noqa: PLC0415 - torch takes a second to import

    arms = architectures(steps=options.steps or 1000, repeats=options.repeats, say=_say)
    title = "Training (thin) and validation loss of small architectures on names, by step"
    return _show_comparison(arms, options, title)


def compare_command(options: argparse.Namespace) -> int:
    """`compare`: the outputs of finished runs, arm by arm."""
    from trainer.comparison import arms_of, read_runs  # noqa: PLC0415 - for this verb only

    named = load(options.arms) if options.arms else {}
    if not all(isinstance(keys, dict) for keys in named.values()):
        raise ConfigError(f"{options.arms}: expected a table of dotted keys for each arm")
    arms = arms_of(read_runs(options.path), named)
    title = "Training loss (running mean, thin) and validation loss of every run, by step"
    return _show_comparison(arms, options, title)


def _show_comparison(arms: Any, options: argparse.Namespace, title: str) -> int:
    from trainer.comparison import compare  # noqa: PLC0415 - for these verbs only
    from trainer.comparison_view import as_markdown, as_svg  # noqa: PLC0415

    document = compare(arms, options.level)
    print(as_markdown(document), end="")
    if options.out is not None:
        text = json.dumps(document, indent=2, allow_nan=False) + "\n"
        write_whole(options.out, text.encode())
    if options.svg is not None:
        write_whole(options.svg, as_svg(arms, document["level"], title).encode())
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run its verb; the exit code of the process.

    It may be called in a child forked from a process that has called `trainer.preload()`.
    """
    options = _command_line().parse_args(arguments)
    try:
        return _run(options)
    except TrainerError as error:
        print(f"trainer: {error}", file=sys.stderr)
        return error.exit_code


def _run(options: argparse.Namespace) -> int:
    if options.verb == "check":
        return check_stdin_command() if options.stdin else check_command(options.config)
    if options.verb == "schema":
        json.dump({"keys": schema()}, sys.stdout, indent=2)
        print()
        return 0
    if options.verb == "prepare":
        from trainer.prepare import prepare  # noqa: PLC0415 - numpy is needed for this verb only

        return prepare(options, _say)
    if options.verb == "bench":
        if options.quick:
            return quick_bench_command(options)
        return bench_command(options.config, options.steps or 20, options.out)
    if options.verb == "compare":
        return compare_command(options)
    continuation = Continuation(
        resume=options.resume,
        extend_steps=options.extend_steps,
        init_from=options.init_from,
    )
    if options.verb == "schedule":
        return schedule_command(options.config, continuation, options.svg, options.after)
    return train_command(options.config, continuation)


def _command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer", description="Train one small language model to a loss target."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("train", help="run one configuration")
    show = verbs.add_parser("schedule", help="the learning rates that would be applied")
    for verb in (run, show):
        verb.add_argument("--config", type=Path, required=True, metavar="FILE")
        verb.add_argument("--resume", metavar="PATH|auto", help="go on from a checkpoint")
        verb.add_argument(
            "--extend-steps", type=_positive, metavar="N", help="go on to N steps in all"
        )
        verb.add_argument("--init-from", metavar="PATH", help="begin with a checkpoint's weights")
    show.add_argument(
        "--after", type=Path, metavar="FILE", help="go on from the end of this configuration's run"
    )
    show.add_argument("--svg", type=Path, metavar="FILE", help="also draw it there")
    check = verbs.add_parser("check", help="say what is wrong with configurations; run nothing")
    source = check.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, nargs="+", metavar="FILE")
    source.add_argument("--stdin", action="store_true", help="a JSON list of configurations")
    verbs.add_parser("schema", help="every key with type, default and bounds, as JSON")
    bench = verbs.add_parser("bench", help="where the time of a step goes, as JSON")
    bench.add_argument("--config", type=Path, metavar="FILE")
    bench.add_argument("--steps", type=_positive, metavar="N", help="default 20, or 1000 if quick")
    bench.add_argument(
        "--quick", action="store_true", help="small architectures side by side, on names"
    )
    bench.add_argument("--repeats", type=_positive, default=3, metavar="N", help="seeds, if quick")
    compare = verbs.add_parser("compare", help="finished runs side by side, arm by arm")
    compare.add_argument("path", type=Path, nargs="+", help="event files, or folders with them")
    compare.add_argument(
        "--arms", type=Path, metavar="FILE", help="TOML: for each arm a table of dotted keys"
    )
    for verb in (bench, compare):
        verb.add_argument("--level", type=float, metavar="LOSS", help="convergence is until there")
        verb.add_argument("--svg", type=Path, metavar="FILE", help="all curves in one figure")
        verb.add_argument("--out", type=Path, metavar="FILE", help="the numbers as JSON")
    _prepare_options(verbs.add_parser("prepare", help="make token shards"))
    return parser


def _prepare_options(parser: argparse.ArgumentParser) -> None:
    sources = parser.add_subparsers(dest="source", required=True)
    fineweb = sources.add_parser("fineweb", help="download FineWeb in GPT-2 tokens")
    fineweb.add_argument(
        "--shards", type=_positive, default=1, help="training shards of 100M tokens (default 1)"
    )
    text = sources.add_parser("text", help="text files, each a document")
    text.add_argument("files", type=Path, nargs="+", metavar="FILE")
    stdlib = sources.add_parser("stdlib", help="the source of Python's standard library")
    stdlib.add_argument("--max-bytes", type=_positive, default=30_000_000)
    bpe = sources.add_parser("bpe", help="merges of a byte-level BPE, trained on a text")
    bpe.add_argument("file", type=Path, metavar="FILE")
    bpe.add_argument("--vocabulary", type=_positive, default=16_000, help="ids (default 16,000)")
    bpe.add_argument(
        "--tokenizers",
        action="store_true",
        help="train with the package tokenizers, which is faster",
    )
    bpe.add_argument("--out", type=Path, required=True, metavar="FILE")
    for source in (text, stdlib):
        source.add_argument(
            "--merges", type=Path, metavar="FILE", help="GPT-2's vocab.bpe; without it, bytes"
        )
        source.add_argument("--validation-share", type=_share, default=0.1)
    for source in (fineweb, text, stdlib):
        source.add_argument("--out", type=Path, required=True, metavar="DIR")


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number at least 1")
    return number


def _share(text: str) -> float:
    if not 0 < (share := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0 and below 1")
    return share


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
