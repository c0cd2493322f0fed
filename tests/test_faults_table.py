"""docs/faults.md names, for every promise about faults, a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "faults.md"


def named(text):
    """Every (file, test) that a row names; `::name` alone is in the file named before it."""
    file = None
    for path, test in re.findall(r"`([\w/]+\.py)?::(\w+)`", text):
        file = path or file
        yield file, test


def missing(text):
    return [
        f"{file}::{test}"
        for file, test in named(text)
        if not re.search(
            rf"^ *def {test}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE
        )
    ]


def test_every_test_of_the_table_exists():
    text = TABLE.read_text(encoding="utf-8")
    assert missing(text) == []
    rows = [line for line in text.splitlines() if line.startswith("| ") and "Shown by" not in line]
    assert len(rows) > 30
    assert [row for row in rows if not list(named(row)) and "bench/" not in row] == []


def test_a_name_that_is_none_is_found():
    assert missing("`test_faults_table.py::test_nowhere`, `::missing`") == [
        "test_faults_table.py::test_nowhere"
    ]
