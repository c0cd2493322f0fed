"""A sweep to be maltreated: a study of a few hundred short trials, its program, its files.

It must not know what will be done to it, nor what is looked for afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sweeper.runner import processes
from sweeper.storage import embedded

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
TRIAL_S, GRACE_S, SILENCE_S, STARTUP_S = 2.0, 0.5, 1.5, 30.0
DISK_BYTES = 192 << 20
COMPLETE = (0, 1, 4)
"""Exit codes of a stage that has ended: done, done with failures, done and nothing reached."""

STUDY = """\
[study]
name = "{name}"

[objective]
target = 2.0
fallback = [2.5]

[trainer]
{trainer}
config = "base ☃.toml"

[trainer.env]
CHAOS_DIARY = "{diary}"
CHAOS_SEED = "{seed}"
CHAOS_MANNERS = "{manners}"
TRIVIAL = "{trivial}"

[limits]
steps = 1000
trial_s = {trial_s}
silence_s = {silence_s}
startup_s = {startup_s}
grace_s = {grace_s}

[resources]
gpus = 0

[space."optim.lr"]
type = "float"
low = 0.002
high = 0.05
scale = "log"
levels = 3
baseline = 0.01

[space."data.batch"]
type = "int"
low = 32
high = 128
step = 8
levels = 3
baseline = 64

[space."model.mood"]
type = "categorical"
choices = {moods}
baseline = "läuft gut"

[racing]
cap = {cap}

[[stage1.group]]
name = "A"
grid = {{ "model.mood" = {moods}, "data.batch" = [48, 96] }}

[[stage1.group]]
name = "B"
best_of = {{ group = "A", parameters = ["model.mood"] }}
vary = {{ "optim.lr" = [0.004, 0.02, 0.03] }}

[[stage1.group]]
name = "C"
grid = {{ "optim.lr" = {rates}, "data.batch" = {batches} }}

[stage2]
from_top = 4
runs = 8
replicates = 1

[confirm]
top = 2
repeats = 2
"""
COLD = 'command = ["{python}", "-S", TRAINER, "--config", "{config}", "--eval-every", "2"]'
WARM = (
    'command = ["{python}", "-m", "chaos_trainer", "--config", "{config}", "--eval-every", "2"]\n'
    'module = "chaos_trainer"'
)
# The trainer as a module of the study's folder, which a warm parent imports once.
MODULE = """\
import importlib.util

found = importlib.util.spec_from_file_location("chaos_trainer_itself", {trainer!r})
trainer = importlib.util.module_from_spec(found)
found.loader.exec_module(trainer)


def preload():
    import argparse, json, random, subprocess, tomllib

    trainer.load_trivial()


if __name__ == "__main__":
    trainer.main()
"""
MOODS = ["läuft gut", 'it\'s "fine" & $HOME ☃', "{config} 50%"]
BATCHES = [40, 48, 56, 64, 72, 80, 88, 96]
BASE = """\
[optim]
lr = 0.01
[data]
batch = 64
[model]
mood = "läuft gut"
tau_s = {tau_s}
step_s = 0.01
"""


@dataclass
class Arena:
    """One study in a folder of its own, with the processes that were started for it."""

    folder: Path
    name: str
    study: Path
    url: str | None
    slots: int
    verb: str = "stage1"
    env: dict[str, str] = field(default_factory=dict)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.folder / "the home ☃"

    @property
    def runs(self) -> Path:
        return self.home / "runs" / self.name

    @property
    def diary(self) -> Path:
        return self.folder / "diary.jsonl"

    @property
    def log(self) -> Path:
        """What every orchestrator printed, one after another."""
        return self.folder / "orchestrators.log"

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SWEEP_", "PG"))}
        url = {"SWEEP_DATABASE_URL": self.url} if self.url else {}
        locks = {"SWEEP_DEVICE_LOCKS": str(self.folder / "devices")}
        # one thread: numpy's own would only fight over two cores
        return kept | url | locks | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | self.env

    def start(
        self, *words: str, program: tuple[str, ...] = ("-m", "sweeper.cli"), cold: bool = False
    ):
        """Start a command of the program (the one that runs trials by default) and let it go."""
        command = [sys.executable, *program, *(words or (self.verb, str(self.study)))]
        if not words:
            command += ["--slots", str(self.slots), *(["--cold"] if cold else [])]
        with self.log.open("ab") as log:
            log.write(f"--- {' '.join(words) or self.verb}\n".encode())
            log.flush()
            process = subprocess.Popen(
                [*command, "--home", str(self.home)],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def outcomes(self) -> int:
        """How many trials have an attempt that has ended."""
        return sum(1 for _ in {p.parent.parent for p in self.runs.glob("*/attempt-*/outcome.json")})

    def under_way(self) -> list[tuple[Path, dict]]:
        """Attempts without an outcome: their folder, and who runs them."""
        found = []
        for folder in self.runs.glob("*/attempt-*"):
            with contextlib.suppress(OSError, ValueError):
                if not (folder / "outcome.json").exists():
                    text = (folder / "running.json").read_text(encoding="utf-8")
                    found.append((folder, json.loads(text)))
        return [(f, r) for f, r in found if processes.lives(r["pid"], r["start_time"], r["boot"])]

    def ours(self) -> list[processes.Process]:
        """Every process of any attempt of this study: runners by their command, the rest by marker."""
        prefix = f"{processes.MARKER}={self.name}/".encode()
        warm = self.warm()
        return [
            p
            for p in processes.everyone()
            if p.pid != os.getpid()
            and (
                any(v.startswith(prefix) for v in _read(p.pid, "environ").split(b"\0"))
                or (
                    b"sweeper.runner" in _read(p.pid, "cmdline")
                    and os.fsencode(self.runs) in _read(p.pid, "cmdline")
                )
                or (b"runner.py" in _read(p.pid, "cmdline") and self._mentions(p.pid))
                or p in warm
            )
        ]

    def _mentions(self, pid: int) -> bool:
        return os.fsencode(self.runs) in _read(pid, "cmdline")

    def warm(self) -> list[processes.Process]:
        """Warm parents, and runners that were forked from them."""
        place = os.fsencode(self.study.parent)
        lines = [(p, _read(p.pid, "cmdline").split(b"\0")) for p in processes.everyone()]
        return [p for p, words in lines if b"sweeper.runner.warm" in words and place in words]

    def clear(self) -> None:
        """End everything that is left of it, however it behaved."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
        for process in self.ours():
            processes.send(process, signal.SIGCONT)
        processes.kill_all(self.ours, within_s=10)
        if self.url is None and (self.home / "db").exists():
            state = embedded.status(self.home)
            with contextlib.suppress(Exception):
                embedded.stop(self.home, force=True)
            if state.data is not None and self.home not in state.data.parents:
                shutil.rmtree(state.data.parent, ignore_errors=True)


