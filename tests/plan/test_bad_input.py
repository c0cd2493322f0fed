"""Every mistake in a study file gets one message: file, line, key, value, expectation, next move."""

from __future__ import annotations

import datetime as dt
import os
import sys
from pathlib import Path

import pytest

from sweeper.errors import EXIT_STUDY, StudyFileError
from sweeper.study_file import load

# (what is replaced in the study, by what, the text that must be on the line of the error, the message)
MISTAKES = {
    "unknown top-level table": (
        "[objective]", "[objectiv]", "[objectiv]",
        ('objectiv: unknown key; the nearest known is "objective"; known here: study, objective, '
        "trainer, limits, resources, space, tie, forbid, frozen, question, stage1, stage2, confirm, "
        "racing, validity, on_oom, checkpoints, notify, phase, start"),
    ),
    "unknown key": (
        "target = 5.0", "target = 5.0\ntraget = 4", "traget",
        ('objective.traget: unknown key; the nearest known is "target"; known here: goal, metric, '
        "target, fallback, stretch, clock"),
    ),
    "unknown key in a list of tables": (
        "configs = [", 'title_ = "x"\nconfigs = [', "title_",
        ('stage1.group[3].title_: unknown key; the nearest known is "title"; known here: name, title, '
        "grid, vary, configs, bases, best_of"),
    ),
    "missing key": (
        "target = 5.0\n", "", "[objective]",
        "objective.target: missing, and it has no default; add target = ...",
    ),
    "target not a number": (
        "target = 5.0", 'target = "five"', "target",
        'objective.target: got "five", expected a number',
    ),
    "target not finite": (
        "target = 5.0", "target = nan", "target",
        "objective.target: got nan, expected a finite number",
    ),
    "wrong type: text": (
        'metric = "val_loss"', "metric = 3", "metric", "objective.metric: got 3, expected a string",
    ),
    "wrong type: list": (
        "fallback = [5.5, 6.0]", "fallback = 5.5", "fallback",
        "objective.fallback: got 5.5, expected a list",
    ),
    "wrong type: whole number": (
        "steps = 100", "steps = 1.5", "steps", "limits.steps: got 1.5, expected a whole number",
    ),
    "wrong type: boolean": (
        "[stage2]", "[racing]\ncap = 1\n[stage2]", "cap", "racing.cap: got 1, expected true or false",
    ),
    "missing table": (
        "[limits]\nsteps = 100\ntrial_s = 600", "", None,
        "limits: missing, and it has no default; add [limits]",
    ),
    "not positive": (
        "steps = 100", "steps = 0", "steps", "limits.steps: got 0, expected a number above 0",
    ),
    "not one of": (
        "[stage2]", '[stage1]\nduplicates = "again"\n[stage2]', "again",
        "stage1.duplicates: got \"again\", expected 'reuse' or 'replicate'",
    ),
    "bad study name": (
        'name = "small"', 'name = "../up"', "up",
        'study.name: got "../up", expected 1 to 64 letters, digits, dots, dashes or underscores',
    ),
    "a date as a value": (
        "[0.001, 0.01, 0.1]", "[0.001, 2020-01-01]", "2020",
        ('stage1.group[2].vary."optim.lr"[2]: got "2020-01-01", expected true, false, a number or a '
        "string"),
    ),
    "a list too short": (
        'interactions = [["optim.lr", "data.batch"]]', 'interactions = [["optim.lr"]]', "inter",
        'stage2.interactions[1]: got ["optim.lr"], expected a list of 2',
    ),
    "fallback below target": (
        "[5.5, 6.0]", "[4.5]", "fallback",
        ("objective.fallback[1]: got 4.5, expected a number above target = 5.0: a fallback is easier "
        "to reach"),
    ),
    "low above high": (
        "low = 0.001", "low = 0.2", "low = 0.2",
        ('space."optim.lr".low: got 0.2, expected a number below high = 0.1; swap them, or leave a '
        "parameter with one value out of the space"),
    ),
    "log of zero": (
        "low = 0.001", "low = 0", "low = 0",
        ('space."optim.lr".low: got 0.0, expected a number above 0, because scale = "log"; raise it, '
        'or use scale = "linear"'),
    ),
    "unknown type": (
        'type = "float"\nlow = 0.001', 'type = "flaot"\nlow = 0.001', "flaot",
        ('space."optim.lr".type: got "flaot", expected one of "float", "int", "bool", "categorical"; '
        'the nearest known is "float"'),
    ),
    "key of another type": (
        'type = "bool"', 'type = "bool"\nlow = 1', "low = 1",
        'space."optim.restart".low: unknown key; known here: baseline, when, type',
    ),
    "dotted name without quotes": (
        '[space."optim.momentum"]', "[space.optim.momentum]", "[space.optim.momentum]",
        ('space.optim: a dotted name must stand in quotes: write [space."optim.momentum..."], or TOML '
        "reads it as nested tables"),
    ),
    "dotted key without quotes in a group": (
        '"optim.method" = ["slow", "fast"] }', 'optim.method = ["slow", "fast"] }', "grid",
        ('stage1.group[1].grid.optim: got {"method": ["slow", "fast"]}, expected a list; a dotted key '
        "must stand in quotes, or TOML reads it as nested tables"),
    ),
    "baseline outside": (
        "levels = 5", "levels = 5\nbaseline = 1.0", "baseline",
        'space."optim.lr".baseline: got 1.0, expected a number in [0.001, 0.1]',
    ),
    "base config's value outside": (
        "high = 0.99", "high = 0.85", '[space."optim.momentum"]',
        ('space."optim.momentum": the value in base.toml: got 0.9, expected a number in [0.8, 0.85]; '
        "give this parameter a baseline, or change that file"),
    ),
    "space key not in the base config": (
        '[space."optim.momentum"]', '[space."optim.momentun"]', "momentun",
        ('space."optim.momentun": "optim.momentun" is not a key of base.toml; the nearest known is '
        '"optim.momentum"; add it there, or set trainer.new_keys = true'),
    ),
    "same choice twice": (
        '["slow", "fast"]\n\n[space', '["slow", "slow"]\n\n[space', "choices",
        'space."optim.method".choices[2]: "slow" is there twice; remove one of them',
    ),
    "active with itself": (
        'type = "bool"', 'type = "bool"\nwhen = { "optim.restart" = [true] }', "when",
        'space."optim.restart".when: this parameter is active only when it is active itself: a cycle',
    ),
    "when unknown": (
        'type = "bool"', 'type = "bool"\nwhen = { "optim.metod" = [1] }', "when",
        ('space."optim.restart".when."optim.metod": no such parameter; the nearest known is '
        '"optim.method"'),
    ),
    "value outside its space": (
        "[0.001, 0.01, 0.1]", "[0.001, 0.01, 0.5]", "0.5",
        ('stage1.group[2].vary."optim.lr"[3]: got 0.5, expected a number in [0.001, 0.1]; change the '
        'value, or widen [space."optim.lr"]'),
    ),
    "value off its step": (
        "[16, 32, 64]", "[16, 33]", "33",
        ('stage1.group[2].vary."data.batch"[2]: got 33, expected a whole number in [8, 128] in steps '
        'of 8 from 8; change the value, or widen [space."data.batch"]'),
    ),
    "unknown choice": (
        'grid = { "optim.method" = ["slow", "fast"] }', 'grid = { "optim.method" = ["slow", "fats"] }',
        "grid",
        ("stage1.group[1].grid.\"optim.method\"[2]: got 'fats', expected one of 'slow', 'fast'; change "
        'the value, or widen [space."optim.method"]'),
    ),
    "unknown parameter in a grid": (
        'grid = { "optim.method"', 'grid = { "optim.methods"', "grid",
        ('stage1.group[1].grid."optim.methods"[1]: "optim.methods" is no parameter of [space]; the '
        'nearest known is "optim.method"; known: optim.lr, optim.momentum, optim.method, '
        "optim.restart, data.batch"),
    ),
    "unknown parameter in a base": (
        'bases = [{}, { "data.batch" = 64 }]', 'bases = [{ "batch" = 64 }]', "bases",
        ('stage1.group[1].bases[1].batch: "batch" is no parameter of [space]; the nearest known is '
        '"data.batch"; known: optim.lr, optim.momentum, optim.method, optim.restart, data.batch'),
    ),
    "unknown parameter in a config": (
        '"optim.lr" = 0.02', '"optim.rl" = 0.02', "optim.rl",
        ('stage1.group[3].configs[1]."optim.rl": "optim.rl" is no parameter of [space]; the nearest '
        'known is "optim.lr"; known: optim.lr, optim.momentum, optim.method, optim.restart, '
        "data.batch"),
    ),
    "unknown parameter in a tie": (
        'follows = "data.batch"', 'follows = "batch"', "follows",
        ('tie[1].follows: "batch" is no parameter of [space]; the nearest known is "data.batch"; '
        "known: optim.lr, optim.momentum, optim.method, optim.restart, data.batch"),
    ),
    "a tie of words": (
        'follows = "data.batch"', 'follows = "optim.method"', "follows",
        'tie[1].follows: "optim.method" is not numeric; only numbers scale with one another',
    ),
    "a cycle of ties": (
        "[[forbid]]",
        '[[tie]]\nparameter = "data.batch"\nfollows = "optim.lr"\nexponent = 1\n[[forbid]]',
        "[[tie]]",
        "tie[2]: a cycle: data.batch follows optim.lr follows data.batch; remove one of these ties",
    ),
    "unknown parameter in a question": (
        'parameter = "optim.method"', 'parameter = "method"', "method",
        ('question[1].parameter: "method" is no parameter of [space]; the nearest known is '
        '"optim.method"; known: optim.lr, optim.momentum, optim.method, optim.restart, data.batch'),
    ),
    "a question about one level": (
        'levels = ["slow", "fast"]', 'levels = ["slow"]', "levels",
        "question[1].levels: got one level, expected two or more to compare, or none",
    ),
    "a question at an unknown level": (
        'at = { "data.batch" = 32 }', 'at = { "data.batch" = 1000 }', "at =",
        ('question[1].at."data.batch": got 1000, expected a whole number in [8, 128] in steps of 8 '
        'from 8; change the value, or widen [space."data.batch"]'),
    ),
    "unknown parameter in a forbidden point": (
        '"data.batch" = 128', '"data.bath" = 128', "bath",
        ('forbid[1]."data.bath": "data.bath" is no parameter of [space]; the nearest known is '
        '"data.batch"; known: optim.lr, optim.momentum, optim.method, optim.restart, data.batch'),
    ),
    "forbid everything": (
        '[[forbid]]\n"optim.method" = "fast"\n"data.batch" = 128', "[[forbid]]", "[[forbid]]",
        "forbid[1]: an empty table would forbid everything; name a parameter, or remove it",
    ),
    "frozen key in the space": (
        'frozen = ["run.epochs"]', 'frozen = ["optim.lr"]', "frozen",
        'frozen[1]: "optim.lr" is frozen, and [space] varies it; remove it from one of the two',
    ),
    "unknown frozen key": (
        'frozen = ["run.epochs"]', 'frozen = ["run.epoch"]', "frozen",
        'frozen[1]: "run.epoch" is not a key of base.toml; the nearest known is "run.epochs"',
    ),
    "same group name twice": (
        'name = "C"', 'name = "A"', 'name = "A"',
        'stage1.group[3].name: "A" is also the name of group 1; rename one',
    ),
    "group name that makes ids collide": (
        'name = "C"', 'name = "A1"', 'name = "A1"',
        ('stage1.group[3].name: got "A1", expected letters, digits and underscores, a letter first '
        "and no digit last: trials are named after it, such as s1-A3"),
    ),
    "depends on a later group": (
        'group = "A"', 'group = "C"', "best_of",
        'stage1.group[2].best_of.group: group "C" comes later; move it above group "B"',
    ),
    "depends on a missing group": (
        'group = "A"', 'group = "Z"', "best_of",
        'stage1.group[2].best_of.group: there is no group "Z"',
    ),
    "depends on itself": (
        'group = "A"', 'group = "B"', "best_of",
        ("stage1.group[2].best_of: a cycle: B takes the best of B; a group can only take the best of "
        "one declared before it"),
    ),
    "a cycle of groups": (
        "configs = [",
        'best_of = { group = "B", parameters = ["optim.lr"] }\nconfigs = [',
        "best_of",
        None,
    ),
    "best of what was not compared": (
        'parameters = ["optim.method"] }', 'parameters = ["optim.restart"] }', "best_of",
        ('stage1.group[2].best_of.parameters[1]: group "A" does not compare levels of "optim.restart"; '
        'the nearest known is "optim.method"; it compares optim.method'),
    ),
    "best of what the group sets": (
        "vary = {", 'bases = [{ "optim.method" = "slow" }]\nvary = {', "best_of",
        ('stage1.group[2].best_of.parameters[1]: group "B" sets "optim.method" itself; remove it there '
        "or here"),
    ),
    "empty group": (
        'grid = { "optim.method" = ["slow", "fast"] }', "grid = {}", "grid",
        "stage1.group[1].grid: is empty, so this group has no entry; add to it, or remove it",
    ),
    "empty level list": (
        "[0.001, 0.01, 0.1]", "[]", "vary",
        ('stage1.group[2].vary."optim.lr": got an empty list, so this group has no entry; add levels '
        "to it"),
    ),
    "no bases": (
        'bases = [{}, { "data.batch" = 64 }]', "bases = []", "bases",
        "stage1.group[1].bases: is empty, so this group has no entry; leave it out for {}",
    ),
    "grid and vary": (
        "grid = {", 'vary = { "optim.lr" = [0.01] }\ngrid = {', "[[stage1.group]]",
        "stage1.group[1]: got grid and vary, expected exactly one of grid, vary and configs",
    ),
    "neither grid nor vary": (
        'grid = { "optim.method" = ["slow", "fast"] }\n', "", "[[stage1.group]]",
        "stage1.group[1]: got none of them, expected exactly one of grid, vary and configs",
    ),
    "grid over its own base": (
        "bases = [{}, {", 'bases = [{ "optim.method" = "slow" }, {', "bases",
        'stage1.group[1].bases[1]."optim.method": grid sets "optim.method" already; remove it here',
    ),
    "a level twice": (
        "[16, 32, 64]", "[16, 32, 16]", "16, 32, 16",
        'stage1.group[2].vary."data.batch"[3]: 16 is there twice; remove one of them',
    ),
    "unknown interaction": (
        '["optim.lr", "data.batch"]]', '["optim.lr", "data.batches"]]', "interactions",
        ('stage2.interactions[1][2]: "data.batches" is no parameter of [space]; the nearest known is '
        '"data.batch"; known: optim.lr, optim.momentum, optim.method, optim.restart, data.batch'),
    ),
    "nothing fills a place": (
        '"{config}"]', '"{config}", "--out={outdir}"]', "command",
        ('trainer.command[4]: nothing fills {outdir}; the nearest known is "run_dir"; known: python, '
        "config, events, run_dir, target, seed, and every parameter of the space"),
    ),
    "plain braces": (
        '"{config}"]', '"{config}", "{{}"]', "command",
        ('trainer.command[4]: got "{{}", expected braces only around a name, such as {config}; put an '
        "argument that needs plain braces into a script"),
    ),
    "config that never arrives": (
        ', "{config}"]', "]", "command",
        ('trainer.command: config = "base.toml" never reaches the trainer; give {config} its place in '
        "the command, or remove config"),
    ),
    "config that is not named": (
        'config = "base.toml"\n', "", "command",
        ("trainer.command: {config} has nothing to stand for; name the trainer's configuration in "
        "config = ..."),
    ),
    "no such config": (
        'config = "base.toml"', 'config = "bose.toml"', "bose", None,
    ),
    "pattern that does not compile": (
        "[limits]", "[trainer.patterns]\nevaluated = 'loss (?P<val_loss>'\n[limits]", "evaluated",
        None,
    ),
    "patterns without the metric": (
        "[limits]", "[trainer.patterns]\nstep = 'it (?P<step>\\d+)'\n[limits]", "[trainer.patterns]",
        ("trainer.patterns: no pattern has a group (?P<val_loss>...), so the metric would never be "
        "read; add one, or change objective.metric"),
    ),
    "pattern with an unknown group": (
        "[limits]", "[trainer.patterns]\nx = '(?P<val_loss>.) (?P<token>.)'\n[limits]", "x = ",
        ('trainer.patterns.x: unknown group (?P<token>...); the nearest known is "tokens"; known: '
        "val_loss, metric, latest, step, epoch, batch, of, tokens, loss, train_s, train_ms, step_ms, "
        "eval_s"),
    ),
    "no such set of patterns": (
        "[limits]", '[trainer.patterns]\nset = "nanoGPT"\n[limits]', "set = ",
        ('trainer.patterns.set: no such set: "nanoGPT"; the nearest known is "nanogpt"; known: '
        "modded-nanogpt, nanogpt, huggingface, lightning, plain. A regular expression goes under a "
        "name of its own, such as evaluated"),
    ),
    "no value and no baseline": (
        'config = "base.toml"', 'config = "base.toml"\nnew_keys = true', None, None,
    ),
    "on_oom: no such key": (
        "[stage2]", '[on_oom]\nmicro_batch = "data.bach"\naccumulation = "run.epochs"\n[stage2]',
        "data.bach",
        ("on_oom.micro_batch: \"data.bach\" is no key of the trainer's configuration and no parameter "
        'of [space]; the nearest known is "data.batch"; name what holds the micro-batch'),
    ),
    "on_oom: not a whole number": (
        "[stage2]", '[on_oom]\nmicro_batch = "optim.method"\naccumulation = "x"\n[stage2]',
        "optim.method",
        ('on_oom.micro_batch: "optim.method" is a categorical parameter; only whole numbers halve'),
    ),
    "on_oom: frozen": (
        "[stage2]", '[on_oom]\nmicro_batch = "run.epochs"\naccumulation = "x"\n[stage2]',
        "run.epochs", 'on_oom.micro_batch: "run.epochs" is frozen; remove it from one of the two',
    ),
    "on_oom: the same key twice": (
        "[stage2]",
        '[on_oom]\nmicro_batch = "data.batch"\naccumulation = "data.batch"\n[stage2]',
        "[on_oom]", 'on_oom: "data.batch" twice; name two different keys',
    ),
    "checkpoints: unknown policy": (
        "[stage2]", '[checkpoints]\nkeep = "some"\n[stage2]', 'keep = "some"',
        "checkpoints.keep: got \"some\", expected 'top', 'all' or 'none'",
    ),
    "on_oom, misspelt": (
        "[stage2]", '[on_oom]\nmicro_bach = "a"\naccumulation = "b"\n[stage2]', "micro_bach",
        ('on_oom.micro_bach: unknown key; the nearest known is "micro_batch"; known here: '
        "micro_batch, accumulation"),
    ),
    "final with a stretch target": (
        "target = 5.0", 'target = 5.0\ngoal = "final"\nstretch = [4.0]', "stretch",
        ('objective.stretch: goal = "final" runs every trial to its end, so no target is stretched; '
        "remove it"),
    ),
    "a frozen table with a key in the space": (
        'frozen = ["run.epochs"]', 'frozen = ["optim"]', "frozen",
        ('frozen[1]: "optim" and so "optim.lr" is frozen, and [space] varies it; remove it from one '
        "of the two"),
    ),
    "a group changes a frozen key": (
        '{ "optim.lr" = 0.02, "optim.restart" = true }', '{ "run.epochs" = 8 }', "run.epochs",
        ('stage1.group[3].configs[1]."run.epochs": "run.epochs" is frozen: every trial has the base\'s '
        "value; remove it here, or thaw it"),
    ),
    "a base of a group changes a frozen key": (
        'bases = [{}, { "data.batch" = 64 }]', 'bases = [{ "run.epochs" = 8 }]', "run.epochs",
        ('stage1.group[1].bases[1]."run.epochs": "run.epochs" is frozen: every trial has the base\'s '
        "value; remove it here, or thaw it"),
    ),
}  # fmt: skip
SPECIAL = {
    "a cycle of groups",
    "no such config",
    "pattern that does not compile",
    "no value and no baseline",
}


