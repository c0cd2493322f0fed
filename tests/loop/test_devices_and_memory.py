"""The loop and its devices: slots that are left out, memory that runs out, checkpoints that pile up."""

from __future__ import annotations

import json

import pytest

from sweeper import places
from sweeper.errors import DeviceUnusable
from sweeper.executors.simulated import SimulatedExecutor
from sweeper.paths import Home
from sweeper.report.lines import QuietProgress
from sweeper.search.memory import MemorySearch
from sweeper.spec import AttemptOutcome
from sweeper.stages import Stage1
from sweeper.storage.memory import MemoryStore
from sweeper.study_file import load
from sweeper.sweep import StageRun
from sweeper.trial import OUTCOME_OF, Reason

STUDY = """
[study]
name = "toy"
[objective]
target = 2.0
[trainer]
command = ["{python}", "-c", "pass", "{config}", "--lr={lr}"]
config = "base.toml"
new_keys = true
[limits]
steps = 100
trial_s = 50
[resources]
gpus = 0
[space.lr]
type = "float"
low = 0.001
high = 0.1
[racing]
cap = false
[[stage1.group]]
name = "A"
vary = { lr = [0.003, 0.01, 0.03, 0.1] }
[stage2]
from_top = 2
"""
ON_OOM = '[on_oom]\nmicro_batch = "data.micro"\naccumulation = "data.accumulation"\n'


class Notes(QuietProgress):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


class Bench:
    def __init__(self, tmp_path, play, *, more="", base="[data]\nmicro = 8\naccumulation = 1\n"):
        folder = tmp_path / "study"
        folder.mkdir(exist_ok=True)
        (folder / "base.toml").write_text(base)
        (folder / "study.toml").write_text(STUDY + more)
        self.study = load(folder / "study.toml")
        self.home, self.store = Home(tmp_path / "home"), MemoryStore()
        self.executor, self.progress = SimulatedExecutor(play, slots=2), Notes()

    def run(self, **more):
        lease = self.store.acquire("toy", "tests", ttl_s=600)
        try:
            return StageRun(
                study=self.study,
                stage=Stage1(self.study, keep=2),
                store=self.store,
                search=lambda name: MemorySearch(),
                executor=self.executor,
                home=self.home,
                lease=lease,
                progress=self.progress,
                target=2.0,
                **more,
            ).run()
        finally:
            self.store.release(lease)

    def config(self, facts, attempt):
        path = self.home.attempt("toy", facts.trial.id, attempt).config
        return path.read_text()


def play(spec, reason=Reason.TARGET, seconds=None):
    lr = next(float(a.partition("=")[2]) for a in spec.argv if a.startswith("--lr="))
    seconds = 1000 * lr if seconds is None else seconds
    curve = [(0.0, 4.0), (seconds, 1.9 if reason is Reason.TARGET else 3.0)]
    lines = [
        json.dumps(
            {"v": 1, "seq": i, "event": "evaluated", "step": i, "clock": {"train": t},
             "metrics": {"val_loss": loss}}
        )
        for i, (t, loss) in enumerate(curve)
    ]  # fmt: skip
    return lines, AttemptOutcome(
        study=spec.study, trial=spec.trial, attempt=spec.attempt, outcome=OUTCOME_OF[reason],
        reason=reason, message="simulated", exit_code=0, signal=None, started_at=1e9,
        ended_at=1e9 + seconds, wall_s=seconds, device=spec.device, adjusted=spec.adjusted,
    )  # fmt: skip


def fits(micro):
    """A device on which only micro-batches up to so many fit."""

    def player(spec):
        size = spec.adjusted.get("data.micro", 8)
        return play(spec, Reason.TARGET if size <= micro else Reason.OOM)

    return player


