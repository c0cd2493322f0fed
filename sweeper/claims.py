"""What a document claims, as data: numbers that it gives, claims made of them, and their arithmetic.

It must not know what was measured; a claim is held against runs in `analysis.claims`.

`claims.toml` stands beside a study:

    [document]
    title = "..."                       # and source, where the numbers come from

    [values]
    baseline = 1.7533

    [series]
    curve = [[1, 2.0980], [44, 1.95]]   # step, value

    [[claim]]
    id = "gain"
    text = "24.2 % better than the baseline"
    stated = 24.2                       # or left out: nothing is stated as a number
    arithmetic = "100 * (baseline - best) / baseline"      # on the document's own numbers
    measured = "100 * (final('s1-A1') - final('s1-A2')) / final('s1-A1')"   # on our runs
    judge = "value"                     # does the interval contain `stated`, or agree in "sign"?
    full_scale = "..."                  # what would settle it
"""

from __future__ import annotations

import ast
import math
import operator
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from sweeper.errors import StudyFileError

FILE = "claims.toml"
NEVER = math.inf
"""What `steps_to` gives for a series that never comes to a level; anything made of it is no number."""

_OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}
_KEYS = {"id", "text", "stated", "unit", "arithmetic", "measured", "judge", "full_scale"}
Series = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Claim:
    """One statement of a document. Expressions are checked when they are read.

    `rounding` is half a unit of the last decimal that `stated` is given with.
    """

    id: str
    text: str
    stated: float | None = None
    rounding: float = 0.0
    unit: str = ""
    arithmetic: str = ""
    measured: str = ""
    judge: Literal["value", "sign"] = "value"
    full_scale: str = ""


@dataclass(frozen=True)
class Claims:
    """A document's claims, with the numbers that it gives for them.

    `roundings` are half a unit of the last decimal of each value; a whole number is exact.
    """

    title: str
    source: str
    values: Mapping[str, float]
    roundings: Mapping[str, float]
    series: Mapping[str, Series]
    claims: tuple[Claim, ...]

    def arithmetic(self, claim: Claim) -> float | None:
        """What the document's own numbers make of a claim; NEVER where a series does not come there.

        None where nothing can be computed.
        """
        if not claim.arithmetic:
            return None
        return evaluate(claim.arithmetic, self.values, functions_of(self.series))

    def agrees(self, claim: Claim) -> bool:
        """Whether the stated number is what the document's own numbers make, all as rounded there.

        Every number may be half a unit of its last decimal off, so the result is known to the sum of
        what each of these changes (to first order), and the claim to its own rounding.
        """
        found = self.arithmetic(claim)
        if claim.stated is None or found is None or not math.isfinite(found):
            return False
        slack = claim.rounding
        for name, half in self.roundings.items():
            moved = {**self.values, name: self.values[name] + half}
            slack += abs(evaluate(claim.arithmetic, moved, functions_of(self.series)) - found)
        return abs(found - claim.stated) <= slack * (1 + 1e-9) + 1e-12


def functions_of(series: Mapping[str, Series]) -> dict[str, Callable[..., float]]:
    """`at(name, step)`, `last(name)`, `least(name)`, `steps_to(name, level)` of series; `floor`."""

    def at(name: str, step: float) -> float:
        return next((value for s, value in series[name] if s == step), math.nan)

    return {
        "at": at,
        "floor": lambda value: float(math.floor(value)),
        "last": lambda name: series[name][-1][1],
        "least": lambda name: min(value for _, value in series[name]),
        "steps_to": lambda name, level: steps_to(series[name], level),
    }


def steps_to(series: Series, level: float) -> float:
    """The step at which a series first comes down to `level`, interpolated, or NEVER."""
    before: tuple[float, float] | None = None
    for step, value in series:
        if value <= level:
            if before is None:
                return step
            share = (before[1] - level) / (before[1] - value)
            return before[0] + share * (step - before[0])
        before = (step, value)
    return NEVER


