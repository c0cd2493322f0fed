"""Checks a written report: its values against the facts, every number of its text against its values.

It must not trust what it checks: the values are computed again, and the text is only read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from sweeper.analysis.dataset import StudyFacts
from sweeper.report import json_report

NUMBER = re.compile(r"(?<![\w.#])-?\d+(?:\.\d+)?")
_DURATION = re.compile(r"(?:(\d+) h )?(\d+) min(?: (\d+) s)?")
_CHANGE = re.compile(r"([+-]\d+(?:\.\d)?) %")
_INSTANT = re.compile(r"(?<=\d)T(?=\d\d:)")
"""Before the hour of an instant in JSON, where a text has a space."""
_LIKE = 1e-9
NOT_OF_FACTS = ("generated_at", "against")
"""Keys of the document that come from elsewhere; `reproduce.versions` does too."""


def check(folder: Path, facts: StudyFacts) -> list[str]:
    """Everything in a report that the facts do not say, one sentence each; none is the good case.

    Raises:
        OSError, ValueError: the folder holds no whole report.
    """
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    again = json_report.document(facts, target=found["target"], generated_at=1.0)
    again = json.loads(json.dumps(again))
    for document in (found_values := {**found}, again):
        for key in NOT_OF_FACTS:
            document.pop(key, None)
        document["reproduce"] = {**document["reproduce"], "versions": None}
    wrong = list(_differences(found_values, again, ""))
    known = set(numbers_in(found))
    for name, text in (
        ("report.md", (folder / "report.md").read_text(encoding="utf-8")),
        ("report.html", text_of((folder / "report.html").read_text(encoding="utf-8"))),
    ):
        wrong += [
            f"{name}: {number} is no value of report.json"
            for number in unknown_numbers(text, known)
        ]
    return wrong


def _differences(found: Any, again: Any, path: str) -> Iterator[str]:
    if isinstance(found, dict) and isinstance(again, dict):
        for key in dict.fromkeys((*found, *again)):
            yield from _differences(found.get(key), again.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(found, list) and isinstance(again, list) and len(found) == len(again):
        for place, (one, two) in enumerate(zip(found, again, strict=True)):
            yield from _differences(one, two, f"{path}[{place}]")
    elif isinstance(found, int | float) and isinstance(again, int | float):
        if not math.isclose(found, again, rel_tol=_LIKE, abs_tol=1e-12):
            yield f"{path}: the report says {found}, the facts say {again}"
    elif found != again:
        yield f"{path}: the report says {_short(found)}, the facts say {_short(again)}"


def _short(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 100 else f"{shown[:97]}..."


def numbers_in(value: Any) -> Iterator[float]:
    """Every number of a JSON value, those inside its strings and keys included."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from numbers_in(key)
            yield from numbers_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from numbers_in(item)
    elif isinstance(value, str):
        yield from (float(found) for found in NUMBER.findall(_INSTANT.sub(" ", value)))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def unknown_numbers(text: str, known: Iterable[float]) -> list[str]:
    """Numbers of a text that no known number rounds to, at the precision that they are shown with.

    `12 min 30 s` counts as 750, and `+12 %` also as a ratio of 1.12.
    """
    kept = [value for k in known for value in ((k, -k) if k < 0 else (k,))]  # a sign stands apart
    text = text.replace("\u00a0", " ")
    durations = [(int(h or 0), int(m), int(s or 0)) for h, m, s in _DURATION.findall(text)]
    found = [str(3600 * h + 60 * m + s) for h, m, s in durations]
    rest = _DURATION.sub(" ", text)
    changes = set(_CHANGE.findall(rest))
    found += NUMBER.findall(rest)
    unknown = []
    for shown in dict.fromkeys(found):
        if _rounds(shown, kept) or any(
            _is_change(change, kept) for change in changes if change.lstrip("+") == shown
        ):
            continue
        unknown.append(shown)
    return unknown


def _rounds(shown: str, known: Iterable[float]) -> bool:
    decimals = len(shown.partition(".")[2])
    significant = len(shown.replace(".", "").strip("-0")) or 1
    value = float(shown)
    step = 0.5000001 * 10.0**-decimals
    return any(
        abs(value - k) <= step
        or (k and abs(value - k) <= abs(k) * 0.51 * 10.0 ** (1 - significant))
        for k in known
    )


def _is_change(shown: str, known: Iterable[float]) -> bool:
    digits = 1 if "." in shown else 0
    return any(round(100 * (k - 1), digits) == float(shown) for k in known if 0 < k < 1000)


class _Text(HTMLParser):
    """The words of a page, without its styles and drawings."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self._within: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        """What is inside a style or a drawing is not read."""
        if tag in ("style", "svg"):
            self._within.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Reading goes on after it."""
        if self._within and self._within[-1] == tag:
            self._within.pop()

    def handle_data(self, data: str) -> None:
        """Words of the page."""
        if not self._within:
            self.words.append(data)


def text_of(html: str) -> str:
    """The words of a page."""
    page = _Text()
    page.feed(html)
    page.close()
    return " ".join(page.words)
