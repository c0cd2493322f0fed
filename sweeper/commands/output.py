"""The verbs that give answers away: report, export, dashboard.

They must not know how any number in them was computed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gc
import io
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from sweeper import catalog, claims
from sweeper.analysis.claims import claims_table
from sweeper.analysis.verdict import verdict
from sweeper.app import App
from sweeper.attempts import disk_unusable
from sweeper.commands.facts import study_facts
from sweeper.commands.scalars import scalars
from sweeper.configuration import fill_command, resolve_config
from sweeper.errors import EXIT_DONE, EXIT_SOME_FAILED, NothingReached, PlanError, StudyError
from sweeper.events import finite
from sweeper.objective import time_to_target
from sweeper.paths import make_private, write_json, write_whole
from sweeper.report.attempts import about_of, begins_with
from sweeper.report.lines import plain
from sweeper.storage.base import Store
from sweeper.study import Study
from sweeper.trial import AttemptFacts, PlannedTrial


def report(args: argparse.Namespace) -> int:
    """Write report.html, report.md and report.json, and say where they are; or check one."""
    with App(args) as app:
        study = app.study()
        if args.check:
            return _check(app, study, args.out)
        if args.claims:
            return _claims(app, study)
        other = None if args.against is None else _other(app, args.against)
        paths = write(
            app,
            study,
            app.store(),
            out=args.out,
            target=args.target,
            against=other,
            across=args.across,
        )
        app.out(paths)
    return EXIT_DONE


def _claims(app: App, study: Study) -> int:
    """The claims beside a study: their arithmetic, and our runs where there are any.

    Raises:
        StudyError: the study has no claims.
    """
    found = claims.read(study.folder)
    if found is None:
        raise StudyError(
            f"{study.folder}: no {claims.FILE} beside the study; mainrun has one to start from"
        )
    facts = study_facts(study, app.store()) if app.has_database() else None
    rows = claims_table(found, facts)
    for row in rows:
        measured = f" (measured: {row['measured_words']})" if row["measured_words"] else ""
        app.say(f"{row['id']}: {row['text']}: {row['verdict']}{measured}")
        if row["contradiction"]:
            app.say(f"  {row['contradiction']}")
    wrong = sum(row["contradiction"] is not None for row in rows)
    app.say(f"{len(rows)} claims, {wrong} refuted by their own numbers")
    app.out({"title": found.title, "source": found.source, "rows": rows})
    return EXIT_DONE


def _check(app: App, study: Study, out: Path | None) -> int:
    """Compute a written report again from the facts; exit 1 where it says anything else."""
    from sweeper.report.checker import check  # noqa: PLC0415

    folder = (out or app.home.report(study.name)).absolute()
    try:
        wrong = check(folder, study_facts(study, app.store()))
    except (OSError, ValueError, KeyError) as error:
        raise StudyError(f"{folder}: holds no whole report ({error}); run `sweep report`") from None
    for line in wrong:
        app.say(line)
    app.say(
        f"{folder}: {len(wrong) or 'no'} value{'' if len(wrong) == 1 else 's'} differ from the facts"
    )
    app.out({"folder": str(folder), "wrong": wrong})
    return EXIT_SOME_FAILED if wrong else EXIT_DONE


def _other(app: App, name: str) -> dict[str, Any]:
    """The document of the sweep to compare with: a report.json, or a study in the same database.

    Raises:
        StudyError: neither is there.
        PlanError: nothing has been run of it.
    """
    from sweeper.report.json_report import document  # noqa: PLC0415

    path = Path(name)
    if path.suffix == ".json":
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StudyError(f"--against {name}: {error}; name a report.json or a study") from None
        if not {"verdict", "reproduce", "winner", "cost"} <= set(found):
            raise StudyError(f"--against {name}: is no report; name a report.json or a study")
        return found
    study = catalog.load(catalog.choose(name))
    facts = study_facts(study, app.store())
    if not facts.stages:
        raise PlanError(f"--against {study.name}: nothing of it has been run in this database")
    return document(facts, generated_at=time.time())


def write(
    app: App,
    study: Study,
    store: Store,
    *,
    out: Path | None,
    target: float | None,
    against: Mapping[str, Any] | None = None,
    across: bool = False,
) -> dict[str, str]:
    """Write the three forms of the report, say the verdict and where they are.

    Raises:
        PlanError: there is nothing to report yet.
    """
    from sweeper.report import write_report  # noqa: PLC0415

    with _uncollected():
        facts = study_facts(study, store)
        if not facts.stages:
            raise PlanError(
                f"{study.name}: nothing has been run here yet; run `sweep stage1` first"
            )
        folder = (out or app.home.report(study.name)).absolute()
        try:
            written = write_report(
                facts, make_private(folder), target=target, against=against, across=across
            )
        except OSError as error:
            raise disk_unusable(folder, error) from None
    if not app.settings.quiet:
        from sweeper.report.console import verdict_view  # noqa: PLC0415

        app.console().print(verdict_view(written.document))
    app.say(f"report: {written.html}")
    return {"html": str(written.html), "md": str(written.markdown), "json": str(written.json)}


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection meanwhile: it would walk millions of curve points, again and again, for
    cycles that are not there (half the time of a report on 10,000 trials).
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def export(args: argparse.Namespace) -> int:
    """The production configuration, or every attempt's facts."""
    with App(args) as app, _uncollected():
        study = app.study(quiet=True)
        store = app.store()
        usual = "jsonl" if args.trials else "json" if app.settings.json else "toml"
        form = args.format or usual
        if form == "tensorboard" and args.trials:
            return _tensorboard(app, study, store, args.out)
        text = _best(study, store, form) if args.best else _trials(study, store, form)
        if args.out is not None:
            try:
                write_whole(args.out.absolute(), text)
                if args.best:
                    write_json(Path(f"{args.out.absolute()}.evidence.json"), evidence(study, store))
            except OSError as error:
                raise StudyError(f"--out {args.out}: {error.strerror}; choose another") from None
            app.say(f"written: {args.out}")
            app.out({"format": form, "written": str(args.out)})
        elif app.settings.json and form == "json":
            app.out(json.loads(text))
        elif app.settings.json and form == "jsonl":
            trials = [json.loads(line) for line in text.splitlines()]
            app.out({"study": study.name, "trials": trials})
        elif app.settings.json:
            app.out({"study": study.name, "format": form, "text": text})
        else:
            sys.stdout.write(text)
    return EXIT_DONE


