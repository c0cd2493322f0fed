"""What a designed fraction promises: determinant, balance, incumbent, order, and clear refusals."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pyDOE3.doe_optimal import optimal_design

from sweeper.design.exchange import BALANCE, ENUMERATED
from sweeper.design.fraction import DroppedTerm, Fraction, design_fraction
from sweeper.design.model_matrix import Factor, ModelMatrix

pytestmark = pytest.mark.xdist_group("fraction")  # its fixtures are made once


def numeric(name, count, scale="linear"):
    return Factor(name, tuple(float(2**i) for i in range(count)), "numeric", scale)


def middle(factors):
    return {f.name: f.levels[len(f.levels) // 2] for f in factors}


QUICKSTART = (
    Factor("orthogonalizer", ("newton_schulz", "polar_express"), "categorical"),
    Factor("lr", (0.001, 0.002, 0.005, 0.01, 0.02), "numeric", "log"),
    Factor("batch", (8, 16, 24, 32), "numeric", "log"),
    Factor("momentum", (0.8, 0.9, 0.95, 0.98), "numeric"),
    Factor("project_every", (1, 3, 5, 7, 10), "numeric"),
    Factor("vr", (False, True), "categorical"),
)
METHOD = tuple(numeric(name, n, "log") for name, n in zip("abcd", (6, 5, 5, 5), strict=True))
SMALL = (numeric("a", 4), numeric("b", 3), numeric("c", 3), Factor("d", ("x", "y"), "categorical"))

CASES = {
    "method 6x5x5x5": (METHOD, 36, [("a", "b")]),
    "quickstart 36": (QUICKSTART, 36, [("lr", "batch")]),
    "quickstart 12": (QUICKSTART, 12, [("lr", "batch")]),
    "small 20": (SMALL, 20, [("a", "b"), ("b", "c")]),
}


def every_point(factors):
    return np.array(list(product(*(range(len(f.levels)) for f in factors))))


def kept_terms(model, fraction):
    return [term for term in model.terms if term.label in fraction.terms]


def log_d(matrix):
    return np.linalg.slogdet(matrix.T @ matrix)[1]


def distinct(fraction):
    return np.array(list(dict.fromkeys(fraction.points)))


def spread(counts):
    return max(counts) - min(counts)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    factors, runs, interactions = CASES[request.param]
    fraction = design_fraction(
        factors, runs=runs, incumbent=middle(factors), interactions=interactions, seed=7
    )
    return fraction, ModelMatrix(factors, interactions)


# The model


def test_levels_6_5_5_5_with_one_interaction_have_19_parameters():
    # 1 intercept + polynomials of degree 1..5, 1..4, 1..4, 1..4 (5 + 4 + 4 + 4) + 1 interaction
    model = ModelMatrix(METHOD, [("a", "b")])
    assert len(model.terms) == 1 + (5 + 4 + 4 + 4) + 1 == 19
    by_priority = [
        *("intercept", "a", "b", "c", "d", "a x b", "a^2", "b^2", "c^2", "d^2"),
        *("a^3", "b^3", "c^3", "d^3", "a^4", "b^4", "c^4", "d^4", "a^5"),
    ]
    assert [term.label for term in model.terms] == by_priority


@pytest.mark.parametrize(
    "factors", [METHOD, QUICKSTART, SMALL], ids=["6555", "quickstart", "small"]
)
def test_the_full_factorial_is_orthonormal(factors):
    model = ModelMatrix(factors, [(factors[1].name, factors[2].name)])
    matrix = model.columns([*model.terms, *model.undeclared], every_point(factors))
    np.testing.assert_allclose(matrix.T @ matrix / len(matrix), np.eye(matrix.shape[1]), atol=1e-9)


def test_contrasts_are_the_textbook_ones():
    model = ModelMatrix([numeric("x", 5, "log"), Factor("c", ("p", "q", "r"), "categorical")])
    columns = dict(
        zip(
            [term.label for term in model.terms],
            model.columns(model.terms, every_point(model.factors)).T,
            strict=True,
        )
    )
    x = {label: column[::3] for label, column in columns.items()}
    # Equally spaced levels on the log scale: Fisher and Yates' integers, scaled.
    for label, integers in {
        "x": [-2, -1, 0, 1, 2],
        "x^2": [2, -1, -2, -1, 2],
        "x^3": [-1, 2, 0, -2, 1],
        "x^4": [1, -4, 6, -4, 1],
    }.items():
        expected = np.array(integers) / np.sqrt(np.mean(np.square(integers)))
        np.testing.assert_allclose(x[label], expected, atol=1e-9)
    np.testing.assert_allclose(columns["c[q]"][:3], np.array([-1, 1, 0]) * math.sqrt(3 / 2))
    np.testing.assert_allclose(columns["c[r]"][:3], np.array([-1, -1, 2]) / math.sqrt(2))


def test_a_categorical_side_of_an_interaction_brings_all_its_contrasts():
    model = ModelMatrix(
        [numeric("x", 4), Factor("c", ("p", "q", "r"), "categorical")], [("c", "x")]
    )
    assert [t.label for t in model.terms if len(t.parts) == 2] == ["x x c[q]", "x x c[r]"]
    assert model.undeclared == ()


# Determinant


def test_beats_1000_random_subsets_of_the_same_size(case):
    fraction, model = case
    terms = kept_terms(model, fraction)
    candidates = model.columns(terms, every_point(fraction.factors))
    all_runs = log_d(model.columns(terms, np.array(fraction.points)))
    only_points = log_d(model.columns(terms, distinct(fraction)))
    rng = np.random.default_rng(0)
    for ours, size in (
        (all_runs, len(fraction.points)),  # the random ones spend nothing on replicates
        (only_points, len(distinct(fraction))),
    ):
        draws = [
            log_d(candidates[rng.choice(len(candidates), size, replace=False)]) for _ in range(1000)
        ]
        assert ours > max(draws)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("method 6x5x5x5", "simple_exchange"),
        ("small 20", "detmax"),
        ("small 20", "modified_fedorov"),
        ("quickstart 12", "simple_exchange"),
        pytest.param("method 6x5x5x5", "modified_fedorov", marks=pytest.mark.long),
        pytest.param("quickstart 36", "simple_exchange", marks=pytest.mark.long),
    ],
)
def test_within_2_percent_of_pydoe3(name, method):
    factors, runs, interactions = CASES[name]
    fraction = design_fraction(
        factors, runs=runs, incumbent=middle(factors), interactions=interactions
    )
    model = ModelMatrix(factors, interactions)
    terms = kept_terms(model, fraction)
    candidates = model.columns(terms, every_point(factors))
    points = distinct(fraction)
    # pyDOE3 adds the intercept itself: with degree 1 its model is exactly these columns.
    theirs, _ = optimal_design(
        candidates[:, 1:], len(points), degree=1, criterion="D", method=method, max_iter=30
    )
    theirs = np.column_stack([np.ones(len(theirs)), theirs])
    ratio = math.exp((log_d(model.columns(terms, points)) - log_d(theirs)) / len(terms))
    assert ratio > 0.98


def test_coordinate_exchange_in_a_large_region_is_as_good_as_the_enumerated_one():
    # Equal first factors; one more 2-level factor takes the region past what is enumerated.
    factors = (*METHOD[:3], numeric("e", 5), numeric("f", 2), numeric("g", 3))
    larger = (*factors, numeric("h", 2))
    assert math.prod(len(f.levels) for f in larger) > ENUMERATED
    fraction = design_fraction(larger, runs=40, replicates=0, incumbent=middle(larger))
    model = ModelMatrix(larger)
    every = every_point(larger)
    candidates = model.columns(model.terms, every)
    rng = np.random.default_rng(0)
    best = max(log_d(candidates[rng.choice(len(every), 40, replace=False)]) for _ in range(1000))
    assert log_d(model.columns(model.terms, np.array(fraction.points))) > best
    assert fraction.d_efficiency > 0.9


# Runs, balance, order


def test_runs_replicates_and_incumbent(case):
    fraction, _ = case
    incumbent = tuple(len(f.levels) // 2 for f in fraction.factors)
    times = Counter(fraction.points)
    assert times.pop(incumbent) == 4
    assert set(times.values()) == {1}
    replicas = [run.levels for run in fraction.runs if run.is_replicate]
    assert replicas == [incumbent] * 3
    first = fraction.points.index(incumbent)
    assert not fraction.runs[first].is_replicate
    assert fraction.pure_error_df == 3
    assert fraction.assignments[first] == middle(fraction.factors)


def test_levels_balanced_within_3_over_runs_and_over_points(case):
    fraction, _ = case
    for place, factor in enumerate(fraction.factors):
        counts = fraction.balance[factor.name]
        assert sum(counts) == len(fraction.runs)
        assert spread(counts) <= BALANCE
        over_points = np.bincount(distinct(fraction)[:, place], minlength=len(factor.levels))
        assert spread(over_points) <= BALANCE


def test_properties_follow_from_the_runs(case):
    fraction, model = case
    terms = kept_terms(model, fraction)
    matrix = model.columns(terms, np.array(fraction.points))
    n, p = matrix.shape
    assert fraction.parameters == p
    assert fraction.residual_df == n - p >= 0
    assert fraction.d_efficiency == pytest.approx(np.linalg.det(matrix.T @ matrix / n) ** (1 / p))
    assert fraction.max_alias is not None
    outside = [*model.undeclared, *(t for t in model.terms if t not in terms)]
    by_label = {
        t.label: model.columns([t], np.array(fraction.points))[:, 0] for t in [*terms, *outside]
    }
    largest = 0.0
    for i, a in enumerate(terms[1:]):
        for b in [*terms[i + 2 :], *(outside if a.is_main_effect else [])]:
            if np.ptp(by_label[b.label]) > 0:
                r = abs(np.corrcoef(by_label[a.label], by_label[b.label])[0, 1])
                largest = max(largest, r)
    assert fraction.max_alias.correlation == pytest.approx(largest)
    pair = (by_label[fraction.max_alias.term], by_label[fraction.max_alias.with_term])
    assert abs(np.corrcoef(*pair)[0, 1]) == pytest.approx(largest)


def test_detectable_effect_is_found_in_80_percent_of_simulations():
    factors, runs, interactions = CASES["method 6x5x5x5"]
    sd = 0.03
    fraction = design_fraction(
        factors, runs=runs, incumbent=middle(factors), interactions=interactions
    )
    effect = next(e for e in fraction.detectable_effects(sd) if e.term == "b")
    model = ModelMatrix(factors, interactions)
    matrix = model.columns(kept_terms(model, fraction), np.array(fraction.points))
    column = list(fraction.terms).index("b")
    coefficient = effect.log_effect / np.ptp(
        matrix[:, column]
    )  # "b" is linear: last less first level
    rng = np.random.default_rng(3)
    noise = rng.normal(0, sd, (len(matrix), 4000))
    estimates = np.linalg.lstsq(matrix, matrix[:, [column]] * coefficient + noise, rcond=None)[0][
        column
    ]
    threshold = 1.959964 * sd * math.sqrt(np.linalg.inv(matrix.T @ matrix)[column, column])
    power = np.mean(np.abs(estimates) > threshold)
    assert power == pytest.approx(0.8, abs=0.025)
    assert effect.percent == pytest.approx(100 * (math.exp(effect.log_effect) - 1))


def test_two_level_effect_has_the_textbook_size():
    fraction = design_fraction(
        [numeric("x", 2), numeric("y", 2)], runs=8, replicates=0, incumbent={"x": 1.0, "y": 1.0}
    )
    # Difference of two means of four runs each: standard error sd * sqrt(1/4 + 1/4).
    for effect in fraction.detectable_effects(0.1):
        assert effect.log_effect == pytest.approx(2.801585 * 0.1 * math.sqrt(0.5), rel=1e-6)


@pytest.mark.parametrize("sd", [0.0, -1.0, math.nan, math.inf])
def test_noise_must_be_positive(sd):
    fraction = design_fraction([numeric("x", 3)], runs=5, incumbent={"x": 1.0})
    with pytest.raises(ValueError, match="noise_sd"):
        fraction.detectable_effects(sd)


def test_same_seed_same_design_other_seed_other_order():
    def make(seed):
        return design_fraction(SMALL, runs=24, incumbent=middle(SMALL), seed=seed, blocks=2)

    assert make(1) == make(1)
    assert make(1).points != make(2).points


def test_blocks_share_the_replicates_and_can_be_told_from_the_model():
    fraction = design_fraction(
        METHOD, runs=36, incumbent=middle(METHOD), interactions=[("a", "b")], blocks=4
    )
    assert [len(block) for block in fraction.blocks] == [9, 9, 9, 9]
    assert [run.block for run in fraction.runs] == sorted(run.block for run in fraction.runs)
    incumbent = tuple(len(f.levels) // 2 for f in METHOD)
    for block in fraction.blocks:
        assert [run.levels for run in block].count(incumbent) == 1
    model = ModelMatrix(METHOD, [("a", "b")])
    matrix = model.columns(model.terms, np.array(fraction.points))
    member = np.array([[run.block == b for b in (1, 2, 3)] for run in fraction.runs], dtype=float)
    assert np.linalg.matrix_rank(np.column_stack([matrix, member])) == 19 + 3


def test_the_order_is_random_not_sorted():
    fraction = design_fraction(
        [numeric("x", 5), numeric("y", 5)], runs=25, incumbent={"x": 1.0, "y": 1.0}
    )
    assert list(fraction.points) != sorted(fraction.points)
    places = [
        design_fraction([numeric("x", 5)], runs=8, incumbent={"x": 1.0}, seed=s).points.index((0,))
        for s in range(30)
    ]
    assert len(set(places)) > 3  # the incumbent is not always first


# Degenerate cases


def test_more_runs_than_points_is_the_full_factorial_and_replicates_incumbent_first():
    factors = [numeric("x", 3), numeric("y", 2)]
    fraction = design_fraction(factors, runs=12, incumbent={"x": 2.0, "y": 1.0})
    times = Counter(fraction.points)
    assert fraction.kind == "full factorial"
    assert len(times) == 6
    assert times[1, 0] == 4
    assert sorted(times.values()) == [1, 1, 2, 2, 2, 4]
    assert sum(run.is_replicate for run in fraction.runs) == 6
    short = Counter(design_fraction(factors, runs=8, incumbent={"x": 2.0, "y": 1.0}).points)
    assert short[1, 0] == 3
    assert sorted(short.values()) == [1, 1, 1, 1, 1, 3]


def test_as_many_runs_as_points_is_still_a_fraction_with_replicates():
    fraction = design_fraction(
        [numeric("x", 4), numeric("y", 3)], runs=12, incumbent={"x": 2.0, "y": 1.0}
    )
    assert fraction.kind == "d-optimal fraction"
    assert fraction.pure_error_df == 3


def test_full_factorial_without_extra_runs_has_efficiency_one():
    fraction = design_fraction(
        [numeric("x", 3), numeric("y", 4)], runs=24, replicates=1, incumbent={"x": 1.0, "y": 1.0}
    )
    assert fraction.d_efficiency == pytest.approx(1, abs=0.02)
    exact = design_fraction(
        [numeric("x", 2), numeric("y", 2)], runs=8, replicates=0, incumbent={"x": 1.0, "y": 1.0}
    )
    assert exact.d_efficiency == pytest.approx(1, abs=1e-9)
    assert exact.max_alias is None


def test_too_few_runs_drop_high_degrees_first_and_then_interactions():
    factors = [numeric("a", 5), numeric("b", 4), numeric("c", 3)]
    incumbent = middle(factors)

    def dropped(runs):
        made = design_fraction(
            factors,
            runs=runs,
            replicates=1,
            incumbent=incumbent,
            interactions=[("a", "b"), ("b", "c")],
        )
        assert {d.reason for d in made.dropped} <= {"too few runs"}
        return [d.label for d in made.dropped]

    order = ["a^4", "b^3", "a^3", "c^2", "b^2", "a^2", "b x c", "a x b"]
    assert dropped(13) == []  # 12 points, 12 parameters
    for missing in range(1, len(order) + 1):
        assert dropped(13 - missing) == order[:missing]
    with pytest.raises(ValueError, match=r"runs = 4 leave 3 distinct points.*at least 5 runs"):
        dropped(4)


def test_nothing_varies_and_one_level_are_refused_by_name():
    with pytest.raises(ValueError, match="no factor varies"):
        design_fraction([], runs=10, incumbent={})
    with pytest.raises(ValueError, match=r"'lr' has 1 level.*lock it"):
        Factor("lr", (0.1,), "numeric")


@pytest.mark.parametrize(
    ("levels", "kind", "scale", "message"),
    [
        ((1.0, 1.0), "numeric", "linear", "equal levels"),
        ((1.0, 3.0, 2.0), "numeric", "linear", "in order"),
        ((0.0, 1.0), "numeric", "log", "above 0"),
        ((1.0, math.nan), "numeric", "linear", "finite"),
        (("a", "b"), "numeric", "linear", "finite"),
        (("a", "a"), "categorical", "linear", "equal levels"),
    ],
)
def test_bad_levels_are_refused(levels, kind, scale, message):
    with pytest.raises(ValueError, match=message):
        Factor("f", levels, kind, scale)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"incumbent": {"x": 1.0}}, "the incumbent has the parameters"),
        ({"incumbent": {"x": 1.0, "y": 3.0}}, "y = 3.0, which is no level"),
        ({"interactions": [("x", "z")]}, "names 'z', which does not vary"),
        ({"interactions": [("x", "x")]}, "two different factors"),
        ({"replicates": -1}, "replicates = -1"),
        ({"blocks": 0}, "blocks = 0"),
        ({"blocks": 9}, "blocks = 9"),
        ({"runs": 3}, "runs = 3 leave 0 distinct points.*at least 6 runs"),
        ({"runs": 0}, "runs = 0"),
        ({"forbidden": [{"z": 1.0}]}, r"got \['z'\]"),
        ({"forbidden": [{}]}, "got none"),
        ({"forbidden": [{"x": 1.0}]}, "the incumbent .* is one of the forbidden"),
        ({"forbidden": lambda a: a["x"] != 1.0}, "cannot separate factor 'x'"),
        ({"forbidden": lambda a: a["x"] != a["y"]}, "cannot separate factor 'y'"),
    ],
)
def test_bad_requests_are_refused(change, message):
    request = {"runs": 8, "incumbent": {"x": 1.0, "y": 1.0}} | change
    with pytest.raises(ValueError, match=message):
        design_fraction([numeric("x", 3), numeric("y", 3)], **request)


def test_equal_names_are_refused():
    with pytest.raises(ValueError, match="distinct names"):
        design_fraction([numeric("x", 3), numeric("x", 2)], runs=8, incumbent={"x": 1.0})


# Forbidden combinations


@pytest.mark.parametrize("runs", [20, 120])
def test_forbidden_combinations_are_left_out(runs):
    partial = [{"a": 8.0, "b": 4.0}, {"d": "y", "c": 4.0}, {"a": 77.0}]
    by_list = design_fraction(SMALL, runs=runs, incumbent=middle(SMALL), forbidden=partial[:2] * 2)
    by_predicate = design_fraction(
        SMALL,
        runs=runs,
        incumbent=middle(SMALL),
        forbidden=lambda a: (a["a"], a["b"]) == (8.0, 4.0) or (a["d"], a["c"]) == ("y", 4.0),
    )
    assert by_list == by_predicate
    for run in by_list.assignments:
        for rule in partial:
            assert any(run[name] != value for name, value in rule.items())
    if runs == 120:
        assert by_list.kind == "full factorial"
        assert len(set(by_list.points)) == 72 - 6 - 12 + 1  # one combination is in both rules


def test_a_level_that_is_forbidden_throughout_costs_a_term_not_the_design():
    fraction = design_fraction(
        [numeric("x", 4), numeric("y", 3)],
        runs=9,
        replicates=1,
        incumbent={"x": 2.0, "y": 2.0},
        forbidden=[{"x": 8.0}],
    )
    assert fraction.dropped == (DroppedTerm("x^3", "forbidden combinations"),)
    assert fraction.balance["x"][3] == 0


def test_a_large_region_is_never_enumerated():
    factors = [numeric(f"x{i}", 6) for i in range(8)]  # 1,679,616 combinations
    asked = Counter()

    def forbidden(assignment):
        asked[tuple(assignment.values())] += 1
        return assignment["x0"] * assignment["x1"] > 256

    fraction = design_fraction(factors, runs=28, incumbent=middle(factors), forbidden=forbidden)
    assert all(a["x0"] * a["x1"] <= 256 for a in fraction.assignments)
    assert sum(asked.values()) < 20_000
    assert set(asked.values()) == {1}
    assert max(spread(counts) for counts in fraction.balance.values()) <= BALANCE


def test_a_large_region_with_too_few_allowed_points_is_refused():
    factors = [numeric(f"x{i}", 6) for i in range(8)]
    with pytest.raises(ValueError, match="only 25 allowed points were found where 33"):
        design_fraction(
            factors,
            runs=36,
            incumbent=middle(factors),
            forbidden=lambda a: sum(v != 8.0 for v in a.values()) > 1 or min(a.values()) < 4.0,
        )
    narrow = design_fraction(  # few of many, but enough: found by walking from the incumbent
        factors,
        runs=36,
        incumbent=middle(factors),
        forbidden=lambda a: sum(v != 8.0 for v in a.values()) > 2,
    )
    assert len(set(narrow.points)) == 33


# Any structure


@st.composite
def problems(draw):
    factors = []
    for place in range(draw(st.integers(1, 5))):
        count = draw(st.integers(2, 5))
        if draw(st.booleans()):
            step = st.floats(0.2, 3)
            logs = np.cumsum(draw(st.lists(step, min_size=count, max_size=count)))
            scale = draw(st.sampled_from(["linear", "log"]))
            levels = tuple(float(v) for v in np.exp(logs / 2 if scale == "log" else np.log(logs)))
            factors.append(Factor(f"f{place}", levels, "numeric", scale))
        else:
            factors.append(Factor(f"f{place}", tuple("abcde"[:count]), "categorical"))
    names = [f.name for f in factors]
    pairs = [(a, b) for a in names for b in names if a < b]
    incumbent = {f.name: draw(st.sampled_from(f.levels)) for f in factors}
    rules = []
    for _ in range(draw(st.integers(0, 2)) if pairs else 0):
        some = draw(st.lists(st.sampled_from(factors), min_size=2, max_size=3, unique=True))
        rules.append({f.name: draw(st.sampled_from(f.levels)) for f in some})
    return {
        "factors": factors,
        "runs": draw(st.integers(8, 30)),
        "interactions": draw(st.lists(st.sampled_from(pairs), max_size=2)) if pairs else [],
        "incumbent": incumbent,
        "replicates": draw(st.integers(0, 3)),
        "forbidden": [r for r in rules if any(incumbent[name] != v for name, v in r.items())],
        "blocks": draw(st.integers(1, 4)),
        "seed": draw(st.integers(0, 3)),
    }


@settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(problem=problems())
def test_any_structure_gives_a_sound_design_or_a_clear_refusal(problem):
    assume(all(len(rule) > 1 for rule in problem["forbidden"]))
    try:
        fraction = design_fraction(**problem)
    except ValueError as refused:
        assert "expected at least" in str(refused) or "cannot separate" in str(refused)  # noqa: PT017
        return
    check_sound(fraction, problem)


def check_sound(fraction: Fraction, problem):
    factors = problem["factors"]
    assert len(fraction.runs) == problem["runs"]
    assert problem["incumbent"] in fraction.assignments
    for run in fraction.assignments:
        for rule in problem["forbidden"]:
            assert any(run[name] != value for name, value in rule.items())
    sizes = [len(block) for block in fraction.blocks]
    assert len(sizes) == problem["blocks"]
    assert spread(sizes) <= 1
    repeats = sum(run.is_replicate for run in fraction.runs)
    assert repeats == fraction.pure_error_df
    if fraction.kind == "d-optimal fraction":
        assert repeats == problem["replicates"]
        if not problem["forbidden"] and len(factors) > 1:
            assert max(spread(counts) for counts in fraction.balance.values()) <= BALANCE
    model = ModelMatrix(factors, problem["interactions"])
    labels = {term.label for term in model.terms}
    assert set(fraction.terms) | {d.label for d in fraction.dropped} == labels
    assert fraction.parameters + len(fraction.dropped) == len(labels)
    matrix = model.columns(kept_terms(model, fraction), np.array(fraction.points))
    assert np.linalg.matrix_rank(matrix) == fraction.parameters
    assert math.isfinite(fraction.d_efficiency)
    assert fraction.d_efficiency > 0
    if fraction.max_alias is not None:
        assert 0 < fraction.max_alias.correlation <= 1
