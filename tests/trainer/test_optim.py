"""Shows the update rules against torch's own and against their definitions."""

import math

import pytest
import torch

from trainer import config
from trainer.config import Adam, Optim, examine
from trainer.config import Muon as MuonConfig
from trainer.errors import ConfigError
from trainer.optim.adamw import AdamW, Group
from trainer.optim.build import build_optimizer
from trainer.optim.muon import Decay, MomentumWarmUp, Muon, decay_weights, reduce_variance
from trainer.optim.orthogonalize import exact, newton_schulz, polar_express
from trainer.optim.sgd import SGD
from trainer.optim.sphere import SphereProjection
from trainer.roles import Role, RoledParameter


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(*shapes):
    made = [torch.randn(shape, generator=generator(n)) for n, shape in enumerate(shapes)]
    for n, tensor in enumerate(made):
        tensor.grad = torch.randn(tensor.shape, generator=generator(100 + n))
    return made


def named(tensors, role=Role.MATRIX):
    return [RoledParameter(f"p{n}", tensor, role, None) for n, tensor in enumerate(tensors)]


def renew_gradients(number, *lists):
    for tensors in zip(*lists, strict=True):
        for tensor in tensors:
            shape = tensor.shape
            tensor.grad = torch.randn(shape, generator=generator(200 + shape[-1] + number))


SHAPES = [(8, 8), (8, 8), (16, 8), (8, 16)]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("scaling", "theirs_is"), [("spectral", "original"), ("match_rms", "match_rms_adamw")]
)
def test_muon_agrees_with_torch(decay, scaling, theirs_is):
    ours, theirs = weights(*SHAPES), weights(*SHAPES)
    rule = Muon(
        named(ours),
        lr=0.02,
        momentum=0.9,
        orthogonalize=newton_schulz,
        decay=Decay(decay),
        scaling=scaling,
        iteration_dtype=torch.bfloat16,  # torch's Muon iterates in bfloat16 whatever it is given
    )
    oracle = torch.optim.Muon(
        theirs, lr=0.02, momentum=0.9, weight_decay=decay, adjust_lr_fn=theirs_is
    )
    for number in range(3):
        rule.step(number + 1)
        oracle.step()
        for mine, other, start in zip(ours, theirs, weights(*SHAPES), strict=True):
            # Five iterations in bfloat16 leave an error of about 1 % in either.
            assert (mine - other).norm() < 0.03 * (other - start).norm()
        renew_gradients(number, ours, theirs)


def test_muon_in_double_precision_is_its_definition():
    matrix = torch.randn(12, 6, generator=generator(), dtype=torch.float64)
    before = matrix.clone()
    rule = Muon(
        named([matrix]),
        lr=0.1,
        momentum=0.95,
        orthogonalize=exact,
        iteration_dtype=torch.float64,
    )
    momentum = torch.zeros_like(matrix)
    for number in range(3):
        gradient = torch.randn(12, 6, generator=generator(number), dtype=torch.float64)
        matrix.grad = gradient
        rule.step(number + 1, lr_scale=0.5)
        momentum = 0.95 * momentum + 0.05 * gradient
        nesterov = 0.05 * gradient + 0.95 * momentum
        u, _, vh = torch.linalg.svd(nesterov, full_matrices=False)
        before = before - 0.5 * 0.1 * math.sqrt(2) * (u @ vh)
        torch.testing.assert_close(matrix, before, rtol=0, atol=1e-9)


def everything(parameters, **settings):
    return Muon(
        parameters,
        lr=0.02,
        momentum=0.9,
        orthogonalize=polar_express,
        variance_beta=0.95,
        decay=Decay(0.1, cautious=True),
        **settings,
    )


def test_the_bank_is_the_same_as_one_matrix_at_a_time():
    together, alone = weights(*SHAPES), weights(*SHAPES)
    bank = everything(named(together))
    singles = [everything([parameter]) for parameter in named(alone)]
    assert len(bank.banks) == 2  # squares; both rectangles, whichever way they lie
    for number in range(1, 4):
        bank.step(number)
        for single in singles:
            single.step(number)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 16, 8), (2, 8, 16)])
def test_a_stacked_parameter_is_the_same_as_its_matrices(shape):
    (stacked,) = weights(shape)
    alone = [part.clone() for part in stacked]
    for part, gradient in zip(alone, stacked.grad, strict=True):
        part.grad = gradient.clone()
    one, other = everything(named([stacked])), everything(named(alone))
    for number in range(1, 4):
        one.step(number)
        other.step(number)
    torch.testing.assert_close(stacked, torch.stack(alone), rtol=1e-6, atol=1e-7)


