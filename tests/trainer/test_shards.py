"""Shows that token shards are read exactly, and that every fault of a file is an error that names it."""

from pathlib import Path

import numpy as np
import pytest

from trainer.config import Data
from trainer.data.corpora import load_corpus
from trainer.data.shards import HEADER_BYTES, open_shard, write_shard
from trainer.errors import ConfigError, DataError

DOCS = Path(__file__).parents[3] / "shared" / "data" / "docs-gpt2"


def header(magic=20240520, version=1, count=4):
    numbers = np.zeros(256, "<i4")
    numbers[:3] = magic, version, count
    return numbers.tobytes()


def raw(path, head, tokens=(1, 2, 3, 4)):
    path.write_bytes(head + np.array(tokens, "<u2").tobytes())
    return path


def shards(folder, train, validation=(0, 1, 2, 3), **keys):
    """A corpus of the given training parts."""
    for number, part in enumerate(train):
        write_shard(folder / f"x_train_{number:06d}.bin", np.array(part, np.uint16))
    write_shard(folder / "x_val_000000.bin", np.array(validation, np.uint16))
    return load_corpus(
        Data(
            kind="shards",
            train=str(folder / "x_train_*.bin"),
            validation=str(folder / "x_val_*.bin"),
            **keys,
        )
    )


def test_what_is_written_is_read_back_through_a_map_at_1024_bytes(tmp_path):
    path = tmp_path / "a.bin"
    tokens = np.arange(1000, dtype=np.uint16) * 50
    write_shard(path, tokens)
    assert path.stat().st_size == 1024 + 2000
    found = open_shard(path).tokens
    assert isinstance(found, np.memmap)
    assert found.offset == 1024
    assert np.array_equal(found, tokens)
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_header_taken_for_256_bytes_would_be_noticed(tmp_path):
    """256 int32 are 1,024 bytes; who skips 256 bytes reads 384 tokens of header as text."""
    write_shard(tmp_path / "a.bin", np.full(1000, 7, np.uint16))
    right = open_shard(tmp_path / "a.bin").tokens
    wrong = np.fromfile(tmp_path / "a.bin", "<u2", offset=256)
    assert len(wrong) - len(right) == 384
    assert (right == 7).all()
    # And a file that was written that way is refused.
    short = tmp_path / "short.bin"
    short.write_bytes(header(count=1000)[:256] + np.full(1000, 7, "<u2").tobytes())
    with pytest.raises(DataError, match=r"2256 bytes; expected 3024 .*cut off"):
        open_shard(short)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "0 bytes; expected a shard"),
        (header()[:1000], "1000 bytes; expected a shard"),
        (header(magic=1) + bytes(8), "magic number 1; expected 20240520"),
        (
            np.arange(2000, dtype="<u2").tobytes(),
            r"magic number 65536.*raw tokens without a header",
        ),
        (header(version=2) + bytes(8), "version 2; expected 1"),
        (header(count=0), "says 0 tokens"),
        (header(count=-5) + bytes(8), "says -5 tokens"),
        (header() + bytes(6), "1030 bytes; expected 1032 .*cut off"),
        (header() + bytes(10), "1034 bytes; expected 1032 .*no tokens"),
    ],
)
def test_every_fault_of_a_file_is_named(tmp_path, content, says):
    path = tmp_path / "bad.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"bad\.bin: .*{says}"):
        open_shard(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.bin: cannot be read"):
        open_shard(tmp_path / "absent.bin")
    with pytest.raises(DataError, match=r"data\.train = .*x_\*\.bin': no such file"):
        load_corpus(Data(kind="shards", train=str(tmp_path / "x_*.bin"), validation="y.bin"))


def test_tokens_outside_the_vocabulary_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"token 50257 at position 2; .*data\.vocabulary = 50257"):
        shards(tmp_path, [[5, 50_256, 50_257, 9]])
    assert shards(tmp_path, [[5, 50_256, 9, 9]]).vocabulary == 50_257
    with pytest.raises(DataError, match="token 9 at position 2"):
        shards(tmp_path, [[5, 6, 9, 9]], vocabulary=9)


def test_shards_follow_one_another_in_the_order_of_their_names_up_to_a_limit(tmp_path):
    parts = [range(10), range(10, 20), range(20, 25)]
    whole = shards(tmp_path, parts)
    assert np.concatenate(whole.train).tolist() == list(range(25))
    limited = shards(tmp_path, parts, max_tokens=12, max_validation_tokens=3)
    assert np.concatenate(limited.train).tolist() == list(range(12))
    assert np.concatenate(limited.validation).tolist() == [0, 1, 2]
    assert limited.sha256 != whole.sha256


def test_the_hash_is_of_the_tokens_not_of_the_files(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = shards(tmp_path / "one", [range(10)])
    two = shards(tmp_path / "two", [range(5), range(5, 10)])
    assert one.sha256 == two.sha256
    (tmp_path / "three").mkdir()
    assert shards(tmp_path / "three", [[*range(9), 8]]).sha256 != one.sha256


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_shard(tmp_path / "file" / "a.bin", np.zeros(3, np.uint16))


@pytest.mark.skipif(not DOCS.exists(), reason="the docs-gpt2 shards are not at hand")
def test_real_shards_begin_with_a_document_mark():
    corpus = load_corpus(
        Data(
            kind="shards",
            train=str(DOCS / "docs_train_*.bin"),
            validation=str(DOCS / "docs_val_*.bin"),
            max_tokens=1_000_000,
        )
    )
    (train,), (validation,) = corpus.train, corpus.validation
    assert (len(train), len(validation)) == (1_000_000, 1_048_576)
    assert train[0] == validation[0] == 50_256  # 384 tokens of header would come before it
    assert train.offset == HEADER_BYTES
