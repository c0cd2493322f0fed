"""The ready sets on lines as the real programs print them, read by the real reader."""

from __future__ import annotations

import math

import pytest

from sweeper.pattern_sets import SETS, patterns
from sweeper.runner.readers import PatternsReader
from sweeper.spec import AttemptSpec

NANOGPT = """\
tokens per iteration will be: 491,520
number of parameters: 123.59M
step 0: train loss 10.9896, val loss 10.9923
iter 0: loss 10.9897, time 24017.45ms, mfu -100.00%
iter 10: loss 9.4411, time 254.59ms, mfu 42.17%
step 250: train loss 6.1021, val loss 6.1274
saving checkpoint to out
iter 250: loss 6.0934, time 8121.10ms, mfu 41.02%
step 500: train loss nan, val loss nan
"""
MODDED = """\
Running python 3.12.7 (main, Oct 16 2024) [GCC 11.4.0]
step:0/1750 val_loss:10.8258 train_time:0ms step_avg:nanms
step:1/1750 train_time:280ms step_avg:280.13ms
step:2/1750 train_time:362ms step_avg:181.05ms
step:125/1750 val_loss:4.6013 train_time:11800ms step_avg:94.40ms
peak memory allocated: 39472 MiB reserved: 40494 MiB
"""
MODDED_OLD = """\
step:100/6200 train_loss:5.2711 train_time:13242ms step_avg:147.13ms
step:125/6200 val_loss:4.9811 train_time:16.9s step_avg:147.02ms
"""
# Transformers 4 prints numbers, 5 prints strings.
HF_OUT = """\
{'loss': 3.1021, 'grad_norm': 1.265, 'learning_rate': 4.5e-05, 'epoch': 0.4}
{'eval_loss': 2.8247, 'eval_runtime': 1.25, 'eval_samples_per_second': 812.3, 'epoch': 0.8}
{'loss': '2.7426', 'grad_norm': '0.9592', 'learning_rate': '1.2e-05', 'epoch': '1.2'}
{'eval_loss': '2.5004', 'eval_runtime': '1.5', 'eval_samples_per_second': '1.4e+04', 'epoch': '1.6'}
{'train_runtime': '0.2366', 'train_steps_per_second': '316.9', 'train_loss': '0.6995', 'epoch': '3'}
"""
# The bar on stderr: carriage returns, a nested bar of 50 that ends with "cursor up", then a lone one.
HF_ERR = (
    "\r  0%|          | 0/75 [00:00<?, ?it/s]\r                 \r\r"
    " 13%|█▎        | 10/75 [00:00<00:00, 509.90it/s]\r                 \n"
    "\r  0%|          | 0/50 [00:00<?, ?it/s]\x1b[A"
    "\r 98%|█████████▊| 49/50 [00:00<00:00, 1817it/s]\x1b[A\r"
    " 27%|██▋       | 20/75 [00:00<00:00, 309.30it/s]\n"
    "\r100%|██████████| 50/50 [00:00<00:00, 1894.84it/s]"
)
LIGHTNING = (
    "\rSanity Checking DataLoader 0: 100%|██████████| 2/2 [00:00<00:00, 52.10it/s]\r      \r"
    "Training: |          | 0/? [00:00<?, ?it/s]\r"
    "Epoch 0:   0%|          | 0/20 [00:00<?, ?it/s] \r"
    "Epoch 0:  50%|█████     | 10/20 [00:00<00:00, 376.42it/s, v_num=0, train_loss=0.416]\r"
    "Epoch 0: 100%|██████████| 20/20 [00:00<00:00, 391.13it/s, v_num=0, train_loss=0.292]\n"
    "\rValidation DataLoader 0: 100%|██████████| 8/8 [00:00<00:00, 799.47it/s]\x1b[A\n"
    "\r                       \x1b[A\r"
    "Epoch 0: 100%|██████████| 20/20 [00:00<00:00, 317it/s, v_num=0, train_loss=0.292, val_loss=0.964]\r"
    "Epoch 0: 100%|██████████| 20/20 [00:00<00:00, 315it/s, v_num=0, train_loss=0.292, val_loss=0.964]\r"
    "Epoch 1:  50%|█████     | 10/20 [00:00<00:00, 317it/s, v_num=0, train_loss=0.271, val_loss=0.964]\r"
    "Epoch 1: 100%|██████████| 20/20 [00:00<00:00, 315it/s, v_num=0, train_loss=0.264, val_loss=0.588]\r"
    "`Trainer.fit` stopped: `max_epochs=2` reached.\n"
)


def read(tmp_path, name, out, err="", metric=None):
    metric = metric or SETS[name].metric
    spec = AttemptSpec(
        study="s", trial="t", attempt=1, argv=["x"], cwd="/", run_dir="/", metric=metric,
        clock="train", target=2.0, trial_s=1, silence_s=1, startup_s=1, grace_s=1, max_steps=1,
        reader="patterns", patterns=patterns(name, metric),
    )  # fmt: skip
    (tmp_path / "out").write_text(out, encoding="utf-8", newline="")
    (tmp_path / "err").write_text(err, encoding="utf-8", newline="")
    reader = PatternsReader(spec, tmp_path / "out", tmp_path / "err")
    batch, rest = reader.read(), reader.rest()
    assert batch.bad + rest.bad == []
    return batch.events + rest.events


