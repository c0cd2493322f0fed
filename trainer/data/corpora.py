"""Owns the corpora: real text as tokens, split once into training and validation, with its hash.

It must not know batches or devices, nor import torch. Every corpus is the same for every seed.
"""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
import importlib.util
import os
import platform
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.config import Data as DataConfig
from trainer.data import known, names
from trainer.data.shards import bring_in, open_shards, refuse_strangers
from trainer.data.titles import docstring_titles, tokenised
from trainer.errors import DataError

BYTE_VOCABULARY = 256
_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
)
_RANDOM_SEED = 20_240_520


@dataclass(frozen=True, slots=True)
class Corpus:
    """Tokens of both splits, the size of the vocabulary, and what they are.

    A split is a list of 1-D arrays of unsigned integers that follow one another. `sha256` covers
    both splits and their lengths; `source` is for people. `encode` turns a text into tokens of this
    corpus; None where that is not known here (shards, characters, names, titles). `characters`
    (vocabulary,) says how many characters of text each token is, where that is known: losses can then
    be told per character. `row` is 0 for running text; else every sequence is a row of so many tokens,
    where those from the vocabulary's size on are padding.
    """

    train: Sequence[npt.NDArray[Any]]
    validation: Sequence[npt.NDArray[Any]]
    vocabulary: int
    sha256: str
    source: str
    encode: Callable[[str], Sequence[int]] | None = None
    characters: npt.NDArray[np.int64] | None = None
    row: int = 0


def bytes_of(text: str) -> Sequence[int]:
    """The UTF-8 bytes of `text`."""
    return text.encode()


def load_corpus(config: DataConfig) -> Corpus:
    """The configured corpus; DataError when it cannot be read, is damaged or is empty."""
    corpus = _split_corpus(config)
    if not config.train_on_all:
        return corpus
    return dataclasses.replace(corpus, train=[*corpus.train, *corpus.validation])


def _split_corpus(config: DataConfig) -> Corpus:
    if config.kind == "names":
        return _names(config)
    if config.kind == "shards":
        return _shards(config)
    if config.kind == "characters":
        return _characters(config)
    if config.kind == "titles":
        return _titles(config)
    if config.kind == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        train, validation = read_source_tree(root, config.max_bytes, config.validation_share)
        source = f"source of the standard library of Python {platform.python_version()}"
    elif config.kind == "random":
        noise = np.random.Generator(np.random.PCG64(_RANDOM_SEED)).bytes(config.max_bytes)
        train, validation = _split(noise, config.validation_share)
        source = "random bytes, which nobody can learn"
    elif config.kind == "topics":
        train, validation = _split(read_topics(config.max_bytes), config.validation_share)
        source = f"the manual pages within Python {platform.python_version()}, English prose"
    else:
        path = Path(config.path or "")
        content = _read_file(path, config.max_bytes)
        if config.kind == "text":
            _decode(path, content)
        train, validation = _split(content, config.validation_share)
        source = f"bytes of {path}"
    return _corpus(
        [np.frombuffer(train, np.uint8)],
        [np.frombuffer(validation, np.uint8)],
        BYTE_VOCABULARY,
        source,
        encode=bytes_of,
    )


def _shards(config: DataConfig) -> Corpus:
    """Token files as they are: training and validation are separate files."""
    train = open_shards(config.train or "", max_tokens=config.max_tokens, key="data.train")
    validation = open_shards(
        config.validation or "", max_tokens=config.max_validation_tokens, key="data.validation"
    )
    every = (*train, *validation)
    splits = [[shard.tokens for shard in split] for split in (train, validation)]
    lengths = [[len(tokens) for tokens in split] for split in splits]
    # where the file system says too little of a change (images whose times are fixed), this will
    sample = _hash([bring_in(shard) for shard in every], [])

    def examined() -> str:
        for shard in every:
            refuse_strangers(shard, config.vocabulary)
        return _hash(splits[0], splits[1])

    sha256 = known.hash_of(
        [(shard.path, shard.stamp) for shard in every],
        f"shards {config.vocabulary} {lengths} {sample}",
        examined,
    )
    names = f"{len(train)} token file{'s' if len(train) > 1 else ''}, {config.train}"
    return Corpus(splits[0], splits[1], config.vocabulary, sha256, names)


