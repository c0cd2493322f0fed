"""Owns what is known of large files that have not changed since: a hash that need not be taken again.

It must not know formats, splits or tokens, nor import torch or numpy.

Every trial of a sweep reads the same files, and hashing a GB takes half a second to three: longer than
everything else that lies between two warm trials. As git's index does, a file is taken for unchanged
while its device, inode, size and both times of change are what they were, and a hash is kept only of
files that had been left alone for a while when it was taken. Whoever still writes through a mapping
(the times of a file do not move with every store) deceives it: prepare data first, then train.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.errors import ConfigError
from trainer.files import cache_root, write_whole

FORMAT = "sha256-1"
LEAST_BYTES = 1 << 24
"""Less is hashed in some ten milliseconds, and nothing is kept of it."""
SETTLED_S = 2.0
"""A file that is written within the same tick of its clock as before would look unchanged."""


class Stamp(NamedTuple):
    """What changes when a file does; times are nanoseconds of the file system's clock."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Stamp:
        """From what the system says of a file."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def hash_of(files: Sequence[tuple[Path, Stamp]], what: str, compute: Callable[[], str]) -> str:
    """`compute()`, or what it gave for the same files before.

    Args:
        files: Every file that it reads, with its stamp when it was opened.
        what: All else that its result depends on.
        compute: Takes the hash (64 hexadecimal digits); its errors are passed on, and nothing is kept.
    """
    if sum(stamp.size for _, stamp in files) < LEAST_BYTES:
        return compute()
    try:
        root = cache_root()
    except RuntimeError:  # this user has no home
        return compute()
    key = hashlib.sha256(repr((FORMAT, what, [stamp for _, stamp in files])).encode()).hexdigest()
    place = root / "data" / key[:32]
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if re.fullmatch("[0-9a-f]{64}", found := place.read_text("ascii")):
            return found
    now_ns = time.time_ns()
    result = compute()
    if all(_is_settled(path, stamp, now_ns) for path, stamp in files):
        with contextlib.suppress(
            ConfigError
        ):  # a folder that cannot be written costs time, no more
            write_whole(place, result.encode("ascii"))
    return result


def _is_settled(path: Path, stamp: Stamp, now_ns: int) -> bool:
    """Not changed while it was read, nor shortly before."""
    try:
        same = Stamp.of(path.stat()) == stamp
    except OSError:
        return False
    return same and max(stamp.modified_ns, stamp.changed_ns) < now_ns - SETTLED_S * 1e9