def refused(file: Path, **scale: str) -> StudyFileError:
    with pytest.raises(StudyFileError) as caught:
        load(file, **scale)
    assert caught.value.exit_code == EXIT_STUDY
    return caught.value


@pytest.mark.parametrize("mistake", sorted(MISTAKES.keys() - SPECIAL))
def test_message_and_line(mistake, study_text, write_study):
    old, new, on_line, message = MISTAKES[mistake]
    assert old in study_text
    file = write_study(study_text.replace(old, new, 1))
    error = refused(file)
    place = str(file)
    if on_line is not None:
        assert error.line is not None
        assert on_line in file.read_text(encoding="utf-8").splitlines()[error.line - 1]
        place += f":{error.line}"
    assert str(error) == f"{place}: {message}"


def test_cycle_over_two_groups(study_text, write_study):
    old, new, _, _ = MISTAKES["a cycle of groups"]
    text = study_text.replace(old, new, 1).replace('group = "A"', 'group = "C"')
    assert str(refused(write_study(text))).endswith(
        "stage1.group[2].best_of: a cycle: B takes the best of C takes the best of B; a group can "
        "only take the best of one declared before it"
    )


def test_missing_base_config(study_text, write_study, tmp_path):
    error = refused(write_study(study_text.replace('"base.toml"', '"bose.toml"')))
    assert error.problem == f'"bose.toml": no such file beside the study ({tmp_path}/bose.toml)'
    assert error.key == "trainer.config"


