"""Proves from what a sweep left that nothing of it was lost, counted twice, changed or left running.

It must not use the program's own readers, stores or verdicts, whose mistakes it is there to find: it
reads run folders as JSON, tables with SQL, and the trainers' diary. Only words (names of reasons)
and the look at a process are shared.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psycopg2
import psycopg2.extras

from sweeper.runner import processes

Kind = Literal["orphan", "loss", "double", "value", "limit", "search", "traceback"]

# An attempt that ended so has said what there is to say about its configuration, once and for all.
FINAL = frozenset({"target", "timeout", "steps", "forecast", "diverged"})
STAGES = ("stage1", "stage2", "confirm")
MEASURED = frozenset({"reached", "censored"})
PHASES = ("startup", "data", "compile", "train", "eval", "checkpoint", "idle")
RECOVERS_WITHIN_S = 30.0
KILL_S = 2.0
"""What a loaded machine may take between a deadline and the death of what it ends."""


@dataclass(frozen=True)
class Problem:
    """One broken promise: what was lost, doubled, left or changed, and where."""

    kind: Kind
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.what}"


@dataclass(frozen=True)
class Life:
    """One trainer as it tells it itself: instants on the machine's monotonic clock."""

    token: str
    start_at: float
    last_at: float
    start_wall: float
    pid: int
    beats: int
    finish: str | None

    @property
    def attempt(self) -> tuple[str, int]:
        _, trial, attempt, _ = self.token.split("/")
        return trial, int(attempt)


@dataclass(frozen=True)
class Evidence:
    """What a sweep left. `gone` are run folders that somebody else took away, `pauses` are instants
    (wall clock) and seconds during which somebody stopped processes or filled the disk.
    """

    study: str
    runs: Path
    url: str
    diary: Path
    trial_s: float
    grace_s: float
    startup_s: float
    gone: frozenset[Path] = frozenset()
    pauses: Sequence[tuple[float, float]] = ()
    logs: Sequence[Path] = ()
    wall_clock_is_true: bool = True


@dataclass
class Report:
    """What was found, and figures that a report may quote."""

    problems: list[Problem] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def count(self, kind: Kind) -> int:
        return sum(p.kind == kind for p in self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems)) or "no problem"


def check(evidence: Evidence) -> Report:
    """Everything that files, tables and diaries can prove after a stage has ended."""
    rows = read_tables(evidence)
    lives = read_diary(evidence.diary)
    report = Report()
    for found in (
        counted(rows),
        folders(evidence, rows),
        diary(evidence, rows, lives),
        overlaps(evidence, rows, lives),
        limits(evidence, rows, lives, report),
        search(evidence, rows),
        tracebacks(evidence),
    ):
        report.problems += found
    attempts = [a for trial in rows.values() for a in trial["attempts"]]
    reasons: dict[str, int] = defaultdict(int)
    for attempt in attempts:
        reasons[attempt["reason"]] += 1
    starts = [(a["device"] or {}).get("start") for a in attempts]
    stages = [trial["stage"] for trial in rows.values()]
    report.figures |= {
        "trials": len(rows),
        "trials_by_stage": {name: stages.count(name) for name in STAGES if name in stages},
        "warm_starts": starts.count("warm"),
        "cold_starts": starts.count("cold"),
        "attempts": len(attempts),
        "trainers": len(lives),
        "attempts_by_reason": dict(sorted(reasons.items(), key=str)),
        "evaluations": sum(len(a["curve"]) for a in attempts),
    }
    return report


# -- reading -------------------------------------------------------------------------------------


