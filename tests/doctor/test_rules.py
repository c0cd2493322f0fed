"""Every rule of `sweep doctor` fires on a run that has its trouble, and not on one that has not."""

from __future__ import annotations

import json
import math

import pytest

from sweeper.doctor.rules import FILE, built_in, diagnose, diagnose_study, facts, joined, load
from sweeper.doctor.run_log import from_lines
from sweeper.doctor.signals import epochs, fall_per_epoch, progress, value_at
from sweeper.errors import StudyError

RULES = {rule.name: rule for rule in built_in()}


def falling(step):
    """A loss that learns, with a little noise that is the same each time."""
    return 2.0 + 3.0 * math.exp(-step / 800) + 0.01 * math.sin(step * 12.9898)


def a_run(name="s1-A1", *, steps=2000, every=20, loss=falling, lr=lambda step: 1e-3, **other):
    """Events of a healthy run, with what `other` says changed."""
    config = {
        "optim": {"adam": {"lr": 1e-3}},
        "data": {"batch_size": 24, "micro_batch": 8},
        "run": {"max_steps": 2000, "clip_norm": 2.0, "seed": 0, **other.get("run", {})},
    }
    audit = {"tokens": other.get("corpus", 4_000_000), "context": 64, "overlap": 0}
    schedule = {"kind": "cosine", "first": 0, "end": 2000, "warmup": 100}
    started = {
        "config": {**config, **other.get("config", {})},
        "data_audit": {**audit, **other.get("audit", {})},
        "schedule": {**schedule, **other.get("schedule", {})},
        **other.get("started", {}),
    }
    speed = other.get("speed", lambda step: 30_000.0)
    norm = other.get("norm", lambda step: 1.2)
    val = other.get("val", lambda step: loss(step) + 0.02)
    compiled = other.get("compiled", lambda step: 0.5)
    eval_share = other.get("eval_share", 0.1)
    events = [("run_started", 0, started)]
    for step in range(0, steps + 1, every):
        if step:
            report = {
                "loss": loss(step), "lr": {"matrix": lr(step)}, "grad_norm": norm(step),
                "tokens_per_s": speed(step),
            }  # fmt: skip
            events.append(("step", step, report))
        if step % 200 == 0:
            probe = {"metrics": {"val_loss": val(step)}, "slice": "probe"}
            events.append(("evaluated", step, probe))
            if "confirmation" in other:
                sure = {"metrics": {"val_loss": val(step) + other["confirmation"]}}
                events.append(("evaluated", step, {**sure, "slice": "confirmation"}))
    events += other.get("end", [("run_finished", steps, {"reason": "steps"})])
    lines = []
    for seq, (event, step, body) in enumerate(events):
        train_s = step / 100
        clock = {"compile": compiled(step), "train": train_s, "eval": train_s * eval_share}
        head = {"v": 1, "seq": seq, "event": event, "step": step, "tokens": step * 1536}
        lines.append(json.dumps({**head, "clock": clock, **body}))
    return from_lines(lines, name)


def failed(reason):
    return [("run_failed", 700, {"class": reason, "message": "no"})]


def cosine(step):
    return 1e-3 * (1 + math.cos(math.pi * min(step, 2000) / 2000)) / 2


