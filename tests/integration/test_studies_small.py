"""The small forms of ngpt and microgpt from end to end, on really trained networks, cut shorter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from trainer.__main__ import main as trainer

STUDIES = Path(__file__).resolve().parents[2] / "studies"


def shortened(sweep, name: str, **changes: dict[str, str]) -> str:
    """A copy of a built-in study where each file has its `changes`; every one must be found."""
    folder = shutil.copytree(STUDIES / name, sweep.folder / name)
    for file, edits in changes.items():
        path = folder / f"{file}.toml"
        text = path.read_text(encoding="utf-8")
        for before, after in edits.items():
            assert before in text, f"{path}: {before}"
            text = text.replace(before, after)
        path.write_text(text, encoding="utf-8")
    return str(folder)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_small_ngpt(sweep):
    """Every group, the spread duplicates, best_of and the questions; targets of the first steps."""
    study = shortened(
        sweep,
        "ngpt",
        study={"target = 2.4\n": "target = 4.4\n", "fallback = [2.6, 3.0]": "fallback = [4.8]",
               "stretch = [2.3]": "stretch = [4.2]", "\n[resources]\n": GATE_OFF,
               "repeats = 3\n": "repeats = 2\n"},
        small={"every_tokens = 16384": "every_tokens = 2048",
               "probe_tokens = 8192": "probe_tokens = 1024",
               "confirmation_tokens = 12288": "confirmation_tokens = 2048",
               "max_bytes = 3_000_000": "max_bytes = 300_000", "layers = 3": "layers = 1"},
    )  # fmt: skip
    done = sweep.start("run", study, "--scale", "small", "--json").finish(560)
    assert done.code == 0, done.err[-3000:]
    report = json.loads((sweep.home / "reports" / "ngpt-small" / "report.json").read_text())
    plan = next(stage for stage in report["stages"] if stage["stage"] == "stage1")
    assert (plan["planned"], plan["distinct"], plan["failed"]) == (28, 22, 0)
    rows = report["ranking"]
    assert {group for row in rows for group in row["groups"]} >= set("ABCDEFG")
    repeated = next(row for row in rows if "s1-B1" in row["trials"])
    assert {"s1-A1", "s1-E2", "s1-F2"} <= set(repeated["trials"])  # the spread duplicates
    methods = {  # C and D took the method that won A
        row["point"]["optim.muon.orthogonalizer"]
        for row in rows
        if row["id"][:4] in {"s1-C", "s1-D"}
    }
    assert len(methods) == 1
    asked = " ".join(question["text"] for question in report["questions"])
    for word in ("Polar Express", "variance reduction", "learning rate", "projection be delayed"):
        assert word in asked
    production = {row["name"] for row in report["winner"]["configuration"]}
    assert "optim.muon.orthogonalizer" in production


GATE_OFF = """
[validity]
gate = false  # a test machine is shared

[resources]
"""


@pytest.mark.long
@pytest.mark.timeout(600)
def test_small_microgpt(sweep, tmp_path, capsys):
    """The five arms with repeats, ranked by the final loss, and their outputs side by side."""
    steps = {"500": "20", "1000": "40"}
    study = shortened(
        sweep,
        "microgpt",
        study={"choices = [500, 1000]\nbaseline = 1000": "choices = [20, 40]\nbaseline = 40",
               '"run.max_steps" = 500': '"run.max_steps" = 20', "steps = 1000": "steps = 40",
               "target = 2.40": "target = 3.20", "\n[resources]\n": GATE_OFF,
               "bases = [{}, {}, {}, {}]": "bases = [{}, {}]",
               "repeats = 4": "repeats = 2"},
        base={"probe_tokens = 32768": "probe_tokens = 4096", "every_tokens = 800": "every_tokens = 320"},
        arms={f'"run.max_steps" = {full}': f'"run.max_steps" = {few}' for full, few in steps.items()},
    )  # fmt: skip
    done = sweep.start("run", study, "--scale", "small", "--json").finish(560)
    assert done.code == 0, done.err[-3000:]
    runs, svg, out = sweep.home / "runs" / "microgpt-small", tmp_path / "a.svg", tmp_path / "a.json"
    asked = ["compare", str(runs), "--arms", str(Path(study) / "arms.toml"), "--svg", str(svg)]
    assert trainer([*asked, "--out", str(out)]) == 0
    assert "| variance, last steps |" in capsys.readouterr().out
    rows = {row["arm"]: row for row in json.loads(out.read_text())["arms"]}
    assert list(rows) == [
        "main", "option1 mini-batch", "option2 early stopping", "option3 evaluation protocol",
        "option4 quick benchmark",
    ]  # fmt: skip
    for row in rows.values():
        assert row["parameters"] == 4192
        assert row["runs"] >= 2
        assert len(row["samples"]) == 12
        assert row["train_s"]["mean"] > 0
    assert (
        rows["option4 quick benchmark"]["best_val_loss"]["mean"]
        < rows["main"]["best_val_loss"]["mean"]
    )
    assert rows["option1 mini-batch"]["steps"]["mean"] == 20
