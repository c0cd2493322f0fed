"""The verb `init`: a study file around a training script, by flags or by questions on a terminal.

It must not know how the script is run, or what the file says beyond what goes into it.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sweeper import study_file
from sweeper.app import App
from sweeper.commands.stages import check_command
from sweeper.commands.trial_run import OWN, PROTOCOL, Seen, run_briefly
from sweeper.design.groups import plan_stage1
from sweeper.devices import find_gpus
from sweeper.errors import EXIT_DONE, DiskUnusable, StudyError, StudyFileError
from sweeper.executors.local import NOT_FOR_TRAINERS
from sweeper.paths import write_whole
from sweeper.pattern_sets import SETS
from sweeper.scaffold.draft import Draft
from sweeper.scaffold.options import Options, from_help, from_source
from sweeper.scaffold.parameter import Swept, read_parameter
from sweeper.space import Space
from sweeper.study import Study
from sweeper.trial import PlannedTrial

HELP_WITHIN_S = 20.0
_PARSERS = re.compile(
    r"\b(HfArgumentParser|click|typer|tyro|fire|jsonargparse|LightningCLI|absl|simple_parsing|docopt)\b"
)


@dataclass(frozen=True)
class Script:
    """The script: where it is, the folder it runs in, what starts it there, the options it takes."""

    path: Path
    folder: Path
    start: tuple[str, ...]
    options: Options


def init(args: argparse.Namespace) -> int:
    """Write a study file around a script, after reading its metric in one brief run."""
    with App(args) as app:
        asks = sys.stdin.isatty() and sys.stdout.isatty() and not args.json
        out: Path = args.out or args.script.parent / "study.toml"
        _may_be_written(out, force=args.force)
        script = _script(args)
        found = ", ".join(option.show() for option in script.options.found) or "none"
        app.say(f"script {script.path}: options: {found} ({script.options.how})")
        parameters = _parameters(args.param, script.options, asks=asks)
        draft = _draft(args, script, parameters, out)
        seen = None
        if not args.no_run:
            app.say(f"trying it for at most {args.deadline:g} s: {shlex.join(draft.command)}")
            seen = _try(args, draft, out)
            draft = _with_reading(draft, seen, args)
            app.say(seen.words() + f"; clock: {seen.clock}")
        elif draft.patterns is None:
            raise StudyError("--no-run: how is the script read? Name a --set, or give a --pattern")
        draft = replace(draft, target=_target(args, draft.metric, seen, asks=asks))
        study = _loaded(draft, out)
        plan = plan_stage1(study, {})
        _may_be_written(out, force=args.force)
        try:
            write_whole(out.absolute(), draft.text())
        except OSError as error:
            raise DiskUnusable(f"{out}: {error.strerror}") from None
        app.say(f"written: {out} ({plan.entries} entries, {plan.distinct} distinct in stage 1)")
        if "{seed}" not in " ".join(draft.command):
            app.say(
                "note: the script has no seed option, so repeats of a point differ by chance alone"
            )
        app.say(f"next: sweep plan {out}; sweep check {out}; sweep stage1 {out}")
        app.out(_document(draft, script, seen, out, plan.entries))
    return EXIT_DONE


def _document(
    draft: Draft, script: Script, seen: Seen | None, out: Path, entries: int
) -> dict[str, Any]:
    return {
        "study": draft.name,
        "written": str(out),
        "script": str(script.path),
        "command": list(draft.command),
        "options": [option.name for option in script.options.found],
        "parameters": [swept.parameter.name for swept in draft.parameters],
        "metric": draft.metric,
        "target": draft.target,
        "reader": seen.name if seen else draft.patterns if isinstance(draft.patterns, str) else OWN,
        "clock": draft.clock,
        "evaluations": [list(point) for point in seen.curve] if seen else [],
        "entries": entries,
        "exit": EXIT_DONE,
    }


def _may_be_written(out: Path, *, force: bool) -> None:
    if out.is_dir():
        raise StudyError(
            f"--out {out}: is a folder; name a file in it, such as {out / 'study.toml'}"
        )
    if out.exists() and not force:
        raise StudyError(f"{out} is there already and is not touched; --out FILE, or --force")
    if not out.absolute().parent.is_dir():
        raise StudyError(f"--out {out}: there is no folder {out.parent}; make it first")


# -- the script ------------------------------------------------------------------------------------


def _script(args: argparse.Namespace) -> Script:
    """Raises StudyError: it is not there, or nothing can start it."""
    path: Path = args.script
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        near = _near(
            path.name, [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        )
        raise StudyError(f"{path}: {what}; expected a training script{near}")
    folder: Path = args.cwd or path.parent
    if not folder.is_dir():
        raise StudyError(f"--cwd {folder}: is no folder; name the one that the script is to run in")
    seen = os.path.relpath(path.absolute(), folder.absolute())
    if path.suffix == ".py":
        python = args.python or "{python}"
        nodes = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={args.gpus}")
        start = (python, *(nodes if args.gpus and args.gpus > 1 else ()), seen)
        try:
            text = path.read_text(encoding="utf-8")
            options = from_source(text)
        except (SyntaxError, ValueError) as error:  # not UTF-8, or not Python
            raise StudyError(f"{path}: not Python that this interpreter reads: {error}") from None
        if not options.found and _PARSERS.search(text):
            options = _ask_help(path, folder, (args.python or sys.executable, seen))
        return Script(path, folder, start, options)
    if not os.access(path, os.X_OK):
        raise StudyError(
            f"{path}: may not be executed, and is no Python script; chmod +x, with an interpreter "
            "in its first line"
        )
    start = (seen if os.sep in seen else f"./{seen}",)
    options = Options(how="given") if args.param else _ask_help(path, folder, start)
    return Script(path, folder, start, options)


def _ask_help(path: Path, folder: Path, start: Sequence[str]) -> Options:
    """What it prints for --help. A script that knows none may begin to train: it is ended then."""
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                [*start, "--help"],
                cwd=folder,
                env={k: v for k, v in os.environ.items() if k not in NOT_FOR_TRAINERS},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise StudyError(f"{path}: cannot be started: {error.strerror}") from None
        try:
            process.wait(HELP_WITHIN_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()
        said.seek(0)
        text = said.read(1 << 20).decode("utf-8", errors="replace")
    return from_help(text.splitlines())


def _near(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; the nearest known is {close[0]!r}" if close else ""


# -- what is swept ---------------------------------------------------------------------------------


def _parameters(given: Sequence[str], options: Options, *, asks: bool) -> tuple[Swept, ...]:
    by_name = {option.name.replace("-", "_"): option for option in options.found}
    suggestions = list(options.suggestions())
    if not given and not asks:
        example = " ".join(f"--param {s}" for s in suggestions) or "--param lr=1e-4..1e-2:log"
        raise StudyError(
            f"no parameter to sweep is named; give --param NAME=LOW..HIGH for each, such as {example}"
        )
    if given:
        swept = [read_parameter(text, by_name) for text in given]
    else:
        swept = _ask_parameters(by_name, suggestions, options)
    names = [s.parameter.name for s in swept]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise StudyError(f"--param {doubled}: is there twice; remove one of them")
    return tuple(swept)


def _ask_parameters(
    by_name: Mapping[str, Any], suggestions: Sequence[str], options: Options
) -> list[Swept]:
    usual = {text.partition("=")[0]: text for text in suggestions}
    names = _ask(
        "which parameters, separated by commas",
        ", ".join(usual),
        need="name at least one parameter",
    )
    swept = []
    for name in [word.strip() for word in names.split(",") if word.strip()]:
        option = options.get(name)
        default = usual.get(option.name if option else name, "").partition("=")[2]
        while True:
            said = _ask(
                f"range or list of {name} (1e-4..1e-2:log, or a,b)", default, need="a range"
            )
            try:
                swept.append(read_parameter(f"{name}={said}", dict(by_name)))
                break
            except StudyError as error:
                print(f"  {error}")  # noqa: T201 - a question is asked again
    return swept


def _ask(question: str, default: str, *, need: str) -> str:
    """One question on the terminal; an empty answer takes the default."""
    shown = f" [{default}]" if default else ""
    try:
        said = input(f"{question}{shown}: ").strip()
    except EOFError:
        raise StudyError(f"{question}: no answer; {need}") from None
    if not (said or default):
        raise StudyError(f"{question}: no answer; {need}")
    return said or default


# -- the study -------------------------------------------------------------------------------------


def _draft(
    args: argparse.Namespace, script: Script, parameters: tuple[Swept, ...], out: Path
) -> Draft:
    """All that is known before the script has run; a target of 0 stands where none was named yet."""
    more = list(args.arguments)
    placed = set(re.findall(r"\{([^{}]*)\}", " ".join(more)))
    words = [*script.start, *more]
    for swept in parameters:
        name = swept.parameter.name
        if name in placed:
            continue
        if script.options.found and swept.option is None:
            known = [option.name for option in script.options.found]
            raise StudyError(
                f"--param {name}: {script.path.name} has no such option{_near(name, known)}; it has "
                f"{', '.join(known)}. Or place it yourself after --, such as -- --{name}={{{name}}}"
            )
        option = swept.option.name if swept.option else name
        words.append(f"{script.options.prefix}{option}={{{name}}}")
    seed = script.options.get("seed")
    taken = seed is None or seed.kind == "flag" or "seed" in placed
    if not taken and not any("seed" in word for word in words[len(script.start) :]):
        words.append(f"{script.options.prefix}{seed.name if seed else 'seed'}={{seed}}")
    folder = os.path.relpath(script.folder.absolute(), out.absolute().parent)
    own = _own_patterns(args.pattern, args.metric)
    name = args.name or re.sub(r"[^A-Za-z0-9._-]+", "-", script.path.stem).strip("-._") or "study"
    usual = SETS[args.set].metric if args.set else "val_loss"
    return Draft(
        name=name,
        command=tuple(words),
        cwd=None if folder == "." else folder,
        metric=args.metric or usual,
        target=0.0 if args.target is None else args.target,
        patterns=args.set or own or None,
        clock=SETS[args.set].clock if args.set else "see docs/your-script.md",
        read="Not tried yet (--no-run)",
        parameters=parameters,
        steps=args.steps or script.options.steps() or 1000,
        trial_s=args.trial_s,
        gpus=args.gpus if args.gpus is not None else int(bool(find_gpus().gpus)),
    )


def _own_patterns(given: Sequence[str], metric: str | None) -> dict[str, str]:
    """Expressions by name: `evaluated` where the metric is in them, else `step`; numbered from 2."""
    named: dict[str, str] = {}
    for text in given:
        try:
            groups = re.compile(text).groupindex
        except re.error as error:
            raise StudyError(f"--pattern {text!r}: not a regular expression: {error}") from None
        kind = "evaluated" if groups.keys() & {metric, "metric", "latest"} else "step"
        number = sum(key.rstrip("0123456789") == kind for key in named) + 1
        named[kind if number == 1 else f"{kind}{number}"] = text
    if named and "evaluated" not in named:
        raise StudyError(
            f"--pattern {given[0]!r}: no group (?P<metric>...) in any of them; add one"
        )
    return named


def _loaded(draft: Draft, out: Path) -> Study:
    """The draft as the study that its file will be, with that file's folder."""
    with tempfile.TemporaryDirectory(prefix="sweep-init-") as place:
        file = Path(place) / "study.toml"
        write_whole(file, draft.text(), lasting=False)
        try:
            study = study_file.load(file)
        except StudyFileError as error:
            raise StudyError(
                f"no study can be made of this: {error.key}: {error.problem}"
            ) from None
    return study.model_copy(update={"folder": out.absolute().parent})


