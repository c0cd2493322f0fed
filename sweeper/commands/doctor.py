"""The verb that says what is wrong with this machine or with training runs, and what to change.

It must not change anything; runs are read from their folders, with no database.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper import catalog
from sweeper.app import App
from sweeper.doctor import rules as rule_files
from sweeper.doctor.rounds import rules_of
from sweeper.doctor.rules import Diagnosis, Finding, Rule
from sweeper.doctor.run_log import RunLog, read_run
from sweeper.errors import EXIT_DONE, EXIT_ENVIRONMENT, StudyError, SweepError
from sweeper.paths import AttemptPaths

LEAST_FREE_BYTES = 2**30
LEAST_PYTHON = (3, 11)


def doctor(args: argparse.Namespace) -> int:
    """Diagnose a file or folder of a run, a trial, all runs of a study, or this machine.

    Raises:
        StudyError: no such run, trial or study; a file of rules is wrong.
    """
    with App(args) as app:
        if args.what is None and args.study is None:
            return _machine(app)
        further = (rule_files.load(args.rules),) if args.rules else ()
        rules = rule_files.joined(rule_files.built_in(), *further)
        path = Path(args.what or "").expanduser()
        is_run = path.is_file() and path.suffix in (".jsonl", ".json")
        if args.what and (is_run or AttemptPaths(path).events.exists() or _raw(path)):
            return _runs(app, str(path), [read_run(path)], rules, many=False)
        args.study, trial = _study_and_trial(app, args)
        study = app.study()
        rules = rule_files.joined(rules_of(study.folder), *further)
        folders = list(last_attempts(app.home.study(study.name), trial))
        if not folders:
            where = app.home.study(study.name)
            raise StudyError(f"{study.name}: no run folders in {where}; run the study first")
        runs = [read_run(folder, folder.parent.name) for folder in folders]
        return _runs(app, study.name, runs, rules, many=trial is None)


def _raw(path: Path) -> bool:
    return path.is_dir() and AttemptPaths(path).raw_events.exists()


def _study_and_trial(app: App, args: argparse.Namespace) -> tuple[str | None, str | None]:
    """What the words mean: a study, or a trial of the study that is named or the default one."""
    what, study = args.what, args.study
    if what is None:
        return study, None
    if study is None and catalog.is_study(what):
        return what, None
    name = catalog.load(catalog.choose(study), scale=args.scale).name
    if (app.home.study(name) / what).is_dir():
        return study, what
    if study is not None:
        raise StudyError(f"{name}: no trial {what!r} has a run folder here (see `sweep status`)")
    return what, None


def last_attempts(folder: Path, trial: str | None = None) -> Iterator[Path]:
    """The folder of each trial's last attempt that has events, in the order in which they began."""
    found = []
    for place in folder.glob(f"{trial or '*'}/"):
        attempts = [a for a in place.glob("attempt-*") if AttemptPaths(a).events.exists()]
        if attempts:
            last = max(attempts, key=lambda a: int(a.name.removeprefix("attempt-")))
            found.append((AttemptPaths(last).spec.stat().st_mtime, last))
    return (place for _, place in sorted(found))


def _runs(
    app: App, about: str, runs: Sequence[RunLog], rules: Sequence[Rule], *, many: bool
) -> int:
    documents = []
    for run in runs:
        found = rule_files.diagnose(run, rules)
        documents.append(_document(run, found))
        if found.findings or not many:
            app.say(f"{run.name}: {_state(run)}")
            _say(app, found.findings)
        if not many:
            _say_not_judged(app, found)
    across = rule_files.diagnose_study(runs, rules) if many else Diagnosis((), ())
    if many:
        sick = sum(bool(document["findings"]) for document in documents)
        app.say(f"{len(runs)} runs, {sick} with findings")
        _say(app, across.findings)
        _say_not_judged(app, across)
    app.out(
        {
            "about": about,
            "runs": documents,
            "study": [finding.as_dict() for finding in across.findings],
            "study_not_judged": list(across.not_judged),
            "exit": EXIT_DONE,
        }
    )
    return EXIT_DONE


def _document(run: RunLog, found: Diagnosis) -> dict[str, Any]:
    return {
        "run": run.name,
        "over": run.over,
        "step": run.step,
        "tokens": run.tokens,
        "findings": [finding.as_dict() for finding in found.findings],
        "not_judged": list(found.not_judged),
        "unreadable_lines": run.unreadable,
    }


def _state(run: RunLog) -> str:
    return f"{'ended' if run.over else 'running'}, step {run.step}, {run.tokens:,} tokens"


def _say(app: App, findings: Sequence[Finding]) -> None:
    for finding in findings:
        app.say(f"  {finding.severity:8} {finding.rule}: {finding.meaning}")
        app.say(f"  {'':8} -> {finding.advice}")


def _say_not_judged(app: App, found: Diagnosis) -> None:
    if not found.findings:
        app.say("  nothing found")
    if found.not_judged:
        app.say(f"  not judged (too short, or not told): {', '.join(found.not_judged)}")


# ------------------------------------------------------------------------------------- the machine


def _machine(app: App) -> int:
    checks = list(_checks(app))
    for check in checks:
        app.say(f"{'ok   ' if check['ok'] else 'WRONG'} {check['check']}: {check['text']}")
    code = EXIT_DONE if all(check["ok"] for check in checks) else EXIT_ENVIRONMENT
    app.out({"about": "machine", "checks": checks, "exit": code})
    return code


def _checks(app: App) -> Iterator[Mapping[str, Any]]:
    def said(what: str, ok: bool, text: str) -> dict[str, Any]:
        return {"check": what, "ok": ok, "text": text}

    python = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info[:2] >= LEAST_PYTHON
    yield said("python", good, f"{python} ({sys.executable})" + ("" if good else "; needs 3.11"))
    for package in ("torch", "numpy", "optuna", "psycopg2-binary"):
        try:
            yield said(package, True, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield said(package, False, "not installed; install sweep anew into this environment")
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    load = os.getloadavg()[0]
    busy = load > cores
    text = f"{cores} cores, load {load:.1f}"
    yield said("processor", True, text + ("; busy: times will not be comparable" if busy else ""))
    yield said("devices", True, _gpus())
    existing = next(p for p in (app.home.folder, *app.home.folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    roomy = free >= LEAST_FREE_BYTES and os.access(existing, os.W_OK)
    text = f"{app.home.folder}, {free / 2**30:.1f} GiB free"
    yield said("home", roomy, text if roomy else f"{text}; needs 1 GiB that can be written")
    yield _database(app, said)


def _gpus() -> str:
    found = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    return f"{len(found)} GPU(s)" if found else "no GPU; studies with [resources] gpus = 0 can run"


def _database(app: App, said: Any) -> Mapping[str, Any]:
    if not app.has_database():
        result: Mapping[str, Any] = said("database", True, "none yet; the first stage makes one")
        return result
    try:
        count = len(app.store().studies())
    except SweepError as error:
        result = said("database", False, str(error))
    else:
        result = said("database", True, f"usable, {count} studies")
    return result