@pytest.mark.parametrize(
    ("base", "problem"),
    [
        ("lr = = 1", '"base.toml" is not valid TOML: Invalid value (at line 1, column 6)'),
        ("", None),
    ],
)
def test_broken_base_config(study_text, write_study, base, problem):
    error = refused(write_study(study_text, base))
    if problem:
        assert error.problem == problem
    else:
        assert "is not a key of base.toml" in error.problem


def test_json_base_config(study_text, write_study, tmp_path):
    file = write_study(study_text.replace("base.toml", "base.json"))
    (tmp_path / "base.json").write_text("[1]", encoding="utf-8")
    assert refused(file).problem == '"base.json" holds [1], expected a table of sections'
    (tmp_path / "base.json").write_text("{", encoding="utf-8")
    assert refused(file).problem.startswith('"base.json" is not valid JSON: ')
    (tmp_path / "base.json").write_text(
        '{"optim": {"lr": 0.01, "momentum": 0.9, "method": "slow", "restart": false},'
        ' "data": {"batch": 32}, "run": {"epochs": 7}}',
        encoding="utf-8",
    )
    assert load(file).space.baseline()["data.batch"] == 32


def test_pattern_that_does_not_compile(study_text, write_study):
    old, new, _, _ = MISTAKES["pattern that does not compile"]
    error = refused(write_study(study_text.replace(old, new, 1)))
    assert error.key == "trainer.patterns.evaluated"
    assert error.problem.startswith("not a regular expression: ")


