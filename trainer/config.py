"""Owns the trainer's configuration: its keys, defaults and bounds, parsed once into frozen values.

It must not import torch, and must not know what any key does to a run.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.contradictions import contradictions
from trainer.errors import ConfigError
from trainer.settings import KIND_NAMES, Problem, describe, read, setting, shown

ENVIRONMENT_KEYS: Mapping[str, tuple[str, type[int | float]]] = {
    "SWEEP_SEED": ("seed", int),
    "SWEEP_TARGET": ("target", float),
    "SWEEP_MAX_STEPS": ("max_steps", int),
}
"""Variables that fill a key of `run` which the file leaves out. The file always wins."""


@dataclass(frozen=True, slots=True)
class Model:
    """Shape of the network, and how often its weights return to the sphere."""

    kind: str = setting(
        "ngpt", "which architecture", choices=("ngpt", "gpt2", "microgpt", "ltg_bert")
    )
    layers: int = setting(3, "number of blocks", low=1)
    width: int = setting(96, "embedding width", low=2)
    heads: int = setting(3, "attention heads; must divide the width into even parts", low=1)
    hidden: int = setting(256, "hidden units of the MLP (of each half, where it is gated)", low=1)
    context: int = setting(0, "places for tokens; 0: as many as data.context asks for", low=0)
    pad_vocabulary_to: int = setting(
        1,
        "the tables of tokens are rounded up to a multiple of this (128: 50,257 to 50,304)",
        low=1,
    )
    attention: str = setting(
        "auto",
        "kernel of the attention; auto: what torch thinks best",
        choices=("auto", "flash", "cudnn", "efficient", "math"),
    )
    alpha: float = setting(0.15, "start of the learned residual rate", above=0.0, high=1.0)
    logit_scale: float = setting(10.0, "start of the learned scale of the logits", above=0.0)
    rope_base: float = setting(10000.0, "base of the rotary position frequencies", above=1.0)
    project_every: int = setting(7, "steps between two projections onto the sphere", low=1)
    position_buckets: int = setting(
        32, "buckets of distances on each side, if model.kind is ltg_bert", low=4
    )


@dataclass(frozen=True, slots=True)
class Muon:
    """Muon, which drives the matrices when `optim.kind` is "muon"."""

    lr: float = setting(0.01, "learning rate, in spectral norm per step", above=0.0)
    momentum: float = setting(0.95, "momentum of the gradient average", low=0.0, below=1.0)
    momentum_start: float = setting(0.85, "momentum of the first step", low=0.0, below=1.0)
    momentum_warmup_steps: int = setting(
        0, "steps over which it rises from momentum_start; 0: it does not", low=0
    )
    scaling: str = setting(
        "spectral",
        "size of an update: max(1, rows/columns)^0.5 in spectral norm, or entries as AdamW's",
        choices=("spectral", "match_rms"),
    )
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

    lr: float | None = setting(
        None, "one learning rate for all that AdamW drives; null: those by role below", above=0.0
    )
    embedding_lr: float = setting(0.01, "learning rate of the token embedding", above=0.0)
    head_lr: float = setting(0.01, "learning rate of the output head", above=0.0)
    scalar_lr: float = setting(0.01, "learning rate of learned scales and gates", above=0.0)
    matrix_lr: float = setting(0.003, 'of the matrices, if optim.kind is "adamw"', above=0.0)
    beta1: float = setting(0.9, "decay of the first moment", low=0.0, below=1.0)
    beta2: float = setting(0.95, "decay of the second moment", low=0.0, below=1.0)
    eps: float = setting(1e-10, "added to the root of the second moment", above=0.0)
    weight_decay: float = setting(0.0, "decoupled decay of matrices under AdamW", low=0.0)


@dataclass(frozen=True, slots=True)
class SGD:
    """Stochastic gradient descent, which drives everything when `optim.kind` is "sgd"."""

    lr: float = setting(0.01, "learning rate of every parameter", above=0.0)
    momentum: float = setting(0.0, "momentum of the velocity", low=0.0, below=1.0)
    nesterov: bool = setting(False, "look ahead along the velocity; needs momentum")
    weight_decay: float = setting(0.0, "L2 penalty of the matrices", low=0.0)


@dataclass(frozen=True, slots=True)
class Optim:
    """Which optimizer drives the matrices ("sgd": everything), and the settings of each."""

    kind: str = setting("muon", "optimizer of the matrices", choices=("muon", "adamw", "sgd"))
    muon: Muon = field(default_factory=Muon)
    adam: Adam = field(default_factory=Adam)
    sgd: SGD = field(default_factory=SGD)


@dataclass(frozen=True, slots=True)
class Objective:
    """What is predicted: the next token, or tokens that were hidden; and how those are chosen."""

    kind: str = setting(
        "causal",
        "the next token after its past, or hidden tokens between both sides",
        choices=("causal", "masked"),
    )
    mask_share: float = setting(
        0.15, "tokens that are hidden on average, in training", above=0.0, below=1.0
    )
    span_stop: float = setting(
        1 / 3,
        "chance that a span ends after each token: geometric lengths; 1: single tokens",
        above=0.0,
        high=1.0,
    )
    random_share: float = setting(0.1, "spans that become random tokens", low=0.0, high=1.0)
    keep_share: float = setting(0.1, "spans that stay as they are", low=0.0, high=1.0)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Minimal pairs (BLiMP's form): how often the acceptable sentence is the likelier one."""

    path: str | None = setting(
        None, 'a file or folder of .jsonl files; "own": the pairs that come with the trainer'
    )
    at: tuple[float, ...] = setting(
        (), "milestones, as shares of run.max_steps; the end is always one", above=0.0, high=1.0
    )
    most: int = setting(0, "pairs of each paradigm at most; 0: all", low=0)
    normalisation: str = setting(
        "sum", "of a sentence's log-probabilities: sum or mean", choices=("sum", "mean")
    )
    merges: str | None = setting(None, "GPT-2's vocab.bpe, if data.kind is shards of its tokens")


