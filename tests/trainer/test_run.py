"""Shows whole runs: how they end, what they report, that seeds decide them, that signals stop them."""

import gc
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from trainer.config import parse
from trainer.errors import DataError, DivergedError
from trainer.events import EventWriter
from trainer.loop import StopReason
from trainer.stopping import Progress
from trainer.timing import PHASES, PhaseClock
from trainer.train import train

TINY = {
    "model": {"layers": 1, "width": 32, "heads": 2, "hidden": 32},
    "data": {"max_bytes": 100_000, "batch_size": 4, "context": 16},
    "eval": {"probe_tokens": 256, "confirmation_tokens": 512, "every_tokens": 256},
    "run": {"device": "cpu", "threads": 1, "max_steps": 20},
}


def changed(**keys):
    """TINY with dotted keys (dots written as two underscores) set."""
    config = json.loads(json.dumps(TINY))
    for key, value in keys.items():
        *sections, name = key.split("__")
        section = config
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return config


def run(raw, stop=lambda: False):
    """A run in this process: its reason and its events."""
    lines = []
    clock = PhaseClock(time.monotonic())
    reason = train(
        parse(raw, "test"),
        events=EventWriter(lines.append, clock.read),
        clock=clock,
        progress=Progress(),
        stop_requested=stop,
        say=lambda text: None,
    )
    return reason, [json.loads(line) for line in lines]


def losses(events, slice_name="probe"):
    return [
        (event["tokens"], event["metrics"]["val_loss"])
        for event in events
        if event["event"] == "evaluated" and event["slice"] == slice_name
    ]


