"""Shows what is hidden: as much as asked, in spans with one fate, the same whatever the batch."""

import itertools
import json

import numpy as np
import pytest
import torch

from trainer.config import Objective, parse
from trainer.data.corpora import load_corpus
from trainer.data.masking import SpanMasking
from trainer.objective import build_task
from trainer.roles import IGNORED, count_scored

VOCABULARY, TIME = 50, 128


def hide(count=400, seed=3, first=0, **settings):
    masking = SpanMasking(VOCABULARY, Objective(kind="masked", **settings), seed)
    tokens = torch.arange(count * TIME).view(count, TIME) % VOCABULARY
    return (tokens, *masking.hide(tokens, range(first, first + count)))


def test_as_many_are_hidden_as_asked_and_most_become_the_mask():
    tokens, inputs, targets = hide()
    scored = targets != IGNORED
    assert torch.equal(targets[scored], tokens[scored])
    assert torch.equal(inputs[~scored], tokens[~scored])
    assert float(scored.float().mean()) == pytest.approx(0.15, abs=0.003)
    assert float(scored.sum(1).float().var()) == pytest.approx(TIME * 0.15 * 0.85, rel=0.2)
    masked = float((inputs[scored] == VOCABULARY).float().mean())
    kept = float((inputs[scored] == tokens[scored]).float().mean())
    assert masked == pytest.approx(0.8, abs=0.03)
    assert kept == pytest.approx(0.1 + 0.1 / VOCABULARY, abs=0.03)
    assert int(inputs.max()) == VOCABULARY


def test_spans_are_longer_than_one_and_share_a_fate():
    _, inputs, targets = hide()
    runs = [
        len(list(run))
        for row in (targets != IGNORED).numpy()
        for hidden, run in itertools.groupby(row)
        if hidden
    ]
    assert 2.3 < np.mean(runs) < 3.6  # 1 / span_stop is 3; spans that touch count as one here
    masked = (inputs == VOCABULARY).numpy()
    scored = (targets != IGNORED).numpy()
    neighbours = scored[:, 1:] & scored[:, :-1]
    together = masked[:, 1:][neighbours] == masked[:, :-1][neighbours]
    assert together.mean() > 0.93  # decided by token it would be 0.8^2 + 0.2^2 = 0.68


def test_single_tokens_are_the_case_of_a_span_that_always_ends():
    _, _, targets = hide(span_stop=1.0)
    scored = (targets != IGNORED).numpy()
    after = scored[:, 1:][scored[:, :-1]].mean()
    assert after == pytest.approx(0.15, abs=0.02)


def test_places_depend_on_seed_and_number_alone():
    _, inputs, targets = hide(count=8)
    _, later, _ = hide(count=4, first=4)
    # the tokens differ from batch to batch here, the places do not
    assert torch.equal(targets[4:] != IGNORED, hide(count=4, first=4)[2] != IGNORED)
    assert not torch.equal(targets != IGNORED, hide(count=8, seed=4)[2] != IGNORED)
    assert later.shape == inputs[4:].shape


def test_at_least_one_place_is_scored():
    _, _, targets = hide(mask_share=1e-9)
    assert torch.equal((targets != IGNORED).sum(1), torch.ones(400, dtype=torch.int64))


def config(**objective):
    raw = {
        "model": {"kind": "ltg_bert", "layers": 1, "width": 16, "heads": 2, "hidden": 16},
        "objective": {"kind": "masked", **objective},
        "data": {"max_bytes": 60_000, "batch_size": 4, "context": 32},
        "eval": {"probe_tokens": 256, "confirmation_tokens": 512},
    }
    return parse(json.loads(json.dumps(raw)), "test")


def task(**objective):
    settings = config(**objective)
    return build_task(settings, load_corpus(settings.data), torch.device("cpu"))


def test_what_is_measured_does_not_change_with_what_is_trained():
    """A study may sweep the masks; a lower share would otherwise lower the loss by itself."""
    plain, other = task(), task(mask_share=0.5, span_stop=1.0, keep_share=0.0)
    for one, two in zip(
        plain.probe + plain.confirmation, other.probe + other.confirmation, strict=True
    ):
        assert torch.equal(one, two)
    ours, theirs = plain.batches.at(0)[1], other.batches.at(0)[1]
    assert count_scored(theirs) > 2 * count_scored(ours)


def test_the_data_are_seen_in_the_same_order_with_the_mask_as_one_more_id():
    made = task()
    assert (made.vocabulary, made.mask) == (257, 256)
    inputs, targets = made.batches.at(2)
    assert inputs.shape == targets.shape == (4, 32)
    assert torch.equal(made.batches.at(2)[0], inputs)
    assert not torch.equal(made.batches.at(3)[0], inputs)
