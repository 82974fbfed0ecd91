"""Uploads: stored before the response, indexed by another process, listed and deleted; new generations."""

from __future__ import annotations

import io
import os
import random
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from support.running_server import LIMITS, QUESTION, Running, SlowReader, eventually, make_collection, serve

from ragfm import Collection
from ragfm.ingestion.sources import SourceError
from ragfm.server import document_routes
from ragfm.server.api_keys import Key, KeyFile
from ragfm.store.sqlite_database import write_lock
from ragfm.store.uploads import UploadFolder, safe_file_name
from ragfm.testing import ScriptedReader


def put(client: httpx.Client, name: str, data: bytes, **form: Any) -> dict[str, Any]:
    said = client.post("/v1/documents", files={"file": (name, data)}, data=form)
    assert said.status_code == 201, said.text
    return dict(said.json())


def state(client: httpx.Client, uri: str) -> str:
    return str(client.get(f"/v1/documents/{uri}").json().get("state"))


def test_an_upload_is_stored_indexed_found_listed_and_deleted(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_routes, "_DELETE_SECONDS", 120.0)
    client, other = running.client("guest"), running.client("other")
    card = put(client, "Zebra notes.md", b"# Zebra\n\nThe zebra is called Bob.\n")
    assert card["state"] in ("queued", "indexing")
    assert card["yours"]
    kept = running.folder / card["uri"].removeprefix(".")
    assert kept.read_bytes().startswith(b"# Zebra")
    assert card["uri"] in [each["uri"] for each in client.get("/v1/documents?mine=true").json()["data"]]
    eventually(lambda: state(client, card["uri"]) == "ready", 300)
    hits = client.post("/v1/search", json={"query": "zebra Bob", "k": 1}).json()["data"]
    assert hits[0]["uri"] == card["uri"]
    assert client.get(f"/v1/documents/{card['uri']}").json()["text"].startswith("# Zebra")
    assert other.post("/v1/search", json={"query": "zebra Bob", "k": 1}).json()["data"][0]["uri"] != card["uri"]
    assert other.get(f"/v1/documents/{card['uri']}").status_code == 404
    gone = client.delete(f"/v1/documents/{card['uri']}")
    assert (gone.status_code, gone.json()["deleted"]) == (200, True)
    assert client.post("/v1/search", json={"query": "zebra Bob", "k": 1}).json()["data"][0]["uri"] != card["uri"]
    assert state(client, card["uri"]) == "None"
    assert not kept.exists()


def test_groups_see_uploads_shared_with_them_and_failures_are_reported(running: Running) -> None:
    hr, guest = running.client("hr"), running.client("guest")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("inner.txt", "The okapi lives in the archive.")
    both = put(hr, "okapi.zip", packed.getvalue(), groups=["hr"])["uri"]
    broken = put(hr, "broken.pdf", b"%PDF-1.4 nothing")["uri"]
    empty = put(hr, "empty.txt", b"")["uri"]
    eventually(lambda: [state(hr, uri) for uri in (both, broken, empty)] == ["ready", "failed", "failed"], 300)
    inner = f"{both}/inner.txt"
    assert hr.get(f"/v1/documents/{inner}").json()["yours"]
    assert "okapi" in hr.get(f"/v1/documents/{inner}").json()["text"]
    assert hr.get(f"/v1/documents/{broken}").json()["error"]
    assert guest.get(f"/v1/documents/{inner}").status_code == 404
    secret = running.keys.add(Key(name="colleague", groups=("hr",), per_minute=1e6))
    with httpx.Client(base_url=running.address, headers={"Authorization": f"Bearer {secret}"}) as colleague:
        assert not colleague.get(f"/v1/documents/{inner}").json()["yours"]
        assert colleague.get(f"/v1/documents/{broken}").status_code == 404
        assert colleague.delete(f"/v1/documents/{both}").status_code == 404
        assert colleague.delete(f"/v1/documents/{inner}").status_code == 403
    assert hr.delete(f"/v1/documents/{inner}").status_code == 403  # all of it, or nothing


def packed_notes(count: int) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(count):
            archive.writestr(f"{number}.txt", f"Note {number} of the heavy key.")
    return packed.getvalue()


