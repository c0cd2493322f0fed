"""Shows the verbs besides train and check: schedule, bench and prepare, and how they refuse."""

import importlib
import json
import signal
import sys
import types
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from trainer.__main__ import main
from trainer.config import Data, parse
from trainer.data.bpe import GPT2Encoder, cut_into_words
from trainer.data.corpora import load_corpus
from trainer.data.shards import open_shard, write_shard
from trainer.errors import DataError
from trainer.schedules import plan

TINY = {
    "model": {"layers": 1, "width": 32, "heads": 2, "hidden": 32},
    "data": {"max_bytes": 20_000, "batch_size": 4, "micro_batch": 2, "context": 16},
    "eval": {"probe_tokens": 256, "confirmation_tokens": 512, "every_tokens": 256},
    "schedule": {"kind": "wsd", "warmup_steps": 4, "floor": 0.1},
    "run": {"device": "cpu", "threads": 1, "max_steps": 20},
}


@pytest.fixture(autouse=True)
def _own_signals():
    """`train` takes SIGTERM and SIGINT for its process, which here is that of the tests."""
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY))
    return path


def table(text):
    """The rows of the printed table: step, factor and the first rate."""
    rows = (line.split() for line in text.splitlines())
    return {int(r[0]): (float(r[1]), float(r[2])) for r in rows if len(r) == 6 and r[0].isdecimal()}


def test_schedule_prints_and_draws_what_will_be_applied(config, tmp_path, capsys):
    svg = tmp_path / "schedule.svg"
    assert main(["schedule", "--config", str(config), "--svg", str(svg)]) == 0
    told = capsys.readouterr().out
    schedule = plan(parse(TINY, "test").schedule, 20)
    rows = table(told)
    assert sorted(rows) == list(range(20))
    for step, (factor, rate) in rows.items():
        assert factor == pytest.approx(schedule.at(step), abs=1e-5)
        assert rate == pytest.approx(0.01 * schedule.at(step), rel=1e-4)
    assert told.splitlines()[0].startswith("wsd, steps 0 to 19")
    assert told.count("*") == 20  # one mark a step
    points = ET.fromstring(svg.read_text()).find("{http://www.w3.org/2000/svg}polyline")
    assert len(points.get("points").split()) == 20


def test_schedule_of_a_continuation_is_the_one_that_train_would_apply(config, tmp_path, capsys):
    raw = {**TINY, "checkpoint": {"folder": str(tmp_path / "c"), "at_end": True}}
    config.write_text(json.dumps(raw))
    assert main(["train", "--config", str(config)]) == 0
    capsys.readouterr()
    options = ["--config", str(config), "--resume", "auto", "--extend-steps", "40"]
    assert main(["schedule", *options]) == 0
    rows = table(capsys.readouterr().out)
    assert min(rows) == 20
    assert max(rows) == 39
    events = tmp_path / "events.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWEEP_EVENTS", str(events))
        assert main(["train", *options]) == 0
    applied = {
        e["step"]: e["lr"]["matrix"]
        for e in map(json.loads, events.read_text().splitlines())
        if e["event"] == "step"
    }
    assert applied
    for step, rate in applied.items():  # the event comes after the step
        assert rate == pytest.approx(rows[step - 1][1], rel=1e-4)


def test_schedule_after_a_run_that_was_not_run_is_that_of_its_checkpoint(config, tmp_path, capsys):
    """So that a continuation can be looked at before a second is spent on what it continues."""
    constant = {"kind": "constant", "warmup_steps": 3}
    later = {**TINY, "checkpoint": {"folder": str(tmp_path / "c"), "at_end": True}}
    later["run"] = {**TINY["run"], "max_steps": 50}
    former = {**later, "schedule": constant, "run": TINY["run"]}
    first, second = tmp_path / "first.json", config
    first.write_text(json.dumps(former))
    second.write_text(json.dumps(later))
    asked = ["schedule", "--config", str(second)]
    assert main([*asked, "--after", str(first)]) == 0
    foreseen = capsys.readouterr().out
    assert min(table(foreseen)) == TINY["run"]["max_steps"]
    assert main(["train", "--config", str(first)]) == 0
    capsys.readouterr()
    assert main([*asked, "--resume", "auto"]) == 0
    assert capsys.readouterr().out == foreseen
    assert main(["schedule", "--config", str(first), "--after", str(first)]) == 6
    assert "nothing is left to do" in capsys.readouterr().err
    assert main([*asked, "--after", str(first), "--resume", "auto"]) == 2


