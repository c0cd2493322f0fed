"""Claims as data: the arithmetic of a document, and its claims against runs."""

import re
from pathlib import Path

import pytest

from sweeper import claims
from sweeper.analysis.claims import claims_table
from sweeper.errors import StudyFileError
from tests.analysis.test_final_goal import facts  # noqa: F401 - a fixture

MAINRUN = Path(__file__).parents[2] / "studies" / "mainrun"


def of(folder, text):
    (folder / claims.FILE).write_text(text)
    return claims.read(folder)


def test_the_document_s_own_contradictions_are_found():
    found = {claim.id: words for claim, words in claims.contradictions(claims.read(MAINRUN))}
    assert found.keys() == {"gain-30", "baseline-1.6"}
    assert "makes 24.26 %, not 30.4 %" in found["gain-30"]
    assert "said to make 24.2 % (gain-24)" in found["gain-30"]
    assert "never happens in its own table" in found["baseline-1.6"]


@pytest.mark.parametrize(
    ("values", "stated", "holds"),
    [
        ("a = 1.7533\nb = 1.328", "24.2", True),  # 24.26, and both are rounded: 24.22 to 24.29
        ("a = 1.7533\nb = 1.328", "24.20", False),
        ("a = 1.7533\nb = 1.328", "24.1", False),
        ("a = 1000\nb = 757", "24.3", True),
        ("a = 1000\nb = 757", "24.2", False),  # whole numbers are exact
    ],
)
def test_a_claim_agrees_within_the_rounding_of_all_its_numbers(values, stated, holds, tmp_path):
    claim = (
        f'[[claim]]\nid = "x"\ntext = "y"\nstated = {stated}\narithmetic = "100 * (a - b) / a"\n'
    )
    found = of(tmp_path, f"[values]\n{values}\n{claim}")
    assert found.agrees(found.claims[0]) is holds


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("__import__('os')", "none of its numbers"),
        ("a.b", "none of its numbers"),
        ("missing + 1", "none of its numbers"),
        ("1 +", "cannot be computed"),
        ("last('nowhere')", "cannot be computed"),
    ],
)
def test_only_arithmetic_is_computed(expression, words, tmp_path):
    text = f'[[claim]]\nid = "x"\ntext = "y"\narithmetic = "{expression}"\n'
    with pytest.raises(StudyFileError, match=f"claims.toml: claim 'x', arithmetic: .*{words}"):
        of(tmp_path, text)


def test_an_unknown_key_is_named(tmp_path):
    with pytest.raises(StudyFileError, match=re.escape("claim[1].stats: unknown; known here:")):
        of(tmp_path, '[[claim]]\nid = "x"\ntext = "y"\nstats = 3\n')


CLAIMS = """
[[claim]]
id = "gain"
text = "the winner ends 40 % lower"
stated = 40
measured = "100 * (final('baseline') - final('winner')) / final('baseline')"
[[claim]]
id = "lower"
text = "it ends lower"
stated = 1
judge = "sign"
measured = "final('baseline') - final('winner')"
[[claim]]
id = "more"
text = "it ends higher"
stated = -1
judge = "sign"
measured = "final('baseline') - final('winner')"
[[claim]]
id = "never"
text = "the baseline comes to 2"
stated = 150
measured = "steps_to('s1-A1', 2.0)"
[[claim]]
id = "nobody"
text = "of a trial that is not there"
measured = "final('s1-Z9')"
"""


def test_claims_are_held_against_runs_with_intervals(facts, tmp_path):  # noqa: F811
    rows = {row["id"]: row for row in claims_table(of(tmp_path, CLAIMS), facts)}
    gain = rows["gain"]["measured"]
    expected = [100 * (1.0 / (2.5 + 0.01 * b)) for b in range(1, 5)]
    assert gain["n"] == 4
    assert gain["mean"] == pytest.approx(sum(expected) / 4)
    assert gain["low"] < min(expected) < max(expected) < gain["high"]
    assert rows["gain"]["verdict"] == "outside our interval"
    assert rows["lower"]["verdict"] == "direction holds in our runs"
    assert rows["more"]["verdict"] == "the opposite in our runs"
    assert rows["never"]["verdict"] == "never happened in our runs"
    assert rows["nobody"]["verdict"] == "not tested"
