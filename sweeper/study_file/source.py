"""The text of one study file: where every key stands in it, and errors that say so.

It must not know what a study is beyond the pydantic model that it is asked to fill.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sweeper.errors import StudyFileError
from sweeper.study_file.lines import Path as KeyPath
from sweeper.study_file.lines import key_lines, line_of

Model = TypeVar("Model", bound=BaseModel)

_EXPECTED: Mapping[str, str] = {
    "string_type": "a string",
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "mapping_type": "a table",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "finite_number": "a finite number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "1 to 64 letters, digits, dots, dashes or underscores",
    "too_short": "a list that is not empty",
    "too_long": "a list of exactly {max_length}",
}
"""What is allowed, by the type that pydantic gives a problem."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a study: the path of its key, and what to read about it."""

    path: KeyPath
    text: str


@dataclass(frozen=True)
class Source:
    """A study file as it was read. `document` has the overlay of the chosen scale merged in."""

    file: Path
    document: Mapping[str, Any]
    lines: Mapping[KeyPath, int]
    scale: str | None = None
    overlay: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, file: Path, scale: str | None) -> Source:
        """Read and parse a file; with a scale, merge its `[scale.NAME]` table over the rest.

        Raises:
            StudyFileError: no such file, not UTF-8, not TOML, or no such scale.
        """
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise _whole(file, "no such file; expected a study in TOML") from None
        except UnicodeDecodeError as error:
            raise _whole(file, f"not UTF-8 text (byte {error.start}); save it as UTF-8") from None
        except OSError as error:
            raise _whole(file, f"cannot be read: {error.strerror}") from None
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise _syntax(file, str(error)) from None
        except RecursionError:
            raise _whole(file, "not a study: too many brackets inside one another") from None
        lines = key_lines(text)
        scales = document.pop("scale", {})
        source = cls(file, document, lines)
        if not isinstance(scales, Mapping) or not all(
            isinstance(overlay, Mapping) for overlay in scales.values()
        ):
            raise source.error(Problem(("scale",), "expected tables such as [scale.small]"))
        if scale is None:
            return source
        if scale not in scales:
            known = ", ".join(scales) or "none: this study has one scale only"
            raise source.error(
                Problem((), f"no scale {scale!r} here; known scales: {known}; add [scale.{scale}]")
            )
        return cls(file, merge(document, scales[scale]), lines, scale, scales[scale])

    def error(self, problem: Problem) -> StudyFileError:
        """The problem as an error with its line."""
        return StudyFileError(
            file=str(self.file),
            line=self._line(problem.path),
            key=show_path(problem.path),
            problem=problem.text,
        )

    def fill(self, model: type[Model], raw: object, at: KeyPath) -> Model:
        """The model made of raw TOML values that stand at a path.

        Raises:
            StudyFileError: the first thing that the model refuses, unknown keys before all others.
        """
        try:
            return model.model_validate(_tuples(raw))
        except ValidationError as refused:
            errors = refused.errors(include_url=False)
        unknown = [e for e in errors if e["type"] == "extra_forbidden"]
        missing = [e for e in errors if e["type"] == "missing"]
        first = (unknown or [e for e in errors if e["type"] != "missing"] or missing)[0]
        raise self.error(_plain(model, raw, at, dict(first)))

    def _line(self, path: KeyPath) -> int | None:
        if self.scale is not None and self._overlaid(path):
            return line_of(dict(self.lines), ("scale", self.scale, *path))
        return line_of(dict(self.lines), path)

    def _overlaid(self, path: KeyPath) -> bool:
        """Whether the value at a path came from the overlay: lists replace lists, tables merge."""
        here: Any = self.overlay
        for part in path:
            if not isinstance(here, Mapping):
                return True
            if part not in here:
                return False
            here = here[part]
        return bool(path)


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merged key by key; everything else of `over` replaces what is under it."""
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def show(value: object) -> str:
    """A value as it stands in TOML, shortened."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def show_path(path: KeyPath) -> str:
    """`stage1.group[2].vary."optim.muon.lr"`; places in lists count from 1."""
    shown = ""
    for part in path:
        if isinstance(part, int):
            shown += f"[{part + 1}]"
        else:
            plain = re.fullmatch(r"[A-Za-z0-9_-]+", part)
            shown += ("." if shown else "") + (part if plain else json.dumps(part))
    return shown


def nearest(name: str, known: Iterable[str]) -> str:
    """`; the nearest known is "x"`, or nothing when none is near."""
    names = list(known)
    tails = {candidate.rsplit(".", 1)[-1]: candidate for candidate in reversed(names)}
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not close:
        tail = difflib.get_close_matches(name.rsplit(".", 1)[-1], tails, n=1, cutoff=0.6)
        close = [tails[tail[0]]] if tail else []
    return f"; the nearest known is {show(close[0])}" if close else ""


def _whole(file: Path, problem: str) -> StudyFileError:
    return StudyFileError(file=str(file), line=None, key="", problem=problem)


def _syntax(file: Path, message: str) -> StudyFileError:
    place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
    line = int(place[1]) if place and place[1] else None
    said = message[: place.start()] if place else message
    column = f" at column {place[2]}" if place and place[2] else ""
    problem = f"not valid TOML: {said[:1].lower()}{said[1:]}{column}"
    return StudyFileError(file=str(file), line=line, key="", problem=problem)


def _tuples(value: object) -> object:
    """Lists as tuples all the way down: the models are frozen."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _plain(model: type[BaseModel], raw: object, at: KeyPath, error: dict[str, Any]) -> Problem:
    """A problem that pydantic found, in our words."""
    kind: str = error["type"]
    loc: KeyPath = error["loc"]
    path, got = _existing(raw, loc)
    if kind == "extra_forbidden":
        known = _known_keys(model, loc[:-1])
        near = nearest(str(loc[-1]), known)
        return Problem((*at, *loc), f"unknown key{near}; known here: {', '.join(known)}")
    if kind == "missing" and isinstance(loc[-1], str):
        name = show_path(loc[-1:])
        table = not at and len(loc) == 1
        add = f"[{name}]" if table else f"{name} = ..."
        return Problem((*at, *loc), f"missing, and it has no default; add {add}")
    if kind == "missing":
        return Problem((*at, *path), f"got {show(got)}, expected a list of {int(loc[-1]) + 1}")
    if len(path) < len(loc):  # the alternatives of a parameter's value
        expected = "true, false, a number or a string"
    else:
        expected = _EXPECTED.get(kind, "another value").format(**error.get("ctx", {}))
    hint = ""
    if isinstance(got, Mapping) and isinstance(loc[-1], str):
        hint = "; a dotted key must stand in quotes, or TOML reads it as nested tables"
    return Problem((*at, *path), f"got {show(got)}, expected {expected}{hint}")


def _existing(raw: object, loc: KeyPath) -> tuple[KeyPath, object]:
    """As much of a location as is really there, and what stands there."""
    here: Any = raw
    for length, part in enumerate(loc):
        there = isinstance(here, Mapping) and part in here
        there = there or (isinstance(here, list) and isinstance(part, int) and part < len(here))
        if not there:
            return loc[:length], here
        here = here[part]
    return loc, here


def _known_keys(model: type[BaseModel], loc: KeyPath) -> list[str]:
    """Keys of the model that a location inside another model leads to."""
    for part in loc:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(part) for part in typing.get_args(annotation))
    return next((model for model in found if model is not None), None)
