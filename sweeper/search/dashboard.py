"""The Optuna dashboard, served in this process behind a guard that only lets reading through.

It must not know our tables. The plain dashboard has no authentication at all and lets any visitor
delete studies and forge results, so the guard refuses every method but GET and HEAD, and every Host
that is not this machine's own name for itself (DNS rebinding).
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


def read_only(application: Application, hosts: Iterable[str]) -> Application:
    """Wrap a WSGI application: 405 for anything but GET and HEAD, 403 for a foreign Host header."""
    allowed = frozenset(hosts)

    def guard(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        host = environ.get("HTTP_HOST", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name not in allowed:
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"403: this dashboard answers only to its own host name\n"]
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            start_response("405 Method Not Allowed", [("Allow", "GET, HEAD")])
            return [b"405: this dashboard is read-only\n"]
        return application(environ, start_response)

    return guard


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Requests are nobody's business here."""


def serve(
    url: str,
    *,
    host: str,
    port: int,
    ready: Callable[[str], None],
    artifacts: Path | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; `ready` is called with the address once it listens.

    Raises:
        EnvironmentUnusable: the address cannot be listened on.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import optuna_dashboard  # noqa: PLC0415 - a second of imports that only this needs

    from sweeper.search.optuna_search import OptunaStorage  # noqa: PLC0415

    logging.getLogger("optuna_dashboard").setLevel(logging.WARNING)
    storage = OptunaStorage(url)
    application = read_only(
        optuna_dashboard.wsgi(storage.raw, storage.artifact_store(artifacts)), {*LOOPBACK, host}
    )
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
