"""A Postgres socket between a client and the server, which loses one answer on purpose.

It must not understand the protocol beyond finding a word in what the client says.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote

SOCKET = ".s.PGSQL.5432"


class LosingProxy:
    """Listens in `folder`. Once armed, the answer to the next statement with `word` never arrives:
    the server has done what it was asked, and the client sees its connection break.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._address, _, query = url.partition("?")
        self._server = str(Path(unquote(parse_qs(query)["host"][0])) / SOCKET)
        self.url = f"{self._address}?host={quote(str(folder), safe='')}"
        self._after, self._word = b"", None
        self.lost = 0
        self._path = folder / SOCKET
        self.come_back()

    def lose_answer_to(self, word: bytes, *, after: bytes = b"") -> None:
        """The next statement with `word`, from the one with `after` on."""
        self._after, self._word = after, word

    def come_back(self) -> None:
        """Be there (again)."""
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def go_away(self) -> None:
        """Every connection breaks, and there is nothing left to connect to."""
        self._path.unlink()
        self.close()

    def close(self) -> None:
        for one in (self._listener, *(s for pair in self._pairs for s in pair)):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                self._pairs.append((client, server))
                cut = threading.Event()
                for one, other, asks in ((client, server, True), (server, client, False)):
                    threading.Thread(
                        target=self._pump, args=(one, other, asks, cut), daemon=True
                    ).start()

    def _pump(self, one: socket.socket, other: socket.socket, asks: bool, cut) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                if asks and self._after and self._after in data:
                    self._after = b""
                if asks and not self._after and self._word is not None and self._word in data:
                    self._word = None
                    cut.set()
                if not asks and cut.is_set():  # the server has answered: it is done, and not heard
                    self.lost += 1
                    break
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