def test_parameter_without_any_value(study_text, write_study):
    text = study_text.replace('config = "base.toml"', 'config = "base.toml"\nnew_keys = true')
    base = "[optim]\nlr = 0.01\nmethod = 'slow'\nrestart = false\n[data]\nbatch = 32\n[run]\nepochs = 7"
    error = refused(write_study(text, base))
    assert (error.key, error.problem) == (
        "stage1.group[1]",
        (
            'entry 1 leaves "optim.momentum" without a value; give [space."optim.momentum"] a baseline, '
            "or set it in this group"
        ),
    )


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a = 1\nb = = 2\n", 2, "not valid TOML: invalid value at column 5"),
        ("a = 1\na = 2\n", 2, "not valid TOML: cannot overwrite a value at column 6"),
        ("[a\n", 1, None),
        ("a = [1, 2", None, None),
    ],
)
def test_toml_syntax(tmp_path, text, line, problem):
    file = tmp_path / "study.toml"
    file.write_text(text, encoding="utf-8")
    error = refused(file)
    assert error.line == line
    assert error.problem.startswith("not valid TOML: ")
    if problem:
        assert error.problem == problem


def test_unreadable_files(tmp_path):
    missing = tmp_path / "nowhere.toml"
    assert str(refused(missing)) == f"{missing}: no such file; expected a study in TOML"
    assert "no such file" in str(refused(tmp_path))
    file = tmp_path / "latin.toml"
    file.write_bytes(b'title = "\xe9"')
    assert str(refused(file)) == f"{file}: not UTF-8 text (byte 9); save it as UTF-8"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_file_without_permission(tmp_path):
    file = tmp_path / "study.toml"
    file.write_text("", encoding="utf-8")
    file.chmod(0)
    assert str(refused(file)) == f"{file}: cannot be read: Permission denied"


