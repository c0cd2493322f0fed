"""The callbacks driven as their libraries drive them; and, where those are installed, by them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeper.events import fold_lines
from sweeper.integrations import lightning, transformers
from sweeper.integrations.writer import EventWriter, plain

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def writer(tmp_path):
    """`writer(metric, **variables)`: on a file of this test's own, as the runner names it."""

    def make(metric, **variables):
        return EventWriter(metric, {"SWEEP_EVENTS": str(tmp_path / "events"), **variables})

    return make


def fold(tmp_path, metric):
    return fold_lines((tmp_path / "events").read_bytes().splitlines(), metric)


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]


def drive_trainer(callback, losses, *, every=5, zero=True):
    """`Trainer.train` as far as callbacks see it: returns the steps that were done."""
    args = SimpleNamespace(
        to_dict=lambda: {"learning_rate": 1e-3, "hub_token": "secret", "x": None}
    )
    state = SimpleNamespace(global_step=0, is_world_process_zero=zero, num_input_tokens_seen=0)
    control = SimpleNamespace(should_evaluate=False, should_save=False, should_training_stop=False)
    callback.on_train_begin(args, state, control, model=None)
    for number, loss in enumerate(losses, start=1):
        for _ in range(every):
            state.global_step += 1
            state.num_input_tokens_seen += 64
            control.should_evaluate = state.global_step == number * every
            time.sleep(0.001)
            callback.on_step_end(args, state, control)
        callback.on_log(args, state, control, logs={"loss": loss, "learning_rate": 1e-3})
        time.sleep(0.2)
        metrics = {"eval_loss": loss, "eval_runtime": 0.02, "epoch": number}
        callback.on_evaluate(args, state, control, metrics=metrics)
        callback.on_save(args, state, control)
        if control.should_training_stop:
            break
    callback.on_train_end(args, state, control)
    return state.global_step


def test_hugging_face(writer, tmp_path):
    callback = transformers.SweepCallback("eval_loss", writer("eval_loss"))
    assert drive_trainer(callback, [3.0, float("nan"), 2.0]) == 15
    found = fold(tmp_path, "eval_loss")
    assert [(e.step, e.tokens) for e in found.curve] == [(5, 320), (10, 640), (15, 960)]
    assert [e.value for e in found.curve if e.value == e.value] == [3.0, 2.0]
    assert found.finished["reason"] == "steps"
    assert found.started["config"] == {"learning_rate": 1e-3}, "no secrets, and only what is plain"
    assert found.clock.eval >= 0.6
    assert 0.015 <= found.clock.train < found.clock.eval, "evaluations are off the train clock"


def test_hugging_face_at_its_target_and_at_its_last_step(writer, tmp_path):
    reached = transformers.SweepCallback("eval_loss", writer("eval_loss", SWEEP_TARGET="2.5"))
    assert drive_trainer(reached, [3.0, 2.5, 2.0]) == 10
    assert fold(tmp_path, "eval_loss").finished["reason"] == "target"
    (tmp_path / "events").unlink()
    few = transformers.SweepCallback("eval_loss", writer("eval_loss", SWEEP_MAX_STEPS="5"))
    assert drive_trainer(few, [3.0, 2.5]) == 5
    assert fold(tmp_path, "eval_loss").finished["reason"] == "steps"


def test_other_processes_of_hugging_face_stop_too_and_write_nothing(writer, tmp_path):
    callback = transformers.SweepCallback("eval_loss", writer("eval_loss", SWEEP_TARGET="2.5"))
    assert drive_trainer(callback, [3.0, 2.5, 2.0], zero=False) == 10
    assert lines(tmp_path) == []


def test_a_metric_that_is_not_there_is_said_once(writer, tmp_path):
    drive_trainer(transformers.SweepCallback("val_loss", writer("val_loss")), [3.0, 2.0])
    assert fold(tmp_path, "val_loss").warnings == [
        "'val_loss' was not measured; there is epoch, eval_loss, eval_runtime"
    ]
    assert fold(tmp_path, "val_loss").finished is None, "an evaluation may come after training"


class Strategy:
    def __init__(self):
        self.asked = []

    def reduce_boolean_decision(self, decision, all=True):  # noqa: A002 - Lightning's name
        self.asked.append((decision, all))
        return decision


def drive_lightning(callback, losses, error=None):
    trainer = SimpleNamespace(
        global_step=0, is_global_zero=True, sanity_checking=True, should_stop=False,
        callback_metrics={"val_loss": 9.0}, strategy=Strategy(),
    )  # fmt: skip
    module = SimpleNamespace(hparams={"lr": 0.1})
    callback.on_validation_start(trainer, module)
    callback.on_validation_end(trainer, module)
    trainer.sanity_checking = False
    callback.on_train_start(trainer, module)
    for loss in losses:
        for batch in range(4):
            callback.on_train_batch_start(trainer, module, None, batch)
            trainer.global_step += 1
            callback.on_train_batch_end(trainer, module, {"loss": loss}, None, batch)
        callback.on_validation_start(trainer, module)
        time.sleep(0.2)
        trainer.callback_metrics = {"val_loss": loss, "name": "x"}
        callback.on_validation_end(trainer, module)
        callback.on_save_checkpoint(trainer, module, {})
        time.sleep(0.2)
        if error is not None:
            callback.on_exception(trainer, module, error)
            return trainer
        if trainer.should_stop:
            break
    callback.on_train_end(trainer, module)
    return trainer


