"""Owns the training of a byte-level BPE: from a text to the merges that GPT-2's encoder applies.

It must not know corpora or files, nor import torch. Source: Sennrich et al. 2016 (BPE); the bytes and
the cut into words are GPT-2's (Radford et al. 2019).
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, defaultdict

from trainer.data.bpe import Pair, cut_into_words, spell_bytes
from trainer.errors import ConfigError

BYTES = 256


def train_merges(text: str, vocabulary: int) -> list[Pair]:
    """The merges, in order, of a BPE with `vocabulary` ids (bytes, merges, and one mark).

    Each joins the most frequent pair of neighbours within a word; of equally frequent ones the first
    in the order of their pieces, so that the same text always gives the same merges. There are fewer
    where no pair occurs twice. ConfigError when the vocabulary has no room for bytes and mark.
    """
    if vocabulary <= BYTES:
        raise ConfigError(
            f"a vocabulary of {vocabulary}: expected more than {BYTES}, the bytes and a mark"
        )
    words = _Words(text)
    merges: list[Pair] = []
    while len(merges) < vocabulary - BYTES - 1 and (pair := words.most_frequent()) is not None:
        words.join(pair)
        merges.append(pair)
    return merges


class _Words:
    """The distinct words with their pieces, and how often each pair of neighbours occurs."""

    def __init__(self, text: str) -> None:
        counted = Counter(cut_into_words(text))
        self._pieces = [list(spell_bytes(word.encode())) for word in counted]
        self._counts = list(counted.values())
        self._pairs: Counter[Pair] = Counter()
        self._places: defaultdict[Pair, set[int]] = defaultdict(set)
        for place in range(len(self._pieces)):
            self._add(place, 1)
        self._heap = [(-count, pair) for pair, count in self._pairs.items()]
        heapq.heapify(self._heap)

    def _add(self, place: int, sign: int) -> set[Pair]:
        """Count a word's pairs in (1) or out (-1); the pairs."""
        pieces, count = self._pieces[place], sign * self._counts[place]
        found = set()
        for pair in itertools.pairwise(pieces):
            self._pairs[pair] += count
            found.add(pair)
        for pair in found:
            if sign > 0:
                self._places[pair].add(place)
            else:
                self._places[pair].discard(place)
        return found

    def most_frequent(self) -> Pair | None:
        """The pair that occurs most often, at least twice."""
        while self._heap:
            negative, pair = self._heap[0]
            if self._pairs[pair] == -negative:
                return pair if negative <= -2 else None
            heapq.heappop(self._heap)  # its count has changed since: a newer entry says it
        return None

    def join(self, pair: Pair) -> None:
        """Make one piece of the pair in every word."""
        changed: set[Pair] = set()
        joined = "".join(pair)
        for place in list(self._places[pair]):
            changed |= self._add(place, -1)
            pieces = self._pieces[place]
            kept: list[str] = []
            index = 0
            while index < len(pieces):
                if tuple(pieces[index : index + 2]) == pair:
                    kept.append(joined)
                    index += 2
                else:
                    kept.append(pieces[index])
                    index += 1
            self._pieces[place] = kept
            changed |= self._add(place, 1)
        for other in changed:
            if self._pairs[other] > 0:
                heapq.heappush(self._heap, (-self._pairs[other], other))
