"""Shows that corpora are fixed, splits are disjoint, and the order is a function of the seed."""

import hashlib

import numpy as np
import pytest
import torch

from trainer.config import Data
from trainer.data.batches import TrainingBatches, audit, spread_windows
from trainer.data.corpora import load_corpus, read_source_tree
from trainer.data.tokens import DeviceTokens, HostTokens, place_tokens
from trainer.errors import DataError

CPU = torch.device("cpu")


def stored(count, dtype=np.uint8):
    return DeviceTokens([np.arange(count, dtype=dtype)], CPU)


def batches(tokens, *, batch_size=2, context=4, seed=0, stride=0):
    return TrainingBatches(tokens, context=context, batch_size=batch_size, seed=seed, stride=stride)


def test_the_standard_library_is_a_corpus():
    config = Data(max_bytes=300_000)
    corpus = load_corpus(config)
    (train,), (validation,) = corpus.train, corpus.validation
    assert len(train) + len(validation) == 300_000
    assert 0.02 < len(validation) / 300_000 < 0.3
    assert corpus.vocabulary == 256
    assert load_corpus(config).sha256 == corpus.sha256
    assert load_corpus(Data(max_bytes=300_001)).sha256 != corpus.sha256
    assert b"import" in train.tobytes()


def source_tree(root):
    for name in (f"m{n:02}.py" for n in range(40)):
        (root / name).write_text(f"# {name}\n")
    for folder in ("pkg", "test", "site-packages", "__pycache__"):
        (root / folder).mkdir()
        (root / folder / "inner.py").write_text(f"# {folder}/inner\n")
    (root / "_sysconfigdata__linux.py").write_text("# machine\n")
    (root / "notes.txt").write_text("# text\n")


def test_a_source_tree_is_read_in_order_and_split_by_whole_files(tmp_path):
    source_tree(tmp_path)
    train, validation = read_source_tree(tmp_path, 10**6, 0.25)
    in_train, held_out = train.decode().splitlines(), validation.decode().splitlines()
    assert in_train == sorted(in_train)
    assert held_out == sorted(held_out)
    expected = {f"# m{n:02}.py" for n in range(40)} | {"# pkg/inner"}
    assert set(in_train) | set(held_out) == expected
    assert not set(in_train) & set(held_out)
    assert len(held_out) >= 4
    # A new file moves no other one to the other side.
    (tmp_path / "m50.py").write_text("# m50.py\n")
    again = read_source_tree(tmp_path, 10**6, 0.25)
    assert set(held_out) <= set(again[1].decode().splitlines())


def test_reading_stops_at_the_limit(tmp_path):
    source_tree(tmp_path)
    train, validation = read_source_tree(tmp_path, 200, 0.25)
    assert len(train) + len(validation) == 200


def test_a_tree_without_source_is_refused(tmp_path):
    with pytest.raises(DataError, match="no Python source"):
        read_source_tree(tmp_path, 1000, 0.5)
    with pytest.raises(DataError, match="cannot be listed"):
        read_source_tree(tmp_path / "absent", 1000, 0.5)


def test_a_text_file_is_split_in_order(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(range(100)) * 50)
    corpus = load_corpus(Data(kind="text", path=str(path), validation_share=0.2))
    (train,), (validation,) = corpus.train, corpus.validation
    assert train.tobytes() + validation.tobytes() == path.read_bytes()
    assert len(validation) == 1000
    digest = hashlib.sha256((4000).to_bytes(8, "little") + path.read_bytes())
    assert corpus.sha256 == digest.hexdigest()


def test_a_missing_text_file_is_named(tmp_path):
    path = tmp_path / "absent.txt"
    with pytest.raises(DataError, match=r"absent\.txt: cannot be read \(No such file"):
        load_corpus(Data(kind="text", path=str(path)))


def test_random_bytes_are_the_same_every_time_and_flat():
    one, two = (load_corpus(Data(kind="random", max_bytes=100_000)) for _ in range(2))
    assert one.sha256 == two.sha256
    counts = np.bincount(one.train[0], minlength=256)
    assert counts.min() > 0.7 * counts.mean()


def test_targets_are_the_next_tokens():
    x, y = batches(stored(41)).at(0)
    assert x.shape == y.shape == (2, 4)
    assert x.dtype == torch.int64
    assert torch.equal(y, x + 1)
    assert (x[:, 0] % 4 == 0).all()


def test_an_epoch_sees_every_window_once_and_the_next_in_another_order():
    order = batches(stored(41))
    epochs = [torch.cat([order.at(5 * n + s)[0][:, 0] for s in range(5)]) for n in range(2)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(0, 40, 4))
    assert epochs[0].tolist() != epochs[1].tolist()


def test_the_order_does_not_depend_on_the_batch_size_or_on_what_was_asked_before():
    tokens = stored(81)
    small, large = batches(tokens, batch_size=2), batches(tokens, batch_size=6)
    late = large.at(7)[0]
    by_twos = torch.cat([small.at(step)[0] for step in range(24)])
    assert torch.equal(by_twos[:6], large.at(0)[0])
    assert torch.equal(by_twos[42:48], late)