def _try(args: argparse.Namespace, draft: Draft, out: Path) -> Seen:
    """Run the script at its baseline, read by whatever reads it.

    Raises:
        SweepError: see `run_briefly`.
    """
    study = _loaded(replace(draft, patterns=None), out)
    check_command(study)
    space: Space = study.space
    trial = PlannedTrial("init", "stage1", "init", (), space.point(space.baseline()), study.seed)
    limits = study.limits.model_copy(
        update={"startup_s": 2 * args.deadline, "silence_s": 2 * args.deadline, "grace_s": 5.0}
    )
    own = _own_patterns(args.pattern, args.metric)
    return run_briefly(
        study.model_copy(update={"limits": limits}),
        trial,
        metric=args.metric,
        own=own,
        only=args.set,
        deadline_s=args.deadline,
        devices=args.devices,
    )


def _with_reading(draft: Draft, seen: Seen, args: argparse.Namespace) -> Draft:
    own = _own_patterns(args.pattern, args.metric)
    ways: dict[str, Any] = {PROTOCOL: None, OWN: own}
    return replace(
        draft,
        metric=seen.metric,
        patterns=ways.get(seen.name, seen.name),
        clock=seen.clock,
        read=seen.words(),
    )


def _target(args: argparse.Namespace, metric: str, seen: Seen | None, *, asks: bool) -> float:
    if args.target is not None:
        target: float = args.target
        return target
    if asks:
        said = _ask(f"target: {metric} at or below", "", need="a number")
        try:
            return float(said)
        except ValueError:
            raise StudyError(f"target: got {said!r}, expected a number") from None
    hint = f" ({seen.words()})" if seen else ""
    raise StudyError(f"no target is named; give --target X, a value of {metric} to reach{hint}")
