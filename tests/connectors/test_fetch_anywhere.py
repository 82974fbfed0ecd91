"""Connectors that workers can use fetch what another process has listed."""

from __future__ import annotations

import sqlite3
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from ragfm_connectors.files import FilesConnector
from ragfm_connectors.jsonl import JsonlConnector
from ragfm_connectors.mail import MailConnector
from ragfm_connectors.sql import SqlConnector

from ragfm.core.types import Connector


def _files(folder: Path) -> Callable[[], Connector]:
    (folder / "leave.txt").write_text("28 days of leave")
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.writestr("hours.txt", "nine to five")
    return partial(FilesConnector, folder)


def _jsonl(folder: Path) -> Callable[[], Connector]:
    (folder / "all.jsonl").write_text('{"id": 1, "text": "leave"}\n{"id": 2, "text": "hours"}\n')
    return partial(JsonlConnector, folder)


def _sql(folder: Path) -> Callable[[], Connector]:
    with sqlite3.connect(folder / "shop.db") as database:
        database.execute("CREATE TABLE articles (id INTEGER, text TEXT)")
        database.executemany("INSERT INTO articles VALUES (?, ?)", [(1, "leave"), (2, "hours")])
    database.close()
    return partial(SqlConnector, f"sqlite:///{folder}/shop.db#articles")


def _git(folder: Path) -> Callable[[], Connector]:
    porcelain = pytest.importorskip("dulwich.porcelain", reason="needs the extra git")
    from ragfm_connectors.git import GitConnector

    for name in ("leave.txt", "hours.txt"):
        (folder / name).write_text(name)
    porcelain.init(str(folder))
    porcelain.add(str(folder), [str(folder / "leave.txt"), str(folder / "hours.txt")])
    porcelain.commit(str(folder), message=b"first", author=b"a <a@b>", committer=b"a <a@b>")
    return partial(GitConnector, folder)


def _object(folder: Path) -> Callable[[], Connector]:
    fsspec = pytest.importorskip("fsspec", reason="needs the extra object")
    from ragfm_connectors.object_store import ObjectConnector

    prefix = f"memory://{folder.name}"
    for name in ("leave.txt", "hours.txt"):
        with fsspec.open(f"{prefix}/{name}", "wb") as file:
            file.write(name.encode())
    return partial(ObjectConnector, prefix)


@pytest.mark.parametrize("make", [_files, _jsonl, _sql, _git, _object])
def test_an_entry_is_fetched_without_a_listing(make: Callable[[Path], Callable[[], Connector]], tmp_path: Path) -> None:
    source = make(tmp_path)
    lister = source()
    assert type(lister).fetch_anywhere  # type: ignore[attr-defined]
    refs = [ref for ref in lister.refs() if ref.skip is None]
    assert len(refs) == 2
    for ref in refs:
        assert source().fetch(ref) == lister.fetch(ref)


def test_mail_is_for_the_lister() -> None:
    assert not getattr(MailConnector, "fetch_anywhere", False)
