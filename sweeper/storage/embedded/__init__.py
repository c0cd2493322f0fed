"""A private Postgres that commands start on demand, share, and leave to stop by itself.

It must not know what is stored in it; importing it imports the standard library only.

    layout      the folder's files, locks and holders          flock decides, never a process id
    binaries    the programs: a wheel's, the system's, a copy
    cluster     data directory, socket folder, account, initdb
    supervisor  the detached process that owns the server
    access      what a command calls: open_server, status, stop, keep_alive
"""

from sweeper.storage.embedded.access import (
    Server,
    Status,
    Stopped,
    keep_alive,
    open_server,
    status,
    stop,
)
from sweeper.storage.embedded.layout import Holder
from sweeper.storage.embedded.options import Options

__all__ = [
    "Holder",
    "Options",
    "Server",
    "Status",
    "Stopped",
    "keep_alive",
    "open_server",
    "status",
    "stop",
]
