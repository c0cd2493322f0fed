"""Shows that a configuration is parsed once, strictly, and that every mistake is named."""

import dataclasses
import json
import subprocess
import sys

import pytest

from trainer.config import (
    Config,
    as_dict,
    examine,
    fill_from_environment,
    load,
    parse,
    schema,
)
from trainer.errors import ConfigError


def trainer(*arguments, stdin=None, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "trainer", *map(str, arguments)],
        input=stdin,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def nested(key, value):
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def test_defaults_are_a_valid_configuration_and_survive_a_round_trip():
    plain = json.loads(json.dumps(as_dict(Config())))
    assert parse(plain, "round trip") == Config()
    assert parse({}, "empty") == Config()


def test_a_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().run.seed = 1


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("optim.muon.lr", "fast", "a number above 0"),
        ("optim.muon.lr", 0, "a number above 0"),
        ("optim.muon.lr", float("nan"), "a number above 0"),
        ("optim.muon.momentum", 1.0, "a number at least 0 and below 1"),
        ("optim.muon.orthogonalizer", "cubic", "one of 'newton_schulz', 'polar_express'"),
        ("optim.muon.variance_reduction", 1, "true or false"),
        ("model.project_every", 0, "a whole number at least 1"),
        ("model.layers", True, "a whole number at least 1"),
        ("model.layers", 2.5, "a whole number at least 1"),
        ("data.batch_size", -8, "a whole number at least 1"),
        (
            "data.kind",
            "fineweb",
            "one of 'stdlib', 'topics', 'text', 'bytes', 'characters', 'names', 'shards', 'titles'",
        ),
        ("run.target", float("inf"), "a number above 0"),
        ("run.fallback_targets", 2.0, "a list of numbers above 0"),
        ("run.fallback_targets", [2.0, "x"], "a list of numbers above 0"),
        ("run.seed", None, "a whole number at least 0"),
        ("optim.muon", 3, "a table of keys"),
        ("model.heads", 5, "a divisor of model.width = 96"),
        ("model.heads", 96, "a divisor of model.width = 96 into even parts"),
        ("data.path", "a.txt", 'no value unless data.kind is "text" or "bytes" or "characters"'),
        ("data.train", "a.bin", 'no value unless data.kind is "shards"'),
        ("data.micro_batch", 3, "a divisor of data.batch_size = 16"),
        ("data.micro_batch", -1, "a whole number at least 0"),
        ("stop.patience_tokens", 1000, "0, or at least 51200 (stop.smoothing_steps = 50 steps)"),
        ("schedule.kind", "zigzag", "one of 'constant', 'linear', 'cosine'"),
        ("run.precision", "fp8", "one of 'fp32', 'bf16', 'fp16'"),
        ("data.kind", "text", "a file"),
        ("eval.probe_tokens", 100, "a multiple of data.context = 64"),
        ("eval.confirmation_tokens", 64, "at least eval.probe_tokens = "),
        ("eval.every_tokens", 6, "a multiple of 4"),
        ("run.fallback_targets", [2.0], "none without a run.target"),
    ],
)
def test_a_bad_value_names_key_value_and_expectation(key, value, expected):
    with pytest.raises(ConfigError) as error:
        parse(nested(key, value), "study/base.toml")
    message = str(error.value)
    named = "data.path = null" if (key, value) == ("data.kind", "text") else f"{key} = "
    assert message.startswith(f"study/base.toml: {named}")
    assert expected in message


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("optim.muon.learning_rate", None),
        ("optim.muon.ortogonalizer", "optim.muon.orthogonalizer"),
        ("optim.lr", "optim.sgd.lr"),
        ("project_every", "model.project_every"),
        ("model.batch_size", "data.batch_size"),
        ("zzz", None),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(key, nearest):
    _, (problem,) = examine(nested(key, 1))
    assert problem.key == key
    if nearest:
        assert problem.nearest == nearest
        assert nearest in str(problem)


def test_every_problem_is_named_at_once():
    _, problems = examine({"optim": {"muon": {"lr": -1, "x": 1}}, "data": {"context": "long"}})
    assert [problem.key for problem in problems] == [
        "optim.muon.lr",
        "optim.muon.x",
        "data.context",
    ]


def test_cautious_decay_of_zero_is_refused():
    muon = {"cautious_weight_decay": True, "cautious_lambda": 0.0}
    _, (problem,) = examine({"optim": {"muon": muon}})
    assert problem.key == "optim.muon.cautious_weight_decay"
    assert "cautious_lambda above 0" in problem.expected
    assert not examine({"optim": {"muon": {**muon, "cautious_lambda": 0.1}}})[1]


