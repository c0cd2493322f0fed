"""The database's URL: what a user may write, what the driver gets, and what may be shown.

It must not know what is stored there; nothing it prints holds a password.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from sweeper.errors import DatabaseUnusable

DRIVER: Final = "postgresql+psycopg2"
EXPECTED: Final = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
HIDDEN: Final = "***"
_SECRET_KEY = re.compile(r"pass(word|wd)?$|secret|token", re.IGNORECASE)


def normalise(url: str) -> str:
    """The URL for SQLAlchemy, driver named (with its password: for engines, never for messages).

    Raises:
        DatabaseUnusable: not a URL, no database in it, or another driver or kind of database.
    """
    return parse(url).render_as_string(hide_password=False)


def parse(url: str) -> URL:
    """Like `normalise`, as SQLAlchemy's URL.

    Raises:
        DatabaseUnusable: as `normalise`.
    """
    try:
        parsed = make_url(url.strip())
    except (ArgumentError, ValueError):
        raise DatabaseUnusable(
            f"database URL: got {mask(url)}, expected {EXPECTED} "
            "(in a password write %40 for @, %3A for :, %2F for /, %25 for %)"
        ) from None
    shown = mask(url)
    dialect, _, driver = parsed.drivername.partition("+")
    if dialect not in ("postgresql", "postgres"):
        raise DatabaseUnusable(
            f"database URL: got {shown}, expected {EXPECTED}: facts are kept in Postgres, and "
            f"there is no second storage engine. Without SWEEP_DATABASE_URL sweep starts its own."
        )
    if driver not in ("", "psycopg2"):
        raise DatabaseUnusable(
            f"database URL: got driver {driver!r} in {shown}, expected psycopg2: "
            "write postgresql:// (or postgresql+psycopg2://)"
        )
    if url.count("@") > 1:
        raise DatabaseUnusable(
            f"database URL: got a second @ in {shown}, expected {EXPECTED}: "
            "everywhere but before the host write %40 for @"
        )
    if not parsed.database:
        raise DatabaseUnusable(f"database URL: got {shown} without a database, expected {EXPECTED}")
    return parsed.set(drivername=DRIVER)


def mask(url: str | URL) -> str:
    """The URL as it may be shown: passwords are `***`, also in its query; a text that is not a
    clean URL loses everything that could hold one.
    """
    if isinstance(url, str):
        written = url.strip()
        try:
            url = make_url(written)
        except (ArgumentError, ValueError):
            scheme, separator, _ = written.partition("://")
            known = re.fullmatch(r"[a-z0-9+]{1,32}", scheme) if separator else None
            return f"{scheme}://{HIDDEN}" if known else repr(HIDDEN)
        if written.count("@") > 1:
            # Part of an unescaped password was read as the host, the database or the query.
            return f"{url.drivername}://{HIDDEN}"
    secret = {key: HIDDEN for key in url.query if _SECRET_KEY.search(key)}
    shown = url.update_query_dict(secret).render_as_string(hide_password=True)
    return shown.replace(quote(HIDDEN, safe=""), HIDDEN)


def without_secrets(text: str, url: URL) -> str:
    """The text with every password of this URL replaced, as written and as decoded."""
    values = [url.password] + [v for k, v in url.query.items() if _SECRET_KEY.search(k)]
    for value in values:
        for secret in (value,) if isinstance(value, str) else value or ():
            if secret:
                for written in (secret, quote(secret, safe=" +"), quote(secret, safe="")):
                    text = text.replace(written, HIDDEN)
    return text
