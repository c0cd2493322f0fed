"""`--executor ray` as a user gives it, on a real cluster: the same answers, and nothing is lost."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from sweeper.runner import processes
from tests.fakes.ray_nodes import RayNodes

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed", allow_module_level=True)

pytestmark = [
    pytest.mark.long,
    pytest.mark.xdist_group("ray"),
    pytest.mark.timeout(600),
]
ROOT = Path(__file__).resolve().parents[2]
ON_RAY = ("--executor", "ray")
ADDRESSES = "10.99.7.1"
may_cut = (
    os.geteuid() == 0 and shutil.which("ip") is not None and shutil.which("nsenter") is not None
)


@pytest.fixture
def nodes(monkeypatch):
    """A head and three nodes of one processor each."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with RayNodes() as cluster:
        cluster.env["SWEEP_RAY_LEASE_S"] = "10"
        for _ in range(3):
            cluster.add(cpus=1)
        yield cluster


def losses(facts):
    """What every trial measured, without what depends on the machine."""
    curves = {f["id"]: tuple((step, loss) for _, step, _, loss in f["curve"]) for f in facts}
    return {(f["id"], f["label"], f["seed"], f["outcome"], curves[f["id"]]) for f in facts}


def test_the_same_plan_and_the_same_losses_as_on_this_machine(sweep, nodes):
    here = sweep.write("here")
    there = sweep.write("there")
    sweep("run", str(here))
    sweep("run", str(there), *ON_RAY, **nodes.env)
    ours, theirs = sweep.facts(here), sweep.facts(there)
    assert losses([f for f in ours if f["stage"] == "stage1"]) == losses(
        [f for f in theirs if f["stage"] == "stage1"]
    )
    plans = [json.loads(sweep("plan", str(s), "--stage", "1", "--json").out) for s in (here, there)]
    assert plans[0]["points"] == plans[1]["points"]
    assert len({f["device"]["node"] for f in theirs}) == 3
    sweep("db", "verify", str(there))


@pytest.mark.parametrize("part", ["everything of the node", "ray::RayKeeper"])
def test_what_is_killed_is_run_again(sweep, nodes, wait_until, part):
    """A node (its power), a node's Ray, a worker: nothing is lost, counted twice or left running."""
    study = sweep.write(trivial="", tau_s=6.0, step_s=0.1, few=True)
    stage = sweep.start("stage1", str(study), *ON_RAY, **nodes.env)
    wait_until(lambda: len(sweep.running()) >= 2, "two trials are under way")
    tokens = [known["token"] for known in sweep.running()]
    busy = next(n for n in (1, 2, 3) if nodes.pids(n, named="sweeper.runner"))
    assert nodes.kill(busy, named="" if part.startswith("everything") else part)
    done = stage.finish(300)
    assert done.code == 0, done.text
    facts = sweep.facts(study)
    lost = [f for f in facts if f["outcome"] == "failed"]
    # and "device": these nodes share a machine, and one may be on the core that another wants
    assert {f["reason"] for f in lost} <= {"lost", "killed", "device"}
    assert {f["reason"] for f in lost} & {"lost", "killed"}
    counted = [f["id"] for f in facts if f["outcome"] in ("reached", "censored")]
    assert len(counted) == len(set(counted)) == 5
    wait_until(lambda: not any(processes.marked(t) for t in tokens), "nothing is left running")
    sweep("db", "verify", str(study))


def test_the_command_is_killed_and_given_again(sweep, nodes, wait_until, tmp_path):
    go_on = tmp_path / "go-on"
    study = sweep.write(trivial=f"--virtual-clock --wait-for {go_on}", startup_s=300, few=True)
    stage = sweep.start("stage1", str(study), *ON_RAY, **nodes.env)
    wait_until(lambda: len(sweep.running()) >= 2, "two trials are under way")
    stage.kill()
    again = sweep.start("stage1", str(study), *ON_RAY, **nodes.env)
    wait_until(lambda: "still running, taken over" in again.said("out"), "both are taken over")
    go_on.touch()
    done = again.finish(300)
    assert done.code == 0, done.text
    facts = sweep.facts(study)
    assert [f["outcome"] in ("reached", "censored") for f in facts] == [True] * 5


