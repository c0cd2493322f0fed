"""Owns writing files that appear whole or not at all.

It must not know what is in them, nor import torch or numpy.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from trainer.errors import ConfigError


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
