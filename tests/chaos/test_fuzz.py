"""Whatever the bytes: study files, event lines, printed output and our own documents hurt nobody.

Each fuzzer mutates golden inputs from a seed. An input may be refused with the error of its kind; any
other exception, and more than CPU_S seconds of one processor for one input, is a failure that names
the seed and the input's number. The short form is for every run, the long one for `-m long`.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import signal
import tempfile
import tomllib
from pathlib import Path

import pytest

from sweeper import readout
from sweeper.errors import StudyError
from sweeper.events import EventError, Fold, fold_lines, parse_line
from sweeper.executors.local import LocalExecutor
from sweeper.paths import AttemptPaths, write_json
from sweeper.plan_document import StageDocument
from sweeper.runner import readers
from sweeper.runner.readers import EventsReader, PatternError, PatternsReader
from sweeper.runner.recorder import Recorder
from sweeper.spec import AttemptOutcome, AttemptSpec, Control, Running, SpecError
from sweeper.study_file import load
from tests.chaos.arena import ROOT, make_study

# What re thinks of a mutated pattern ("possible nested set") is for people, and no error.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

CPU_S = 5.0
SHORT = {"studies": 700, "events": 6000, "patterns": 2000, "documents": 3000}
LONG = {"studies": 12_000, "events": 60_000, "patterns": 15_000, "documents": 25_000}

NASTY = [
    b"", b"0", b"-1", b"1e999", b"-0.0", b"nan", b"inf", b"NaN", b"Infinity", b"null", b"true",
    b"9" * 400, b"0x7f", b"1_000", b"2**64", b'""', b"''", b'"\\u0000"', b'"\\ud800"', b"[]", b"{}",
    b"[[[]]]", b"[" * 3000, b"\x00", b"\xff\xfe", b"\xf0\x9f\x98\x80", b"\r", b"\n", b"\n\n", b"=",
    b"#", b'"', b"'", b"\\", b"\\u", b"{", b"}", b"{lr}", b"{}", b"%s", b"$(id)", b"../../x", b"a.b",
    b"1979-05-27T07:32:00Z", b"12:00:00", b" " * 100, b"\t", b"x" * 5000, b"-", b"+5", b"1.",
]  # fmt: skip


class Hang(Exception):  # noqa: N818
    """One input took more than its share."""


@contextlib.contextmanager
def limited(what: str):
    """A limit in processor time, so that a busy machine is no hang."""

    def ring(number, frame):
        raise Hang(what)

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S)
    try:
        yield
    except (Hang, AssertionError):
        raise
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def mutate(data: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """One to four changes: bits, cuts, repeats, nasty words, pieces and lines of other inputs."""
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(data) + 1)
        end = min(len(data), place + draw.choice((1, 1, 2, 5, 20, 200)))
        kind = draw.randrange(9)
        if kind == 0 and data:
            byte = bytes([data[place - 1] ^ (1 << draw.randrange(8))])
            data = data[: place - 1] + byte + data[place:] if place else byte + data[1:]
        elif kind == 1:
            data = data[:place] + data[end:]
        elif kind == 2:
            data = data[:place] + data[place:end] * draw.randint(2, 5) + data[end:]
        elif kind in (3, 4):
            data = data[:place] + draw.choice(NASTY) + data[end:]
        elif kind == 5:
            other = draw.choice(others)
            begin = draw.randrange(len(other) + 1)
            data = data[:place] + other[begin : begin + draw.choice((5, 30, 300))] + data[end:]
        elif (
            kind == 6
        ):  # a whole value: what stands after = or : up to the end of the line or a comma
            data = replace_value(data, draw)
        elif kind == 7:
            lines = data.split(b"\n")
            i, j = draw.randrange(len(lines)), draw.randrange(len(lines))
            lines[i], lines[j] = lines[j], lines[i]
            data = b"\n".join(lines)
        else:
            lines = data.split(b"\n")
            lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
            data = b"\n".join(lines)
    return data


def replace_value(data: bytes, draw: random.Random) -> bytes:
    places = [i for i, byte in enumerate(data) if byte in b"=:"]
    if not places:
        return data
    start = draw.choice(places) + 1
    ends = [e for e in (data.find(c, start) for c in (b"\n", b",", b"}")) if e >= 0]
    return data[:start] + b" " + draw.choice(NASTY) + data[min(ends, default=len(data)) :]


def goldens() -> list[bytes]:
    """Event lines that the real trainer wrote."""
    files = sorted((ROOT / "tests" / "protocol").glob("*.jsonl"))
    return [line for file in files for line in file.read_bytes().splitlines()]


def studies(tmp_path: Path) -> list[bytes]:
    made = make_study(
        tmp_path, "fuzz", Path("/tmp/d"), trials=13, seed=1, manners=False, cap=True, tau_s=1
    )
    built_in = sorted((ROOT / "studies").glob("*/study.toml"))
    return [made.read_bytes(), *(p.read_bytes() for p in built_in)]


def fuzz_studies(tmp_path, seed, count):
    """A study, or an error that a user can act on."""
    draw = random.Random(seed)
    whole = studies(tmp_path)
    folder = tmp_path / "fuzzed"
    folder.mkdir()
    for source in (tmp_path / "the study ☃", *(ROOT / "studies").glob("*")):
        for base in source.glob("*.toml") if source.is_dir() else ():
            (folder / base.name).write_bytes(base.read_bytes())
    file = folder / "study.toml"
    good = refused = 0
    weights = [8, *(1 for _ in whole[1:])]
    for number in range(count):
        file.write_bytes(mutate(draw.choices(whole, weights)[0], draw, whole))
        with limited(f"study {number} of seed {seed}"):
            try:
                study = load(file)
                study.definition("stage1")
                study.definition_hash("stage1")
                good += 1
            except StudyError as error:
                assert str(error)  # noqa: PT017
                refused += 1
    assert good > count / 100
    assert refused > count / 4


def fuzz_events(tmp_path, seed, count):
    """One by one, then in files through the runner's reader and recorder."""
    draw = random.Random(seed)
    whole = goldens()
    lines = [mutate(draw.choice(whole), draw, whole) for _ in range(count)]
    good = refused = 0
    for number, line in enumerate(lines):
        with limited(f"line {number} of seed {seed}: {line[:200]!r}"):
            try:
                Fold("val_loss").add(parse_line(line))
                good += 1
            except EventError as error:
                assert len(str(error)) < 1000  # noqa: PT017
                refused += 1
    assert min(good, refused) > count / 10
    for first in range(0, count, 500):
        some = lines[first : first + 500]
        with limited(f"lines from {first} of seed {seed}"):
            stream_of_lines(tmp_path / f"{first}", some, draw)


