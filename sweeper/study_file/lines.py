"""Finds the line of every key in the text of a TOML file, which `tomllib` does not tell.

It must not know what the keys mean; the text has been accepted by `tomllib` before.
"""

from __future__ import annotations

import re
import tomllib

Path = tuple[str | int, ...]
"""Keys and 0-based places in lists, from the top: ("stage1", "group", 0, "vary")."""

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)+")
_SPACES = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'", re.DOTALL
)
_SCALAR = re.compile(r"[^,\]}#\n]*")


def key_lines(text: str) -> dict[Path, int]:
    """1-based line of every table header, key and list item, by its path."""
    return _Scanner(text).scan()


def line_of(lines: dict[Path, int], path: Path) -> int | None:
    """The line of a path, else of the nearest thing that encloses it, else None."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text.replace("\r\n", "\n")
        self._at = 0
        self._lines: dict[Path, int] = {}
        self._tables: dict[Path, int] = {}  # arrays of tables: how many so far

    def scan(self) -> dict[Path, int]:
        prefix: Path = ()
        while True:
            self._skip(_BLANK)
            if self._at >= len(self._text):
                return self._lines
            line = self._line()
            if self._text.startswith("[", self._at):
                many = self._text.startswith("[[", self._at)
                self._at += 2 if many else 1
                keys = self._keys()
                self._at += 2 if many else 1
                prefix = self._table(keys, many=many, line=line)
            else:
                self._pair(prefix)

    def _table(self, keys: list[str], *, many: bool, line: int) -> Path:
        path: Path = ()
        for place, key in enumerate(keys):
            path = (*path, key)
            self._lines.setdefault(path, line)
            if many and place == len(keys) - 1:
                self._tables[path] = self._tables.get(path, 0) + 1
            if path in self._tables:
                path = (*path, self._tables[path] - 1)
        self._lines[path] = line
        return path

    def _pair(self, prefix: Path) -> None:
        line = self._line()
        path = prefix
        for key in self._keys():
            path = (*path, key)
            self._lines.setdefault(path, line)
        self._at += 1  # the equals sign
        self._skip(_SPACES)
        self._value(path)

    def _keys(self) -> list[str]:
        keys = []
        while True:
            self._skip(_SPACES)
            if quoted := _STRING.match(self._text, self._at):
                keys.append(tomllib.loads(f"value = {quoted[0]}")["value"])
                self._at = quoted.end()
            elif bare := _BARE_KEY.match(self._text, self._at):
                keys.append(bare[0])
                self._at = bare.end()
            self._skip(_SPACES)
            if not self._text.startswith(".", self._at):
                return keys
            self._at += 1

    def _value(self, path: Path) -> None:
        if self._text.startswith("{", self._at):
            self._items("}", path)
        elif self._text.startswith("[", self._at):
            self._items("]", path)
        elif string := _STRING.match(self._text, self._at):
            self._at = string.end()
        else:
            self._skip(_SCALAR)

    def _items(self, closing: str, path: Path) -> None:
        """A list or an inline table, from its opening bracket to after its closing one."""
        self._at += 1
        place = 0
        while True:
            self._skip(_BLANK)
            if self._text.startswith(closing, self._at) or self._at >= len(self._text):
                self._at += 1
                return
            if self._text.startswith(",", self._at):
                self._at += 1
            elif closing == "}":
                self._pair(path)
            else:
                self._lines[(*path, place)] = self._line()
                self._value((*path, place))
                place += 1

    def _skip(self, pattern: re.Pattern[str]) -> None:
        if match := pattern.match(self._text, self._at):
            self._at = match.end()

    def _line(self) -> int:
        return self._text.count("\n", 0, self._at) + 1
