"""Shows the update rules against torch's own and against their definitions."""

import math

import pytest
import torch

from trainer.config import Adam, Optim
from trainer.config import Muon as MuonConfig
from trainer.optim.adamw import AdamW, Group
from trainer.optim.build import build_optimizer
from trainer.optim.muon import Decay, Muon, apply_update, reduce_variance
from trainer.optim.orthogonalize import exact, newton_schulz, polar_express
from trainer.optim.sphere import SphereProjection
from trainer.roles import Role, RoledParameter


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(*shapes):
    made = [torch.randn(shape, generator=generator(n)) for n, shape in enumerate(shapes)]
    for n, tensor in enumerate(made):
        tensor.grad = torch.randn(tensor.shape, generator=generator(100 + n))
    return made


SHAPES = [(8, 8), (8, 8), (16, 8), (8, 16)]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_muon_agrees_with_torch(decay):
    ours, theirs = weights(*SHAPES), weights(*SHAPES)
    rule = Muon(
        ours,
        lr=0.02,
        momentum=0.9,
        orthogonalize=newton_schulz,
        decay=Decay(decay),
        iteration_dtype=torch.bfloat16,  # torch's Muon iterates in bfloat16 whatever it is given
    )
    oracle = torch.optim.Muon(
        theirs, lr=0.02, momentum=0.9, weight_decay=decay, adjust_lr_fn="original"
    )
    for number in range(3):
        rule.step()
        oracle.step()
        for mine, other in zip(ours, theirs, strict=True):
            # An update has entries of about lr / sqrt(8) = 7e-3; bfloat16 keeps 8 bits of them.
            torch.testing.assert_close(mine, other, rtol=0, atol=3e-4 * (number + 1))
        for n, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            mine.grad = other.grad = torch.randn(mine.shape, generator=generator(200 + n + number))


def test_muon_in_double_precision_is_its_definition():
    matrix = torch.randn(12, 6, generator=generator(), dtype=torch.float64)
    before = matrix.clone()
    rule = Muon([matrix], lr=0.1, momentum=0.95, orthogonalize=exact, iteration_dtype=torch.float64)
    momentum = torch.zeros_like(matrix)
    for number in range(3):
        gradient = torch.randn(12, 6, generator=generator(number), dtype=torch.float64)
        matrix.grad = gradient
        rule.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        nesterov = 0.05 * gradient + 0.95 * momentum
        u, _, vh = torch.linalg.svd(nesterov, full_matrices=False)
        before = before - 0.1 * math.sqrt(2) * (u @ vh)
        torch.testing.assert_close(matrix, before, rtol=0, atol=1e-9)


def test_the_bank_is_the_same_as_one_matrix_at_a_time():
    together, alone = weights(*SHAPES), weights(*SHAPES)

    def rule(matrices):
        return Muon(
            matrices,
            lr=0.02,
            momentum=0.9,
            orthogonalize=polar_express,
            variance_beta=0.95,
            decay=Decay(0.1, cautious=True),
        )

    bank, singles = rule(together), [rule([matrix]) for matrix in alone]
    assert len(bank.banks) == 2  # squares; both rectangles, whichever way they lie
    for _ in range(3):
        bank.step()
        for single in singles:
            single.step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_zero_gradient_changes_nothing_and_stays_finite():
    (matrix,) = weights((8, 16))
    before = matrix.clone()
    matrix.grad = torch.zeros_like(matrix)
    Muon([matrix], lr=0.1, momentum=0.9, orthogonalize=polar_express, variance_beta=0.9).step()
    assert torch.equal(matrix, before)


@pytest.mark.parametrize(("shape", "axis"), [((3, 8, 16), -2), ((3, 8, 8), -1)])
def test_variance_reduction_keeps_the_norm_and_evens_out_neurons(shape, axis):
    update = torch.randn(shape, generator=generator(), dtype=torch.float64)
    update[:, 0] *= 5
    update[:, :, 0] *= 5
    kept = [1 if n == axis % 3 else size for n, size in enumerate(shape)]
    moment = torch.zeros(kept, dtype=torch.float64)
    reduced = reduce_variance(update, moment, 0.95, axis)
    norm = torch.linalg.matrix_norm
    torch.testing.assert_close(norm(reduced), norm(update), rtol=1e-3, atol=0)
    spread = update.square().mean(axis).std(-1) / update.square().mean(axis).mean(-1)
    after = reduced.square().mean(axis).std(-1) / reduced.square().mean(axis).mean(-1)
    assert (after < 0.01 * spread).all()  # from zero moments, every neuron gets the same size
    torch.testing.assert_close(moment, 0.05 * update.square().mean(axis, keepdim=True))


def test_cautious_decay_acts_only_where_update_and_weight_agree():
    matrix = torch.tensor([[1.0, -1.0], [2.0, -2.0]])
    update = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    apply_update(matrix, update, lr=0.1, gain=1.0, decay=Decay(0.5, cautious=True))
    # W - lr * (u + 0.5 * W where u * W >= 0)
    expected = torch.tensor([[1 - 0.1 * 1.5, -1 - 0.1], [2 + 0.1, -2 - 0.1 * (-1 - 1.0)]])
    torch.testing.assert_close(matrix, expected)


@pytest.mark.parametrize("cautious", [True, False])
def test_a_decay_of_zero_is_bit_for_bit_no_decay(cautious):
    one, other = weights((8, 16)) + weights((8, 16))
    update = torch.randn(8, 16, generator=generator(5))
    apply_update(one, update, lr=0.1, gain=1.3, decay=Decay(0.0, cautious=cautious))
    apply_update(other, update, lr=0.1, gain=1.3, decay=Decay())
    assert torch.equal(one, other)


def test_adamw_agrees_with_torch():
    ours, theirs = weights((8, 8), (5,), (3, 4)), weights((8, 8), (5,), (3, 4))
    settings = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-8}
    rule = AdamW([Group(ours[:2], 0.01, 0.1), Group(ours[2:], 0.003)], **settings)
    oracle = torch.optim.AdamW(
        [
            {"params": theirs[:2], "lr": 0.01, "weight_decay": 0.1},
            {"params": theirs[2:], "lr": 0.003, "weight_decay": 0.0},
        ],
        betas=(0.8, 0.95),
        eps=1e-8,
    )
    for number in range(5):
        rule.step()
        oracle.step()
        for n, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)
            mine.grad = other.grad = torch.randn(mine.shape, generator=generator(200 + n + number))


def roled():
    return [
        RoledParameter("embedding", torch.randn(10, 4, generator=generator(1)), Role.EMBEDDING, 1),
        RoledParameter("reads", torch.randn(6, 4, generator=generator(2)), Role.MATRIX, 1),
        RoledParameter("writes", torch.randn(4, 6, generator=generator(3)), Role.MATRIX, 0),
        RoledParameter("head", torch.randn(10, 4, generator=generator(4)), Role.HEAD, 1),
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
