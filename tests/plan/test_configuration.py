"""One trial's configuration and argument vector: everything filled, nothing else touched."""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path

import pytest

from sweeper import pattern_sets
from sweeper.configuration import fill_command, places, resolve_config
from sweeper.design.groups import complete
from sweeper.study_file import load

STUDIES = Path(__file__).resolve().parents[2] / "studies"
HERE = {"config": Path("c d.toml"), "events": Path("e"), "run_dir": Path("r"), "seed": 7}


def test_resolves_into_a_copy(study):
    before = copy.deepcopy(study.base)
    point = complete(study, {"optim.lr": 0.05, "optim.restart": True})
    config = resolve_config(study, point, seed=7, target=5.0, fallback=(5.5,), max_steps=9)
    assert config == {
        "optim": {"lr": 0.05, "momentum": 0.9, "method": "slow", "restart": True},
        "data": {"batch": 32},
        "run": {"epochs": 7, "seed": 7, "target": 5.0, "max_steps": 9},
    }
    assert study.base == before
    assert "target" not in resolve_config(
        study, point, seed=7, target=None, fallback=(), max_steps=9
    )["run"]  # fmt: skip


def test_fallback_targets_only_where_the_base_has_them(quickstart):
    point = complete(quickstart, {})
    config = resolve_config(quickstart, point, seed=1, target=2.6, fallback=(2.6, 3.0), max_steps=5)
    assert config["run"]["fallback_targets"] == [3.0]


def test_a_point_may_have_fewer_steps_than_the_limit_never_more():
    micro = load(STUDIES / "microgpt")
    for own, limit, wanted in ((500, 1000, 500), (1000, 300, 300)):
        point = complete(micro, {"run.max_steps": own})
        config = resolve_config(micro, point, seed=1, target=None, fallback=(), max_steps=limit)
        assert config["run"]["max_steps"] == wanted


def test_frozen_keys_stay(study_text, write_study):
    text = study_text.replace('["run.epochs"]', '["run.epochs", "run.seed"]')
    text = text.replace("replicates = 2", "replicates = 0") + "\n[confirm]\nrepeats = 1\n"
    base = "[optim]\nlr=0.01\nmomentum=0.9\nmethod='slow'\nrestart=false\n[data]\nbatch=32\n"
    study = load(write_study(text, base + "[run]\nepochs = 7\nseed = 1337\n"))
    config = resolve_config(
        study, complete(study, {}), seed=7, target=5.0, fallback=(), max_steps=9
    )
    assert config["run"]["seed"] == 1337


def test_new_keys_are_added(study_text, write_study):
    text = study_text.replace('config = "base.toml"', 'config = "base.toml"\nnew_keys = true')
    text = text.replace(
        'choices = ["slow", "fast"]', 'choices = ["slow", "fast"]\nbaseline = "slow"'
    )
    base = "[optim]\nlr=0.01\nmomentum=0.9\nrestart=false\n[data]\nbatch=32\n[run]\nepochs=1\n"
    study = load(write_study(text, base))
    config = resolve_config(
        study, complete(study, {}), seed=7, target=5.0, fallback=(), max_steps=9
    )
    assert config["optim"]["method"] == "slow"


@pytest.fixture
def script(study_text, write_study):
    command = (
        '["{python}", "train.py", "--lr={lr}", "{optim.on}", "--t={target}-{seed}", "{run_dir}"]'
    )
    return load(
        write_study(
            f"""
            [study]
            name = "script"
            [objective]
            target = 5
            [trainer]
            command = {command}
            [trainer.patterns]
            evaluated = 'val (?P<val_loss>[0-9.]+)'
            [limits]
            steps = 10
            trial_s = 10
            [space.lr]
            type = "float"
            low = 1e-5
            high = 1
            baseline = 0.003
            [space."optim.on"]
            type = "bool"
            baseline = false
            when = {{ lr = [0.003] }}
            [[stage1.group]]
            name = "A"
            vary = {{ lr = [0.001, 0.003] }}
            """
        )
    )


def test_fills_a_command(script):
    def fill(**values):
        return fill_command(script, complete(script, values), target=5.0, **HERE)

    assert fill(**{"optim.on": True}) == [
        sys.executable, "train.py", "--lr=0.003", "true", "--t=5.0-7", "r",
    ]  # fmt: skip
    assert fill(lr=0.00001)[2:4] == ["--lr=1e-05", "false"]  # inactive: its baseline stands there


def test_a_value_stays_in_its_argument(study):
    argv = fill_command(study, complete(study, {}), target=None, python="my python", **HERE)
    assert argv == ["my python", "train.py", "c d.toml"]


@pytest.mark.parametrize("wrong", ["{", "}", "{a{b}}", "{{x}}", "a}{b"])
def test_lonely_braces(wrong):
    with pytest.raises(ValueError, match="brace"):
        places(wrong)


def test_a_set_of_patterns_is_extended_and_overridden(study_text, write_study):
    def patterns(table):
        return load(
            write_study(study_text.replace("[limits]", f"{table}\n[limits]"))
        ).trainer.patterns

    ready = patterns('[trainer.patterns]\nset = "nanogpt"')
    assert ready == pattern_sets.patterns("nanogpt", "val_loss")
    own = patterns(
        "[trainer.patterns]\nset = 'nanogpt'\nstep = ''\ntokens = 'tokens (?P<tokens>.+)'"
    )
    assert own == {"evaluated": ready["evaluated"], "tokens": "tokens (?P<tokens>.+)"}
    assert "set" not in patterns("[trainer.patterns]\ne = '(?P<metric>.+)'")


def test_the_patterns_of_the_documentation(study_text, write_study):
    text = (Path(__file__).resolve().parents[2] / "docs" / "your-script.md").read_text(
        encoding="utf-8"
    )
    tables = [block.partition("```")[0] for block in text.split("```toml\n")[1:]]
    shown = [t[t.index("[trainer.patterns]") :] for t in tables if "[trainer.patterns]" in t]
    assert len(shown) == 2
    found = [
        load(write_study(study_text.replace("[limits]", f"{table}\n[limits]"))).trainer.patterns
        for table in shown
    ]
    assert list(found[1]) == ["line", "checkpoint"]
    printed = (
        "Epoch 1, global step 40: 'val_loss' reached 0.58829 (best 0.58829), saving model to 'x'"
    )
    assert re.search(found[1]["checkpoint"], printed)["metric"] == "0.58829"
