"""Random stages with repeats, controls and failures, raced and not: the same top, noise and region."""

import math
import random

import pytest

from sweeper.design.region import choose_region, choose_top, noise_sd
from sweeper.executors.replay import Recording
from sweeper.replay import replay, with_racing
from sweeper.stages import FixedStage
from sweeper.study_file import load
from sweeper.trial import CONTROL, Evaluation, Phases, PlannedTrial, Reason, StagePlan
from tests.loop.test_sweep import STUDY

NOISE = 0.1


class Drawn:
    """A plan of points, some of them repeated, with what each of its trials takes or that it fails."""

    def __init__(self, study, seed, failing):
        draw = random.Random(seed)
        points = [
            study.space.point({"lr": 0.002 + 0.001 * i, "batch": 64})
            for i in range(draw.randint(8, 16))
        ]
        true = {point: 10 * math.exp(abs(draw.gauss(0, 0.5))) for point in points}
        planned = [(point, ("A",)) for point in points]
        planned += [(point, ("B",)) for point in points if draw.random() < 0.5]
        planned += 3 * [(draw.choice(points), (CONTROL,))]
        draw.shuffle(planned)
        self.keep = draw.choice((2, 3, 4))
        self.trials = tuple(
            PlannedTrial(f"t{i}", "stage1", "", groups, point, i)
            for i, (point, groups) in enumerate(planned)
        )
        self._seconds = {
            t.id: None
            if draw.random() < failing
            else min(true[t.point] * math.exp(draw.gauss(0, NOISE)), 45.0)
            for t in self.trials
        }

    def find(self, spec):
        seconds = self._seconds[spec.trial]
        if seconds is None:
            return Recording((), Phases(), Reason.CRASHED)
        clocks = [Phases(train=0.5 * i) for i in range(math.ceil(2 * seconds) + 1)]
        curve = tuple(Evaluation(i, i, c, 4 - 2 * c.train / seconds) for i, c in enumerate(clocks))
        return Recording(curve, curve[-1].clock, Reason.STEPS)

    def answers(self, study, slots):
        """What the next stage takes over, and the seconds that it took to find it out."""
        count = len(self.trials)
        plan = StagePlan("toy", "stage1", 2.0, self.trials, count, count)
        run = replay(study, FixedStage(study, plan, self.keep), self.find, target=2.0, slots=slots)
        assert run.end.ending == "complete"
        top = choose_top(study, run.end.facts, self.keep, 2.0)
        region = choose_region(study, run.end.facts, top)
        noise = noise_sd(study, run.end.facts, top.target, top.kth)
        return ([m.point for m in top.points], top.kth, noise, region), run.train_s


@pytest.mark.parametrize("failing", [0.0, 0.12])
def test_caps_change_the_order_of_work_and_no_answer(tmp_path, failing):
    (tmp_path / "study.toml").write_text(STUDY.replace("CAP", "true"))
    study = with_racing(load(tmp_path / "study.toml"), order=False, forecast=False)
    saved = []
    for seed in range(12):
        drawn = Drawn(study, seed, failing)
        free, without_s = drawn.answers(with_racing(study, cap=False), 1)
        raced, with_s = drawn.answers(study, 1 + seed % 2)
        assert raced == free, f"seed {seed}"
        saved.append(1 - with_s / without_s)
    assert sum(saved) > 0