# rule: (a run that has it, a run that is near it but has it not)
CASES = {
    "loss_flat": (
        {"loss": lambda step: 3.6 + 0.004 * math.sin(step)},
        {"loss": lambda step: 3.6 + 0.004 * math.sin(step), "lr": cosine},  # a finished decay is flat
    ),
    "loss_flat_early": (
        {"steps": 600, "loss": lambda step: 3.6 + 0.004 * math.sin(step)},
        {"steps": 600},
    ),
    "little_per_epoch": (
        {"loss": lambda step: 3.6 - step * 1e-5, "corpus": 1_000_000},
        {"loss": lambda step: 3.6 - step * 1e-3, "corpus": 1_000_000},
    ),
    "loss_spike": (
        {"loss": lambda step: falling(step) + 0.6 * (step == 1400)},
        {"loss": lambda step: falling(step) + 0.6 * math.sin(step)},  # as noisy as that all the time
    ),
    "diverged": ({"steps": 700, "end": failed("diverged")}, {"steps": 700, "end": failed("oom")}),
    "overfitting": (
        {"val": lambda step: 2.5 + abs(step - 1000) / 4000},
        {"val": lambda step: 2.5 + max(0, 1000 - step) / 4000},
    ),
    "gradient_large": (
        {"norm": lambda step: 4.0, "run": {"clip_norm": 0.0}},
        {"norm": lambda step: 2.9, "run": {"clip_norm": 0.0}},
    ),
    "gradient_explodes": (
        {"norm": lambda step: 1.2 if step < 1960 else 40.0},
        {"norm": lambda step: 1.2 if step < 1960 else 6.0},
    ),
    "always_clipped": ({"norm": lambda step: 2.0}, {"norm": lambda step: 1.5 + 0.5 * (step % 40 == 0)}),
    "lr_zero": (
        {"lr": lambda step: 1e-3 if step < 1000 else 0.0, "steps": 1500},
        {"lr": lambda step: 1e-3 if step < 2000 else 0.0},  # at the very end it may
    ),
    "schedule_ends_early": ({"schedule": {"end": 1000}}, {"schedule": {"end": 1980}}),
    "schedule_cut_off": ({"schedule": {"end": 4000}}, {}),
    "warmup_long": ({"schedule": {"warmup": 400}}, {"schedule": {"warmup": 200}}),
    "data_repeated": ({"corpus": 500_000}, {"corpus": 1_000_000}),
    "windows_overlap": ({"audit": {"overlap": 63}}, {}),
    "throughput_drops": (
        {"speed": lambda step: 30_000.0 if step < 1300 else 20_000.0},
        {"speed": lambda step: 30_000.0 + 3_000 * math.sin(step)},
    ),
    "evaluation_expensive": ({"eval_share": 0.8}, {"eval_share": 0.2}),
    "compile_again": ({"compiled": lambda step: 0.5 + step / 100}, {"compiled": lambda step: 30.0}),
    "out_of_memory": ({"steps": 700, "end": failed("oom")}, {"steps": 700, "end": failed("crash")}),
    "probe_too_small": ({"confirmation": 0.09}, {"confirmation": 0.01}),
}  # fmt: skip


def repeats(noise, between):
    """Two configurations with two seeds each, and a third."""
    return [
        a_run(
            f"s1-{arm}{seed}",
            run={"seed": seed},
            config={"optim": {"adam": {"lr": arm}}},
            val=lambda step, a=arm, s=seed: falling(step) + a * between + s * noise,
        )
        for arm, seed in [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]
    ]


def runs(count, **changed):
    return [a_run(f"s1-A{number}", **changed) for number in range(count)]


STUDY_CASES = {
    "noise_hides_differences": (repeats(0.1, 0.02), repeats(0.01, 0.1)),
    "compile_recurs": (
        runs(4, compiled=lambda step: 30.0),
        [a_run(compiled=lambda step: 30.0), *runs(3)],
    ),
    "memory_recurs": (
        [*runs(2), *runs(1, steps=0, end=failed("oom"))],
        [*runs(5), *runs(1, steps=0, end=failed("oom"))],
    ),
    "speeds_disagree": (
        [*runs(2), *runs(1, speed=lambda step: 10_000.0)],
        [*runs(2), *runs(1, speed=lambda step: 28_000.0)],
    ),
}


def names(diagnosis):
    return {finding.rule for finding in diagnosis.findings}


def test_every_rule_has_its_cases():
    assert set(CASES) | set(STUDY_CASES) == set(RULES)


@pytest.mark.parametrize("name", CASES)
def test_a_rule_fires_where_it_should_and_only_there(name):
    has, has_not = (diagnose(a_run(**changed), [RULES[name]]) for changed in CASES[name])
    assert names(has) == {name}
    assert (names(has_not), has_not.not_judged) == (set(), ())
    (finding,) = has.findings
    assert "{" not in finding.meaning + finding.advice
    assert all(math.isfinite(value) for value in finding.values.values())


@pytest.mark.parametrize("name", STUDY_CASES)
def test_a_rule_of_many_runs_fires_where_it_should_and_only_there(name):
    has, has_not = (diagnose_study(found, [RULES[name]]) for found in STUDY_CASES[name])
    assert names(has) == {name}
    assert (names(has_not), has_not.not_judged) == (set(), ())


def test_nothing_is_found_in_a_healthy_run():
    assert names(diagnose(a_run(lr=cosine), built_in())) == set()


def test_the_words_have_the_numbers():
    has, _ = CASES["out_of_memory"]
    (finding,) = diagnose(a_run(**has), [RULES["out_of_memory"]]).findings
    assert "passes of 8 sequences" in finding.meaning
    assert "data.micro_batch = 4 with data.batch_size = 24" in finding.advice
    (finding,) = diagnose(
        a_run(steps=600, loss=lambda step: 3.6), [RULES["loss_flat_early"]]
    ).findings
    assert (
        "fell by 0.0000 over the last 30 % of the 600 steps so far, with 30% of" in finding.meaning
    )
    assert "at 0.001:" in finding.advice