def test_uploads_of_another_key_do_not_wait_for_an_archive(running: Running) -> None:
    heavy, light = running.client("other"), running.client("guest")
    archive = put(heavy, "notes.zip", packed_notes(2000))["uri"]
    # The first slice may hold a part of the archive only.
    eventually(lambda: heavy.get("/v1/documents?mine=true&limit=1").json()["data"][0]["state"] == "ready", 300)
    note = put(light, "note.txt", b"The okapi is called Ann.")["uri"]
    eventually(lambda: state(light, note) == "ready", 300)
    assert len(pages(heavy, limit=1000, mine=True)) < 2000
    with write_lock(running.folder):  # the operator gets the lock meanwhile
        pass
    gone = light.delete(f"/v1/documents/{note}")
    assert (gone.status_code, gone.json()["deleted"]) in ((200, True), (202, False))
    heavy.delete(f"/v1/documents/{archive}")
    eventually(lambda: pages(heavy, limit=1000, mine=True) == [], 300)


def pages(client: httpx.Client, **params: Any) -> list[str]:
    """All URIs that a client gets page by page."""
    uris, after = list[str](), None
    while True:
        page = client.get("/v1/documents", params=params | ({} if after is None else {"after": after})).json()
        assert len(page["data"]) <= params.get("limit", 100)
        uris += [card["uri"] for card in page["data"]]
        if page["next"] is None:
            return uris
        assert page["next"] == uris[-1]
        after = page["next"]


def _zip(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def _protected_zip() -> bytes:
    """A zip whose member has the mark of a password."""
    data = bytearray(_zip({"secret.txt": b"secret"}))
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(header) + flags] |= 1
    return bytes(data)


def _damaged_zip() -> bytes:
    data = _zip({"one.txt": b"The first text.", "two.txt": b"The second text."})
    return data.replace(b"The first", b"The worst").replace(b"The second", b"The fourth")


def _tar_of_links() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return packed.getvalue()


def test_every_upload_ends_in_a_state_with_a_reason(running: Running) -> None:
    client = running.client("guest")
    uploads = {
        "protected.zip": (_protected_zip(), "secret.txt: it is password-protected"),
        "damaged.zip": (_damaged_zip(), "none of the 2 files in it can be indexed; one.txt: fetch: "),
        "links.tar": (_tar_of_links(), "link.txt: "),
        "many.zip": (packed_notes(2001), "the archive has 2,001 entries or more; the limit is 2,000"),
        "empty.zip": (_zip({}), "an archive without files"),
        "ragfm.toml": (b"[ask]\n", "it has no documents"),
        "closed.zip": (_zip({".ragfm-access": b"board", "plan.txt": b"The plan."}), "closes it to the key"),
        "settings.zip": (_zip({".ragfm-access": b"board"}), "it has no documents"),
    }
    uris = {put(client, name, data)["uri"]: reason for name, (data, reason) in uploads.items()}
    eventually(lambda: all(state(client, uri) == "failed" for uri in uris), 300)
    for uri, reason in uris.items():
        assert reason in client.get(f"/v1/documents/{uri}").json()["error"], uri
    listed = {card["uri"]: card["state"] for card in client.get("/v1/documents?mine=true").json()["data"]}
    assert listed == dict.fromkeys(uris, "failed")


def test_browsers_store_documents_and_guess_no_types(running: Running) -> None:
    def head(path: str, authorization: str) -> list[str]:
        host, port = running.address.removeprefix("http://").split(":")
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{authorization}\r\n"
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(request.encode())
            response = b"".join(iter(lambda: connection.recv(65536), b""))
        return response.partition(b"\r\n\r\n")[0].decode().lower().splitlines()

    key = f"Authorization: Bearer {running.secrets['hr']}\r\n"
    document = head("/v1/documents/docs/leave.md", key)
    assert "content-disposition: attachment" in document
    assert "content-security-policy: default-src 'none'; sandbox" in document
    assert "content-type: application/json" in document
    for answer in (
        document,
        head("/v1/documents", key),
        head("/v1/documents", ""),
        head("/healthz", ""),
        head("/", ""),
    ):
        assert answer.count("x-content-type-options: nosniff") == 1
        assert answer.count("cross-origin-resource-policy: same-origin") == 1


