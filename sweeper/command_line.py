"""What may be typed: every verb with its options, their help, and what is no value for one of them.

It must not know what a verb does; `--help` waits for nothing but this.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sweeper import __version__
from sweeper.pattern_sets import SETS

EPILOG = """\
STUDY is a path to a study.toml (or its folder) or the name of a built-in study (see `sweep
studies`). Without it: SWEEP_STUDY, else ./study.toml, else a built-in one; the first line says which.

exit codes: 0 done · 1 done, some trials failed for good · 2 study file or command line wrong ·
3 environment not usable · 4 no trial reached the target or a fallback · 5 another orchestrator
holds this study · 6 stopped early by a budget or the breaker · 130 interrupted (safe to repeat)
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line, in the order of `sweep --help`."""
    parser = _Parser(
        prog="sweep",
        description="Find the training configuration that reaches a loss target in the fewest "
        "seconds, and say how sure you are.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sweep {__version__}")
    add = _Verbs(parser)
    _verbs_that_run(add)
    _verbs_that_look(add)
    _verbs_that_report(add)
    _verbs_about_one_trial(add)
    _other_verbs(add)
    _init_options(add.verb("init", "write a study file around a training script of yours"))
    _database_steps(add)
    return parser


class Usage(Exception):  # noqa: N818 - a command line that is wrong
    """What is wrong with the command line, and where to look."""


class _Parser(argparse.ArgumentParser):
    """argparse with our exit code and our manner of saying what to do; no option is abbreviated."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> Any:
        raise Usage(f"{message} (see `{self.prog} --help`)")


class _Verbs:
    """Adds verbs to a parser; `running` are the options of those that run trials."""

    def __init__(self, parser: _Parser) -> None:
        self.common, self.running = _common(), _stage_options()
        self.all = parser.add_subparsers(dest="verb", metavar="COMMAND", parser_class=_Parser)

    def verb(self, name: str, text: str, *parents: _Parser) -> _Parser:
        """One verb with what every verb takes."""
        return self.all.add_parser(
            name, help=text, description=text, parents=[*parents, self.common]
        )

    def with_study(self, command: _Parser) -> _Parser:
        """A verb that is about a study."""
        command.add_argument("study", nargs="?", metavar="STUDY")
        return command


def _verbs_that_run(add: _Verbs) -> None:
    add.with_study(add.verb("stage1", "plan once, then run or resume the broad stage", add.running))
    stage2 = add.with_study(
        add.verb("stage2", "design the fraction around the top k, run it", add.running)
    )
    stage2.add_argument("--from-top", type=_positive, metavar="K", help="default: the study's")
    confirm = add.with_study(
        add.verb("confirm", "repeat the finalists and the baseline", add.running)
    )
    confirm.add_argument("--top", type=_positive, metavar="K", help="default: the study's")
    confirm.add_argument("--repeats", type=_positive, metavar="N", help="default: the study's")
    whole = add.with_study(
        add.verb("run", "stage1, stage2, confirm and report in one go", add.running)
    )
    whole.add_argument("--from-top", type=_positive, metavar="K")
    whole.add_argument("--top", type=_positive, metavar="K")
    whole.add_argument("--repeats", type=_positive, metavar="N")


def _verbs_that_look(add: _Verbs) -> None:
    plan = add.with_study(add.verb("plan", "show a stage's design; run nothing"))
    plan.add_argument("--stage", choices=["1", "2"], default="1")
    plan.add_argument("--from-top", type=_positive, metavar="K")
    plan.add_argument("--svg", type=Path, metavar="DIR", help="also draw the schedules of starts")
    plan.add_argument("--target", type=_number, metavar="X")
    check = add.with_study(add.verb("check", "validate study, trainer, data, database and devices"))
    check.add_argument("--offline", action="store_true", help="no database, no device")
    check.add_argument("--devices", metavar="0,1")
    status = add.with_study(add.verb("status", "where every stage stands"))
    status.add_argument("--watch", action="store_true", help="live, until nobody runs it any more")
    doctor = add.verb(
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


def _verbs_that_report(add: _Verbs) -> None:
    report = add.with_study(add.verb("report", "report.html, report.md and report.json"))
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
    export = add.with_study(add.verb("export", "the production configuration, or all facts"))
    what = export.add_mutually_exclusive_group(required=True)
    what.add_argument("--best", action="store_true", help="the configuration to use")
    what.add_argument("--trials", action="store_true", help="one object per attempt")
    export.add_argument("--format", choices=["toml", "json", "args", "jsonl", "csv", "tensorboard"])
    export.add_argument(
        "--out", type=Path, metavar="FILE", help="default: stdout; tensorboard: a folder"
    )


def _verbs_about_one_trial(add: _Verbs) -> None:
    for name, text in (
        ("show", "one trial: configuration, curve, why it ended"),
        ("logs", "one trial's output"),
        ("cancel", "end one running trial; it is not tried again by itself"),
    ):
        one = add.verb(name, text)
        one.add_argument("trial", metavar="TRIAL", help="an id such as s1-A3 (see `sweep status`)")
        one.add_argument("--study", metavar="STUDY")
        if name == "logs":
            one.add_argument("-f", "--follow", action="store_true")
    extend = add.verb(
        "extend", "go on with a trial that has ended, from its checkpoint", add.running
    )
    extend.add_argument("trial", metavar="TRIAL", help="an id such as s1-A3 (see `sweep status`)")
    extend.add_argument("--study", metavar="STUDY")
    extend.add_argument("--steps", type=_positive, metavar="N", help="to N steps in all")
    extend.add_argument("--to", type=_number, metavar="X", help="until the metric is at X")
    extend.add_argument("--show", action="store_true", help="only show what would be done")


def _other_verbs(add: _Verbs) -> None:
    again = add.with_study(
        add.verb("retry", "run trials that failed, or were rejected, once more", add.running)
    )
    again.add_argument("--failed", action="store_true", required=True)
    dashboard = add.verb("dashboard", "the Optuna dashboard on this storage")
    dashboard.add_argument("--port", type=_positive, default=8080)
    dashboard.add_argument("--host", default="127.0.0.1")
    dashboard.add_argument(
        "--writable",
        action="store_true",
        help="let every visitor delete studies, change notes and forge results",
    )
    foreign = add.verb("import", "take in results of a sweep that was run by something else")
    foreign.add_argument("mapping", type=Path, metavar="MAPPING.toml", help="which column is what")
    add.with_study(foreign)
    foreign.add_argument("--data", type=Path, metavar="DIR", help="where its tables are")
    again = add.verb("replay", "run a stage's decisions again on exported trials: what rules save")
    again.add_argument("trials", type=Path, metavar="TRIALS.jsonl", help="an export of trials")
    add.with_study(again)
    again.add_argument("--target", type=_number, metavar="X", help="instead of the study's")
    again.add_argument("--slots", type=_positive, metavar="N", help="trials at once, virtually")
    add.verb("studies", "list the built-in studies")


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


def _database_steps(add: _Verbs) -> None:
    database = add.all.add_parser("db", help="the embedded database, or an external one's schema")
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
        steps.add_parser(name, help=text, description=text, parents=[add.common])
    for name, text in (
        ("verify", "cross-check run folders, our tables and Optuna's"),
        ("rebuild", "make our tables from run folders, and Optuna's studies from our tables"),
    ):
        add.with_study(steps.add_parser(name, help=text, description=text, parents=[add.common]))


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