def test_bench_reports_speed_shares_memory_and_start(config, tmp_path):
    out = tmp_path / "bench.json"
    assert main(["bench", "--config", str(config), "--steps", "3", "--out", str(out)]) == 0
    told = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert sum(told["share_of_step"].values()) == pytest.approx(1)
    assert set(told["share_of_step"]) == {"data", "forward", "backward", "optimizer"}
    assert told["tokens_per_step"] == 64
    assert told["tokens_per_s"] == pytest.approx(64e3 / told["ms_per_step"])
    assert told["start_to_first_step_s"] >= told["compile_s"] > 0
    assert told["peak_memory_bytes"] > 50_000_000
    assert 0 < told["eval_share_far_from_target"] < 1
    # 1 layer: 4 matrices of 32 x 32, 3 of 32 x 32 in the MLP, a head of 256 x 32; 16 places.
    assert told["flops_per_token"] == 6 * (7 * 32 * 32 + 256 * 32 + 32 * 16)
    assert not (tmp_path / "checkpoints").exists()


def test_text_files_become_shards_that_are_a_corpus(tmp_path, capsys):
    for number in range(30):
        (tmp_path / f"{number:02}.txt").write_text(f"document {number} " * 50)
    files = sorted(map(str, tmp_path.glob("*.txt")))
    out = tmp_path / "out"
    assert main(["prepare", "text", *files, "--out", str(out), "--validation-share", "0.3"]) == 0
    assert 'kind = "shards"' in capsys.readouterr().out
    corpus = load_corpus(
        Data(
            kind="shards",
            train=f"{out}/docs_train_*.bin",
            validation=f"{out}/docs_val_*.bin",
            vocabulary=257,
        )
    )
    splits = [np.concatenate(side) for side in (corpus.train, corpus.validation)]
    assert all(side[0] == 256 for side in splits)  # a mark before each document
    marks = [int((side == 256).sum()) for side in splits]
    assert sum(marks) == 30
    assert 3 <= marks[1] <= 16
    text = bytes(splits[0][splits[0] < 256].astype(np.uint8)).decode()
    held_out = bytes(splits[1][splits[1] < 256].astype(np.uint8)).decode()
    numbers = [{int(w) for w in side.split() if w.isdecimal()} for side in (text, held_out)]
    assert numbers[0] | numbers[1] == set(range(30))
    assert not numbers[0] & numbers[1]


def test_the_standard_library_becomes_shards(tmp_path):
    out = tmp_path / "out"
    assert main(["prepare", "stdlib", "--out", str(out), "--max-bytes", "200000"]) == 0
    tokens = sum(len(open_shard(path).tokens) for path in out.glob("docs_*.bin"))
    facts = json.loads((out / "docs.json").read_text())
    assert tokens == 200_000 + facts["documents"] == sum(facts["tokens"])
    assert facts["vocabulary"] == 257


def merges(path):
    path.write_text("#version: 0.2\nh e\nl l\nhe ll\nhell o\nĠ w\n", encoding="utf-8")
    return path


def test_gpt2_tokens_from_a_merges_file(tmp_path):
    encoder = GPT2Encoder(merges(tmp_path / "vocab.bpe"))
    assert (encoder.vocabulary, encoder.mark) == (262, 261)
    # "!" is byte 33, the first printable one; a space is the 33rd of those that are not.
    assert encoder.encode("!") == [0]
    assert encoder.encode("hello") == [259]
    assert encoder.encode(" w") == [260]
    assert encoder.encode("\n") == [188 + 10]
    # Words are cut before a space, between letters and numbers, and at contractions.
    assert encoder.encode("hello hello") == [259, 220, 259]
    assert encoder.encode("llhe") == [257, 256]
    assert encoder.encode("lhell") == [75, 258]


