"""Which places a machine has: processor slots, GPU slots, and what a user may ask for."""

from __future__ import annotations

import json

import pytest

from sweeper import devices
from sweeper.devices import Gpu, GpuSearch, choose_gpus, find_cores
from sweeper.errors import DeviceUnusable
from sweeper.executors import local
from sweeper.executors.local import LocalExecutor, cpu_slots, gpu_slots
from sweeper.runner import device_locks, quarantine

GPUS = tuple(Gpu(f"GPU-{c * 8}-{c * 4}", i, "H100", 80 * 2**30) for i, c in enumerate("abcd"))


def test_one_core_a_slot_and_one_left_for_everything_else():
    slots, own = cpu_slots((0, 2, 1, 3), None)
    assert [s.device["cores"] for s in slots] == [[0], [2], [1]]
    assert own == (3,)
    assert all(s.env["CUDA_VISIBLE_DEVICES"] == "" for s in slots)
    assert all(s.env["OMP_NUM_THREADS"] == s.env["MKL_NUM_THREADS"] == "1" for s in slots)


def test_a_machine_with_one_core_has_one_slot():
    slots, own = cpu_slots((0,), None)
    assert ([s.name for s in slots], own) == (["cpu0"], ())


def test_more_slots_than_cores_share_and_say_so():
    slots, own = cpu_slots((0, 1), 3)
    assert [s.device["cores"] for s in slots] == [[0], [1], [0]]
    assert all(s.device["shared"] for s in slots)
    assert own == ()


def test_one_slot_a_gpu_by_uuid():
    slots, own = gpu_slots(GPUS[:2], 1, tuple(range(9)))
    assert [s.env["CUDA_VISIBLE_DEVICES"] for s in slots] == [g.uuid for g in GPUS[:2]]
    assert [s.device["cores"] for s in slots] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert own == (8,)
    assert slots[0].env["OMP_NUM_THREADS"] == "4"


def test_several_gpus_a_slot():
    slots, _ = gpu_slots(GPUS, 2, tuple(range(8)))
    assert [s.name for s in slots] == ["gpu0+1", "gpu2+3"]
    assert slots[1].env["CUDA_VISIBLE_DEVICES"] == f"{GPUS[2].uuid},{GPUS[3].uuid}"
    assert [len(s.device["cores"]) for s in slots] == [3, 3]
    assert gpu_slots(GPUS, 2, tuple(range(17)))[0][0].env["OMP_NUM_THREADS"] == "4"
    with pytest.raises(DeviceUnusable, match=r"\[resources\] gpus = 5"):
        gpu_slots(GPUS, 5, (0,))


def test_more_gpus_than_cores():
    slots, own = gpu_slots(GPUS, 1, (0, 1))
    assert [s.device["cores"] for s in slots] == [[0], [1], [0], [1]]
    assert own == ()


def test_gpus_are_chosen_by_index_or_uuid():
    assert choose_gpus(GPUS, "1,0") == (GPUS[1], GPUS[0])
    assert choose_gpus(GPUS, " GPU-cccc , 3") == (GPUS[2], GPUS[3])


@pytest.mark.parametrize("wanted", ["7", "0,0", "GPU-", "cuda:0", "", ","])
def test_gpus_that_are_not_there(wanted):
    with pytest.raises(DeviceUnusable, match="--devices"):
        choose_gpus(GPUS, wanted)


def test_a_machine_without_a_gpu_says_what_to_do(monkeypatch):
    monkeypatch.setattr(local, "find_gpus", lambda: GpuSearch((), "no NVIDIA driver"))
    with pytest.raises(DeviceUnusable, match=r"no NVIDIA driver.*gpus = 0.*--slots"):
        LocalExecutor.on_devices(gpus=1)
    assert len(LocalExecutor.on_devices(gpus=1, slots=2).slots()) == 2
    assert LocalExecutor.on_devices(gpus=0).slots()[0].device["kind"] == "cpu"


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"gpus": 0, "slots": 0}, "--slots 0"),
        ({"gpus": 0, "devices": "0"}, "gpus = 0"),
        ({"gpus": 1, "devices": "0", "slots": 1}, "--slots"),
    ],
)
def test_what_cannot_be_asked_for(asked, word):
    with pytest.raises(DeviceUnusable, match=word):
        LocalExecutor.on_devices(**asked)


