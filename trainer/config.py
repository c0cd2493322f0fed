"""Owns the trainer's configuration: its keys, defaults and bounds, parsed once into frozen values.

It must not import torch, and must not know what any key does to a run.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError

EVALUATION_HALVINGS = 2
"""How often the spacing of evaluations is halved on the way to a target."""

ENVIRONMENT_KEYS: Mapping[str, tuple[str, type[int | float]]] = {
    "SWEEP_SEED": ("seed", int),
    "SWEEP_TARGET": ("target", float),
    "SWEEP_MAX_STEPS": ("max_steps", int),
}
"""Variables that fill a key of `run` which the file leaves out. The file always wins."""


def setting(
    default: object,
    doc: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A dataclass field with its meaning and bounds (`low`/`high` allowed, `above`/`below` not)."""
    bounds = {"low": low, "above": above, "high": high, "below": below, "choices": choices}
    return field(default=default, metadata={"doc": doc, **bounds})


@dataclass(frozen=True, slots=True)
class Model:
    """Shape of the network, and how often its weights return to the sphere."""

    kind: str = setting("ngpt", "which architecture", choices=("ngpt",))
    layers: int = setting(3, "number of blocks", low=1)
    width: int = setting(96, "embedding width", low=2)
    heads: int = setting(3, "attention heads; must divide the width into even parts", low=1)
    hidden: int = setting(256, "hidden units of the gated MLP", low=1)
    alpha: float = setting(0.15, "start of the learned residual rate", above=0.0, high=1.0)
    logit_scale: float = setting(10.0, "start of the learned scale of the logits", above=0.0)
    rope_base: float = setting(10000.0, "base of the rotary position frequencies", above=1.0)
    project_every: int = setting(7, "steps between two projections onto the sphere", low=1)


@dataclass(frozen=True, slots=True)
class Muon:
    """Muon, which drives the matrices when `optim.kind` is "muon"."""

    lr: float = setting(0.01, "learning rate, in spectral norm per step", above=0.0)
    momentum: float = setting(0.95, "momentum of the gradient average", low=0.0, below=1.0)
    orthogonalizer: str = setting(
        "polar_express",
        "iteration that orthogonalises the update",
        choices=("newton_schulz", "polar_express"),
    )
    variance_reduction: bool = setting(False, "NorMuon's normalisation per neuron")
    variance_beta: float = setting(0.95, "decay of its second moment", low=0.0, below=1.0)
    weight_decay: float = setting(0.0, "plain decoupled decay (times the learning rate)", low=0.0)
    cautious_weight_decay: bool = setting(
        False, "decay only where it agrees in sign with the update, with cautious_lambda"
    )
    cautious_lambda: float = setting(0.1, "strength of cautious decay when it is on", low=0.0)


@dataclass(frozen=True, slots=True)
class Adam:
    """AdamW, which drives whatever Muon does not; one learning rate per role."""

    embedding_lr: float = setting(0.01, "learning rate of the token embedding", above=0.0)
    head_lr: float = setting(0.01, "learning rate of the output head", above=0.0)
    scalar_lr: float = setting(0.01, "learning rate of learned scales and gates", above=0.0)
    matrix_lr: float = setting(0.003, 'of the matrices, if optim.kind is "adamw"', above=0.0)
    beta1: float = setting(0.9, "decay of the first moment", low=0.0, below=1.0)
    beta2: float = setting(0.95, "decay of the second moment", low=0.0, below=1.0)
    eps: float = setting(1e-10, "added to the root of the second moment", above=0.0)
    weight_decay: float = setting(0.0, "decoupled decay of matrices under AdamW", low=0.0)


@dataclass(frozen=True, slots=True)
class Optim:
    """Which optimizer drives the matrices, and the settings of each."""

    kind: str = setting("muon", "optimizer of the matrices", choices=("muon", "adamw"))
    muon: Muon = field(default_factory=Muon)
    adam: Adam = field(default_factory=Adam)


@dataclass(frozen=True, slots=True)
class Data:
    """Where the tokens come from, and how many make a step."""

    kind: str = setting("stdlib", "corpus", choices=("stdlib", "text", "random"))
    path: str | None = setting(None, 'text file, read as bytes, if data.kind is "text"')
    max_bytes: int = setting(3_000_000, "bytes read at most, training and validation", low=4096)
    validation_share: float = setting(0.1, "share held out", above=0.0, below=1.0)
    batch_size: int = setting(16, "sequences per step", low=1)
    context: int = setting(64, "tokens per sequence", low=2)


@dataclass(frozen=True, slots=True)
class Eval:
    """The fixed validation slices, and at which tokens they are looked at."""

    probe_tokens: int = setting(8192, "tokens of the frequent slice", low=1)
    confirmation_tokens: int = setting(32768, "tokens of the slice that confirms", low=1)
    windows_per_pass: int = setting(64, "sequences per forward pass", low=1)
    every_tokens: int = setting(
        32768, "tokens between evaluations far from the target; a multiple of 4", low=4
    )
    near: float = setting(
        0.4,
        "nats above the next target at which the spacing is halved, halved again at half",
        low=0,
    )
    double_after: int = setting(64, "evaluations after which the spacing doubles", low=1)


