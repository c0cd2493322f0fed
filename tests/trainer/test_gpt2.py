"""Shows that gpt2 is the pre-LN transformer of the literature."""

import math

import pytest
import torch
from torch import nn

from trainer.config import Model, Optim
from trainer.models import build_model
from trainer.optim.build import build_optimizer
from trainer.roles import Role

CONTEXT = 12
SHAPE = {"kind": "gpt2", "layers": 2, "width": 24, "heads": 3, "hidden": 40}


def model(seed=0, **shape):
    return build_model(Model(**{**SHAPE, **shape}), vocabulary=50, context=CONTEXT, seed=seed)


def tokens(batch=3, seed=0):
    return torch.randint(50, (batch, CONTEXT), generator=torch.Generator().manual_seed(seed))


def test_a_block_is_torchs_own_encoder_layer_with_the_same_weights():
    block = model().blocks[0].double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    oracle = nn.TransformerEncoderLayer(
        24, 3, 40, 0.0, lambda x: nn.functional.gelu(x, approximate="tanh"),
        batch_first=True, norm_first=True, dtype=torch.float64,
    )  # fmt: skip
    pairs = [
        (oracle.norm1.weight, block.norm_attention.gain),
        (oracle.norm1.bias, block.norm_attention.bias),
        (oracle.self_attn.in_proj_weight, block.attention.qkv.weight),
        (oracle.self_attn.in_proj_bias, block.attention.qkv.bias),
        (oracle.self_attn.out_proj.weight, block.attention.out.weight),
        (oracle.self_attn.out_proj.bias, block.attention.out.bias),
        (oracle.norm2.weight, block.norm_mlp.gain),
        (oracle.norm2.bias, block.norm_mlp.bias),
        (oracle.linear1.weight, block.mlp_in.weight),
        (oracle.linear1.bias, block.mlp_in.bias),
        (oracle.linear2.weight, block.mlp_out.weight),
        (oracle.linear2.bias, block.mlp_out.bias),
    ]
    with torch.no_grad():
        for theirs, ours in pairs:
            theirs.copy_(ours)
    x = torch.randn(2, CONTEXT, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT, dtype=torch.float64)
    torch.testing.assert_close(block(x), oracle(x, mask, is_causal=True), rtol=1e-10, atol=1e-10)


def test_the_head_is_the_embedding_and_positions_are_learned():
    net = model()
    names = [name for name, _ in net.named_parameters()]
    assert not any("head" in name for name in names)
    before = net.logits(tokens())
    with torch.no_grad():
        net.positions[3, 0] += 1.0
    after = net.logits(tokens())
    torch.testing.assert_close(before[:, :3], after[:, :3], rtol=1e-5, atol=1e-6)
    assert (before[:, 3] - after[:, 3]).abs().amax(-1).min() > 1e-2


def test_roles():
    roles = {p.name.split(".", 2)[-1]: p for p in model().roled_parameters()}
    matrices = {name for name, p in roles.items() if p.role is Role.MATRIX}
    assert matrices == {
        "attention.qkv.weight", "attention.out.weight", "mlp_in.weight", "mlp_out.weight"
    }  # fmt: skip
    assert {n for n, p in roles.items() if p.role is Role.EMBEDDING} == {"embedding", "positions"}
    assert all(p.unit_axis is None for p in roles.values())


def test_the_past_does_not_see_the_future():
    net, first = model(), tokens()
    second = first.clone()
    second[:, 8:] = (second[:, 8:] + 1) % 50
    one, two = net.logits(first), net.logits(second)
    torch.testing.assert_close(one[:, :8], two[:, :8], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(one[:, 8:], two[:, 8:], atol=1e-3)


def test_the_start_is_that_of_the_literature():
    net = model(width=96, layers=8)
    assert net.embedding.std().item() == pytest.approx(0.02, rel=0.1)
    assert net.blocks[0].mlp_out.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
    loss = net(tokens(), tokens(seed=1)).detach()
    assert float(loss) == pytest.approx(math.log(50), abs=0.1)


def test_gradients_agree_with_finite_differences():
    net = model(layers=1).double()
    x, y = tokens(2), tokens(2, seed=1)
    net(x, y).backward()
    for name, parameter in net.named_parameters():
        direction = torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64
        )
        derivative = float((parameter.grad * direction).sum())
        with torch.no_grad():
            parameter.add_(direction, alpha=1e-6)
            up = float(net(x, y))
            parameter.sub_(direction, alpha=2e-6)
            down = float(net(x, y))
            parameter.add_(direction, alpha=1e-6)
        assert derivative == pytest.approx((up - down) / 2e-6, rel=1e-5, abs=1e-8), name


@pytest.mark.parametrize("kind", ["muon", "adamw", "sgd"])
def test_every_optimizer_moves_every_parameter(kind):
    net = model()
    optimizer = build_optimizer(net.roled_parameters(), Optim(kind=kind), project_every=7)
    before = [p.tensor.detach().clone() for p in net.roled_parameters()]
    net(tokens(), tokens(seed=1)).backward()
    optimizer.step(1)
    for parameter, start in zip(net.roled_parameters(), before, strict=True):
        assert not torch.equal(parameter.tensor, start), parameter.name