@dataclass(frozen=True, slots=True)
class Data:
    """Where the tokens come from, and how many make a step."""

    kind: str = setting(
        "stdlib",
        "corpus: Python's standard library, its English manual pages, a text file, any file's "
        "bytes, a text's characters, names (a line each), token shards, titles (a line each, under a "
        "BPE of their own), or noise",
        choices=(
            "stdlib",
            "topics",
            "text",
            "bytes",
            "characters",
            "names",
            "shards",
            "titles",
            "random",
        ),
    )
    path: str | None = setting(
        None,
        "the file, for text, bytes, characters, titles (without one: docstrings' first lines) and "
        "names (without one: the shipped list)",
    )
    train: str | None = setting(None, "training shards: a path or a glob, if data.kind is shards")
    validation: str | None = setting(None, "validation shards, in the same way")
    vocabulary: int = setting(50_257, "ids that the shards may hold, 0 to one less", low=2)
    bpe_vocabulary: int = setting(
        1024, "ids of the BPE of titles: 256 bytes, merges, a mark", low=257, high=65_536
    )
    merges: str | None = setting(
        None, "its merges (a vocab.bpe); null: trained on the training titles"
    )
    mark_characters: int = setting(
        1, "characters that the mark after a title counts in nats per character", low=0
    )
    max_tokens: int = setting(0, "training tokens read from shards at most; 0: all", low=0)
    max_validation_tokens: int = setting(
        10_485_760, "validation tokens read from shards at most", low=1
    )
    max_bytes: int = setting(3_000_000, "bytes read at most, training and validation", low=4096)
    validation_share: float = setting(0.1, "share held out", above=0.0, below=1.0)
    train_on_all: bool = setting(
        False, "no split: what is held out for validation is trained on too"
    )
    batch_size: int = setting(16, "sequences per step", low=1)
    micro_batch: int = setting(
        0, "sequences per pass; a step accumulates batch_size / micro_batch of them; 0: all", low=0
    )
    context: int = setting(64, "tokens per sequence", low=2)
    stride: int = setting(
        0, "tokens between the starts of two windows; 0: data.context, so none overlap", low=0
    )
    residence: str = setting(
        "auto", "where training tokens lie", choices=("auto", "device", "host")
    )


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
class Schedule:
    """How the learning rates move over the steps: one factor on all of them."""

    kind: str = setting(
        "constant",
        "shape after the warm-up; wsd: stable, then a linear decay at the end",
        choices=("constant", "linear", "cosine", "step", "polynomial", "wsd"),
    )
    warmup_steps: int = setting(0, "steps of linear warm-up", low=0)
    warmup_share: float = setting(0.0, "or the warm-up as a share of all steps", low=0.0, below=1.0)
    floor: float = setting(0.0, "factor at the end of a decay", low=0.0, high=1.0)
    decay_share: float = setting(
        0.2, "share of all steps that wsd decays over", above=0.0, high=1.0
    )
    power: float = setting(2.0, "exponent of the polynomial decay", above=0.0)
    step_every: int = setting(100, "steps between two drops of the step schedule", low=1)
    step_factor: float = setting(0.5, "factor of each drop", above=0.0, high=1.0)
    horizon: int = setting(0, "steps at which a decay ends; 0: run.max_steps", low=0)
    horizon_tokens: int = setting(
        0, "or the tokens: then runs of other batches decay over the same data", low=0
    )
    restart: float | None = setting(
        None, "factor from which an extension goes on; null: the one in force", above=0.0, high=1.0
    )