@dataclass(frozen=True, slots=True)
class Run:
    """What this one run is to do, and on what."""

    seed: int = setting(0, "seed of the initial weights and of the order of the data", low=0)
    target: float | None = setting(None, "validation loss (nats) that ends the run", above=0.0)
    fallback_targets: tuple[float, ...] = setting(
        (), "easier targets that are confirmed on the way, without ending the run", above=0.0
    )
    max_steps: int = setting(400, "steps after which the run ends", low=0)
    device: str = setting("auto", "where to compute", choices=("auto", "cpu", "cuda"))
    threads: int = setting(0, "CPU threads; 0: OMP_NUM_THREADS, else torch's choice", low=0)
    explosion: float = setting(
        2.0, "diverged when a loss exceeds this many times log(vocabulary)", above=1.0
    )


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration; every key that a file leaves out has its default here."""

    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    data: Data = field(default_factory=Data)
    eval: Eval = field(default_factory=Eval)
    run: Run = field(default_factory=Run)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration: where, what was there, and what may be there."""

    key: str
    value: object
    expected: str
    nearest: str | None = None

    def __str__(self) -> str:
        hint = f"; the nearest known key is {self.nearest}" if self.nearest else ""
        return f"{self.key} = {_shown(self.value)}: expected {self.expected}{hint}"


def parse(raw: Mapping[str, Any], source: str) -> Config:
    """The configuration in `raw`; ConfigError names `source` and everything wrong with it."""
    config, problems = examine(raw)
    if problems:
        raise ConfigError("\n".join(f"{source}: {problem}" for problem in problems))
    return config


def examine(raw: object) -> tuple[Config, list[Problem]]:
    """The configuration in `raw` with defaults where a value is wrong, and every problem found."""
    if not isinstance(raw, Mapping):
        return Config(), [Problem("(configuration)", raw, "a table of sections")]
    problems: list[Problem] = []
    config = _section(Config, raw, "", problems)
    if not problems:
        problems.extend(_contradictions(config))
    return config, problems


def load(path: Path) -> dict[str, Any]:
    """The table in a TOML or JSON file; ConfigError when it cannot be read or parsed."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            f"{path}: the configuration cannot be read ({reason}); expected a TOML or JSON file"
        ) from None
    try:
        raw = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"{path}: not valid {kind}: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a table of sections, got {_shown(raw)}")
    return raw


def fill_from_environment(raw: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """`raw` plus those `run` keys that it lacks and the environment has (see ENVIRONMENT_KEYS)."""
    filled = dict(raw)
    run = filled.get("run", {})
    if not isinstance(run, Mapping):
        return filled  # left for examine to complain about
    run = dict(run)
    for variable, (key, number) in ENVIRONMENT_KEYS.items():
        text = environment.get(variable)
        if text is None or key in run:
            continue
        try:
            run[key] = number(text)
        except ValueError:
            raise ConfigError(
                f"{variable} = {text!r}: expected {_KIND_NAMES[number]} "
                f"(it fills run.{key}, which the configuration leaves out)"
            ) from None
    if run:
        filled["run"] = run
    return filled


def as_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested plain values, every default spelled out."""
    return dataclasses.asdict(config)


def schema() -> dict[str, dict[str, Any]]:
    """Every dotted key with type, default, bounds, choices and meaning, as JSON values.

    Bounds: `low` and `high` are allowed values, `above` and `below` are not; null means unbounded.
    """
    entries: dict[str, dict[str, Any]] = {}
    for key, kind, spec in _leaves(Config, ""):
        default = spec.default
        entries[key] = {
            "type": _kind_name(kind),
            "optional": _optional(kind),
            "default": list(default) if isinstance(default, tuple) else default,
            **{
                name: list(value) if isinstance(value, tuple) else value
                for name, value in spec.metadata.items()
                if name != "doc"
            },
            "description": spec.metadata["doc"],
        }
    return entries


_KIND_NAMES: Mapping[Any, str] = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a string",
    tuple: "a list of numbers",
}


def _shown(value: object) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _optional(kind: Any) -> bool:
    return isinstance(kind, types.UnionType)


def _bare(kind: Any) -> Any:
    """The type without "or None"; `tuple` for a list of numbers."""
    if _optional(kind):
        kind = next(part for part in typing.get_args(kind) if part is not types.NoneType)
    return typing.get_origin(kind) or kind


def _kind_name(kind: Any) -> str:
    bare = _bare(kind)
    return "list[float]" if bare is tuple else {str: "string"}.get(bare, bare.__name__)


def _leaves(section: type, prefix: str) -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    hints = typing.get_type_hints(section)
    for spec in dataclasses.fields(section):
        if dataclasses.is_dataclass(hints[spec.name]):
            yield from _leaves(hints[spec.name], f"{prefix}{spec.name}.")
        else:
            yield f"{prefix}{spec.name}", hints[spec.name], spec


