"""The verbs of `sweep db`: the embedded server up and down, and any database's schema.

They must not know what is stored.
"""

from __future__ import annotations

import argparse
from typing import Any

from sweeper.app import App
from sweeper.errors import EXIT_DONE, EXIT_ENVIRONMENT, StudyError


def db(args: argparse.Namespace) -> int:
    """Dispatch `sweep db STEP`."""
    if args.step in ("verify", "rebuild"):
        from sweeper.commands import repair  # noqa: PLC0415 - the other steps need no analysis

        return repair.verify(args) if args.step == "verify" else repair.rebuild(args)
    with App(args) as app:
        steps = {"up": _up, "down": _down, "status": _status, "upgrade": _upgrade, "url": _url}
        return steps[args.step](app)


def _embedded_only(app: App, step: str) -> None:
    if app.settings.database:
        raise StudyError(
            f"`sweep db {step}` is about the embedded database, and a URL was given; leave out "
            "--database and SWEEP_DATABASE_URL, or use that server's own tools"
        )


def _up(app: App) -> int:
    from sweeper.storage import embedded  # noqa: PLC0415

    _embedded_only(app, "up")
    app.store(create=True)
    state = embedded.keep_alive(app.settings.home)
    app.say(f"up: Postgres {state.version}, pid {state.pid}, data in {state.data}")
    app.out({"running": True, "pid": state.pid, "version": state.version, "data": str(state.data)})
    return EXIT_DONE


def _down(app: App) -> int:
    from sweeper.storage import embedded  # noqa: PLC0415

    _embedded_only(app, "down")
    done = embedded.stop(app.settings.home)
    holders = [f"{h.purpose} (pid {h.pid})" for h in done.holders]
    if done.stopped:
        app.say("down" if done.was_running else "was not running")
    else:
        app.say("still in use by " + ", ".join(holders) + "; it stops when they have ended")
    app.out({"stopped": done.stopped, "was_running": done.was_running, "holders": holders})
    return EXIT_DONE if done.stopped else EXIT_ENVIRONMENT


def _status(app: App) -> int:
    document: dict[str, Any]
    if app.settings.database:
        from sweeper.storage import migrate  # noqa: PLC0415
        from sweeper.storage.sql import open_engine  # noqa: PLC0415
        from sweeper.storage.url import mask  # noqa: PLC0415

        engine = open_engine(app.database_url())
        schema = migrate.status(engine)
        shown = mask(engine.url)
        document = {
            "embedded": False,
            "url": shown,
            "schema": {"current": schema.current, "head": schema.head, "state": schema.state},
        }
        app.say(f"{shown}: schema {schema.current or 'none'}, this program's is {schema.head}")
        engine.dispose()
    else:
        from sweeper.storage import embedded  # noqa: PLC0415

        state = embedded.status(app.settings.home)
        document = {
            "embedded": True,
            "running": state.running,
            "phase": state.phase,
            "pid": state.pid,
            "version": state.version,
            "data": str(state.data) if state.data else None,
            "size_bytes": state.size_bytes,
            "kept": state.kept,
            "holders": [{"pid": h.pid, "purpose": h.purpose} for h in state.holders],
            "error": state.error,
        }
        word = "running" if state.running else state.phase
        where = f", data in {state.data} ({state.size_bytes / 1e6:.0f} MB)" if state.data else ""
        app.say(f"embedded database: {word}{where}")
        for h in state.holders:
            app.say(f"  held by {h.purpose} (pid {h.pid})")
    app.out(document)
    return EXIT_DONE


def _upgrade(app: App) -> int:
    from sweeper.storage import migrate  # noqa: PLC0415
    from sweeper.storage.sql import open_engine  # noqa: PLC0415

    engine = open_engine(app.database_url())
    before = migrate.upgrade(engine)
    engine.dispose()
    if before.state == "current":
        app.say(f"schema {before.head}: up to date")
    else:
        app.say(f"schema {before.current or 'none'} -> {before.head}")
    app.out({"before": before.current, "after": before.head})
    return EXIT_DONE


def _url(app: App) -> int:
    # the one place that shows the password, because it was asked for
    url = app.database_url()
    if app.settings.json:
        app.out({"url": url})
    else:
        print(url)  # noqa: T201
    return EXIT_DONE
