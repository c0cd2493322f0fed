"""Shows that events are numbered, strict JSON, appended whole, wherever they are asked for."""

import json
import math
import os

import pytest

from trainer.errors import ConfigError
from trainer.events import EventWriter, open_sink

CLOCK = {"startup": 1.23456789, "train": 0.0}


def collected(**fields):
    lines = []
    EventWriter(lines.append, lambda: CLOCK).emit("evaluated", 3, 96, **fields)
    return json.loads(lines[0], parse_constant=lambda name: pytest.fail(f"{name} was written"))


def test_every_line_is_numbered_and_stamped():
    lines = []
    writer = EventWriter(lines.append, lambda: CLOCK)
    writer.emit("run_started", 0, 0, config={"a": 1})
    writer.emit("step", 1, 32, loss=5.0)
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    first, second = map(json.loads, lines)
    assert list(first) == ["v", "seq", "event", "step", "tokens", "clock", "config"]
    assert (first["v"], first["seq"], second["seq"]) == (1, 0, 1)
    assert second["clock"] == {"startup": 1.234568, "train": 0.0}
    assert (second["step"], second["tokens"], second["loss"]) == (1, 32, 5.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_becomes_null_and_is_marked(value):
    event = collected(metrics={"val_loss": value, "other": 1.0}, history=[1.0, value])
    assert event["metrics"] == {"val_loss": None, "other": 1.0}
    assert event["history"] == [1.0, None]
    assert event["diverged"] is True
    assert "diverged" not in collected(metrics={"val_loss": 1.0})


def test_a_named_file_is_appended_to(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"before\n")
    open_sink({"SWEEP_EVENTS": str(path), "SWEEP_RUN_DIR": "/nowhere"})(b"line\n")
    assert path.read_bytes() == b"before\nline\n"


def test_the_run_folder_gets_a_file(tmp_path):
    open_sink({"SWEEP_RUN_DIR": str(tmp_path)})(b"line\n")
    assert (tmp_path / "events.jsonl").read_bytes() == b"line\n"


def test_an_inherited_descriptor():
    read_end, write_end = os.pipe()
    open_sink({"SWEEP_EVENTS": f"fd:{write_end}"})(b"line\n")
    os.close(write_end)
    with os.fdopen(read_end, "rb") as stream:
        assert stream.read() == b"line\n"


def test_without_either_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open_sink({})(b"line\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("named", ["fd:x", "fd:987", "missing/folder/events.jsonl"])
def test_a_place_that_cannot_be_written_is_named(named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"SWEEP_EVENTS.*expected"):
        open_sink({"SWEEP_EVENTS": named})


def test_a_run_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"SWEEP_RUN_DIR.*No such file"):
        open_sink({"SWEEP_RUN_DIR": str(tmp_path / "absent")})