@dataclass(frozen=True, slots=True)
class Stop:
    """When a run ends because it no longer improves; without patience it does not."""

    patience_tokens: int = setting(
        0, "tokens without improvement after which the run ends; 0: never", low=0
    )
    watch: str = setting(
        "smoothed",
        "what must improve: the smoothed training loss or the validation loss",
        choices=("smoothed", "validation"),
    )
    smoothing_steps: float = setting(
        50.0, "time constant of the smoothing, in steps; 0: the raw loss, a trap", low=0.0
    )
    min_delta: float = setting(0.0, "nats that count as an improvement", low=0.0)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """When the whole state is saved, where, and what is kept."""

    folder: str | None = setting(
        None, "where; null: checkpoints/ in SWEEP_RUN_DIR, else in the current folder"
    )
    every_steps: int = setting(0, "steps between two; 0: none on the way", low=0)
    at_end: bool = setting(False, "one when the run finishes, whatever ended it")
    on_term: bool = setting(False, "one when SIGTERM or SIGINT ends the run")
    keep_last: int = setting(1, "how many of the newest are kept", low=1)
    keep_best: bool = setting(False, "also keep the state of the lowest probe, as best.pt")


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run says of itself at its end, besides its losses on the validation slices."""

    losses: bool = setting(
        False, "keep each step's training loss: when it became stable, how much it varies"
    )
    smoothing_steps: int = setting(100, "steps of the running mean that must become stable", low=1)
    band: float = setting(
        0.1, "nats around the final running mean that are called stable", above=0.0
    )
    last_steps: int = setting(100, "steps at the end over which the variance is taken", low=2)
    samples: int = setting(0, "names to generate with the trained model (data.kind names)", low=0)
    temperature: float = setting(0.5, "of the generation; lower is less daring", above=0.0)


@dataclass(frozen=True, slots=True)
class Run:
    """What this one run is to do, and on what."""

    seed: int = setting(0, "seed of the initial weights and of the order of the data", low=0)
    target: float | None = setting(None, "validation loss (nats) that ends the run", above=0.0)
    fallback_targets: tuple[float, ...] = setting(
        (), "easier targets that are confirmed on the way, without ending the run", above=0.0
    )
    max_steps: int = setting(400, "steps after which the run ends", low=0)
    init_from: str | None = setting(
        None,
        "checkpoint whose weights to begin with, as --init-from; null or empty: none; a resumed run "
        "goes on",
    )
    device: str = setting("auto", "where to compute", choices=("auto", "cpu", "cuda"))
    threads: int = setting(0, "CPU threads; 0: OMP_NUM_THREADS, else torch's choice", low=0)
    precision: str = setting(
        "fp32",
        "numbers of the forward and backward pass; weights are fp32",
        choices=("fp32", "bf16", "fp16"),
    )
    clip_norm: float = setting(0.0, "largest length of the gradient; 0: unclipped", low=0.0)
    compile: str = setting("off", "what torch.compile compiles", choices=("off", "whole", "block"))
    compile_mode: str = setting(
        "default",
        "how; reduce-overhead records CUDA graphs",
        choices=("default", "reduce-overhead", "max-autotune"),
    )
    compile_cache: str | None = setting(
        None, "folder of compiled code; null: TRAINER_CACHE, else the user's cache folder"
    )
    explosion: float = setting(
        2.0, "diverged when a loss exceeds this many times log(vocabulary)", above=1.0
    )


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration; every key that a file leaves out has its default here."""

    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    objective: Objective = field(default_factory=Objective)
    data: Data = field(default_factory=Data)
    eval: Eval = field(default_factory=Eval)
    pairs: Pairs = field(default_factory=Pairs)
    schedule: Schedule = field(default_factory=Schedule)
    stop: Stop = field(default_factory=Stop)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    summary: Summary = field(default_factory=Summary)
    run: Run = field(default_factory=Run)


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
    config = read(Config, raw, problems)
    if not problems:
        problems.extend(contradictions(config))
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
        raise ConfigError(f"{path}: expected a table of sections, got {shown(raw)}")
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
                f"{variable} = {text!r}: expected {KIND_NAMES[number]} "
                f"(it fills run.{key}, which the configuration leaves out)"
            ) from None
    if run:
        filled["run"] = run
    return filled


def as_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested plain values, every default spelled out."""
    return dataclasses.asdict(config)


def schema() -> dict[str, dict[str, Any]]:
    """Every dotted key with type, default, bounds, choices and meaning, as JSON values."""
    return describe(Config)
