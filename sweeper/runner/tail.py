"""Lines of a growing file, in bounded pieces: no line and no flood is ever held whole in memory.

It must not know what the lines mean or when to look again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

CHUNK = 256 * 1024


class Line(NamedTuple):
    """One line without its end; `cut` says that it was longer and only its beginning is here."""

    text: bytes
    cut: bool = False


class Tail:
    """Reads a file from its start to wherever it ends now, and on from there.

    The file is created if need be and its descriptor kept, so deleting the file hurts nobody. A line
    longer than `longest` bytes is given once, cut, and skipped up to its end. With `returns`, a
    carriage return ends a line too (progress bars).
    """

    def __init__(self, path: Path, *, longest: int, returns: bool = False) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._longest = longest
        self._returns = returns
        self._offset = 0
        self._rest = b""
        self._skipping = False
        self.behind = False
        """Whether the last read left something unread."""

    def read(self) -> list[Line]:
        """Whole lines among the next CHUNK bytes; empty when there is nothing new.

        Raises:
            OSError: the file's disk is gone.
        """
        data = os.pread(self._descriptor, CHUNK, self._offset)
        self.behind = len(data) == CHUNK
        if not data:
            if os.fstat(self._descriptor).st_size < self._offset:  # somebody truncated it
                self._offset, self._rest, self._skipping = 0, b"", False
            return []
        self._offset += len(data)
        if self._returns:
            data = data.replace(b"\r", b"\n")
        if self._skipping:
            end = data.find(b"\n")
            if end < 0:
                return []
            data, self._skipping = data[end + 1 :], False
        *whole, self._rest = (self._rest + data).split(b"\n")
        lines = [self._line(text) for text in whole if text]
        if len(self._rest) > self._longest:
            lines.append(self._line(self._rest))
            self._rest, self._skipping = b"", True
        return lines

    @property
    def offset(self) -> int:
        """Where the next read begins: nobody needs the bytes before it."""
        return self._offset

    def unfinished(self) -> bytes:
        """The last line, if it has no end."""
        return self._rest

    def size(self) -> int:
        """Bytes in the file now, read or not."""
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

    def _line(self, text: bytes) -> Line:
        return Line(text[: self._longest], cut=True) if len(text) > self._longest else Line(text)


def last_lines(path: Path, *, most_bytes: int = 8192, most_lines: int = 40) -> str:
    """The end of a text file for people, undecodable bytes and NULs replaced; "" when unreadable."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most_bytes))
            text = file.read(most_bytes)
    except OSError:
        return ""
    lines = text.decode("utf-8", errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
    return "\n".join(lines.splitlines()[-most_lines:])
