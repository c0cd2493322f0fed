"""Byte-level BPE trained here, titles as data, and nats per character over the scored tokens alone."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.config import Data, parse
from trainer.data.bpe import GPT2Encoder
from trainer.data.bpe_training import train_merges
from trainer.data.corpora import load_corpus
from trainer.data.titles import docstring_lines, docstring_titles
from trainer.errors import ConfigError, DataError
from trainer.evaluate import Evaluator
from trainer.events import EventWriter
from trainer.prepare import prepare_bpe
from trainer.roles import IGNORED
from trainer.stopping import Progress
from trainer.timing import PhaseClock
from trainer.train import train

TEXT = "low low low lower lower newest newest newest widest naïve 東京 don't\n" * 3
TITLES = [f"{verb} the {noun} of é {n}" for n in range(40)
          for verb in ("Return", "Set") for noun in ("name", "size", "path")]  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def titles(tmp_path) -> Path:
    path = tmp_path / "titles.txt"
    path.write_text("\n".join(TITLES) + "\n")
    return path


def test_the_most_frequent_pair_is_joined_first_and_ties_go_by_their_pieces():
    # "ab" three times; then "cd", " c" and " ab" twice each, and c comes before the blank's stand-in.
    assert train_merges("ab ab ab cd cd", 260) == [("a", "b"), ("c", "d"), ("Ġ", "ab")]
    assert train_merges("ab", 260) == []  # no pair occurs twice
    with pytest.raises(ConfigError, match="expected more than 256"):
        train_merges("ab", 256)


def test_its_merges_encode_any_text_and_count_characters():
    encoder = GPT2Encoder(train_merges(TEXT, 300))
    other = "the newest 東京 tower 🙂 isn't low\n"
    ids = encoder.encode(other)
    assert len(ids) < len(other.encode())
    characters = encoder.characters()
    assert sum(characters[i] for i in ids) == len(other)


def test_merges_are_those_of_the_tokenizers_package():
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import models, pre_tokenizers, trainers

    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    text = "\n".join(TITLES)
    trainer = trainers.BpeTrainer(
        vocab_size=299, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    theirs.train_from_iterator([text], trainer)
    merges = [tuple(m) for m in json.loads(theirs.to_str())["model"]["merges"]]
    encoder = GPT2Encoder(merges)
    spelled = {number: piece for piece, number in encoder._ids.items()}
    assert [spelled[i] for i in encoder.encode(text)] == theirs.encode(text).tokens


@pytest.mark.parametrize("fast", [False, True])
def test_prepare_writes_merges_that_the_data_can_use(fast, titles, tmp_path):
    if fast:
        pytest.importorskip("tokenizers")
    out, said = tmp_path / "vocab.bpe", []
    prepare_bpe(titles, out, 300, fast, said.append)
    made = int(said[0].rpartition("= ")[2])
    corpus = load_corpus(
        Data(kind="titles", path=str(titles), merges=str(out), bpe_vocabulary=made)
    )
    assert corpus.vocabulary == made
    with pytest.raises(DataError, match=f"makes {made} ids; expected data.bpe_vocabulary = 299"):
        load_corpus(Data(kind="titles", path=str(titles), merges=str(out), bpe_vocabulary=299))


def test_both_splits_are_whole_titles_and_the_bpe_is_of_the_training_split(titles):
    corpus = load_corpus(Data(kind="titles", path=str(titles), bpe_vocabulary=300))
    mark = corpus.vocabulary - 1
    train, validation = corpus.train[0], corpus.validation[0]
    counts = [int((part == mark).sum()) for part in (train, validation)]
    assert counts == [len(TITLES) - len(TITLES) // 10, len(TITLES) // 10]
    scored = corpus.characters[np.concatenate([train, validation])].sum()
    assert scored == sum(len(title) + 1 for title in TITLES)  # the mark counts as one
    again = load_corpus(Data(kind="titles", path=str(titles), bpe_vocabulary=300))
    assert again.sha256 == corpus.sha256  # from the cache


def test_a_cache_that_is_broken_is_made_again(titles, tmp_path):
    config = Data(kind="titles", path=str(titles), bpe_vocabulary=300)
    first = load_corpus(config)
    (kept,) = (tmp_path / "cache" / "tokens").iterdir()
    kept.write_bytes(kept.read_bytes()[:50])
    assert load_corpus(config).sha256 == first.sha256


def test_one_title_cannot_be_split(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("a title\n")
    with pytest.raises(DataError, match="1 titles; expected enough for both splits"):
        load_corpus(Data(kind="titles", path=str(path)))


def test_first_lines_of_docstrings():
    source = (
        '"""A module."""\ndef f():\n    r"""Do it.\n\n    More.\n    """\n    """A module."""\n'
    )
    assert docstring_lines([source]) == ["A module.", "Do it."]


def test_docstrings_are_read_again_when_a_file_changes(tmp_path):
    path = tmp_path / "module.py"
    path.write_text('"""One."""\n')
    assert docstring_titles([path]) == docstring_titles([path]) == ["One."]
    path.write_text('"""Another."""\n')
    assert docstring_titles([path]) == ["Another."]


class Flat(torch.nn.Module):
    """A loss that depends on the tokens alone, not on who is in the same pass."""

    def forward(self, tokens, targets):
        return (tokens * 0.37 + targets * 0.11).float().mean()


def test_the_batch_of_the_evaluation_does_not_move_the_metric():
    """A document's evaluate() leaves the last partial span out and divides by its text all the same:
    there, a larger batch lowers the loss of one and the same model, down to 0."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 50, (24, 8), generator=generator)
    targets = torch.randint(0, 50, (24, 8), generator=generator)
    characters = torch.arange(50) % 7 + 1
    found = set()
    for windows_per_pass in (1, 5, 16, 24, 1000):
        evaluator = Evaluator(Flat(), (tokens, targets), (tokens, targets), windows_per_pass)
        evaluator.count_characters(characters)
        assert evaluator.scored()["probe"] == {
            "tokens": 24 * 8,
            "characters": int(characters[targets].sum()),
        }
        metrics = evaluator.metrics("probe", evaluator.loss("probe"))
        found.add(round(metrics["nats_per_character"], 6))
    assert len(found) == 1

    def gamed(span: int) -> float:
        """The figure as the document makes it."""
        per_token = (tokens * 0.37 + targets * 0.11).flatten()
        whole = len(per_token) // span * span
        return float(per_token[:whole].sum()) / int(characters[targets].sum())

    assert gamed(192) == pytest.approx(found.pop(), rel=1e-4)
    assert gamed(100) < 0.6 * gamed(192)
    assert gamed(193) == 0


