"""Shows what each schedule applies, step by step, against tables and torch's own schedulers."""

import itertools
import math

import pytest
import torch

from trainer.config import Schedule as ScheduleConfig
from trainer.config import examine, parse
from trainer.continuation import Continuation
from trainer.errors import ConfigError
from trainer.origin import planned_schedule
from trainer.schedules import plan, replan, restored


def factors(max_steps, count=None, **keys):
    schedule = plan(ScheduleConfig(**keys), max_steps)
    return [schedule.at(step) for step in range(max_steps if count is None else count)]


TABLES = [
    ({"kind": "constant"}, [1, 1, 1, 1, 1, 1, 1, 1]),
    ({"kind": "linear"}, [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
    ({"kind": "linear", "floor": 0.2}, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]),
    ({"kind": "linear", "warmup_steps": 4}, [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]),
    ({"kind": "constant", "warmup_share": 0.5}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
    ({"kind": "constant", "warmup_share": 0.13}, [0.5, 1, 1, 1, 1, 1, 1, 1]),
    (
        {"kind": "step", "step_every": 3, "step_factor": 0.5, "floor": 0.3},
        [1, 1, 1, 0.5, 0.5, 0.5, 0.3, 0.3],
    ),
    ({"kind": "polynomial", "power": 2}, [(1 - n / 8) ** 2 for n in range(8)]),
    ({"kind": "wsd", "decay_share": 0.5}, [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
    (
        {"kind": "wsd", "decay_share": 0.25, "warmup_steps": 2, "floor": 0.1},
        [0.5, 1, 1, 1, 1, 1, 1, 0.55],
    ),
    ({"kind": "cosine", "floor": 0.5}, [0.75 + 0.25 * math.cos(n * math.pi / 8) for n in range(8)]),
    ({"kind": "linear", "horizon": 4}, [1, 0.75, 0.5, 0.25, 0, 0, 0, 0]),
]


@pytest.mark.parametrize(("keys", "expected"), TABLES)
def test_each_kind_follows_its_table(keys, expected):
    assert factors(8, **keys) == pytest.approx(expected, abs=1e-12)


def test_torch_applies_the_same_rates():
    oracles = {
        "cosine": (
            {"kind": "cosine", "floor": 0.1},
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20, eta_min=0.1),
        ),
        "linear": (
            {"kind": "linear", "floor": 0.25},
            lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.25, total_iters=20),
        ),
        "polynomial": (
            {"kind": "polynomial", "power": 1.7},
            lambda o: torch.optim.lr_scheduler.PolynomialLR(o, total_iters=20, power=1.7),
        ),
        "step": (
            {"kind": "step", "step_every": 6, "step_factor": 0.3},
            lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=6, gamma=0.3),
        ),
    }
    for name, (keys, build) in oracles.items():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = build(optimizer)
        rates = []
        for _ in range(20):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert factors(20, **keys) == pytest.approx(rates, abs=1e-9), name


def test_after_its_end_a_schedule_stays_at_its_floor():
    assert factors(10, count=15, kind="cosine", floor=0.1)[10:] == pytest.approx([0.1] * 5)


@pytest.mark.parametrize("kind", ["linear", "cosine", "polynomial", "wsd", "step", "constant"])
def test_an_extension_goes_on_from_the_factor_in_force_and_arrives_at_the_new_end(kind):
    config = ScheduleConfig(kind=kind, floor=0.1, step_every=30)
    former = plan(config, 100)
    again = replan(config, former, step=60, max_steps=200)
    assert again.at(60) == pytest.approx(former.at(59))
    values = [again.at(step) for step in range(60, 201)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(values))
    if kind not in ("constant", "step"):
        assert values[-1] == pytest.approx(0.1)


def test_an_extension_has_no_second_warm_up_but_finishes_a_first_one():
    config = ScheduleConfig(kind="linear", warmup_steps=10)
    former = plan(config, 100)
    assert replan(config, former, step=50, max_steps=200).at(50) == former.at(49)
    cut_off = replan(config, former, step=5, max_steps=200)
    assert [cut_off.at(step) for step in (5, 9, 10)] == pytest.approx([0.6, 1.0, 1.0])
    assert cut_off.at(105) == pytest.approx(0.5)


def test_an_extension_from_a_rate_of_nothing_is_refused_unless_told_where_to_restart():
    config = ScheduleConfig(kind="linear", horizon=50)
    with pytest.raises(ConfigError, match=r"come down to 0 at step 60.*schedule\.restart"):
        replan(config, plan(config, 60), step=60, max_steps=100)
    told = ScheduleConfig(kind="linear", horizon=50, restart=0.4)
    assert replan(told, plan(told, 60), step=60, max_steps=100).at(60) == 0.4


def test_a_plan_survives_its_description():
    schedule = plan(ScheduleConfig(kind="wsd", warmup_share=0.1), 77)
    assert restored(schedule.as_dict()) == schedule


def test_a_warm_up_that_leaves_nothing_is_refused():
    with pytest.raises(ConfigError, match="fewer than the 10 steps"):
        plan(ScheduleConfig(kind="linear", warmup_steps=10), 10)


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"kind": "zigzag"}, "schedule.kind"),
        ({"warmup_steps": 3, "warmup_share": 0.1}, "schedule.warmup_share"),
        ({"kind": "wsd", "warmup_share": 0.6, "decay_share": 0.5}, "schedule.decay_share"),
        ({"floor": 1.5}, "schedule.floor"),
    ],
)
def test_a_schedule_that_cannot_be_is_a_configuration_error(keys, key):
    _, (problem,) = examine({"schedule": keys})
    assert problem.key == key
    with pytest.raises(ConfigError):
        parse({"schedule": keys}, "test")


def test_a_horizon_in_tokens_is_the_same_data_for_every_batch():
    for batch, steps in ((24, 480), (64, 180)):
        raw = {
            "data": {"batch_size": batch, "context": 64},
            "schedule": {"kind": "cosine", "horizon_tokens": 737_280},
        }
        schedule, _, _ = planned_schedule(parse(raw, "test"), Continuation())
        assert schedule.end == steps
        former = parse({**raw, "run": {"max_steps": steps // 2}}, "test")
        longer = parse({**raw, "run": {"max_steps": steps}}, "test")
        again, first, _ = planned_schedule(longer, Continuation(), former)
        assert (first, again.end) == (steps // 2, steps)
        assert again.peak == schedule.at(steps // 2 - 1)  # half of the way down, not at its floor
