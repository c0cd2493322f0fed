"""Tails and readers on hostile files: bounded, exact, and never raising for what is in a line."""

from __future__ import annotations

import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.runner import readers
from sweeper.runner.readers import EventsReader, PatternError, PatternsReader
from sweeper.runner.tail import CHUNK, Tail, last_lines
from sweeper.spec import AttemptSpec


def everything(reader):
    events, bad, skipped = [], [], 0
    while True:
        batch = reader.read()
        events += batch.events
        bad += batch.bad
        skipped += batch.skipped
        if not reader.behind:
            rest = reader.rest()
            return events + rest.events, bad + rest.bad, skipped


def line(event="step", seq=0, **more):
    return json.dumps({"v": 1, "seq": seq, "event": event, "step": seq} | more).encode() + b"\n"


# -- tails -----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=30), max_size=12), st.data())
def test_a_tail_gives_every_line_once_however_it_grows(tmp_path_factory, lines, data):
    path = tmp_path_factory.mktemp("tail") / "log"
    whole = b"".join(text.replace(b"\n", b"") + b"\n" for text in lines)
    tail, got, at = Tail(path, longest=50), [], 0
    while at < len(whole):
        more = data.draw(st.integers(1, 20))
        with path.open("ab") as file:
            file.write(whole[at : at + more])
        at += more
        got += [one.text for one in tail.read()]
    assert got == [text for text in whole.split(b"\n") if text]
    assert tail.unfinished() == b""
    tail.close()


def test_a_long_line_is_cut_once_and_what_follows_is_not_lost(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"first\n" + b"x" * (3 * CHUNK) + b"\nlast\nrest")
    tail, got = Tail(path, longest=100), []
    while True:
        got += tail.read()
        if not tail.behind:
            break
    assert [(len(one.text), one.cut) for one in got] == [(5, False), (100, True), (4, False)]
    assert tail.unfinished() == b"rest"


def test_a_progress_bar_is_many_lines(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"1%\r2%\r3%\r\ndone\r")
    assert [one.text for one in Tail(path, longest=9, returns=True).read()] == [
        b"1%", b"2%", b"3%", b"done",
    ]  # fmt: skip


