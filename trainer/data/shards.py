"""Owns the shard format of FineWeb's token files: reading with every fault named, and writing.

It must not know corpora, splits or batches, nor import torch.

A shard is 256 little-endian int32 (1,024 bytes: magic, version, token count, then zeros) and that
many little-endian uint16 tokens. Source: KellerJordan/modded-nanogpt (MIT), described anew.
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.errors import DataError
from trainer.files import write_whole

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 1024
MAX_VOCABULARY = 2**16
Tokens = npt.NDArray[np.uint16]


def open_shard(path: Path) -> Tokens:
    """The tokens (N,) of one file, mapped into memory; DataError for every fault of its header."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(HEADER_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
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
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))


def open_shards(pattern: str, *, vocabulary: int, max_tokens: int, key: str) -> list[Tokens]:
    """The first `max_tokens` tokens (0: all) of the files that match, in the order of their names.

    DataError when nothing matches (it names the configuration's `key`), for a fault of a header,
    and for a token that is not below `vocabulary`.
    """
    paths = sorted(glob.glob(pattern))  # noqa: PTH207 - the pattern may be absolute
    if not paths:
        raise DataError(
            f"{key} = {pattern!r}: no such file; expected token shards, which "
            "`python -m trainer prepare` makes"
        )
    parts: list[Tokens] = []
    left = max_tokens or None
    for path in map(Path, paths):
        tokens = open_shard(path)[:left]
        _refuse_strangers(path, tokens, vocabulary)
        parts.append(tokens)
        if left is not None:
            left -= len(tokens)
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


def _refuse_strangers(path: Path, tokens: Tokens, vocabulary: int) -> None:
    if vocabulary >= MAX_VOCABULARY or int(tokens.max()) < vocabulary:
        return
    place = int(np.argmax(tokens >= vocabulary))
    raise DataError(
        f"{path}: token {int(tokens[place])} at position {place}; expected tokens below "
        f"data.vocabulary = {vocabulary}"
    )