def test_a_transposed_matrix_moves_like_the_matrix_but_for_the_gain():
    (tall,) = weights((16, 8))
    wide = tall.T.clone()
    wide.grad = tall.grad.T.clone()
    start = tall.clone()
    for matrix in (tall, wide):
        Muon(named([matrix]), lr=0.1, momentum=0.9, orthogonalize=polar_express).step(1)
    torch.testing.assert_close((tall - start) / math.sqrt(2), (wide - start.T).T)


def test_a_zero_gradient_changes_nothing_and_stays_finite():
    (matrix,) = weights((8, 16))
    before = matrix.clone()
    matrix.grad = torch.zeros_like(matrix)
    rule = Muon(
        named([matrix]), lr=0.1, momentum=0.9, orthogonalize=polar_express, variance_beta=0.9
    )
    rule.step(1)
    assert torch.equal(matrix, before)


def test_momentum_warms_up_linearly_and_then_stays():
    warm_up = MomentumWarmUp(start=0.85, steps=4)
    found = [warm_up.at(number, 0.95) for number in range(1, 8)]
    assert found == pytest.approx([0.85, 0.875, 0.9, 0.925, 0.95, 0.95, 0.95])
    assert MomentumWarmUp().at(1, 0.9) == 0.9


def test_momentum_of_a_step_depends_on_its_number_alone():
    """So that a resumed run warms up where it was."""
    moments = []
    for numbers in ([3], [1, 2, 3]):
        (matrix,) = weights((8, 8))
        rule = Muon(
            named([matrix]),
            lr=0.0,
            momentum=0.95,
            orthogonalize=exact,
            warm_up=MomentumWarmUp(0.5, 4),
        )
        for number in numbers:
            rule.step(number)
        moments.append(rule.state()["p0"]["momentum"] / matrix.grad)
    # After steps 1 to n the buffer holds 1 - prod(momentum) of a constant gradient.
    assert moments[0].mean().item() == pytest.approx(1 - 0.725)
    assert moments[1].mean().item() == pytest.approx(1 - 0.5 * 0.6125 * 0.725)


@pytest.mark.parametrize("shape", [(3, 16, 8), (3, 8, 8)])
def test_variance_reduction_keeps_the_norm_and_evens_out_neurons(shape):
    update = torch.randn(shape, generator=generator(), dtype=torch.float64)
    update[:, 0] *= 5
    update[:, :, 0] *= 5
    moment = torch.zeros(*shape[:2], 1, dtype=torch.float64)
    reduced = reduce_variance(update, moment, 0.95)
    norm = torch.linalg.matrix_norm
    torch.testing.assert_close(norm(reduced), norm(update), rtol=1e-9, atol=0)
    rows = reduced.square().mean(-1)
    # From zero moments, every neuron gets the same size.
    torch.testing.assert_close(rows, rows.mean(-1, keepdim=True).expand_as(rows))
    torch.testing.assert_close(moment, 0.05 * update.square().mean(-1, keepdim=True))


def test_variance_reduction_is_its_definition_over_several_steps():
    moment, by_hand = torch.zeros(1, 16, 1), torch.zeros(16)
    for number in range(4):
        update = torch.randn(1, 16, 8, generator=generator(number))
        reduced = reduce_variance(update, moment, 0.9)[0]
        by_hand = 0.9 * by_hand + 0.1 * update[0].square().mean(-1)
        expected = update[0] / by_hand.sqrt()[:, None]
        expected *= update[0].norm() / expected.norm()
        torch.testing.assert_close(reduced, expected, rtol=1e-5, atol=1e-6)


RATE = torch.tensor(0.1)


def test_cautious_decay_acts_only_where_update_and_weight_agree():
    matrix = torch.tensor([[1.0, -1.0], [2.0, -2.0]])
    update = torch.tensor([[0.1, 0.1], [-0.1, -0.1]])
    decay_weights([matrix], [update], rate=RATE, decay=Decay(0.5, cautious=True))
    expected = torch.tensor([[0.95 * 1.0, -1.0], [2.0, 0.95 * -2.0]])
    torch.testing.assert_close(matrix, expected)


@pytest.mark.parametrize("cautious", [True, False])
def test_a_decay_of_zero_is_bit_for_bit_no_decay(cautious):
    one, other = weights((8, 16)), weights((8, 16))
    for matrices, decay in ((one, Decay(0.0, cautious=cautious)), (other, None)):
        rule = Muon(named(matrices), lr=0.1, momentum=0.9, orthogonalize=polar_express, decay=decay)
        for number in range(1, 4):
            rule.step(number)
    assert torch.equal(one[0], other[0])