def read_tables(evidence: Evidence) -> dict[str, dict[str, Any]]:
    """Trial id to its row, with its attempts (with their curves) and Optuna's trials by key."""
    with connect(evidence.url) as cursor:
        cursor.execute(
            "SELECT t.*, g.stage FROM sweep_facts.trials t "
            "JOIN sweep_facts.studies s USING (study_key) "
            "JOIN sweep_facts.stages g USING (stage_key) "
            "WHERE s.study = %s ORDER BY g.stage_key, t.position",
            (evidence.study,),
        )
        trials = {row["trial"]: dict(row) | {"attempts": []} for row in cursor.fetchall()}
        by_key = {row["trial_key"]: row for row in trials.values()}
        cursor.execute(
            "SELECT * FROM sweep_facts.attempts WHERE trial_key = ANY(%s) ORDER BY attempt",
            (list(by_key),),
        )
        attempts = {row["attempt_key"]: dict(row) | {"curve": []} for row in cursor.fetchall()}
        cursor.execute(
            "SELECT * FROM sweep_facts.evaluations WHERE attempt_key = ANY(%s) ORDER BY position",
            (list(attempts),),
        )
        for row in cursor.fetchall():
            attempts[row["attempt_key"]]["curve"].append(dict(row))
    for row in attempts.values():
        by_key[row["trial_key"]]["attempts"].append(row)
    return trials


def read_search(evidence: Evidence) -> dict[str, list[dict[str, Any]]]:
    """The key of an attempt to every Optuna trial that carries it."""
    with connect(evidence.url) as cursor:
        cursor.execute(
            "SELECT t.trial_id, t.state::text AS state, v.value, a.value_json AS key "
            "FROM public.trials t JOIN public.studies s USING (study_id) "
            "LEFT JOIN public.trial_values v ON v.trial_id = t.trial_id "
            "LEFT JOIN public.trial_user_attributes a "
            "ON a.trial_id = t.trial_id AND a.key = 'sweep:attempt' "
            "WHERE s.study_name = ANY(%s)",
            ([f"{evidence.study}/{stage}" for stage in STAGES],),
        )
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in cursor.fetchall():
            key = json.loads(row["key"]) if row["key"] is not None else f"(trial {row['trial_id']})"
            found[key].append(dict(row))
    return found


def connect(url: str):
    """A cursor of a connection that ends with it."""

    class Reading:
        def __enter__(self):
            deadline = time.monotonic() + RECOVERS_WITHIN_S
            while True:
                try:
                    self.connection = psycopg2.connect(url.replace("+psycopg2", "", 1))
                    break
                except psycopg2.OperationalError:  # a server that was killed recovers first
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
            return self.connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor)

        def __exit__(self, *error: object) -> None:
            self.connection.close()

    return Reading()


def read_diary(path: Path) -> list[Life]:
    """Every trainer that ever trained."""
    pages: dict[str, list[dict[str, Any]]] = defaultdict(list)
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            pages[entry["token"]].append(entry)
    lives = []
    for token, entries in pages.items():
        said = [e["what"] for e in entries]
        finish = next((w.partition(" ")[2] for w in said if w.startswith("finish")), None)
        first, last = entries[0], max(e["at"] for e in entries)
        lives.append(
            Life(token, first["at"], last, first["wall"], first["pid"], said.count("beat"), finish)
        )
    return lives


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_events(path: Path) -> list[dict[str, Any]]:
    """Whole lines up to the first that is torn (by a full disk)."""
    events: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_bytes().split(b"\n"):
            try:
                event = json.loads(line)
            except ValueError:
                break
            events.append(event)
    return events


# -- the promises --------------------------------------------------------------------------------


def counted(rows: Mapping[str, Any]) -> Iterator[Problem]:
    """Every planned trial has exactly one counted outcome."""
    for name, trial in rows.items():
        attempts = trial["attempts"]
        numbers = [a["attempt"] for a in attempts]
        if not attempts:
            yield Problem("loss", name, "was planned and never tried")
        if numbers != list(range(1, len(numbers) + 1)):
            yield Problem("loss", name, f"has attempts {numbers}")
        for attempt in attempts:
            if attempt["outcome"] is None:
                where = f"{name} attempt {attempt['attempt']}"
                yield Problem("loss", where, "was begun and never recorded")
        final = [a["attempt"] for a in attempts if a["reason"] in FINAL]
        if len(final) > 1:
            yield Problem("double", name, f"attempts {final} both count")
        elif final and final[0] != numbers[-1]:
            yield Problem("double", name, f"was tried again after attempt {final[0]} was final")
        measured = [a for a in attempts if a["outcome"] in MEASURED]
        if measured and measured[-1]["reason"] == "budget":
            yield Problem("loss", name, "was asked to stop early and never run to its end")