def _best(study: Study, store: Store, form: str) -> str:
    if form not in ("toml", "json", "args"):
        raise StudyError(f"--best --format {form}: expected toml, json or args")
    facts = study_facts(study, store)
    if not facts.stages:
        raise PlanError(f"{study.name}: nothing has been run here yet; run `sweep stage1` first")
    judged = verdict(facts)
    winner = judged.winner
    if winner is None:
        raise NothingReached(
            f"{study.name}: nothing reached {facts.target:g} or a fallback; "
            "`sweep report` says which target is within reach"
        )
    point = winner.point
    config = resolve_config(
        study,
        point,
        seed=study.seed,
        target=study.objective.target,
        fallback=study.objective.fallback,
        max_steps=study.limits.steps,
    )
    if form == "json":
        return json.dumps(config or dict(point), indent=2, allow_nan=False) + "\n"
    if form == "args":
        argv = fill_command(
            study,
            point,
            config=Path("config.toml"),
            events=Path("events.jsonl"),
            run_dir=Path(),
            target=study.objective.target,
            seed=study.seed,
        )
        return shlex.join(argv) + "\n"
    said = [f"# {plain(line)}" for line in (judged.sentence, *judged.missing)]
    said += [f"# plan of {name}: {stage.definition_hash}" for name, stage in facts.stages.items()]
    return "\n".join(said) + "\n\n" + tomli_w.dumps(config or dict(point))


def evidence(study: Study, store: Store) -> dict[str, Any]:
    """What stands behind the winner: the verdict, its numbers, and what it was measured with."""
    from sweeper.report.json_report import document  # noqa: PLC0415

    found = document(study_facts(study, store), generated_at=time.time())
    keys = (
        "study", "generated_at", "metric", "clock", "target", "verdict", "winner", "baseline", "speedup",
        "confirm", "noise", "sensitivity", "chances", "spent", "reproduce",
    )  # fmt: skip
    return {key: found[key] for key in keys}


def _tensorboard(app: App, study: Study, store: Store, out: Path | None) -> int:
    """Curves and points as TensorBoard runs in a folder."""
    from sweeper.report.tensorboard import write_runs  # noqa: PLC0415

    if out is None:
        raise StudyError("--format tensorboard: writes a folder of runs; name it with --out DIR")
    metric = study.objective.metric

    def more(document: Mapping[str, Any]) -> Iterator[tuple[str, float, int, float]]:
        paths = app.home.attempt(study.name, document["id"], document["attempt"])
        return scalars(paths.events, metric)

    runs = write_runs(_documents(study, store), metric, out, more)
    app.say(f"written: {runs} runs under {out}; look at them with `tensorboard --logdir {out}`")
    app.out({"format": "tensorboard", "written": str(out), "runs": runs})
    return EXIT_DONE


