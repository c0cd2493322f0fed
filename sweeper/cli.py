"""The command line: each verb is one call into `app`, errors become exit codes.

It must not know how anything is done; heavy imports happen inside the verbs.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweeper import __version__
from sweeper.errors import EXIT_INTERRUPTED, EXIT_STUDY, SweepError
from sweeper.pattern_sets import SETS

COLLECT_AFTER = 20_000
"""New objects between rounds of the garbage collector: with the usual 700 they take 6 % of `status`,
which is imports mostly."""
EPILOG = """\
STUDY is a path to a study.toml (or its folder) or the name of a built-in study (see `sweep
studies`). Without it: SWEEP_STUDY, else ./study.toml, else a built-in one; the first line says which.

exit codes: 0 done · 1 done, some trials failed for good · 2 study file or command line wrong ·
3 environment not usable · 4 no trial reached the target or a fallback · 5 another orchestrator
holds this study · 6 stopped early by a budget or the breaker · 130 interrupted (safe to repeat)
"""

VERBS = {
    "stage1": "stages:stage1",
    "stage2": "stages:stage2",
    "confirm": "stages:confirm",
    "run": "stages:run",
    "plan": "look:plan",
    "check": "look:check",
    "status": "status:status",
    "show": "look:show",
    "logs": "look:logs",
    "studies": "look:studies",
    "doctor": "doctor:doctor",
    "init": "scaffold:init",
    "report": "output:report",
    "export": "output:export",
    "dashboard": "output:dashboard",
    "cancel": "repair:cancel",
    "retry": "repair:retry",
    "extend": "extend:extend",
    "db": "database:db",
    "replay": "replay:replay_trials",
    "import": "foreign:import_results",
}


def _positive(text: str) -> int:
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value != value or value in (float("inf"), float("-inf")):  # noqa: PLR0124 - NaN is not itself
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number")
    return value


def _hours(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected hours above 0")
    return value


def _seconds(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected seconds above 0")
    return value


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 0")
    return int(text)


class _Usage(Exception):  # noqa: N818 - a command line that is wrong
    """What is wrong with the command line, and where to look."""


class _Parser(argparse.ArgumentParser):
    """argparse with our exit code and our manner of saying what to do; no option is abbreviated."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> Any:
        raise _Usage(f"{message} (see `{self.prog} --help`)")


def _common() -> _Parser:
    common = _Parser(add_help=False)
    group = common.add_argument_group("everywhere")
    group.add_argument("--database", metavar="URL", help="Postgres to use (SWEEP_DATABASE_URL)")
    group.add_argument("--home", type=Path, metavar="DIR", help="default ./.sweep (SWEEP_HOME)")
    group.add_argument("--scale", metavar="NAME", help="the study's own [scale.NAME] form")
    group.add_argument(
        "--node-kind",
        metavar="NAME",
        help="the study's block on a cluster's nodes of that kind (stages: `each` is all of them)",
    )
    group.add_argument("--json", action="store_true", help="one JSON document on stdout")
    group.add_argument("-v", "--verbose", action="store_true")
    group.add_argument("-q", "--quiet", action="store_true")
    group.add_argument("--no-color", action="store_true", help="as NO_COLOR")
    return common


def _stage_options() -> _Parser:
    options = _Parser(add_help=False)
    group = options.add_argument_group("running")
    group.add_argument("--devices", metavar="0,1", help="GPU indices or UUIDs")
    group.add_argument("--slots", type=_positive, metavar="N", help="trials at once on CPU")
    group.add_argument("--target", type=_number, metavar="X", help="instead of the study's")
    group.add_argument("--max-hours", type=_hours, metavar="H", help="start no trial after that")
    group.add_argument("--max-trials", type=_positive, metavar="N", help="start at most N trials")
    group.add_argument(
        "--cold", action="store_true", help="start every trainer anew, never fork a warm one"
    )
    group.add_argument(
        "--executor", choices=["local", "ray"], default="local", help="where trials run"
    )
    group.add_argument("--address", metavar="HOST:PORT", help="the Ray cluster's (RAY_ADDRESS)")
    group.add_argument(
        "--exploratory",
        action="store_true",
        help="go on although the study changed after its plan was frozen (marked in every report)",
    )
    group.add_argument(
        "--retry-failed",
        action="store_true",
        help="run trials once more that failed, or were rejected, for good",
    )
    return options


