"""A runner starts fast because it needs the standard library only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
