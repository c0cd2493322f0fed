"""Shows minimal pairs: who wins, what is refused, when a run scores them, and that passes add up."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.trainer.test_run import run
from trainer.errors import DataError
from trainer.pairs import OWN, Pair, PairScorer, read_pairs

BLIMP = Path(__file__).resolve().parents[3] / "shared" / "data" / "blimp"
MASKED = {
    "model": {"kind": "ltg_bert", "layers": 1, "width": 16, "heads": 2, "hidden": 16},
    "objective": {"kind": "masked"},
    "optim": {"kind": "adamw", "adam": {"lr": 0.003}},
    "data": {"kind": "topics", "max_bytes": 60_000, "batch_size": 6, "context": 48},
    "eval": {"probe_tokens": 480, "confirmation_tokens": 960, "every_tokens": 576},
    "pairs": {"path": OWN, "most": 1, "at": [0.5]},
    "run": {"device": "cpu", "threads": 1, "max_steps": 8},
}


def bytes_of(text):
    return list(text.encode())


def scorer(logits, mask=None, **options):
    return PairScorer(
        [Pair("ab", "ba", "order")], logits=logits, encode=bytes_of, context=16,
        device=torch.device("cpu"), mask=mask, **options,
    )  # fmt: skip


def test_the_pairs_of_our_own():
    pairs = read_pairs(OWN)
    assert len(pairs) == 48
    assert all(pair.paradigm.startswith("own_") and pair.good != pair.bad for pair in pairs)
    assert len(read_pairs(OWN, most=3)) == 18


@pytest.mark.skipif(not BLIMP.is_dir(), reason="no BLiMP files beside the repository")
def test_blimp_files_are_read():
    pairs = read_pairs(str(BLIMP), most=20)
    assert {pair.paradigm for pair in pairs} == {file.stem for file in BLIMP.glob("*.jsonl")}
    assert len(pairs) == 20 * len(list(BLIMP.glob("*.jsonl")))


@pytest.mark.parametrize("line", ["{", "[]", '{"sentence_good": "a", "UID": "x"}', '{"UID": 1}'])
def test_what_is_no_pair_is_refused_by_line(tmp_path, line):
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        json.dumps({"sentence_good": "a", "sentence_bad": "b", "UID": "x"}) + f"\n{line}\n"
    )
    with pytest.raises(DataError, match=r"pairs\.jsonl, line 2: not a minimal pair; expected"):
        read_pairs(str(tmp_path))
    with pytest.raises(DataError, match="cannot be read"):
        read_pairs(str(tmp_path / "absent.jsonl"))
    file.unlink()
    with pytest.raises(DataError, match="no pairs in it"):
        read_pairs(str(tmp_path))


def test_a_causal_score_is_the_log_probability_of_the_sentence():
    table = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    found = scorer(lambda tokens: table[tokens]).score("ab")
    log_p = table.double().log_softmax(-1)
    assert found == pytest.approx(float(log_p[10, 97] + log_p[97, 98]))


def test_a_masked_score_hides_each_token_in_turn():
    seen = []

    def logits(tokens):
        seen.append(tokens)
        out = torch.zeros(*tokens.shape, 130)
        out[..., 97] = 2.0  # "a" is likely everywhere
        return out

    found = scorer(logits, mask=129).score("ab")
    assert torch.cat(seen).tolist() == [[10, 129, 98], [10, 97, 129]]
    total = math.log(129 + math.exp(2))
    assert found == pytest.approx(2 - 2 * total)
    assert scorer(logits, mask=129, normalisation="mean").score("ab") == pytest.approx(found / 2)


def test_equal_scores_are_not_a_win():
    assert scorer(lambda tokens: torch.zeros(*tokens.shape, 128)).accuracy()["blimp"] == 0.0


def test_paradigms_count_alike():
    """Nine pairs of one paradigm do not outvote one of another."""
    pairs = [Pair("a", "b", "many")] * 9 + [Pair("b", "a", "one")]
    logits = torch.zeros(128)
    logits[97] = 1.0
    found = PairScorer(
        pairs, logits=lambda tokens: logits.expand(*tokens.shape, 128), encode=bytes_of, context=8,
        device=torch.device("cpu"),
    ).accuracy()  # fmt: skip
    assert found == {"blimp": 0.5, "blimp/many": 1.0, "blimp/one": 0.0}


def test_a_run_scores_them_at_its_milestones_and_at_its_end():
    reason, events = run(MASKED)
    scored = [event for event in events if event.get("slice") == "pairs"]
    assert (str(reason), [event["step"] for event in scored]) == ("steps", [4, 8])
    assert all(len(event["metrics"]) == 7 for event in scored)
    assert scored[-1]["clock"]["eval"] > 0


def test_pairs_do_not_change_the_training():
    without = {key: value for key, value in MASKED.items() if key != "pairs"}
    ours, theirs = (
        [e["metrics"]["val_loss"] for e in run(raw)[1] if e.get("slice") == "probe"]
        for raw in (MASKED, without)
    )
    assert ours == theirs
    assert len(ours) > 2


def test_passes_add_up_to_the_batch():
    """Sequences have different numbers of hidden tokens; accumulation must not weigh them wrongly."""
    split = {**MASKED, "data": {**MASKED["data"], "micro_batch": 2}}
    ours, theirs = (
        [e["metrics"]["val_loss"] for e in run(raw)[1] if e.get("slice") == "probe"]
        for raw in (MASKED, split)
    )
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_the_beginning_of_a_long_sentence_is_lost_with_a_warning():
    short = {
        **MASKED, "data": {**MASKED["data"], "context": 16},
        "eval": {"probe_tokens": 480, "confirmation_tokens": 960},
    }  # fmt: skip
    warnings = [e for e in run(short)[1] if e["event"] == "warning"]
    assert [w["kind"] for w in warnings] == ["pairs_cut"]