def stream_of_lines(folder, lines, draw):
    folder.mkdir()
    paths = AttemptPaths(folder)
    paths.raw_events.write_bytes(b"\n".join(lines))
    reader = EventsReader(paths.raw_events)
    recorder = Recorder(paths.events, "val_loss", 0.0)
    now = 0.0
    while True:
        batch = reader.read()
        for event in batch.events:
            recorder.add(event, now)
        for message in batch.bad:
            recorder.bad(message, now)
        now += draw.random()
        if not reader.behind:
            break
    for event in reader.rest().events:
        recorder.add(event, now)
    recorder.finish()
    # What the runner wrote is strict, and everybody else reads it back whole.
    fold = fold_lines(paths.events.read_bytes().splitlines(), "val_loss")
    assert len(fold.curve) == len(recorder.fold.curve)
    for line in paths.events.read_bytes().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert len(readout.Follow(paths).new()) == fold.events
    with contextlib.suppress(EventError):
        fold_lines(lines, "val_loss")


PRINTED = [
    b"step 250: train loss 2.5012, val loss 2.4987",
    b"iter 250: loss 2.4712, time 31.25ms, mfu 3.10%",
    b"epoch 3 | 1,234 tokens | loss=3.21e+00 | 12.5s elapsed",
    b" 45%|####5     | 450/1000 [00:12<00:15, 35.7it/s, loss=2.31]\r",
    "Verlust: 2,5 ☃ nan inf".encode(),
]
PATTERNS = {
    "evaluated": r"step (?P<step>\d+): train loss [\d.]+, val loss (?P<val_loss>[\d.]+|nan|inf)",
    "step": r"iter (?P<step>\d+): loss (?P<loss>\S+), time (?P<step_ms>[^ ]*)ms",
    "table": r"(?P<tokens>[\d,]+) tokens \| loss=(?P<loss>\S+) \| (?P<train_s>[-\d.e]*)s",
    "bar": r"(?P<step>\S+)/\d+ \[.*loss=(?P<val_loss>.*)\]",
}


def fuzz_patterns(tmp_path, seed, count, monkeypatch):
    """Mutated output under good patterns, and mutated patterns under good output."""
    monkeypatch.setattr(readers, "SLOWEST_MATCH_S", 0.3)
    draw = random.Random(seed)
    spec = spec_of(tmp_path, reader="patterns", patterns=PATTERNS)
    done, file = 0, 0
    while done < count:
        lines = [mutate(draw.choice(PRINTED), draw, PRINTED) for _ in range(200)]
        patterns = dict(PATTERNS)
        if draw.random() < 0.7:  # most of these do not compile, or match nothing
            name = draw.choice(list(patterns))
            words = [p.encode() for p in PATTERNS.values()]
            patterns[name] = mutate(patterns[name].encode(), draw, words).decode(errors="replace")
        file += 1
        done += len(lines) + 1
        with limited(f"output {file} of seed {seed}, {patterns}"):
            out = tmp_path / f"{file}.out"
            out.write_bytes(b"\n".join(lines))
            document = spec.to_json() | {"patterns": patterns}
            with contextlib.suppress(PatternError):
                one = PatternsReader(AttemptSpec.from_json(document), out, tmp_path / f"{file}.err")
                recorder = Recorder(tmp_path / f"{file}.jsonl", "val_loss", 0.0)
                for batch in (one.read(), one.rest()):
                    for event in batch.events:
                        recorder.add(event, 1.0)
                        assert 0 <= event.step < 2**63
                        assert event.clock is None or math.isfinite(event.clock.train)
                    for message in batch.bad:
                        recorder.bad(message, 1.0)
                recorder.finish()
            out.unlink()


