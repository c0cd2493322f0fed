"""Owns GPT-2's byte-level BPE, built from its merges file alone.

It must not know files of text or shards.

Ids 0 to 255 are the single bytes in GPT-2's own order, then one id per merge in the order of the
file, then the end-of-text mark, which stands before each document. Source: Radford et al. 2019
(GPT-2); Sennrich et al. 2016 (BPE).
"""

from __future__ import annotations

import functools
import itertools
import re
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import DataError

Pair = tuple[str, str]
"""Two pieces that a merge joins, spelled in GPT-2's stand-ins for bytes."""


class GPT2Encoder:
    """Text to GPT-2 ids; `mark` is the id of the end-of-text token."""

    def __init__(self, merges: Path | Sequence[Pair]) -> None:
        """Take merges, or read a file `vocab.bpe` (or merges.txt); DataError when it is none."""
        characters = _byte_characters()
        self._ids = {character: number for number, character in enumerate(characters.values())}
        self._ranks: dict[Pair, int] = {}
        for left, right in read_merges(merges) if isinstance(merges, Path) else merges:
            if left not in self._ids or right not in self._ids:
                raise DataError(
                    f"{merges}: the merge {f'{left} {right}'!r} is of pieces that do not exist yet; "
                    "expected GPT-2's vocab.bpe, two known pieces a line"
                )
            self._ranks[left, right] = len(self._ranks)
            self._ids[left + right] = len(self._ids)
        self.mark = len(self._ids)
        self._words: dict[str, list[int]] = {}

    @property
    def vocabulary(self) -> int:
        """Number of ids, the mark included (50,257 for GPT-2's own file)."""
        return self.mark + 1

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without a mark."""
        ids: list[int] = []
        for word in cut_into_words(text):
            if word not in self._words:
                self._words[word] = self._encode_word(word)
            ids.extend(self._words[word])
        return ids

    def characters(self) -> list[int]:
        """How many characters begin in each id but the mark: its bytes that do not continue one.

        So the characters of a text are the sum over its ids, wherever it was cut into ids.
        """
        stand_ins = {character: byte for byte, character in _byte_characters().items()}
        return [sum(stand_ins[c] & 0xC0 != 0x80 for c in piece) for piece in self._ids]

    def _encode_word(self, word: str) -> list[int]:
        """Join the pair of the lowest rank until no pair is known."""
        pieces = list(spell_bytes(word.encode()))
        while len(pieces) > 1:
            pairs = list(itertools.pairwise(pieces))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, sys.maxsize))
            if best not in self._ranks:
                break
            joined, place = [], 0
            while place < len(pieces):
                if tuple(pieces[place : place + 2]) == best:
                    joined.append(best[0] + best[1])
                    place += 2
                else:
                    joined.append(pieces[place])
                    place += 1
            pieces = joined
        return [self._ids[piece] for piece in pieces]


def cut_into_words(text: str) -> list[str]:
    """GPT-2's words: no merge reaches over their ends; joined they are the text."""
    return _word_pattern().findall(text)


def spell_bytes(content: bytes) -> str:
    """A printable character per byte."""
    characters = _byte_characters()
    return "".join(characters[byte] for byte in content)


def read_merges(path: Path) -> list[Pair]:
    """The merges of a file `vocab.bpe`, in its order; DataError when it cannot be read."""
    parts = (line.partition(" ") for line in _merge_lines(path))
    return [(left, right) for left, _, right in parts]


def _merge_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DataError(f"{path}: cannot be read ({reason}); expected GPT-2's vocab.bpe") from None
    return [line for line in lines if line and not line.startswith("#version")]


@functools.cache
def _byte_characters() -> dict[int, str]:
    """A printable character for each byte, in GPT-2's order: printable bytes first, as themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {byte: chr(256 + place) for place, byte in enumerate(others)}
    return {byte: chr(byte) for byte in printable} | stand_ins


@functools.cache
def _word_pattern() -> re.Pattern[str]:
    """GPT-2's cut into words: contractions, letters, numbers, others, spaces before each.

    Python's own classes do not separate letters from numbers as Unicode does, so they are written
    out as ranges of code points.
    """
    letters, numbers = _category_class("L"), _category_class("N")
    return re.compile(
        rf"'s|'t|'re|'ve|'m|'ll|'d| ?[{letters}]+| ?[{numbers}]+| ?[^\s{letters}{numbers}]+"
        r"|\s+(?!\S)|\s+"
    )


def _category_class(first_letter: str) -> str:
    ranges: list[list[int]] = []
    for point in range(sys.maxunicode + 1):
        if unicodedata.category(chr(point))[0] == first_letter:
            if ranges and ranges[-1][1] == point - 1:
                ranges[-1][1] = point
            else:
                ranges.append([point, point])
    return "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in ranges)
