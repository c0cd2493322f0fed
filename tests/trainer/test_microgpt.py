"""Shows that microgpt is the network of its description, learns names, and is summed up honestly."""

import json
import math

import numpy as np
import pytest
import torch

from trainer.config import Data, Model, Summary, examine, parse
from trainer.data.batches import TrainingBatches, spread_windows
from trainer.data.corpora import load_corpus
from trainer.data.names import MARK, PADDING, spelled
from trainer.data.tokens import place_tokens
from trainer.errors import DataError
from trainer.evaluate import Evaluator
from trainer.events import EventWriter
from trainer.models import build_model
from trainer.models.named import NAMED
from trainer.roles import IGNORED
from trainer.stopping import Progress
from trainer.summary import LossRecord, generate, running_means, stable_from
from trainer.timing import PhaseClock
from trainer.train import train

MICRO = {"kind": "microgpt", "layers": 1, "width": 16, "heads": 4, "hidden": 64}
NAMES = Data(kind="names", context=16, validation_share=0.2)


def model(seed=0):
    return build_model(Model(**MICRO), vocabulary=27, context=16, seed=seed)


def test_it_has_4192_parameters():
    assert NAMED["microgpt"].parameter_count() == 4192
    sizes = {p.name: p.tensor.numel() for p in model().roled_parameters()}
    assert sizes == {
        "embedding": 432, "positions": 256, "head": 432, "blocks.0.qkv": 768, "blocks.0.out": 256,
        "blocks.0.mlp_in": 1024, "blocks.0.mlp_out": 1024,
    }  # fmt: skip


def by_hand(net, tokens):
    """Logits (T, V) of one sequence in float64, position by position, with loops over heads."""
    weights = {name: value.detach().double().numpy() for name, value in net.named_parameters()}

    def norm(x):
        return x / np.sqrt((x**2).mean() + 1e-5)

    keys, values, rows = [], [], []
    for place, token in enumerate(tokens):
        x = norm(weights["embedding"][token] + weights["positions"][place])
        q, k, v = np.split(weights["blocks.0.qkv"] @ norm(x), 3)
        keys.append(k)
        values.append(v)
        heads = []
        for head in range(4):
            part = slice(4 * head, 4 * head + 4)
            scores = np.array([q[part] @ key[part] for key in keys]) / 2.0
            shares = np.exp(scores - scores.max())
            shares /= shares.sum()
            heads.append(sum(s * value[part] for s, value in zip(shares, values, strict=True)))
        x = x + weights["blocks.0.out"] @ np.concatenate(heads)
        hidden = np.maximum(0, weights["blocks.0.mlp_in"] @ norm(x))
        x = x + weights["blocks.0.mlp_out"] @ hidden
        rows.append(weights["head"] @ x)
    return np.array(rows)


def test_logits_equal_a_float64_computation_by_hand():
    net = model().double()
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.mul_(5)  # far from the linear start
    tokens = [26, 0, 13, 13, 0, 7]
    ours = net.logits(torch.tensor([tokens]))[0].detach().numpy()
    np.testing.assert_allclose(ours, by_hand(net, tokens), rtol=1e-9, atol=1e-9)


def test_gradients_agree_with_differences_in_float64():
    net = model().double()
    x, y = torch.tensor([[26, 4, 12, 12]]), torch.tensor([[4, 12, 12, IGNORED]])
    net(x, y).backward()
    for tensor in net.parameters():
        place = int(tensor.grad.abs().argmax())
        with torch.no_grad():
            flat = tensor.view(-1)
            flat[place] += 1e-6
            above = net(x, y)
            flat[place] -= 2e-6
            below = net(x, y)
            flat[place] += 1e-6
        difference = float(above - below) / 2e-6
        assert float(tensor.grad.view(-1)[place]) == pytest.approx(difference, rel=1e-5)


# ------------------------------------------------------------------------------------------ data


def test_the_shipped_names_are_dealt_to_two_splits_once_each():
    corpus = load_corpus(NAMES)
    assert (corpus.vocabulary, corpus.row) == (27, 17)
    rows = [part[0].reshape(-1, 17) for part in (corpus.train, corpus.validation)]
    assert [len(part) for part in rows] == [32_033 - 6_406, 6_406]
    found = sorted(spelled(row[1:].tolist()) for part in rows for row in part)
    shipped = load_corpus.__globals__["names"].SHIPPED.read_text().split()
    assert found == sorted(shipped)
    assert all(row[0] == MARK for row in rows[0][:50])


