"""Owns minimal pairs: sentences of which one is acceptable, and how often a model prefers that one.

It must not know clocks or training. Sources: BLiMP, arXiv 1912.00582 (form and accuracy);
"Masked Language Model Scoring", arXiv 1910.14659 (pseudo-log-likelihood).

A causal model's score of a sentence is the sum of log p(token | its past), after a line end. A masked
model's is its pseudo-log-likelihood: each token in turn is hidden, and the log-probabilities of what
was there are added up. A pair is won when the acceptable sentence's score is strictly higher. The sum
is the default normalisation; the mean over tokens changes who wins where the lengths differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.errors import DataError

OWN = "own"
"""The name of the pairs that come with the trainer, written for it (not BLiMP's)."""

_OWN_FILE = Path(__file__).parent / "data" / "own_pairs.jsonl"
_START = "\n"
_ROWS_PER_PASS = 256


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sentences that differ in one point of grammar, and the paradigm they belong to."""

    good: str
    bad: str
    paradigm: str


def read_pairs(place: str, most: int = 0) -> list[Pair]:
    """The pairs in a file, or in the .jsonl files of a folder; the first `most` of each paradigm.

    `place` "own" means the pairs that come with the trainer. DataError when there are none, or a
    line is not a JSON object with `sentence_good`, `sentence_bad` and `UID`.
    """
    path = _OWN_FILE if place == OWN else Path(place)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    found: dict[str, list[Pair]] = {}
    for file in files:
        for pair in _pairs_in(file):
            of_paradigm = found.setdefault(pair.paradigm, [])
            if not most or len(of_paradigm) < most:
                of_paradigm.append(pair)
    if not found:
        raise DataError(f"pairs.path = {place!r}: no pairs in it; expected .jsonl files as BLiMP's")
    return [pair for of_paradigm in found.values() for pair in of_paradigm]


def _pairs_in(file: Path) -> Iterator[Pair]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataError(
            f"pairs.path: {file} cannot be read ({reason}); expected a .jsonl file, a folder of "
            f'them, or "{OWN}"'
        ) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            body = json.loads(line)
            values = [body[key] for key in ("sentence_good", "sentence_bad", "UID")]
        except (ValueError, TypeError, KeyError):
            values = []
        if len(values) != 3 or not all(isinstance(value, str) and value for value in values):
            raise DataError(
                f"{file}, line {number}: not a minimal pair; expected a JSON object with the texts "
                "sentence_good, sentence_bad and UID"
            )
        yield Pair(*values)


@dataclass(frozen=True, slots=True)
class PairScorer:
    """Scores pairs with `logits` (B, T) int64 -> (B, T, V), of a masked model where `mask` is set.

    `encode` turns a text into token numbers as the training data have them; a sentence longer than
    `context` tokens loses its beginning (counted in `cut`).
    """

    pairs: Sequence[Pair]
    logits: Callable[[Tensor], Tensor]
    encode: Callable[[str], Sequence[int]]
    context: int
    device: torch.device
    mask: int | None = None
    normalisation: str = "sum"

    @property
    def cut(self) -> int:
        """How many sentences are too long for the model."""
        texts = [text for pair in self.pairs for text in (pair.good, pair.bad)]
        return sum(len(self.encode(_START + text)) > self.context for text in texts)

    @torch.no_grad()
    def accuracy(self) -> dict[str, float]:
        """Share of pairs won: "blimp" is the unweighted mean over paradigms, then each of them."""
        won: dict[str, list[bool]] = {}
        for pair in self.pairs:
            better = self.score(pair.good) > self.score(pair.bad)
            won.setdefault(pair.paradigm, []).append(better)
        each = {f"blimp/{name}": sum(found) / len(found) for name, found in won.items()}
        return {"blimp": sum(each.values()) / len(each), **each}

    @torch.no_grad()
    def score(self, text: str) -> float:
        """The (pseudo-)log-likelihood of `text` in nats, or its mean over the tokens."""
        ids = list(self.encode(_START + text))[-self.context :]
        tokens = torch.tensor(ids, device=self.device)
        found = self._past(tokens) if self.mask is None else self._both_sides(tokens, self.mask)
        total = float(found.sum())
        return total if self.normalisation == "sum" else total / len(found)

    def _past(self, tokens: Tensor) -> Tensor:
        """(T) -> (T - 1): log p of each token after the first, given those before it."""
        log_p = self.logits(tokens[None, :-1])[0].double().log_softmax(-1)
        return log_p.gather(-1, tokens[1:, None])[:, 0]

    def _both_sides(self, tokens: Tensor, mask: int) -> Tensor:
        """(T) -> (T - 1): log p of each token after the first, given all the others."""
        places = torch.arange(1, len(tokens), device=tokens.device)
        copies = tokens.repeat(len(places), 1)
        copies[torch.arange(len(places), device=tokens.device), places] = mask
        parts = []
        for first in range(0, len(places), _ROWS_PER_PASS):
            some = places[first : first + _ROWS_PER_PASS]
            rows = copies[first : first + _ROWS_PER_PASS]
            at = torch.arange(len(some), device=tokens.device)
            log_p = self.logits(rows)[at, some].double().log_softmax(-1)  # (rows, V)
            parts.append(log_p.gather(-1, tokens[some][:, None])[:, 0])
        return torch.cat(parts)


@dataclass(frozen=True, slots=True)
class Milestones:
    """After which steps pairs are scored, and how; the end of a run is always one."""

    steps: frozenset[int]
    measure: Callable[[], Mapping[str, float]]