def _init_options(init: _Parser) -> None:
    init.add_argument("script", type=Path, metavar="SCRIPT", help="a Python script or a program")
    init.epilog = (
        "What follows -- is given to the script in every trial; {NAME} in it is filled in."
    )
    init.add_argument(
        "--out", type=Path, metavar="FILE", help="default: study.toml beside the script"
    )
    init.add_argument(
        "--cwd", type=Path, metavar="DIR", help="where it runs; default: its own folder"
    )
    init.add_argument("--force", action="store_true", help="replace a file that is there")
    init.add_argument("--name", metavar="NAME", help="the study's name; default: the script's")
    init.add_argument("--metric", metavar="NAME", help="default: what is found in its output")
    init.add_argument("--target", type=_number, metavar="X", help="the metric's value to reach")
    init.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="NAME=RANGE",
        help="lr=1e-4..1e-2:log, batch=8..64:step=8, optimizer=adamw,sgd; @X at the end: the baseline",
    )
    how = init.add_mutually_exclusive_group()
    how.add_argument("--set", choices=list(SETS), help="how its output is read; default: tries all")
    how.add_argument(
        "--pattern", action="append", default=[], metavar="REGEX", help="how its output is read"
    )
    init.add_argument("--steps", type=_positive, metavar="N", help="most steps of a trial")
    init.add_argument("--trial-s", type=_seconds, default=600.0, metavar="S", help="default: 600")
    init.add_argument(
        "--gpus", type=_count, metavar="N", help="per trial; default: 1, or 0 without any"
    )
    init.add_argument("--devices", metavar="0,1", help="where it is tried")
    init.add_argument(
        "--python", metavar="PATH", help="its interpreter; default: the one running sweep"
    )
    init.add_argument(
        "--deadline", type=_seconds, default=60.0, metavar="S", help="of the brief run; default: 60"
    )
    init.add_argument("--no-run", action="store_true", help="do not try it")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    common, running = _common(), _stage_options()
    parser = _Parser(
        prog="sweep",
        description="Find the training configuration that reaches a loss target in the fewest "
        "seconds, and say how sure you are.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sweep {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", parser_class=_Parser)

    def verb(name: str, text: str, *parents: _Parser) -> _Parser:
        return verbs.add_parser(name, help=text, description=text, parents=[*parents, common])

    def with_study(command: _Parser) -> _Parser:
        command.add_argument("study", nargs="?", metavar="STUDY")
        return command

    with_study(verb("stage1", "plan once, then run or resume the broad stage", running))
    stage2 = with_study(verb("stage2", "design the fraction around the top k, run it", running))
    stage2.add_argument("--from-top", type=_positive, metavar="K", help="default: the study's")
    confirm = with_study(verb("confirm", "repeat the finalists and the baseline", running))
    confirm.add_argument("--top", type=_positive, metavar="K", help="default: the study's")
    confirm.add_argument("--repeats", type=_positive, metavar="N", help="default: the study's")
    whole = with_study(verb("run", "stage1, stage2, confirm and report in one go", running))
    whole.add_argument("--from-top", type=_positive, metavar="K")
    whole.add_argument("--top", type=_positive, metavar="K")
    whole.add_argument("--repeats", type=_positive, metavar="N")
    plan = with_study(verb("plan", "show a stage's design; run nothing"))
    plan.add_argument("--stage", choices=["1", "2"], default="1")
    plan.add_argument("--from-top", type=_positive, metavar="K")
    plan.add_argument("--svg", type=Path, metavar="DIR", help="also draw the schedules of starts")
    plan.add_argument("--target", type=_number, metavar="X")
    check = with_study(verb("check", "validate study, trainer, data, database and devices"))
    check.add_argument("--offline", action="store_true", help="no database, no device")
    check.add_argument("--devices", metavar="0,1")
    status = with_study(verb("status", "where every stage stands"))
    status.add_argument("--watch", action="store_true", help="live, until nobody runs it any more")
    doctor = verb(
        "doctor", "what is wrong with this machine, or with training runs; what to change"
    )
    doctor.add_argument(
        "what",
        nargs="?",
        metavar="STUDY|TRIAL|FILE",
        help="a study's runs, one trial's, a run folder or a file of events; without it: this machine",
    )
    doctor.add_argument("--study", metavar="STUDY", help="whose trial it is")
    doctor.add_argument("--rules", type=Path, metavar="FILE", help="further rules (doctor.toml)")
    report = with_study(verb("report", "report.html, report.md and report.json"))
    report.add_argument("--out", type=Path, metavar="DIR")
    report.add_argument("--target", type=_number, metavar="X")
    report.add_argument("--against", metavar="B", help="another study here, or its report.json")
    report.add_argument(
        "--across", action="store_true", help="compare times also across different fingerprints"
    )
    report.add_argument(
        "--claims",
        action="store_true",
        help="only the claims beside the study (claims.toml); their arithmetic needs no run",
    )
    report.add_argument(
        "--check", action="store_true", help="compute the report that is there again from the facts"
    )
    export = with_study(verb("export", "the production configuration, or all facts"))
    what = export.add_mutually_exclusive_group(required=True)
    what.add_argument("--best", action="store_true", help="the configuration to use")
    what.add_argument("--trials", action="store_true", help="one object per attempt")
    export.add_argument("--format", choices=["toml", "json", "args", "jsonl", "csv", "tensorboard"])
    export.add_argument(
        "--out", type=Path, metavar="FILE", help="default: stdout; tensorboard: a folder"
    )
    for name, text in (
        ("show", "one trial: configuration, curve, why it ended"),
        ("logs", "one trial's output"),
        ("cancel", "end one running trial; it is not tried again by itself"),
    ):
        one = verb(name, text)
        one.add_argument("trial", metavar="TRIAL", help="an id such as s1-A3 (see `sweep status`)")
        one.add_argument("--study", metavar="STUDY")
        if name == "logs":
            one.add_argument("-f", "--follow", action="store_true")
    extend = verb("extend", "go on with a trial that has ended, from its checkpoint", running)
    extend.add_argument("trial", metavar="TRIAL", help="an id such as s1-A3 (see `sweep status`)")
    extend.add_argument("--study", metavar="STUDY")
    extend.add_argument("--steps", type=_positive, metavar="N", help="to N steps in all")
    extend.add_argument("--to", type=_number, metavar="X", help="until the metric is at X")
    extend.add_argument("--show", action="store_true", help="only show what would be done")
    again = with_study(
        verb("retry", "run trials that failed, or were rejected, once more", running)
    )
    again.add_argument("--failed", action="store_true", required=True)
    dashboard = verb("dashboard", "the Optuna dashboard on this storage")
    dashboard.add_argument("--port", type=_positive, default=8080)
    dashboard.add_argument("--host", default="127.0.0.1")
    dashboard.add_argument(
        "--writable",
        action="store_true",
        help="let every visitor delete studies, change notes and forge results",
    )
    foreign = verb("import", "take in results of a sweep that was run by something else")
    foreign.add_argument("mapping", type=Path, metavar="MAPPING.toml", help="which column is what")
    with_study(foreign)
    foreign.add_argument("--data", type=Path, metavar="DIR", help="where its tables are")
    again = verb("replay", "run a stage's decisions again on exported trials: what rules save")
    again.add_argument("trials", type=Path, metavar="TRIALS.jsonl", help="an export of trials")
    with_study(again)
    again.add_argument("--target", type=_number, metavar="X", help="instead of the study's")
    again.add_argument("--slots", type=_positive, metavar="N", help="trials at once, virtually")
    verb("studies", "list the built-in studies")
    _init_options(verb("init", "write a study file around a training script of yours"))
    database = verbs.add_parser("db", help="the embedded database, or an external one's schema")
    steps = database.add_subparsers(
        dest="step",
        metavar="up|down|status|upgrade|url|verify|rebuild",
        required=True,
        parser_class=_Parser,
    )
    for name, text in (
        ("up", "start the embedded database and keep it running"),
        ("down", "stop it"),
        ("status", "is it running, which schema has it"),
        ("upgrade", "bring the schema up to date"),
        ("url", "print its URL (holds the password: for tools that need it)"),
    ):
        steps.add_parser(name, help=text, description=text, parents=[common])
    for name, text in (
        ("verify", "cross-check run folders, our tables and Optuna's"),
        ("rebuild", "make our tables from run folders, and Optuna's studies from our tables"),
    ):
        with_study(steps.add_parser(name, help=text, description=text, parents=[common]))
    return parser