def test_words_are_cut_as_unicode_classes_say():
    text = "It's 12three  ½x é\n\n ok  "
    words = ["It", "'s", " 12", "three", " ", " ½", "x", " é", "\n\n", " ok", "  "]
    assert cut_into_words(text) == words
    assert "".join(cut_into_words(text)) == text


def test_gpt2_tokens_need_text_and_a_true_merges_file(tmp_path, capsys):
    merges(tmp_path / "vocab.bpe")
    binary = tmp_path / "binary"
    binary.write_bytes(b"ok\xff")
    out = str(tmp_path / "out")
    options = ["--out", out, "--merges", str(tmp_path / "vocab.bpe")]
    assert main(["prepare", "text", str(binary), *options]) == 3
    assert "binary: byte 2 is not UTF-8" in capsys.readouterr().err
    (tmp_path / "vocab.bpe").write_text("he llo\n")
    with pytest.raises(DataError, match="pieces that do not exist yet"):
        GPT2Encoder(tmp_path / "vocab.bpe")


@pytest.fixture
def in_a_folder_of_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a text " * 20)
    (tmp_path / "c.json").write_text(json.dumps(TINY))
    (tmp_path / "bad.json").write_text('{"unknown": 1}')


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["prepare", "text", "absent.txt", "--out", "x"], 3, "absent.txt: cannot be read"),
        (["prepare", "text", "a.txt", "--out", "a.txt/x"], 2, "cannot be written"),
        (["schedule", "--config", "absent.toml"], 2, "absent.toml: the configuration cannot"),
        (["schedule", "--config", "c.json", "--extend-steps", "9"], 2, "expected --resume with it"),
        (["schedule", "--config", "c.json", "--resume", "no.pt"], 6, "no.pt: cannot be read"),
        (["bench", "--config", "bad.json"], 2, "unknown"),
    ],
)
@pytest.mark.usefixtures("in_a_folder_of_inputs")
def test_each_refusal_has_its_exit_code_and_no_traceback(arguments, code, says, capsys):
    assert main(arguments) == code
    told = capsys.readouterr().err
    assert says in told
    assert "Traceback" not in told


def test_fineweb_without_its_client_or_a_network_is_refused_clearly(tmp_path, monkeypatch, capsys):
    command = ["prepare", "fineweb", "--out", str(tmp_path / "f")]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    assert main(command) == 2
    assert 'in the clone: pip install -e ".[prepare]"' in capsys.readouterr().err

    def offline(*_, **__):
        raise ConnectionError("no route to host\nmore")

    hub = types.SimpleNamespace(hf_hub_download=offline)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert importlib.import_module("huggingface_hub") is hub
    assert main(command) == 3
    told = capsys.readouterr().err
    assert "cannot be downloaded (ConnectionError: no route to host)" in told
    assert not list((tmp_path / "f").iterdir())


def test_what_was_downloaded_is_checked(tmp_path, monkeypatch, capsys):
    """The publisher is stood in for by a folder; the files are real shards, one of them cut off."""
    hub_folder, out = tmp_path / "hub", tmp_path / "f"
    for name in ("fineweb_val_000000.bin", "fineweb_train_000001.bin"):
        write_shard(hub_folder / name, np.arange(1000, dtype=np.uint16))

    def download(_repository, name, **_):
        return str(hub_folder / name)

    hub = types.SimpleNamespace(hf_hub_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert main(["prepare", "fineweb", "--out", str(out)]) == 0
    assert "fineweb_train_000001.bin: 1,000 tokens" in capsys.readouterr().out
    whole = (out / "fineweb_val_000000.bin").read_bytes()
    (out / "fineweb_val_000000.bin").write_bytes(whole[:1500])
    assert main(["prepare", "fineweb", "--out", str(out)]) == 3
    assert "cut off" in capsys.readouterr().err
