"""`sweep doctor` on a file, a run folder, a trial, a study and this machine; live, each finding once."""

from __future__ import annotations

import json
import os

import pytest

from sweeper.cli import main
from sweeper.doctor.rounds import Rounds, rules_of
from sweeper.doctor.rules import built_in


def events(steps=60, lr=0.0, finished=False):
    """A run whose learning rate is 0 in the middle of its plan."""
    config = {"run": {"max_steps": 200, "clip_norm": 1.0}}
    bodies = [("run_started", 0, {"config": config})]
    numbers = {"lr": lr, "grad_norm": 0.5}
    bodies += [("step", n, {"loss": 3.0 - n / 100, **numbers}) for n in range(1, steps + 1)]
    if finished:
        bodies.append(("run_finished", steps, {"reason": "steps"}))
    return "".join(
        json.dumps({"v": 1, "seq": seq, "event": event, "step": step, "tokens": step * 10, **body})
        + "\n"
        for seq, (event, step, body) in enumerate(bodies)
    )


def attempt(home, trial, text, number=1, study="quickstart"):
    folder = home / "runs" / study / trial / f"attempt-{number}"
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_text(text)
    (folder / "spec.json").write_text("{}")
    return folder


def asked(capsys, *words):
    """The exit code and the JSON document."""
    code = main(["doctor", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def rules_in(run):
    return [finding["rule"] for finding in run["findings"]]


def test_a_file_and_a_run_folder(tmp_path, capsys):
    folder = attempt(tmp_path, "s1-A1", events()[:-30])  # torn: it is being written
    for place in (folder, folder / "events.jsonl"):
        code, document = asked(capsys, place)
        assert code == 0
        (run,) = document["runs"]
        assert rules_in(run) == ["lr_zero"]
        assert (run["step"], run["over"]) == (59, False)
        assert "data_repeated" in run["not_judged"]
    assert main(["doctor", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "serious  lr_zero: The learning rate is 0 at 30% of the planned steps" in said
    assert "-> Set schedule.floor above 0" in said


def test_a_study_a_trial_and_its_last_attempt(tmp_path, capsys):
    attempt(tmp_path, "s1-A1", events(), 1)
    attempt(tmp_path, "s1-A1", events(lr=1e-3, finished=True), 2)
    bad = attempt(tmp_path, "s1-A2", events(), 1)
    os.utime(bad / "spec.json", (1, 1))
    home = ("--home", tmp_path)
    code, document = asked(capsys, "quickstart", *home)
    assert code == 0
    assert [run["run"] for run in document["runs"]] == ["s1-A2", "s1-A1"]  # as they began
    assert [rules_in(run) for run in document["runs"]] == [["lr_zero"], []]
    assert "noise_hides_differences" in document["study_not_judged"]
    _, document = asked(capsys, "s1-A2", "--study", "quickstart", *home)
    assert [rules_in(run) for run in document["runs"]] == [["lr_zero"]]


def test_a_study_at_another_scale(tmp_path, capsys, monkeypatch):
    """The word names the study, not a trial of the default one, which has no such scale."""
    monkeypatch.setenv("SWEEP_STUDY", "quickstart")
    attempt(tmp_path, "s1-A1", events(), study="babylm-small")
    words = ("--scale", "small", "--home", tmp_path)
    code, document = asked(capsys, "babylm", *words)
    assert (code, document["about"]) == (0, "babylm-small")
    assert [rules_in(run) for run in document["runs"]] == [["lr_zero"]]
    code, document = asked(capsys, "s1-A1", "--study", "babylm", *words)
    assert (code, [run["run"] for run in document["runs"]]) == (0, ["s1-A1"])


def test_what_is_not_there_is_named(tmp_path, capsys):
    home = ("--home", tmp_path)
    code, document = asked(capsys, "s1-A9", "--study", "quickstart", *home)
    assert (code, "no trial 's1-A9' has a run folder" in document["error"]) == (2, True)
    code, document = asked(capsys, "quickstart", *home)
    assert (code, "no run folders in" in document["error"]) == (2, True)
    text = tmp_path / "text.jsonl"
    text.write_text("hello\nworld\n")
    code, document = asked(capsys, text)
    assert (code, "no line of it is an event" in document["error"]) == (2, True)


def test_rules_of_a_persons_own(tmp_path, capsys):
    file = tmp_path / "mine.toml"
    file.write_text(
        '[[rule]]\nname = "short"\nwhen = [{ signal = "progress", below = 0.5 }]\n'
        'meaning = "{progress:.0%}"\nadvice = "Wait."\n'
    )
    folder = attempt(tmp_path, "s1-A1", events(lr=1e-3))
    _, document = asked(capsys, folder, "--rules", file)
    (run,) = document["runs"]
    assert [(f["rule"], f["meaning"]) for f in run["findings"]] == [("short", "30%")]


def test_the_machine(tmp_path, capsys):
    code, document = asked(capsys, "--home", tmp_path / "new")
    assert code == 0
    checks = {check["check"]: check for check in document["checks"]}
    assert {"python", "torch", "home", "database", "devices"} <= set(checks)
    assert checks["database"]["text"].startswith("none yet")
    assert not (tmp_path / "new").exists()  # it looks and changes nothing


def test_a_running_trial_is_looked_at_again_and_each_finding_given_once(tmp_path):
    rounds = Rounds(built_in(), every_s=0)
    folder = attempt(tmp_path, "s1-A1", events(lr=1e-3))
    assert rounds.look("s1-A1", folder) == []
    (folder / "events.jsonl").write_text(events(steps=80))
    assert [finding.rule for finding in rounds.look("s1-A1", folder)] == ["lr_zero"]
    assert rounds.look("s1-A1", folder) == []
    assert rounds.look("s1-A2", tmp_path / "not yet") == []
    assert Rounds(built_in()).look("s1-A1", folder)
    slow = Rounds(built_in(), every_s=60)
    assert slow.look("s1-A1", tmp_path / "not yet") == []
    assert slow.look("s1-A1", folder) == []  # too soon


def test_a_studys_own_rules_stand_beside_its_file(tmp_path):
    assert rules_of(tmp_path) == built_in()
    (tmp_path / "doctor.toml").write_text("[[rule]]\n")
    with pytest.raises(Exception, match=r"doctor\.toml: rule 1: expected a table with a name"):
        rules_of(tmp_path)