def test_adamw_agrees_with_torch():
    ours, theirs = weights((8, 8), (5,), (3, 4)), weights((8, 8), (5,), (3, 4))
    groups = [Group(named(ours[:2]), 0.01, 0.1), Group(named(ours[2:]), 0.003)]
    rule = AdamW(groups, beta1=0.8, beta2=0.95, eps=1e-8)
    oracle = torch.optim.AdamW(
        [
            {"params": theirs[:2], "lr": 0.01, "weight_decay": 0.1},
            {"params": theirs[2:], "lr": 0.003, "weight_decay": 0.0},
        ],
        betas=(0.8, 0.95),
        eps=1e-8,
    )
    for number in range(5):
        scale = 1 - number / 10
        for group, lr in zip(oracle.param_groups, (0.01, 0.003), strict=True):
            group["lr"] = lr * scale
        rule.step(number + 1, scale)
        oracle.step()
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)
        renew_gradients(number, ours, theirs)


@pytest.mark.parametrize(
    ("momentum", "nesterov", "decay"),
    [(0.0, False, 0.0), (0.0, False, 0.1), (0.9, False, 0.1), (0.9, True, 0.0), (0.9, True, 0.1)],
)
def test_sgd_agrees_with_torch_and_leaves_gradients_alone(momentum, nesterov, decay):
    ours, theirs = weights((8, 8), (5,)), weights((8, 8), (5,))
    rule = SGD([Group(named(ours), 0.1, decay)], momentum=momentum, nesterov=nesterov)
    oracle = torch.optim.SGD(
        theirs, lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=decay
    )
    for number in range(4):
        before = [tensor.grad.clone() for tensor in ours]
        rule.step(number + 1)
        oracle.step()
        for mine, other, gradient in zip(ours, theirs, before, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)
            assert torch.equal(mine.grad, gradient)
        renew_gradients(number, ours, theirs)


def roled():
    return [
        RoledParameter("embedding", torch.randn(10, 4, generator=generator(1)), Role.EMBEDDING, -1),
        RoledParameter("reads", torch.randn(2, 6, 4, generator=generator(2)), Role.MATRIX, -1),
        RoledParameter("writes", torch.randn(4, 6, generator=generator(3)), Role.MATRIX, -2),
        RoledParameter("head", torch.randn(10, 4, generator=generator(4)), Role.HEAD, -1),
        RoledParameter("scale", torch.randn(4, generator=generator(5)), Role.SCALAR, None),
    ]


def test_projection_makes_unit_vectors_along_the_named_axis_and_leaves_the_rest():
    parameters = roled()
    scale = parameters[-1].tensor.clone()
    SphereProjection(parameters, 1).project()
    for parameter in parameters[:-1]:
        lengths = torch.linalg.vector_norm(parameter.tensor, dim=parameter.unit_axis)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-6)
    assert torch.equal(parameters[-1].tensor, scale)


def test_projection_is_lazy():
    parameters = roled()
    projection = SphereProjection(parameters, 3)
    before = parameters[0].tensor.clone()
    projection.after_step(1)
    projection.after_step(2)
    assert torch.equal(parameters[0].tensor, before)
    projection.after_step(3)
    assert not torch.equal(parameters[0].tensor, before)


def moved(config):
    """Which parameters one step moves away from where the starting projection put them."""
    parameters = roled()
    optimizer = build_optimizer(parameters, config, project_every=100)
    before = [parameter.tensor.clone() for parameter in parameters]
    for parameter in parameters:
        parameter.tensor.grad = torch.ones_like(parameter.tensor)
    optimizer.step(1)
    return {
        parameter.name: float((parameter.tensor - start).abs().max())
        for parameter, start in zip(parameters, before, strict=True)
    }


def test_muons_learning_rate_moves_the_matrices_alone():
    low = moved(Optim(muon=MuonConfig(lr=0.001)))
    high = moved(Optim(muon=MuonConfig(lr=0.1)))
    changed = {name for name in low if low[name] != high[name]}
    assert changed == {"reads", "writes"}


def test_adam_rates_are_separate_by_role():
    rates = Adam(embedding_lr=0.1, head_lr=0.01, scalar_lr=0.001, matrix_lr=0.5)
    sizes = moved(Optim(kind="adamw", adam=rates))
    # Adam's first step has the size of the learning rate.
    expected = {"embedding": 0.1, "head": 0.01, "scale": 0.001, "reads": 0.5, "writes": 0.5}
    assert sizes == pytest.approx(expected, rel=1e-3)


def test_sgd_has_one_rate_for_all():
    sizes = moved(Optim(kind="sgd", sgd=config.SGD(lr=0.25)))
    assert sizes == pytest.approx(dict.fromkeys(sizes, 0.25), rel=1e-3)


