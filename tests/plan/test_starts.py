"""Mistakes in [start], [phase] and start_from, each with one message; and what a right file becomes."""

import pytest

from sweeper import starts
from sweeper.configuration import resolve_config
from sweeper.design.groups import plan_stage1
from sweeper.errors import StudyFileError
from sweeper.study_file import load

STUDY = """
[study]
name = "starts"
[objective]
target = 2.0
[trainer]
command = ["train", "--config", "{config}"]
config = "base.toml"
[limits]
steps = 100
trial_s = 60
[phase.one]
steps = 10
set = { lr = 0.02 }
[start.resumed]
phase = "one"
arguments = ["--resume", "{checkpoint}"]
[start.fresh]
[space.start_from]
type = "categorical"
choices = ["resumed", "fresh"]
baseline = "fresh"
[space.lr]
type = "float"
low = 0.001
high = 0.1
baseline = 0.01
[[stage1.group]]
name = "A"
vary = { start_from = ["resumed", "fresh"] }
"""

MISTAKES = [
    (
        'phase = "one"',
        'phase = "on"',
        "start.resumed.phase: there is no [phase.on]; the nearest known",
    ),
    (
        'arguments = ["--resume", "{checkpoint}"]',
        'arguments = ["--resume"]',
        'start.resumed.arguments: got ["--resume"], expected arguments with {checkpoint} in one',
    ),
    (
        "[start.fresh]",
        '[start.fresh]\narguments = ["--resume", "{checkpoint}"]',
        "expected a phase or a checkpoint, for {checkpoint} to stand for",
    ),
    (
        'phase = "one"',
        'phase = "one"\ncheckpoint = "a.pt"',
        "start.resumed: got phase and checkpoint, expected at most one of both",
    ),
    ("[start.fresh]", '[start.fresh]\npreview = ["--after", "{phase}"]', "and there is no phase"),
    ('"resumed", "fresh"]\nbaseline', '"resume", "fresh"]\nbaseline', "there is no [start.resume]"),
    ('baseline = "fresh"\n', "", "start_from: expected a baseline and no `when`"),
    ("set = { lr = 0.02 }", "set = { lr = 2.0 }", "phase.one.set.lr: "),
    (
        "set = { lr = 0.02 }",
        "set = { rl = 0.02 }",
        'phase.one.set.rl: "rl" is not a key of base.toml',
    ),
    ("steps = 10\n", "steps = 0\n", "phase.one.steps: got 0, expected a number above 0"),
    ("[start.fresh]", "[start.fresh]\nstesp = 5", 'unknown key; the nearest known is "steps"'),
]


def study(folder, text=STUDY):
    (folder / "study.toml").write_text(text)
    (folder / "base.toml").write_text("lr = 0.01\n")
    return load(folder / "study.toml")


@pytest.mark.parametrize(("before", "after", "says"), MISTAKES)
def test_a_mistake_names_its_place_and_what_to_do(tmp_path, before, after, says):
    assert STUDY.count(before) == 1
    with pytest.raises(StudyFileError) as caught:
        study(tmp_path, STUDY.replace(before, after))
    assert says in str(caught.value)


def test_start_from_without_starts_and_starts_without_it_are_refused(tmp_path):
    without = STUDY.replace("[start.fresh]\n", "").replace(
        '[start.resumed]\nphase = "one"\narguments = ["--resume", "{checkpoint}"]\n', ""
    )
    with pytest.raises(StudyFileError, match=r"there is no \[start\.NAME\] to choose"):
        study(tmp_path, without)
    kept, _, rest = STUDY.partition("[space.start_from]")
    rest = rest[rest.index("[space.lr]") :].replace(
        'start_from = ["resumed", "fresh"]', "lr = [0.02]"
    )
    with pytest.raises(
        StudyFileError, match=r"nothing chooses among resumed, fresh; add \[space\."
    ):
        study(tmp_path, kept + rest)


def test_how_a_trial_starts_is_a_level_like_others_and_no_key_of_the_trainer(tmp_path):
    found = study(tmp_path)
    trials = plan_stage1(found, {}).trials
    assert [t.point["start_from"] for t in trials] == ["resumed", "fresh"]
    config = resolve_config(found, trials[0].point, seed=1, target=2.0, fallback=(), max_steps=100)
    assert "start_from" not in config
    (phase,) = starts.phase_trials(found, trials)
    assert (phase.id, phase.stage, phase.seed) == ("p-one-1", "prepare", 1)
    assert dict(phase.point) == {"lr": 0.02}