def test_every_kind_of_node_is_a_block_of_its_own(sweep, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    study = sweep.write(few=True)
    with RayNodes() as cluster:
        cluster.add(cpus=1, resources='{"accelerator_type:Fast": 1}')
        cluster.add(cpus=1, resources='{"accelerator_type:Slow": 1}')
        refused = sweep("stage1", str(study), *ON_RAY, exit=3, **cluster.env)
        assert "2 kinds: 'Fast' (1 nodes), 'Slow' (1 nodes)" in refused.text
        done = sweep("stage1", str(study), *ON_RAY, "--node-kind", "each", "--json", **cluster.env)
        document = done.json()
        assert set(document["kinds"]) == {"Fast", "Slow"}
        assert [d["reached"] for d in document["kinds"].values()] == [5, 5]
        nodes = {
            f["device"]["node_kind"]: {f["study"]}
            for kind in document["kinds"]
            for f in map(
                json.loads,
                sweep("export", str(study), "--trials", "--node-kind", kind).out.splitlines(),
            )
        }
        assert nodes == {"Fast": {"trivial-fast"}, "Slow": {"trivial-slow"}}


class Blocks:
    """`stage1 --node-kind each` on a cluster of two kinds, signalled alone, as `kill` does it."""

    def __init__(self, sweep, study, cluster, wait_until):
        words = ("stage1", str(study), *ON_RAY, "--node-kind", "each")
        self.command = sweep.start(*words, **cluster.env)
        self.wait_until = wait_until
        wait_until(lambda: len(self.pids()) == 2, "a block for each kind")
        self.both = self.pids()
        names = ("trivial-fast", "trivial-slow")
        wait_until(lambda: all(map(sweep.running, names)), "a trial of each kind is under way")
        self.trials = [known for name in names for known in sweep.running(name)]

    def pids(self):
        me = self.command.process.pid
        return [p.pid for p in processes.everyone() if p.parent == me]

    def signal(self, number, *, until=""):
        self.command.process.send_signal(number)
        if until:
            self.both_said(until)

    def both_said(self, words):
        def said():
            lines = self.command.said("out").splitlines()
            return all(any(x.startswith(k) and words in x for x in lines) for k in ("Fast", "Slow"))

        self.wait_until(said, words)

    def leave(self, alive):
        """The exit code of the command, which has waited for its blocks."""
        code = self.command.finish().code
        assert not any(map(alive, self.both))
        return code

    def left(self):
        return processes.marked(*(known["token"] for known in self.trials))


@pytest.fixture
def not_nohup():
    """Commands hear SIGHUP, also where the tests themselves were started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("not_nohup")
def test_a_signal_to_the_command_for_every_kind(sweep, monkeypatch, wait_until, alive, tmp_path):
    """It goes to each block once; nobody leaves before the blocks have, and nobody stays behind."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    go_on = tmp_path / "go-on"
    study = sweep.write(trivial=f"--virtual-clock --wait-for {go_on}", startup_s=600, few=True)
    with RayNodes() as cluster:
        for kind in ("Fast", "Slow"):  # each with processors of its own, so that both run at once
            monkeypatch.setenv("SWEEP_DEVICE_LOCKS", str(tmp_path / kind))
            cluster.add(cpus=1, resources=f'{{"accelerator_type:{kind}": 1}}')

        blocks = Blocks(sweep, study, cluster, wait_until)
        blocks.signal(signal.SIGTERM, until="stopping: running trials may finish")
        assert alive(blocks.command.process.pid), "it waits for its blocks"
        assert all(map(alive, blocks.both)), "and they for their trials"
        assert "ending the running trials" not in blocks.command.said("out")
        blocks.signal(signal.SIGTERM, until="ending the running trials")
        assert blocks.leave(alive) == 130
        wait_until(lambda: not blocks.left(), "no trial is left")

        blocks = Blocks(sweep, study, cluster, wait_until)
        blocks.signal(signal.SIGHUP)  # a terminal is closed: as with any command, its trials go on
        assert blocks.leave(alive) == 130
        assert blocks.left()

        again = Blocks(sweep, study, cluster, wait_until)
        again.both_said("still running, taken over")
        again.signal(signal.SIGINT, until="stopping: running trials may finish")
        go_on.touch()
        assert again.leave(alive) == 130
        wait_until(lambda: not again.left(), "no trial is left")
        for kind in ("Fast", "Slow"):
            trials = sweep("export", str(study), "--trials", "--node-kind", kind).out.splitlines()
            assert [json.loads(t)["outcome"] for t in trials].count("reached") == 1


def test_no_cluster_and_no_token(sweep, tmp_path):
    study = sweep.write(few=True)
    done = sweep("stage1", str(study), *ON_RAY, "--address", "127.0.0.1:1", exit=3)
    assert "no Ray cluster at 127.0.0.1:1" in done.text
    assert "ray start --head" in done.text
    done = sweep("stage1", str(study), "--node-kind", "H100", exit=3)
    assert "--node-kind is for --executor ray" in done.text
    done = sweep("status", str(study), "--node-kind", "each", exit=2)
    assert "name one kind" in done.text


class Namespaces:
    """Machines of their own as far as the network goes: a bridge, and a link to each that can be cut."""

    def __init__(self, count: int) -> None:
        self.names = [f"swt{os.getpid()}n{i}" for i in range(count)]
        self.bridge = f"swt{os.getpid()}b"
        try:
            self._run("ip", "netns", "add", self.bridge)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        self._run("ip", "-n", self.bridge, "link", "add", "br0", "type", "bridge")
        self._run("ip", "-n", self.bridge, "link", "set", "br0", "up")
        for i, name in enumerate(self.names):
            self._run("ip", "netns", "add", name)
            self._run(
                "ip", "-n", self.bridge, "link", "add", f"v{i}", "type", "veth",
                "peer", "name", "eth0", "netns", name,
            )  # fmt: skip
            self._run("ip", "-n", self.bridge, "link", "set", f"v{i}", "master", "br0", "up")
            self._run("ip", "-n", name, "link", "set", "lo", "up")
            self._run("ip", "-n", name, "addr", "add", f"{self.host(i)}/24", "dev", "eth0")
            self._run("ip", "-n", name, "link", "set", "eth0", "up")

    def host(self, i: int) -> str:
        return f"{ADDRESSES}{i}"

    def within(self, i: int, *, hide: Path | None = None) -> list[str]:
        """A command's beginning that puts the rest there; `hide`: a folder that it does not share."""
        words = ["nsenter", f"--net=/run/netns/{self.names[i]}"]
        if hide is not None:
            script = f'mount -t tmpfs none "{hide}" && exec "$@"'
            words += ["unshare", "--mount", "sh", "-c", script, "sh"]
        return words

    def cut(self, i: int) -> None:
        self._run("ip", "-n", self.bridge, "link", "set", f"v{i}", "down")

    def close(self) -> None:
        for name in (*self.names, self.bridge):
            subprocess.run(["ip", "netns", "del", name], check=False, timeout=20)

    def _run(self, *words: str) -> None:
        subprocess.run(words, check=True, timeout=20, capture_output=True)


@pytest.mark.skipif(not may_cut, reason="network namespaces need root, ip and nsenter")
def test_a_link_is_cut(sweep, monkeypatch, wait_until):
    """No folder is shared. The trial there ends with its lease, is run again elsewhere, counts once."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SWEEP_DEVICE_LOCKS", str(sweep.folder / "devices"))
    study = sweep.write(trivial="", tau_s=6.0, step_s=0.1, few=True)
    sweep.home.mkdir(mode=0o700, exist_ok=True)
    machines = Namespaces(3)
    try:
        with RayNodes(host=machines.host(0), wrap=machines.within(0)) as cluster:
            for i in (1, 2):
                cluster.add(cpus=1, host=machines.host(i), wrap=machines.within(i, hide=sweep.home))
            stage = sweep.start(
                "stage1", str(study), *ON_RAY, wrap=machines.within(0), SWEEP_RAY_LEASE_S="6",
                **cluster.env,
            )  # fmt: skip
            wait_until(lambda: len(sweep.running()) >= 2, "two trials are under way")
            machines.cut(2)
            cut_at = time.monotonic()
            there = cluster.pids(2, named="sweeper.runner")
            assert there
            wait_until(lambda: not cluster.pids(2, named="sweeper.runner"), "its runner ends")
            ended_after_s = time.monotonic() - cut_at
            assert ended_after_s < 60
            done = stage.finish(400)
            assert done.code == 0, done.text
            facts = sweep.facts(study)
            counted = [f["id"] for f in facts if f["outcome"] in ("reached", "censored")]
            assert len(counted) == len(set(counted)) == 5
            lost = [f for f in facts if f["outcome"] == "failed"]
            assert {f["reason"] for f in lost} == {"lost"}, done.text
    finally:
        machines.close()
