"""Shows that runs are compared by what they wrote: arms, outputs, intervals, table and figure."""

import json
import math
import os
import xml.etree.ElementTree as ET

import pytest

from trainer.__main__ import main
from trainer.comparison import Spread, arms_of, compare, ratio, read_runs, t975
from trainer.comparison_view import as_markdown, as_svg
from trainer.config import parse
from trainer.errors import ConfigError
from trainer.models.named import NamedModel
from trainer.quick import ARCHITECTURES, quick_config

CLOCK = {"startup": 1.0, "data": 0.0, "compile": 0.0, "eval": 0.5}


def write(folder, *, batch, seed, losses, seconds_per_look=1.0, reason="steps", **last):
    """A run with a look at the probe every 10 steps of `batch` sequences of 16 tokens."""
    folder.mkdir(parents=True)
    config = {
        "data": {"batch_size": batch, "context": 16},
        "run": {"seed": seed, "max_steps": 10 * (len(losses) - 1)},
        "checkpoint": {"folder": None},
    }
    looks = [
        {
            "event": "evaluated", "step": 10 * place, "tokens": 160 * batch * place,
            "clock": {**CLOCK, "train": seconds_per_look * place},
            "metrics": {"val_loss": loss}, "slice": "probe",
        }
        for place, loss in enumerate(losses)
    ]  # fmt: skip
    events = [
        {"event": "run_started", "config": config, "parameter_count": 4192, "hardware": {"threads": 1}},
        *looks,
        {"event": "run_finished", "step": looks[-1]["step"], "clock": looks[-1]["clock"],
         "reason": reason, **last},
    ]  # fmt: skip
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


@pytest.fixture
def runs(tmp_path):
    for seed, last in ((1, 2.4), (2, 2.5)):
        write(
            tmp_path / "runs" / f"a{seed}", batch=1, seed=seed, losses=[3.3, 3.0, 2.6, last],
            loss_variance=0.1 * seed, stable_from_step=20, samples=[f"ann{seed}"],
            smoothed_losses=[[10, 3.1], [30, 2.6]],
        )  # fmt: skip
        write(
            tmp_path / "runs" / f"b{seed}", batch=4, seed=seed, losses=[3.3, 2.6, 2.4, last - 0.1]
        )
    return tmp_path / "runs"


def test_runs_that_differ_in_the_seed_alone_are_an_arm(runs):
    arms = arms_of(read_runs([runs]), {})
    assert {name: len(found) for name, found in arms.items()} == {
        "batch_size 1": 2,
        "batch_size 4": 2,
    }


def test_outputs_of_each_arm(runs):
    document = compare(arms_of(read_runs([runs]), {}))
    single, batch = document["arms"]
    assert document["level"] == 2.5  # which all reached
    # 2.6 at step 20, then 2.4 or 2.5 at step 30: 25 and 30 steps.
    assert single["steps_to_level"]["mean"] == pytest.approx(27.5)
    assert batch["steps_to_level"]["mean"] == pytest.approx(15)
    assert batch["sequences_to_level"]["mean"] == pytest.approx(60)
    assert single["train_s_to_level"]["mean"] == pytest.approx(2.75)
    assert single["loss_variance"]["mean"] == pytest.approx(0.15)
    assert batch["loss_variance"] is None
    assert single["wall_s"]["mean"] == pytest.approx(4.5)
    fewer, low, high = batch["faster_than_first"]["steps"]
    assert fewer == pytest.approx(math.sqrt(25 * 30) / 15)
    assert low < fewer < high
    more = batch["faster_than_first"]["sequences"][0]
    assert more == pytest.approx(math.sqrt(25 * 30) / 60)  # fewer steps, not fewer sequences
    assert single["samples"] == ["ann1"]


def test_a_level_that_a_run_did_not_reach_is_no_number(runs):
    document = compare(arms_of(read_runs([runs]), {}), level=2.45)
    single, batch = document["arms"]
    assert (single["steps_to_level"]["n"], single["steps_to_level"]["missing"]) == (1, 1)
    assert batch["faster_than_first"]["steps"] is None
    table = as_markdown(document)
    assert "(1 of 2)" in table
    assert "not known" in table


