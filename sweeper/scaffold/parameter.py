"""One swept parameter as `sweep init --param` takes it, and the levels that stage 1 starts with.

It must not know the script or the file that the parameter is written to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from sweeper.errors import StudyError
from sweeper.scaffold.options import Option
from sweeper.space import Bool, Categorical, Float, Integer, Parameter, Value

FORM = (
    "NAME=LOW..HIGH (then :log, :step=N and @BASELINE as needed) or NAME=A,B,C (then @BASELINE), such "
    "as lr=1e-4..1e-2:log@1e-3"
)
_RANGE = re.compile(
    r"(?P<low>[^.,@:][^,@:]*?)\.\.(?P<high>[^,@:]+?)(?P<how>(?::[^@]*)?)(?:@(?P<baseline>.+))?"
)
_LIST = re.compile(r"(?P<choices>[^@]+)(?:@(?P<baseline>.+))?")


@dataclass(frozen=True)
class Swept:
    """A parameter, and the option of the script that it sets (None: nobody found it there)."""

    parameter: Parameter
    option: Option | None = None

    def levels(self) -> list[Value]:
        """A few values for the broad stage: the ends, the middle and the baseline of a range."""
        parameter = self.parameter
        if isinstance(parameter, Bool):
            return [False, True]
        if isinstance(parameter, Categorical):
            return list(parameter.choices)
        low, high = parameter.position(parameter.low), parameter.position(parameter.high)
        ends = {parameter.value_at(low), parameter.value_at(high)}
        middle = parameter.value_at((low + high) / 2)
        if isinstance(parameter, Float):
            middle = (
                parameter.coerce(float(f"{middle:.2g}")) if _inside(parameter, middle) else middle
            )
        known = {parameter.baseline} if parameter.baseline is not None else set()
        return sorted({*ends, middle, *known})


def _inside(parameter: Float, value: float) -> bool:
    return parameter.low <= float(f"{value:.2g}") <= parameter.high


def read_parameter(text: str, find: dict[str, Option]) -> Swept:
    """One `--param`; `find` are the script's options by name, for types and baselines.

    Raises:
        StudyError: it is none, with the form that is expected.
    """
    name, equals, said = text.partition("=")
    name = name.strip().lstrip("-")
    if not equals or not name or not said.strip() or re.search(r"[{}\s\"\\]", name):
        raise StudyError(f"--param {text!r}: expected {FORM}")
    option = find.get(name.replace("-", "_"))
    if option is not None and option.kind == "flag":
        raise StudyError(
            f"--param {text!r}: --{option.name} takes no value, so it cannot be swept as one; give the "
            "script an option with a value, or say --" + option.name + " after --"
        )
    try:
        return Swept(_parameter(name, said.strip(), option), option)
    except ValueError as error:
        raise StudyError(f"--param {text!r}: {error}; expected {FORM}") from None


def _parameter(name: str, said: str, option: Option | None) -> Parameter:
    given = option.default if option is not None else None
    if match := _RANGE.fullmatch(said):
        return _range(name, match, given, option)
    listed = _LIST.fullmatch(said)
    if listed is None or ".." in said:
        raise ValueError("neither a range nor a list")
    words = [word.strip() for word in listed["choices"].split(",")]
    literal = option is not None and option.literal  # Python's True, which our true would not be
    choices = tuple(
        word if literal and word in ("True", "False") else _value(word) for word in words
    )
    if len(choices) < 2 or len(set(map(repr, choices))) < len(choices):
        raise ValueError("a list needs at least two different values")
    parameter: Parameter
    if set(choices) == {True, False} and all(isinstance(c, bool) for c in choices):
        parameter = Bool(name)
    else:
        parameter = Categorical(name, choices)
    baseline: object = listed["baseline"]
    if baseline is not None:
        word = str(baseline).strip()
        baseline = word if literal and word in ("True", "False") else _value(word)
    else:
        baseline = str(given) if literal and isinstance(given, bool) else given
    return _with_baseline(parameter, baseline, declared=listed["baseline"] is not None)


def _range(
    name: str, match: re.Match[str], given: Value | None, option: Option | None
) -> Float | Integer:
    low, high = _value(match["low"].strip()), _value(match["high"].strip())
    for value in (low, high):
        if isinstance(value, bool | str):
            raise ValueError(f"{value!r} is not a number")  # noqa: TRY004 - it is the text that is wrong
    assert not isinstance(low, str)
    assert not isinstance(high, str)
    if not low < high:
        raise ValueError(f"{low} is not below {high}")
    scale, step = "linear", None
    for word in filter(None, match["how"].split(":")):
        if word in ("log", "linear"):
            scale = word
        elif word.startswith("step=") and word[5:].isdigit() and int(word[5:]) > 0:
            step = int(word[5:])
        else:
            raise ValueError(f"{word!r} is neither log, linear nor step=N")
    if scale == "log" and low <= 0:
        raise ValueError(f"a log scale needs numbers above 0, got {low}")
    whole = isinstance(low, int) and isinstance(high, int)
    parameter: Float | Integer
    if whole and not (option is not None and option.kind == "float"):
        parameter = Integer(name, int(low), int(high), step or 1, scale)  # type: ignore[arg-type]
    elif step is not None:
        raise ValueError("step=N is for whole numbers")
    else:
        parameter = Float(name, float(low), float(high), scale)  # type: ignore[arg-type]
    baseline = _value(match["baseline"].strip()) if match["baseline"] else given
    found = _with_baseline(parameter, baseline, declared=match["baseline"] is not None)
    assert isinstance(found, Float | Integer)
    return found


def _with_baseline(parameter: Parameter, value: object, *, declared: bool) -> Parameter:
    """The parameter with its baseline: the one given, the script's own if it fits, else a middle one."""
    if value is not None:
        try:
            return replace(parameter, baseline=parameter.coerce(value))  # type: ignore[arg-type]
        except ValueError as error:
            if declared:
                raise ValueError(f"the baseline: {error}") from None
    if isinstance(parameter, Float | Integer):
        middle = Swept(parameter).levels()[1:2] or [parameter.low]
        return replace(parameter, baseline=parameter.coerce(middle[0]))  # type: ignore[arg-type]
    first = False if isinstance(parameter, Bool) else parameter.choices[0]
    return replace(parameter, baseline=first)  # type: ignore[arg-type]


def _value(text: str) -> Value:
    if text in ("true", "false"):
        return text == "true"
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return text
    if not -float("inf") < number < float("inf"):
        raise ValueError(f"{text!r} is not a finite number")
    return number
