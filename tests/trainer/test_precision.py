"""Shows what lower precision and compilation cost: against float64, for a deep narrow network."""

import shutil

import pytest
import torch

from trainer.config import Model, Optim
from trainer.config import Muon as MuonConfig
from trainer.errors import ConfigError
from trainer.models import build_model, refuse_precision
from trainer.models.precision import DTYPES
from trainer.optim.build import build_optimizer
from trainer.optim.scaler import GROWTH_INTERVAL, LossScaler

LAYERS, VOCABULARY, CONTEXT = 11, 256, 32
# Relative error of the whole gradient, and of the loss, as allowed here; measured in brackets for
# ngpt: bf16 1.1 % and 2e-4 (compiled 0.5 % and 1e-4), fp16 0.13 %, fp32 4e-7.
TOLERANCES = {"fp32": (1e-5, 1e-5), "bf16": (0.03, 2e-3), "fp16": (5e-3, 5e-4)}


def model(kind, precision, layers=LAYERS):
    shape = Model(kind=kind, layers=layers, width=64, heads=2, hidden=96)
    net = build_model(shape, vocabulary=VOCABULARY, context=CONTEXT, seed=0, precision=precision)
    build_optimizer(net.roled_parameters(), Optim(), project_every=1)  # projects
    return net


def batch():
    draw = torch.Generator().manual_seed(0)
    return torch.randint(VOCABULARY, (2, 4, CONTEXT), generator=draw)


def loss_and_gradient(net, forward):
    loss = forward(*batch())
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.double().flatten() for p in net.parameters()])


def errors(kind, precision, forward_of=lambda net: net):
    double = model(kind, "fp32").double()
    exact_loss, exact = loss_and_gradient(double, double)
    net = model(kind, precision)
    assert all(p.dtype == torch.float32 for p in net.parameters())
    loss, gradient = loss_and_gradient(net, forward_of(net))
    return float((gradient - exact).norm() / exact.norm()), abs(loss / exact_loss - 1)


@pytest.mark.parametrize("kind", ["ngpt", "gpt2"])
@pytest.mark.parametrize("precision", TOLERANCES)
def test_all_layers_are_near_float64(kind, precision):
    gradient_error, loss_error = errors(kind, precision)
    allowed_gradient, allowed_loss = TOLERANCES[precision]
    assert gradient_error < allowed_gradient
    assert loss_error < allowed_loss
    # And lower precision was really used: float32 would be far nearer.
    assert precision == "fp32" or gradient_error > 1e-5


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")
def test_compiled_is_as_near_to_float64_as_eager_is_for_all_layers():
    """The compiler fuses across the casts of ~50 normalisations; that must not add up."""
    eager, _ = errors("ngpt", "bf16")
    compiled, loss_error = errors("ngpt", "bf16", lambda net: torch.compile(net, fullgraph=True))
    assert compiled < max(1.5 * eager, TOLERANCES["bf16"][0] / 2)
    assert loss_error < TOLERANCES["bf16"][1]


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")
def test_a_compiled_optimizer_agrees_and_no_change_of_rate_or_momentum_compiles_anew():
    from torch._dynamo.utils import counters

    settings = MuonConfig(
        variance_reduction=True,
        cautious_weight_decay=True,
        momentum_warmup_steps=10,
    )
    config, weights = Optim(muon=settings), []
    for compiled in (False, True):
        net = model("ngpt", "fp32", layers=1)
        optimizer = build_optimizer(
            net.roled_parameters(), config, project_every=1, compiled=compiled
        )
        net(*batch()).backward()
        optimizer.step(1, 1.0)
        counters.clear()
        for number in range(2, 6):
            optimizer.step(number, 1 / number)
        assert not counters["stats"]["unique_graphs"]
        weights.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)


def test_a_missing_precision_is_refused_with_what_there_is():
    for precision in DTYPES:
        refuse_precision(precision, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r'run\.precision = "bf16".*mps.*expected one of fp32'):
        refuse_precision("bf16", torch.device("mps"))


def test_float16_scales_the_loss_and_brings_gradients_back():
    plain, scaled = model("ngpt", "fp32", layers=2), model("ngpt", "fp32", layers=2)
    parameters = scaled.roled_parameters()
    optimizer = build_optimizer(parameters, Optim(), project_every=7, precision="fp16")
    plain(*batch()).backward()
    optimizer.scale_loss(scaled(*batch())).backward()
    one, other = plain.head.grad, scaled.head.grad.clone()
    torch.testing.assert_close(one * 2**16, other, rtol=1e-4, atol=1e-2)
    optimizer.unscale_gradients()
    torch.testing.assert_close(one, scaled.head.grad, rtol=1e-4, atol=1e-7)
    optimizer.step(1)
    assert optimizer.skipped_steps == 0


def test_a_step_that_float16_cannot_take_is_skipped_and_the_scale_halved():
    net = model("ngpt", "fp16", layers=1)
    optimizer = build_optimizer(net.roled_parameters(), Optim(), project_every=1, precision="fp16")
    optimizer.scale_loss(net(*batch())).backward()
    net.head.grad[0, 0] = torch.inf
    optimizer.unscale_gradients()
    before = [tensor.detach().clone() for tensor in net.parameters()]
    optimizer.step(1)
    assert all(map(torch.equal, before, net.parameters()))
    assert optimizer.skipped_steps == 1
    assert float(optimizer.state_dict()["(loss scale)"]["scale"]) == 2**15


def test_the_scale_grows_after_many_sound_steps():
    scaler = LossScaler(torch.device("cpu"), start=8.0)
    gradient = torch.ones(2)
    for _ in range(GROWTH_INTERVAL):
        scaler.divide([gradient])
        assert scaler.accept()
    assert scaler.scale == 16.0


@pytest.mark.parametrize("kind", ["ngpt", "gpt2"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_training_in_lower_precision_learns_like_float32(kind, precision):
    losses = {}
    for used in ("fp32", precision):
        net = model(kind, used, layers=2)
        optimizer = build_optimizer(
            net.roled_parameters(), Optim(), project_every=7, precision=used
        )
        for number in range(1, 21):
            optimizer.clear_gradients()
            loss = net(*batch())
            optimizer.scale_loss(loss).backward()
            optimizer.unscale_gradients()
            optimizer.step(number)
        losses[used] = float(loss.detach())
    assert losses["fp32"] < 4.0  # it has learnt: it began at log(256) = 5.5 or above
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.03)
