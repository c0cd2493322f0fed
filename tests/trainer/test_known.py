"""A large file's hash is taken once: until anything about the file is different, and never too soon."""

import os
import time

import numpy as np
import pytest

from trainer.config import Data
from trainer.data.corpora import load_corpus
from trainer.data.known import LEAST_BYTES, SETTLED_S, Stamp, hash_of
from trainer.data.shards import write_shard
from trainer.errors import DataError

COUNT = LEAST_BYTES // 2


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """The folder in which hashes are kept."""
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


def written(folder):
    """A file that is large enough."""
    path = folder / "x_train.bin"
    write_shard(path, np.full(COUNT, 7, np.uint16))
    write_shard(folder / "x_val.bin", np.arange(100, dtype=np.uint16))
    return path


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """One that has been left alone for long enough, and stays as it is."""
    path = written(tmp_path_factory.mktemp("shard"))
    time.sleep(SETTLED_S + 0.1)
    return path


@pytest.fixture
def own(tmp_path):
    """One that has been left alone for long enough, to be changed."""
    path = written(tmp_path)
    time.sleep(SETTLED_S + 0.1)
    return path


class Hash:
    """Says `digit` 64 times, and counts how often it was asked."""

    def __init__(self, digit="a"):
        self.digit, self.asked = digit, 0

    def __call__(self):
        self.asked += 1
        return 64 * self.digit

    def of(self, path, what=""):
        return hash_of([(path, Stamp.of(path.stat()))], what, self)


def test_it_is_taken_once_for_all_else_that_it_depends_on(shard):
    take = Hash()
    assert take.of(shard) == take.of(shard) == 64 * "a"
    assert take.asked == 1
    assert Hash("b").of(shard) == 64 * "a"
    assert Hash("c").of(shard, "more") == 64 * "c"


def test_a_file_that_was_just_written_is_read_again(tmp_path, kept):
    path, take = written(tmp_path), Hash()
    take.of(path)
    take.of(path)
    assert take.asked == 2
    assert not kept.exists()


def test_a_file_that_changed_behind_its_time_is_read_again(own):
    Hash("a").of(own)
    before = own.stat()
    with own.open("r+b") as file:
        file.seek(5000)
        file.write(b"other")
    os.utime(own, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert own.stat().st_size == before.st_size
    assert Hash("b").of(own) == 64 * "b"


def test_a_file_that_changes_while_it_is_read_is_not_kept(own, kept):
    def meanwhile():
        own.touch()
        return 64 * "a"

    assert hash_of([(own, Stamp.of(own.stat()))], "", meanwhile) == 64 * "a"
    assert not kept.exists()


def test_little_is_not_kept(tmp_path, kept):
    path = tmp_path / "small"
    path.write_bytes(bytes(LEAST_BYTES - 1))
    os.utime(path, (1, 1))
    Hash().of(path)
    assert not kept.exists()


def test_what_is_kept_and_broken_is_taken_again(shard, kept):
    Hash("a").of(shard)
    (place,) = kept.iterdir()
    for content in (b"", b"a" * 63, b"\xff" * 64, b"A" * 64):
        place.write_bytes(content)
        assert Hash("b").of(shard) == 64 * "b"
        assert place.read_text() == 64 * "b"


def test_a_folder_that_cannot_be_used_costs_time_alone(shard, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    take = Hash()
    assert take.of(shard) == take.of(shard) == 64 * "a"
    assert take.asked == 2


def test_an_error_is_passed_on_and_not_kept(shard, kept):
    def fails():
        raise DataError("token 9")

    with pytest.raises(DataError, match="token 9"):
        hash_of([(shard, Stamp.of(shard.stat()))], "", fails)
    assert not kept.exists()


def test_a_corpus_is_the_same_whether_its_hash_was_known_or_not(shard, kept):
    def corpus(vocabulary=100, **limits):
        keys = {"train": str(shard), "validation": str(shard.parent / "x_val.bin"), **limits}
        return load_corpus(Data(kind="shards", vocabulary=vocabulary, **keys))

    first, again = corpus(), corpus()
    assert len(list(kept.iterdir())) == 1
    assert first.sha256 == again.sha256
    assert all(np.array_equal(a, b) for a, b in zip(first.train, again.train, strict=True))
    assert corpus(max_tokens=COUNT - 1).sha256 != first.sha256
    with pytest.raises(DataError, match="token 99 at position 99"):
        corpus(vocabulary=99)


def test_a_store_that_moves_no_time_is_seen_where_it_begins_a_page(own, kept):
    """Stores to a page that is dirty already move neither time of a file."""
    tokens = np.memmap(own, "<u2", mode="r+", offset=1024)
    tokens[0] = 8
    time.sleep(SETTLED_S + 0.1)
    data = Data(kind="shards", train=str(own), validation=str(own.parent / "x_val.bin"))
    before = load_corpus(data).sha256
    assert len(list(kept.iterdir())) == 1
    tokens[0] = 9
    assert load_corpus(data).sha256 != before
