"""The built-in studies are what their documents say, entry by entry, and every point can run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sweeper import catalog
from sweeper.configuration import resolve_config
from sweeper.design.groups import complete, plan_stage1
from sweeper.design.refine import plan_stage2
from sweeper.errors import StudyError
from sweeper.study_file import load

ROOT = Path(__file__).resolve().parents[2]
METHOD, LR, LAZY = "optim.muon.orthogonalizer", "optim.muon.lr", "model.project_every"
BATCH, MOMENTUM = "data.batch_size", "optim.muon.momentum"
VR, CWD = "optim.muon.variance_reduction", "optim.muon.cautious_weight_decay"
NS, PE = "newton_schulz", "polar_express"
WINNERS = {None: {}, NS: {"A": {METHOD: NS}}, PE: {"A": {METHOD: PE}}}

# lr, lazy, batch, momentum, method, VR, CWD; "?" is the best method of A
NGPT = {
    "A": [
        (lr, lazy, batch, momentum, method, both, both)
        for lr, lazy, batch, momentum, both in [
            (0.003, 7, 32, 0.95, False),
            (0.01, 10, 32, 0.95, False),
            (0.003, 7, 32, 0.95, True),
            (0.01, 10, 64, 0.90, False),
        ]
        for method in (NS, PE)
    ],
    "B": [
        (0.003, 7, 32, 0.95, NS, vr, cwd)
        for vr, cwd in [(False, False), (True, False), (False, True), (True, True)]
    ],
    "C": [(0.003, lazy, 32, 0.95, "?", False, False) for lazy in (3, 5, 7, 10, 15, 20)],
    "D": [(lr, 7, 32, 0.95, "?", False, False) for lr in (0.0005, 0.001, 0.003, 0.005, 0.01, 0.02)],
    "E": [
        (lr, 7, batch, 0.95, NS, False, False)
        for batch, lr in [(16, 0.0015), (32, 0.003), (64, 0.006), (128, 0.012)]
    ],
    "F": [(0.003, 7, 32, m, NS, False, False) for m in (0.85, 0.90, 0.95, 0.98)],
    "G": [
        (0.01, 10, 64, 0.95, NS, False, False),
        (0.01, 7, 64, 0.90, NS, False, False),
        (0.01, 7, 32, 0.95, NS, True, True),
        (0.003, 5, 32, 0.95, PE, True, True),
        (0.008, 8, 48, 0.94, NS, False, False),
        (0.012, 12, 64, 0.92, NS, False, False),
        (0.005, 7, 32, 0.96, NS, True, False),
        (0.005, 7, 32, 0.96, NS, False, True),
        (0.008, 10, 64, 0.95, PE, False, False),
        (0.015, 15, 64, 0.90, NS, False, False),
        (0.003, 3, 32, 0.97, NS, True, True),
        (0.007, 7, 48, 0.95, NS, True, True),
        (0.01, 10, 48, 0.93, NS, False, True),
        (0.006, 6, 40, 0.95, NS, True, False),
        (0.009, 9, 56, 0.94, NS, False, False),
        (0.004, 8, 32, 0.96, PE, True, True),
    ],
}


@pytest.mark.parametrize("best", WINNERS)
def test_ngpt_plan(ngpt, best):
    plan = plan_stage1(ngpt, WINNERS[best])
    assert (plan.entries, plan.distinct, len(plan.trials)) == (48, 42, 48)
    assert plan.depends_on == {"C": "A", "D": "A"}
    assert plan.open == ({METHOD: NS} if best is None else {})
    assert [t.id for t in plan.trials if t.open] == [
        f"s1-{g}{i}" for g in "CD" for i in range(1, 7) if best is None
    ]
    rows = [(f"s1-{g}{i}", row) for g, rows in NGPT.items() for i, row in enumerate(rows, 1)]
    assert len(rows) == 48
    for (trial_id, row), trial in zip(rows, plan.trials, strict=True):
        assert trial.id == trial_id
        names = (LR, LAZY, BATCH, MOMENTUM, METHOD, VR, CWD)
        want = dict(zip(names, row, strict=True))
        if want[METHOD] == "?":
            want[METHOD] = best or NS
        assert dict(trial.point) == pytest.approx(want)


@pytest.mark.parametrize("best", [NS, PE])
def test_ngpt_duplicates(ngpt, best):
    plan = plan_stage1(ngpt, WINNERS[best])
    again = {t.id: t.replicate_of for t in plan.trials if t.replicate_of}
    of_c_and_d = "s1-A1" if best == NS else "s1-A2"
    assert again == {
        "s1-B1": "s1-A1", "s1-B4": "s1-A5", "s1-C3": of_c_and_d, "s1-D3": of_c_and_d,
        "s1-E2": "s1-A1", "s1-F3": "s1-A1",
    }  # fmt: skip
    assert len({(t.point, t.seed) for t in plan.trials}) == 48


def test_ngpt_is_the_study_that_was_described(ngpt):
    assert ngpt.objective.target == 5.0
    assert ngpt.objective.fallback == (5.5, 6.0)
    assert ngpt.objective.stretch == (4.8,)
    assert (ngpt.limits.steps, ngpt.limits.trial_s) == (5000, 600)
    assert (ngpt.stage2.runs, ngpt.stage2.from_top) == (36, 5)
    assert ngpt.stage2.interactions == ((LR, BATCH),)
    baseline = plan_stage1(ngpt, {}).trials[1]  # A's second entry
    assert complete(ngpt, {}) == baseline.point
    assert len(ngpt.questions) == 5


@pytest.mark.parametrize("best", WINNERS)
def test_quickstart_plan(quickstart, best):
    plan = plan_stage1(quickstart, WINNERS[best])
    assert (plan.entries, plan.distinct) == (20, 17)
    assert [g.name for g in quickstart.stage1.group] == list("ABCDEFG")
    assert len(plan.trials) == 17
    assert (quickstart.stage2.runs, quickstart.stage2.from_top) == (12, 3)
    assert (quickstart.confirm.top, quickstart.confirm.repeats) == (2, 3)


def test_ngpt_second_stage(ngpt, make):
    """36 runs with 3 replicates of the incumbent, on made-up times."""
    trials = plan_stage1(ngpt, WINNERS[NS]).trials
    facts = make.facts_of(
        trials,
        lambda t: (
            60.0 * (1 + abs(t.point[LR] - 0.009) * 40) * (1.2 if t.point[METHOD] == PE else 1)
        ),
    )
    plan = plan_stage2(ngpt, facts, from_top=5, runs=36, seed=1)
    assert (plan.entries, plan.distinct) == (36, 33)
    assert plan.design["kind"] == "d-optimal fraction"


def test_small_ngpt_keeps_groups_parameters_and_questions(ngpt):
    small = load(ROOT / "studies" / "ngpt", scale="small")
    plan = plan_stage1(small, WINNERS[PE])
    assert (plan.entries, plan.distinct, len(plan.trials)) == (28, 22, 28)
    assert plan_stage1(small, WINNERS[NS]).distinct == 22
    assert [g.name for g in small.stage1.group] == [g.name for g in ngpt.stage1.group]
    assert [g.best_of for g in small.stage1.group] == [g.best_of for g in ngpt.stage1.group]
    assert small.space.parameters.keys() == ngpt.space.parameters.keys()
    varied = {name: {t.point[name] for t in plan.trials} for name in small.space.parameters}
    assert all(len(values) > 1 for values in varied.values())
    assert [q.text for q in small.questions] == [q.text for q in ngpt.questions]
    assert small.objective.fallback
    assert small.objective.stretch
    assert small.stage1.duplicates == "replicate"
    assert small.name != ngpt.name


def test_microgpt_has_five_arms_with_repeats():
    """batch, steps, schedule, early stop and what it watches, split: as the document's table."""
    arms = [
        (1, 1000, "linear", 0, None, True),
        (8, 500, "linear", 0, None, True),
        (1, 1000, "cosine", 3200, "smoothed", True),
        (1, 1000, "linear", 3200, "validation", False),
        (4, 1000, "linear", 0, None, True),
    ]
    names = (
        "data.batch_size", "run.max_steps", "schedule.kind", "stop.patience_tokens",
        "stop.watch", "data.train_on_all",
    )  # fmt: skip
    for scale, repeats in ((None, 10), ("small", 4)):
        study = load(ROOT / "studies" / "microgpt", scale=scale)
        plan = plan_stage1(study, {})
        assert (plan.entries, plan.distinct) == (5 * repeats, 5)
        rows = [tuple(trial.point.get(name) for name in names) for trial in plan.trials]
        assert rows == arms * repeats  # block by block
        assert len({(trial.point, trial.seed) for trial in plan.trials}) == 5 * repeats
        assert study.objective.goal == "final"
        assert study.base["data"]["validation_share"] == 0.2


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        *(("quickstart", scale) for scale in (None, "small", "random")),
        ("ngpt", "small"),
        ("microgpt", None),
        ("microgpt", "small"),
    ],
)
def test_trainer_accepts_every_point(name, scale):
    study = load(ROOT / "studies" / name, scale=scale)
    configs = [
        resolve_config(
            study, t.point, seed=t.seed, target=study.objective.target,
            fallback=study.objective.fallback, max_steps=study.limits.steps,
        )
        for t in plan_stage1(study, {}).trials
    ]  # fmt: skip
    done = subprocess.run(  # noqa: PLW1510 - the assertion shows stderr
        [sys.executable, "-m", "trainer", "check", "--stdin"],
        input=json.dumps(configs), capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[] for _ in configs]


