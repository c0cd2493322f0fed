"""Shows that the trainer still writes what the golden event streams hold.

`python tests/trainer/test_protocol.py` writes the streams in tests/protocol anew, with the real
trainer in a process of its own; the reader's tests use the same files.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent.parent / "protocol"
TEXT = "".join(f"{n} bottles of milk hung on the wall, {n} bottles of milk. " for n in range(300))
BASE = {
    "model": {"layers": 1, "width": 32, "heads": 2, "hidden": 32},
    "data": {"kind": "text", "path": "text.txt", "batch_size": 4, "context": 16},
    "eval": {"probe_tokens": 256, "confirmation_tokens": 512, "every_tokens": 512},
    "run": {"device": "cpu", "threads": 1, "seed": 1, "target": 2.0, "max_steps": 200},
}
STREAMS = {
    "reached": {**BASE, "run": {**BASE["run"], "fallback_targets": [2.5]}},
    "steps": {**BASE, "run": {**BASE["run"], "max_steps": 12}},
    "failed_config": {**BASE, "optim": {"muon": {"learning_rate": 0.01}}},
    "diverged": {
        **BASE,
        "model": {**BASE["model"], "project_every": 1000},
        "optim": {"adam": {"head_lr": 1e38}},
    },
}


def write_stream(name, folder):
    """Run the trainer on the named configuration in `folder`; the path of its events."""
    (folder / "text.txt").write_text(TEXT)
    (folder / "config.json").write_text(json.dumps(STREAMS[name]))
    subprocess.run(
        [sys.executable, "-m", "trainer", "train", "--config", "config.json"],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "SWEEP_EVENTS": f"{name}.jsonl",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        timeout=90,
        check=False,
    )
    return folder / f"{name}.jsonl"


def parsed(text):
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def golden(name):
    return parsed((GOLDEN / f"{name}.jsonl").read_text())


def shape(value):
    """Keys and types, without values; a list is the set of its items' shapes."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return sorted({json.dumps(shape(item)) for item in value})
    return type(value).__name__


def without_thinning(events):
    """The events in order, step reports after the first left out: their number is a matter of speed."""
    first = next((e for e in events if e["event"] == "step"), None)
    return [e for e in events if e["event"] != "step" or e is first]


@pytest.mark.parametrize("name", ["reached", "steps", "diverged"])
def test_a_new_run_writes_the_same_events_with_the_same_keys_and_types(name, tmp_path, monkeypatch):
    from trainer.config import parse
    from trainer.errors import DivergedError
    from trainer.events import EventWriter
    from trainer.stopping import Progress
    from trainer.timing import PhaseClock
    from trainer.train import train

    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    lines, clock, progress = [], PhaseClock(time.monotonic()), Progress()
    events = EventWriter(lines.append, clock.read)
    try:
        train(
            parse(STREAMS[name], name),
            events=events,
            clock=clock,
            progress=progress,
            stop_requested=lambda: False,
            say=lambda text: None,
        )
    except DivergedError:
        assert name == "diverged"
    new = without_thinning([json.loads(line) for line in lines])
    old = without_thinning(golden(name))
    if name == "diverged":
        old = old[:-1]  # run_failed is the process's word; the next test has it
    assert [e["event"] for e in new] == [e["event"] for e in old]
    assert [e.get("slice") for e in new] == [e.get("slice") for e in old]
    assert [list(e) for e in new] == [list(e) for e in old]
    assert [shape(e) for e in new] == [shape(e) for e in old]
    assert [(e["step"], e["tokens"]) for e in new] == [(e["step"], e["tokens"]) for e in old]


@pytest.mark.parametrize("name", ["failed_config", "diverged"])
def test_a_failed_process_writes_the_same_last_event(name, tmp_path):
    new = parsed(write_stream(name, tmp_path).read_text())[-1]
    old = golden(name)[-1]
    assert list(new) == list(old)
    assert shape(new) == shape(old)
    assert (new["event"], new["class"], new["message"]) == (
        old["event"],
        old["class"],
        old["message"],
    )


@pytest.mark.parametrize("name", STREAMS)
def test_golden_streams_are_what_the_protocol_says(name):
    events = golden(name)
    assert [e["seq"] for e in events] == list(range(len(events)))
    assert all(e["v"] == 1 for e in events)
    clocks = [e["clock"] for e in events]
    for earlier, later in itertools.pairwise(clocks):
        assert all(later[phase] >= seconds for phase, seconds in earlier.items())
    endings = {
        "reached": ("run_finished", "reason", "target"),
        "steps": ("run_finished", "reason", "steps"),
        "failed_config": ("run_failed", "class", "config"),
        "diverged": ("run_failed", "class", "diverged"),
    }
    event, key, value = endings[name]
    assert (events[-1]["event"], events[-1][key]) == (event, value)
    if name == "failed_config":
        assert len(events) == 1
    else:
        assert events[0]["event"] == "run_started"


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for stream in STREAMS:
        with tempfile.TemporaryDirectory(dir=GOLDEN) as place:
            written = write_stream(stream, Path(place))
            written.replace(GOLDEN / written.name)
            print(f"{GOLDEN / written.name}: {(GOLDEN / written.name).stat().st_size} bytes")