def test_quotes_and_line_breaks_in_names_are_decoded_and_replaced(running: Running) -> None:
    client = running.client("guest")
    uri = put(client, 'Prüfung "x"\r\n100%.txt', b"The zebra is called Bob.")["uri"]
    assert uri.endswith("/Prüfung _x___100%.txt")
    client.delete(f"/v1/documents/{uri}")


def test_unknown_fields_and_parameters_are_refused(running: Running) -> None:
    client = running.client()
    stored = client.post("/v1/documents", files={"file": ("a.txt", b"a")}, data={"tags": "year=2026"})
    listed = client.get("/v1/documents", params={"filter": "year = 2026"})
    for said, name, known in (
        (stored, "tags", "file, model, groups"),
        (listed, "filter", "model, after, limit, mine"),
    ):
        error = said.json()["error"]
        assert (said.status_code, error["param"]) == (400, name)
        assert known in error["message"]


def test_a_form_with_two_files_is_refused(running: Running) -> None:
    client = running.client("guest")
    files = [("file", (name, b"The zebra is called Bob.")) for name in ("first.txt", "second.txt")]
    refused = client.post("/v1/documents", files=files)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith("The form has more than one `file`.")
    assert not any(uri.endswith(("first.txt", "second.txt")) for uri in pages(client, mine=True))


def test_names_of_many_bytes_are_shortened(running: Running) -> None:
    client = running.client("guest")
    for name in ("\u6587" * 100 + ".txt", "\U0001f993" * 70 + ".txt"):
        uri = put(client, name, b"A text.")["uri"]
        assert uri.endswith(".txt")


def test_a_uri_may_have_line_breaks(tmp_path: Path) -> None:
    collection, name = make_collection(tmp_path), "lunch\nand breaks.txt"
    (tmp_path / "docs" / name).write_text("Lunch is at noon.")
    Collection.open(collection).sync()
    with serve(tmp_path, ScriptedReader(["Yes."]), collection=collection) as it:
        client = it.client("guest")
        assert f"docs/{name}" in pages(client)
        assert client.get(f"/v1/documents/{quote(f'docs/{name}')}").json()["text"] == "Lunch is at noon."
        assert client.delete(f"/v1/documents/{quote(f'docs/{name}')}").status_code == 403


def test_lists_come_in_pages_with_what_waits_and_what_is_indexed(tmp_path: Path) -> None:
    collection = make_collection(tmp_path)
    uploads, packed = UploadFolder(collection), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("a.txt", "b.txt", "c.txt"):
            archive.writestr(name, f"The okapi lives in {name}.")
    for number in range(4):
        uploads.store(io.BytesIO(f"Note {number}.".encode()), f"{number}.txt", ["key:guest"])
        uploads.store(io.BytesIO(f"Note {number}.".encode()), f"{number}.txt", ["key:hr", "hr"])
    uploads.store(packed, "okapi.zip", ["key:guest"])
    Collection.open(collection).sync(uploads.folder, name=".uploads")
    with serve(tmp_path, ScriptedReader(["Yes."]), collection=collection) as it:
        for supervisor in it.app.state.service.index_supervisors.values():
            supervisor.request_run = lambda *_: 0  # type: ignore[method-assign]
        for number in range(3):
            put(it.client("guest"), f"late{number}.txt", b"Late.")
        own = sorted(upload.uri for upload in uploads.owned_by("key:guest"))
        inner = [f"{uri}/{name}" for uri in own if uri.endswith("zip") for name in ("a.txt", "b.txt", "c.txt")]
        mine = sorted([*(uri for uri in own if not uri.endswith("zip")), *inner])
        assert len(mine) == 4 + 3 + 3
        for limit in (1, 2, 3, 5, 100):
            assert pages(it.client("guest"), limit=limit) == [*mine, "docs/hours.txt", "docs/leave.md"]
            assert pages(it.client("guest"), limit=limit, mine=True) == mine
        assert len(pages(it.client("hr"), limit=3)) == 4 + 3
        archive_of = it.client("guest").get(f"/v1/documents/{inner[0].removesuffix('/a.txt')}").json()
        assert (archive_of["state"], archive_of["chunks"]) == ("ready", 3)


