"""The wrapper of NVIDIA's library against a small library of the same interface, and the recording."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from sweeper.runner import nvml

SOURCE = Path(__file__).resolve().parents[1] / "fakes" / "nvml.c"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    built = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(built), str(SOURCE)], check=True)
    return built


@pytest.fixture
def gpus(library, monkeypatch):
    monkeypatch.setenv("SWEEP_NVML", str(library))
    found = nvml.open_gpus()
    yield found
    found.close()
    found.close()


def test_names(gpus):
    first, second = gpus.names()
    assert (first.uuid, first.index, first.name) == ("GPU-fake-0", 0, "Fake 3000")
    assert first.memory_bytes == 80 << 30
    assert (first.mig, second.mig) == (False, True)


def test_a_look(gpus):
    seen = gpus.read("GPU-fake-0")
    assert seen.memory_bytes == 5 << 30
    assert seen.utilisation == 0.75
    assert seen.power_w == 312.5
    assert (seen.temperature_c, seen.clock_mhz, seen.throttle) == (61.0, 1755.0, 0x44)
    assert seen.pids == tuple(range(4000, 4100))
    assert gpus.read("GPU-fake-1").pids == ()
    assert gpus.read("GPU-fake-1").memory_bytes == 6 << 30


def test_what_is_not_there_is_said(gpus, library, monkeypatch, tmp_path):
    with pytest.raises(nvml.NvmlError, match="nvmlDeviceGetHandleByUUID: Not Found"):
        gpus.read("GPU-other")
    monkeypatch.setenv("FAKE_NVML_FAILS", "1")
    with pytest.raises(nvml.NvmlError, match="Driver Not Loaded"):
        nvml.open_gpus()
    monkeypatch.setenv("SWEEP_NVML", str(tmp_path / "nowhere.so"))
    with pytest.raises(nvml.NvmlError, match="no NVIDIA driver"):
        nvml.open_gpus()


def test_structures_are_those_of_the_vendors_own_binding():
    import pynvml as theirs

    pairs = {
        nvml.Memory: theirs.c_nvmlMemory_t,
        nvml.Utilization: theirs.c_nvmlUtilization_t,
        nvml.ProcessInfo: theirs.c_nvmlProcessInfo_v3_t,
    }
    for ours, other in pairs.items():
        assert ctypes.sizeof(ours) == ctypes.sizeof(other)
        for (mine, *_), (name, *_) in zip(ours._fields_, other._fields_, strict=True):
            assert getattr(ours, mine).offset == getattr(other, name).offset, (mine, name)
            assert getattr(ours, mine).size == getattr(other, name).size
    assert theirs.NVML_CLOCK_SM == nvml._SM_CLOCK
    assert theirs.NVML_ERROR_INSUFFICIENT_SIZE == nvml._INSUFFICIENT_SIZE
    assert theirs.nvmlClocksThrottleReasonSwPowerCap == nvml.POWER_CAPPED
    assert (
        theirs.nvmlClocksThrottleReasonHwSlowdown
        | theirs.nvmlClocksThrottleReasonSwThermalSlowdown
        | theirs.nvmlClocksThrottleReasonHwThermalSlowdown
        | theirs.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
    ) == nvml.SLOWED


def test_a_recording(tmp_path, monkeypatch):
    path = tmp_path / "gpus.json"
    monkeypatch.setenv("SWEEP_NVML", str(path))
    with pytest.raises(nvml.NvmlError, match="cannot be read"):
        nvml.open_gpus()
    path.write_text(json.dumps({"gpus": [{"uuid": "GPU-a", "total_bytes": 100, "pids": [7]}]}))
    gpus = nvml.open_gpus()
    assert gpus.names()[0] == nvml.GpuName("GPU-a", 0, "recorded", 100)
    assert gpus.read("GPU-a") == nvml.Reading(pids=(7,))
    path.write_text(json.dumps({"gpus": [{"uuid": "GPU-a", "memory_bytes": 5}]}))
    assert gpus.read("GPU-a") == nvml.Reading(memory_bytes=5)
    with pytest.raises(nvml.NvmlError, match="no GPU GPU-b"):
        gpus.read("GPU-b")
