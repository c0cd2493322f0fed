"""Where a database's files and socket are, whose they are, and how they come to exist.

It must not know who wants the server or when it stops; it runs inside the supervisor, one at a
time, and raises only `DatabaseUnusable`.

An ordinary user's data are in the home. Postgres refuses to run as root, and the account that it
then runs under can rarely reach a home, so root's data are below /var/lib/sweep, with a pointer in
the home; permissions of folders that are not ours stay as they are.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from sweeper.errors import DatabaseUnusable
from sweeper.paths import write_json, write_whole
from sweeper.storage.embedded import binaries
from sweeper.storage.embedded.binaries import CLEAN_ENVIRONMENT, Account, Installation
from sweeper.storage.embedded.layout import Folder

USER = "sweep"
INITDB_S = 180.0
SOCKET_PATH_MAX = 100  # bytes; the kernel's limit on a socket's path is 108
SOCKET_NAME = ".s.PGSQL.5432"
INSTEAD = "or give a server with --database (SWEEP_DATABASE_URL)"

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Cluster:
    """One data directory: its folder (ours), and the account of its server (None: our own)."""

    root: Path
    account: Account | None

    @property
    def data(self) -> Path:
        """What Postgres calls PGDATA; it exists only when it is complete."""
        return self.root / "data"

    @property
    def lock(self) -> Path:
        """Held by every process of the server: it is free only when all of them are gone."""
        return self.root / "server.lock"


def short_hash(folder: Folder) -> str:
    """Names what belongs to a home outside of it: 12 hexadecimal digits."""
    return hashlib.sha256(os.fsencode(folder.path)).hexdigest()[:12]


def server_account() -> Account | None:
    """Who runs the server: ourselves, or as root `postgres`, else `nobody`."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise DatabaseUnusable(
        "Postgres refuses to run as root, and there is neither a user postgres nor nobody: add one "
        f"of them, run sweep as an ordinary user, {INSTEAD}."
    )


# ----------------------------------------------------------------------------- where the data are


def locate(folder: Folder, account: Account | None, state_root: Path) -> Cluster:
    """The cluster of a home; as root its folder is created when the home has none yet.

    Raises:
        DatabaseUnusable: the folder cannot be made, is gone, or belongs to another home.
    """
    if account is None:
        return Cluster(folder.path, None)
    try:
        if folder.pointer.exists():
            root = Path(json.loads(folder.pointer.read_text(encoding="utf-8"))["cluster"])
            _check_home_of(root, folder)
        else:
            _make_state_root(state_root)
            root = Path(tempfile.mkdtemp(prefix=f"{short_hash(folder)}-", dir=state_root))
            root.chmod(0o711)  # ours, and the server may pass through to its data
            write_whole(root / "home", str(folder.path))
            write_json(folder.pointer, {"cluster": str(root)})
    except (ValueError, KeyError) as error:
        raise DatabaseUnusable(
            f'{folder.pointer} should hold {{"cluster": FOLDER}} and does not: restore it '
            f"(the folder's name begins with {state_root}/{short_hash(folder)}-)."
        ) from error
    except OSError as error:
        raise DatabaseUnusable(
            f"as root, the embedded database keeps its data in {state_root}: {error}. Make it "
            f"writable, run sweep as an ordinary user, {INSTEAD}."
        ) from error
    return Cluster(root, account)


def _make_state_root(state_root: Path) -> None:
    if not state_root.is_dir():
        state_root.mkdir(parents=True)
        state_root.chmod(0o755)  # whatever the umask: the server's account passes through
    found = state_root.stat()
    if found.st_uid != 0 or found.st_mode & 0o022:
        raise DatabaseUnusable(
            f"{state_root} must belong to root and be writable by nobody else "
            f"(it belongs to user id {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o})."
        )


