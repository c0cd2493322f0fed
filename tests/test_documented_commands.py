"""Every command line of the documentation is one that the parsers take; nothing is run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sweeper.cli import _split, build_parser
from trainer.__main__ import _command_line

ROOT = Path(__file__).resolve().parents[1]
FILES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("studies/*/*.md"))]
COMMAND = re.compile(r"(?:\.venv/bin/)?(?:sweep|python -m trainer) \S.*")
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands():
    """Whole command lines between backticks or in blocks; `sweep report` alone is only a name."""
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        blocks = BLOCK.findall(text)
        rest = BLOCK.sub("", text)
        spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", rest)]
        for line in [*(x for block in blocks for x in block.splitlines()), *spans]:
            if COMMAND.fullmatch(line) and "..." not in line and "|" not in line:
                words = shlex.split(line.partition(" > ")[0], comments=True)
                if len(words) > 2:
                    yield pytest.param(words, id=f"{file.parent.name}/{file.stem}: {line[:60]}")


FOUND = list(commands())


@pytest.mark.parametrize("words", FOUND)
def test_the_parsers_take_it(words):
    numbers = {"N": "3", "X": "2.5"}  # what stands for a number
    words = [numbers.get(word, word) for word in words]
    if words[0] == "python":
        _command_line().parse_args(words[3:])
    else:
        build_parser().parse_args(_split(words[1:])[0])


def test_there_are_many():
    assert len(FOUND) > 40


def test_named_files_are_there():
    for param in FOUND:
        for word in param.values[0]:
            if word.startswith(("studies/", "docs/", "bench/")):
                assert (ROOT / word).exists(), word
