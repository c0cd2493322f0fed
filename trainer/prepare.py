"""Owns the making of token shards: FineWeb's from its publisher, and those of texts at hand.

It must not know how shards are read for training, nor import torch.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.data.bpe import GPT2Encoder, Pair
from trainer.data.bpe_training import BYTES, train_merges
from trainer.data.corpora import source_files
from trainer.data.shards import open_shard, write_shard
from trainer.errors import ConfigError, DataError
from trainer.files import write_whole

FINEWEB_REPOSITORY = "kjj0/fineweb10B-gpt2"
"""FineWeb's 10B sample in GPT-2 tokens, on the Hugging Face hub (ODC-By 1.0)."""

GPT2_VOCABULARY = 50_257
BYTE_MARK = 256
SHARD_TOKENS = 100_000_000
Say = Callable[[str], None]


def prepare(options: argparse.Namespace, say: Say) -> int:
    """Run `prepare` with parsed options; 0. ConfigError or DataError when it cannot be done."""
    if options.source == "fineweb":
        prepare_fineweb(options.out, options.shards, say)
        return 0
    if options.source == "bpe":
        prepare_bpe(options.file, options.out, options.vocabulary, options.tokenizers, say)
        return 0
    if options.source == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        files, limit = source_files(root), options.max_bytes
    else:
        files, limit = iter(options.files), None
    prepare_documents(
        files,
        options.out,
        merges=options.merges,
        validation_share=options.validation_share,
        max_bytes=limit,
        say=say,
    )
    return 0


def prepare_fineweb(out: Path, shards: int, say: Say) -> None:
    """Download the validation shard and `shards` training shards into `out`, and check each."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise ConfigError(
            "prepare fineweb: the package huggingface_hub is not installed; expected it for a "
            'download (in the clone: pip install -e ".[prepare]")'
        ) from None
    names = ["fineweb_val_000000.bin"]
    names += [f"fineweb_train_{number:06d}.bin" for number in range(1, shards + 1)]
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        place = out / name
        if not place.exists():
            say(f"{name}: downloading from {FINEWEB_REPOSITORY}")
            try:
                cached = hub.hf_hub_download(FINEWEB_REPOSITORY, name, repo_type="dataset")
            except Exception as error:  # noqa: BLE001 - the client has a dozen ways to be offline
                reason = str(error).partition("\n")[0]
                raise DataError(
                    f"prepare fineweb: {name} cannot be downloaded ({type(error).__name__}: "
                    f"{reason}); expected a network. Offline, `prepare text` and `prepare stdlib` "
                    "make shards of what is at hand"
                ) from None
            partial = place.with_name(f".{name}.part")
            shutil.copyfile(cached, partial)
            partial.replace(place)
        say(f"{place}: {len(open_shard(place).tokens):,} tokens")
    _say_configuration(out, "fineweb", GPT2_VOCABULARY, say)


def prepare_bpe(file: Path, out: Path, vocabulary: int, fast: bool, say: Say) -> None:
    """Train a byte-level BPE on a text and write its merges as a vocab.bpe, for `data.merges`.

    `fast` uses the package tokenizers, which makes merges of the same frequencies in less time.
    """
    try:
        text = _content(file).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: byte {error.start} is not UTF-8; expected a text") from None
    merges = _merges_of_tokenizers(text, vocabulary) if fast else train_merges(text, vocabulary)
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    write_whole(out, ("\n".join(lines) + "\n").encode())
    made = BYTES + len(merges) + 1
    say(
        f"{out}: {len(merges):,} merges, so {made:,} ids with the bytes and a mark\n\n"
        f'[data]\nkind = "titles"\npath = "{file}"\nmerges = "{out}"\nbpe_vocabulary = {made}'
    )


def _merges_of_tokenizers(text: str, vocabulary: int) -> list[Pair]:
    try:
        tokenizers = importlib.import_module("tokenizers")
    except ImportError:
        raise ConfigError(
            "prepare bpe --tokenizers: the package tokenizers is not installed; leave the option out, "
            'or install it (in the clone: pip install -e ".[tokenizers]")'
        ) from None
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.train_from_iterator(
        [text],
        tokenizers.trainers.BpeTrainer(
            vocab_size=vocabulary - 1,  # the mark is ours
            min_frequency=2,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return [(left, right) for left, right in json.loads(model.to_str())["model"]["merges"]]


def prepare_documents(
    files: Iterator[Path],
    out: Path,
    *,
    merges: Path | None,
    validation_share: float,
    max_bytes: int | None,
    say: Say,
) -> None:
    """Write text files as training and validation shards, each file a document with a mark before.

    Documents are held out whole, by the hash of their text, so that copies stay on one side; of a
    single file the end is held out. Tokens are GPT-2's with a `merges` file, else bytes, with 256
    as the mark. A file that is not UTF-8 is refused under GPT-2's tokens.
    """
    encoder = GPT2Encoder(merges) if merges is not None else None
    splits: tuple[list[npt.NDArray[np.uint16]], list[npt.NDArray[np.uint16]]] = ([], [])
    left = max_bytes
    for path in files:
        if left is not None and left <= 0:
            break
        content = _content(path)[:left]
        draw = int.from_bytes(hashlib.sha256(content).digest()[:8], "little") / 2**64
        splits[draw < validation_share].append(_tokens(path, content, encoder))
        if left is not None:
            left -= len(content)
    train, validation = _both_sides(splits, validation_share)
    for split, tokens in (("train", train), ("val", validation)):
        for number, first in enumerate(range(0, len(tokens), SHARD_TOKENS)):
            path = out / f"docs_{split}_{number:06d}.bin"
            write_shard(path, tokens[first : first + SHARD_TOKENS])
            say(f"{path}: {len(open_shard(path).tokens):,} tokens")
    vocabulary = encoder.vocabulary if encoder else BYTE_MARK + 1
    documents = sum(len(split) for split in splits)
    facts = {
        "documents": documents,
        "vocabulary": vocabulary,
        "tokens": [len(train), len(validation)],
    }
    write_whole(out / "docs.json", json.dumps(facts).encode() + b"\n")
    _say_configuration(out, "docs", vocabulary, say)


def _both_sides(
    splits: tuple[list[npt.NDArray[np.uint16]], list[npt.NDArray[np.uint16]]],
    validation_share: float,
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
    if splits[0] and splits[1]:
        return np.concatenate(splits[0]), np.concatenate(splits[1])
    documents = splits[0] + splits[1]
    if not documents:
        raise DataError("prepare: no files with text in them; nothing was written")
    whole = np.concatenate(documents)
    held_out = max(1, int(len(whole) * validation_share))
    if len(whole) <= held_out:
        raise DataError(f"prepare: {len(whole)} tokens are too few to hold any out")
    return whole[:-held_out], whole[-held_out:]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _tokens(path: Path, content: bytes, encoder: GPT2Encoder | None) -> npt.NDArray[np.uint16]:
    if encoder is None:
        bytes_ = np.frombuffer(content, np.uint8).astype(np.uint16)
        return np.concatenate([np.array([BYTE_MARK], np.uint16), bytes_])
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; expected a text") from None
    return np.array([encoder.mark, *encoder.encode(text)], np.uint16)


def _say_configuration(out: Path, name: str, vocabulary: int, say: Say) -> None:
    say(
        "To train on them:\n\n"
        f'[data]\nkind = "shards"\ntrain = "{out}/{name}_train_*.bin"\n'
        f'validation = "{out}/{name}_val_*.bin"\nvocabulary = {vocabulary}'
    )
