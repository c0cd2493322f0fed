"""The Optuna dashboard, served in this process behind a guard that only lets reading through.

It must not know our tables. The plain dashboard has no authentication at all and lets any visitor
delete studies and forge results, so the guard refuses every method but GET and HEAD (unless writing was
asked for, and then what another site's page asks for), and every Host that is not this machine's own
name for itself (DNS rebinding).
"""

from __future__ import annotations

import logging
import signal
import socketserver
import threading
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from sweeper.errors import EnvironmentUnusable

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def guard(application: Application, hosts: Iterable[str], *, writable: bool) -> Application:
    """Wrap a WSGI application: 403 for a foreign Host header, 405 for anything but GET and HEAD.

    With `writable` other methods pass, unless a page of another origin asks (403).
    """
    allowed = frozenset(hosts)

    def refusal(environ: dict[str, Any]) -> tuple[str, str, list[tuple[str, str]]] | None:
        host = environ.get("HTTP_HOST", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name not in allowed:
            return "403 Forbidden", "this dashboard answers only to its own host name", []
        if environ.get("REQUEST_METHOD") in ("GET", "HEAD"):
            return None
        if not writable:
            allow = [("Allow", "GET, HEAD")]
            return "405 Method Not Allowed", "this dashboard is read-only", allow
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and origin != f"http://{host}":
            return "403 Forbidden", "a page of another site may not change anything here", []
        return None

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        refused = refusal(environ)
        if refused is None:
            return application(environ, start_response)
        status, why, more = refused
        start_response(status, [("Content-Type", "text/plain"), *more])
        return [f"{status.partition(' ')[0]}: {why}\n".encode()]

    return guarded


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Requests are nobody's business here."""


def create_tables(url: str) -> None:
    """Make sure of Optuna's tables: a role that only reads cannot.

    Raises:
        DatabaseUnusable: they cannot be created.
    """
    from sweeper.search.optuna_search import OptunaStorage  # noqa: PLC0415

    OptunaStorage(url).close()


def serve(
    url: str,
    *,
    host: str,
    port: int,
    ready: Callable[[str], None],
    artifacts: Path | None = None,
    writable: bool = False,
) -> None:
    """Serve until SIGINT or SIGTERM; `ready` is called with the address once it listens.

    `artifacts` is the folder of what is attached to trials; None shows none.

    Raises:
        EnvironmentUnusable: the address cannot be listened on.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import optuna_dashboard  # noqa: PLC0415 - a second of imports that only this needs

    from sweeper.search.optuna_search import OptunaStorage  # noqa: PLC0415

    logging.getLogger("optuna_dashboard").setLevel(logging.WARNING)
    storage = OptunaStorage(url)
    dashboard = optuna_dashboard.wsgi(storage.raw, storage.artifact_store(artifacts))
    application = guard(dashboard, {*LOOPBACK, host}, writable=writable)
    try:
        server = make_server(host, port, application, server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        raise EnvironmentUnusable(
            f"dashboard: cannot listen on {host}:{port} ({error.strerror}); choose another --port"
        ) from None

    def stop(number: int, frame: object) -> None:  # noqa: ARG001
        threading.Thread(target=server.shutdown, daemon=True).start()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    ready(f"http://{host}:{port}/dashboard")
    try:
        server.serve_forever(poll_interval=0.2)
    finally:
        server.server_close()
        storage.close()
