"""The shipped trainer, warm and cold: the same losses, bit for bit, on a processor."""

import json
import sys
import time
from pathlib import Path

from sweeper.executors.base import Slot
from sweeper.executors.local import LocalExecutor
from sweeper.paths import AttemptPaths, write_json
from sweeper.readout import collect
from sweeper.spec import AttemptOutcome, AttemptSpec
from sweeper.trial import Reason

ROOT = Path(__file__).resolve().parents[2]
SLOT = Slot("cpu0", {"kind": "cpu", "index": 0}, {"OMP_NUM_THREADS": "1"})
TINY = {
    "model": {"layers": 1, "width": 32, "heads": 2, "hidden": 32},
    "data": {"max_bytes": 100_000, "batch_size": 4, "context": 16},
    "eval": {"probe_tokens": 256, "confirmation_tokens": 512, "every_tokens": 256},
    "run": {"device": "cpu", "max_steps": 20, "seed": 3},
}


def run(executor, folder):
    folder.mkdir()
    paths = AttemptPaths(folder)
    config = folder / "config.json"
    config.write_text(json.dumps(TINY))
    value = AttemptSpec(
        study="toy",
        trial=folder.name,
        attempt=1,
        argv=[sys.executable, "-m", "trainer", "train", "--config", str(config)],
        cwd=str(ROOT),
        run_dir=str(folder),
        metric="val_loss",
        clock="train",
        target=0.1,
        trial_s=60,
        silence_s=60,
        startup_s=60,
        grace_s=2,
        max_steps=20,
        env={},
    )
    write_json(paths.spec, value.to_json())
    executor.submit(paths.spec, SLOT)
    deadline = time.monotonic() + 60
    while not any(ended.folder == folder for ended in executor.wait(1.0)):
        assert time.monotonic() < deadline, paths.runner_log.read_text()
    outcome = AttemptOutcome.read(paths.outcome)
    assert outcome.reason is Reason.STEPS, outcome
    return outcome, collect(paths, "val_loss").curve


def test_warm_and_cold_give_the_same_losses_bit_for_bit(tmp_path):
    executor = LocalExecutor([SLOT])
    try:
        cold, expected = run(executor, tmp_path / "cold")
        executor.warm_up("trainer", ROOT)
        warm, found = run(executor, tmp_path / "warm")
        again, second = run(executor, tmp_path / "again")
    finally:
        executor.close()
    assert (cold.warm, warm.warm, again.warm) == (False, True, True)
    assert len(expected) > 5
    for curve in (found, second):
        assert [(e.step, e.slice, e.value) for e in curve] == [
            (e.step, e.slice, e.value) for e in expected
        ]
