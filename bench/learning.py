"""Learning quality of models and optimizers at equal tokens on a CPU, and what each option costs.

Run: python bench/learning.py [--steps N] [--seeds N] [--rounds N] [--out FILE]

Small models (about 370,000 parameters) learn bytes of Python's standard library, one thread, fixed
seeds. Every arm has the same schedule and sees the same tokens in the same order; the best learning
rate of an arm is the one with the lowest loss at seed 0, and is then repeated with other seeds.
With two seeds instead of three it took 6.5 minutes of a quiet core. Times are processor seconds,
each option in turn many times over, so that a busy machine does not favour one.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from trainer.config import Adam, Data, Model, Muon, Optim
from trainer.data.batches import TrainingBatches, spread_windows
from trainer.data.corpora import load_corpus
from trainer.data.tokens import place_tokens
from trainer.evaluate import Evaluator
from trainer.hardware import describe
from trainer.models import build_model
from trainer.models.named import NAMED
from trainer.optim.build import Optimizer, build_optimizer
from trainer.optim.orthogonalize import ORTHOGONALIZERS, iterate

CONTEXT, BATCH = 64, 16
PROJECT_EVERY = 7
WARM_UP_SHARE, DECAY_SHARE = 0.05, 0.4
CHECKS = 5
"""Evaluations along a run."""

NGPT, GPT2 = NAMED["ngpt-quickstart"].model, NAMED["gpt2-small-bytes"].model


def wrong_cubic(matrices: torch.Tensor) -> torch.Tensor:
    """What a public attempt used for Muon's quintic: the classical cubic, five times.

    It leaves small singular values small: after division by 1.1 times the Frobenius norm, 0.03 goes
    to about 0.2 instead of about 1.
    """
    return iterate(matrices, [(1.5, -0.5, 0.0)] * 5, safety=1.1)


# No configuration can name it; only this benchmark does.
cast("dict[str, Callable[[torch.Tensor], torch.Tensor]]", ORTHOGONALIZERS)["wrong_cubic"] = (
    wrong_cubic
)


@dataclasses.dataclass(frozen=True)
class Arm:
    """A model, and for each learning rate of the matrices its optimizer."""

    model: Model
    optim: Callable[[float], Optim]
    rates: tuple[float, ...]


def muon(lr: float, orthogonalizer: str = "polar_express", **settings: Any) -> Optim:
    return Optim(muon=Muon(lr=lr, orthogonalizer=orthogonalizer, **settings))


def gpt2_muon(lr: float) -> Optim:
    rates = Adam(embedding_lr=0.003, head_lr=0.003, scalar_lr=0.003)
    return Optim(muon=Muon(lr=lr), adam=rates)


def adamw(lr: float) -> Optim:
    """The rate of the matrices; the other roles keep theirs, as under Muon."""
    return Optim(kind="adamw", adam=Adam(matrix_lr=lr))


def adamw_everywhere(lr: float) -> Optim:
    """One rate for all, as GPT-2 is trained."""
    rates = dict.fromkeys(("embedding_lr", "head_lr", "scalar_lr", "matrix_lr"), lr)
    return Optim(kind="adamw", adam=Adam(**rates, eps=1e-8))


ARMS = {
    "ngpt, Muon, Polar Express": Arm(NGPT, muon, (0.01, 0.03, 0.1, 0.3)),
    "ngpt, Muon, Newton-Schulz": Arm(
        NGPT, functools.partial(muon, orthogonalizer="newton_schulz"), (0.01, 0.03, 0.1, 0.3)
    ),
    "ngpt, Muon, wrong cubic": Arm(
        NGPT, functools.partial(muon, orthogonalizer="wrong_cubic"), (0.03, 0.1, 0.3, 1.0)
    ),
    "ngpt, AdamW": Arm(NGPT, adamw, (0.003, 0.01, 0.03, 0.1)),
    "gpt2, AdamW": Arm(GPT2, adamw_everywhere, (0.0003, 0.001, 0.003)),
    "gpt2, Muon": Arm(GPT2, gpt2_muon, (0.01, 0.03, 0.1)),
}

OPTIONS: Mapping[str, tuple[Optim, int]] = {
    "Polar Express, projection every 7": (muon(0.01), 7),
    "Newton-Schulz": (muon(0.01, "newton_schulz"), 7),
    "projection every 1": (muon(0.01), 1),
    "variance reduction": (muon(0.01, variance_reduction=True), 7),
    "cautious weight decay": (muon(0.01, cautious_weight_decay=True), 7),
    "variance reduction + cautious weight decay": (
        muon(0.01, variance_reduction=True, cautious_weight_decay=True),
        7,
    ),
    "AdamW": (adamw(0.003), 7),
}
"""Optimizer and steps between projections; the first is what the others are compared with."""


class Text:
    """The corpus: batches in an order that the seed decides, and one fixed validation slice."""

    def __init__(self) -> None:
        self.corpus = load_corpus(Data())
        device = torch.device("cpu")
        self._train = place_tokens(self.corpus.train, device)
        held_out = place_tokens(self.corpus.validation, device)
        self._validation = spread_windows(held_out, context=CONTEXT, count=128, name="validation")

    def batches(self, seed: int) -> TrainingBatches:
        """Training batches in the order of `seed`."""
        return TrainingBatches(self._train, context=CONTEXT, batch_size=BATCH, seed=seed)

    def evaluator(self, model: Any) -> Evaluator:
        """The loss of `model` on the validation slice."""
        return Evaluator(model, self._validation, self._validation, windows_per_pass=64)


def scale(step: int, steps: int) -> float:
    """Share of the learning rate at step 0, 1, ...: a warm-up, a plateau, a linear end to 0."""
    return min(1.0, (step + 1) / (WARM_UP_SHARE * steps), (steps - step) / (DECAY_SHARE * steps))


def learn(
    text: Text, model_config: Model, optim: Optim, *, steps: int, seed: int
) -> dict[str, Any]:
    """Validation losses along one run."""
    model = build_model(model_config, vocabulary=256, context=CONTEXT, seed=seed)
    optimizer = build_optimizer(model.roled_parameters(), optim, project_every=PROJECT_EVERY)
    batches, evaluator = text.batches(seed), text.evaluator(model)
    curve = []
    for step in range(steps):
        take_step(model, optimizer, batches.at(step), step + 1, scale(step, steps))
        if (step + 1) % max(1, steps // CHECKS) == 0 or step + 1 == steps:
            curve.append([(step + 1) * BATCH * CONTEXT, round(evaluator.loss("probe"), 4)])
    return {"seed": seed, "loss": curve[-1][1], "curve": curve}


def take_step(
    model: Any, optimizer: Optimizer, batch: Any, number: int, lr_scale: float = 1.0
) -> tuple[float, float]:
    """Processor seconds of forward and backward, and of the update."""
    began = time.process_time()
    optimizer.clear_gradients()
    model(*batch).backward()
    middle = time.process_time()
    optimizer.step(number, lr_scale)
    return middle - began, time.process_time() - middle


def run_arm(text: Text, name: str, arm: Arm, *, steps: int, seeds: int) -> dict[str, Any]:
    """Every rate at seed 0, then the best rate at the other seeds."""
    grid = {}
    for lr in arm.rates:
        grid[lr] = learn(text, arm.model, arm.optim(lr), steps=steps, seed=0)
        print(f"{name:28} lr {lr:<6g} seed 0: {grid[lr]['loss']:.4f}", flush=True)
    best = min(grid, key=lambda lr: grid[lr]["loss"])
    runs = [grid[best]]
    for seed in range(1, seeds):
        runs.append(learn(text, arm.model, arm.optim(best), steps=steps, seed=seed))
        print(f"{name:28} lr {best:<6g} seed {seed}: {runs[-1]['loss']:.4f}", flush=True)
    losses = [run["loss"] for run in runs]
    return {
        "loss_by_rate": {str(lr): run["loss"] for lr, run in grid.items()},
        "best_rate": best,
        "best_rate_is_inside_the_grid": best not in (arm.rates[0], arm.rates[-1]),
        "mean_loss": round(statistics.mean(losses), 4),
        "sd_over_seeds": round(statistics.stdev(losses), 4) if len(losses) > 1 else None,
        "runs": runs,
    }


def costs(text: Text, *, rounds: int) -> dict[str, Any]:
    """Per option the time of an update and its share of a step; medians over interleaved rounds."""
    batch = text.batches(0).at(0)
    contenders = {}
    for name, (optim, every) in OPTIONS.items():
        model = build_model(NGPT, vocabulary=256, context=CONTEXT, seed=0)
        contenders[name] = (
            model,
            build_optimizer(model.roled_parameters(), optim, project_every=every),
        )
    passes: list[float] = []
    updates: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(-1, rounds):  # the first one warms up
        for name, (model, optimizer) in contenders.items():
            # Seven steps in a row hold exactly one projection of those that come every seven.
            pairs = [take_step(model, optimizer, batch, n) for n in range(1, PROJECT_EVERY + 1)]
            if round_number >= 0:
                passes.extend(both for both, _ in pairs)
                updates[name].append(statistics.mean(update for _, update in pairs))
    passed = statistics.median(passes)
    first = next(iter(OPTIONS))
    result: dict[str, Any] = {"forward_backward_ms": round(1e3 * passed, 2)}
    for name, found in updates.items():
        update = statistics.median(found)
        against = statistics.median(
            mine - base for mine, base in zip(found, updates[first], strict=True)
        )
        result[name] = {
            "update_ms": round(1e3 * update, 2),
            "share_of_step": round(update / (passed + update), 4),
            "step_against_first": round(against / (passed + statistics.median(updates[first])), 4),
        }
        print(f"{name:44} {result[name]}", flush=True)
    return result


def verdicts(arms: Mapping[str, Any]) -> Iterator[str]:
    """What the losses say, in words, with the spread over seeds beside each difference."""
    for one, other in (
        ("ngpt, Muon, Polar Express", "gpt2, AdamW"),
        ("ngpt, Muon, Polar Express", "ngpt, AdamW"),
        ("gpt2, Muon", "gpt2, AdamW"),
        ("ngpt, Muon, Polar Express", "ngpt, Muon, Newton-Schulz"),
        ("ngpt, Muon, Polar Express", "ngpt, Muon, wrong cubic"),
    ):
        difference = arms[one]["mean_loss"] - arms[other]["mean_loss"]
        spread = max(arms[name]["sd_over_seeds"] or 0.0 for name in (one, other))
        yield (
            f"{one} at its best rate {arms[one]['best_rate']:g} against {other} at "
            f"{arms[other]['best_rate']:g}: {difference:+.4f} nats (sd over seeds {spread:.4f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=120, help="steps of a run (default 120)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each best rate (default 3)")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of timing (default 20)")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, began_cpu = time.monotonic(), time.process_time()
    load = os.getloadavg()[0]
    text = Text()
    print(f"{text.corpus.source}, {text.corpus.sha256[:12]}; load average {load:.1f}")
    timed = costs(text, rounds=options.rounds)
    arms = {
        name: run_arm(text, name, arm, steps=options.steps, seeds=options.seeds)
        for name, arm in ARMS.items()
    }
    summary = list(verdicts(arms))
    print("\n".join(summary))
    if options.out:
        result = {
            "what": "loss at equal tokens on a CPU, and the cost of each option of the optimizer",
            "command": " ".join(["python", "bench/learning.py", *sys.argv[1:]]),
            "machine": {
                **describe(torch.device("cpu")),
                "platform": platform.platform(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "load_average_at_start": round(load, 2),
            },
            "corpus": {"source": text.corpus.source, "sha256": text.corpus.sha256},
            "tokens_per_run": options.steps * BATCH * CONTEXT,
            "seconds": round(time.monotonic() - began, 1),
            "processor_seconds": round(time.process_time() - began_cpu, 1),
            "costs": timed,
            "arms": arms,
            "summary": summary,
        }
        partial = options.out.with_name(options.out.name + ".partial")
        partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        partial.replace(options.out)


if __name__ == "__main__":
    main()
