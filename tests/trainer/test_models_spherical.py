"""Shows that the written-out forms of nGPT's operations are their plain definitions."""

import pytest
import torch

from trainer.models.spherical import (
    gated_units,
    gated_units_plain,
    sphere_step,
    sphere_step_plain,
    unit,
    unit_heads,
    unit_heads_plain,
    unit_plain,
)

BATCH, TIME, HEADS, HEAD_WIDTH = 2, 5, 3, 4


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def heads_case(dtype=torch.float64):
    # Exact tables: those of the model are rounded to float32, so that rotating changes lengths by
    # that much, and the two forms measure the length on different sides of the rotation.
    half = torch.arange(TIME, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.1])
    shape = (TIME, 2, HEADS, HEAD_WIDTH)
    cosine = torch.cat((half.cos(), half.cos()), -1)[:, None, None].expand(shape).to(dtype)
    sine = torch.cat((-half.sin(), half.sin()), -1)[:, None, None].expand(shape).to(dtype)
    qkv = random(BATCH, TIME, 3, HEADS, HEAD_WIDTH, dtype=dtype)
    return qkv, random(HEADS, HEAD_WIDTH, seed=1, dtype=dtype), cosine, sine


CASES = {
    "unit": (unit, unit_plain, lambda dtype=torch.float64: (random(3, 7, dtype=dtype),)),
    "sphere_step": (
        sphere_step,
        sphere_step_plain,
        lambda dtype=torch.float64: tuple(
            random(*shape, seed=n, dtype=dtype) for n, shape in enumerate([(2, 3, 7)] * 2 + [(7,)])
        ),
    ),
    "unit_heads": (unit_heads, unit_heads_plain, heads_case),
    "gated_units": (
        gated_units,
        gated_units_plain,
        lambda dtype=torch.float64: (random(2, 3, 8, dtype=dtype),),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_are_those_of_the_definition(name):
    fast, plain, case = CASES[name]
    outputs, gradients = [], []
    for form in (fast, plain):
        inputs = case()
        result = form(*inputs)
        parts = result if isinstance(result, tuple) else (result,)
        torch.autograd.backward(
            parts, [random(*part.shape, seed=9 + n).detach() for n, part in enumerate(parts)]
        )
        outputs.append(parts)
        gradients.append([x.grad for x in inputs if x.requires_grad])
    for one, other in zip(
        outputs[0] + tuple(gradients[0]), outputs[1] + tuple(gradients[1]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_derivatives_agree_with_finite_differences(name):
    fast, _, case = CASES[name]
    assert torch.autograd.gradcheck(fast, case(), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_is_near_double(name, dtype):
    fast, plain, case = CASES[name]
    low, high = case(dtype), [x.detach().double() for x in case(dtype)]
    results, expected = fast(*low), plain(*high)
    if not isinstance(results, tuple):
        results, expected = (results,), (expected,)
    for result, exact in zip(results, expected, strict=True):
        assert result.dtype == dtype
        # Each entry is rounded a few times, whatever happened inside.
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(result.double(), exact, rtol=tolerance, atol=tolerance)


def test_zero_vectors_stay_zero_and_finite():
    zero = torch.zeros(2, 4, requires_grad=True)
    unit(zero).sum().backward()
    assert torch.equal(unit(zero), torch.zeros(2, 4))
    assert torch.equal(unit_plain(zero), torch.zeros(2, 4))
    assert torch.isfinite(zero.grad).all()
