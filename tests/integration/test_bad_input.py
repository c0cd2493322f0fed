"""What users get wrong: a clear message, the right exit code, no traceback, nothing started."""

from __future__ import annotations

import os

import pytest

# (what is written instead of what, what the message must say besides file and line)
IN_THE_FILE = {
    "unknown key": (("trial_s =", "trail_s ="), ["limits.trail_s", "trial_s"]),
    "wrong type": (("steps = 400", 'steps = "many"'), ["limits.steps", '"many"', "whole number"]),
    "target that is no number": (("target = 2.0", 'target = "low"'), ["objective.target", "low"]),
    "target that is not finite": (("target = 2.0", "target = nan"), ["objective.target", "nan"]),
    "low above high": (("low = 0.001", "low = 0.5"), ["optim.lr", "0.5", "0.1"]),
    "missing group": (('group = "A"', 'group = "Z"'), ["best_of", "Z"]),
    "later group": (('group = "A"', 'group = "D"'), ["best_of", "comes later"]),
    "cycle": (('group = "A"', 'group = "C"'), ["a cycle", "C"]),
    "empty group": (("[16, 64, 256]", "[]"), ["stage1.group", "empty"]),
    "value outside its space": (("[16, 64, 256]", "[16, 512]"), ["512", "256"]),
    "value off its step": (("[16, 64, 256]", "[16, 65]"), ["65"]),
    "no TOML": (("[study]", "[study"), ["TOML"]),
    "unknown parameter": (('"optim.lr" = 0.03', '"optim.rl" = 0.03'), ["optim.rl", "optim.lr"]),
    "unknown scale": (('"log"\nlevels = 3\nbaseline = 0', '"lgo"\nbaseline = 0'), ["lgo", "log"]),
    "no configuration": (('config = "base.toml"', 'config = "bass.toml"'), ["bass.toml"]),
    "unfilled place": (('"--eval-every"', '"{lr}"'), ["{lr}", "optim.lr"]),
}  # fmt: skip
LATER_GROUP = """
[[stage1.group]]
name = "D"
vary = { "optim.lr" = [0.02] }
"""


@pytest.mark.parametrize("case", IN_THE_FILE)
def test_in_the_study_file(sweep_without_database, case):
    sweep = sweep_without_database
    study = sweep.write()
    study.write_text(study.read_text(encoding="utf-8") + LATER_GROUP, encoding="utf-8")
    (before, after), words = IN_THE_FILE[case]
    sweep.edit(study, before, after)
    done = sweep("run", str(study), exit=2)
    assert f"{study}:" in done.err
    for word in words:
        assert word in done.err


def test_a_study_that_is_not_there(sweep_without_database):
    done = sweep_without_database("run", "quickstrat", exit=2)
    assert "'quickstrat'" in done.err
    assert "'quickstart'" in done.err
    sweep_without_database.folder.joinpath("empty").mkdir()
    done = sweep_without_database("plan", "empty", exit=2)
    assert "study.toml" in done.err


def test_a_study_that_cannot_be_read(sweep_without_database):
    sweep = sweep_without_database
    study = sweep.write()
    study.write_bytes(b"\xff\xfe[study]")
    done = sweep("plan", str(study), exit=2)
    assert str(study) in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("stage1", "--slots", "0"), "--slots"),
        (("stage1", "--slots", "two"), "'two'"),
        (("stage1", "--target", "nan"), "'nan'"),
        (("stage1", "--max-hours", "-1"), "'-1'"),
        (("stage1", "--max-trials", "0"), "--max-trials"),
        (("stage1", "--executor", "cloud"), "cloud"),
        (("stage9",), "stage9"),
        (("plan", "--stage", "3"), "'3'"),
        (("plan", "--scale", "huge"), "huge"),
        (("export",), "--best"),
        (("show",), "TRIAL"),
        (("db",), "status"),
        (("run", "--max-trial", "3"), "--max-trial"),  # nothing is guessed from a part of a word
    ],
)
def test_on_the_command_line(sweep_without_database, words, said):
    sweep = sweep_without_database
    sweep.write()
    done = sweep(*words, "--json", exit=2, SWEEP_STUDY="trivial")
    assert said in done.err
    assert "Traceback" not in done.text
    document = done.json()
    assert document["exit"] == 2
    assert said in document["error"]