def _documents(study: Study, store: Store) -> list[dict[str, Any]]:
    return [
        attempt_document(
            study, facts.trial, attempt, stage.effective_target, about_of(stage, facts.trial.id)
        )
        for stage in study_facts(study, store).every()
        for facts in stage.facts
        for attempt in facts.attempts
    ]


def _trials(study: Study, store: Store, form: str) -> str:
    if form not in ("jsonl", "csv"):
        raise StudyError(f"--trials --format {form}: expected jsonl, csv or tensorboard")
    documents = _documents(study, store)
    if form == "jsonl":
        return "".join(json.dumps(d, allow_nan=False, ensure_ascii=False) + "\n" for d in documents)
    flat = [dict(_flatten(d)) for d in documents]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="")
    writer.writeheader()
    writer.writerows(flat)
    return buffer.getvalue()


def _flatten(document: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flatten(value, f"{name}.")
        elif isinstance(value, list):
            yield name, json.dumps(value, allow_nan=False)
        else:
            yield name, "" if value is None else value


def attempt_document(
    study: Study,
    trial: PlannedTrial,
    attempt: AttemptFacts,
    target: float,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One attempt as `export --trials --format jsonl` gives it, judged at its stage's target.

    `about` is what its plan keeps about an extension, which has a target of its own, or none.
    """
    if about and about["target"] is not None:
        target = about["target"]
    parent = begins_with(attempt, about) or {}
    found = time_to_target(attempt, target, study.objective.clock)
    reached = found is not None and found.reached
    return {
        "study": study.name,
        "stage": trial.stage,
        "id": trial.id,
        "label": trial.label,
        "groups": list(trial.groups),
        "point": dict(trial.point),
        "seed": trial.seed,
        "attempt": attempt.attempt,
        "replicate_of": trial.replicate_of,
        "parent": parent.get("of"),
        "parent_attempt": parent.get("attempt"),
        "parent_step": parent.get("step"),
        "extends": parent.get("extends", False),
        "outcome": attempt.outcome.value,
        "reason": attempt.reason.value,
        "message": attempt.message,
        "time_to_target_s": found.seconds if found is not None and reached else None,
        "censored_at_s": found.seconds if found is not None and not reached else None,
        "cap_s": attempt.cap_s,
        "target": target,
        "steps": attempt.steps,
        "tokens": attempt.tokens,
        "phases": attempt.phases.as_dict(),
        "wall_s": attempt.wall_s,
        "started_at": attempt.started_at,
        "best_loss": attempt.best_loss,
        "tokens_per_s": attempt.tokens_per_s,
        "peak_memory_bytes": attempt.peak_memory_bytes,
        "device": dict(attempt.device),
        "fingerprint": dict(attempt.fingerprint),
        "validity": attempt.validity,
        "clock_source": attempt.clock_source,
        "curve": [
            [e.clock.train, e.step, e.tokens, finite(e.value)]
            for e in attempt.curve
            if e.slice == "probe"
        ],
        "confirmations": [
            [e.step, finite(e.value)] for e in attempt.curve if e.slice == "confirmation"
        ],
    }


def dashboard(args: argparse.Namespace) -> int:
    """Serve the Optuna dashboard on this storage until interrupted; to read only, unless asked."""
    with App(args) as app:
        from sweeper.search.dashboard import LOOPBACK, create_tables, serve  # noqa: PLC0415

        app.store()
        url = app.database_url()
        create_tables(url)
        if args.writable:
            how = "WRITABLE: every visitor can delete studies, change notes and forge results"
            app.say(
                "dashboard: --writable opens Optuna's tables, with the rights of the database's user, "
                "to whoever reaches this address; there are no accounts. What sweep itself recorded "
                "is not shown there; `sweep db rebuild` makes Optuna's studies from it again"
            )
        else:
            from sweeper.storage.reader import open_reader  # noqa: PLC0415

            reader = open_reader(url)
            url = reader.url
            how = f"read-only, as database role {reader.role}"
            if reader.role is None:
                how = "read-only, GET only"
                app.say(
                    f"dashboard: no database role that can only read ({reader.why}); the database's "
                    "user is used, with transactions that cannot write"
                )
        if args.host not in LOOPBACK:
            app.say(f"dashboard: {args.host} is reached from other machines; there are no accounts")
        serve(
            url,
            host=args.host,
            port=args.port,
            artifacts=app.home.artifacts,
            writable=args.writable,
            ready=lambda where: app.say(f"dashboard: {where} ({how}; Ctrl-C ends it)"),
        )
    return EXIT_DONE
