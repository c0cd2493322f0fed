"""What the benchmarks share: the machine in words, a fresh database, marks of a trainer.

It must not know any tool or what is measured.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2

from sweeper.storage import embedded

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent


def machine() -> dict[str, object]:
    """What the figures were taken on, and how busy it was."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
    }


@contextlib.contextmanager
def workplace(keep: Path | None = None) -> Iterator[tuple[Path, embedded.Server]]:
    """A folder that other accounts can reach, and a Postgres in it; both gone afterwards."""
    place = keep or Path(tempfile.mkdtemp(prefix="sweep-bench-"))
    place.mkdir(parents=True, exist_ok=True)
    place.chmod(0o711)
    with embedded.open_server(place / "home", purpose="bench") as server:
        data = Path(str(embedded.status(place / "home").data))
        yield place, server
    embedded.stop(place / "home")
    if keep is None:
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(data.parent, ignore_errors=True)


def postmaster(place: Path) -> int:
    """The server's process id."""
    data = Path(str(embedded.status(place / "home").data))
    return int((data / "postmaster.pid").read_text().split()[0])


def fresh_database(url: str) -> str:
    """The URL of a new database on the server, with sweep's tables."""
    name = f"bench_{uuid.uuid4().hex}"
    connection = psycopg2.connect(url.replace("+psycopg2", "", 1))
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    connection.close()
    address, query = url.split("?", maxsplit=1)
    new = f"{address.rsplit('/', maxsplit=1)[0]}/{name}?{query}"
    env = os.environ | {"SWEEP_DATABASE_URL": new, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "sweeper.cli", "db", "upgrade"]
    subprocess.run(command, env=env, check=True, capture_output=True)
    return new


def run_sweep(folder: Path, url: str, *words: str) -> None:
    """`sweep stage1 FOLDER/study.toml --slots 1`, with everything of its own in that folder."""
    env = os.environ | {
        "SWEEP_HOME": str(folder / "home"),
        "SWEEP_DATABASE_URL": url,
        "SWEEP_DEVICE_LOCKS": str(folder / "locks"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "sweeper.cli", "stage1", str(folder / "study.toml")]
    done = subprocess.run(
        [*command, "--slots", "1", *words], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 4):
        raise SystemExit(f"exit {done.returncode}:\n{done.stdout}\n{done.stderr}")


def outcomes(folder: Path) -> list[dict[str, object]]:
    """Every outcome under a sweep's home."""
    found = (folder / "home").glob("runs/*/*/attempt-*/outcome.json")
    return [json.loads(path.read_text(encoding="utf-8")) for path in found]


def gaps_s(marks: Path) -> list[float]:
    """From each end of training to the next beginning, in order."""
    return [b["at"] - a["at"] for a, b in turns(marks)]


def turns(marks: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Every end of training with the beginning that follows it, as they were marked."""
    found = [json.loads(line) for line in marks.read_text(encoding="utf-8").splitlines()]
    pairs = itertools.pairwise(found)
    return [(a, b) for a, b in pairs if (a["mark"], b["mark"]) == ("ended", "began")]