def test_the_scale_multiplies_every_rate_and_is_reported():
    full, half = roled(), roled()
    rates = {}
    for parameters, scale in ((full, 1.0), (half, 0.5)):
        optimizer = build_optimizer(parameters, Optim(), project_every=100)
        assert optimizer.learning_rates == dict.fromkeys(optimizer.learning_rates, 0.01)
        before = [p.tensor.clone() for p in parameters]
        for parameter in parameters:
            parameter.tensor.grad = torch.ones_like(parameter.tensor)
        optimizer.step(1, scale)
        assert optimizer.learning_rates == dict.fromkeys(optimizer.learning_rates, 0.01 * scale)
        rates[scale] = [p.tensor - b for p, b in zip(parameters, before, strict=True)]
    for one, other in zip(rates[1.0], rates[0.5], strict=True):
        torch.testing.assert_close(0.5 * one, other, rtol=1e-4, atol=1e-6)


def test_clipping_shrinks_only_what_is_too_long_and_says_the_length_before():
    parameters = roled()
    optimizer = build_optimizer(parameters, Optim(), project_every=100)
    for parameter in parameters:
        parameter.tensor.grad = torch.ones_like(parameter.tensor)
    length = math.sqrt(sum(parameter.tensor.numel() for parameter in parameters))
    assert float(optimizer.clip_gradients(2 * length)) == pytest.approx(length)
    assert optimizer.gradient_norm() == pytest.approx(length)
    assert float(optimizer.clip_gradients(1.5)) == pytest.approx(length)
    assert optimizer.gradient_norm() == pytest.approx(1.5, rel=1e-5)


KINDS = [
    Optim(),
    Optim(muon=MuonConfig(variance_reduction=True, momentum_warmup_steps=5)),
    Optim(kind="adamw"),
    Optim(kind="sgd", sgd=config.SGD(momentum=0.9)),
    Optim(kind="sgd"),
]


def steps(optimizer, parameters, numbers):
    for number in numbers:
        for n, parameter in enumerate(parameters):
            shape = parameter.tensor.shape
            parameter.tensor.grad = torch.randn(shape, generator=generator(100 * number + n))
        optimizer.step(number)


@pytest.mark.parametrize("config", KINDS)
def test_a_restored_optimizer_goes_on_bit_for_bit(config, tmp_path):
    through = roled()
    optimizer = build_optimizer(through, config, project_every=3)
    steps(optimizer, through, range(1, 5))
    file = tmp_path / "state.pt"
    torch.save([optimizer.state_dict(), [p.tensor for p in through]], file)
    steps(optimizer, through, range(5, 9))

    resumed = roled()
    state, tensors = torch.load(file, weights_only=True)
    fresh = build_optimizer(resumed, config, project_every=3)
    for parameter, tensor in zip(resumed, tensors, strict=True):
        parameter.tensor.copy_(tensor)
    fresh.load_state_dict(state)
    steps(fresh, resumed, range(5, 9))
    for one, other in zip(optimizer.state(), fresh.state(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("written", "read", "message"),
    [
        (Optim(), KINDS[1], 'lacks "second_moment" of reads'),
        (KINDS[1], Optim(), 'has, and this run lacks, "second_moment" of reads'),
        (Optim(), Optim(kind="adamw"), "reads"),
    ],
)
def test_the_state_of_another_optimizer_is_refused_and_nothing_changes(written, read, message):
    state = build_optimizer(roled(), written, project_every=3).state_dict()
    parameters = roled()
    optimizer = build_optimizer(parameters, read, project_every=3)
    steps(optimizer, parameters, [1])
    before = [tensor.clone() for tensor in optimizer.state()]
    with pytest.raises(ConfigError, match=message):
        optimizer.load_state_dict(state)
    assert all(map(torch.equal, before, optimizer.state()))


def test_the_state_of_another_shape_is_refused():
    optimizer = build_optimizer(roled(), Optim(), project_every=3)
    state = {name: dict(slots) for name, slots in optimizer.state_dict().items()}
    state["scale"]["first_moment"] = torch.zeros(5)
    with pytest.raises(ConfigError, match=r'"first_moment" of scale .* \(5,\); expected \(4,\)'):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize(
    ("optim", "key"),
    [
        ({"muon": {"momentum_warmup_steps": 9, "momentum": 0.8}}, "optim.muon.momentum_start"),
        ({"muon": {"scaling": "none"}}, "optim.muon.scaling"),
        ({"sgd": {"nesterov": True}}, "optim.sgd.nesterov"),
        ({"kind": "lamb"}, "optim.kind"),
        ({"muon": {"cautious_weight_decay": True, "cautious_lambda": 0}},
         "optim.muon.cautious_weight_decay"),
    ],
)  # fmt: skip
def test_contradictory_settings_are_refused_by_key(optim, key):
    _, problems = examine({"optim": optim})
    assert [problem.key for problem in problems] == [key]
