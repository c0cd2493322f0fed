"""The documents of an attempt, and files that appear whole or not at all."""

from __future__ import annotations

import json
import stat

import pytest

from sweeper.paths import AttemptPaths, Home, make_private, write_json, write_whole
from sweeper.spec import AttemptOutcome, AttemptSpec, Control, Running, SpecError
from sweeper.trial import Outcome, Reason


def a_spec(**more):
    return AttemptSpec(
        study="s", trial="t", attempt=1, argv=["x"], cwd="/", run_dir="/r", metric="val_loss",
        clock="train", target=2.0, trial_s=1.0, silence_s=1.0, startup_s=1.0, grace_s=1.0,
        max_steps=10, **more,
    )  # fmt: skip


def an_outcome(**more):
    return AttemptOutcome(
        study="s", trial="t", attempt=1, outcome=Outcome.CENSORED, reason=Reason.CAP, message="m",
        exit_code=None, signal=15, started_at=1.0, ended_at=2.0, wall_s=1.0, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    "document",
    [
        a_spec(env={"A": None, "B": "x"}, patterns={"p": "x"}, cap_s=3.0, device={"cores": [1]}),
        an_outcome(leftovers=[3], device={"kind": "cpu"}),
        Control(cap_s=1.5, cancel=True),
        Running(1, 2, "boot", "token", 3.0, trainer=4),
    ],
)
def test_documents_survive_a_file(tmp_path, document):
    path = tmp_path / "document.json"
    write_json(path, document.to_json())
    assert type(document).read(path) == document


def test_an_outcome_read_has_its_words():
    again = AttemptOutcome.from_json(json.loads(json.dumps(an_outcome().to_json())))
    assert (again.outcome, again.reason) == (Outcome.CENSORED, Reason.CAP)


@pytest.mark.parametrize(
    ("document", "word"),
    [
        ([], "expected an object"),
        ({"v": 2}, "v = 1"),
        ({"v": 1, "cap": 3}, "unknown key 'cap'"),
        ({"v": 1, "cap_s": "3"}, "cap_s: got '3'"),
        ({"v": 1, "cap_s": -1}, "cap_s: got -1"),
        ({"v": 1, "cap_s": float("nan")}, "cap_s: got nan"),
        ({"v": 1, "cap_s": True}, "cap_s: got True"),
        ({"v": 1, "cancel": 1}, "cancel: got 1"),
    ],
)
def test_controls_that_are_refused(document, word):
    with pytest.raises(SpecError, match=word):
        Control.from_json(document)


@pytest.mark.parametrize("data", [b"", b'{"v": 1, "cap', b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_document(tmp_path, data):
    path = tmp_path / "control.json"
    path.write_bytes(data)
    with pytest.raises(SpecError):
        Control.read(path)


def test_a_missing_key():
    document = a_spec().to_json()
    del document["argv"]
    with pytest.raises(SpecError, match="argv"):
        AttemptSpec.from_json(document)


def test_a_file_is_whole_private_and_replaced(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "old")
    write_whole(path, "new ü ☃")
    assert path.read_text(encoding="utf-8") == "new ü ☃"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_paths_that_are_no_unicode_survive_json(tmp_path):
    path = tmp_path / "file"
    write_json(path, {"path": "caf\udce9"})
    assert json.loads(path.read_text()) == {"path": "caf\udce9"}


def test_where_everything_is(tmp_path):
    home = Home(tmp_path)
    attempt = home.attempt("ngpt", "s1-A3", 2)
    assert attempt.folder == tmp_path / "runs" / "ngpt" / "s1-A3" / "attempt-2"
    names = {
        getattr(attempt, name).name
        for name, value in vars(AttemptPaths).items()
        if isinstance(value, property)
    }
    assert len(names) == sum(isinstance(v, property) for v in vars(AttemptPaths).values())
    assert stat.S_IMODE(make_private(attempt.folder).stat().st_mode) == 0o700
