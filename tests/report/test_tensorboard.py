"""Exported runs read back with TensorBoard's own reader; skipped where the extra is not installed."""

from __future__ import annotations

import math
import warnings

import pytest

from sweeper.commands.output import attempt_document
from sweeper.commands.scalars import scalars
from sweeper.errors import EnvironmentUnusable
from sweeper.report.tensorboard import write_runs
from tests.fakes.facts import TARGET, make_sweep


@pytest.fixture
def documents():
    facts = make_sweep(stage2=False, confirm=False)
    return [
        attempt_document(facts.study, t.trial, a, TARGET)
        for t in facts.stages["stage1"].facts
        for a in t.attempts
    ]


def test_curves_and_points_read_back(tmp_path, documents):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing import event_file_loader as loader

        assert write_runs(documents, "val_loss", tmp_path / "runs") == len(documents)
        first = documents[0]
        (file,) = (tmp_path / "runs" / "stage1" / first["id"]).iterdir()
        events = list(loader.RawEventFileLoader(str(file)).Load())
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.plugins.hparams import metadata

        values = [v for raw in events for v in Event.FromString(raw).summary.value]
        losses = [v.simple_value for v in values if v.tag == "val_loss/by_step"]
        assert losses == pytest.approx([row[3] for row in first["curve"]], rel=1e-6)
        (time,) = [v.simple_value for v in values if v.tag == "time_to_target_s"]
        assert time == pytest.approx(first["time_to_target_s"], rel=1e-6)
        start = next(v for v in values if v.tag == "_hparams_/session_start_info")
        found = metadata.parse_session_start_info_plugin_data(start.metadata.plugin_data.content)
        assert found.hparams["optim.lr"].number_value == first["point"]["optim.lr"]
    with pytest.raises(EnvironmentUnusable, match="is not empty"):
        write_runs(documents, "val_loss", tmp_path / "runs")


STREAM = """\
{"event": "step", "step": 1, "clock": {"train": 0.5}, "loss": 3.5, "lr": {"matrix": 0.01}}
{"event": "evaluated", "step": 1, "clock": {"train": 0.5}, "slice": "probe", \
"metrics": {"val_loss": 2.0, "nats_per_character": 0.9, "broken": null}}
{"event": "step", "step": 2, "clock": {"tr
"""


def test_the_run_folder_s_scalars_stand_beside_the_metric(tmp_path):
    events = tmp_path / "events.jsonl"
    events.write_text(STREAM)
    found = {s.tag: (s.value, s.step, s.seconds) for s in scalars(events, "nats_per_character")}
    assert found == {
        "train/loss": (3.5, 1, 0.5),
        "lr/matrix": (0.01, 1, 0.5),
        "eval/val_loss": (2.0, 1, 0.5),
        "eval/perplexity": (pytest.approx(math.exp(2.0)), 1, 0.5),
    }
    assert list(scalars(tmp_path / "gone.jsonl", "val_loss")) == []


def test_without_the_extra_it_says_what_to_install(tmp_path, documents, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.event_file_writer", None)
    with pytest.raises(EnvironmentUnusable, match=r"\.\[tensorboard\]"):
        write_runs(documents, "val_loss", tmp_path / "runs")