class TestOutOfMemory:
    def test_the_micro_batch_is_halved_until_it_fits(self, tmp_path):
        bench = Bench(tmp_path, fits(2), more=ON_OOM)
        end = bench.run()
        assert end.ending == "complete"
        for facts in end.facts:
            assert [a.reason for a in facts.attempts] == [Reason.OOM, Reason.OOM, Reason.TARGET]
            assert [a.device.get("adjusted") for a in facts.attempts] == [
                None,
                {"data.micro": 4, "data.accumulation": 2},
                {"data.micro": 2, "data.accumulation": 4},
            ]
            assert "micro = 8\naccumulation = 1" in bench.config(facts, 1)
            assert "micro = 2\naccumulation = 4" in bench.config(facts, 3)
        said = " / ".join(bench.progress.said)
        assert "out of memory: again with data.micro = 4, data.accumulation = 2" in said

    def test_down_to_one_and_then_it_has_failed_for_good(self, tmp_path):
        bench = Bench(tmp_path, fits(0), more=ON_OOM)
        end = bench.run()
        first = max(end.facts, key=lambda f: len(f.attempts))
        assert [a.device.get("adjusted", {}).get("data.micro") for a in first.attempts] == [
            None, 4, 2, 1,
        ]  # fmt: skip
        assert end.ending == "breaker"
        assert any("data.micro = 1 is the smallest" in said for said in bench.progress.said)

    def test_an_odd_micro_batch_says_so(self, tmp_path):
        base = "[data]\nmicro = 6\naccumulation = 5\n"
        bench = Bench(tmp_path, lambda s: play(s, Reason.OOM), more=ON_OOM, base=base)
        end = bench.run()
        first = max(end.facts, key=lambda f: len(f.attempts))
        assert first.attempts[-1].device["adjusted"] == {"data.micro": 3, "data.accumulation": 10}
        assert len(first.attempts) == 2
        assert any("data.micro = 3 is odd" in said for said in bench.progress.said)

    def test_an_attempt_that_was_lost_in_between_does_not_start_anew(self, tmp_path):
        def player(spec):
            if spec.attempt == 2:
                return play(spec, Reason.LOST)
            return fits(4)(spec)

        end = Bench(tmp_path, player, more=ON_OOM).run()
        for facts in end.facts:
            assert [a.reason for a in facts.attempts] == [Reason.OOM, Reason.LOST, Reason.TARGET]
            assert facts.attempts[2].device["adjusted"]["data.micro"] == 4

    def test_without_the_setting_it_fails_once(self, tmp_path):
        end = Bench(tmp_path, fits(4)).run()
        assert end.ending == "breaker"
        assert {len(f.attempts) for f in end.facts} <= {0, 1}

    def test_keys_of_the_space_reach_the_command(self, tmp_path):
        more = (
            '[space.micro]\ntype = "int"\nlow = 1\nhigh = 64\nbaseline = 16\n'
            '[space.accumulation]\ntype = "int"\nlow = 1\nhigh = 64\nbaseline = 2\n'
            '[on_oom]\nmicro_batch = "micro"\naccumulation = "accumulation"\n'
        )
        seen = []

        def player(spec):
            seen.append((spec.attempt, spec.adjusted, spec.argv[-2:]))
            return play(spec, Reason.OOM if spec.attempt == 1 else Reason.TARGET)

        bench = Bench(tmp_path, player)
        command = '"--lr={lr}", "--micro={micro}", "--accumulation={accumulation}"]'
        text = STUDY.replace('"--lr={lr}"]', command)
        (bench.study.folder / "study.toml").write_text(text + more)
        bench.study = load(bench.study.folder / "study.toml")
        bench.run()
        assert (1, {}, ["--micro=16", "--accumulation=2"]) in seen
        halved = {"micro": 8, "accumulation": 4}
        assert (2, halved, ["--micro=8", "--accumulation=4"]) in seen


class Busy(SimulatedExecutor):
    """Slots that others have for so many looks."""

    def __init__(self, play, looks):
        super().__init__(play, slots=2)
        self.looks = looks

    def trouble(self, slot):
        left = self.looks.get(slot.name, 0)
        self.looks[slot.name] = left - 1
        return "core-7 is taken by process 5" if left > 0 else ""


