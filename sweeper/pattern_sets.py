"""Ready sets of patterns for what training scripts commonly print, made for one metric's name.

It must not know who tries them: they are plain regular expressions, groups as in docs/your-script.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|[Nn]a[Nn]|[Ii]nf(?:inity)?)"
"""A number as programs print it, NaN and infinity too: a run that diverges must be seen to."""


@dataclass(frozen=True)
class PatternSet:
    """What one kind of script prints.

    `metric` is the name that it usually gives to its validation loss, `clock` what its times are
    measured with, in words, and `make` gives the expressions for any metric of it.
    """

    metric: str
    title: str
    clock: str
    make: Callable[[str], Mapping[str, str]]


def patterns(name: str, metric: str) -> dict[str, str]:
    """The expressions of a set for a metric, by name. KeyError: there is no such set."""
    return dict(SETS[name].make(metric))


def _words(metric: str) -> str:
    """`val_loss` as people print it: `val_loss`, `val loss`, `val-loss`."""
    return r"[ _-]".join(re.escape(part) for part in re.split(r"[ _-]", metric))


def _nanogpt(metric: str) -> Mapping[str, str]:
    # No clock: its "time" is of one iteration in ten, evaluations included, and cannot be added up.
    name = _words(metric)
    return {
        "evaluated": rf"\bstep (?P<step>\d+):.*?\b{name} (?P<metric>{NUMBER})",
        "step": rf"\biter (?P<step>\d+): loss (?P<loss>{NUMBER})",
    }


def _modded_nanogpt(metric: str) -> Mapping[str, str]:
    # train_time is cumulative, and stands still while it validates.
    name, step = re.escape(metric), r"\bstep:(?P<step>\d+)(?:/\d+)?\b"
    clock = r"\btrain_time:(?:(?P<train_ms>[\d.]+)ms|(?P<train_s>[\d.]+)s)"
    return {
        "evaluated": rf"{step}.*?\b{name}:(?P<metric>{NUMBER})(?:.*?{clock})?",
        "step": rf"{step}(?!.*\b{name}:)(?:.*?\btrain_loss:(?P<loss>{NUMBER}))?.*?{clock}",
    }


def _huggingface(metric: str) -> Mapping[str, str]:
    # Log lines are Python dicts with an epoch and no step: that is on the training's progress bar. A bar
    # of an evaluation ends with "cursor up" while the training's is there, and has a smaller total.
    def value(key: str, group: str) -> str:
        return rf"['\"]{re.escape(key)}['\"]: ['\"]?(?P<{group}>{NUMBER})"

    took = value("eval_runtime", "eval_s")
    return {
        "evaluated": rf"^\s*\{{(?=.*{value(metric, 'metric')})(?:(?=.*{took}))?.*\}}",
        "log": rf"^\s*\{{{value('loss', 'loss')}.*\}}",
        "bar": r"^\s*\d+%\|[^|]*\| (?P<step>\d+)/(?P<of>\d+) \[[^\]]*\](?!\x1b\[A)",
    }


def _lightning(metric: str) -> Mapping[str, str]:
    # The bar counts batches within an epoch, and shows the last validation's value again and again.
    value = rf"(?<![\w/]){re.escape(metric)}[=:] ?"
    bar = r"\bEpoch (?P<epoch>\d+):[^|]*\|[^|]*\|\s*(?P<batch>\d+)/(?:(?P<of>\d+)|\?)(?=\s)"
    line = r"(?<!\w)(?:global_)?step[=:] ?(?P<step>\d+)(?![\d/])"
    return {
        "bar": rf"{bar}(?:.*?{value}(?P<latest>{NUMBER}))?",
        "line": rf"{line}(?=.*?{value}(?P<metric>{NUMBER}))",
    }


def _plain(metric: str) -> Mapping[str, str]:
    # `step 100 ... val_loss 2.3`, with `=`, `:`, `|`, brackets or quotes between them: JSON lines too.
    gap = r"[\"']?\s*[\s=:]\s*[\"']?"
    step = rf"(?:^|[^\w])[\"']?(?:step|iter|iteration|it){gap}(?P<step>\d+)"
    return {
        "evaluated": rf"(?i:(?:{step}\b.*?)?(?<![\w/]){_words(metric)}{gap}(?P<metric>{NUMBER}))",
    }


SETS: Mapping[str, PatternSet] = {
    "modded-nanogpt": PatternSet(
        "val_loss",
        "`step:125/1750 val_loss:4.6013 train_time:11800ms step_avg:94.40ms`",
        "the script's own (train_time, without validation)",
        _modded_nanogpt,
    ),
    "nanogpt": PatternSet(
        "val_loss",
        "`step 250: train loss 3.1, val loss 3.2` and `iter 250: loss 3.1, time 20ms, ...`",
        "the runner's (from the first line that is read)",
        _nanogpt,
    ),
    "huggingface": PatternSet(
        "eval_loss",
        "the dicts of `Trainer` (`{'eval_loss': 2.3, 'eval_runtime': 1.2, 'epoch': 1.0}`), its bar",
        "the runner's, less what each evaluation took (eval_runtime)",
        _huggingface,
    ),
    "lightning": PatternSet(
        "val_loss",
        "the progress bar (`Epoch 0: 100%|...| 50/50 [..., val_loss=2.3]`), `step=50, val_loss=2.3`",
        "the runner's (from the first line that is read)",
        _lightning,
    ),
    "plain": PatternSet(
        "val_loss",
        "one line with `step 100` and `val_loss 2.3` in it, with = or : between them, or as JSON",
        "the runner's (from the first line that is read)",
        _plain,
    ),
}
"""By name; the more particular first, which is the order in which `sweep init` tries them."""
