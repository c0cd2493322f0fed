"""A study file around a script, as commented TOML: what was found, asked and measured.

It must not know how any of that was found out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeper.scaffold.parameter import Swept
from sweeper.space import Bool, Categorical, Float, Integer


@dataclass(frozen=True)
class Draft:
    """Everything that a study file around a script needs.

    `patterns` is the name of a ready set, own expressions by name, or None for a script that writes the
    protocol; `read` says in words what was seen when the script was run. Limits are seconds.
    """

    name: str
    command: tuple[str, ...]
    cwd: str | None
    metric: str
    target: float
    patterns: str | Mapping[str, str] | None
    clock: str
    read: str
    parameters: tuple[Swept, ...]
    steps: int
    trial_s: float
    gpus: int

    def text(self) -> str:
        """The whole file."""
        parts = [self._head(), self._trainer(), self._limits(), *map(_space, self.parameters)]
        return "\n".join([*parts, self._stages()])

    def _head(self) -> str:
        easier = f"# fallback = [{_easier(self.target)}]"
        return f"""\
# Which settings of this script reach the target in the fewest seconds? Made by `sweep init`; all of it
# may be changed. `sweep plan` shows what would run, `sweep check` asks whether it can, `sweep stage1`
# begins.

[study]
name = {_toml(self.name)}
# title = "one line for reports"

[objective]
{_line(f"metric = {_toml(self.metric)}", "lower is better")}
target = {_toml(self.target)}
{_line(easier, "easier targets, judged at if nothing reaches the first")}
"""

    def _trainer(self) -> str:
        words = ",\n  ".join(_toml(word) for word in self.command)
        cwd = f"cwd = {_toml(self.cwd)}\n" if self.cwd else ""
        return f"""\
[trainer]
# An argument vector, never a shell. {{python}} is the interpreter that runs sweep; a parameter's name in
# braces is filled in for each trial, and so are {{seed}}, {{target}} and {{run_dir}}.
command = [
  {words},
]
{cwd}# env = {{ WANDB_MODE = "offline" }}        # added to the environment of every trial

{self._reader()}"""

    def _reader(self) -> str:
        told = f"# {self.read}\n# Clock: {self.clock}.\n"
        if self.patterns is None:
            return f"# The script writes the protocol (docs/protocol.md) itself.\n{told}"
        if isinstance(self.patterns, str):
            return f"""\
[trainer.patterns]
{told}set = {_toml(self.patterns)}
# An expression under a name of its own is added to the set, under one of the set's it replaces that:
# step = 'it (?P<step>\\d+) loss (?P<loss>\\S+)'
"""
        own = "".join(f"{key} = {_literal(text)}\n" for key, text in self.patterns.items())
        return f"[trainer.patterns]\n{told}{own}"

    def _limits(self) -> str:
        node = ""
        if self.gpus > 1:
            node = (
                "# The command is started once, sees all of them, and starts its other processes.\n"
            )
        return f"""\
[limits]
{_line(f"steps = {self.steps}", "most steps of a trial (SWEEP_MAX_STEPS; the script may do fewer)")}
{_line(f"trial_s = {_toml(self.trial_s)}", "seconds of training after which a trial is censored")}
{_line("silence_s = 300", "a script that says nothing for so long has hung")}
{_line("startup_s = 600", "from its start to the first line that is read")}
{_line("grace_s = 15", "between TERM and KILL")}

[resources]
{node}{_line(f"gpus = {self.gpus}", "whole devices per trial; 0: one CPU core each")}
{_line("# price_per_hour = 2.5", "of one device, for the report")}
"""

    def _stages(self) -> str:
        vary = ", ".join(f"{_key(s.parameter.name)} = {_toml(s.levels())}" for s in self.parameters)
        entries = sum(len(s.levels()) for s in self.parameters)
        runs = max(6, min(36, 6 * len(self.parameters)))
        return f"""\
# Stage 1: every parameter on its own, the others at their baselines. grid = {{...}} crosses parameters;
# a group with best_of = {{ group = "A", parameters = [...] }} builds on an earlier group's winner.
[[stage1.group]]
name = "A"
vary = {{ {vary} }}

# Stage 2: a designed fraction around the best of stage 1.
[stage2]
from_top = {max(1, min(5, entries // 2))}
runs = {runs}
replicates = 1

# At the end: the finalists and the baseline again, interleaved, with fresh seeds.
[confirm]
top = 2
repeats = 3

# [[question]]                  # answered in the report by pairs of runs that differ in this alone
# text = "Does it matter?"
# parameter = {_toml(self.parameters[0].parameter.name)}
"""


def _line(setting: str, comment: str) -> str:
    """A setting and what it means, in two columns."""
    return f"{setting:31} # {comment}"


def _space(swept: Swept) -> str:
    parameter, option = swept.parameter, swept.option
    lines = [f"[space.{_key(parameter.name)}]"]
    if isinstance(parameter, Float | Integer):
        kind = "float" if isinstance(parameter, Float) else "int"
        lines += [
            f'type = "{kind}"',
            f"low = {_toml(parameter.low)}",
            f"high = {_toml(parameter.high)}",
        ]
        if isinstance(parameter, Integer) and parameter.step != 1:
            lines.append(f"step = {parameter.step}")
        if parameter.scale != "linear":
            lines.append(f'scale = "{parameter.scale}"')
    elif isinstance(parameter, Bool):
        lines.append('type = "bool"')
    elif isinstance(parameter, Categorical):
        lines += ['type = "categorical"', f"choices = {_toml(list(parameter.choices))}"]
    why = ""
    default = option.default if option is not None else None
    if default is not None:
        same = str(default) == str(parameter.baseline) or default == parameter.baseline
        why = "  # the script's own" if same else f"  # the script's own is {default}"
    lines.append(f"baseline = {_toml(parameter.baseline)}{why}")
    return "\n".join(lines) + "\n"


def _easier(target: float) -> str:
    step = abs(target) * 0.1 or 0.1
    return ", ".join(_toml(float(f"{target + step * k:.3g}")) for k in (1, 2))


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _literal(text: str) -> str:
    """A regular expression as it is, where TOML can hold it so."""
    return f"'{text}'" if "'" not in text and text.isprintable() else _toml(text)


def _toml(value: object) -> str:
    """A TOML value. JSON's strings are TOML's basic strings, once DEL is escaped."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, float):
        text = repr(value)
        return text if re.search(r"[.en]", text) else f"{text}.0"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return json.dumps(value)