class TestPlaces:
    def test_a_slot_that_others_have_is_left_out_and_taken_when_free(self, tmp_path):
        bench = Bench(tmp_path, play)
        used = []

        def player(spec):
            used.append(spec.device["index"])
            return play(spec)

        bench.executor = Busy(player, {"sim0": 2})
        end = bench.run()
        assert end.ending == "complete"
        assert used[0] == 1
        assert 0 in used
        assert bench.progress.said[:2] == [
            "sim0 is left out: core-7 is taken by process 5",
            "sim0 is free again",
        ]

    def test_with_no_slot_at_all_it_waits_and_goes_on(self, tmp_path):
        bench = Bench(tmp_path, play)
        bench.executor = Busy(play, {"sim0": 5, "sim1": 5})
        end = bench.run()
        assert end.ending == "complete"
        assert len([s for s in bench.progress.said if "left out" in s]) == 2

    def test_and_gives_up_with_the_reason(self, tmp_path, monkeypatch):
        monkeypatch.setattr(places, "WITHIN_S", 0.2)
        bench = Bench(tmp_path, play)
        bench.executor = Busy(play, {"sim0": 10**9, "sim1": 10**9})
        with pytest.raises(DeviceUnusable, match=r"sim0: core-7 is taken by process 5; sim1"):
            bench.run()
        assert bench.store.stage("toy", "stage1").closed_at is None


class TestCheckpoints:
    def fill(self, bench, spec):
        folder = bench.home.attempt("toy", spec.trial, spec.attempt).folder
        (folder / "checkpoint.pt").write_bytes(bytes(1000))
        (folder / "checkpoint-5").mkdir()
        (folder / "checkpoint-5" / "weights").write_bytes(bytes(500))
        (folder / "model.pt").write_bytes(b"stays")
        victim = bench.home.folder.parent / "victim"
        victim.mkdir(exist_ok=True)
        (victim / "precious").write_text("stays")
        (folder / "checkpoint-link").symlink_to(victim)

    def run(self, tmp_path, more=""):
        def player(spec):
            self.fill(bench, spec)
            return play(spec, seconds=10.0 if "0.03" in str(spec.argv) else None)

        bench = Bench(tmp_path, player, more=more)
        end = bench.run()
        left = {
            f.trial.point["lr"]
            for f in end.facts
            if list(bench.home.attempt("toy", f.trial.id, 1).folder.glob("checkpoint*"))
        }
        assert (tmp_path / "victim" / "precious").read_text() == "stays"
        assert len(list(bench.home.study("toy").glob("*/attempt-1/model.pt"))) == 4
        return bench, left

    def test_the_top_k_keep_theirs(self, tmp_path):
        bench, left = self.run(tmp_path)
        assert len(left) == 2
        assert any("checkpoints of the others were deleted" in s for s in bench.progress.said)
        bench.run()

    @pytest.mark.parametrize(("keep", "count"), [("all", 4), ("none", 0)])
    def test_all_or_none(self, tmp_path, keep, count):
        _, left = self.run(tmp_path, more=f'[checkpoints]\nkeep = "{keep}"\n')
        assert len(left) == count

    def test_by_time_and_then_by_loss(self, tmp_path):
        _, left = self.run(tmp_path)
        assert 0.003 in left
        assert 0.1 not in left


def test_samples_are_kept_with_their_attempt(tmp_path):
    def player(spec):
        paths = bench.home.attempt("toy", spec.trial, spec.attempt)
        lines = [
            {"device": "GPU-a", "at_s": i / 2, "memory_bytes": i, "clock_mhz": 1e3}
            for i in range(3)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        paths.samples.write_text(text + '{"device": "GPU-a", "at_s')
        return play(spec)

    bench = Bench(tmp_path, player)
    end = bench.run()
    kept = bench.store.samples("toy", end.facts[0].trial.id, 1)
    assert [(s.at_s, s.memory_bytes, s.clock_mhz) for s in kept] == [
        (0.0, 0, 1e3),
        (0.5, 1, 1e3),
        (1.0, 2, 1e3),
    ]