def folders(evidence: Evidence, rows: Mapping[str, Any]) -> Iterator[Problem]:
    """No value in the database differs from its run folder, and no folder is missing or unknown."""
    known = {(n, a["attempt"]): a for n, t in rows.items() for a in t["attempts"]}
    for (name, number), attempt in known.items():
        folder = evidence.runs / name / f"attempt-{number}"
        where = f"{name} attempt {number}"
        if folder in evidence.gone:
            if attempt["outcome"] in MEASURED and not attempt["curve"]:
                yield Problem("value", where, "recorded as measured, without one measurement")
        elif not folder.is_dir():
            yield Problem("loss", where, "is recorded, and its run folder is gone")
        else:
            for what in differences(folder, attempt):
                yield Problem("value", where, what)
    for folder in evidence.runs.glob("*/attempt-*"):
        place = (folder.parent.name, int(folder.name.removeprefix("attempt-")))
        if place not in known:
            yield Problem("loss", f"{place[0]} attempt {place[1]}", "has a folder and no record")


def differences(folder: Path, row: Mapping[str, Any]) -> Iterator[str]:
    outcome = read_json(folder / "outcome.json")
    if outcome is None:
        if row["reason"] != "lost":
            yield f"recorded as {row['reason']}, and has no outcome file"
        if row["curve"]:
            yield "recorded as lost, with a curve"
        return
    for key in ("outcome", "reason", "wall_s", "started_at", "ended_at", "cap_s", "message"):
        if not same(outcome[key], row[key]):
            yield f"{key}: the folder says {outcome[key]!r}, the database {row[key]!r}"
    events = read_events(folder / "events.jsonl")
    seen = [e for e in events if e["event"] == "evaluated" and "val_loss" in e["metrics"]]
    if len(seen) != len(row["curve"]):
        yield f"{len(seen)} evaluations in its events, {len(row['curve'])} in the database"
    for event, stored in zip(seen, row["curve"], strict=False):
        if not same_evaluation(event, stored):
            yield f"evaluation {stored['position']}: {event} is stored as {stored}"
    last = events[-1]["clock"] if events else {}
    for phase in PHASES:
        if not same(last.get(phase, 0.0), row[f"{phase}_s"]):
            yield f"{phase}: {last.get(phase)} in its events, {row[f'{phase}_s']} in the database"
    if outcome["reason"] not in (
        "environment",
        "lost",
    ):  # else it may not have been read to its end
        yield from unheard(folder, seen)