def test_random_is_a_study_of_its_own(quickstart):
    control = load(ROOT / "studies" / "quickstart", scale="random")
    assert control.name == "quickstart-random"
    assert control.base["data"]["kind"] == "random"
    assert quickstart.base["data"]["kind"] == "stdlib"


# ---------------------------------------------------------------------------------------- catalog


def test_choosing_a_study(tmp_path, monkeypatch, study_text, write_study):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SWEEP_STUDY", raising=False)
    assert {"ngpt", "quickstart"} <= set(catalog.names())
    assert catalog.choose("ngpt").path == ROOT / "studies" / "ngpt" / "study.toml"
    assert catalog.choose(None).path.parent.name in ("ngpt", "quickstart")
    file = write_study(study_text)
    assert catalog.choose(None).why == "./study.toml is here"
    assert catalog.load(catalog.choose(None)).name == "small"
    monkeypatch.setenv("SWEEP_STUDY", "quickstart")
    assert catalog.choose(None).why == "SWEEP_STUDY names it: a built-in study"
    assert catalog.choose(str(tmp_path)).path == file
    assert catalog.choose(str(file)).why == "given on the command line: a file"
    (tmp_path / "ngpt").mkdir()
    assert catalog.choose("ngpt").why.endswith("a built-in study")  # a folder without a study
    (tmp_path / "ngpt" / "study.toml").write_text("", encoding="utf-8")
    assert catalog.choose("ngpt").why.endswith("a folder")


def test_unknown_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match=r"study 'ngtp': neither .*nearest known is 'ngpt'"):
        catalog.choose("ngtp")
    with pytest.raises(StudyError, match=r"the folder has no study\.toml"):
        catalog.choose(str(tmp_path))