def test_errors_in_an_overlay_point_into_it(study_text, write_study):
    text = study_text + "\n[scale.small.limits]\nsteps = -1\n[scale.small.objective]\ntarget = 9\n"
    file = write_study(text)
    load(file)  # an overlay that is not asked for is not judged
    error = refused(file, scale="small")
    assert file.read_text(encoding="utf-8").splitlines()[error.line - 1] == "steps = -1"
    fixed = write_study(text.replace("steps = -1", "steps = 10"))
    error = refused(fixed, scale="small")  # 5.5 is declared above, but the overlay moved the target
    assert error.key == "objective.fallback[1]"
    assert "fallback" in fixed.read_text(encoding="utf-8").splitlines()[error.line - 1]


def test_unknown_scale(study_text, write_study):
    error = refused(write_study(study_text + "[scale.small]\n"), scale="tiny")
    assert error.problem == "no scale 'tiny' here; known scales: small; add [scale.tiny]"
    error = refused(write_study(study_text), scale="small")
    assert "known scales: none" in error.problem
    error = refused(write_study(study_text + "[scale]\nsmall = 3\n"), scale="small")
    assert error.problem == "expected tables such as [scale.small]"


WRONG = (True, -3, 1.5, float("inf"), "word", dt.date(2020, 1, 1), [], [{}])


def test_no_wrong_value_anywhere_escapes(study_text, write_study, tmp_path):
    """Every leaf replaced by every kind of value: a study or one of our errors, never a traceback."""
    import tomllib

    import tomli_w

    document = tomllib.loads(study_text)
    file = write_study(study_text)
    refusals: dict[tuple, StudyFileError] = {}
    for path in leaves(document):
        for wrong in WRONG:
            changed = tomllib.loads(study_text)
            put(changed, path, wrong)
            file.write_text(tomli_w.dumps(changed), encoding="utf-8")
            try:
                load(file)
            except StudyFileError as error:
                refusals[path, str(wrong)] = error
    assert len({path for path, _ in refusals}) > 60
    for (path, _), error in refusals.items():
        assert "another value" not in str(error)
        assert error.line is not None or path[0] in ("space", "stage1", "frozen")
    assert sys.exc_info() == (None, None, None)


def leaves(node, path=()):
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from leaves(value, (*path, key))


def put(node, path, value):
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
