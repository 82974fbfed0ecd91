"""Replicas of PostgreSQL that lag or are promoted without some commits, and recovery to a point in time."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.postgres_server import PostgresServer, postgres_server

from ragfm import Collection, Settings
from ragfm.core.errors import (
    CollectionReadOnlyError,
    CollectionUnavailableError,
    DamagedCollectionError,
)
from ragfm.testing import HashingEmbedder

pytest.importorskip("psycopg", reason="needs the extra postgres")
pytestmark = pytest.mark.slow


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """A primary server and its standby."""
    monkeypatch.chdir(tmp_path)
    with postgres_server() as primary, postgres_server(primary=primary) as standby:
        yield primary, standby


class Machine:
    """A machine with views and HEAD of its own, which connects to whichever of the servers it is told."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._cache, self._monkeypatch = Path.cwd() / name, monkeypatch

    def open(self, address: str) -> Collection:
        self._monkeypatch.setenv("XDG_CACHE_HOME", str(self._cache))
        return Collection.open(address, settings=Settings(), embedder=HashingEmbedder())


def _add(docs: Path, text: str) -> None:
    (docs / f"{len(list(docs.iterdir()))}.txt").write_text(text)


def test_a_lagging_replica_answers_with_its_generation(
    servers: tuple[PostgresServer, PostgresServer], docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, standby = servers
    writer = Machine("writer", monkeypatch).open(primary.address())
    writer.sync(docs)
    reader = Machine("reader", monkeypatch).open(standby.address())
    _wait_for_replay(primary, standby)
    assert reader.wait_for(writer.commit, 60)
    assert reader.search("leave", 10) == writer.search("leave", 10)
    assert reader.commit == writer.commit
    with pytest.raises(CollectionReadOnlyError, match="standby"):
        reader.sync(docs)

    standby.sql("SELECT pg_wal_replay_pause()")
    _add(docs, "Night watchmen sleep by day.")
    writer.sync(docs)
    before = reader.commit
    assert not reader.wait_for(writer.commit, 0.1)
    assert reader.search("watchmen", 1, mode="keyword") == []
    assert reader.commit == before
    standby.sql("SELECT pg_wal_replay_resume()")
    assert reader.wait_for(writer.commit, 60)
    assert reader.search("watchmen", 1, mode="keyword")[0].uri == "docs/4.txt"
    assert not reader.verify().damaged

    # A machine that has seen a commit, here the one that wrote it, is not served an older state by a replica.
    standby.sql("SELECT pg_wal_replay_pause()")
    _add(docs, "Nothing but walnuts.")
    writer.sync(docs)
    with pytest.raises(DamagedCollectionError, match="commits were lost"):
        Machine("writer", monkeypatch).open(standby.address()).search("walnuts")


def test_a_promoted_standby_that_lost_commits_is_refused(
    servers: tuple[PostgresServer, PostgresServer], docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, standby = servers
    either = primary.address().replace(str(primary.folder), f"{primary.folder},{standby.folder}")
    either += "&target_session_attrs=read-write"
    here = Machine("here", monkeypatch)
    running = here.open(either)
    running.sync(docs)
    _wait_for_replay(primary, standby)
    elsewhere = Machine("elsewhere", monkeypatch).open(either)
    assert elsewhere.search("leave")
    standby.sql("ALTER SYSTEM SET primary_conninfo = ''")  # from now on, it receives nothing
    standby.sql("SELECT pg_reload_conf()")
    while standby.sql("SELECT count(*) FROM pg_stat_wal_receiver") != "0":
        time.sleep(0.05)
    _add(docs, "Night watchmen sleep by day.")
    running.sync(docs)
    lost = running.commit

    primary.stop("immediate")
    with pytest.raises(CollectionUnavailableError):
        running.search("leave")  # no server accepts writes
    standby.sql("SELECT pg_promote()")
    for use in (lambda: running.search("leave"), lambda: running.sync(docs), lambda: here.open(either).sync(docs)):
        with pytest.raises(DamagedCollectionError, match=r"is at generation \d+, but generation \d+ .* were lost"):
            use()
    # A machine that has not seen the lost commit continues, and its commit takes the place of the lost one.
    assert elsewhere.search("leave")
    assert not elsewhere.wait_for(lost, 0)
    _add(docs, "Nothing but walnuts.")
    assert elsewhere.sync(docs).added == 2
    with pytest.raises(DamagedCollectionError, match="commits were lost"):
        elsewhere.wait_for(lost)
    with pytest.raises(DamagedCollectionError, match="commits were lost"):
        here.open(either).search("leave")
    shutil.rmtree(running.path)  # as the hint of the error says
    again = here.open(either)
    assert again.search("walnuts", 1)[0].text == "Nothing but walnuts."
    assert not again.verify().damaged


def _wait_for_replay(primary: PostgresServer, standby: PostgresServer) -> None:
    position = primary.sql("SELECT pg_current_wal_lsn()")
    while standby.sql(f"SELECT pg_last_wal_replay_lsn() >= '{position}'") != "True":
        time.sleep(0.05)


def test_point_in_time_recovery_restores_a_commit(docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with tempfile.TemporaryDirectory(prefix="ragfm-wal-") as archive:
        Path(archive).chmod(0o777)
        keep = f"archive_mode = on\narchive_command = 'cp %p {archive}/%f'\n"
        fetch = f"primary_conninfo = ''\nrestore_command = 'cp {archive}/%f %p'\nrecovery_target_action = promote\n"
        with postgres_server(settings=keep) as lost, postgres_server(settings=fetch, primary=lost) as restored:
            restored.stop()  # it is a base backup from before the collection
            writer = Machine("writer", monkeypatch).open(lost.address())
            writer.sync(docs)
            wanted, position = writer.commit, lost.sql("SELECT pg_current_wal_lsn()")
            _add(docs, "Night watchmen sleep by day.")
            writer.sync(docs)
            segment = lost.sql("SELECT pg_walfile_name(pg_switch_wal())")
            while lost.sql("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver") < segment:
                time.sleep(0.05)
            lost.stop("immediate")
            with (restored.folder / "data/postgresql.conf").open("a") as file:
                file.write(f"recovery_target_lsn = '{position}'\n")
            restored.start()
            while restored.sql("SELECT pg_is_in_recovery()") != "False":
                time.sleep(0.05)
            elsewhere = Machine("elsewhere", monkeypatch).open(restored.address())
            assert elsewhere.commit == wanted
            assert not elsewhere.verify().damaged
            with pytest.raises(DamagedCollectionError, match="commits were lost"):
                Machine("writer", monkeypatch).open(restored.address()).search("leave")
            assert elsewhere.sync(docs).added == 1
            assert elsewhere.search("watchmen", 1, mode="keyword")[0].uri == "docs/4.txt"
