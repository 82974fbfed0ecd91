"""The connector for object stores: fsspec's memory store, and a local S3 server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fsspec", reason="needs the extra object")

import fsspec
from ragfm_connectors.object_store import ObjectConnector

from ragfm import Collection, Ref
from ragfm.core.errors import ConfigError, ConnectorError, MassDeleteError, MissingExtraError, SourceError
from ragfm.testing import check_connector

SECRET = "s3cret/key+of=the store"


class Bucket:
    """A prefix of a store, with the connector options to reach it."""

    def __init__(self, location: str, storage: list[str], system: Any) -> None:
        self.location, self.storage, self.system = location, storage, system

    @property
    def options(self) -> dict[str, Any]:
        return {"storage": self.storage}

    def put(self, path: str, data: bytes | str) -> None:
        self.system.pipe_file(f"{self.location}/{path}", data.encode() if isinstance(data, str) else data)

    def delete(self, path: str) -> None:
        self.system.rm_file(f"{self.location}/{path}")

    def made(self, below: str = "", **options: Any) -> ObjectConnector:
        return ObjectConnector(self.location + below, **self.options | options)

    def listed(self, below: str = "", **options: Any) -> dict[str, Ref]:
        return {ref.path: ref for ref in self.made(below, **options).refs()}


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    pytest.importorskip("s3fs", reason="needs the extra object")
    moto = pytest.importorskip("moto.server", reason="needs moto, an S3 server for tests")
    made = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    made.start()
    yield made
    made.stop()


def s3(server: Any, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("STORE_SECRET", SECRET)
    monkeypatch.setenv("STORE_KEY", "me")
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    system = fsspec.filesystem(
        "s3", key="me", secret=SECRET, endpoint_url=endpoint, skip_instance_cache=True, use_listings_cache=False
    )
    bucket = f"b{uuid.uuid4().hex}"
    system.mkdir(bucket)
    return Bucket(
        f"s3://{bucket}/docs", ["key=${STORE_KEY}", "secret=${STORE_SECRET}", f"endpoint_url={endpoint}"], system
    )


@pytest.fixture(params=["memory", "s3"])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    if request.param == "s3":
        made = s3(request.getfixturevalue("server"), monkeypatch)
    else:
        made = Bucket(f"memory://{uuid.uuid4().hex}/docs", [], fsspec.filesystem("memory"))
    for path, text in {"a.md": "# Oaks", "in/b.md": "Elms", "in/deep/c.txt": "Bees", ".hidden": "no"}.items():
        made.put(path, text)
    return made


def test_objects_become_documents(bucket: Bucket) -> None:
    connector = bucket.made()
    refs = {ref.path: ref for ref in connector.refs()}
    assert sorted(refs) == [".hidden", "a.md", "in/b.md", "in/deep/c.txt"]
    assert refs[".hidden"].skip == "hidden"
    blob = connector.fetch(refs["in/b.md"])
    assert (blob.data, blob.media_type) == (b"Elms", None)
    assert str(blob.metadata["modified"]).startswith("20")
    check_connector(connector)
    assert bucket.made("/").root == connector.root == bucket.location
    (alone,) = bucket.listed("/a.md").values()
    assert alone.path == ""
    assert bucket.made("/a.md").fetch(alone).data == b"# Oaks"
    check_connector(bucket.made("/a.md"))
    taken = [path for path, ref in bucket.listed(include=["*.md"], exclude=["deep"], hidden=True).items()]
    assert sorted(taken) == ["a.md", "in/b.md"]
    assert bucket.listed(hidden=True)[".hidden"].skip is None


def test_revisions(bucket: Bucket) -> None:
    before = bucket.listed()
    assert bucket.listed() == before
    bucket.put("a.md", "# Elms")  # as long as it was
    after = bucket.listed()
    assert [path for path in after if after[path] != before[path]] == ["a.md"]
    if bucket.location.startswith("s3"):
        assert after["a.md"].revision.startswith("mark:")


def test_skipped_entries_have_reasons(bucket: Bucket) -> None:
    bucket.put("big.md", "x" * 99)
    bucket.put("empty.md", "")
    found = bucket.listed(max_bytes=98)
    assert found["big.md"].skip == "99 bytes; the limit is 98 (`files.max_mb`)"
    connector = bucket.made(max_bytes=98)
    assert connector.fetch(found["empty.md"]).data == b""
    bucket.put("a.md", "x" * 99)
    with pytest.raises(ConnectorError, match="changed"):
        connector.fetch(found["a.md"])
    bucket.put("in/b.md", "other")
    with pytest.raises(ConnectorError, match="changed"):
        connector.fetch(found["in/b.md"])
    bucket.delete("in/deep/c.txt")
    with pytest.raises(ConnectorError, match="cannot be read"):
        connector.fetch(found["in/deep/c.txt"])


def test_access_files_apply(bucket: Bucket) -> None:
    bucket.put("in/.ragfm-access", "hr\n")
    bucket.put("in/deep/.ragfm-access", "ops\n")
    found = bucket.listed()
    assert [found[path].allow for path in ("a.md", "in/b.md", "in/deep/c.txt")] == [None, ("hr",), ()]
    (alone,) = bucket.listed("/in/b.md").values()
    assert alone.allow == ("hr",)
    bucket.put("in/.ragfm-access", b"\xff")
    found = bucket.listed()
    assert found["in/b.md"].allow == ()
    assert "not UTF-8" in (found["in/.ragfm-access"].error or "")


def test_the_longest_prefix_decides_who_may_see_an_object(bucket: Bucket) -> None:
    bucket.put("in/.ragfm-access", "hr\nops\n")
    readers = ["in/=hr, board", "in/deep/=ops"]
    allowed = {path: ref.allow for path, ref in bucket.listed(readers=readers).items() if not ref.skip}
    assert allowed == {"a.md": (), "in/b.md": ("hr",), "in/deep/c.txt": ("ops",)}
    assert bucket.listed(readers=[*readers, "=staff"])["a.md"].allow == ("staff",)
    with pytest.raises(ConfigError, match="has no groups"):
        bucket.made(readers=["hr/"])


def test_sync_adds_changes_and_deletes(bucket: Bucket, collection: Collection) -> None:
    assert collection.sync(bucket.location, connector="object", options=bucket.options).added == 3
    assert collection.sync().unchanged == 3
    bucket.put("a.md", "# Ash trees")
    bucket.put("new.md", "new")
    bucket.delete("in/deep/c.txt")
    report = collection.sync()
    assert (report.added, report.updated, report.removed, report.unchanged) == (1, 1, 1, 1)
    assert collection.search("ash", mode="keyword")[0].uri == f"{bucket.location}/a.md"
    bucket.delete("a.md")
    bucket.delete("new.md")
    with pytest.raises(MassDeleteError):
        collection.sync(bucket.location)
    bucket.delete("in/b.md")
    bucket.delete(".hidden")
    if bucket.location.startswith("s3"):  # where nothing is left, an empty prefix is none
        with pytest.raises(SourceError, match="cannot be read"):
            collection.sync(bucket.location)
    assert len(collection.documents()) == 3


def test_a_folder_that_cannot_be_listed_is_not_gone(
    bucket: Bucket, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection.sync(bucket.location, connector="object", options=bucket.options)
    connect = ObjectConnector._connect

    def failing(self: ObjectConnector) -> None:
        connect(self)
        real = self._file_system.ls

        def ls(path: str, **options: Any) -> Any:
            if path.endswith("/in"):
                raise PermissionError("Access Denied")
            return real(path, **options)

        self._file_system.ls = ls

    monkeypatch.setattr(ObjectConnector, "_connect", failing)
    report = collection.sync(bucket.location)
    assert (report.removed, report.unchanged) == (0, 1)
    assert "Access Denied" in report.failed[0].error
    assert len(collection.documents()) == 3


def test_keys_that_are_not_paths_are_skipped(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3(server, monkeypatch)
    name, prefix = bucket.location.removeprefix("s3://").split("/")
    for key in ("a.md", "x/../../b.md", "x//c.md", "/d.md", "dir/", "dir/e.md", "ünï ☃.md", "a:b?c#d.md", "./f.md"):
        bucket.system.call_s3("put_object", Bucket=name, Key=f"{prefix}/{key}", Body=key.encode())
    connector = bucket.made()
    found = {ref.path: ref for ref in connector.refs()}
    taken = {path for path, ref in found.items() if ref.skip is None}
    assert taken == {"a.md", "dir/e.md", "ünï ☃.md", "a:b?c#d.md"}
    assert all(connector.fetch(found[path]).data.decode() == path for path in taken)
    check_connector(connector)


def test_a_store_that_goes_away_in_the_middle(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="needs the extra object")
    moto = pytest.importorskip("moto.server", reason="needs moto, an S3 server for tests")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    bucket = s3(server, monkeypatch)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    bucket.storage += ['config_kwargs={"retries": {"max_attempts": 1}, "connect_timeout": 2}']
    for path in ("a.md", "b.md", "in/c.md"):
        bucket.put(path, path)
    collection.sync(bucket.location, connector="object", options=bucket.options)
    refs = bucket.made().refs()
    next(refs)
    server.stop()
    rest = list(refs)
    assert [ref.path for ref in rest if ref.error] == ["in"]
    with pytest.raises(SourceError, match="cannot be read"):
        collection.sync(bucket.location)
    assert len(collection.documents()) == 3


def test_the_secret_is_stored_nowhere(server: Any, collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3(server, monkeypatch)
    bucket.put("a.md", "Trees")
    assert collection.sync(bucket.location, connector="object", options=bucket.options).added == 1
    stored = b"".join(path.read_bytes() for path in collection.path.rglob("*") if path.is_file())
    assert SECRET.encode() not in stored
    assert b"${STORE_SECRET}" in stored
    status = repr(collection.status()) + repr(vars(bucket.made()))
    assert SECRET not in status


def test_addresses_of_other_connectors_are_refused(tmp_path: Any) -> None:
    for location, hint in (
        (f"file://{tmp_path}", "connector files"),
        (str(tmp_path), "Supported"),
        ("local:///etc", "connector files"),
        ("https://example.org/x", "connector web"),
        ("simplecache::s3://x/y", "Supported"),
        ("none://x", "Supported"),
        ("zip://x::file:///etc/passwd", "connector files"),
        ("filecache:///etc", "another store"),
        ("reference://x", "another store"),
        ("generic://file:///etc", "another store"),
    ):
        with pytest.raises(ConfigError, match=hint):
            ObjectConnector(location)
    for wrong in (
        {"storage": ["secret=abcdefg"]},
        {"storage": ["token=abcdefg"]},
        {"storage": ['client_kwargs={"aws_secret_access_key": "abcdefg"}']},
    ):
        with pytest.raises(ConfigError) as refused:
            ObjectConnector("s3://x", **wrong)
        assert "abcdefg" not in str(refused.value)
    with pytest.raises(ConfigError) as refused:
        ObjectConnector("sftp://me:abcdefg@x/y")
    assert "abcdefg" not in str(refused.value)
    with pytest.raises(SourceError, match="cannot be read"):
        list(ObjectConnector("memory://nothing/here").refs())
    with pytest.raises(MissingExtraError):
        list(ObjectConnector("oss://x/y").refs())
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        list(ObjectConnector("s3://x", storage=["oops"]).refs())