def _check_home_of(root: Path, folder: Folder) -> None:
    """A moved home keeps its data; a copied one must not share them."""
    if not root.is_dir():
        raise DatabaseUnusable(
            f"{folder.pointer} says that the data are in {root}, which is not there (another "
            f"machine or container?). Bring it back, or remove {folder.path} to start with an "
            "empty database."
        )
    owner = Folder(Path((root / "home").read_text(encoding="utf-8")))
    if owner.path == folder.path:
        return
    if owner.pointer.exists() and json.loads(owner.pointer.read_text()).get("cluster") == str(root):
        raise DatabaseUnusable(
            f"{folder.path} is a copy of {owner.path}, whose data are in {root}: use that home, or "
            f"remove {folder.path} to start with an empty database."
        )
    write_whole(root / "home", str(folder.path))


def abandoned(folder: Folder, state_root: Path, current: Path | None) -> tuple[Path, ...]:
    """Root's data of earlier homes at the same path, whose pointer was deleted with the home."""
    found = sorted(state_root.glob(f"{short_hash(folder)}-*"))
    return tuple(path for path in found if current is None or path != current)


# ------------------------------------------------------------------------------------ the socket


def socket_folder(folder: Folder, account: Account | None, previous: str | None) -> Path:
    """A short folder of mode 0700 for the socket, created or found; the same one every time.

    /tmp comes before XDG_RUNTIME_DIR because that one vanishes when its user logs out, and a sweep
    runs on. `previous` keeps the address of a restarted server for those who already know it.

    Raises:
        DatabaseUnusable: no place will do; the message says why for each.
    """
    uid = account.uid if account else os.geteuid()
    name = f"sweep-{uid}-{short_hash(folder)}"
    places = [Path("/tmp") / name]  # noqa: S108 - created 0700 and checked below
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/") and account is None:
        places.append(Path(runtime) / name)
    if previous is not None and Path(previous) in places:
        places.insert(0, Path(previous))
    refusals = []
    for place in places:
        refusal = _make_private(place, account)
        if refusal is None:
            return place
        refusals.append(f"{place}: {refusal}")
    raise DatabaseUnusable(
        f"no folder for the database's socket will do ({'; '.join(refusals)}). Remove what is in "
        f"the way, {INSTEAD}."
    )


def _make_private(place: Path, account: Account | None) -> str | None:
    """Make or accept a folder that only the server's account can use; else say what is wrong."""
    if len(os.fsencode(place / SOCKET_NAME)) > SOCKET_PATH_MAX:
        return "too long for a socket"
    uid = account.uid if account else os.geteuid()
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        # Through a descriptor that follows no link: what is checked is what is changed.
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            owner = os.fstat(descriptor).st_uid
            if owner not in {uid, os.geteuid()}:
                return f"it belongs to user id {owner}"
            os.fchmod(descriptor, 0o700)
            if account is not None:
                os.fchown(descriptor, account.uid, account.gid)
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.strerror or str(error)
    return None


# ------------------------------------------------------------------------------ making it usable


def installation_for(cluster: Cluster, explicit: Path | None, state_root: Path) -> Installation:
    """The programs that can open this cluster's data, or the best ones when there are none yet.

    Raises:
        DatabaseUnusable: none of the right major version, or none that the account can run.
    """
    major = None
    if cluster.data.exists():
        try:
            major = int((cluster.data / "PG_VERSION").read_text(encoding="ascii").split(".")[0])
        except (OSError, ValueError) as error:
            raise DatabaseUnusable(
                f"{cluster.data} is not the data directory of a Postgres (PG_VERSION is missing or "
                "unreadable): restore it from a backup, or move it away to start with an empty "
                "database."
            ) from error
    try:
        found = binaries.choose(major, explicit)
    except DatabaseUnusable as error:
        if major is None:
            raise
        raise DatabaseUnusable(
            f"the data in {cluster.data} were written by PostgreSQL {major}, which alone can read "
            f"them: {error} Install it (Debian: `apt-get install postgresql-{major}`), dump the "
            f"data with it and load them into a newer one; or move {cluster.data} away to start "
            f"with an empty database; {INSTEAD}."
        ) from error
    if cluster.account is None or binaries.reachable(found, cluster.account):
        return found
    _make_state_root(state_root)
    return binaries.copy_for(found, cluster.account, state_root)


