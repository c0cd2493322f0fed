"""A runner starts fast because it needs the standard library only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from sweeper.paths import AttemptPaths
from sweeper.runner import launch
from sweeper.spec import AttemptSpec

ROOT = Path(__file__).resolve().parents[2]


def test_the_runner_imports_the_standard_library_only():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import sweeper.runner.__main__, json; "
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True
    )
    foreign = {
        name
        for name in json.loads(done.stdout)
        if name.split(".")[0] not in sys.stdlib_module_names | {"sweeper", "__main__"}
    }
    assert foreign == set()
    assert "sweeper.space" not in done.stdout


def test_no_argument_is_a_usage_error():
    done = subprocess.run(
        [sys.executable, "-m", "sweeper.runner"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr.startswith("usage:")) == (2, True)


def test_processes_on_several_devices_are_told_where_to_meet(tmp_path):
    paths = AttemptPaths(tmp_path)

    def environment(uuid, **env):
        spec = AttemptSpec(
            study="s", trial="t", attempt=1, argv=["x"], cwd="/", run_dir=str(tmp_path), metric="m",
            clock="train", target=2.0, trial_s=1, silence_s=1, startup_s=1, grace_s=1, max_steps=1,
            device={"kind": "cuda", "uuid": uuid}, env=env,
        )  # fmt: skip
        return launch.environment(spec, paths, "token")

    first, second = environment("GPU-a,GPU-b"), environment("GPU-c,GPU-d")
    assert first["MASTER_ADDR"] == "127.0.0.1"
    assert first["MASTER_PORT"] != second["MASTER_PORT"]
    assert 1024 < int(first["MASTER_PORT"]) < 65536
    assert environment("GPU-a,GPU-b", MASTER_PORT="29500")["MASTER_PORT"] == "29500"
    assert "MASTER_PORT" not in environment("GPU-a").keys() - os.environ.keys()
