"""Owns lists of names as tokens: a row each, with a mark at both ends, padded to one length.

It must not know batches, devices or models, nor import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.errors import DataError

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MARK = len(LETTERS)
"""The symbol before a name and after it."""
VOCABULARY = MARK + 1
PADDING = VOCABULARY
"""Stands after the mark up to the end of a row; no symbol: an input reads it as the mark, and as a
target it does not count."""

SHIPPED = Path(__file__).with_name("names.txt")
_ORDER_SEED = 20_240_521


def read_names(
    path: Path, text: str, *, context: int, validation_share: float
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Training and validation rows of `context` + 1 symbols, each as one flat array of uint8.

    The lists are usually sorted, so names are dealt to the two splits in a fixed random order.
    DataError names the first line that is no name of a to z, or too long for `context` targets.
    """
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if name := line.strip():
            rows.append(_row(path, number, name, context))
    held_out = int(len(rows) * validation_share)
    if not 0 < held_out < len(rows):
        raise DataError(
            f"{path}: {len(rows)} names do not make two splits (data.validation_share = "
            f"{validation_share:g}); expected a list of names, one a line"
        )
    order = np.random.Generator(np.random.PCG64(_ORDER_SEED)).permutation(len(rows))
    table = np.array(rows, np.uint8)[order]
    return table[held_out:].reshape(-1), table[:held_out].reshape(-1)


def spelled(symbols: Sequence[int]) -> str:
    """The name that generated symbols spell, up to the first mark."""
    letters = []
    for symbol in symbols:
        if symbol >= MARK:
            break
        letters.append(LETTERS[symbol])
    return "".join(letters)


def _row(path: Path, number: int, name: str, context: int) -> list[int]:
    if not all("a" <= letter <= "z" for letter in name):
        raise DataError(f"{path}: line {number}: {name[:40]!r}: expected letters a to z alone")
    if len(name) >= context:
        raise DataError(
            f"{path}: line {number}: {name[:40]!r} has {len(name)} letters; expected fewer than "
            f"data.context = {context}, so that its end is learned too"
        )
    symbols = [MARK, *(LETTERS.index(letter) for letter in name), MARK]
    return symbols + [PADDING] * (context + 1 - len(symbols))