def _section(section: Any, raw: Mapping[str, Any], prefix: str, problems: list[Problem]) -> Any:
    hints = typing.get_type_hints(section)
    values: dict[str, Any] = {}
    for name, value in raw.items():
        key = f"{prefix}{name}"
        if name not in hints:
            problems.append(Problem(key, value, "a known key", _nearest(key)))
        elif dataclasses.is_dataclass(hints[name]):
            if isinstance(value, Mapping):
                values[name] = _section(hints[name], value, f"{key}.", problems)
            else:
                problems.append(Problem(key, value, "a table of keys"))
        else:
            spec = next(spec for spec in dataclasses.fields(section) if spec.name == name)
            parsed, expected = _value(value, hints[name], spec.metadata)
            if expected:
                problems.append(Problem(key, value, expected))
            else:
                values[name] = parsed
    return section(**values)


def _value(value: Any, kind: Any, bounds: Mapping[str, Any]) -> tuple[Any, str | None]:
    """The parsed value and None, or anything and what was expected instead."""
    expected = _expectation(kind, bounds)
    if value is None:
        return None, None if _optional(kind) else expected
    bare = _bare(kind)
    if bare is tuple:
        if not isinstance(value, list | tuple):
            return value, expected
        items = [_value(item, float, bounds) for item in value]
        return tuple(item for item, _ in items), expected if any(e for _, e in items) else None
    if isinstance(value, bool) is not (bare is bool):
        return value, expected
    if bare is float and isinstance(value, int):
        value = float(value)
    if not isinstance(value, bare):
        return value, expected
    return value, None if _within(value, bounds) else expected


def _within(value: Any, bounds: Mapping[str, Any]) -> bool:
    if bounds["choices"] is not None:
        return value in bounds["choices"]
    if isinstance(value, bool | str):
        return True
    low, above, high, below = (bounds[name] for name in ("low", "above", "high", "below"))
    return (
        math.isfinite(value)
        and (low is None or value >= low)
        and (above is None or value > above)
        and (high is None or value <= high)
        and (below is None or value < below)
    )


def _expectation(kind: Any, bounds: Mapping[str, Any]) -> str:
    if bounds["choices"] is not None:
        return "one of " + ", ".join(map(repr, bounds["choices"]))
    words = {"low": "at least", "above": "above", "high": "at most", "below": "below"}
    limits = [
        f"{word} {bounds[name]:g}" for name, word in words.items() if bounds[name] is not None
    ]
    return " ".join([_KIND_NAMES[_bare(kind)], " and ".join(limits)]).strip()


def _nearest(key: str) -> str | None:
    known = [known for known, _, _ in _leaves(Config, "")]
    last = key.rsplit(".", 1)[-1]
    same_name = [candidate for candidate in known if candidate.rsplit(".", 1)[-1] == last]
    close = difflib.get_close_matches(
        key, same_name or known, n=1, cutoff=0.0 if same_name else 0.6
    )
    return close[0] if close else None


def _contradictions(config: Config) -> Iterator[Problem]:
    """Rules between keys, checked only when every single value is fine."""
    model, muon, data, evaluation, run = (
        config.model, config.optim.muon, config.data, config.eval, config.run
    )  # fmt: skip
    if model.width % model.heads or (model.width // model.heads) % 2:
        yield Problem(
            "model.heads", model.heads, f"a divisor of model.width = {model.width} into even parts"
        )
    if muon.cautious_weight_decay and muon.cautious_lambda == 0:
        yield Problem(
            "optim.muon.cautious_weight_decay",
            True,
            "false, or optim.muon.cautious_lambda above 0: with a decay of 0 it changes nothing",
        )
    if muon.cautious_weight_decay and muon.weight_decay > 0:
        yield Problem(
            "optim.muon.weight_decay", muon.weight_decay, "0 when cautious_weight_decay is true"
        )
    if (data.kind == "text") != (data.path is not None):
        expected = "a file" if data.kind == "text" else 'no value unless data.kind is "text"'
        yield Problem("data.path", data.path, expected)
    for name in ("probe_tokens", "confirmation_tokens"):
        tokens = getattr(evaluation, name)
        if tokens % data.context:
            yield Problem(f"eval.{name}", tokens, f"a multiple of data.context = {data.context}")
    if evaluation.confirmation_tokens < evaluation.probe_tokens:
        yield Problem(
            "eval.confirmation_tokens",
            evaluation.confirmation_tokens,
            f"at least eval.probe_tokens = {evaluation.probe_tokens}",
        )
    if evaluation.every_tokens % 2**EVALUATION_HALVINGS:
        yield Problem(
            "eval.every_tokens",
            evaluation.every_tokens,
            f"a multiple of {2**EVALUATION_HALVINGS}, because it is halved near a target",
        )
    if run.fallback_targets and run.target is None:
        yield Problem(
            "run.fallback_targets", list(run.fallback_targets), "none without a run.target"
        )
    if run.target is not None and any(easier <= run.target for easier in run.fallback_targets):
        yield Problem(
            "run.fallback_targets",
            list(run.fallback_targets),
            f"values above run.target = {run.target:g}",
        )