def test_a_trainer_that_is_not_there(sweep):
    study = sweep.write()
    sweep.edit(study, '"{python}"', '"no-such-trainer"')
    for verb in ("run", "check"):
        done = sweep(verb, str(study), exit=3)
        assert "no program 'no-such-trainer'" in done.err
        assert "trainer.command" in done.err
    assert sweep.attempts() == []


def test_a_script_that_is_not_there(sweep):
    """The interpreter starts and the script is missing: seen by the breaker, said with its words."""
    study = sweep.write()
    sweep.edit(study, "trivial_trainer.py", "no_such_script.py")
    done = sweep("run", str(study), "--json", exit=6)
    assert "the first 3 trials all failed" in done.err
    assert "no_such_script.py" in done.err
    assert done.json()["failed"] == 3


def test_a_working_folder_that_is_not_there(sweep):
    study = sweep.write()
    sweep.edit(study, 'config = "base.toml"', 'config = "base.toml"\ncwd = "nowhere"')
    done = sweep("run", str(study), exit=3)
    assert "nowhere" in done.err
    assert sweep.attempts() == []


def test_a_trainer_that_prints_garbage(sweep):
    study = sweep.write(trivial="--garbage")
    done = sweep("run", str(study), "--json", exit=6)
    document = done.json()
    assert document["failed"] == 3
    assert document["best"] is None
    assert "printed garbage" in done.err
    assert "SWEEP_EVENTS" in done.err
    shown = sweep("show", document["failures"][0]["id"], "--study", str(study)).out
    assert "garbage" in shown
    assert "crashed" in shown


@pytest.mark.long
def test_a_trainer_that_measures_something_else(sweep):
    study = sweep.write(trivial="--virtual-clock --no-metric")
    done = sweep("run", str(study), exit=6)
    assert "'val_loss'" in done.text
    assert "there is no evaluation" in done.text


@pytest.mark.long
def test_stage_2_before_stage_1(sweep):
    study = str(sweep.write())
    for words in (("stage2",), ("plan", "--stage", "2"), ("confirm",)):
        done = sweep(*words, study, exit=2)
        assert "stage1 has not been run here yet" in done.err
        assert "`sweep stage1`" in done.err
    sweep("stage1", study, "--max-trials", "1", exit=6)
    done = sweep("stage2", study, exit=2)
    assert "stage1 is not complete yet" in done.err


@pytest.mark.long
def test_looking_at_what_was_never_run(sweep):
    study = str(sweep.write())
    assert sweep("status", study, "--json").json()["stages"] == []
    for words in (("report", study), ("export", study, "--best")):
        assert "nothing has been run here yet" in sweep(*words, exit=2).err
    assert "no trial 's1-A1'" in sweep("show", "s1-A1", "--study", study, exit=2).err
    assert sweep("export", study, "--trials").out == ""


@pytest.mark.long
def test_a_study_that_changed(sweep):
    study = sweep.write()
    sweep("stage1", str(study), "--max-trials", "2", exit=6)
    before = len(sweep.attempts())
    sweep.edit(study, "steps = 400", "steps = 300")
    sweep.edit(study, "[0.001, 0.003, 0.01, 0.1]", "[0.001, 0.003, 0.01, 0.1, 0.05]")
    done = sweep("stage1", str(study), exit=2)
    assert "limits.steps: 400 -> 300" in done.err
    assert "stage1.group.C.vary.optim.lr" in done.err
    assert "--exploratory" in done.err
    assert "new name" in done.err
    assert len(sweep.attempts()) == before

    document = sweep("stage1", str(study), "--exploratory", "--json").json()
    assert document["reached"] == 10
    sweep("report", str(study))
    folder = sweep.home / "reports" / "trivial"
    for name in ("report.md", "report.html", "report.json"):
        assert "exploratory" in (folder / name).read_text(encoding="utf-8")
    done = sweep("stage2", str(study), exit=2)  # built on a stage that was frozen on something else
    assert "limits.steps: 400 -> 300" in done.err
    assert sweep("stage2", str(study), "--exploratory", "--json").json()["reached"] == 8