def evaluate(
    expression: str, names: Mapping[str, float], functions: Mapping[str, Callable[..., float]]
) -> float:
    """The number that an expression of numbers, names, + - * / ** and these functions makes.

    NaN or infinite where it has no value. ValueError for anything else in it.
    """

    def value(node: ast.AST) -> Any:
        match node:
            case ast.Expression(body=body):
                return value(body)
            case ast.Constant(value=int() | float() | str() as constant):
                return constant
            case ast.Name(id=name) if name in names:
                return names[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in functions:
                return functions[name](*map(value, args))
        raise ValueError(f"{ast.unparse(node)!r} is none of its numbers, names and functions")

    try:
        tree = ast.parse(expression, mode="eval")
        return float(value(tree))
    except ZeroDivisionError:
        return math.nan
    except (SyntaxError, TypeError, KeyError) as error:
        raise ValueError(f"{expression!r} cannot be computed ({error})") from None


def read(folder: Path) -> Claims | None:
    """The claims beside a study, or None when it has no such file.

    Raises:
        StudyFileError: the file is there and says something that cannot be read or computed.
    """
    file = folder / FILE
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"), parse_float=Decimal)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _wrong(file, f"cannot be read: {error}") from None
    try:
        return _parsed(found)
    except (KeyError, TypeError, ValueError) as error:
        raise _wrong(file, str(error)) from None


def _wrong(file: Path, problem: str) -> StudyFileError:
    return StudyFileError(file=str(file), line=None, key="", problem=problem)


def _parsed(found: Mapping[str, Any]) -> Claims:
    for key in found.keys() - {"document", "values", "series", "claim"}:
        raise ValueError(f"{key}: unknown; known here: document, values, series, claim")
    document = found.get("document", {})
    given = found.get("values", {})
    values = {name: float(value) for name, value in given.items()}
    roundings = {name: _rounding(v) for name, v in given.items() if isinstance(v, Decimal)}
    series = {
        name: tuple((float(step), float(value)) for step, value in rows)
        for name, rows in found.get("series", {}).items()
    }
    parsed = tuple(_claim(place, raw) for place, raw in enumerate(found.get("claim", ()), start=1))
    title, source = document.get("title", ""), document.get("source", "")
    claims = Claims(title, source, values, roundings, series, parsed)
    names = [claim.id for claim in parsed]
    for claim in parsed:
        if names.count(claim.id) > 1:
            raise ValueError(f"claim {claim.id!r} is there twice; rename one")
        try:
            claims.arithmetic(claim)
        except ValueError as error:
            raise ValueError(f"claim {claim.id!r}, arithmetic: {error}") from None
    return claims


def _claim(place: int, raw: Mapping[str, Any]) -> Claim:
    for key in raw.keys() - _KEYS:
        raise ValueError(f"claim[{place}].{key}: unknown; known here: {', '.join(sorted(_KEYS))}")
    for key in ("id", "text"):
        if not isinstance(raw.get(key), str):
            raise TypeError(f"claim[{place}].{key}: got {raw.get(key)!r}, expected a text")
    stated = raw.get("stated")
    if stated is not None and (isinstance(stated, bool) or not isinstance(stated, int | Decimal)):
        raise ValueError(f"claim[{place}].stated: got {stated!r}, expected a number")
    if raw.get("judge", "value") not in ("value", "sign"):
        raise ValueError(f'claim[{place}].judge: got {raw["judge"]!r}, expected "value" or "sign"')
    if stated is None:
        return Claim(**raw)
    return Claim(**{**raw, "stated": float(stated), "rounding": _rounding(Decimal(stated))})


def _rounding(number: Decimal) -> float:
    exponent = number.as_tuple().exponent
    return 0.5 * 10.0**exponent if isinstance(exponent, int) else 0.0


def contradictions(claims: Claims) -> Sequence[tuple[Claim, str]]:
    """Claims that the document's own numbers, or another claim on the same numbers, refute."""
    found = []
    for claim in claims.claims:
        value = claims.arithmetic(claim)
        if value is None or claim.stated is None or claims.agrees(claim):
            continue
        unit = f" {claim.unit}" if claim.unit else ""
        made = "never happens in its own table" if value == NEVER else f"makes {value:.4g}{unit}"
        others = [
            f"{other.stated:g}{unit} ({other.id})"
            for other in claims.claims
            if other.arithmetic == claim.arithmetic and other.stated not in (claim.stated, None)
        ]
        also = f"; the same numbers are said to make {' and '.join(others)}" if others else ""
        found.append((claim, f"{claim.arithmetic} {made}, not {claim.stated:g}{unit}{also}"))
    return found