def test_the_seed_decides_the_order():
    tokens = stored(81)
    assert torch.equal(batches(tokens, seed=3).at(2)[0], batches(tokens, seed=3).at(2)[0])
    assert not torch.equal(
        batches(tokens, batch_size=8, seed=3).at(0)[0],
        batches(tokens, batch_size=8, seed=4).at(0)[0],
    )


def test_slices_are_spread_evenly_without_overlap():
    x, y = spread_windows(stored(101), context=4, count=5, name="probe")
    assert x[:, 0].tolist() == [0, 20, 40, 60, 80]
    assert torch.equal(y, x + 1)


def test_a_slice_larger_than_the_data_is_refused():
    with pytest.raises(DataError, match=r"101 tokens; the probe slice needs 121.*probe_tokens"):
        spread_windows(stored(101), context=4, count=30, name="probe")


def test_a_context_longer_than_the_data_is_refused():
    with pytest.raises(DataError, match=r"3 tokens; expected more than data\.context = 4"):
        batches(stored(3))


def test_tokens_keep_their_width_and_large_ids_their_value():
    small, large = stored(3), DeviceTokens([np.array([1, 50_256, 65_535], np.uint16)], CPU)
    assert small.tensor.element_size() == 1
    assert large.tensor.element_size() == 2
    rows = large.rows(torch.tensor([0, 1]), 2)
    assert rows.dtype == torch.int64
    assert rows.tolist() == [[1, 50_256], [50_256, 65_535]]


def test_tokens_in_host_arrays_give_the_same_batches_across_their_borders():
    tokens = (np.arange(500) * 131).astype(np.uint16)
    parts = [tokens[:3], tokens[3:123], tokens[123:124], tokens[124:]]
    one = batches(DeviceTokens(parts, CPU), batch_size=8, context=16)
    two = batches(HostTokens(parts, CPU), batch_size=8, context=16)
    for step in range(12):
        for a, b in zip(one.at(step), two.at(step), strict=True):
            assert torch.equal(a, b)
    assert isinstance(place_tokens(parts, CPU, "auto"), DeviceTokens)
    assert isinstance(place_tokens(parts, CPU, "host"), HostTokens)


def test_a_batch_may_be_larger_than_an_epoch():
    x, _ = batches(stored(41), batch_size=25).at(0)
    assert sorted(x[:10, 0].tolist()) == sorted(x[10:20, 0].tolist()) == list(range(0, 40, 4))


@pytest.mark.parametrize(
    ("tokens", "context", "stride", "expected"),
    [
        (41, 4, 4, (10, 1.0, 1, 0)),
        (44, 4, 4, (10, 40 / 43, 1, 3)),
        (41, 4, 2, (19, 76 / 40, 2, 0)),
        (41, 4, 1, (37, 148 / 40, 4, 0)),
        (41, 4, 8, (5, 0.5, 1, 20)),
        (4, 4, 4, (0, 0.0, 0, 4)),
        # The stride bug of a published run: 990,362 samples instead of 968.
        (991_386, 1024, 1, (990_362, 990_362 * 1024 / 991_385, 1024, 0)),
        (991_386, 1024, 1024, (968, 968 * 1024 / 991_385, 1, 153)),
    ],
)
def test_the_audit_counts_samples_exposures_and_what_is_left_over(
    tokens, context, stride, expected
):
    found = audit(tokens, context=context, stride=stride)
    told = (found.samples, found.exposures, found.max_exposures, found.unused_tokens)
    assert told == pytest.approx(expected)
    assert found.overlap == max(0, context - stride)
    if stride >= context:
        assert found.samples * context <= tokens


def test_the_audit_is_what_an_epoch_really_does():
    for stride in (1, 3, 4, 5):
        order = batches(stored(47), batch_size=1, stride=stride)
        seen = np.zeros(47, int)
        for step in range(order.audit.samples):
            _, targets = order.at(step)
            assert (targets[0, 0] - 1) % stride == 0
            seen[targets[0].numpy()] += 1
        assert seen.sum() == order.audit.samples * 4
        assert seen.sum() / 46 == pytest.approx(order.audit.exposures)
        assert seen.max() == order.audit.max_exposures


def test_a_text_must_be_text_and_bytes_may_be_anything(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"ab\xff" * 2000)
    with pytest.raises(DataError, match=r"byte 2 is not UTF-8.*data\.kind = \"bytes\""):
        load_corpus(Data(kind="text", path=str(path)))
    assert load_corpus(Data(kind="bytes", path=str(path))).train[0][2] == 255
    # A limit that cuts a character in two is no fault of the text.
    path.write_text("\u00e9" * 4000)
    assert load_corpus(Data(kind="text", path=str(path), max_bytes=4097)).vocabulary == 256


def test_characters_are_numbered_in_the_order_of_their_code_points(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("ba\u00e9\U0001f600" * 1000)
    corpus = load_corpus(Data(kind="characters", path=str(path), validation_share=0.25))
    assert corpus.vocabulary == 4
    assert corpus.train[0][:4].tolist() == [1, 0, 2, 3]
    assert (len(corpus.train[0]), len(corpus.validation[0])) == (3000, 1000)
    path.write_text("ca\u00e9\U0001f600" * 1000)
    other = load_corpus(Data(kind="characters", path=str(path), validation_share=0.25))
    assert other.train[0].tolist() == corpus.train[0].tolist()
    assert other.sha256 != corpus.sha256