def test_without_a_split_the_held_out_names_are_trained_on_and_judged_by():
    split, whole = load_corpus(NAMES), load_corpus(Data(kind="names", context=16, train_on_all=True,
                                                         validation_share=0.2))  # fmt: skip
    assert sum(map(len, whole.train)) == 32_033 * 17
    np.testing.assert_array_equal(whole.validation[0], split.validation[0])


def test_a_batch_is_whole_names_and_padding_is_no_target():
    corpus = load_corpus(NAMES)
    tokens = place_tokens(corpus.train, torch.device("cpu"))
    batches = TrainingBatches(
        tokens, context=16, batch_size=4, seed=1, stride=corpus.row, padding=corpus.vocabulary
    )
    assert batches.audit.samples == 25_627
    x, y = batches.at(3)
    assert x.shape == y.shape == (4, 16)
    assert int(x.max()) <= MARK
    for inputs, targets in zip(x.tolist(), y.tolist(), strict=True):
        count = targets.index(MARK) + 1  # the letters, then the mark
        assert inputs[0] == MARK
        assert inputs[1:count] == targets[: count - 1]
        assert targets[count:] == [IGNORED] * (16 - count)


def test_padding_changes_no_loss():
    net, short = model(), [[26, 4, 12, 12]]
    alone = net(torch.tensor(short), torch.tensor([[4, 12, 12, 26]]))
    padded = net(
        torch.tensor([[26, 4, 12, 12, 26, 26]]),
        torch.tensor([[4, 12, 12, 26, IGNORED, IGNORED]]),
    )
    assert float(alone.detach()) == pytest.approx(float(padded.detach()), rel=1e-6)


def test_evaluation_weighs_targets_not_windows():
    corpus, net = load_corpus(NAMES), model()
    tokens = place_tokens(corpus.validation, torch.device("cpu"))
    x, y = spread_windows(tokens, context=16, count=10, name="probe", stride=17, padding=PADDING)
    with torch.no_grad():
        each = torch.nn.functional.cross_entropy(
            net.logits(x).flatten(0, 1), y.flatten(), reduction="sum", ignore_index=IGNORED
        )
    expected = float(each) / int((y >= 0).sum())
    for per_pass in (1, 3, 10):
        evaluator = Evaluator(net, (x, y), (x, y), per_pass)
        assert evaluator.loss("probe") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("emma\nzoë\n", "line 2: 'zoë': expected letters a to z alone"),
        ("emma\n" + "a" * 16, "line 2: .*has 16 letters; expected fewer than data.context = 16"),
        ("emma\n", "1 names do not make two splits"),
    ],
)
def test_a_list_that_is_none_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_corpus(Data(kind="names", path=str(path), context=16))


def test_keys_that_names_cannot_have():
    raw = {"data": {"kind": "names", "stride": 4}, "pairs": {"path": "own"}}
    assert [p.key for p in examine(raw)[1]] == ["pairs.path", "data.stride"]
    raw = {
        "model": {"kind": "ltg_bert"}, "data": {"kind": "names"}, "objective": {"kind": "masked"}
    }  # fmt: skip
    assert [p.key for p in examine(raw)[1]] == ["data.kind"]  # padding must not be hidden
    assert [p.key for p in examine({"summary": {"samples": 3}})[1]] == ["summary.samples"]


# --------------------------------------------------------------------------------------- summary


def test_stable_is_where_the_running_mean_stays_near_its_last_value():
    assert running_means([4.0, 2.0, 3.0, 1.0], 2) == [4.0, 3.0, 2.5, 2.0]
    assert stable_from([4.0, 2.05, 2.2, 2.05, 2.0], 0.1) == 4  # 2.05 at step 2 did not last
    assert stable_from([2.0, 2.0], 0.1) == 1
    record = LossRecord(Summary(losses=True, smoothing_steps=2, band=0.1, last_steps=3))
    for loss in (4.0, 2.0, 3.0, 1.0):
        record.add(torch.tensor(loss))
    described = record.describe()
    assert described["stable_from_step"] == 4
    assert described["loss_variance"] == pytest.approx(1.0)  # of 2, 3, 1
    assert (described["best_step_loss"], described["best_smoothed_loss"]) == (1.0, 2.0)
    assert described["smoothed_losses"][-1] == [4, 2.0]
    assert LossRecord(Summary()).describe() == {}