def test_fallbacks_must_be_easier_than_the_target():
    run = {"target": 2.0, "fallback_targets": [2.5, 1.9]}
    _, (problem,) = examine({"run": run})
    assert problem.expected == "values above run.target = 2"


def test_the_environment_fills_only_what_the_file_leaves_out():
    environment = {"SWEEP_SEED": "7", "SWEEP_TARGET": "2.5", "SWEEP_MAX_STEPS": "9"}
    run = parse(fill_from_environment({"run": {"seed": 1}}, environment), "test").run
    assert (run.seed, run.target, run.max_steps) == (1, 2.5, 9)
    assert parse(fill_from_environment({}, {}), "test") == Config()


def test_a_bad_environment_variable_is_named():
    with pytest.raises(ConfigError, match=r"SWEEP_TARGET = 'low'.*a number.*run\.target"):
        fill_from_environment({}, {"SWEEP_TARGET": "low"})


def test_schema_lists_every_key_with_type_default_and_bounds():
    keys = schema()
    assert keys["optim.muon.lr"] == {
        "type": "float",
        "optional": False,
        "default": 0.01,
        "low": None,
        "above": 0.0,
        "high": None,
        "below": None,
        "choices": None,
        "description": "learning rate, in spectral norm per step",
    }
    assert keys["optim.muon.orthogonalizer"]["choices"] == ["newton_schulz", "polar_express"]
    assert keys["run.target"]["optional"] is True
    assert keys["run.fallback_targets"]["type"] == "list[float]"
    assert {
        "model.project_every",
        "optim.muon.momentum",
        "data.batch_size",
        "run.seed",
        "run.max_steps",
    } <= set(keys)
    for key, entry in keys.items():
        assert not examine(nested(key, entry["default"]))[1], key


def test_files_that_cannot_be_read_or_parsed(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.toml: the configuration cannot be read"):
        load(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("[run\nseed = 1")
    with pytest.raises(ConfigError, match=r"bad\.toml: not valid TOML: .*line 1"):
        load(tmp_path / "bad.toml")
    (tmp_path / "bad.json").write_text('{"run": }')
    with pytest.raises(ConfigError, match=r"bad\.json: not valid JSON: .*column"):
        load(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"list\.json: expected a table of sections, got \[1\]"):
        load(tmp_path / "list.json")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary\.toml: .*not UTF-8"):
        load(tmp_path / "binary.toml")


def test_check_names_every_bad_file_and_exits_with_2(tmp_path):
    good, bad = tmp_path / "good.toml", tmp_path / "bad.json"
    good.write_text("[run]\nseed = 3\n")
    bad.write_text('{"optim": {"muon": {"lrr": 0.1}}}')
    result = trainer("check", "--config", good, bad)
    assert result.returncode == 2
    assert result.stdout == f"{good}: ok\n"
    assert result.stderr == (
        f"{bad}: optim.muon.lrr = 0.1: expected a known key; the nearest known key is "
        "optim.muon.lr\n"
    )
    assert trainer("check", "--config", good).returncode == 0


def test_check_of_many_on_standard_input():
    configs = [{}, {"model": {"layers": 0}}, {"optim": {"muon": {"lr": 0.1}}}, 5]
    result = trainer("check", "--stdin", stdin=json.dumps(configs))
    assert result.returncode == 2
    answers = json.loads(result.stdout)
    assert [len(answer) for answer in answers] == [0, 1, 0, 1]
    assert answers[1] == [
        {
            "key": "model.layers",
            "value": 0,
            "expected": "a whole number at least 1",
            "nearest": None,
            "message": "model.layers = 0: expected a whole number at least 1",
        }
    ]
    assert trainer("check", "--stdin", stdin="[{}]").returncode == 0


@pytest.mark.parametrize("text", ["", "{}", "[nonsense"])
def test_check_of_something_else_on_standard_input(text):
    result = trainer("check", "--stdin", stdin=text)
    assert result.returncode == 2
    assert "standard input" in result.stderr
    assert "Traceback" not in result.stderr


def test_checking_does_not_import_torch():
    code = (
        "import sys, trainer.__main__ as m; m.main(['schema']); "
        "sys.exit(any(n in sys.modules for n in ('torch', 'numpy')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0
    assert "optim.muon.lr" in json.loads(result.stdout)["keys"]


def test_an_unknown_verb_is_refused():
    assert trainer("fly").returncode == 2
