"""Shows that nGPT is built as described: unit vectors, causality, scales, gradients."""

import math

import pytest
import torch

from trainer.config import Config, Model, Optim
from trainer.models import build_model
from trainer.models.ngpt import LearnedScale, Rotary
from trainer.models.spherical import rotate, unit, unit_heads
from trainer.optim.build import build_optimizer
from trainer.roles import Role

VOCABULARY, CONTEXT = 256, 32


def model(seed=0, **shape):
    sizes = {"layers": 2, "width": 64, "heads": 4, "hidden": 96, **shape}
    built = build_model(Model(**sizes), vocabulary=VOCABULARY, context=CONTEXT, seed=seed)
    build_optimizer(built.roled_parameters(), Optim(), project_every=1)
    return built


def tokens(batch=3, seed=0):
    return torch.randint(
        VOCABULARY, (batch, CONTEXT), generator=torch.Generator().manual_seed(seed)
    )


def test_every_parameter_has_one_role_and_matrices_know_their_axis():
    net = model()
    parameters = net.roled_parameters()
    assert [p.name for p in parameters] == [name for name, _ in net.named_parameters()]
    matrices = {p.name.removeprefix("blocks.0."): p for p in parameters if "blocks.0" in p.name}
    axes = {n: p.unit_axis for n, p in matrices.items() if p.role is Role.MATRIX}
    assert axes == {"attention.qkv": -1, "attention.out": -2, "mlp.uv": -1, "mlp.out": -2}
    ends = {p.name: (p.role, p.unit_axis) for p in parameters if p.name in ("embedding", "head")}
    assert ends == {"embedding": (Role.EMBEDDING, -1), "head": (Role.HEAD, -1)}
    scalars = {
        p.name.removeprefix("blocks.0.").removeprefix("blocks.1."): p
        for p in parameters
        if p.role is Role.SCALAR
    }
    assert all(p.unit_axis is None for p in scalars.values())
    assert sorted(scalars) == [
        "after_attention.alpha.stored",
        "after_attention.gate",
        "after_mlp.alpha.stored",
        "after_mlp.gate",
        "attention.scale_qk.stored",
        "mlp.scale_uv.stored",
        "scale_logits.stored",
    ]


@pytest.mark.parametrize("every", [1, 3])
def test_constrained_vectors_have_length_one_after_a_projection(every):
    net = build_model(Model(layers=2), vocabulary=VOCABULARY, context=CONTEXT, seed=0)
    optimizer = build_optimizer(net.roled_parameters(), Optim(), project_every=every)
    for number in range(1, 4):
        net(tokens(), tokens(seed=1)).backward()
        optimizer.step(number)
        optimizer.clear_gradients()
    for parameter in net.roled_parameters():
        if parameter.unit_axis is not None:
            lengths = torch.linalg.vector_norm(parameter.tensor, dim=parameter.unit_axis)
            torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-6)
            assert parameter.tensor.shape[parameter.unit_axis] == 96  # along the embedding


@pytest.mark.parametrize("config", [Model(), Model(layers=2, width=64, heads=4, hidden=96)])
def test_parameter_count_by_hand(config):
    net = build_model(config, vocabulary=VOCABULARY, context=CONTEXT, seed=0)
    d, f = config.width, config.hidden
    matrices = 4 * d * d + 3 * d * f
    scales = (d + 2 * f) + 2 * (d + 1)  # s_qk, s_u, s_v; gate and alpha of two residuals
    by_hand = config.layers * (matrices + scales) + 2 * VOCABULARY * d + VOCABULARY
    assert sum(p.tensor.numel() for p in net.roled_parameters()) == by_hand


def test_states_stay_on_the_sphere():
    lengths = torch.linalg.vector_norm(model().hidden_states(tokens()), dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-5)