def test_the_metric_is_over_scored_tokens_alone():
    """Of hidden tokens, or of rows with padding: what is no target has no characters either."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 50, (24, 8), generator=generator)
    places = torch.rand(tokens.shape, generator=generator) < 0.3
    places[:, 0] = True  # each pass scores something
    targets = torch.where(places, tokens, IGNORED)
    characters = torch.arange(50) % 7 + 1

    def loss(_tokens, some):
        return some[some != IGNORED].float().mean()

    for windows_per_pass in (1, 5, 24):
        evaluator = Evaluator(loss, (tokens, targets), (tokens, targets), windows_per_pass)
        evaluator.count_characters(characters)
        scored = {"tokens": int(places.sum()), "characters": int(characters[tokens[places]].sum())}
        assert evaluator.scored()["confirmation"] == scored
        found = evaluator.metrics("probe", evaluator.loss("probe"))
        total = float(tokens[places].sum())
        assert found["val_loss"] == pytest.approx(total / scored["tokens"], rel=1e-6)
        assert found["nats_per_character"] == pytest.approx(total / scored["characters"], rel=1e-6)


def run(titles, **evaluation):
    """A short real run on the titles: its events."""
    lines = []
    clock = PhaseClock(time.monotonic())
    raw = {
        "model": {"kind": "gpt2", "layers": 1, "width": 16, "heads": 2, "hidden": 16},
        "data": {"kind": "titles", "path": str(titles), "bpe_vocabulary": 300, "batch_size": 4,
                 "context": 8, "mark_characters": 5},
        "eval": {"probe_tokens": 64, "confirmation_tokens": 64, "every_tokens": 64, **evaluation},
        "run": {"device": "cpu", "threads": 1, "max_steps": 3},
    }  # fmt: skip
    train(
        parse(raw, "test"),
        events=EventWriter(lines.append, clock.read),
        clock=clock,
        progress=Progress(),
        stop_requested=lambda: False,
        say=lambda text: None,
    )
    return [json.loads(line) for line in lines]


def test_a_run_says_what_it_scores_and_both_units(titles):
    first, second = (run(titles, windows_per_pass=n) for n in (1, 3))
    scored = first[0]["scored"]["probe"]
    assert scored["tokens"] == 64
    (last, other) = ([e for e in es if e["event"] == "evaluated"][-1] for es in (first, second))
    found = last["metrics"]
    assert found["nats_per_character"] == pytest.approx(
        found["val_loss"] * 64 / scored["characters"]
    )
    assert other["metrics"]["nats_per_character"] == pytest.approx(found["nats_per_character"])


def test_more_tokens_than_the_split_has_are_refused_and_never_left_out(titles):
    with pytest.raises(DataError, match=r"the probe slice needs 64001: lower eval.probe_tokens"):
        run(titles, probe_tokens=64_000, confirmation_tokens=64_000)


def test_merges_need_titles():
    with pytest.raises(ConfigError, match=r'data.merges.*no value unless data.kind is "titles"'):
        parse({"data": {"merges": "x"}}, "config")