def test_a_truncated_file_is_read_from_its_new_beginning(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\n")
    tail = Tail(path, longest=9)
    assert len(tail.read()) == 2
    path.write_bytes(b"new\n")
    assert tail.read() == []
    assert [one.text for one in tail.read()] == [b"new"]


def test_the_last_lines_for_people(tmp_path):
    path = tmp_path / "log"
    assert last_lines(path) == ""
    path.write_bytes(b"x" * 20_000 + b"\n\xff\0\nend\n")
    assert last_lines(path).endswith("\n\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}\nend")
    assert len(last_lines(path)) <= 8192


# -- events ----------------------------------------------------------------------------------------


def test_good_and_bad_lines_are_told_apart(tmp_path):
    path = tmp_path / "events"
    path.write_bytes(line(seq=1) + b"{torn\n" + b"\xff\xfe\n\n  \n" + line(seq=2) + b"[]\n")
    events, bad, skipped = everything(EventsReader(path))
    assert [e.seq for e in events] == [1, 2]
    assert (len(bad), skipped) == (3, 0)


def test_the_last_line_needs_no_end_if_it_is_whole(tmp_path):
    path = tmp_path / "events"
    path.write_bytes(line(seq=1) + line(seq=2).rstrip())
    assert [e.seq for e in everything(EventsReader(path))[0]] == [1, 2]
    path.write_bytes(line(seq=1) + line(seq=2)[:20])
    assert [e.seq for e in everything(EventsReader(path))[0]] == [1]


def test_a_flood_of_steps_keeps_everything_else(tmp_path):
    path = tmp_path / "events"
    made = []
    for i in range(20_000):
        if i % 500 == 250:
            made.append(line("evaluated", i, metrics={"val_loss": 3.0}, note='"event": "step"'))
        elif i % 500 == 300:
            made.append(line("warning", i, nested={"event": "step"}))
        else:
            made.append(line("step", i))
    path.write_bytes(b"".join(made))
    events, bad, skipped = everything(EventsReader(path))
    assert (len(events) + skipped, bad) == (20_000, [])
    assert skipped > 15_000
    assert sum(e.event == "evaluated" for e in events) == 40
    assert sum(e.event == "warning" for e in events) == 40
    assert events[-1].seq == 19_999


def test_one_look_is_bounded(tmp_path):
    path = tmp_path / "events"
    path.write_bytes(line("evaluated", metrics={}) * 50_000)
    reader = EventsReader(path)
    assert len(reader.read().events) < 10_000
    assert reader.behind


def test_a_line_longer_than_any_event(tmp_path):
    path = tmp_path / "events"
    path.write_bytes(line(seq=1) + b"x" * 3_000_000 + b"\n" + line(seq=2))
    events, bad, _ = everything(EventsReader(path))
    assert [e.seq for e in events] == [1, 2]
    assert len(bad) == 1
    assert len(bad[0]) < 300


def mutated(random_: random.Random) -> bytes:
    """An event line with something wrong, or not."""
    text = bytearray(line("evaluated", 3, clock={"train": 1.5}, metrics={"val_loss": 3.0}))
    for _ in range(random_.randrange(6)):
        at = random_.randrange(len(text))
        match random_.randrange(4):
            case 0:
                text[at] = random_.randrange(256)
            case 1:
                del text[at : at + random_.randrange(9)]
            case 2:
                text[at:at] = bytes(random_.randrange(256) for _ in range(3))
            case _:
                words = (b"1e999", b"NaN", b"-1", b"9" * 400, b'"\\ud800"', b"[" * 90, b"null")
                text[at:at] = random_.choice(words)
        text = text or bytearray(b"\n")
    return bytes(text)


def test_no_event_line_hurts(tmp_path):
    """20,000 damaged lines: read to the end, each an event or a message."""
    random_ = random.Random(7)
    path = tmp_path / "events"
    path.write_bytes(b"".join(mutated(random_) for _ in range(20_000)))
    events, bad, _ = everything(EventsReader(path))
    assert len(events) > 2_000
    assert len(bad) > 2_000


# -- patterns --------------------------------------------------------------------------------------


def patterns_reader(tmp_path, metric="val_loss", **patterns):
    spec = AttemptSpec(
        study="s", trial="t", attempt=1, argv=["x"], cwd="/", run_dir="/", metric=metric,
        clock="train", target=2.0, trial_s=1, silence_s=1, startup_s=1, grace_s=1, max_steps=1,
        reader="patterns", patterns=patterns,
    )  # fmt: skip
    return PatternsReader(spec, tmp_path / "out", tmp_path / "err")


def test_groups_become_events(tmp_path):
    reader = patterns_reader(
        tmp_path,
        evaluated=r"step (?P<step>\d+).*val loss (?P<val_loss>\S+)",
        step=r"iter (?P<step>\d+): loss (?P<loss>\S+), (?P<step_ms>[\d.]+) ms",
        tokens=r"tokens seen: (?P<tokens>[\d,]+)",
    )
    (tmp_path / "out").write_text(
        "step 0: train loss 4, val loss 4.0\niter 1: loss 3.5, 20.0 ms\niter 2: loss 3, 30 ms\n"
        "tokens seen: 1,024\nsomething else\nstep 2: val loss nan"
    )
    (tmp_path / "err").write_text("step 3: val loss 2.5\n")
    events, bad, _ = everything(reader)
    assert bad == []
    told = [(e.event, e.step, e.tokens, round(e.clock.train, 6)) for e in events]
    assert told == [
        ("evaluated", 0, 0, 0.0),
        ("step", 1, 0, 0.02),
        ("step", 2, 0, 0.05),
        ("evaluated", 3, 1024, 0.05),
        ("evaluated", 2, 1024, 0.05),
    ]
    assert events[-1].body["metrics"]["val_loss"] != events[-1].body["metrics"]["val_loss"]


def test_a_cumulative_clock(tmp_path):
    reader = patterns_reader(tmp_path, e=r"(?P<train_ms>\d+)ms (?P<val_loss>\S+)")
    (tmp_path / "out").write_text("1500ms 3.0\n1200ms 2.9\n2500ms inf\n")
    events, _, _ = everything(reader)
    assert [e.clock.train for e in events] == [1.5, 1.5, 2.5]


def test_without_a_clock_group_there_is_no_clock(tmp_path):
    reader = patterns_reader(tmp_path, e=r"(?P<val_loss>\d\.\d)")
    (tmp_path / "out").write_text("3.0\n")
    assert everything(reader)[0][0].clock is None


def test_steps_that_were_not_printed_are_warned_about_once(tmp_path):
    reader = patterns_reader(tmp_path, s=r"iter (?P<step>\d+) (?P<step_ms>\d+)ms")
    (tmp_path / "out").write_text("iter 1 5ms\niter 11 5ms\niter 21 5ms\n")
    _, bad, _ = everything(reader)
    assert len(bad) == 1
    assert "adds up only what is printed" in bad[0]


def test_a_group_that_is_no_number(tmp_path):
    reader = patterns_reader(tmp_path, s=r"loss (?P<loss>\S+)")
    (tmp_path / "out").write_text("loss bad\nloss 3.0\nloss worse\n")
    events, bad, _ = everything(reader)
    assert (len(events), len(bad)) == (1, 1)
    assert "'bad' is not a number" in bad[0]


def test_a_pattern_that_is_none(tmp_path):
    with pytest.raises(PatternError, match="broken"):
        patterns_reader(tmp_path, broken="(?P<step>")


def test_a_catastrophic_pattern_is_dropped_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "SLOWEST_MATCH_S", 0.2)
    reader = patterns_reader(tmp_path, bad=r"(x+x+)+y", good=r"val (?P<val_loss>\S+)")
    (tmp_path / "out").write_text("x" * 4000 + "\nval 2.5\n" + "x" * 4000 + "\n")
    before = time.monotonic()
    events, bad, _ = everything(reader)
    assert time.monotonic() - before < 30
    assert [e.event for e in events] == ["evaluated"]
    assert len(bad) == 1
    assert "pattern 'bad' took over" in bad[0]


def test_no_output_hurts_the_patterns(tmp_path):
    """20,000 lines of noise around what patterns look for."""
    random_ = random.Random(11)
    words = [
        b"step ",
        b"9" * 500,
        b"-",
        b"val loss ",
        b"nan",
        b"1e400",
        b"\xff",
        b"\0",
        b"\r",
        b"3.5",
    ]
    noise = b"".join(
        b"".join(random_.choice(words) for _ in range(random_.randrange(7))) + b"\n"
        for _ in range(20_000)
    )
    (tmp_path / "out").write_bytes(noise)
    reader = patterns_reader(
        tmp_path, e=r"step (?P<step>\S+?)(?: |-)", v=r"val loss (?P<val_loss>\S+)"
    )
    events, _, _ = everything(reader)
    assert events
    assert all(0 <= e.step < 2**63 for e in events)
