"""The options that a training script takes: argparse calls or configuration globals in its source.

It must not run the script; what a program prints for `--help` is read by `from_help`, given as text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sweeper.space import Value

Kind = Literal["float", "int", "bool", "str", "flag", "unknown"]
_KINDS: Mapping[str, Kind] = {"float": "float", "int": "int", "bool": "bool", "str": "str"}
_STEPS = (
    "max_iters",
    "max_steps",
    "num_iterations",
    "iterations",
    "num_steps",
    "total_steps",
    "steps",
)
_TUNED = re.compile(
    r"(?:^|_)(lr|learning_rate|batch(?:_size)?|weight_decay|momentum|beta[12]?|warmup\w*|dropout|"
    r"grad_clip|accumulation\w*|n_(?:layer|head|embd)|width|depth)(?:$|_)"
)


@dataclass(frozen=True)
class Option:
    """One option: its name without dashes, what it takes, and what it is when nobody says anything.

    `flag` takes no value; `literal` means that its value is read as Python (`True`, not `true`).
    """

    name: str
    kind: Kind
    default: Value | None = None
    choices: tuple[Value, ...] = ()
    literal: bool = False

    def show(self) -> str:
        """`learning_rate (float, 0.0006)`."""
        known = [str(self.kind)] if self.kind != "unknown" else []
        known += [str(self.default)] if self.default is not None else []
        return f"{self.name} ({', '.join(known)})" if known else self.name


@dataclass(frozen=True)
class Options:
    """All that were found, and how one is written: `--{name}={value}` or `{name}={value}`."""

    found: tuple[Option, ...] = ()
    prefix: str = "--"
    how: str = ""

    def get(self, name: str) -> Option | None:
        """An option by its name; dashes and underscores are one."""
        wanted = name.replace("-", "_")
        return next((o for o in self.found if o.name.replace("-", "_") == wanted), None)

    def steps(self) -> int | None:
        """How many steps the script does when nobody says anything, where an option says so."""
        for name in _STEPS:
            option = self.get(name)
            if option is not None and isinstance(option.default, int) and option.default > 0:
                return option.default
        return None

    def suggestions(self) -> Iterator[str]:
        """`--param` values for the usual parameters, their ranges around the script's defaults."""
        for option in self.found:
            if not _TUNED.search(option.name.replace("-", "_")):
                continue
            value = option.default
            if option.choices:
                yield f"{option.name}={','.join(map(str, option.choices))}"
            elif isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                continue
            elif isinstance(value, int):
                yield f"{option.name}={max(1, value // 4)}..{value * 4}:log"
            elif value >= 0.5:  # a share near 1, such as momentum or a beta
                low, high = (
                    (2 * value - 1, (1 + value) / 2) if value < 1 else (value / 3, value * 3)
                )
                yield f"{option.name}={low:.4g}..{high:.4g}"
            else:
                yield f"{option.name}={value / 10:.4g}..{value * 10:.4g}:log"


def from_source(text: str) -> Options:
    """The options of a Python script by its source alone; none where it declares them in other ways.

    Raises:
        SyntaxError: it is no Python of this version.
    """
    tree = ast.parse(text)
    arguments = tuple(_arguments(tree))
    if arguments:
        return Options(arguments, how="argparse, as its source declares them")
    if re.search(r"configurator\.py|sys\.argv", text) and re.search(
        r"configurator\.py|['\"]=['\"]", text
    ):
        prefix = "--" if re.search(r"configurator\.py|['\"]--", text) else ""
        return Options(tuple(_globals(tree)), prefix, "key=value settings, its global variables")
    return Options(how="none in its source")


def _arguments(tree: ast.Module) -> Iterator[Option]:
    """Every `something.add_argument("--name", ...)`, in the order of the source."""
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "add_argument"
    ]
    for call in sorted(calls, key=lambda node: node.lineno):
        names = [
            a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)
        ]
        long = [name[2:] for name in names if name.startswith("--")]
        if long:
            yield _argument(long[0], {k.arg: k.value for k in call.keywords if k.arg})


def _argument(name: str, given: Mapping[str, ast.expr]) -> Option:
    action = given.get("action")
    if action is not None and not (isinstance(action, ast.Constant) and action.value == "store"):
        return Option(name, "flag")
    default, kind = _constant(given.get("default")), given.get("type")
    listed = given.get("choices")
    choices = tuple(
        value
        for element in (listed.elts if isinstance(listed, ast.List | ast.Tuple) else ())
        if (value := _constant(element)) is not None
    )
    if isinstance(kind, ast.Name) and kind.id in _KINDS:
        return Option(name, _KINDS[kind.id], default, choices)
    return Option(name, _kind_of(default) if kind is None else "unknown", default, choices)


def _globals(tree: ast.Module) -> Iterator[Option]:
    """Assignments of plain constants at the top of a module: `learning_rate = 6e-4`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], _constant(node.value)
            if isinstance(target, ast.Name) and value is not None and not target.id.startswith("_"):
                yield Option(target.id, _kind_of(value), value, literal=True)


def _constant(node: ast.expr | None) -> Value | None:
    if node is None:
        return None
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, bool | int | float | str) else None


def _kind_of(value: Value | None) -> Kind:
    return "unknown" if value is None else _KINDS[type(value).__name__]


_HELP_LINE = re.compile(
    r"^\s{1,8}(?:-\w(?:[ =][\w.{},\[\]<>-]+)?,\s+)?--(?P<name>[A-Za-z][\w.-]*)(?P<rest>.*)$"
)
_HELP_CHOICES = re.compile(r"^[ =]\{(?P<choices>[^}]+)\}")
_HELP_DEFAULT = re.compile(r"[\[(]default:?\s*(?P<default>[^\])]+)[\])]")


def from_help(lines: Sequence[str]) -> Options:
    """Options out of what a program prints for `--help`, in the layout of argparse and its likes."""
    found: dict[str, Option] = {}
    for index, line in enumerate(lines):
        match = _HELP_LINE.match(line)
        if match is None or match["name"] in ("help", "version"):
            continue
        rest = match["rest"]
        said = " ".join([rest, *_continued(lines[index + 1 :])])
        default = _HELP_DEFAULT.search(said)
        value = _read(default["default"]) if default else None
        choices = _HELP_CHOICES.match(rest)
        takes = re.match(r"[ =][\w<{\[]", rest) is not None
        found.setdefault(
            match["name"],
            Option(
                match["name"],
                _kind_of(value) if takes else "flag",
                value,
                tuple(_read(c) for c in choices["choices"].split(",")) if choices else (),
            ),
        )
    return Options(tuple(found.values()), how="what it prints for --help")


def _continued(lines: Iterable[str]) -> Iterator[str]:
    """The indented lines below an option, up to the next one."""
    for line in lines:
        if _HELP_LINE.match(line) or not line.startswith("      "):
            return
        yield line.strip()


def _read(text: str) -> Value:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip()