def _failed(message: str, code: int, *, as_json: bool) -> int:
    """Say it to people, and with --json in the one document on stdout."""
    print(f"sweep: {message}", file=sys.stderr)  # noqa: T201
    if as_json:
        print(json.dumps({"error": message, "exit": code}, ensure_ascii=False))  # noqa: T201
    return code


def _keep_off_the_process_list(url: str) -> None:
    """Start again without --database, whose password everybody on this machine could read."""
    words, rest = list(sys.orig_argv), []
    while words:
        word = words.pop(0)
        if word == "--database":
            words.pop(0)
        elif not word.startswith("--database="):
            rest.append(word)
    if len(rest) < len(sys.orig_argv):
        rest[0] = sys.executable
        os.execve(sys.executable, rest, os.environ | {"SWEEP_DATABASE_URL": url})  # noqa: S606


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is ours, and what follows `--` in `sweep init SCRIPT -- ...`, which is the script's."""
    before, after = list(words), []
    if "--" in before and "init" in before[: before.index("--")]:
        at = before.index("--")
        before, after = before[:at], before[at + 1 :]
    return before, after


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    if argv is None:  # the process is ours alone
        gc.set_threshold(COLLECT_AFTER)
        atexit.register(gc.freeze)  # or the interpreter walks every object once more before it ends
    parser = build_parser()
    words, after = _split(sys.argv[1:] if argv is None else argv)
    try:
        args = parser.parse_args(words)
        args.arguments, args.words = after, words
    except _Usage as error:  # nothing was parsed: the word itself says whether JSON is wanted
        as_json = "--json" in (sys.argv[1:] if argv is None else argv)
        return _failed(str(error), EXIT_STUDY, as_json=as_json)
    if args.verb is None:
        parser.print_help()
        return 0
    if argv is None and args.database:
        _keep_off_the_process_list(args.database)
    if os.environ.get("NO_COLOR"):
        args.no_color = True
    module, _, name = VERBS[args.verb].partition(":")
    try:
        # imported here because `--help` must not wait for it
        command = getattr(importlib.import_module(f"sweeper.commands.{module}"), name)
        code: int = command(args)
    except SweepError as error:
        return _failed(str(error), error.exit_code, as_json=args.json)
    except KeyboardInterrupt:
        message = "interrupted; the same command goes on from here"
        return _failed(message, EXIT_INTERRUPTED, as_json=args.json)
    except BrokenPipeError:  # the reader of our output went away: not our error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


if __name__ == "__main__":
    sys.exit(main())
