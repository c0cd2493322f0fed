"""The program's entry: each verb is one call into `commands`, errors become exit codes.

It must not know how anything is done; heavy imports happen inside the verbs.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import sys
from collections.abc import Sequence

from sweeper.command_line import Usage, build_parser
from sweeper.errors import EXIT_INTERRUPTED, EXIT_STUDY, SweepError

COLLECT_AFTER = 20_000
"""New objects between rounds of the garbage collector: with the usual 700 they take 6 % of `status`,
which is imports mostly."""
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
    except Usage as error:  # nothing was parsed: the word itself says whether JSON is wanted
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
