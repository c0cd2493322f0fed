"""How a sweep can end, with the exit code and the words of each: targets, failures, budgets, disks."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess

import pytest

# A trainer that fails for good with the learning rates given in FAILS, and else does its work.
FAILING = """
import os, runpy, sys, tomllib
with open(sys.argv[sys.argv.index("--config") + 1], "rb") as file:
    config = tomllib.load(file)
if str(config["optim"]["lr"]) in os.environ["FAILS"].split():
    sys.exit("this learning rate makes me sad")
runpy.run_path({trainer!r}, run_name="__main__")
"""


@pytest.fixture
def write(sweep):
    """Writes the study of two groups; `fails` are the learning rates that its trainer refuses."""

    def written(fails=None, **values):
        study = sweep.write(few=True, **values)
        text = study.read_text(encoding="utf-8")
        if fails is not None:
            trainer = text.partition('"{python}", "')[2].partition('"')[0]
            script = study.parent / "failing.py"
            script.write_text(FAILING.format(trainer=trainer), encoding="utf-8")
            text = text.replace(trainer, str(script))
            text = text.replace("[trainer.env]", f'[trainer.env]\nFAILS = "{fails}"')
        study.write_text(text, encoding="utf-8")
        return study

    return written


def test_nobody_reaches_the_target(sweep, write):
    study = str(write(target=0.5, steps=20))
    done = sweep("run", study, "--json", exit=4)
    document = done.json()
    assert document["stage"] == "stage1"
    assert document["best"] is None
    assert document["reached"] == 0
    assert document["censored"] == 5
    assert document["closest"]["best_loss"] > 0.5
    report = (sweep.home / "reports" / "trivial" / "report.md").read_text(encoding="utf-8")
    assert "0.5" in report
    refused = sweep("export", study, "--best", exit=4)
    assert "nothing reached 0.5" in refused.err
    assert refused.out == ""
    assert sweep("run", study, "--json", exit=4).json() == document  # nothing is run again


@pytest.mark.long
def test_a_fallback_is_reached(sweep, write):
    study = str(write(target=0.5, fallback="[1.5, 2.5]", steps=60))
    first = sweep("stage1", study, "--json").json()
    assert first["target"] == 0.5
    assert first["effective_target"] == 1.5
    document = sweep("run", study, "--json").json()
    assert document["stage"] == "confirm"
    assert document["effective_target"] == 1.5
    assert document["best"]["point"]["optim.lr"] == 0.01
    status = sweep("status", study, "--json").json()
    assert [s["effective_target"] for s in status["stages"]] == [1.5, 1.5, 1.5]
    assert status["incumbent"]["time_to_target_s"] > 1
    found = sweep("export", study, "--best").out
    assert found.startswith("# ")  # the verdict stands above what it chose
    assert "\n\n[optim]\nlr = 0.01\n" in found


@pytest.mark.long
def test_some_fail_for_good(sweep, write):
    study = str(write(fails="0.03"))
    done = sweep("run", study, "--json", exit=1)
    document = done.json()
    assert document["exit"] == 1
    assert document["stage"] == "confirm"
    assert document["best"]["point"]["optim.lr"] == 0.01
    facts = sweep.facts(study)
    failed = [f for f in facts if f["outcome"] == "failed"]
    assert failed
    assert {f["point"]["optim.lr"] for f in failed} == {0.03}
    assert {f["reason"] for f in failed} == {"crashed"}
    assert all("makes me sad" in f["message"] for f in failed)
    before = sweep.attempts()
    assert sweep("run", study, exit=None).code in (0, 1)
    assert sweep.attempts() == before


@pytest.mark.long
def test_what_failed_is_run_again_when_asked(sweep, write):
    study = write(fails="0.03")
    first = sweep("stage1", str(study), "--json", exit=1).json()
    assert first["failed"] == 1
    assert [f["reason"] for f in first["failures"]] == ["crashed"]
    sweep.edit(study, 'FAILS = "0.03"', 'FAILS = ""')
    refused = sweep("retry", str(study), "--failed", exit=2)
    assert "trainer.env.FAILS" in refused.err
    sweep.edit(study, 'FAILS = ""', 'FAILS = "0.03"')
    (study.parent / "failing.py").write_text(
        (study.parent / "failing.py").read_text(encoding="utf-8").replace("sys.exit(", "print("),
        encoding="utf-8",
    )
    document = sweep("retry", str(study), "--failed", "--json").json()
    assert document["failed"] == 0
    assert document["reached"] == 5
    assert len(sweep.attempts()) == 6


@pytest.mark.long
def test_nothing_finished_in_a_group_that_another_needs(sweep, write):
    study = write(fails="0.01 0.03")
    done = sweep("run", str(study), "--json", exit=1)
    assert "best_of group A: nothing finished, all 2 trials failed" in done.err
    assert "`sweep retry --failed`" in done.err
    assert done.json()["exit"] == 1
    stage = sweep("status", str(study), "--json").json()["stages"][0]
    assert stage["failed"] == 2
    assert stage["reached"] == 2  # group B does not care
    assert "stage1 is not complete" in sweep("stage2", str(study), exit=2).err
    (study.parent / "failing.py").write_text(
        (study.parent / "failing.py").read_text(encoding="utf-8").replace("sys.exit(", "print("),
        encoding="utf-8",
    )
    document = sweep("retry", str(study), "--failed", "--json").json()
    assert document["reached"] == 5
    assert document["exit"] == 0


@pytest.mark.long
def test_a_config_that_wins_may_leave_a_parameter_alone(sweep, write):
    study = write()
    sweep.edit(
        study,
        'vary = { "optim.lr" = [0.01, 0.03] }',
        'configs = [{ "optim.lr" = 0.1 }, { "model.tau_s" = 1.0 }]',
    )
    document = sweep("stage1", str(study), "--json").json()
    assert document["best"]["point"]["model.tau_s"] == 1.0
    facts = {f["id"]: f for f in sweep.facts(study)}
    assert facts["s1-C1"]["point"] == {"optim.lr": 0.003, "data.batch": 32, "model.tau_s": 2.0}


@pytest.mark.long
def test_hours_are_used_up(sweep, write):
    study = str(write(trivial="", tau_s=0.5, step_s=0.02))
    done = sweep("stage1", study, "--max-hours", "0.0002", "--json", exit=6)  # 0.7 s
    assert "--max-hours is used up" in done.err
    document = sweep("stage1", study, "--json").json()
    assert document["reached"] + document["censored"] == 5
    assert {f["reason"] for f in sweep.facts(study)} <= {"target", "cap", "budget"}
    counted = [f["id"] for f in sweep.facts(study) if f["reason"] in ("target", "cap")]
    assert len(counted) == len(set(counted)) == 5


# ------------------------------------------------------------------------------------------- disks


def mount(folder, size):
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_the_disk_is_full(sweep, write):
    study = str(write())
    runs = sweep.home / "runs"
    runs.mkdir(parents=True)
    mount(runs, "256k")
    try:
        filler = runs / "filler"
        free = shutil.disk_usage(runs).free
        filler.write_bytes(b"x" * (free - 24 * 1024))  # room for a part of a trial
        done = sweep("stage1", study, "--json", exit=3)
        assert "the disk is full" in done.err
        assert str(runs) in done.err
        assert done.json()["exit"] == 3
        before = {f["id"] for f in sweep.facts(study) if f["outcome"] == "reached"}
        sweep("status", study)

        subprocess.run(["mount", "-o", "remount,size=64m", runs], check=True)
        filler.unlink()
        document = sweep("stage1", study, "--json").json()
        assert document["reached"] == 5
        counted = [f["id"] for f in sweep.facts(study) if f["outcome"] == "reached"]
        assert sorted(counted) == sorted(set(counted))
        assert set(counted) >= before
    finally:
        subprocess.run(["umount", "-l", runs], check=True)


@pytest.mark.long
def test_a_run_folder_that_cannot_be_made(sweep, write):
    study = str(write())
    sweep.home.mkdir()
    (sweep.home / "runs").write_text("in the way", encoding="utf-8")
    done = sweep("stage1", study, exit=3)
    assert str(sweep.home / "runs") in done.err
    (sweep.home / "runs").unlink()
    assert sweep("stage1", study, "--json").json()["reached"] == 5


def test_a_near_miss_is_told_exported_and_no_crossing_when_it_is_played_again(sweep):
    """The probe is at the target at step 6; the larger slice is not, and training goes on."""
    study = str(sweep.write(few=True, trivial="--virtual-clock --near-miss-at 6"))
    sweep("stage1", study)
    shown = sweep("show", "s1-A1", "--study", study)
    assert "near miss of target 2 at step 6: 2 on the probe, but 2.1 on the larger" in shown.out
    (attempt,) = sweep("show", "s1-A1", "--study", study, "--json").json()["attempts"]
    assert attempt["near_misses"] == [[pytest.approx(0.6), 6, 2.0, 2.1]]

    lines, table = sweep.folder / "trials.jsonl", sweep.folder / "trials.csv"
    sweep("export", study, "--trials", "--out", str(lines))
    sweep("export", study, "--trials", "--format", "csv", "--out", str(table))
    facts = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("curve", "confirmations"):
        assert [json.loads(row[name]) for row in rows] == [fact[name] for fact in facts]
    assert all(fact["confirmations"] == [[6, 2.1]] for fact in facts)

    played = sweep("replay", str(lines), study, "--json").json()["stages"]["stage1"]
    train_s = sum(fact["phases"]["train"] for fact in facts)
    assert played[0]["rules"] == "nothing"
    assert played[0]["train_s"] == pytest.approx(train_s)
    refused = sweep("replay", str(table), study, exit=2)  # a table is for other programs
    assert "line 1: " in refused.err
    assert "`sweep export --trials --format jsonl`" in refused.err