def ensure_data(
    folder: Folder, cluster: Cluster, installation: Installation, *, durable: bool
) -> None:
    """Create the data directory and the password where they are missing.

    The directory is made under another name and renamed when complete, so a start that was killed
    half way leaves nothing that could be taken for a database.

    Args:
        folder: The home's database folder, which keeps the password.
        cluster: Where the data go.
        installation: Whose `initdb` to use.
        durable: Wait for the disk before the rename.

    Raises:
        DatabaseUnusable: with what initdb said.
    """
    try:
        for stale in [*cluster.root.glob("data.new-*"), *cluster.root.glob("password.*.once")]:
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        if cluster.data.exists():
            if not folder.password.exists():
                _reset_password(folder, cluster, installation)
            return
        password = secrets.token_hex(24)
        write_whole(folder.password, password)
        _initialise(cluster, installation, password, durable=durable)
    except OSError as error:
        raise DatabaseUnusable(
            f"the embedded database cannot be created in {cluster.root}: {error}. Make room or "
            f"make it writable, {INSTEAD}."
        ) from error


def _initialise(
    cluster: Cluster, installation: Installation, password: str, *, durable: bool
) -> None:
    temporary = Path(tempfile.mkdtemp(prefix="data.new-", dir=cluster.root))
    descriptor, once = tempfile.mkstemp(prefix="password.", suffix=".once", dir=cluster.root)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(password + "\n")
            if cluster.account is not None:
                os.fchown(file.fileno(), cluster.account.uid, cluster.account.gid)
                os.chown(temporary, cluster.account.uid, cluster.account.gid)
        command = [
            *(str(installation.bin / "initdb"), "-D", str(temporary), "-U", USER),
            *(f"--pwfile={once}", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"),
            "--no-sync",
        ]
        _run(cluster, command, INITDB_S, "initdb")
        if durable:
            _flush(temporary)
        temporary.rename(cluster.data)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        Path(once).unlink(missing_ok=True)


def _flush(place: Path) -> None:
    """Have a folder's file system on disk: once, instead of initdb's thousand single files."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        if not hasattr(_libc, "syncfs"):
            os.sync()
        elif _libc.syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(place))
    finally:
        os.close(descriptor)


def _reset_password(folder: Folder, cluster: Cluster, installation: Installation) -> None:
    """Give the role a new password when the file with the old one was lost; no server may run."""
    password = secrets.token_hex(24)
    command = [
        *(str(installation.bin / "postgres"), "--single", "-D", str(cluster.data)),
        *("-c", "log_min_error_statement=panic", "postgres"),
    ]
    _run(cluster, command, INITDB_S, "postgres", f"ALTER ROLE {USER} PASSWORD '{password}';\n")
    write_whole(folder.password, password)


def _run(cluster: Cluster, command: list[str], limit_s: float, what: str, text: str = "") -> None:
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
            cwd="/",
            env=CLEAN_ENVIRONMENT,
            preexec_fn=die_with_parent(signal.SIGKILL),
            **as_account(cluster.account),
        )
    except subprocess.TimeoutExpired:
        raise DatabaseUnusable(
            f"{what} did not finish in {limit_s:.0f} s for {cluster.data}: is the disk very slow?"
        ) from None
    except (PermissionError, ValueError) as error:
        raise DatabaseUnusable(f"{what} cannot be started: {error}.") from error
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise DatabaseUnusable(
            f"{what} failed with code {done.returncode} for {cluster.data}:\n"
            + "\n".join(said[-6:])
            + f"\nMake room or make it writable, {INSTEAD}."
        )


class AccountArguments(TypedDict, total=False):
    """The arguments of `Popen` that choose a child's account."""

    user: int
    group: int
    extra_groups: list[int]


def as_account(account: Account | None) -> AccountArguments:
    """The arguments of `Popen` that make a child run under an account."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def die_with_parent(death_signal: signal.Signals) -> Callable[[], None]:
    """What a child runs before its program: it gets this signal when the supervisor dies (Linux).

    It runs after the change of account, which would clear the setting, and undoes the supervisor's
    signal mask.
    """
    parent = os.getpid()

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if hasattr(_libc, "prctl"):
            _libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return prepare
