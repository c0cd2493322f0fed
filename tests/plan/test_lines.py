"""The line of every key: each found, none invented, whatever TOML is written like."""

from __future__ import annotations

import tomllib

import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.study_file.lines import key_lines, line_of

WILD = '''\
# a comment = 1
top = "a # no comment" # a comment
"quoted.key" = """
not = a key
[nor a table] """
literal = \'\'\'
x = 1
\'\'\'
dotted."with dot".deep = [1, [2, 3], # inside
  { inner = "}", "in.ner2" = [
    4] },
]
\t[ table . sub ]  # header
a = 1979-05-27T07:32:00Z
b = { x = 1, y = { z = 'w' } }
[[table.list]]
name = "first"
[[ table.list ]]
name = "second"
[table.list.under]
deep = true
[[table.list.inner]]
leaf = 1
[[table.list]]
[table.list.under]
last = "\\" ] }"
'''


def paths(node, path=()):
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from paths(value, (*path, key))


def test_every_kind_of_line():
    lines = key_lines(WILD)
    assert set(lines) == set(paths(tomllib.loads(WILD)))
    found = {path: WILD.splitlines()[line - 1] for path, line in lines.items()}
    assert found["top",].startswith("top")
    assert found["quoted.key",].startswith('"quoted.key"')
    assert found["dotted", "with dot", "deep", 1, 1].startswith("dotted")
    assert found["dotted", "with dot", "deep", 2, "inner"].startswith("  { inner")
    assert found["dotted", "with dot", "deep", 2, "in.ner2", 0].startswith("    4]")
    assert found["table", "sub", "b", "y", "z"].startswith("b =")
    assert lines["table", "list", 0] == 16
    assert lines["table", "list", 1, "name"] == 19
    assert lines["table", "list", 1, "inner", 0, "leaf"] == 23
    assert lines["table", "list", 2, "under", "last"] == 26


def test_windows_line_ends():
    assert key_lines("a = 1\r\n\r\nb = 2\r\n") == {("a",): 1, ("b",): 3}


def test_falls_back_to_what_encloses():
    lines = key_lines("[a]\nb = 1\n")
    assert line_of(lines, ("a", "b", 3, "c")) == 2
    assert line_of(lines, ("a", "missing")) == 1
    assert line_of(lines, ("missing",)) is None


keys = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6
)
scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**40), 2**40),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(keys, values, max_size=5), st.booleans())
def test_finds_exactly_the_keys_that_tomllib_finds(document, multiline):
    text = tomli_w.dumps(document, multiline_strings=multiline)
    parsed = tomllib.loads(text)
    lines = key_lines(text)
    assert set(paths(parsed)) == set(lines)
    rows = text.splitlines() if "\r" not in text else None
    for path, line in lines.items():
        assert 1 <= line <= text.count("\n") + 1
        if rows and isinstance(path[-1], str) and path[-1].isascii() and path[-1].isalnum():
            assert path[-1] in text.split("\n")[line - 1]