def test_the_worst_comes_first():
    found = diagnose(a_run(audit={"overlap": 63}, steps=700, end=failed("oom")), built_in())
    assert next(finding.severity for finding in found.findings) == "serious"


def test_a_foreign_run_is_judged_by_what_it_tells():
    """No learning rate, no gradient, no plan: the rules that need them are named as not judged."""
    lines = [
        json.dumps({"v": 1, "seq": n, "event": "step", "step": n * 10, "loss": 3.0})
        for n in range(99)
    ]
    found = diagnose(from_lines(lines, "foreign"), built_in())
    assert names(found) == set()
    assert {"lr_zero", "gradient_large", "schedule_ends_early", "data_repeated"} <= set(
        found.not_judged
    )
    assert facts(from_lines(lines, "foreign")) == {"step": 980}


def test_a_run_from_a_checkpoint_is_judged_by_all_its_steps():
    """Its steps count from the checkpoint, its plan and its data from the very beginning."""
    before = {"step": 2000, "tokens": 2000 * 1536, "clock": {}}
    plan = {"run": {"max_steps": 4000}, "corpus": 1_536_000}
    on = a_run(steps=1000, started={"counts_from": before}, **plan)
    alone = a_run(steps=1000, **plan)
    assert (progress(on), progress(alone)) == (0.75, 0.25)
    assert (epochs(on), epochs(alone)) == pytest.approx((3.0, 1.0))
    assert value_at(on, epoch=2.5) == pytest.approx(falling(600) + 0.02)  # probes: every 200 steps
    assert value_at(on, share=0.6) == pytest.approx(falling(400) + 0.02)
    assert value_at(on, epoch=1.0) is None  # before the checkpoint: its first probe is another's
    assert fall_per_epoch(on) == pytest.approx(fall_per_epoch(alone))


def test_a_torn_last_line_of_a_running_trial_is_no_trouble():
    whole = json.dumps({"v": 1, "seq": 0, "event": "step", "step": 1, "loss": 3.0})
    log = from_lines([whole, whole[:20]], "running")
    assert (log.step, log.unreadable, log.over) == (1, 0, False)
    assert from_lines([whole[:20], whole], "torn").unreadable == 1


RULE = """
[[rule]]
name = "mine"
when = [{ signal = "value_at", of = "val_loss", epoch = 0.5, above = 2.2 }]
meaning = "At epoch 0.5 the loss was {value_at:.2f}, at {lr:.1g}."
advice = "More of {batch_size}."
"""


def test_a_study_brings_rules_of_its_own_and_replaces_ours_by_name(tmp_path):
    file = tmp_path / FILE
    file.write_text(RULE)
    (rule,) = load(file)
    (finding,) = diagnose(a_run(), [rule]).findings
    assert (finding.meaning, finding.advice) == (
        "At epoch 0.5 the loss was 2.55, at 0.001.",
        "More of 24.",
    )
    assert diagnose(a_run(val=lambda step: 2.1), [rule]).findings == ()
    file.write_text(RULE.replace('"mine"', '"lr_zero"'))
    rules = joined(built_in(), load(file))
    assert len(rules) == len(RULES)
    assert next(rule for rule in rules if rule.name == "lr_zero").advice == "More of {batch_size}."


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"value_at"', '"value_to"', r"rule 1 \(mine\): signal = 'value_to', expected one of"),
        ("epoch = 0.5", "epochs = 0.5", "value_at: epochs is not known; expected epoch, of, share"),
        (", above = 2.2", "", "expected a number for at least one of below, above"),
        ("above = 2.2", 'above = "2.2"', "expected a number for at least one of"),
        ("{value_at:.2f}", "{value:.2f}", r"\{value\} is not known in its text; expected one of"),
        ("{batch_size}", "{batch_size", "is not a text to fill in"),
        ("advice", "advise", "advice is missing"),
        ('name = "mine"', 'name = "mine"\nseverity = "bad"', "severity = 'bad', expected one of"),
        ('name = "mine"', 'name = "mine"\nscope = "all"', "scope = 'all', expected 'run' or 'study'"),
        ("[[rule]]", "[rule]", r"expected \[\[rule\]\] tables"),
        ("[[rule]]", "[[rule", "not valid TOML"),
    ],
)  # fmt: skip
def test_a_wrong_rule_is_refused_by_name(tmp_path, old, new, message):
    file = tmp_path / FILE
    file.write_text(RULE.replace(old, new))
    with pytest.raises(StudyError, match=message) as error:
        load(file)
    assert str(file) in str(error.value)
