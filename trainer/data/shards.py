"""Owns the shard format of FineWeb's token files: reading with every fault named, and writing.

It must not know corpora, splits or batches, nor import torch.

A shard is 256 little-endian int32 (1,024 bytes: magic, version, token count, then zeros) and that
many little-endian uint16 tokens. Source: KellerJordan/modded-nanogpt (MIT), described anew.
"""

from __future__ import annotations

import glob
import mmap
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.data.known import Stamp
from trainer.errors import DataError
from trainer.files import write_whole

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 1024
MAX_VOCABULARY = 2**16
Tokens = npt.NDArray[np.uint16]


class Shard(NamedTuple):
    """The tokens (N,) that are taken of a file, mapped into memory, and the file as it was opened."""

    tokens: Tokens
    path: Path
    stamp: Stamp


def open_shard(path: Path) -> Shard:
    """One file; DataError for every fault of its header."""
    try:
        with path.open("rb") as stream:
            stamp = Stamp.of(os.fstat(stream.fileno()))
            head = stream.read(HEADER_BYTES)
            count = _tokens_of(path, head, stamp.size)
            tokens = np.memmap(stream, "<u2", mode="r", offset=HEADER_BYTES, shape=(count,))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return Shard(tokens, path, stamp)


def _tokens_of(path: Path, head: bytes, size: int) -> int:
    """How many tokens the header says, and the size bears out."""
    if len(head) < HEADER_BYTES:
        raise DataError(
            f"{path}: {size} bytes; expected a shard, which has a header of {HEADER_BYTES} bytes"
        )
    magic, version, count = (int(number) for number in np.frombuffer(head, "<i4", count=3))
    if magic != MAGIC:
        raise DataError(
            f"{path}: magic number {magic}; expected {MAGIC} (is it raw tokens without a header? "
            "`python -m trainer prepare` writes shards)"
        )
    if version != VERSION:
        raise DataError(f"{path}: version {version}; expected {VERSION}")
    if count <= 0:
        raise DataError(f"{path}: the header says {count} tokens; expected at least 1")
    expected = HEADER_BYTES + 2 * count
    if size != expected:
        fault = "it is cut off" if size < expected else "it has bytes that are no tokens"
        raise DataError(
            f"{path}: {size} bytes; expected {expected} for the {count} tokens that its header says: "
            f"{fault}"
        )
    return count


def open_shards(pattern: str, *, max_tokens: int, key: str) -> list[Shard]:
    """The first `max_tokens` tokens (0: all) of the files that match, in the order of their names.

    DataError when nothing matches (it names the configuration's `key`), and for a fault of a header.
    """
    paths = sorted(glob.glob(pattern))  # noqa: PTH207 - the pattern may be absolute
    if not paths:
        raise DataError(
            f"{key} = {pattern!r}: no such file; expected token shards, which "
            "`python -m trainer prepare` makes"
        )
    parts: list[Shard] = []
    left = max_tokens or None
    for path in map(Path, paths):
        whole = open_shard(path)
        parts.append(whole._replace(tokens=whole.tokens[:left]))
        if left is not None:
            left -= len(parts[-1].tokens)
            if left <= 0:
                break
    return parts


def write_shard(path: Path, tokens: npt.NDArray[Any]) -> None:
    """Write `tokens` (N,) as a shard that appears whole or not at all; DataError when empty."""
    if not len(tokens):
        raise DataError(f"{path}: no tokens to write")
    header = np.zeros(HEADER_BYTES // 4, "<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    write_whole(path, header.tobytes(), np.ascontiguousarray(tokens, "<u2").data)


def bring_in(shard: Shard) -> Tokens:
    """Have all of it in memory, so that no disk is waited for while training; a token of every page."""
    every = mmap.PAGESIZE // shard.tokens.itemsize
    return np.ascontiguousarray(shard.tokens[::every])


def refuse_strangers(shard: Shard, vocabulary: int) -> None:
    """DataError for a token that is not below `vocabulary`."""
    tokens = shard.tokens
    if vocabulary >= MAX_VOCABULARY or int(tokens.max()) < vocabulary:
        return
    place = int(np.argmax(tokens >= vocabulary))
    raise DataError(
        f"{shard.path}: token {int(tokens[place])} at position {place}; expected tokens below "
        f"data.vocabulary = {vocabulary}"
    )
