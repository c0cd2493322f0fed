"""The Ray executor on a real cluster on this machine: the contract, and what becomes of what is lost."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import pytest

from sweeper.errors import DeviceUnusable, EnvironmentUnusable
from sweeper.paths import AttemptPaths
from sweeper.runner import processes
from sweeper.spec import AttemptOutcome, Running
from sweeper.trial import Reason

if importlib.util.find_spec("ray") is None:  # imported later, when the cluster's token is known
    pytest.skip("Ray is not installed", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fakes"))
from ray_nodes import RayNodes
from test_contract import ExecutorContract

from sweeper.executors.ray_cluster import RayExecutor

pytestmark = [
    pytest.mark.long,
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings("default"),
]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _leave():
    yield
    import ray

    ray.shutdown()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """A head and two nodes with a processor and a GPU each; the driver (this process) has the token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # what a node imports is what is tested here
        patch.setenv("SWEEP_DEVICE_LOCKS", str(tmp_path_factory.mktemp("locks") / "devices"))
        with RayNodes() as cluster:
            for name, value in cluster.env.items():
                patch.setenv(name, value)
            cluster.add(cpus=1, gpus=1)
            cluster.add(cpus=1, gpus=1)
            yield cluster


class TestRayExecutor(ExecutorContract):
    gpus = 0

    @pytest.fixture
    def executor(self, nodes, tmp_path):
        executor = RayExecutor(gpus=self.gpus, home=tmp_path, lease_s=20)
        yield executor
        executor.close()

    def until(self, true, within_s=180):
        deadline = time.monotonic() + within_s
        while not true():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def started(self, executor, *options: str):
        slot = executor.slots()[0]
        spec = self.prepare(slot, *options)
        executor.submit(spec, slot)
        events = AttemptPaths(spec.parent).events
        deadline = time.monotonic() + 60
        while not (events.exists() and b'"step"' in events.read_bytes()):
            assert executor.wait(0.1) == []
            assert time.monotonic() < deadline
        return spec.parent

    def test_keepers_outlive_the_loop_and_are_adopted_by_the_next(self, executor, nodes):
        folder = self.started(executor, "--hang-at", "3")
        executor.close()
        following = RayExecutor(gpus=self.gpus, home=self.home, lease_s=20)
        try:
            slot = following.adopt(folder)
            assert slot in following.slots()
            assert following.wait(0.5) == []
            AttemptPaths(folder).control.write_text('{"v": 1, "cancel": true}')
            (ended,) = self.all_gone(following, 1)
            assert ended.folder == folder
            assert AttemptOutcome.read(AttemptPaths(folder).outcome).reason is Reason.KILLED
        finally:
            following.close()

    def test_a_worker_that_is_killed(self, executor, nodes):
        """Its runner ends the trainer and leaves the outcome; the device is given out again."""
        folder = self.started(executor, "--hang-at", "3", "--ignore-term")
        nodes.kill(named="ray::RayKeeper")
        (ended,) = self.all_gone(executor, 1)
        assert "died" in ended.fate
        token = Running.read(AttemptPaths(folder).running).token
        self.until(AttemptPaths(folder).outcome.exists)
        assert AttemptOutcome.read(AttemptPaths(folder).outcome).reason is Reason.KILLED
        self.until(lambda: not processes.marked(token))

    def test_a_slot_is_one_whole_device(self, executor):
        specs = []
        for slot in executor.slots():
            specs.append(self.prepare(slot))
            executor.submit(specs[-1], slot)
        self.all_gone(executor, 2)
        outcomes = [AttemptOutcome.read(AttemptPaths(s.parent).outcome) for s in specs]
        assert len({repr(o.device.get("uuid") or o.device["cores"]) for o in outcomes}) == 2


def test_gpus_are_given_out_whole(nodes, tmp_path):
    executor = RayExecutor(gpus=1, home=tmp_path, lease_s=20)
    case = TestRayExecutor()
    case.home, case.made = tmp_path, 0
    case.test_a_slot_is_one_whole_device(executor)
    executor.close()


def test_no_cluster(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(EnvironmentUnusable, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        RayExecutor(gpus=0, home=tmp_path, address="127.0.0.1:1")


def test_more_gpus_than_any_node_has(nodes, tmp_path):
    with pytest.raises(DeviceUnusable, match=r"no node of the Ray cluster has 2 GPU\(s\)"):
        RayExecutor(gpus=2, home=tmp_path)


def test_a_kind_that_is_not_there(nodes, tmp_path):
    with pytest.raises(DeviceUnusable, match="no node of kind 'H100' "):
        RayExecutor(gpus=1, home=tmp_path, kind="H100")


def test_an_attempt_whose_keeper_is_gone_counts_as_running_until_its_lease_has_ended(
    nodes, tmp_path
):
    """Its node was lost while no command ran: whatever still runs there must end before the next try."""
    executor = RayExecutor(gpus=0, home=tmp_path, lease_s=15)
    case = TestRayExecutor()
    case.home, case.made = tmp_path, 0
    folder = case.started(executor, "--hang-at", "3")
    executor.close()
    nodes.kill(named="ray::RayKeeper")
    nodes.kill(named="sweeper.runner")  # no outcome is left
    said = []
    following = RayExecutor(gpus=0, home=tmp_path, lease_s=15, note=said.append)
    slot = following.adopt(folder)
    assert slot is not None
    assert slot not in following.slots()
    assert following.wait(1.0) == []
    (ended,) = case.all_gone(following, 1)
    assert ended.fate == "its keeper was gone when the command was given again"
    assert len(said) == 1
    assert "ends with its lease, which is waited for" in said[0]
    following.close()


def test_a_place_that_others_on_the_cluster_have(nodes, tmp_path):
    """It is waited for, and people hear why; when it is free the attempt runs."""
    said = []
    executor = RayExecutor(gpus=1, home=tmp_path, lease_s=20, place_within_s=1.0, note=said.append)
    import ray

    class Other:
        def hello(self):
            return "hello"

    others = [ray.remote(num_gpus=1, num_cpus=0)(Other).remote() for _ in executor.slots()]
    ray.get([other.hello.remote() for other in others], timeout=60)
    case = TestRayExecutor()
    case.home, case.made = tmp_path, 0
    slot = executor.slots()[0]
    executor.submit(case.prepare(slot), slot)
    deadline = time.monotonic() + 30
    while not said:
        assert executor.wait(0.5) == []
        assert time.monotonic() < deadline
    assert "Ray has not given it its place" in said[0]
    for other in others:
        ray.kill(other)
    case.all_gone(executor, 1)
    assert len(said) == 1
    executor.close()
