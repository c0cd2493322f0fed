"""Several GPUs as one trial: devices that exist as a recording, processes that are real."""

from __future__ import annotations

import importlib.util
import json

import pytest

# Each trial starts one process a device, as torchrun does, and these meet at MASTER_PORT.
SCRIPT = """\
import argparse, json, os, socket, subprocess, sys

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--rank", type=int)
arguments = parser.parse_args()
devices = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
meeting = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
if arguments.rank is not None:
    with socket.create_connection(meeting, timeout=30) as line:
        line.sendall(devices[arguments.rank].encode() + b"\\n")
    sys.exit()
with socket.create_server(meeting) as server:
    ranks = [subprocess.Popen([sys.executable, "-S", *sys.argv, "--rank", str(i)])
             for i in range(len(devices))]
    seen = []
    for _ in devices:
        with server.accept()[0] as line:
            seen.append(line.makefile().readline().strip())
    for rank in ranks:
        rank.wait()
assert sorted(seen) == sorted(devices)
print("devices", " ".join(devices), "port", meeting[1], flush=True)
for step in range(0, 60, 20):
    print(f"step {step}: train loss 3.0, val loss {3 - step * arguments.lr:.4f}", flush=True)
"""
STUDY = """\
[study]
name = "nodes"
[objective]
target = 2.0
[trainer]
command = ["{python}", "train.py", "--lr={lr}"]
[trainer.patterns]
set = "nanogpt"
[limits]
steps = 60
trial_s = 60
grace_s = 1
[resources]
gpus = 4
[space.lr]
type = "float"
low = 0.01
high = 0.1
baseline = 0.03
[[stage1.group]]
name = "A"
vary = { lr = [0.03, 0.05, 0.1] }
"""
GPUS = [
    {"uuid": f"GPU-{i}", "name": "Fake GPU", "total_bytes": 80 << 30, "memory_bytes": 1 << 28}
    for i in range(8)
]


@pytest.fixture
def node(sweep):
    """A study in a folder, and the environment in which the machine has eight GPUs."""
    folder = sweep.folder / "nodes"
    folder.mkdir()
    (folder / "train.py").write_text(SCRIPT, encoding="utf-8")
    (folder / "study.toml").write_text(STUDY, encoding="utf-8")
    (sweep.folder / "gpus.json").write_text(json.dumps({"gpus": GPUS}), encoding="utf-8")
    env = {"SWEEP_NVML": str(sweep.folder / "gpus.json"), "CUDA_VISIBLE_DEVICES": None}
    return folder / "study.toml", env


@pytest.mark.long
def test_two_trials_of_four_gpus_each_side_by_side(sweep, node):
    study, env = node
    assert "gpu0+1+2+3, gpu4+5+6+7" in sweep("check", str(study), **env).out
    done = sweep("stage1", str(study), "--json", **env).json()
    assert (done["reached"] + done["censored"], done["failed"]) == (3, 0)
    told = [
        line.split()
        for folder in sweep.attempts("nodes")
        for line in (folder / "stdout.log").read_text().splitlines()
        if line.startswith("devices")
    ]
    assert {" ".join(words[1:5]) for words in told} == {
        "GPU-0 GPU-1 GPU-2 GPU-3",
        "GPU-4 GPU-5 GPU-6 GPU-7",
    }
    assert len({words[-1] for words in told}) == 3, "a port of its own for each attempt"
    assert {fact["device"]["uuid"] for fact in sweep.facts(study)} == {
        "GPU-0,GPU-1,GPU-2,GPU-3",
        "GPU-4,GPU-5,GPU-6,GPU-7",
    }


def test_a_trial_that_needs_more_gpus_than_there_are(sweep_without_database, tmp_path):
    sweep = sweep_without_database
    (sweep.folder / "study.toml").write_text(
        STUDY.replace("gpus = 4", "gpus = 16"), encoding="utf-8"
    )
    (sweep.folder / "gpus.json").write_text(json.dumps({"gpus": GPUS}), encoding="utf-8")
    env = {"SWEEP_NVML": str(sweep.folder / "gpus.json"), "CUDA_VISIBLE_DEVICES": None}
    done = sweep("check", "study.toml", exit=3, **env)
    assert "[resources] gpus = 16: only 8 GPU(s) here" in done.text


TORCHRUN = """\
import torch.distributed as dist
dist.init_process_group("gloo")
if dist.get_rank() == 0:
    for step in range(0, 60, 20):
        loss = f"val loss {3 - step / 20} of {dist.get_world_size()}"
        print(f"step {step}: train loss 3.0, {loss}", flush=True)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.long
def test_torchrun(sweep, node):
    """The real torchrun, one process a device, on processors: the devices are a recording."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("no torch here")
    study, env = node
    (study.parent / "train.py").write_text(TORCHRUN, encoding="utf-8")
    sweep.edit(study, "gpus = 4", "gpus = 2")
    sweep.edit(
        study,
        '["{python}", "train.py", "--lr={lr}"]',
        '["{python}", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"'
        ', "{lr}"]',
    )
    done = sweep("stage1", str(study), "--max-trials", "1", "--json", exit=None, **env).json()
    assert done["reached"] == 1
    log = (sweep.attempts("nodes")[0] / "stdout.log").read_text()
    assert "val loss 2.0 of 2" in log
