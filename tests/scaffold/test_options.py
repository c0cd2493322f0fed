"""What a script's source, or its --help, says of its options; and what --param makes of them."""

from __future__ import annotations

import pytest

from sweeper.errors import StudyError
from sweeper.scaffold.options import Option, from_help, from_source
from sweeper.scaffold.parameter import read_parameter
from sweeper.space import Bool, Categorical, Float, Integer

ARGPARSE = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("-l", "--learning-rate", type=float, default=6e-4)
parser.add_argument("--optimizer", choices=["adamw", "sgd"], default="adamw")
parser.add_argument("--compile", action="store_true")
parser.add_argument("--max_steps", type=int, default=2 * 100)
parser.add_argument("--out", type=Path)
parser.add_argument("data")
"""
CONFIGURATOR = """
# -----
learning_rate = 6e-4 # max learning rate
max_iters = 600000
bias = False
out_dir = 'out'
device = 'cuda' if True else 'cpu'
_hidden = 3
config_keys = [k for k,v in globals().items()]
exec(open('configurator.py').read()) # overrides from command line or config file
"""
HELP = """\
usage: train.py [-h] [--lr LR] [--batch_size BATCH_SIZE]
options:
  -h, --help            show this help message and exit
  --lr LR, --learning-rate LR
                        the rate (default: 0.001)
  -b BATCH_SIZE, --batch_size BATCH_SIZE
                        sequences (default: 32)
  --optimizer {adamw,sgd}
  --bf16                [default: False]
"""


def test_argparse_calls():
    options = from_source(ARGPARSE)
    assert options.found == (
        Option("learning-rate", "float", 6e-4),
        Option("optimizer", "str", "adamw", ("adamw", "sgd")),
        Option("compile", "flag"),
        Option("max_steps", "int"),
        Option("out", "unknown"),
    )
    assert options.get("learning_rate") is options.found[0]
    assert options.steps() is None
    assert list(options.suggestions()) == ["learning-rate=6e-05..0.006:log"]


def test_globals_of_a_configurator():
    options = from_source(CONFIGURATOR)
    assert [(o.name, o.default) for o in options.found] == [
        ("learning_rate", 6e-4),
        ("max_iters", 600000),
        ("bias", False),
        ("out_dir", "out"),
    ]
    assert (options.prefix, options.steps()) == ("--", 600000)


def test_settings_without_dashes():
    text = "import sys\nlr = 0.1\nfor word in sys.argv[1:]:\n    key, value = word.split('=')\n"
    assert from_source(text).prefix == ""


def test_globals_of_a_script_without_overrides_are_no_options():
    assert from_source("lr = 0.1\nimport sys\nprint(sys.argv)\n").found == ()


def test_what_help_prints():
    options = from_help(HELP.splitlines())
    assert options.found == (
        Option("lr", "float", 0.001),
        Option("batch_size", "int", 32),
        Option("optimizer", "unknown", None, ("adamw", "sgd")),
        Option("bf16", "flag", "False"),
    )


BY_NAME = {
    option.name: option
    for option in (
        Option("lr", "float", 1e-3),
        Option("batch", "int", 32),
        Option("bias", "bool", default=False, literal=True),
        Option("compile", "flag"),
    )
}


@pytest.mark.parametrize(
    ("text", "parameter"),
    [
        ("lr=1e-4..1e-2:log", Float("lr", 1e-4, 1e-2, "log", baseline=1e-3)),
        ("lr=1..10", Float("lr", 1.0, 10.0, baseline=5.5)),  # its own does not fit
        ("--lr=1e-4..1e-2@2e-3", Float("lr", 1e-4, 1e-2, baseline=2e-3)),
        ("batch=8..64:log:step=8", Integer("batch", 8, 64, 8, "log", baseline=32)),
        ("batch=8..16", Integer("batch", 8, 16, baseline=12)),
        ("x=-1..1", Integer("x", -1, 1, baseline=0)),
        ("optimizer=adamw,sgd@sgd", Categorical("optimizer", ("adamw", "sgd"), "sgd")),
        ("flag=true,false", Bool("flag", baseline=False)),
        ("bias=True,False", Categorical("bias", ("True", "False"), "False")),
        ("width=64,128,256", Categorical("width", (64, 128, 256), 64)),
    ],
)
def test_parameters(text, parameter):
    assert read_parameter(text, BY_NAME).parameter == parameter


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr", "expected NAME=LOW..HIGH"),
        ("=1..2", "expected NAME"),
        ("lr=", "expected NAME"),
        ("lr=2..1", "2 is not below 1"),
        ("lr=1..1", "not below"),
        ("lr=0..1:log", "above 0"),
        ("lr=a..b", "'a' is not a number"),
        ("lr=1..inf", "finite"),
        ("lr=1..2:lag", "neither log, linear nor step=N"),
        ("lr=0.1..0.2:step=2", "whole numbers"),
        ("lr=0.1..0.2@3", "the baseline: got 3"),
        ("lr=adamw", "at least two"),
        ("lr=1,1", "different"),
        ("compile=true,false", "takes no value"),
        ("l{r}=1..2", "expected NAME"),
    ],
)
def test_what_is_no_parameter(text, words):
    with pytest.raises(StudyError, match=r"^--param '") as raised:
        read_parameter(text, BY_NAME)
    assert words in str(raised.value)


def test_levels_of_stage_1():
    assert read_parameter("lr=1e-4..1e-2:log@3e-3", {}).levels() == [1e-4, 1e-3, 3e-3, 1e-2]
    assert read_parameter("batch=8..64:log", BY_NAME).levels() == [8, 23, 32, 64]
    assert read_parameter("o=b,a", {}).levels() == ["b", "a"]