@pytest.mark.long
def test_a_study_that_says_exploratory_and_did_not_change(sweep):
    study = str(sweep.write())
    sweep("stage1", study, "--exploratory")
    sweep("report", study)
    assert "exploratory" not in (sweep.home / "reports/trivial/report.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.long
def test_a_change_that_cannot_stand_beside_what_was_run(sweep):
    study = sweep.write()
    sweep("stage1", str(study), "--max-trials", "1", exit=6)
    for before, after, said in (
        ('bases = [{ "optim.lr" = 0.003 }', 'bases = [{ "optim.lr" = 0.002 }', "s1-A1 ran as"),
        ("choices = [1.0, 2.0]", "choices = [1.0, 2.0, 4.0]", "model.tau_s.choices"),
        ('name = "C"', 'name = "CC"', "s1-C1 is not in the changed plan"),
    ):
        sweep.edit(study, before, after)
        done = sweep("stage1", str(study), "--exploratory", exit=2)
        assert said in done.err
        assert "new name" in done.err
        sweep.edit(study, after, before)
    # and what is no change at all
    sweep.edit(study, 'title = "Trivial"', 'title = "Better"')
    sweep.edit(study, "fallback = []", "fallback = [2.5]")
    sweep("stage1", str(study), "--max-trials", "1", exit=6)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_cannot_be_written(sweep_without_database):
    sweep = sweep_without_database
    sweep.folder.chmod(0o500)
    done = sweep("stage1", str(sweep.write()), exit=2)
    assert "--home" in done.err


@pytest.mark.long
def test_a_home_that_is_a_file(sweep):
    study = str(sweep.write())
    sweep.home.write_text("I am a file", encoding="utf-8")
    done = sweep("stage1", study, exit=3)
    assert str(sweep.home) in done.err


# ---------------------------------------------------------------------------- what the trainer says

REFUSING = """
import json, sys
configs = json.load(sys.stdin)
bad = [{"message": "lr x batch is above 1"}]
print(json.dumps([bad if c["optim"]["lr"] * c["data"]["batch"] > 1 else [] for c in configs]))
"""


def test_check_names_every_point_that_the_trainer_refuses(sweep):
    study = sweep.write()
    sweep.edit(study, 'config = "base.toml"', 'config = "base.toml"\nmodule = "refusing"')
    (study.parent / "refusing.py").write_text(REFUSING, encoding="utf-8")
    done = sweep("check", str(study), "--offline", exit=2)
    assert "refuses 4 of 12 configurations" in done.err
    assert "lr x batch is above 1" in done.err
    # C4 (0.1 x 64) twice: it is refused whichever level wins group A
    for trial in ("s1-A3", "s1-A4", "s1-C4"):
        assert trial in done.err
    assert "s1-A1" not in done.err
    assert sweep("check", str(study), "--offline", "--json", exit=2).json()["exit"] == 2


def test_check_sees_points_that_only_another_winner_makes(sweep):
    study = sweep.write()
    sweep.edit(study, 'config = "base.toml"', 'config = "base.toml"\nmodule = "refusing"')
    refuse = 'c["optim"]["lr"] == 0.01 and c["model"]["tau_s"] == 1.0'
    code = REFUSING.replace('c["optim"]["lr"] * c["data"]["batch"] > 1', refuse)
    (study.parent / "refusing.py").write_text(code, encoding="utf-8")
    done = sweep("check", str(study), "--offline", exit=2)  # the plan itself assumes tau_s = 2
    assert "refuses 1 of" in done.err
    assert "s1-C3" in done.err


@pytest.mark.parametrize("code", ["import nothing_like_it", "print('hello')", "print([1])"])
def test_check_with_a_module_that_gives_no_answer(sweep, code):
    study = sweep.write()
    sweep.edit(study, 'config = "base.toml"', 'config = "base.toml"\nmodule = "strange"')
    (study.parent / "strange.py").write_text(code, encoding="utf-8")
    done = sweep("check", str(study), "--offline", exit=3)
    assert "strange check --stdin" in done.err
    assert "trainer.module" in done.err