def curve(events, metric="val_loss"):
    return [(e.step, e.body["metrics"][metric]) for e in events if e.event == "evaluated"]


def test_nanogpt(tmp_path):
    events = read(tmp_path, "nanogpt", NANOGPT)
    assert curve(events)[:2] == [(0, 10.9923), (250, 6.1274)]
    assert math.isnan(curve(events)[2][1])
    steps = [(e.step, e.body["loss"]) for e in events if e.event == "step"]
    assert steps == [(0, 10.9897), (10, 9.4411), (250, 6.0934)]
    assert {e.clock for e in events} == {None}, "its times are of one iteration in ten"


def test_the_other_loss_of_nanogpt(tmp_path):
    events = read(tmp_path, "nanogpt", NANOGPT, metric="train_loss")
    assert curve(events, "train_loss")[:2] == [(0, 10.9896), (250, 6.1021)]


def test_modded_nanogpt_has_a_clock_of_its_own(tmp_path):
    events = read(tmp_path, "modded-nanogpt", MODDED)
    told = [(e.event, e.step, e.clock.train) for e in events]
    assert told == [
        ("evaluated", 0, 0.0),
        ("step", 1, 0.28),
        ("step", 2, 0.362),
        ("evaluated", 125, 11.8),
    ]
    assert curve(events) == [(0, 10.8258), (125, 4.6013)]


def test_modded_nanogpt_of_earlier_days(tmp_path):
    step, evaluated = read(tmp_path, "modded-nanogpt", MODDED_OLD)
    assert (step.body["loss"], step.clock.train) == (5.2711, 13.242)
    assert (evaluated.step, evaluated.clock.train) == (125, 16.9)


def test_a_line_without_its_clock_has_none(tmp_path):
    only = "step:125/1750 val_loss:4.6013\n"
    assert [e.clock for e in read(tmp_path, "modded-nanogpt", only)] == [None]


def test_hugging_face(tmp_path):
    events = read(tmp_path, "huggingface", HF_OUT)
    assert curve(events, "eval_loss") == [(0, 2.8247), (0, 2.5004)], "there is no step in it"
    assert [e.body["eval_s"] for e in events if e.event == "evaluated"] == [1.25, 1.5]
    assert [e.body["loss"] for e in events if e.event == "step"] == [3.1021, 2.7426]
    assert {e.clock for e in events} == {None}


def test_the_bar_of_hugging_face_has_the_steps(tmp_path):
    last = "{'eval_loss': 2.4, 'eval_runtime': 1.0, 'epoch': 3.0}\n"
    told = [e.step for e in read(tmp_path, "huggingface", "", HF_ERR + "\n" + last)]
    assert told == [0, 10, 20, 20, 20], "bars of evaluations do not count"
    assert curve(read(tmp_path, "huggingface", "", HF_ERR + "\n" + last), "eval_loss") == [
        (20, 2.4)
    ]


def test_another_metric_of_hugging_face(tmp_path):
    line = "{'eval_loss': 2.1, 'eval_wer/clean': 0.25, 'eval_runtime': 1.0, 'epoch': 3.0}\n"
    events = read(tmp_path, "huggingface", line, metric="eval_wer/clean")
    assert curve(events, "eval_wer/clean") == [(0, 0.25)]
    assert events[0].body["eval_s"] == 1.0


def test_lightning(tmp_path):
    events = read(tmp_path, "lightning", LIGHTNING)
    assert curve(events) == [(20, 0.964), (40, 0.588)], "what is only shown again does not count"
    assert [e.step for e in events if e.event == "step"] == [0, 10, 20, 20, 30]


def test_lines_of_lightning(tmp_path):
    out = "epoch=0, step=50, val/loss=2.31, lr=0.1\nepoch: 1, global_step: 100, val/loss: 2.0\n"
    events = read(tmp_path, "lightning", out, metric="val/loss")
    assert curve(events, "val/loss") == [(50, 2.31), (100, 2.0)]


@pytest.mark.parametrize(
    "line",
    [
        "step 100 val_loss 2.5",
        "[step 100] train loss: 3.0 | val loss: 2.5",
        "step=100, train_val_loss=7.0, val_loss=2.5e0, lr=1e-3",
        '{"epoch": 1, "step": 100, "val_loss": 2.5}',
        "2026-01-02 10:00:00 INFO Step: 100 Val Loss: 2.50 (best 2.4)",
        "iter 100  val_loss 2.5",
    ],
)
def test_plain(tmp_path, line):
    assert curve(read(tmp_path, "plain", f"warming up\n{line}\n")) == [(100, 2.5)]


def test_no_set_reads_what_another_kind_of_script_prints(tmp_path):
    """Order matters only where two sets read the same line: `plain` is tried last."""
    printed = {"nanogpt": NANOGPT, "modded-nanogpt": MODDED, "huggingface": HF_OUT + HF_ERR}
    printed["lightning"] = LIGHTNING
    for name in printed:
        for other, out in printed.items():
            metric = SETS[other].metric
            if name != other:
                assert curve(read(tmp_path, name, out, metric=metric), metric) == [], (name, other)