def unheard(folder: Path, seen: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the trainer wrote whole must be in the runner's stream, in order."""
    said = []
    path = folder / "trainer.jsonl"
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            event = json.loads(line)
            if event["event"] == "evaluated":
                said.append((event["step"], event["metrics"]["val_loss"]))
        except (ValueError, TypeError, KeyError):
            continue
    heard = [(e["step"], e["metrics"]["val_loss"]) for e in seen]
    if said != heard:
        yield f"the trainer wrote {len(said)} evaluations, the runner kept {len(heard)}"


def same_evaluation(event: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    value = event["metrics"]["val_loss"]
    return (
        (event["step"], event["tokens"], event.get("slice", "probe"))
        == (row["step"], row["tokens"], row["slice"])
        and same(math.nan if value is None else value, row["value"])
        and all(same(event["clock"].get(p, 0.0), row[f"{p}_s"]) for p in PHASES)
    )


def same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return bool(one == other)


def diary(evidence: Evidence, rows: Mapping[str, Any], lives: Iterable[Life]) -> Iterator[Problem]:
    """Every trainer that trained belongs to one recorded attempt, and what it finished is there."""
    known = {(n, a["attempt"]): a for n, t in rows.items() for a in t["attempts"]}
    tokens: dict[tuple[str, int], list[Life]] = defaultdict(list)
    for life in lives:
        tokens[life.attempt].append(life)
    for place, trainers in tokens.items():
        where = f"{place[0]} attempt {place[1]}"
        row = known.get(place)
        if row is None or row["outcome"] is None:
            yield Problem("loss", where, "a trainer worked for it, and it is not recorded")
        if len(trainers) > 1:
            finished = sum(t.finish is not None for t in trainers)
            yield Problem("double", where, f"{len(trainers)} trainers worked for it")
            if finished > 1:
                yield Problem("loss", where, f"{finished} trainers finished it, one is recorded")
        folder = evidence.runs / place[0] / f"attempt-{place[1]}"
        running = read_json(folder / "running.json")
        if running is not None and running["token"] not in {t.token for t in trainers}:
            yield Problem("loss", where, "its folder is another run's than its trainer's")
        reached = any(t.finish == "target" for t in trainers)
        heard = read_json(folder / "outcome.json") is not None and row is not None
        if reached and heard and row["reason"] not in ("target", "environment", "lost"):
            yield Problem("loss", where, f"its trainer reached the target: {row['reason']}")


def overlaps(
    evidence: Evidence, rows: Mapping[str, Any], lives: Iterable[Life]
) -> Iterator[Problem]:
    """No two attempts of one trial, and no two trials on one slot, at the same time."""
    slots = {(n, a["attempt"]): a["slot"] for n, t in rows.items() for a in t["attempts"]}
    places: dict[str, list[Life]] = defaultdict(list)
    for life in lives:
        places[f"trial {life.attempt[0]}"].append(life)
        spec = read_json(
            evidence.runs / life.attempt[0] / f"attempt-{life.attempt[1]}" / "spec.json"
        )
        slot = slots.get(life.attempt)
        if spec is not None and spec["device"]:
            slot = f"cpu{spec['device']['index']}"
        if slot is not None:
            places[f"slot {slot}"].append(life)
    for place, there in places.items():
        ordered = sorted(there, key=lambda life: life.start_at)
        for i, one in enumerate(ordered):
            for other in ordered[i + 1 :]:
                if other.start_at < one.last_at:
                    both_s = min(one.last_at, other.last_at) - other.start_at
                    what = f"{one.token} and {other.token} at once, for {both_s:.2f} s"
                    yield Problem("double", place, what)


def limits(
    evidence: Evidence, rows: Mapping[str, Any], lives: Iterable[Life], report: Report
) -> Iterator[Problem]:
    """No trial ran past its limit by more than the grace (of the wall, then between TERM and KILL)."""
    allowed_s = evidence.trial_s + 2 * evidence.grace_s
    worst_s, longest_s = 0.0, 0.0
    for life in lives:
        name, number = life.attempt
        row = next((a for a in rows[name]["attempts"] if a["attempt"] == number), None)
        trained_s = life.last_at - life.start_at
        ended = row is not None and row["reason"] not in ("lost", None)
        if ended and evidence.wall_clock_is_true:
            trained_s = max(trained_s, row["ended_at"] - life.start_wall)
        end = life.start_wall + trained_s
        stopped_s = sum(
            max(0.0, min(end, at + for_s) - max(life.start_wall, at))
            for at, for_s in evidence.pauses
        )
        longest_s = max(longest_s, trained_s)
        over_s = trained_s - stopped_s - allowed_s
        worst_s = max(worst_s, over_s)
        if over_s > KILL_S:
            what = f"ran {trained_s:.2f} s, {stopped_s:.2f} of them stopped; {allowed_s:g} allowed"
            yield Problem("limit", life.token, what)
    report.figures |= {
        "longest_trainer_s": round(longest_s, 3),
        "worst_past_limit_and_grace_s": round(worst_s, 3),
    }


def search(evidence: Evidence, rows: Mapping[str, Any]) -> Iterator[Problem]:
    """Optuna's tables and ours agree, trial by trial."""
    known = read_search(evidence)
    for name, trial in rows.items():
        for attempt in trial["attempts"]:
            number = attempt["attempt"]
            key = name if number == 1 else f"{name}#{number}"
            found = known.pop(key, [])
            if len(found) != 1:
                yield Problem("search", key, f"Optuna has it {len(found)} times")
                continue
            state, value = found[0]["state"].rpartition(".")[2], found[0]["value"]
            expected = told(evidence, attempt)
            if (expected is None) != (state == "FAIL") or state not in ("FAIL", "COMPLETE"):
                yield Problem("search", key, f"{attempt['reason']}, and Optuna says {state}")
            elif expected is not None and not math.isclose(value, expected, rel_tol=1e-9):
                yield Problem("search", key, f"{expected} s, and Optuna has {value}")
    for key, found in known.items():
        yield Problem("search", key, f"Optuna has it {len(found)} times, and it is not recorded")


def told(evidence: Evidence, attempt: Mapping[str, Any]) -> float | None:
    """What search should have been told: the crossing at 2.0, worked out anew."""
    if attempt["outcome"] not in MEASURED:
        return None
    before: tuple[float, float] | None = None
    for row in attempt["curve"]:
        at_s, loss = row["train_s"], row["value"]
        if loss <= 2.0:
            if before is None:
                return at_s
            return before[0] + (at_s - before[0]) * (before[1] - 2.0) / (before[1] - loss)
        if math.isfinite(loss):
            before = (at_s, loss)
    if attempt["reason"] in ("steps", "diverged") or attempt["cap_s"] is None:
        return evidence.trial_s
    return float(attempt["cap_s"])


def tracebacks(evidence: Evidence) -> Iterator[Problem]:
    """Whatever was done to it, no process of ours ended in a traceback."""
    for path in (*evidence.logs, *evidence.runs.glob("*/attempt-*/runner.log")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if "Traceback" in text:
            place = text.index("Traceback")
            yield Problem("traceback", str(path), text[place : place + 3000])


# -- what is left --------------------------------------------------------------------------------


def leftovers(
    study: str, home: Path, data: Path | None = None, places: Sequence[Path] = ()
) -> list[Problem]:
    """Processes and sockets of a sweep that has ended and whose database was stopped.

    Looked for by marker, by command line (that names the home or one of `places`), by the pid files
    that badly mannered trainers write, and by the data directory that a database server works in.
    """
    problems = []
    marker = f"{processes.MARKER}={study}/".encode()
    mine = [os.fsencode(place) for place in (home, *places)]
    for process in processes.everyone():
        if process.pid == os.getpid():
            continue
        proc = Path(f"/proc/{process.pid}")
        try:
            command = (proc / "cmdline").read_bytes()
            environment = (proc / "environ").read_bytes().split(b"\0")
            folder = os.fsencode((proc / "cwd").readlink())
        except OSError:
            continue
        shown = command.replace(b"\0", b" ").decode(errors="replace")[:200]
        if any(value.startswith(marker) for value in environment):
            problems.append(Problem("orphan", f"process {process.pid}", f"marked: {shown}"))
        elif any(place in command for place in mine):
            problems.append(Problem("orphan", f"process {process.pid}", f"ours: {shown}"))
        elif data is not None and folder == os.fsencode(data):
            problems.append(
                Problem("orphan", f"process {process.pid}", f"of the database: {shown}")
            )
    for path in (home / "runs" / study).glob("*/attempt-*/*.pid"):
        text = path.read_text()
        command = Path(f"/proc/{text}/cmdline")
        if text and command.exists() and b"time.sleep(600)" in command.read_bytes():
            problems.append(Problem("orphan", f"process {text}", f"{path.name} of a trainer"))
    problems += sockets(home)
    return list({p.where: p for p in problems}.values())


def sockets(home: Path) -> list[Problem]:
    """Socket files below a home, or below the folder that its database last used."""
    places = [home]
    state = read_json(home / "db" / "state.json")
    if state is not None and state.get("sockets"):
        places.append(Path(state["sockets"]))
    bound = Path("/proc/net/unix").read_bytes()
    return [
        Problem("orphan", str(path), "a socket")
        for place in places
        for path in place.rglob("*")
        if path.is_socket() or os.fsencode(path) in bound
    ]
