"""Shows that a resumed run is the uninterrupted one bit for bit, and which checkpoints are refused."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from trainer import checkpoint
from trainer.config import parse
from trainer.continuation import Continuation
from trainer.errors import CheckpointError, ConfigError
from trainer.events import EventWriter
from trainer.loop import StopReason
from trainer.schedules import restored
from trainer.stopping import Progress
from trainer.timing import PhaseClock
from trainer.train import train

pytestmark = pytest.mark.xdist_group("resume")  # its fixtures are made once

TINY = {
    "model": {"layers": 1, "width": 32, "heads": 2, "hidden": 32, "project_every": 3},
    "data": {"max_bytes": 20_000, "batch_size": 4, "context": 16},
    "eval": {"probe_tokens": 256, "confirmation_tokens": 512, "every_tokens": 256},
    "optim": {"muon": {"variance_reduction": True}},
    "schedule": {"kind": "cosine", "warmup_steps": 3, "floor": 0.1},
    "run": {"device": "cpu", "threads": 1, "max_steps": 24, "clip_norm": 1.0},
}


def changed(folder, base=TINY, **keys):
    """`base` with its checkpoints in `folder` and dotted keys (dots as two underscores) set."""
    config = json.loads(json.dumps(base))
    for key, value in {"checkpoint__folder": str(folder), **keys}.items():
        *sections, name = key.split("__")
        section = config
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return config


def run(raw, *, stop_after=None, **continuation):
    """A run in this process: reason and events. It is told to stop after `stop_after` steps."""
    lines, clock, progress = [], PhaseClock(time.monotonic()), Progress()
    reason = train(
        parse(raw, "test"),
        events=EventWriter(lines.append, clock.read),
        clock=clock,
        progress=progress,
        stop_requested=lambda: stop_after is not None and progress.step >= stop_after,
        say=lambda text: None,
        continuation=Continuation(**continuation),
    )
    return reason, [json.loads(line) for line in lines]


def probes(events):
    return [
        (e["step"], e["tokens"], e["metrics"]["val_loss"])
        for e in events
        if e["event"] == "evaluated"
    ]


def state(folder, step):
    return checkpoint.read(folder / f"step-{step:08d}.pt")


def flat(value, prefix=""):
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    else:
        return {prefix: value}
    return {k: v for key, item in pairs for k, v in flat(item, f"{prefix}.{key}").items()}


def assert_same_state(one, two):
    one, two = flat(one), flat(two)
    assert one.keys() == two.keys()
    for key, value in one.items():
        if key.startswith((".clock", ".identity")):
            continue
        same = torch.equal(value, two[key]) if torch.is_tensor(value) else value == two[key]
        assert same, key


VARIANTS = {
    "muon, cosine": {},
    "adamw, wsd, accumulated": {
        "optim__kind": "adamw",
        "schedule__kind": "wsd",
        "data__micro_batch": 2,
    },
    "patience, target": {
        "stop__patience_tokens": 10**6,
        "run__target": 3.5,
        "run__fallback_targets": [5.5],
    },
    "fp16": {"run__precision": "fp16"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(name, tmp_path):
    keys = VARIANTS[name]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _, uninterrupted = run(changed(whole, checkpoint__at_end=True, **keys))
    raw = changed(parts, checkpoint__at_end=True, checkpoint__on_term=True, **keys)
    reason, first = run(raw, stop_after=11)
    assert reason is StopReason.TERMINATED
    assert first[-2]["event"] == "checkpoint_saved"
    _, second = run(raw, resume="auto", stop_after=17)
    _, third = run(raw, resume=str(parts / "step-00000017.pt"))
    # The 1,200 windows of the data are seen 24 * 4 = 96 times: the order is not yet repeated.
    assert probes(first) + probes(second) + probes(third) == probes(uninterrupted)
    assert_same_state(state(whole, 24), state(parts, 24))


def test_the_order_of_the_data_goes_on_across_epochs(tmp_path):
    keys = {"data__max_bytes": 8_000, "data__context": 256, "data__kind": "random"}
    raw = changed(tmp_path / "a", checkpoint__at_end=True, eval__confirmation_tokens=512, **keys)
    run(raw)  # about 27 windows, 96 samples: three epochs
    raw["checkpoint"] |= {"folder": str(tmp_path / "b"), "on_term": True}
    run(raw, stop_after=9)
    run(raw, resume="auto")
    assert_same_state(state(tmp_path / "a", 24), state(tmp_path / "b", 24))


def test_random_numbers_that_a_run_draws_go_on_where_they_were(tmp_path):
    torch.manual_seed(5)
    run(changed(tmp_path, checkpoint__on_term=True), stop_after=4)
    following = torch.rand(3)
    torch.manual_seed(6)
    raw = changed(tmp_path, checkpoint__on_term=True)
    run(raw, resume="auto", stop_after=4)
    assert torch.equal(torch.rand(3), following)


def test_a_resumed_run_says_where_it_comes_from_and_its_clock_goes_on(tmp_path):
    raw = changed(tmp_path, checkpoint__on_term=True)
    _, first = run(raw, stop_after=6)
    _, second = run(raw, resume="auto")
    saved, started = first[-2], second[0]
    assert (saved["why"], saved["step"]) == ("end", 6)
    assert saved["bytes"] == Path(saved["path"]).stat().st_size
    assert saved["clock"]["checkpoint"] > 0
    assert started["event"] == "run_started"
    assert (started["step"], started["tokens"]) == (6, 6 * 64)
    origin = started["resumed_from"]
    assert (origin["path"], origin["step"]) == (saved["path"], 6)
    for phase, seconds in origin["clock"].items():
        assert started["clock"][phase] >= seconds - 1e-6
    assert started["clock"]["train"] == pytest.approx(origin["clock"]["train"], abs=1e-4)


def test_an_extension_goes_on_to_n_steps_in_all_with_a_schedule_planned_anew(tmp_path):
    raw = changed(tmp_path, checkpoint__at_end=True)
    run(raw)
    _, events = run(raw, resume="auto", extend_steps=40)
    started = events[0]
    assert (started["schedule"]["first"], started["schedule"]["end"]) == (24, 40)
    # The cosine had all but arrived at its floor of 0.1; the extension begins there.
    assert 0.1 < started["schedule"]["peak"] < 0.12
    assert (events[-1]["reason"], events[-1]["step"]) == ("steps", 40)
    # And an extension that is interrupted goes on with its own plan.
    assert state(tmp_path, 40)["schedule"] == started["schedule"]


def test_a_constant_schedule_extended_equals_the_longer_run(tmp_path):
    keys = {"schedule": {"kind": "constant", "warmup_steps": 3}}
    longer, extended = tmp_path / "longer", tmp_path / "extended"
    base = {**TINY, **keys}
    run(changed(longer, base, checkpoint__at_end=True, run__max_steps=36))
    raw = changed(extended, base, checkpoint__at_end=True)
    run(raw)
    run(raw, resume="auto", extend_steps=36)
    ours, theirs = state(longer, 36), state(extended, 36)
    assert_same_state(ours["weights"], theirs["weights"])
    assert_same_state(ours["optimizer"], theirs["optimizer"])


def test_an_extension_may_have_another_schedule_and_nothing_else_may(tmp_path):
    """Warm-up and constant rate first, then a cosine from that rate down to a tenth of it."""
    constant = {"kind": "constant", "warmup_steps": 3}
    run(changed(tmp_path, {**TINY, "schedule": constant}, checkpoint__at_end=True))
    with pytest.raises(CheckpointError, match=r"schedule\.kind = 'constant' there, 'cosine' here"):
        run(changed(tmp_path), resume="auto")
    with pytest.raises(CheckpointError, match=r"model\.width = 32 there, 64 here\. --init-from"):
        run(changed(tmp_path, model__width=64), resume="auto", extend_steps=40)
    _, events = run(changed(tmp_path), resume="auto", extend_steps=40)
    planned = restored(events[0]["schedule"])
    assert (planned.kind, planned.first, planned.warmup, planned.end) == ("cosine", 24, 0, 40)
    assert (planned.at(24), planned.at(40)) == (1.0, pytest.approx(0.1))
    # 20,000 bytes less a tenth have 1,124 windows of 16: 4 a step.
    audit = events[0]["data_audit"]
    assert audit["epochs_before"] == 24 * 4 / audit["samples"]
    assert audit["epochs_planned"] == 40 * 4 / audit["samples"]


def test_only_the_newest_and_the_best_are_kept(tmp_path):
    raw = changed(
        tmp_path, checkpoint__every_steps=5, checkpoint__keep_last=2, checkpoint__keep_best=True
    )
    _, events = run(raw)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best.pt",
        "step-00000015.pt",
        "step-00000020.pt",
    ]
    saved = [(e["why"], e["step"]) for e in events if e["event"] == "checkpoint_saved"]
    assert [s for why, s in saved if why == "periodic"] == [5, 10, 15, 20]
    curve = probes(events)
    best = min(curve, key=lambda point: point[2])
    assert checkpoint.read(tmp_path / "best.pt")["progress"] == list(best)


def test_init_from_takes_the_weights_alone(tmp_path):
    run(changed(tmp_path / "a", checkpoint__at_end=True, run__seed=1))
    path = str(tmp_path / "a" / "step-00000024.pt")
    raw = changed(tmp_path / "b", optim__kind="adamw", data__batch_size=8, run__seed=2)
    _, events = run(raw, init_from=path)
    assert (events[0]["step"], events[0]["tokens"]) == (0, 0)
    assert "resumed_from" not in events[0]
    _, fresh = run(raw)
    assert probes(events)[0][2] < probes(fresh)[0][2] - 0.5


REFUSALS = [
    ({}, {"resume": "auto"}, "at step 24, and the run ends after 24.*--extend-steps"),
    ({}, {"resume": "auto", "extend_steps": 20}, "at step 24, and the run ends after 20"),
    ({"model__width": 64}, {"resume": "auto"}, "another run: model.width = 32 there, 64 here"),
    ({"optim__muon__lr": 0.5}, {"resume": "auto"}, "optim.muon.lr = 0.01 there, 0.5 here"),
    ({"data__max_bytes": 21_000}, {"resume": "auto"}, "data hash = "),
    (
        {"run__seed": 9, "data__batch_size": 2},
        {"resume": "auto"},
        "batch_size.*; run.seed = 0 there",
    ),
    ({"model__width": 64}, {"init_from": "step-00000024.pt"}, "another model: .* has shape"),
    ({}, {"resume": "absent.pt"}, r"absent\.pt: cannot be read \(No such file"),
    ({}, {"resume": "text.pt"}, "not a whole checkpoint"),
    ({}, {"resume": "pickle.pt"}, "not a whole checkpoint"),
    ({}, {"resume": "cut.pt"}, "not a whole checkpoint: it is cut off"),
    ({}, {"resume": "other.pt"}, "not a checkpoint of this trainer"),
    ({}, {"resume": "future.pt"}, "format 99; expected 1"),
    ({"checkpoint__at_end": True}, {}, "checkpoints of an earlier run.*--resume auto"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the checkpoint of a finished run, and files that are none."""
    folder = tmp_path_factory.mktemp("finished")
    run(changed(folder, checkpoint__at_end=True))
    whole = (folder / "step-00000024.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "text.pt").write_text("no checkpoint")
    torch.save({"weights": {}}, folder / "other.pt")
    torch.save({"format": 99}, folder / "future.pt")
    torch.save({"format": 1, "code": Progress()}, folder / "pickle.pt")
    return folder


@pytest.mark.parametrize(("keys", "continuation", "says"), REFUSALS)
def test_a_checkpoint_that_cannot_be_used_is_refused_and_nothing_is_overwritten(
    finished, keys, continuation, says
):
    before = {p.name: p.read_bytes() for p in finished.iterdir()}
    named = {
        key: str(finished / value) if str(value).endswith(".pt") else value
        for key, value in continuation.items()
    }
    with pytest.raises(CheckpointError, match=says):
        run(changed(finished, **keys), **named)
    assert {p.name: p.read_bytes() for p in finished.iterdir()} == before


def test_options_that_contradict_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected --resume with it"):
        run(changed(tmp_path), extend_steps=40)
    with pytest.raises(ConfigError, match="expected no --resume with it"):
        run(changed(tmp_path), resume="auto", init_from="a.pt")


def test_auto_passes_over_a_damaged_checkpoint_and_says_so(tmp_path):
    raw = changed(tmp_path, checkpoint__every_steps=5, checkpoint__keep_last=3)
    run(raw)
    newest = tmp_path / "step-00000020.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    _, events = run(raw, resume="auto")
    assert events[0]["resumed_from"]["step"] == 15
    assert events[1]["event"] == "warning"
    assert "step-00000020.pt: not a whole checkpoint" in events[1]["message"]
    # Without a checkpoint, auto is a fresh start.
    _, fresh = run(changed(tmp_path / "empty"), resume="auto")
    assert fresh[0]["step"] == 0
    for path in tmp_path.glob("step-*.pt"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        run(raw, resume="auto")


def test_a_target_that_was_reached_is_past_the_end_and_a_lower_one_is_not(tmp_path):
    raw = changed(tmp_path, run__target=5.0, checkpoint__at_end=True)
    assert run(raw)[0] is StopReason.TARGET
    with pytest.raises(CheckpointError, match=r"reached run\.target = 5 already"):
        run(raw, resume="auto")
    raw["run"]["target"] = 4.5
    assert run(raw, resume="auto")[1][-1]["confirmed_targets"][-1] < 5.0


def test_a_checkpoint_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        run(changed(tmp_path / "file" / "checkpoints", checkpoint__every_steps=5))
    path = tmp_path / "a.pt"
    checkpoint.write({"n": 1}, path)
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        checkpoint.write({"n": lambda: None}, path)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "file"]


def test_sigterm_saves_where_asked_and_the_process_goes_on_from_there(tmp_path):
    """The whole way, with a real signal: main() runs in a forked child."""
    from trainer.__main__ import main

    raw = changed(tmp_path / "checkpoints", checkpoint__on_term=True, run__max_steps=10**6)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    events = tmp_path / "events.jsonl"
    torch.set_num_threads(1)
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.environ["SWEEP_EVENTS"] = str(events)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = main(["train", "--config", str(tmp_path / "config.json")])
        finally:
            os._exit(code)
    deadline_at = time.monotonic() + 60
    while not events.exists() or events.read_text().count('"event":"step"') < 1:
        assert time.monotonic() < deadline_at
        time.sleep(0.02)
    os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    told = [json.loads(line) for line in events.read_text().splitlines()]
    assert [e["event"] for e in told[-2:]] == ["checkpoint_saved", "run_finished"]
    assert told[-1]["reason"] == "terminated"
    step = told[-1]["step"]
    assert step >= 1
    assert run(raw, resume="auto", stop_after=step + 2)[1][0]["step"] == step
