"""Shows the choice of architectures: sizes, refusals, and kernels of attention."""

import re

import pytest
import torch

from trainer.config import Model, examine
from trainer.errors import ConfigError
from trainer.models import build_model, refuse_attention
from trainer.models.attention import causal_attention
from trainer.models.named import NAMED
from trainer.roles import Role

COUNTS = {
    "microgpt": 4_192,
    "ngpt-quickstart": 383_590,
    "ngpt-155m": 155_244_438,
    "gpt2-small-bytes": 366_432,
    "gpt2-27m": 27_172_864,
    "gpt2-124m": 124_439_808,
    "ltg-bert-base": 98_230_529,
}


@pytest.mark.parametrize("name", NAMED)
def test_parameter_counts_of_named_models(name):
    assert NAMED[name].parameter_count() == COUNTS[name]


def test_the_matrices_of_the_large_ngpt_are_those_of_a_plain_mlp():
    """Three matrices of 2,048 hidden units hold as much as two of 3,072, as in the question."""
    with torch.device("meta"):
        named = NAMED["ngpt-155m"]
        net = build_model(named.model, vocabulary=50_257, context=1024, seed=0)
    by_role = dict.fromkeys(Role, 0)
    for parameter in net.roled_parameters():
        by_role[parameter.role] += parameter.tensor.numel()
    assert by_role[Role.MATRIX] == 11 * 12 * 768**2 == 77_856_768
    assert by_role[Role.EMBEDDING] == by_role[Role.HEAD] == 50_304 * 768


@pytest.mark.parametrize("kind", ["ngpt", "gpt2"])
def test_tables_are_padded(kind):
    config = Model(kind=kind, layers=1, width=16, heads=2, hidden=16, pad_vocabulary_to=128)
    net = build_model(config, vocabulary=300, context=8, seed=0)
    assert net.logits(torch.tensor([[1, 299]])).shape == (1, 2, 384)


@pytest.mark.parametrize("kind", ["ngpt", "gpt2"])
@pytest.mark.parametrize(
    ("shape", "key"),
    [
        ({"width": 96, "heads": 5}, "model.heads"),
        ({"heads": 0}, "model.heads"),
        ({"heads": -1}, "model.heads"),
        ({"layers": 0}, "model.layers"),
        ({"width": -96}, "model.width"),
        ({"hidden": 0}, "model.hidden"),
        ({"context": -1}, "model.context"),
        ({"pad_vocabulary_to": 0}, "model.pad_vocabulary_to"),
        ({"attention": "fast"}, "model.attention"),
        ({"context": 32}, "data.context"),
    ],
)
def test_impossible_shapes_are_refused_by_key(kind, shape, key):
    _, problems = examine({"model": {"kind": kind, **shape}})
    assert [problem.key for problem in problems] == [key]


def test_odd_heads_are_refused_where_they_are_rotated():
    assert examine({"model": {"kind": "ngpt", "width": 9, "heads": 3}})[1]
    assert not examine({"model": {"kind": "gpt2", "width": 9, "heads": 3}})[1]


@pytest.mark.parametrize(
    ("config", "context", "message"),
    [
        (Model(width=96, heads=5), 64, "model.heads = 5: expected a divisor of model.width = 96"),
        (Model(context=32), 64, "data.context = 64: expected at most model.context = 32"),
    ],
)
def test_building_refuses_what_does_not_fit(config, context, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_model(config, vocabulary=256, context=context, seed=0)


def test_a_model_may_have_more_places_than_are_used():
    config = Model(kind="gpt2", layers=1, width=16, heads=2, hidden=16, context=128)
    net = build_model(config, vocabulary=256, context=8, seed=0)
    assert net.positions.shape == (128, 16)
    assert net.logits(torch.zeros(1, 8, dtype=torch.long)).shape == (1, 8, 256)


def test_kernels_of_attention_agree_with_the_definition():
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 20, 3, 8, generator=generator, dtype=torch.float64)
    scores = torch.einsum("bthk,bshk->bhts", q, k) * 0.7
    future = torch.ones(20, 20, dtype=torch.bool).triu(1)
    expected = torch.einsum(
        "bhts,bshk->bthk", scores.masked_fill(future, -torch.inf).softmax(-1), v
    )
    for backend in ("auto", "flash", "math"):
        refuse_attention(backend, torch.device("cpu"))
        found = causal_attention(q, k, v, scale=0.7, backend=backend)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore")  # torch also warns of each kernel that it had to refuse
@pytest.mark.parametrize("backend", ["cudnn", "efficient"])
def test_a_kernel_that_is_missing_is_named(backend):
    with pytest.raises(ConfigError, match=f'model.attention = "{backend}".*cpu in fp32.*"auto"'):
        refuse_attention(backend, torch.device("cpu"))


@pytest.mark.filterwarnings("ignore")  # as above
def test_a_chosen_kernel_reaches_the_model():
    tokens = torch.arange(16).view(1, 16)
    results = []
    for backend in ("auto", "math"):
        for kind in ("ngpt", "gpt2"):
            config = Model(kind=kind, layers=1, width=16, heads=2, hidden=16, attention=backend)
            net = build_model(config, vocabulary=256, context=16, seed=0)
            results.append(net.logits(tokens))
    torch.testing.assert_close(results[0], results[2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results[1], results[3], rtol=1e-5, atol=1e-5)
    config = Model(layers=1, width=16, heads=2, hidden=16, attention="cudnn")
    with pytest.raises(RuntimeError, match="kernel"):
        build_model(config, vocabulary=256, context=16, seed=0).logits(tokens)
