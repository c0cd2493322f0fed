"""Shows that the masked language model is what its papers say: scores, distances, sizes, both sides."""

import math

import pytest
import torch

from trainer.config import Model, examine
from trainer.models import build_model
from trainer.models.ltg_bert import Attention, distance_buckets
from trainer.roles import IGNORED, Role

SHAPE = {"kind": "ltg_bert", "layers": 2, "width": 16, "heads": 2, "hidden": 24}


def model(seed=0, context=12, **shape):
    return build_model(Model(**{**SHAPE, **shape}), vocabulary=30, context=context, seed=seed)


def test_the_model_has_the_size_of_its_parts():
    width, hidden, vocabulary, layers = 16, 24, 30, 2
    attention = 4 * width**2 + 4 * width + 2 * width
    mlp = 3 * width * hidden
    rest = vocabulary * width + 63 * width + 2 * width + width**2 + width + vocabulary
    assert sum(p.numel() for p in model().parameters()) == layers * (attention + mlp) + rest


def test_weights_begin_within_two_standard_deviations():
    net, sd = model(width=64), math.sqrt(2 / (5 * 64))
    first, second = (block.mlp.into for block in net.blocks)
    assert float(net.embedding.detach().abs().max()) <= 2 * sd * (1 + 1e-5)
    assert float(net.embedding.detach().std()) == pytest.approx(0.88 * sd, rel=0.05)
    assert float((first.std() / second.std()).detach()) == pytest.approx(math.sqrt(2), rel=0.1)


def test_near_distances_have_buckets_of_their_own_and_far_ones_share():
    buckets = distance_buckets(512, 32, 512)
    row = buckets[:, 0]  # distances 0, 1, 2, ... on this side
    assert row[:17].tolist() == list(range(31, 48))
    assert (row.diff() >= 0).all()
    assert row.max() == 62
    assert len(row[17:].unique()) <= 15
    assert torch.equal(buckets + buckets.T, torch.full_like(buckets, 62))  # the sides mirror
    for short in (2, 5, 40):  # what a shorter sequence sees is a corner of it
        whole = distance_buckets(short, 32, 512)
        assert torch.equal(whole, buckets[:short, :short])


def test_scores_are_the_sum_of_three_terms():
    """Against a double loop over places, in float64."""
    torch.manual_seed(1)
    attention = Attention(8, 2).double()
    for tensor in attention.parameters():
        torch.nn.init.normal_(tensor)
    time, buckets = 7, distance_buckets(7, 4, 7)
    x, distances = torch.randn(1, time, 8).double(), torch.randn(7, 8).double()
    found = attention(x, distances, buckets)

    w, b = attention.qkv, attention.qkv_bias
    q, k, v = ((x[0] @ w[n : n + 8].T + b[n : n + 8]).view(time, 2, 4) for n in (0, 8, 16))
    of_q, of_k = ((distances @ w[n : n + 8].T + b[n : n + 8]).view(7, 2, 4) for n in (0, 8))
    mixed = torch.zeros(time, 2, 4).double()
    for head in range(2):
        for i in range(time):
            scores = torch.stack(
                [
                    q[i, head] @ k[j, head]
                    + q[i, head] @ of_k[buckets[i, j], head]
                    + k[j, head] @ of_q[buckets[j, i], head]
                    for j in range(time)
                ]
            )
            mixed[i, head] = (scores / math.sqrt(12)).softmax(0) @ v[:, head]
    expected = attention.after(mixed.view(time, 8) @ attention.out.T + attention.out_bias)
    assert torch.allclose(found[0], expected, atol=1e-12)


def test_every_place_sees_both_sides():
    net, tokens = model(), torch.arange(12)[None]
    before = net.logits(tokens)
    for changed in (0, 11):
        other = tokens.clone()
        other[0, changed] = 29
        assert ((net.logits(other) - before).abs().amax(-1) > 1e-6).all()


def test_the_order_of_tokens_matters():
    net = model(layers=1)
    there, back = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[4, 3, 2, 1]])
    assert not torch.allclose(net.logits(there)[0, 0], net.logits(back)[0, 3], atol=1e-4)


def test_the_loss_is_over_scored_places_alone():
    net, tokens = model(), torch.arange(24).view(2, 12)
    targets = torch.full((2, 12), IGNORED)
    targets[0, 3], targets[1, 7], targets[1, 8] = 5, 6, 7
    logits = net.logits(tokens).log_softmax(-1).detach()
    expected = -(logits[0, 3, 5] + logits[1, 7, 6] + logits[1, 8, 7]) / 3
    assert net(tokens, targets).item() == pytest.approx(float(expected), rel=1e-5)


def test_every_parameter_learns_and_has_a_role():
    net, tokens = model(), torch.arange(12)[None]
    torch.autograd.backward(net(tokens, torch.arange(12)[None].flip(1)))
    roled = net.roled_parameters()
    assert len({p.name for p in roled}) == len(list(net.parameters()))
    assert all(p.tensor.grad is not None and p.tensor.grad.any() for p in roled)
    assert {p.role for p in roled} == {Role.EMBEDDING, Role.MATRIX, Role.SCALAR}


def test_half_precision_stays_near():
    tokens, targets = torch.arange(12)[None], torch.arange(12)[None]
    half = build_model(Model(**SHAPE), vocabulary=30, context=12, seed=0, precision="bf16")
    assert half(tokens, targets).item() == pytest.approx(model()(tokens, targets).item(), abs=0.02)


@pytest.mark.parametrize(
    ("kind", "objective", "expected"),
    [("gpt2", "masked", "causal"), ("ltg_bert", "causal", "masked")],
)
def test_a_model_that_does_not_fit_the_objective_is_refused(kind, objective, expected):
    _, problems = examine({"model": {"kind": kind}, "objective": {"kind": objective}})
    assert [str(problem) for problem in problems] == [
        f'objective.kind = "{objective}": expected "{expected}" when model.kind is "{kind}"'
    ]


def test_compiling_the_whole_is_refused():
    """It would be compiled again for every number of hidden tokens."""
    raw = {
        "model": {"kind": "ltg_bert"},
        "objective": {"kind": "masked"},
        "run": {"compile": "whole"},
    }
    _, problems = examine(raw)
    assert [problem.key for problem in problems] == ["run.compile"]
    raw["run"]["compile"] = "block"
    assert not examine(raw)[1]