def test_the_environment_narrows_the_gpus():
    assert devices._narrowed(GPUS, f"2,{GPUS[0].uuid}") == (GPUS[2], GPUS[0])
    assert devices._narrowed(GPUS, "0,9,1") == (GPUS[0],)
    assert devices._narrowed(GPUS, "") == ()
    assert devices._narrowed(GPUS, "-1") == ()


def test_finding_gpus_never_raises():
    search = devices.find_gpus()
    assert search.gpus or search.why_none


def test_cores_of_different_physical_cores_come_first(tmp_path, monkeypatch):
    for core, siblings in enumerate(["0-1", "0-1", "2-3", "2-3"]):
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    monkeypatch.setattr(devices, "_TOPOLOGY", tmp_path)
    monkeypatch.setattr(devices, "_CGROUP_LIMIT", tmp_path / "none")
    monkeypatch.setattr(devices, "_CGROUP_LIMIT_V1", tmp_path / "none")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert find_cores() == (0, 2, 1, 3)
    (tmp_path / "max").write_text("250000 100000\n")
    monkeypatch.setattr(devices, "_CGROUP_LIMIT", tmp_path / "max")
    assert find_cores() == (0, 2)
    (tmp_path / "max").write_text("max 100000\n")
    assert find_cores() == (0, 2, 1, 3)


def recorded(tmp_path, monkeypatch, *gpus):
    path = tmp_path / "gpus.json"
    path.write_text(json.dumps({"gpus": [{"total_bytes": 80 << 30, **gpu} for gpu in gpus]}))
    monkeypatch.setenv("SWEEP_NVML", str(path))
    monkeypatch.setenv("SWEEP_DEVICE_LOCKS", str(tmp_path / "locks"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_come_from_the_driver_without_those_cut_into_slices(tmp_path, monkeypatch):
    recorded(tmp_path, monkeypatch, {"uuid": "GPU-a", "mig": True}, {"uuid": "GPU-b", "name": "X"})
    assert devices.find_gpus().gpus == (Gpu("GPU-b", 1, "X", 80 << 30),)
    recorded(tmp_path, monkeypatch, {"uuid": "GPU-a", "mig": True})
    assert "MIG slices are not supported" in devices.find_gpus().why_none
    with pytest.raises(DeviceUnusable, match=r"MIG slices are not supported.*whole GPUs"):
        choose_gpus(GPUS, "MIG-1234")
    recorded(tmp_path, monkeypatch, {"uuid": "GPU-a"})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234")
    assert "hides all of them; MIG slices" in devices.find_gpus().why_none


def test_a_slot_whose_device_others_have_or_that_is_quarantined_says_so(tmp_path, monkeypatch):
    recorded(tmp_path, monkeypatch, {"uuid": "GPU-a"}, {"uuid": "GPU-b", "pids": [1]})
    executor = LocalExecutor.on_devices(gpus=1)
    first, second = executor.slots()
    assert executor.trouble(first) == ""
    assert "GPU-b is used by process 1 (" in executor.trouble(second)
    lock = device_locks.take("GPU-a")
    lock.write({"holder": {"pid": 7, "user": "ann", "study": "x", "trial": "s1-A1"}})
    assert executor.trouble(first) == "GPU-a is taken by process 7 of ann for x/s1-A1"
    lock.release()
    path = quarantine.begin("GPU-a", "hot")
    assert "GPU-a is quarantined: hot" in executor.trouble(first)
    path.unlink()
    assert executor.trouble(first) == ""
    executor.close()


def test_cores_of_another_study_come_last(tmp_path, monkeypatch):
    monkeypatch.setenv("SWEEP_DEVICE_LOCKS", str(tmp_path / "locks"))
    cores = find_cores()
    lock = device_locks.take(f"core-{cores[0]}")
    lock.write({"holder": {"study": "other"}})
    free = (*cores[1:], cores[0])
    assert local._free_first(cores, "mine") == free
    assert local._free_first(cores, "other") == cores, "they are there to be adopted"
    lock.release()
    assert local._free_first(cores, "mine") == cores
