"""Quality and time of designed fractions, beside random subsets and, if installed, pyDOE3.

Run: python bench/fraction.py [--pydoe3] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from itertools import product
from pathlib import Path

import numpy as np

from sweeper.design.fraction import design_fraction
from sweeper.design.model_matrix import Factor, ModelMatrix

NOISE_SD = 0.03


def numeric(name: str, count: int) -> Factor:
    return Factor(name, tuple(float(2**level) for level in range(count)), "numeric", "log")


def numerics(*counts: int) -> tuple[Factor, ...]:
    return tuple(numeric(f"x{place}", count) for place, count in enumerate(counts))


QUICKSTART = (
    Factor("orthogonalizer", ("newton_schulz", "polar_express"), "categorical"),
    numeric("x0", 5),
    numeric("x1", 4),
    numeric("momentum", 4),
    numeric("project_every", 5),
    Factor("vr", (False, True), "categorical"),
)
CASES = {
    "6x5x5x5, 36 runs": (numerics(6, 5, 5, 5), 36),
    "2x5x4x4x5x2, 36 runs": (QUICKSTART, 36),
    "2x5x4x4x5x2, 12 runs": (QUICKSTART, 12),
    "6^5 x 5^3 (972,000 points), 36 runs": (numerics(6, 6, 6, 6, 6, 5, 5, 5), 36),
    "6^5 x 5^3 (972,000 points), 60 runs": (numerics(6, 6, 6, 6, 6, 5, 5, 5), 60),
}


def efficiency(matrix):
    """Normalised determinant, 1 for the full factorial."""
    log_determinant = np.linalg.slogdet(matrix.T @ matrix)[1]
    return math.exp(log_determinant / matrix.shape[1]) / len(matrix)


def measure(factors, runs: int, *, pydoe3: bool) -> dict[str, object]:
    """One case: our design with its properties, and what others reach with as many points."""
    incumbent = {factor.name: factor.levels[len(factor.levels) // 2] for factor in factors}
    interactions = [("x0", "x1")]
    began = time.monotonic()
    fraction = design_fraction(factors, runs=runs, incumbent=incumbent, interactions=interactions)
    result: dict[str, object] = {"seconds": time.monotonic() - began}
    model = ModelMatrix(factors, interactions)
    terms = [term for term in model.terms if term.label in fraction.terms]
    points = np.array(list(dict.fromkeys(fraction.points)))
    assert fraction.max_alias is not None
    result |= {
        "parameters": fraction.parameters,
        "dropped": [dropped.label for dropped in fraction.dropped],
        "d_efficiency_runs": fraction.d_efficiency,
        "d_efficiency_points": efficiency(model.columns(terms, points)),
        "max_alias": fraction.max_alias.correlation,
        "largest_imbalance": max(max(c) - min(c) for c in fraction.balance.values()),
        f"detectable_percent_at_{NOISE_SD}": max(
            effect.percent for effect in fraction.detectable_effects(NOISE_SD)
        ),
    }
    rng = np.random.default_rng(0)
    shape = [len(factor.levels) for factor in factors]
    draws = [rng.integers(0, shape, size=(len(points), len(shape))) for _ in range(1000)]
    result["d_efficiency_best_of_1000_random"] = max(
        efficiency(model.columns(terms, draw)) for draw in draws
    )
    if pydoe3 and math.prod(shape) <= 4096:
        from pyDOE3.doe_optimal import optimal_design

        every = np.array(list(product(*(range(count) for count in shape))))
        candidates = model.columns(terms, every)[:, 1:]
        for method in ("sequential", "simple_exchange"):
            began = time.monotonic()
            theirs, _ = optimal_design(candidates, len(points), 1, "D", method)
            result[f"pydoe3_{method}"] = {
                "d_efficiency_points": efficiency(np.column_stack([np.ones(len(theirs)), theirs])),
                "seconds": time.monotonic() - began,
            }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pydoe3", action="store_true", help="compare with pyDOE3 (slow)")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    cases = {}
    for name, (factors, runs) in CASES.items():
        cases[name] = measure(factors, runs, pydoe3=options.pydoe3)
        print(name)
        for key, value in cases[name].items():
            print(f"  {key:34} {f'{value:.4f}' if isinstance(value, float) else value}")
    if options.out:
        machine = {
            "platform": platform.platform(),
            "cpu_count": os.cpu_count(),
            "python": platform.python_version(),
            "numpy": np.__version__,
        }
        partial = options.out.with_name(options.out.name + ".partial")
        partial.write_text(json.dumps({"machine": machine, "cases": cases}, indent=2) + "\n")
        partial.replace(options.out)


if __name__ == "__main__":
    main()