def test_the_past_does_not_see_the_future():
    net, first = model(), tokens()
    second = first.clone()
    second[:, 20:] = (second[:, 20:] + 1) % VOCABULARY
    one, two = net.logits(first), net.logits(second)
    torch.testing.assert_close(one[:, :20], two[:, :20], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(one[:, 20:], two[:, 20:], atol=1e-2)


def test_attention_logits_have_unit_variance_at_the_start():
    net = model(width=256, heads=4)
    attention = net.blocks[0].attention
    x = unit(torch.randn(8, CONTEXT, 256, generator=torch.Generator().manual_seed(1)))
    qkv = (x @ attention.qkv.flatten(0, 1).T).view(8, CONTEXT, 3, 4, 64)
    scale = attention.scale_qk().square().view(4, 64)
    q, k, _ = unit_heads(qkv, scale, attention.rotary.cosine, attention.rotary.sine)
    logits = math.sqrt(64) * q.transpose(1, 2) @ k.permute(0, 2, 3, 1)
    assert logits.std().item() == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("alpha", [0.05, 0.15, 0.4])
def test_a_branch_moves_the_state_by_the_gated_rate(alpha):
    net = model(width=256, heads=4, alpha=alpha)
    residual = net.blocks[0].after_attention
    random = torch.Generator().manual_seed(2)
    x, branch = (unit(torch.randn(4, 8, 256, generator=random)) for _ in range(2))
    moved = torch.linalg.vector_norm(residual(x, 17 * branch) - x, dim=-1)
    # Orthogonal unit vectors are sqrt(2) apart; the gate starts half open.
    rate = alpha / 2
    expected = math.atan2(rate, 1 - rate)
    assert moved.mean().item() == pytest.approx(expected, rel=0.1)


def test_rotary_keeps_lengths_and_depends_on_distance_alone():
    rotary = Rotary(CONTEXT, 1, 16, 10_000.0)
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
    both = torch.stack((q, k))[:, None].expand(1, CONTEXT, 2, 1, 16)
    queries, keys = rotate(both, rotary.cosine, rotary.sine)[0, :, :, 0].unbind(1)
    torch.testing.assert_close(queries.norm(dim=-1), q.norm().expand(CONTEXT))
    scores = queries @ keys.T
    for distance in (1, 5, 11):
        along = scores.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-4, atol=1e-4)
    assert (scores.diagonal(-1)[0] - scores.diagonal(-5)[0]).abs() > 1e-3


def test_learned_scale_starts_where_it_should():
    scale = LearnedScale(4, start=10.0, stored=0.1)
    torch.testing.assert_close(scale(), torch.full((4,), 10.0))
    rows = LearnedScale(2, 3, start=(1.0, 8.0), stored=0.5)
    torch.testing.assert_close(rows(), torch.tensor([[1.0] * 3, [8.0] * 3]))


def test_gradients_agree_with_finite_differences():
    """The whole loss in float64 along random directions, through every parameter."""
    net = model(layers=1, width=16, heads=2, hidden=24).double()
    x, y = tokens(2)[:, :8], tokens(2, seed=1)[:, :8]

    def loss():
        logits = net.logits(x)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())

    loss().backward()
    for name, parameter in net.named_parameters():
        direction = torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64
        )
        derivative = float((parameter.grad * direction).sum())
        with torch.no_grad():
            parameter.add_(direction, alpha=1e-5)
            up = float(loss())
            parameter.sub_(direction, alpha=2e-5)
            down = float(loss())
            parameter.add_(direction, alpha=1e-5)
        assert derivative == pytest.approx((up - down) / 2e-5, rel=2e-4, abs=1e-7), name


def test_weights_depend_on_the_seed_alone():
    one, same, other = model(1), model(1), model(2)
    nets = (net.roled_parameters() for net in (one, same, other))
    for a, b, c in zip(*nets, strict=True):
        assert torch.equal(a.tensor, b.tensor)
        assert torch.equal(a.tensor, c.tensor) is (a.role is Role.SCALAR)


def test_an_untrained_loss_is_near_that_of_guessing():
    x = tokens()
    loss = float(model(logit_scale=1.0)(x, x.roll(-1, 1)).detach())
    assert loss == pytest.approx(math.log(VOCABULARY), abs=0.3)
    assert Config().model.kind == "ngpt"