def test_uploads_of_a_key_have_a_size_limit(running: Running) -> None:
    secret = running.keys.add(Key(name="small", per_minute=1e6, uploads_mb=0.05))
    with httpx.Client(base_url=running.address, headers={"Authorization": f"Bearer {secret}"}, timeout=60) as client:
        first = put(client, "a.txt", b"a" * 20_000)["uri"]
        said = client.post("/v1/documents", files={"file": ("b.txt", b"b" * 20_000)})
        assert (said.status_code, said.json()["error"]["code"]) == (413, "uploads_full")
        assert "take 0.0 of 0.05 MB" in said.json()["error"]["message"]
        put(client, "c.txt", b"c" * 10)  # there is room for this one
        assert client.post("/v1/documents", files={"file": ("d.txt", b"")}).status_code == 413  # no file takes nothing
        client.delete(f"/v1/documents/{first}")
        with ThreadPoolExecutor(8) as pool:  # together they would take too much
            tries = pool.map(lambda n: client.post("/v1/documents", files={"file": ("e.txt", b"e" * 9000)}), range(8))
            assert [said.status_code for said in tries].count(201) == 1


@pytest.mark.parametrize("chunked", [False, True])
def test_no_more_of_an_upload_is_read_than_the_quota_allows(running: Running, chunked: bool) -> None:
    secret = running.keys.add(Key(name="tiny", uploads_mb=1))
    host, port = running.address.removeprefix("http://").split(":")
    length = "Transfer-Encoding: chunked" if chunked else "Content-Length: 50000000"
    form = "Content-Type: multipart/form-data; boundary=x"
    head = f"POST /v1/documents HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n{length}\r\n{form}\r\n\r\n"
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n' + 2**20 * b"a"
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(head.encode())
        if chunked:  # of an unknown size; little more than the limit, so that no reset follows
            connection.sendall(b"%x\r\n%b\r\n" % (len(part), part) + b"ffff\r\n" + 17_000 * b"a")
        said = b"".join(iter(lambda: connection.recv(65536), b""))
    running.keys.revoke("tiny")
    assert said.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in said
    assert b"uploads_full" in said