def test_named_arms_and_what_none_has(runs):
    found = read_runs([runs])
    arms = arms_of(found, {"mini-batch": {"data.batch_size": 4}})
    assert [len(runs) for runs in arms.values()] == [2]
    with pytest.raises(ConfigError, match="arm huge: no finished run has"):
        arms_of(found, {"huge": {"data.batch_size": 64}})


def test_intervals():
    assert Spread.of([1.0, 2.0, 3.0]) == Spread(2.0, pytest.approx(4.303 / math.sqrt(3)), 3)
    assert Spread.of([2.0]).half is None
    assert Spread.of([None]) is None
    assert t975(9) == pytest.approx(2.262)
    assert t975(31) == pytest.approx(1.96)
    assert ratio([1.0, 1.0], [3.0, 3.0]) == pytest.approx((3, 3, 3))
    assert ratio([1.0], [3.0, 3.0]) is None
    middle, low, high = ratio([1.0, 1.2, 0.9], [2.0, 2.2, 2.1])
    assert low < 2.1 / 1.08 ** (1 / 3) < high
    assert low > 1.3
    assert middle == pytest.approx((2 * 2.2 * 2.1 / 1.08) ** (1 / 3))


def test_the_figure_has_every_run_once_and_a_legend(runs):
    arms = arms_of(read_runs([runs]), {})
    root = ET.fromstring(as_svg(arms, 2.5, "All <curves>"))
    lines = [
        e for e in root.iter() if e.tag.endswith("polyline") and e.get("stroke-width") == "1.8"
    ]
    assert len(lines) == 4
    text = "".join(root.itertext())
    assert "All <curves>" in text
    assert "batch_size 4 (2 runs)" in text


def test_compare_writes_table_numbers_and_figure(runs, tmp_path, capsys):
    arms, svg, out = tmp_path / "arms.toml", tmp_path / "a.svg", tmp_path / "a.json"
    arms.write_text('["one name"]\n"data.batch_size" = 1\n["four"]\n"data.batch_size" = 4\n')
    asked = ["compare", str(runs), "--arms", str(arms), "--svg", str(svg), "--out", str(out)]
    assert main(asked) == 0
    assert "| steps to val 2.5 | 28 ± 32 | 15 ± 0 |" in capsys.readouterr().out
    assert [row["arm"] for row in json.loads(out.read_text())["arms"]] == ["one name", "four"]
    assert svg.read_text().startswith("<svg")


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert main(["compare", str(tmp_path / "nowhere")]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert main(["compare", str(tmp_path)]) == 2
    assert "no finished run" in capsys.readouterr().err
    (tmp_path / "events.jsonl").write_text("not json\n")
    assert main(["compare", str(tmp_path)]) == 2
    assert "not the events of a run" in capsys.readouterr().err


def test_the_quick_benchmark_is_of_architectures_of_one_size():
    for name, shape in ARCHITECTURES.items():
        config = parse(quick_config(shape, seed=1, steps=1000, threads=1), name)
        named = NamedModel(config.model, vocabulary=27, context=16)
        assert 0.95 < named.parameter_count() / 4192 < 1.05


@pytest.fixture
def one_core():
    """Two threads on a busy machine wait for each other, ten times as long as one needs."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.long
def test_the_quick_benchmark_compares_architectures(one_core, capsys, tmp_path):
    out = tmp_path / "quick.json"
    asked = ["bench", "--quick", "--repeats", "1", "--steps", "40", "--out", str(out)]
    assert main(asked) == 0
    assert "| parameters | 4,192 |" in capsys.readouterr().out
    document = json.loads(out.read_text())
    assert [row["arm"] for row in document["arms"]] == ["microgpt", "gpt2", "ngpt"]
    for row in document["arms"]:
        assert row["final_val_loss"]["mean"] < 3.2
        assert len(row["samples"]) == 10
