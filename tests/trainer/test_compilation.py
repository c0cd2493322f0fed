"""Shows where compiled code is kept, and (in the long tests) that it computes what plain code does."""

import json
import os
import subprocess
import sys

import pytest
import torch

from trainer.compilation import cache_folder, keep_compiled_code, uncompiled
from trainer.config import Model, Run
from trainer.errors import ConfigError
from trainer.models import build_model

CPU = torch.device("cpu")


def test_compiled_code_is_kept_by_version_device_and_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    three = cache_folder(str(tmp_path), CPU)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    four = cache_folder(str(tmp_path), CPU)
    assert three.parent == four.parent == tmp_path
    assert three.name.endswith("-3-threads")
    assert four.name.endswith("-4-threads")
    assert three.name.startswith(f"torch-{torch.__version__}-")
    monkeypatch.setenv("TRAINER_CACHE", "/named/by/environment")
    assert str(cache_folder(None, CPU)).startswith("/named/by/environment/torch-")
    assert str(cache_folder("/named/by/key", CPU)).startswith("/named/by/key/torch-")
    monkeypatch.delenv("TRAINER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/cache")
    assert str(cache_folder(None, CPU)).startswith("/home/cache/sweep-trainer/torch-")


def test_places_that_the_environment_names_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/mine")
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    folder = keep_compiled_code(str(tmp_path), CPU)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/mine"
    assert os.environ["TRITON_CACHE_DIR"] == str(folder / "triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", "")  # undone with the rest


def test_a_cache_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run\.compile_cache: .*cannot be made"):
        keep_compiled_code(str(tmp_path / "file"), CPU)


TINY = {
    "model": {"layers": 2, "width": 32, "heads": 2, "hidden": 32},
    "data": {"max_bytes": 20_000, "batch_size": 4, "micro_batch": 2, "context": 16},
    "eval": {"probe_tokens": 256, "confirmation_tokens": 512, "every_tokens": 256},
    "run": {"device": "cpu", "threads": 1, "max_steps": 12},
}


def curve(folder, what, **data):
    run = {**TINY["run"], "compile": what, "compile_cache": str(folder / "cache")}
    config = {**TINY, "run": run, "data": {**TINY["data"], **data}}
    (folder / "config.json").write_text(json.dumps(config))
    events = folder / "events.jsonl"
    events.unlink(missing_ok=True)
    subprocess.run(
        [sys.executable, "-m", "trainer", "train", "--config", str(folder / "config.json")],
        env={**os.environ, "SWEEP_EVENTS": str(events)},
        capture_output=True,
        timeout=800,
        check=True,
    )
    told = [json.loads(line) for line in events.read_text().splitlines()]
    return [e["metrics"]["val_loss"] for e in told if e["event"] == "evaluated"]


def compiled_files(folder):
    return {p for p in (folder / "cache").rglob("*") if p.suffix in (".cpp", ".so", ".py")}


@pytest.mark.long
@pytest.mark.parametrize("what", ["whole", "block"])
def test_compiled_runs_learn_the_same_and_their_code_serves_every_batch_size(what, tmp_path):
    plain = curve(tmp_path, "off")
    assert curve(tmp_path, what) == pytest.approx(plain, abs=1e-3)
    first = compiled_files(tmp_path)
    assert first
    # A run with another batch, of passes of the same shape, compiles nothing new.
    curve(tmp_path, what, batch_size=6)
    assert compiled_files(tmp_path) == first


@pytest.mark.long
def test_sentences_of_many_lengths_are_not_compiled_one_by_one():
    compiled_shapes = []

    def backend(graph, inputs):
        compiled_shapes.append([tuple(i.shape) for i in inputs if isinstance(i, torch.Tensor)])
        return graph.forward

    config = Model(kind="ltg_bert", layers=1, width=16, heads=2, hidden=16)
    net = build_model(config, vocabulary=20, context=16, seed=0)
    for block in net.blocks:
        block.compile(dynamic=False, backend=backend)
    logits = uncompiled(net.logits, Run(compile="block"))
    with torch.no_grad():
        for length in (3, 5, 7):
            logits(torch.arange(length)[None])
        assert compiled_shapes == []
        net.logits(torch.arange(16)[None])
    assert len(compiled_shapes) == 1