def test_a_key_sends_half_of_the_uploads_that_are_received_at_once(running: Running) -> None:
    queue = running.app.state.service.served.upload_queue
    host, port = running.address.removeprefix("http://").split(":")
    with ExitStack() as connections:
        for _ in range(queue.slots):
            connection = connections.enter_context(socket.create_connection((host, int(port)), timeout=20))
            head = f"POST /v1/documents HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {running.secrets['guest']}\r\n"
            form = "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000"
            connection.sendall(f"{head}{form}\r\n\r\n--x".encode())
        eventually(lambda: (queue.running["guest"], queue.waiting) == (queue.slots // 2, queue.slots // 2))
        put(running.client("other"), "a.txt", b"a")
    eventually(lambda: queue.running.total() == queue.waiting == 0)


def test_uploads_that_cannot_be_indexed_are_limited_for_each_key_and_shown_in_metrics(tmp_path: Path) -> None:
    with serve(tmp_path, ScriptedReader(["Yes."]), limits=replace(LIMITS, uploads_waiting=2)) as it:
        client, other = it.client("hr"), it.client("other")

        def upload() -> httpx.Response:
            return client.post("/v1/documents", files={"file": ("note.txt", b"The okapi is called Ann.")})

        def figures() -> tuple[bool, bool]:
            """Whether the index lags, and whether indexing fails."""
            text = client.get("/metrics").text
            return (
                'ragfm_index_lag_seconds{collection="handbook"} 0.0\n' not in text,
                'ragfm_index_failing{collection="handbook"} 1.0\n' in text,
            )

        assert figures() == (False, False)
        with write_lock(it.folder):  # nothing can be indexed
            assert [upload().status_code for _ in range(3)] == [201, 201, 429]
            assert figures()[0]
            refused = upload()
            assert int(refused.headers["retry-after"]) > 0
            assert refused.json()["error"]["code"] == "uploads_waiting"
            assert "2 uploads of this key wait" in refused.json()["error"]["message"]
            # The log names the process that is writing and its machine. Users of keys learn neither.
            eventually(lambda: "Another process is writing to the collection." in upload().text, 300)
            assert figures() == (True, True)
            refused = upload()
            for said in (refused.text, client.get("/v1/documents?mine=true").text):
                assert "Another process is writing to the collection." in said
                assert str(os.getpid()) not in said
                assert socket.gethostname() not in said
            assert refused.headers["retry-after"] == "60"
            put(other, "note.txt", b"The okapi is called Bob.")
            assert len(pages(client, limit=10, mine=True)) == 2
        eventually(lambda: figures() == (False, False), 300)
        assert upload().status_code == 201


def test_progress_is_that_of_the_keys_own_uploads(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = running.app.state.service.index_supervisors["handbook"]
    client = running.client(None)
    client.headers["Authorization"] = f"Bearer {running.keys.add(Key(name='alone'))}"
    indexed = put(client, "first.txt", b"The okapi is called Ann.")["uri"]
    eventually(lambda: state(client, indexed) == "ready", 300)
    monkeypatch.setattr(supervisor, "request_run", lambda: None)
    monkeypatch.setattr(supervisor, "_running", True)
    for number in range(3):
        put(running.client("other"), f"{number}.txt", b"The zebra is called Bob.")
    uri = put(client, "second.txt", b"The zebra is called Bob.")["uri"]
    progress = {"documents": 1, "total": 2, "chunks": 1}
    assert client.get(f"/v1/documents/{uri}").json()["progress"] == progress
    (card,) = (card for card in client.get("/v1/documents?mine=true").json()["data"] if card["uri"] == uri)
    assert (card["state"], card["progress"]) == ("indexing", progress)
    running.keys.revoke("alone")


def test_while_uploads_are_indexed_a_key_finds_what_it_has_seen(tmp_path: Path) -> None:
    with serve(tmp_path, ScriptedReader(["Yes."])) as it:
        handles = it.app.state.service.served.handles["handbook"]

        def found(key: str) -> bool:
            said = it.client(key).post("/v1/search", json={"query": "zebra Bob", "k": 1}).json()["data"]
            return said[0]["uri"] == "docs/new.txt"

        assert not found("guest")
        handles.indexing = True
        (tmp_path / "docs" / "new.txt").write_text("The zebra is called Bob.")
        Collection.open(it.folder).sync(tmp_path / "docs")  # as the worker would
        assert not found("guest")  # the generation that is ready
        assert "docs/new.txt" in pages(it.client("other"), limit=10)
        assert found("other")
        assert found("guest")  # by now it is ready
        (tmp_path / "docs" / "new.txt").unlink()
        Collection.open(it.folder).sync(tmp_path / "docs")
        assert found("guest")
        handles.refresh()
        assert not found("guest")


@pytest.mark.parametrize(
    ("name", "fit"),
    [
        ("a/../../etc/passwd", "passwd"),
        ("C:\\temp\\x.pdf", "x.pdf"),
        (".ragfm-access", "ragfm-access"),
        ("..", "document"),
        ("", "document"),
        ("a\x00b\n.txt", "a_b_.txt"),
        ("é" * 300 + ".pdf", "é" * 98 + ".pdf"),
        ("文" * 100 + ".pdf", "文" * 65 + ".pdf"),
        ("🦓" * 70, "🦓" * 50),
        ("x." + "y" * 90, "x." + "y" * 90),
        ("Report no. 5 of the working group on taxes", "Report no. 5 of the working group on taxes"),
        ("v1.0 " + "y" * 300, "v1.0 " + "y" * 195),
        ("\ud800.txt", "?.txt"),
        ("  report .txt", "report.txt"),
    ],
)
def test_file_names_are_safe(name: str, fit: str) -> None:
    assert safe_file_name(name) == fit


def test_remains_of_a_crash_are_removed(tmp_path: Path) -> None:
    uploads = UploadFolder(make_collection(tmp_path))
    kept = uploads.store(io.BytesIO(b"kept"), "kept.txt", ["key:a"])
    (uploads.folder / ".0123456789abcdef").mkdir()
    (uploads.folder / ".0123456789abcdef" / "half.txt").write_text("half")
    assert list(uploads.all()) == [kept]
    uploads.remove_leftovers()
    assert [path.name for path in uploads.folder.iterdir()] == [kept.uri.split("/")[1]]


def test_uploads_go_next_to_a_source_that_holds_the_collection(tmp_path: Path) -> None:
    (tmp_path / "leave.md").write_text("28 days of leave.")
    collection = Collection.open(tmp_path / ".ragfm", embedder="hashing")
    collection.sync(tmp_path)
    uploads = UploadFolder(tmp_path / ".ragfm")
    stored = uploads.store(io.BytesIO(b"The zebra is called Bob."), "zebra.txt", ["key:a"])
    collection.sync(uploads.folder, name=".uploads")
    assert [info.uri for info in collection.documents()] == [stored.uri, "leave.md"]
    assert [info.uri for info in collection.as_groups({"key:b"}).documents()] == ["leave.md"]
    collection.sync()
    assert len(collection.documents()) == 2
    with pytest.raises(SourceError, match="overlaps"):
        collection.sync(uploads.folder / stored.uri.split("/")[1], name="again")


def test_new_documents_are_found_while_streams_continue(tmp_path: Path) -> None:
    reader = SlowReader(words=150)
    with serve(tmp_path, reader) as it:
        stream = it.openai().chat.completions.create(model="handbook", messages=QUESTION, stream=True)
        chunks = [next(stream)]
        (tmp_path / "docs" / "new.txt").write_text("The zebra is called Bob.")
        Collection.open(it.folder).sync(tmp_path / "docs")  # as another process would
        found = it.client().post("/v1/search", json={"query": "zebra Bob", "k": 1}).json()["data"]
        assert found[0]["uri"] == "docs/new.txt"
        chunks += list(stream)
        assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) == 150


SERVER = """
import sys, threading
from ragfm.server.app import create_app
from ragfm.server.api_keys import KeyFile
from ragfm.server.uvicorn_server import Server
from ragfm.server.served_models import ServedModels
from ragfm.testing import ScriptedReader
served = ServedModels([("handbook", sys.argv[1])], [("script", ScriptedReader(["Yes."]))])
app = create_app(served, keys=KeyFile(sys.argv[2]))
Server(app, host="127.0.0.1", port=0, on_listening=lambda address: print(address, flush=True)).run()
"""


def upload_until_killed(folder: Path, collection: Path, secret: str) -> dict[str, bytes]:
    """The uploads that a server acknowledged before it was killed."""
    command = [sys.executable, "-c", SERVER, str(collection), str(folder / "keys.json")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    address, acknowledged = process.stdout.readline().strip(), dict[str, bytes]()

    def upload(number: int) -> None:
        client = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {secret}"}, timeout=60)
        for turn in range(10_000):
            data = f"Note {number} of turn {turn}. ".encode() * random.randrange(1, 3000)
            try:
                said = client.post("/v1/documents", files={"file": (f"n{number}-{turn}.txt", data)})
            except httpx.TransportError:
                return
            if said.status_code == 201:
                acknowledged[said.json()["uri"]] = data
            else:  # too many wait
                time.sleep(0.1)

    threads = [threading.Thread(target=upload, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(acknowledged) > 5, 300)
    time.sleep(random.uniform(0, 0.3))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for thread in threads:
        thread.join()
    return acknowledged


@pytest.mark.parametrize("kills", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_a_kill_loses_no_acknowledged_upload(tmp_path: Path, kills: int) -> None:
    collection, keys = make_collection(tmp_path), KeyFile(tmp_path / "keys.json")
    secret, acknowledged = keys.add(Key(name="guest", per_minute=1e6)), dict[str, bytes]()
    for _ in range(kills):
        acknowledged |= upload_until_killed(tmp_path, collection, secret)
    assert len(acknowledged) > 5 * kills
    uploads = UploadFolder(collection)
    known = {upload.uri for upload in uploads.owned_by("key:guest")}
    assert set(acknowledged) <= known
    for uri, data in acknowledged.items():
        assert (collection / uri.removeprefix(".")).read_bytes() == data
    (tmp_path / "secrets.json").write_text(f'{{"guest": "{secret}"}}')
    with serve(tmp_path, ScriptedReader(["Yes."]), collection=collection) as it:  # indexes them without being asked
        client = it.client("guest")
        eventually(lambda: {state(client, uri) for uri in acknowledged} == {"ready"}, 300)
        assert not list(uploads.folder.glob(".*"))
