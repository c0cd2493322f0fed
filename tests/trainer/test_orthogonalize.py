"""Shows that the iterations orthogonalise: against SVD, the slow exact one, and known images."""

import math

import pytest
import torch

from trainer.optim.orthogonalize import (
    EXACT,
    NEWTON_SCHULZ,
    POLAR_EXPRESS,
    exact,
    newton_schulz,
    polar_express,
)

SHAPES = [(12, 12), (8, 20), (20, 8)]

# Images of a singular value after five steps in exact arithmetic, to three digits.
SINGULAR = [1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0]
IMAGES = {
    "polar_express": [0.099, 0.859, 1.027, 1.061, 1.059, 0.983, 0.871, 0.859],
    "newton_schulz": [0.048, 0.471, 0.699, 1.122, 0.712, 1.080, 0.723, 0.696],
}


def image(sigma, table):
    for a, b, c in table:
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    return sigma


def random_matrix(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def polar_factor(matrix):
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


@pytest.mark.parametrize(
    ("name", "table"),
    [("polar_express", POLAR_EXPRESS), ("newton_schulz", [NEWTON_SCHULZ] * 5)],
)
def test_known_images_of_singular_values(name, table):
    # Three digits were published, so half a unit of the third is the tolerance.
    for sigma, expected in zip(SINGULAR, IMAGES[name], strict=True):
        assert image(sigma, table) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [(POLAR_EXPRESS, 0.859, 1.141), ([NEWTON_SCHULZ] * 5, 0.471, 1.202)],
)
def test_range_over_the_interval(table, low, high):
    sigmas = torch.logspace(-3, 0, 200_001, dtype=torch.float64)
    images = image(sigmas, table)
    assert images.min().item() == pytest.approx(low, abs=6e-4)
    assert images.max().item() == pytest.approx(high, abs=6e-4)


def test_polar_express_is_the_minimax_quintic_of_its_interval():
    """Each step errs equally, with alternating sign, at four points of the interval left to it.

    That is what makes an odd quintic minimax (Chebyshev), and it fixes all three coefficients to
    the last digits. A safety factor of 1.02 is divided out of all steps but the last; a cushion of
    0.02 bounds the interval from below; a step leaves the interval [p(lower), 2 - p(lower)].
    """
    lower, upper = 1e-3, 1.0
    for number, published in enumerate(POLAR_EXPRESS):
        safety = 1.0 if number == len(POLAR_EXPRESS) - 1 else 1.02
        a, b, c = (x * safety**power for x, power in zip(published, (1, 3, 5), strict=True))
        root = math.sqrt(9 * b * b - 20 * a * c)
        turning = [math.sqrt((-3 * b + sign * root) / (10 * c)) for sign in (-1, 1)]
        points = [max(lower, 0.02 * upper), *turning, upper]
        values = [image(point, [(a, b, c)]) for point in points]
        middle = (max(values) + min(values)) / 2
        error = max(values) / middle - 1
        expected = [-error, error, -error, error]
        assert [value / middle - 1 for value in values] == pytest.approx(expected, abs=1e-12)
        lower = image(lower, [published])
        upper = 2 - lower


@pytest.mark.parametrize("shape", SHAPES)
def test_exact_iteration_is_the_polar_factor(shape):
    matrix = random_matrix(*shape)
    torch.testing.assert_close(exact(matrix), polar_factor(matrix), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("orthogonalize", "low", "high"), [(newton_schulz, 0.47, 1.21), (polar_express, 0.85, 1.15)]
)
def test_singular_values_land_in_the_bounds_and_vectors_stay(shape, orthogonalize, low, high):
    matrix = random_matrix(*shape)
    result = orthogonalize(matrix)
    assert result.shape == matrix.shape
    singular = torch.linalg.svdvals(result)
    assert singular.min() > low
    assert singular.max() < high
    # Same singular vectors: against the polar factor the product is symmetric positive.
    product = polar_factor(matrix).mT @ result
    torch.testing.assert_close(product, product.mT, rtol=0, atol=1e-9)
    assert torch.linalg.eigvalsh(product).min() > -1e-9


def test_images_hold_for_real_matrices():
    sigma = torch.tensor([1.0, 0.3, 0.1, 0.03, 0.01], dtype=torch.float64)
    u, v = polar_factor(random_matrix(5, 5, seed=1)), polar_factor(random_matrix(5, 5, seed=2))
    matrix = u @ torch.diag(sigma) @ v
    expected = image(sigma / sigma.norm(), [NEWTON_SCHULZ] * 5).sort().values
    found = torch.linalg.svdvals(newton_schulz(matrix)).sort().values
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("orthogonalize", [newton_schulz, polar_express, exact])
def test_a_stack_is_the_same_as_one_by_one(orthogonalize):
    stack = random_matrix(3, 2, 6, 10)
    together = orthogonalize(stack)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(together[i, j], orthogonalize(stack[i, j]))


@pytest.mark.parametrize("orthogonalize", [newton_schulz, polar_express])
def test_transposing_commutes(orthogonalize):
    matrix = random_matrix(6, 10)
    torch.testing.assert_close(orthogonalize(matrix.mT), orthogonalize(matrix).mT)


@pytest.mark.parametrize("orthogonalize", [newton_schulz, polar_express, exact])
def test_zero_stays_zero(orthogonalize):
    assert torch.equal(orthogonalize(torch.zeros(4, 6)), torch.zeros(4, 6))


def test_the_exact_polynomial_has_its_fixed_point_at_one():
    a, b, c = EXACT
    assert a + b + c == 1.0
    assert a + 3 * b + 5 * c == 0.0