def _read(pid: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:
        return b""


def toml(values: list) -> str:
    return json.dumps(values, ensure_ascii=False)


def make_study(
    folder: Path,
    name: str,
    diary: Path,
    *,
    trials: int,
    seed: int,
    manners: bool,
    cap: bool,
    tau_s: float,
    trivial: str = "",
    module: bool = False,
) -> Path:
    """A study of about so many trials, each 0.05 to 0.2 s of real training."""
    trainer = HERE / "trainer.py"
    batches = BATCHES if trials > 20 else BATCHES[::2]
    rows = max(1, round((trials - 9) / len(batches)))
    rates = [float(f"{0.003 * 10 ** (i / rows):.4g}") for i in range(rows)]
    text = STUDY.format(
        name=name,
        trainer=WARM if module else COLD.replace("TRAINER", json.dumps(str(trainer))),
        diary=diary,
        seed=seed,
        manners="yes" if manners else "no",
        trivial=trivial,
        trial_s=TRIAL_S,
        silence_s=SILENCE_S,
        startup_s=STARTUP_S,
        grace_s=GRACE_S,
        moods=toml(MOODS),
        rates=toml(rates),
        batches=toml(batches),
        cap="true" if cap else "false",
    )
    place = folder / "the study ☃"
    place.mkdir()
    (place / "chaos_trainer.py").write_text(MODULE.format(trainer=str(trainer)), encoding="utf-8")
    (place / "base ☃.toml").write_text(BASE.format(tau_s=tau_s), encoding="utf-8")
    (place / "study.toml").write_text(text, encoding="utf-8")
    return place / "study.toml"


@contextlib.contextmanager
def arena(
    folder: Path,
    *,
    trials: int,
    seed: int,
    url: str | None = None,
    slots: int = 3,
    manners: bool = True,
    cap: bool = True,
    tau_s: float = 0.06,
    small_disk: bool = False,
    trivial: str = "",
    module: bool = False,
    verb: str = "stage1",
) -> Iterator[Arena]:
    """A sweep in `folder`; without a URL it starts a database of its own. Nothing of it is left.

    With `module` trainers are forked from a warm parent that has imported them, where it is not told
    to be cold; `verb` is the command that runs it.
    """
    name = f"chaos-{seed}-{uuid.uuid4().hex[:8]}"
    study = make_study(
        folder,
        name,
        folder / "diary.jsonl",
        trials=trials,
        seed=seed,
        manners=manners,
        cap=cap,
        tau_s=tau_s,
        trivial=trivial,
        module=module,
    )
    one = Arena(folder, name, study, url, slots, verb)
    one.home.mkdir(mode=0o700)
    (one.home / "runs").mkdir(mode=0o700)
    mounted = small_disk and mount(one.home / "runs")
    try:
        yield one
    except BaseException:
        if one.log.exists():
            print(one.log.read_text(encoding="utf-8", errors="replace")[-4000:])
        raise
    finally:
        one.clear()
        if mounted:
            subprocess.run(["umount", "-l", str(one.home / "runs")], check=False)


def mount(place: Path) -> bool:
    """A small file system of its own for the run folders; needs root."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "none", str(place)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def wait_until(true, within_s: float, what: str):
    """The first true answer; an AssertionError, which says `what` was waited for, at the deadline."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if value := true():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {within_s:g} s: {what}")