def start(raw, tmp_path, **environment):
    """The trainer as a process of its own, with its events in `tmp_path`."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(raw))
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", "train", "--config", str(path)],
        env={**os.environ, "SWEEP_RUN_DIR": str(tmp_path), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    try:
        out, err = process.communicate(timeout=90)
    finally:
        process.kill()
    return process.returncode, out, err


def events_in(tmp_path):
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def test_a_run_learns_and_ends_when_its_steps_are_used_up():
    reason, events = run(changed(run__max_steps=60))
    assert reason is StopReason.STEPS
    assert events[-1]["reason"] == "steps"
    assert (events[-1]["step"], events[-1]["tokens"]) == (60, 60 * 64)
    curve = losses(events)
    assert curve[0][0] == 0
    assert curve[-1][0] == 60 * 64
    assert curve[-1][1] < 0.75 * curve[0][1]
    assert events[-1]["best_loss"] == min(loss for _, loss in curve)


def test_a_run_says_what_it_is_and_what_it_used():
    _, events = run(changed(optim__muon__lr=0.02))
    started, finished = events[0], events[-1]
    assert started["event"] == "run_started"
    assert started["config"]["optim"]["muon"]["lr"] == 0.02
    assert started["config"]["optim"]["muon"]["momentum"] == 0.95  # defaults are spelled out
    assert started["hardware"]["device"] == "cpu"
    assert started["hardware"]["threads"] == torch.get_num_threads()
    assert started["versions"]["torch"] == torch.__version__
    assert started["data_hash"].startswith("sha256:")
    assert started["parameter_count"] > 16_000
    assert [event["seq"] for event in events] == list(range(len(events)))
    assert finished["tokens_per_s"] == pytest.approx(
        finished["tokens"] / finished["clock"]["train"], rel=0.1
    )
    assert finished["peak_memory_bytes"] > 50_000_000
    for earlier, later in itertools.pairwise(events):
        assert set(later["clock"]) == set(PHASES)
        assert all(later["clock"][phase] >= earlier["clock"][phase] for phase in PHASES)
    assert all(finished["clock"][p] > 0 for p in ("startup", "data", "compile", "train", "eval"))


def test_one_seed_gives_the_same_losses_bit_for_bit_and_another_does_not():
    one, same, other = (losses(run(changed(run__seed=seed))[1]) for seed in (1, 1, 2))
    assert one == same
    assert len(one) > 4
    assert all(a[1] != b[1] for a, b in zip(one, other, strict=True))


def test_step_0_is_clean():
    """The warm-up leaves no trace: by hand without it, the first losses are the same."""
    from trainer.data.batches import TrainingBatches
    from trainer.data.corpora import load_corpus
    from trainer.data.tokens import DeviceTokens
    from trainer.models import build_model
    from trainer.optim.build import build_optimizer

    raw = changed(optim__muon__variance_reduction=True)
    config = parse(raw, "test")
    corpus = load_corpus(config.data)
    tokens = DeviceTokens(corpus.train, torch.device("cpu"))
    batches = TrainingBatches(tokens, context=16, batch_size=4, seed=0)
    model = build_model(config.model, vocabulary=256, context=16, seed=0)
    optimizer = build_optimizer(model.roled_parameters(), config.optim, project_every=7)
    by_hand = []
    for step in range(10):
        x, y = batches.at(step)
        optimizer.clear_gradients()
        loss = model(x, y)
        loss.backward()
        optimizer.step(step + 1)
        by_hand.append(float(loss.detach()))
    _, events = run(raw)
    reported = {e["step"]: e["loss"] for e in events if e["event"] == "step"}
    assert reported[1] == by_hand[0]
    assert all(reported[step] == by_hand[step - 1] for step in reported if step <= 10)


def test_a_target_ends_the_run_once_both_slices_agree_and_fallbacks_are_confirmed_on_the_way():
    raw = changed(run__target=3.2, run__fallback_targets=[4.5, 3.8], run__max_steps=500)
    reason, events = run(raw)
    assert reason is StopReason.TARGET
    confirmations = [e for e in events if e.get("slice") == "confirmation"]
    assert [t for e in confirmations for t in e["confirmed"]] == [4.5, 3.8, 3.2]
    for event in confirmations:
        loss = event["metrics"]["val_loss"]
        assert all(loss <= target for target in event["confirmed"])
        assert all(loss > target for target in event["refused"])
        position = events.index(event)
        probe = events[position - 1]
        assert (probe["slice"], probe["step"]) == ("probe", event["step"])
        crossed = event["confirmed"] + event["refused"]
        assert all(probe["metrics"]["val_loss"] <= target for target in crossed)
    assert events[-2] is confirmations[-1]
    assert events[-1]["confirmed_targets"] == [4.5, 3.8, 3.2]


def test_evaluations_lie_at_the_same_tokens_for_every_batch_size():
    grids = {
        size: {t for t, _ in losses(run(changed(data__batch_size=size))[1])} for size in (2, 4)
    }
    assert grids[2] == {0, 256, 512, 20 * 32}
    assert {0, 256, 512} <= grids[4]


def test_noise_cannot_be_learned():
    reason, events = run(changed(data__kind="random", run__target=5.0, run__max_steps=50))
    assert reason is StopReason.STEPS
    assert events[-1]["best_loss"] > math.log(256) - 0.1


@pytest.mark.parametrize(
    "key",
    [
        {"optim__kind": "adamw"},
        {"optim__muon__orthogonalizer": "newton_schulz"},
        {"optim__muon__variance_reduction": True},
        {"optim__muon__cautious_weight_decay": True},
        {"optim__muon__weight_decay": 0.3},
        {"optim__muon__lr": 0.1},
        {"optim__muon__momentum": 0.5},
        {"model__project_every": 1},
        {"data__batch_size": 8},
    ],
)
def test_every_option_changes_the_run_and_still_learns(key):
    usual, other = (losses(run(raw)[1]) for raw in (changed(), changed(**key)))
    assert other[-1][1] != usual[-1][1]
    assert other[-1][1] < other[0][1] - 0.5


def test_accumulated_passes_learn_what_one_pass_learns():
    """The same losses to rounding, for every micro-batch, and with gradients clipped."""
    for clip in (0.0, 0.3):
        keys = {"run__clip_norm": clip, "data__batch_size": 8, "run__max_steps": 12}
        whole = losses(run(changed(**keys))[1])
        for size in (1, 4, 8):
            parts = losses(run(changed(data__micro_batch=size, **keys))[1])
            assert [t for t, _ in parts] == [t for t, _ in whole]
            assert [x for _, x in parts] == pytest.approx([x for _, x in whole], abs=2e-4)
        assert parts == whole  # a pass of 8 is the whole step: bit for bit


def test_clipping_changes_a_run_only_where_gradients_are_longer():
    keys = {"optim__kind": "sgd", "optim__sgd__lr": 0.05}
    usual = losses(run(changed(**keys))[1])
    assert losses(run(changed(run__clip_norm=1e6, **keys))[1]) == usual
    clipped = losses(run(changed(run__clip_norm=0.01, **keys))[1])
    assert clipped[-1][1] > usual[-1][1]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precisions_learn_about_the_same(precision):
    usual, other = (losses(run(changed(run__precision=p))[1]) for p in ("fp32", precision))
    assert other != usual
    assert other[-1][1] == pytest.approx(usual[-1][1], abs=0.05)


def test_a_schedule_is_what_the_steps_report():
    raw = changed(schedule={"kind": "linear", "warmup_steps": 2}, run__max_steps=8)
    _, events = run(raw)
    assert events[0]["schedule"]["kind"] == "linear"
    rates = {e["step"]: e["lr"] for e in events if e["event"] == "step"}
    assert rates[1]["matrix"] == pytest.approx(0.01 * 0.5)
    assert rates[1]["head"] == pytest.approx(0.01 * 0.5)
    assert losses(events) != losses(run(changed(run__max_steps=8))[1])


def test_windows_that_overlap_are_warned_of():
    _, events = run(changed(data__stride=4, run__max_steps=1))
    audit, warning = events[0]["data_audit"], events[1]
    assert (audit["overlap"], audit["max_exposures"]) == (12, 4)
    assert (warning["event"], warning["kind"]) == ("warning", "overlap")
    assert "overlap by 12 of 16 tokens" in warning["message"]
    assert "learns from each token 4.0 times" in warning["message"]
    _, events = run(changed(run__max_steps=1))
    assert events[0]["data_audit"]["exposures"] <= 1
    assert not [e for e in events if e["event"] == "warning"]


def test_a_run_ends_when_it_no_longer_improves():
    keys = {"data__kind": "random", "run__max_steps": 400, "stop__patience_tokens": 3200}
    for watch in ("smoothed", "validation"):
        reason, events = run(changed(stop__watch=watch, stop__smoothing_steps=10, **keys))
        assert reason is StopReason.PATIENCE
        assert events[-1]["reason"] == "patience"
        assert 50 <= events[-1]["step"] < 400


def test_garbage_is_not_collected_while_training():
    seen = []
    gc.enable()
    run(changed(), stop=lambda: seen.append(gc.isenabled()))
    assert seen
    assert not any(seen)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_passes_of_an_evaluation_have_one_shape():
    from trainer.evaluate import Evaluator

    shapes = []

    def model(x, y):
        shapes.append(tuple(x.shape))
        return y.double().mean()

    def windows(count):
        numbers = torch.arange(count * 4).view(count, 4)
        return numbers, numbers

    evaluator = Evaluator(model, windows(48), windows(144), 64)
    evaluator.warm_up()
    assert evaluator.loss("probe") == pytest.approx(95.5)
    assert evaluator.loss("confirmation") == pytest.approx(287.5)
    assert set(shapes) == {(48, 4)}
    # 7 and 13 have no common size of more than one window: the last pass is shorter.
    assert Evaluator(model, windows(7), windows(13), 4).loss("confirmation") == pytest.approx(25.5)


def test_divergence_is_an_error_with_null_instead_of_a_number():
    raw = changed(optim__adam__head_lr=1e38, model__project_every=1000)
    lines, clock, progress = [], PhaseClock(time.monotonic()), Progress()
    with pytest.raises(DivergedError, match="loss was nan at step"):
        train(
            parse(raw, "test"),
            events=EventWriter(lines.append, clock.read),
            clock=clock,
            progress=progress,
            stop_requested=lambda: False,
            say=lambda text: None,
        )
    last = json.loads(lines[-1])
    assert last["event"] == "evaluated"
    assert last["metrics"] == {"val_loss": None}
    assert last["diverged"] is True
    assert progress.step > 0


def test_data_that_do_not_suffice_are_named():
    with pytest.raises(DataError, match="confirmation slice needs"):
        run(changed(eval__confirmation_tokens=1_600_000))


def test_a_process_that_reaches_its_target_exits_with_0_and_never_imports_dynamo(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(changed(run__target=4.5, run__max_steps=200)))
    code = (
        "import sys, trainer.__main__ as m\n"
        "code = m.main(['train', '--config', sys.argv[1]])\n"
        "assert 'torch' in sys.modules\n"
        "assert 'torch._dynamo' not in sys.modules, 'importing it costs every trial seconds'\n"
        "assert 'torch._inductor' not in sys.modules\n"
        "sys.exit(code)"
    )
    environment = {**os.environ, "SWEEP_RUN_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    events = events_in(tmp_path)
    assert events[-1]["reason"] == "target"
    assert events[0]["clock"]["startup"] > 0.3  # the import of torch counts
    assert "4.5 confirmed" in result.stdout


def test_the_clock_of_a_process_is_heard_every_second(tmp_path):
    # No evaluation comes between, so only the steps' own reports can be heard.
    raw = changed(run__max_steps=10_000_000, eval__every_tokens=2**40)
    process = start(raw, tmp_path)
    try:
        wait_for(lambda: len(stepped(tmp_path)) >= 4, process)
    finally:
        process.terminate()
    finish(process)
    totals = [sum(event["clock"].values()) for event in stepped(tmp_path)]
    assert len(totals) >= 4
    # A report is due after half a second of silence; a step here takes milliseconds.
    assert all(later > earlier for earlier, later in itertools.pairwise(totals))


def stepped(tmp_path):
    path = tmp_path / "events.jsonl"
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0].splitlines()
    return [e for e in map(json.loads, whole) if e["event"] == "step"]


def wait_for(condition, process, deadline_s=60.0):
    until = time.monotonic() + deadline_s
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_and_ends_the_run(tmp_path, number, code):
    process = start(changed(run__max_steps=10_000_000), tmp_path)
    wait_for(lambda: stepped(tmp_path), process)
    process.send_signal(number)
    returncode, _, err = finish(process)
    assert (returncode, err) == (code, "")
    last = events_in(tmp_path)[-1]
    assert (last["event"], last["reason"]) == ("run_finished", "terminated")
    assert last["best_loss"] is not None


@pytest.mark.parametrize(
    ("raw", "failure", "code", "says"),
    [
        ({"model": {"layers": -1}}, "config", 2, "config.json: model.layers = -1: expected"),
        (changed(data__kind="text", data__path="absent.txt"), "data", 3, "absent.txt: cannot be"),
        (changed(run__explosion=1.0001), "diverged", 4, "the validation loss was"),
        # 256 TB for one matrix: more than any address space has, so nothing is touched.
        (changed(model__hidden=2 * 10**12), "oom", 5, "out of memory with data.batch_size = 4"),
    ],
)
def test_each_failure_has_its_class_and_exit_code(tmp_path, raw, failure, code, says):
    returncode, _, err = finish(start(raw, tmp_path))
    assert returncode == code
    assert says in err
    assert "Traceback" not in err
    last = events_in(tmp_path)[-1]
    assert (last["event"], last["class"]) == ("run_failed", failure)
    assert says in last["message"]


def test_the_environment_completes_the_configuration(tmp_path):
    raw = changed()
    del raw["run"]["max_steps"]
    process = start(raw, tmp_path, SWEEP_SEED="5", SWEEP_TARGET="0.5", SWEEP_MAX_STEPS="3")
    assert finish(process)[0] == 0
    events = events_in(tmp_path)
    config = events[0]["config"]["run"]
    assert (config["seed"], config["target"], config["max_steps"]) == (5, 0.5, 3)
    assert (events[-1]["reason"], events[-1]["step"]) == ("steps", 3)


def test_a_full_disk_is_a_crash_that_says_so(tmp_path):
    process = start(changed(), tmp_path, SWEEP_EVENTS="/dev/full")
    returncode, _, err = finish(process)
    assert returncode == 1
    assert "No space left on device" in err