def spec_of(folder, **more):
    return AttemptSpec(
        **{
            "study": "s", "trial": "t", "attempt": 1, "argv": ["a"], "cwd": "/",
            "run_dir": str(folder), "metric": "val_loss", "clock": "train", "target": 2.0,
            "trial_s": 1.0, "silence_s": 1.0, "startup_s": 1.0, "grace_s": 1.0, "max_steps": 10,
            "env": {"A": None, "B": "c"}, "device": {"kind": "cpu", "index": 0, "cores": [0]},
        }
        | more
    )  # fmt: skip


def documents(folder) -> dict[type, bytes]:
    """One golden of each document that we read back."""
    outcome = AttemptOutcome(
        study="s", trial="t", attempt=1, outcome="reached", reason="target", message="",
        exit_code=0, signal=None, started_at=1.5, ended_at=2.5, wall_s=1.0, cap_s=3.0,
        device={"kind": "cpu"}, events=7,
    )  # fmt: skip
    running = Running(pid=2**22 + 1, start_time=5, boot="b", token="s/t/1/ff", started_at=1.0)
    control = Control(cap_s=1.0, cancel=False, drain=False)
    values = (spec_of(folder), outcome, running, control)
    return {type(v): json.dumps(v.to_json()).encode() for v in values}


def fuzz_documents(tmp_path, seed, count):
    """Refused with SpecError, or values of the kinds that they are declared to be."""
    draw = random.Random(seed)
    golden = documents(tmp_path)
    paths = AttemptPaths(tmp_path / "attempt-1")
    paths.folder.mkdir()
    events = goldens()
    executor = LocalExecutor([])
    good = refused = 0
    for number in range(count):
        kind = draw.choice(list(golden))
        data = mutate(golden[kind], draw, list(golden.values()))
        with limited(f"{kind.__name__} {number} of seed {seed}: {data!r}"):
            try:
                paths.outcome.write_bytes(data)
                value = kind.read(paths.outcome)
                assert kind.from_json(json.loads(json.dumps(value.to_json()))) == value
                good += 1
            except SpecError:
                refused += 1
            if kind is AttemptOutcome:
                some = mutate(b"\n".join(draw.choices(events, k=8)), draw, events)
                paths.events.write_bytes(some)
                facts = readout.collect(paths, "val_loss")
                assert isinstance(facts.wall_s + facts.started_at + facts.ended_at, float | int)
                assert facts.cap_s is None or math.isfinite(facts.cap_s)
                assert isinstance(facts.message, str)
                assert isinstance(facts.device, dict)
            elif kind is Running and number % 20 == 0:
                paths.running.write_bytes(data)
                assert executor.adopt(paths.folder) is None
    assert good > count / 100
    assert refused > count / 4


def fuzz_plans(tmp_path, seed, count):
    """The plan beside the run folders, read back to rebuild a database."""
    from sweeper.stages import Stage1

    draw = random.Random(seed)
    file = make_study(
        tmp_path, "fuzz", Path("/tmp/d"), trials=13, seed=1, manners=False, cap=True, tau_s=1
    )
    study = load(file)
    document = StageDocument(
        plan=Stage1(study, 2).plan(()),
        definition=study.definition("stage1"),
        definition_hash=study.definition_hash("stage1"),
        options={},
        exploratory=False,
        effective_target=2.0,
        closed=False,
    )
    write_json(tmp_path / "stage1.json", document.to_json())
    golden = (tmp_path / "stage1.json").read_bytes()
    assert StageDocument.from_json(json.loads(golden)) == document
    refused = 0
    for number in range(count):
        data = mutate(golden, draw, [golden])
        with limited(f"plan {number} of seed {seed}"):
            try:
                StageDocument.from_json(json.loads(data))
            except (ValueError, RecursionError):
                refused += 1
    assert refused > count / 4


@pytest.fixture
def memory():
    """A folder in memory, where there is one: disks take milliseconds to truncate a file."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("target", [fuzz_studies, fuzz_events, fuzz_documents, fuzz_plans])
def test_short(memory, target):
    target(memory, 1, SHORT.get(target.__name__.removeprefix("fuzz_"), 300))


@pytest.mark.timeout(300)
def test_short_patterns(memory, monkeypatch):
    fuzz_patterns(memory, 1, SHORT["patterns"], monkeypatch)


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", [2])
@pytest.mark.parametrize("target", [fuzz_studies, fuzz_events, fuzz_documents, fuzz_plans])
def test_long(memory, target, seed):
    target(memory, seed, LONG.get(target.__name__.removeprefix("fuzz_"), 3000))


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_long_patterns(memory, monkeypatch):
    fuzz_patterns(memory, 2, LONG["patterns"], monkeypatch)


def test_the_golden_inputs_are_good(memory):
    """Else the fuzzers would only see refusals."""
    for line in goldens():
        parse_line(line)
    for text in studies(memory):
        tomllib.loads(text.decode())
    assert sum(LONG.values()) + 3000 >= 100_000
