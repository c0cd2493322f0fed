"""Shows that corpora are fixed, splits are disjoint, and the order is a function of the seed."""

import hashlib

import numpy as np
import pytest
import torch

from trainer.config import Data
from trainer.data.batches import TrainingBatches, on_device, spread_windows
from trainer.data.corpora import load_corpus, read_source_tree
from trainer.errors import DataError


def batches(tokens, *, batch_size=2, context=4, seed=0):
    return TrainingBatches(tokens, context=context, batch_size=batch_size, seed=seed)


def test_the_standard_library_is_a_corpus():
    config = Data(max_bytes=300_000)
    corpus = load_corpus(config)
    assert len(corpus.train) + len(corpus.validation) == 300_000
    assert 0.02 < len(corpus.validation) / 300_000 < 0.3
    assert corpus.vocabulary == 256
    assert load_corpus(config).sha256 == corpus.sha256
    assert load_corpus(Data(max_bytes=300_001)).sha256 != corpus.sha256
    assert b"import" in corpus.train.tobytes()


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
    assert corpus.train.tobytes() + corpus.validation.tobytes() == path.read_bytes()
    assert len(corpus.validation) == 1000
    digest = hashlib.sha256((4000).to_bytes(8, "little") + path.read_bytes())
    assert corpus.sha256 == digest.hexdigest()


def test_a_missing_text_file_is_named(tmp_path):
    path = tmp_path / "absent.txt"
    with pytest.raises(DataError, match=r"absent\.txt: cannot be read \(No such file"):
        load_corpus(Data(kind="text", path=str(path)))


def test_random_bytes_are_the_same_every_time_and_flat():
    one, two = (load_corpus(Data(kind="random", max_bytes=100_000)) for _ in range(2))
    assert one.sha256 == two.sha256
    counts = np.bincount(one.train, minlength=256)
    assert counts.min() > 0.7 * counts.mean()


def test_targets_are_the_next_tokens():
    x, y = batches(torch.arange(41, dtype=torch.uint8)).at(0)
    assert x.shape == y.shape == (2, 4)
    assert x.dtype == torch.int64
    assert torch.equal(y, x + 1)
    assert (x[:, 0] % 4 == 0).all()


def test_an_epoch_sees_every_window_once_and_the_next_in_another_order():
    order = batches(torch.arange(41, dtype=torch.uint8))
    epochs = [torch.cat([order.at(5 * n + s)[0][:, 0] for s in range(5)]) for n in range(2)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(0, 40, 4))
    assert epochs[0].tolist() != epochs[1].tolist()


def test_the_order_does_not_depend_on_the_batch_size_or_on_what_was_asked_before():
    tokens = torch.arange(81, dtype=torch.uint8)
    small, large = batches(tokens, batch_size=2), batches(tokens, batch_size=6)
    late = large.at(7)[0]
    by_twos = torch.cat([small.at(step)[0] for step in range(24)])
    assert torch.equal(by_twos[:6], large.at(0)[0])
    assert torch.equal(by_twos[42:48], late)


def test_the_seed_decides_the_order():
    tokens = torch.arange(81, dtype=torch.uint8)
    assert torch.equal(batches(tokens, seed=3).at(2)[0], batches(tokens, seed=3).at(2)[0])
    assert not torch.equal(
        batches(tokens, batch_size=8, seed=3).at(0)[0],
        batches(tokens, batch_size=8, seed=4).at(0)[0],
    )


def test_slices_are_spread_evenly_without_overlap():
    x, y = spread_windows(torch.arange(101, dtype=torch.uint8), context=4, count=5, name="probe")
    assert x[:, 0].tolist() == [0, 20, 40, 60, 80]
    assert torch.equal(y, x + 1)


def test_a_slice_larger_than_the_data_is_refused():
    with pytest.raises(DataError, match=r"101 tokens; the probe slice needs 121.*probe_tokens"):
        spread_windows(torch.zeros(101, dtype=torch.uint8), context=4, count=30, name="probe")


def test_a_context_longer_than_the_data_is_refused():
    with pytest.raises(DataError, match=r"3 tokens; expected more than data\.context = 4"):
        batches(torch.zeros(3, dtype=torch.uint8))


def test_tokens_keep_their_width():
    assert on_device(np.arange(3, dtype=np.uint8), torch.device("cpu")).dtype == torch.uint8