def test_lightning(writer, tmp_path):
    trainer = drive_lightning(
        lightning.SweepCallback("val_loss", writer("val_loss", SWEEP_TARGET="2")), [3.0, 2.0, 1.0]
    )
    found = fold(tmp_path, "val_loss")
    assert [(e.step, e.value) for e in found.curve] == [(4, 3.0), (8, 2.0)], "no sanity check"
    assert (found.finished["reason"], found.started["config"]) == ("target", {"lr": 0.1})
    assert found.clock.eval >= 0.4
    assert found.clock.checkpoint >= 0.4
    assert found.clock.train < 0.4, "validations and checkpoints are off the train clock"
    assert trainer.strategy.asked == [(False, False), (True, False)], "all processes, or none"


def test_lightning_in_trouble(writer, tmp_path):
    callback = lightning.SweepCallback("val_loss", writer("val_loss"))
    drive_lightning(callback, [3.0], RuntimeError("CUDA out of memory. Tried to allocate"))
    assert fold(tmp_path, "val_loss").failed["class"] == "oom"


def test_without_a_runner_nothing_is_written(tmp_path):
    callback = transformers.SweepCallback("eval_loss", EventWriter("eval_loss", {}))
    assert drive_trainer(callback, [3.0, 2.0]) == 10
    assert list(tmp_path.iterdir()) == []


def test_a_descriptor(tmp_path):
    with (tmp_path / "events").open("wb") as file:
        writer = EventWriter("x", {"SWEEP_EVENTS": f"fd:{file.fileno()}"})
        writer.evaluated(1, {"x": float("inf")})
        writer.finished(1, "steps")
        writer.evaluated(2, {"x": 1.0})
    assert [line["event"] for line in lines(tmp_path)] == ["evaluated", "run_finished"]
    assert lines(tmp_path)[0]["metrics"] == {"x": None}


def test_settings_that_are_no_secrets():
    given = {"lr": 0.1, "api_key": "x", "HF_TOKEN": "y", "path": Path("z"), "on": True}
    assert plain(given) == {"lr": 0.1, "on": True}


def test_they_import_without_the_libraries():
    code = (
        "import sys; sys.modules.update(transformers=None, lightning=None, pytorch_lightning=None)\n"
        "from sweeper.integrations.transformers import SweepCallback as A\n"
        "from sweeper.integrations.lightning import SweepCallback as B\n"
        "A(), B(); print(sorted(m for m in ('torch', 'numpy', 'pydantic') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"


REAL = {
    "transformers": """
import torch
from transformers import Trainer, TrainingArguments
from sweeper.integrations.transformers import SweepCallback
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
    def forward(self, x=None, labels=None):
        out = self.linear(x)
        return {"loss": ((out - labels) ** 2).mean(), "logits": out}
rows = [{"x": x, "labels": x.flip(0)} for x in torch.randn(64, 4)]
arguments = TrainingArguments(
    "out", num_train_epochs=50, per_device_train_batch_size=8, eval_strategy="steps", eval_steps=8,
    learning_rate=0.1, report_to=[], save_strategy="no", use_cpu=True)
Trainer(Model(), arguments, train_dataset=rows, eval_dataset=rows,
        callbacks=[SweepCallback("eval_loss")]).train()
""",
    "lightning": """
import torch, lightning
from sweeper.integrations.lightning import SweepCallback
class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
    def loss(self, batch):
        return ((self.linear(batch[0]) - batch[0].flip(1)) ** 2).mean()
    def training_step(self, batch, index):
        return self.loss(batch)
    def validation_step(self, batch, index):
        self.log("eval_loss", self.loss(batch))
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(64, 4)), batch_size=8)
lightning.Trainer(max_epochs=50, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
                  callbacks=[SweepCallback("eval_loss")]).fit(Model(), data, data)
""",
}


@pytest.mark.long
@pytest.mark.parametrize("library", list(REAL))
def test_the_real_library(library, tmp_path):
    pytest.importorskip(library)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SWEEP_EVENTS": str(tmp_path / "events")}
    env |= {"SWEEP_TARGET": "0.1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-c", REAL[library]], check=True, cwd=tmp_path, env=env, timeout=110
    )
    found = fold(tmp_path, "eval_loss")
    assert found.finished["reason"] == "target"
    assert found.curve[-1].value <= 0.1 < found.curve[-2].value
    assert found.curve[-1].step % 8 == 0
    assert found.step < 400, "it stopped by itself"
    assert found.clock.eval > 0
