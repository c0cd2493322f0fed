"""Owns writing files that appear whole or not at all, and where runs keep what others can use again.

It must not know what is in them, nor import torch or numpy.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from trainer.errors import ConfigError

CACHE_VARIABLE = "TRAINER_CACHE"


def cache_root(named: str | None = None) -> Path:
    """The folder of what can be made again: as named, else TRAINER_CACHE, else the user's cache."""
    root = named or os.environ.get(CACHE_VARIABLE)
    if root:
        return Path(root)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sweep-trainer"


def write_whole(path: Path, *pieces: bytes | memoryview) -> None:
    """Write a file through a temporary one beside it; ConfigError when it cannot be written."""
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as stream:
            for piece in pieces:
                stream.write(piece)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)  # gone already, unless something failed