def test_generation_is_a_function_of_the_seed_and_follows_the_logits():
    def alternate(tokens):  # after the mark and b: a; after a: b
        wanted = torch.where(tokens == 0, 1, 0)
        return torch.nn.functional.one_hot(wanted, 27) * 50.0

    rows = generate(
        alternate, count=2, places=6, mark=MARK, temperature=0.5, seed=0, device=torch.device("cpu")
    )
    assert rows == [[0, 1, 0, 1, 0]] * 2
    assert spelled([2, 0, 19, MARK, 3]) == "cat"


# ------------------------------------------------------------------------------------------ runs


def run(steps, *, batch=1, micro_batch=0, kind="linear", stop=None, seed=1):
    """The last event of a run, and all of them."""
    config = parse(
        {
            "model": MICRO,
            "optim": {"kind": "adamw", "adam": {"embedding_lr": 0.01, "head_lr": 0.01,
                      "matrix_lr": 0.01, "beta1": 0.85, "beta2": 0.99, "eps": 1e-8}},
            "data": {"kind": "names", "context": 16, "batch_size": batch,
                     "micro_batch": micro_batch, "validation_share": 0.2},
            "eval": {"probe_tokens": 8192, "confirmation_tokens": 8192, "every_tokens": 1600,
                     "windows_per_pass": 512, "near": 0.0},
            "schedule": {"kind": kind},
            "stop": stop or {},
            "summary": {"losses": True, "samples": 5},
            "run": {"seed": seed, "max_steps": steps, "device": "cpu", "threads": 1},
        },
        "test",
    )  # fmt: skip
    lines, clock = [], PhaseClock()
    train(
        config, events=EventWriter(lines.append, clock.read), clock=clock, progress=Progress(),
        stop_requested=lambda: False, say=lambda _: None,
    )  # fmt: skip
    events = [json.loads(line) for line in lines]
    return events[-1], events


def test_a_run_learns_names_and_says_the_five_outputs():
    last, events = run(150)
    values = [e["metrics"]["val_loss"] for e in events if e["event"] == "evaluated"]
    assert values[0] == pytest.approx(math.log(27), abs=0.1)
    assert values[-1] < 2.75
    assert len(last["samples"]) == 5
    assert all(name.islower() or name == "" for name in last["samples"])
    assert 1 <= last["stable_from_step"] <= 150
    assert last["loss_variance"] > 0
    assert last["best_step_loss"] < last["best_smoothed_loss"]
    assert len(last["smoothed_losses"]) == 150


def test_passes_over_names_of_other_lengths_add_up_to_the_batch():
    whole, parts = (
        [e["metrics"]["val_loss"] for e in run(10, batch=6, micro_batch=size)[1] if "metrics" in e]
        for size in (0, 2)
    )
    assert parts == pytest.approx(whole, rel=1e-6)
    assert whole[-1] < whole[0] - 0.1


def test_the_trap_patience_on_raw_losses_of_single_names_ends_a_run_that_still_learns():
    """The raw loss of one name has a lucky value early on, which the mean of 40 has not."""
    patience = 40 * 16  # 40 steps
    raw, events = run(150, stop={"patience_tokens": patience, "smoothing_steps": 0})
    assert raw["reason"] == "patience"
    assert raw["step"] < 150
    smoothed, _ = run(
        300, stop={"patience_tokens": patience, "smoothing_steps": 40, "watch": "smoothed"}
    )
    assert smoothed["step"] > 2 * raw["step"]
    assert smoothed["best_loss"] < raw["best_loss"] - 0.05
    at_stop = [e["metrics"]["val_loss"] for e in events if e["event"] == "evaluated"]
    assert at_stop == sorted(at_stop, reverse=True)  # it was still getting better
