"""Shows that a warm parent has no threads and no device, and that its children run whole trials."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.xdist_group("preload")  # its fixtures are made once

TINY = {
    "model": {"layers": 1, "width": 32, "heads": 2, "hidden": 32},
    "data": {"max_bytes": 20_000, "batch_size": 4, "context": 16},
    "eval": {"probe_tokens": 256, "confirmation_tokens": 512, "every_tokens": 256},
    "run": {"device": "cpu", "max_steps": 10},
}

PARENT = """
import json, os, sys, threading, time
import trainer
trainer.preload()
assert 'OPENBLAS_NUM_THREADS' not in os.environ
report = {
    'threads': threading.active_count(),
    'tasks': len(os.listdir('/proc/self/task')) if os.path.exists('/proc/self/task') else 1,
    'torch': 'torch' in sys.modules, 'train': 'trainer.train' in sys.modules,
    'numpy': 'numpy' in sys.modules, 'dynamo': 'torch._dynamo' in sys.modules,
    'cuda': sys.modules['torch'].cuda.is_initialized(),
}
from trainer.__main__ import main
report['codes'] = []
for number, threads in ((0, '1'), (1, '2')):
    forked_at = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.environ['SWEEP_EVENTS'] = f'{sys.argv[2]}/{number}.jsonl'
            os.environ['OMP_NUM_THREADS'] = threads
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = main(['train', '--config', sys.argv[1]])
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    report['codes'].append([os.waitstatus_to_exitcode(status), time.monotonic() - forked_at])
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """What the parent told, and the events of its two children."""
    folder = tmp_path_factory.mktemp("warm")
    (folder / "config.json").write_text(json.dumps(TINY))
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    result = subprocess.run(
        [sys.executable, "-c", PARENT, str(folder / "config.json"), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    children = [
        [json.loads(line) for line in (folder / f"{n}.jsonl").read_text().splitlines()]
        for n in range(2)
    ]
    return json.loads(result.stdout), children


def test_preloading_imports_everything_but_starts_no_thread_and_no_device(warm):
    told, _ = warm
    assert told["torch"]
    assert told["train"]
    assert told["numpy"]
    assert not told["dynamo"]
    assert not told["cuda"]
    assert (told["threads"], told["tasks"]) == (1, 1)


def test_a_forked_child_runs_a_whole_trial_whose_clock_begins_at_the_fork(warm):
    told, children = warm
    for (code, lasted_s), events in zip(told["codes"], children, strict=True):
        assert code == 0
        assert (events[-1]["event"], events[-1]["reason"]) == ("run_finished", "steps")
        # Had the parent's imports been counted, startup alone would be longer than the child lived.
        assert 0 < sum(events[-1]["clock"].values()) <= lasted_s + 0.03


def test_a_forked_child_computes_with_the_threads_of_its_own_environment(warm):
    _, children = warm
    assert [events[0]["hardware"]["threads"] for events in children] == [1, 2]


def test_two_children_of_one_parent_train_alike(warm):
    _, children = warm
    one, two = (
        [e["metrics"]["val_loss"] for e in events if e["event"] == "evaluated"]
        for events in children
    )
    assert one == pytest.approx(two, abs=1e-4)