def _titles(config: DataConfig) -> Corpus:
    """Lines of a file, or of the standard library's docstrings, as tokens of their own BPE."""
    if config.path:
        path = Path(config.path)
        lines = _decode(path, _read_file(path, config.max_bytes)).splitlines()
        titles, source = [line.strip() for line in lines if line.strip()], f"lines of {path}"
    else:
        root = Path(sysconfig.get_path("stdlib"))
        titles = docstring_titles(list(source_files(root)))
        source = f"docstrings of the standard library of Python {platform.python_version()}"
    made = tokenised(
        titles,
        validation_share=config.validation_share,
        vocabulary=config.bpe_vocabulary,
        mark_characters=config.mark_characters,
        merges=Path(config.merges) if config.merges else None,
        source=source,
    )
    corpus = _corpus(
        [made.train],
        [made.validation],
        made.vocabulary,
        f"{len(titles):,} {source}, BPE of {made.vocabulary:,}",
    )
    return dataclasses.replace(corpus, characters=made.characters)


def _names(config: DataConfig) -> Corpus:
    """A list of names, the shipped one unless a path is given."""
    path = Path(config.path) if config.path else names.SHIPPED
    train, validation = names.read_names(
        path,
        _decode(path, _read_file(path, config.max_bytes)),
        context=config.context,
        validation_share=config.validation_share,
    )
    row = config.context + 1
    source = f"{(len(train) + len(validation)) // row:,} names of {path.name}"
    return _corpus([train], [validation], names.VOCABULARY, source, row=row)


def _characters(config: DataConfig) -> Corpus:
    """A text, one token a character; the vocabulary is what occurs in it, in code point order."""
    path = Path(config.path or "")
    text = _decode(path, _read_file(path, config.max_bytes))
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    alphabet, ids = np.unique(points, return_inverse=True)
    tokens = ids.astype(np.uint16 if len(alphabet) > 256 else np.uint8)
    cut = len(tokens) - int(len(tokens) * config.validation_share)
    source = f"{len(alphabet)} kinds of characters in {path}"
    return _corpus(
        [tokens[:cut]], [tokens[cut:]], len(alphabet), source, alphabet=alphabet.tobytes()
    )


def _corpus(
    train: Sequence[npt.NDArray[Any]],
    validation: Sequence[npt.NDArray[Any]],
    vocabulary: int,
    source: str,
    *,
    alphabet: bytes = b"",
    encode: Callable[[str], Sequence[int]] | None = None,
    row: int = 0,
) -> Corpus:
    sha256 = _hash(train, validation, alphabet)
    return Corpus(train, validation, vocabulary, sha256, source, encode, row=row)


def _hash(
    train: Sequence[npt.NDArray[Any]], validation: Sequence[npt.NDArray[Any]], more: bytes = b""
) -> str:
    digest = hashlib.sha256(sum(part.nbytes for part in train).to_bytes(8, "little"))
    for part in (*train, *validation):
        digest.update(part.data)
    digest.update(more)
    return digest.hexdigest()


def _decode(path: Path, content: bytes) -> str:
    """The text in `content`, whose last character may have been cut off by data.max_bytes."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(content)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8; expected a text "
            '(data.kind = "bytes" reads any file)'
        ) from None


def read_topics(max_bytes: int) -> bytes:
    """What Python's own `help()` shows of the language's manual: English prose on every machine.

    Topics follow one another in the order of their names. DataError when this Python lacks them.
    """
    if importlib.util.find_spec("pydoc_data.topics") is None:
        raise DataError(
            'data.kind = "topics": this Python has no pydoc_data.topics; expected a complete '
            'standard library (or another data.kind, such as "text")'
        )
    from pydoc_data.topics import topics  # noqa: PLC0415 - 0.7 MB that no other run needs

    return "\n".join(topics[name].strip() for name in sorted(topics)).encode()[:max_bytes]


def read_source_tree(root: Path, max_bytes: int, validation_share: float) -> tuple[bytes, bytes]:
    """Training and validation bytes of the .py files under `root`, in the order of their paths.

    A file belongs to one split as a whole, chosen by the hash of its path, so both stay the same
    whatever else is in the tree. Reading ends with the file in which `max_bytes` are reached. Files
    that differ from machine to machine (build settings, site customisation) and tests are left out.
    """
    splits: tuple[list[bytes], list[bytes]] = ([], [])
    left = max_bytes
    for path in source_files(root):
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


def source_files(folder: Path) -> Iterator[Path]:
    """The .py files below `folder` that are alike on every machine, in the order of their paths."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from None
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in _SKIPPED_FOLDERS:
                yield from source_files(Path(entry.path))
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
