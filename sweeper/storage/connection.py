"""What the driver is told about every connection of ours: where to, and how long to wait.

It must not know SQLAlchemy, nor explain what is wrong with a URL: url.py does both.
"""

from __future__ import annotations

import os
import re
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

CONNECT_S: Final = 10
STATEMENT_S: Final = 60
# A process that is stopped inside a transaction must not hold its locks for ever.
IDLE_IN_TRANSACTION_S: Final = 30

_PLAIN: Final = re.compile(
    r"postgres(ql)?(\+psycopg2)?://((?P<user>[^:/?@]+)(:(?P<password>[^/?@]*))?@)?"
    r"(?P<host>[A-Za-z0-9._-]*)(:(?P<port>[0-9]+))?/(?P<dbname>[^/?@%\s]+)(\?(?P<query>[^@\s]*))?"
)
_SEVERAL: Final = re.compile("[,:]")


def deadlines(*, connect_s: int = CONNECT_S, statement_s: int = STATEMENT_S) -> dict[str, Any]:
    """Parameters of libpq's for connecting, statements, silence and a network that swallows all."""
    return {
        "connect_timeout": connect_s,
        "fallback_application_name": f"sweep {os.getpid()}",
        "keepalives_idle": 15,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 1000 * statement_s,
        "options": f"-c statement_timeout={statement_s}s "
        f"-c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_S}s",
    }


def plain(url: str) -> dict[str, str] | None:
    """The parameters of libpq's in a URL (its password among them), as SQLAlchemy reads them.

    None for a wrong URL, and for one with several hosts or other rarities.
    """
    found = _PLAIN.fullmatch(url.strip())
    if found is None:
        return None
    query = parse_qsl(found["query"] or "")
    written = dict(query)
    if len(written) < len(query) or "port" in written or _SEVERAL.search(written.get("host", "")):
        return None
    parts = found.groupdict(default="")
    del parts["query"]
    return {name: unquote(part) for name, part in parts.items() if part} | written
