"""Owns the corpora: bytes of real text, split once into training and validation, with their hash.

It must not know batches or devices, nor import torch. Every corpus is the same for every seed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.config import Data as DataConfig
from trainer.errors import DataError

BYTE_VOCABULARY = 256
_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
)
_RANDOM_SEED = 20_240_520


@dataclass(frozen=True, slots=True)
class Corpus:
    """Tokens of both splits as 1-D integer arrays, the size of the vocabulary, and what they are.

    `sha256` covers both splits and their lengths; `source` is for people.
    """

    train: npt.NDArray[np.uint8]
    validation: npt.NDArray[np.uint8]
    vocabulary: int
    sha256: str
    source: str


def load_corpus(config: DataConfig) -> Corpus:
    """The configured corpus; DataError when it cannot be read or is empty."""
    if config.kind == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        train, validation = read_source_tree(root, config.max_bytes, config.validation_share)
        source = f"source of the standard library of Python {platform.python_version()}"
    elif config.kind == "text":
        path = Path(config.path or "")
        train, validation = _split(_read_file(path, config.max_bytes), config.validation_share)
        source = f"bytes of {path}"
    else:
        noise = np.random.Generator(np.random.PCG64(_RANDOM_SEED)).bytes(config.max_bytes)
        train, validation = _split(noise, config.validation_share)
        source = "random bytes, which nobody can learn"
    digest = hashlib.sha256(len(train).to_bytes(8, "little"))
    digest.update(train)
    digest.update(validation)
    return Corpus(
        train=np.frombuffer(train, np.uint8),
        validation=np.frombuffer(validation, np.uint8),
        vocabulary=BYTE_VOCABULARY,
        sha256=digest.hexdigest(),
        source=source,
    )


def read_source_tree(root: Path, max_bytes: int, validation_share: float) -> tuple[bytes, bytes]:
    """Training and validation bytes of the .py files under `root`, in the order of their paths.

    A file belongs to one split as a whole, chosen by the hash of its path, so both stay the same
    whatever else is in the tree. Reading ends with the file in which `max_bytes` are reached. Files
    that differ from machine to machine (build settings, site customisation) and tests are left out.
    """
    splits: tuple[list[bytes], list[bytes]] = ([], [])
    left = max_bytes
    for path in _source_files(root):
        if left <= 0:
            break
        text = _read_file(path, left)
        name = path.relative_to(root).as_posix()
        draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") / 2**64
        splits[draw < validation_share].append(text)
        left -= len(text)
    if not splits[0] or not splits[1]:
        raise DataError(f"{root}: no Python source to learn from; expected a standard library")
    return b"".join(splits[0]), b"".join(splits[1])


def _source_files(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from None
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in _SKIPPED_FOLDERS:
                yield from _source_files(Path(entry.path))
        elif (
            entry.name.endswith(".py")
            and entry.is_file(follow_symlinks=False)
            and not entry.name.startswith(("_sysconfigdata", "sitecustomize", "usercustomize"))
        ):
            yield Path(entry.path)


def _read_file(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(max_bytes)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _split(text: bytes, validation_share: float) -> tuple[bytes, bytes]:
    """The end of the text is held out."""
    cut = len(text) - int(len(text) * validation_share)
    return text[:cut], text[cut:]
