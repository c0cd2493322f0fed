"""What went wrong with the database, in words a user can act on.

It must not know what was being read or written; no message of it holds a password.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from sweeper.errors import DatabaseGone, DatabaseUnusable
from sweeper.storage.url import EXPECTED, mask, without_secrets

REFUSED: Final = "the password (or the user's name) was refused"
NO_DATABASE: Final = "there is no such database; create it, or correct the URL"
CROWDED: Final = "it has no connection left; end other clients or raise max_connections"
MOMENT: Final = "the server is starting, stopping or restarting; try again in a moment"
LOST: Final = "the connection was lost; try again in a moment"
UNREACHABLE: Final = "the host cannot be reached from here"
NO_SUCH_HOST: Final = (
    "no host of this name is known here; correct the URL, or mend the name service"
)
NOBODY: Final = "nothing listens there; start the server or correct the URL"
WRONG_URL: Final = f"the URL has a part that libpq does not take; expected {EXPECTED}"

# What libpq says where it could not connect (there is no SQLSTATE then). First match wins.
_CONNECTING_GONE: Final = {
    "too many clients": CROWDED,
    "connection slots are reserved": CROWDED,
    "too many connections for": CROWDED,
    "database system is": MOMENT,
    "not accepting connections": MOMENT,
    "terminating connection": MOMENT,
    "server closed the connection": LOST,
    "could not translate host name": NO_SUCH_HOST,
    "Connection refused": NOBODY,
    "No such file or directory": NOBODY,
    "timeout expired": "it did not answer in time; is the host right, and reachable?",
    "No route to host": UNREACHABLE,
    "Network is unreachable": UNREACHABLE,
}
_CONNECTING_REFUSED: Final = {
    "password authentication failed": REFUSED,
    "no password supplied": "it wants a password and the URL has none",
    "no pg_hba.conf entry": "it does not let this user in from here (pg_hba.conf)",
    "is not permitted to log in": "it does not let this user log in",
    "FATAL: role": "there is no such user; create it, or correct the URL",
    "FATAL: database": NO_DATABASE,
    "Permission denied": "the socket may not be used by this user",
    "SSL": "it does not speak the SSL that the URL asks for (sslmode)",
    "invalid dsn": WRONG_URL,
    "invalid port": WRONG_URL,
    "invalid integer value": WRONG_URL,
}

# SQLSTATE, or its class (two characters), of a statement. First match wins.
_WORKING_GONE: Final = {
    "53100": "its disk is full; make room there, what was recorded is safe",
    "53200": "it ran out of memory",
    "53300": CROWDED,
    "53": "it lacks a resource",
    "57014": "it took too long to answer, and the statement was given up",
    "55P03": "a lock was not given in time; is another command at work for long?",
    "57P": MOMENT,
    "25P03": "it ended the connection because this process was silent in a transaction",
    "08": LOST,
    "40": "it gave up one of two transactions that were in each other's way; try again",
    "58": "it cannot read or write its own files; see the server's log",
}
_WORKING_REFUSED: Final = {
    "3D000": NO_DATABASE,
    "28": REFUSED,
    "42501": "this user lacks a right; its owner can give it (GRANT ALL ON DATABASE ... TO ...)",
    "25006": "it is read-only (a standby?); the URL must name the primary",
    "42P01": "a table of sweep's is missing; run `sweep db verify`",
    "3F000": "sweep's tables are not there; run `sweep db upgrade`",
    "42703": "a column of sweep's is missing or has another name; run `sweep db verify`",
    "XX": "its data is damaged; see the server's log, then `sweep db rebuild` into a new database",
}


def state(error: DBAPIError) -> str:
    """The error's SQLSTATE, or an empty text where there is none (no connection)."""
    return getattr(error.orig, "pgcode", None) or ""


def lost_connection(error: DBAPIError) -> bool:
    """Whether an established connection broke: another one may work at once."""
    return error.connection_invalidated or state(error).startswith(("57P", "08", "25P03"))


def undone_by_conflict(error: DBAPIError) -> bool:
    """Whether the transaction was rolled back in favour of another one."""
    return state(error).startswith("40")


def explain(error: DBAPIError, url: URL) -> DatabaseUnusable:
    """The error as one to show; raise it `from None`, for the original may name too much."""
    said = without_secrets(" ".join(str(error.orig).split()), url)
    place = f"database {mask(url)}"
    code = state(error)
    if code:
        for known, meaning in _WORKING_GONE.items():
            if code.startswith(known):
                return DatabaseGone(f"{place}: {meaning} ({said})")
        for known, meaning in _WORKING_REFUSED.items():
            if code.startswith(known):
                return DatabaseUnusable(f"{place}: {meaning} ({said})")
        return DatabaseUnusable(f"{place}: it says: {said}")
    for known, meaning in _CONNECTING_GONE.items():
        if known in said:
            return DatabaseGone(f"{place}: {meaning}")
    for known, meaning in _CONNECTING_REFUSED.items():
        if known in said:
            return DatabaseUnusable(f"{place}: {meaning}")
    if error.connection_invalidated:
        return DatabaseGone(f"{place}: {LOST} ({said})")
    return DatabaseUnusable(f"{place}: it says: {said}")
