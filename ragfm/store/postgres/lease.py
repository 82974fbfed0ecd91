"""Leases: jobs that one process does at a time, such as writing the catalog.

A row of the table `properties` says who holds a lease, and another one until when, by the clock of the database. The
holder renews it. Every write transaction locks the row of the write lock and ends with an error if another process
holds the lease by then, so a writer that was suspended too long cannot write.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ragfm.core.errors import CollectionBusyError, CollectionError
from ragfm.store.catalog import read_property
from ragfm.store.tables import properties

LEASE_SECONDS = 30.0
"""How long a lease holds without being renewed: a writer on a machine that failed blocks others for that long."""
WRITER = "writer"
"""Key of the write lock's lease in `properties`; `writer until` is when it ends."""
UPLOADS_TURN = "uploads"
"""Key of the lease of the process that indexes uploads."""
_NOBODY = "{}"
NO_LEASE: Mapping[str, str] = {
    key: value for name in (WRITER, UPLOADS_TURN) for key, value in ((name, _NOBODY), (f"{name} until", "0"))
}
"""The rows of the leases in `properties` while nobody holds them."""
_NOW = sa.extract("epoch", sa.func.clock_timestamp())  # of the database, in seconds


class Lease:
    """A lease for one holder. `committing` starts a transaction that writes."""

    def __init__(self, name: str, committing: Callable[[], AbstractContextManager[sa.Connection]]) -> None:
        self._name, self._committing = name, committing
        self._token = uuid.uuid4().hex

    def take(self) -> dict[str, Any] | None:
        """Take the lease if it is free. Returns its holder if it is not."""
        with self._committing() as connection:
            locked = connection.scalar(_row(self._name).with_for_update(skip_locked=True))
            if locked is None:  # a transaction of its holder runs
                holder: dict[str, Any] = json.loads(read_property(connection, self._name) or _NOBODY)
                return holder
            if (valid := valid_holder(connection, self._name, locked)) is not None:
                return valid
            value = {"token": self._token, "pid": os.getpid(), "host": socket.gethostname(), "machine": _machine()}
            update = properties.update().where(properties.c.key == self._name)
            connection.execute(update.values(value=json.dumps(value)))
            self.renew(connection)
        return None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renew the lease in the block, and give it up at its end."""
        stop = threading.Event()
        renewing = threading.Thread(target=self._keep_renewing, args=(stop,), name="ragfm-lease", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            stop.set()
            renewing.join()
            with contextlib.suppress(CollectionError), self._committing() as connection:
                own = sa.and_(properties.c.key == self._name, properties.c.value.contains(self._token))
                connection.execute(properties.update().where(own).values(value=_NOBODY))

    def renew(self, connection: sa.Connection) -> None:
        """Let the lease last `LEASE_SECONDS` from now."""
        until = sa.cast(_NOW + LEASE_SECONDS, sa.String)
        connection.execute(properties.update().where(properties.c.key == f"{self._name} until").values(value=until))

    def _keep_renewing(self, stop: threading.Event) -> None:
        while not stop.wait(LEASE_SECONDS / 3):
            with contextlib.suppress(CollectionError), self._committing() as connection:
                # If the row is locked, a transaction of this process runs, which renews the lease at its end.
                holder = connection.scalar(_row(self._name).with_for_update(skip_locked=True))
                if holder is not None and self._token in holder:
                    self.renew(connection)

    def holds(self, holder: Mapping[str, Any]) -> bool:
        """Whether this is the holder."""
        return holder.get("token") == self._token


def check_writer(connection: sa.Connection, lease: Lease | None, location: str) -> Lease:
    """Lock the row of the write lock, and return its lease. Raises CollectionBusyError if that does not hold it."""
    holder = json.loads(connection.scalar(_row(WRITER).with_for_update()) or _NOBODY)
    if lease is None or not lease.holds(holder):
        raise CollectionBusyError(
            f"The write lock of '{location}' was lost to {holder_name(holder)}: this process did not renew it "
            f"for {LEASE_SECONDS:g} s.",
            "Earlier commits are intact. Run the command again.",
        )
    return lease


def valid_holder(connection: sa.Connection, name: str, value: str | None) -> dict[str, Any] | None:
    """Who holds a lease whose row has this value; None if it has ended."""
    holder: dict[str, Any] = json.loads(value or _NOBODY)
    if not holder:
        return None
    if holder["machine"] == _machine():
        try:
            os.kill(holder["pid"], 0)
        except ProcessLookupError:  # it was killed
            return None
        except OSError:
            pass
    until = read_property(connection, f"{name} until")
    return holder if float(until or 0) > float(connection.scalar(sa.select(_NOW)) or 0) else None


def holder_name(holder: Mapping[str, Any]) -> str:
    """The holder of a lease, for messages."""
    return f"Process {holder['pid']} on {holder['host']}" if holder else "Another process"


def _row(name: str) -> sa.Select[Any]:
    return sa.select(properties.c.value).where(properties.c.key == name)


def _machine() -> str:
    """Identifies the processes that this one can see: those since the machine's start, in the same container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return uuid.uuid4().hex
