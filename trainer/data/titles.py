"""Owns short lines of text (headlines) as tokens of a byte-level BPE trained on them, kept on disk.

It must not know batches or devices, nor import torch. Without a file the titles are the first lines of
the docstrings of Python's standard library, which every machine has.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.bpe import GPT2Encoder, read_merges
from trainer.data.bpe_training import train_merges
from trainer.data.known import Stamp
from trainer.errors import ConfigError, DataError
from trainer.files import cache_root, write_whole

SHUFFLE_SEED = 1337
FORMAT = "titles-2"
_OPENING = re.compile(r'^[ \t]*[rRuU]?"""(\S[^\n]*?)(?:"""|$)', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Titles:
    """Both splits as ids (N,) uint16, a mark after each title, and the characters (V,) of each id."""

    train: npt.NDArray[np.uint16]
    validation: npt.NDArray[np.uint16]
    characters: npt.NDArray[np.int64]

    @property
    def vocabulary(self) -> int:
        """Number of ids, the mark included."""
        return len(self.characters)


def docstring_titles(files: Sequence[Path]) -> list[str]:
    """The first lines of the docstrings in Python files, kept as long as no file changes."""
    key = hashlib.sha256(FORMAT.encode())
    for path in files:
        key.update(f"{path} {Stamp.of(path.stat())}\n".encode())
    place = cache_root() / "tokens" / f"docstrings-{key.hexdigest()[:32]}.txt"
    try:
        return place.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        found = docstring_lines(path.read_text("utf-8", errors="replace") for path in files)
    with contextlib.suppress(ConfigError):  # a cache that cannot be written costs time alone
        write_whole(place, "\n".join(found).encode())
    return found


def docstring_lines(sources: Iterable[str]) -> list[str]:
    """The first line of everything that looks like a docstring, each once, in order."""
    found: dict[str, None] = {}
    for source in sources:
        for match in _OPENING.finditer(source):
            found.setdefault(match[1].strip())
    return list(found)


def tokenised(
    titles: Sequence[str],
    *,
    validation_share: float,
    vocabulary: int,
    mark_characters: int,
    merges: Path | None,
    source: str,
) -> Titles:
    """The titles in a fixed random order, the last `validation_share` of them held out.

    The BPE is trained on the training titles alone, or read from `merges` (a vocab.bpe). What was
    once made is kept in the trainer's cache folder. DataError when a split would be empty or
    `merges` makes another vocabulary.
    """
    order = np.random.Generator(np.random.PCG64(SHUFFLE_SEED)).permutation(len(titles))
    cut = len(titles) - int(len(titles) * validation_share)
    if not 0 < cut < len(titles):
        raise DataError(
            f"{source}: {len(titles)} titles; expected enough for both splits (data.validation_share)"
        )
    splits = [[titles[i] for i in order[:cut]], [titles[i] for i in order[cut:]]]
    learned = None if merges is None else read_merges(merges)
    key = hashlib.sha256(f"{FORMAT} {vocabulary} {learned}".encode())
    for split in splits:
        key.update("\n".join(split).encode() + b"\0")
    place = cache_root() / "tokens" / f"{FORMAT}-{key.hexdigest()[:32]}.npz"
    found = _kept(place)
    if found is None:
        encoder = GPT2Encoder(learned or train_merges("\n".join(splits[0]), vocabulary))
        if learned is not None and encoder.vocabulary != vocabulary:
            raise DataError(
                f"{merges}: makes {encoder.vocabulary} ids; expected data.bpe_vocabulary = {vocabulary}"
            )
        found = {
            "train": _encoded(splits[0], encoder),
            "validation": _encoded(splits[1], encoder),
            "characters": np.array([*encoder.characters(), 0], np.int64),
        }
        _keep(place, found)
    characters = found["characters"].copy()
    characters[-1] = mark_characters
    return Titles(found["train"], found["validation"], characters)


def _encoded(titles: Sequence[str], encoder: GPT2Encoder) -> npt.NDArray[np.uint16]:
    ids: list[int] = []
    for title in titles:
        ids += encoder.encode(title)
        ids.append(encoder.mark)
    return np.array(ids, np.uint16)


def _kept(place: Path) -> dict[str, npt.NDArray[Any]] | None:
    """What was kept there; None when there is nothing, or nothing whole."""
    try:
        content = io.BytesIO(place.read_bytes())
        with np.load(content, allow_pickle=False) as kept:
            return {name: kept[name] for name in ("train", "validation", "characters")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _keep(place: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    with contextlib.suppress(ConfigError):
        write_whole(place, content.getvalue())
