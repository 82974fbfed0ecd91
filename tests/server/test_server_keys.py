"""Keys and groups: authentication, visibility, and probes of one key for another key's documents."""

from __future__ import annotations

import json
import math
import random
import re
import shlex
import socket
import stat
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from support.running_server import LIMITS, QUESTION, SECRET, Running, eventually, request_lines, serve
from support.shell import InProcessShell

from ragfm.cli import ragfm
from ragfm.cli.server_commands import key_store
from ragfm.core.errors import ConfigError
from ragfm.server.api_keys import Key, KeyFile, RequestCounter, default_key_path
from ragfm.testing import ScriptedReader

PUBLIC = {"/healthz", "/readyz"}


def routes(running: Running) -> list[tuple[str, str]]:
    paths = running.app.openapi()["paths"]
    return [(method.upper(), path) for path, item in paths.items() for method in item]


def raw(running: Running, head: str, seconds: float = 60.0) -> bytes:
    """The response to a request's head whose body is never sent."""
    host, port = running.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(head.encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_every_route_is_refused_without_a_key_before_its_body_is_read(running: Running) -> None:
    asked = [(method, path) for method, path in routes(running) if path not in PUBLIC]
    assert len(asked) >= 10
    for method, path in [*asked, ("GET", "/openapi.json"), ("GET", "/docs"), ("POST", "/nothing")]:
        path = path.replace("{uri}", "docs/leave.md").replace("{model}", "handbook")
        for key in (
            "",
            "Authorization: Bearer ragfm-nobody\r\n",
            "Authorization: Bearer \r\n",
            "Authorization: Basic YQ==\r\n",
        ):
            head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n{key}\r\n"
            said = raw(running, head)
            assert said.startswith(b"HTTP/1.1 401"), (method, path)
            assert b"invalid_api_key" in said
            assert b"www-authenticate: Bearer" in said


def test_a_key_is_shown_once_kept_as_a_hash_and_refused_once_revoked(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    options = ["--keys", str(path)]
    made = CliRunner().invoke(ragfm, ["keys", "add", "ann", "--groups", "hr,board", "--rate", "5", "--json", *options])
    secret = json.loads(made.output)["key"]
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    listed = json.loads(CliRunner().invoke(ragfm, ["keys", "list", "--json", *options]).output)["keys"]
    assert listed[0]["groups"] == ["hr", "board"]
    assert "sha256" not in listed[0]
    file = KeyFile(path)
    found = file.find(secret)
    assert found
    assert found.visible_groups == {"hr", "board", "key:ann"}
    assert not file.find(secret[:-1])
    assert not file.find("")
    with pytest.raises(ConfigError, match="already"):
        file.add(Key(name="ann"))
    CliRunner().invoke(ragfm, ["keys", "revoke", "ann", *options])
    assert not file.find(secret)


def test_the_collection_of_keys_may_have_a_name_as_for_serve(tmp_path: Path) -> None:
    folder = tmp_path / "handbook"
    assert CliRunner().invoke(ragfm, ["keys", "add", "ann", "-c", f"hb={folder}"]).exit_code == 0
    (key,) = KeyFile(default_key_path(folder)).keys()
    assert key.name == "ann"


def test_a_running_server_follows_its_file_of_keys(running: Running) -> None:
    secret = running.keys.add(Key(name="brief"))
    ask = lambda: httpx.get(f"{running.address}/v1/models", headers={"Authorization": f"Bearer {secret}"})  # noqa: E731
    assert ask().status_code == 200
    running.keys.revoke("brief")
    assert ask().status_code == 401
    kept = running.keys.path.read_bytes()
    running.keys.path.write_text("{")
    assert running.client().get("/v1/models").status_code == 503  # no key is valid
    running.keys.path.write_bytes(kept)
    assert running.client().get("/v1/models").status_code == 200


def test_a_key_file_that_cannot_be_read_is_not_called_invalid(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory") as raised:
        KeyFile(tmp_path).keys()
    assert "delete" not in str(raised.value)


@pytest.mark.parametrize("name", ["", "a b", "../x", "a" * 65, "-x", "a\n"])
def test_names_of_keys_are_plain(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        Key(name=name)


@pytest.mark.parametrize("group", ["key:hr", "a\nb", "# x", " a", ""])
def test_groups_of_a_key_are_validated(group: str) -> None:
    with pytest.raises(ValueError, match="groups"):
        Key(name="ann", groups=(group,))


@pytest.mark.timing
@pytest.mark.parametrize("limit", ["per_minute", "uploads_mb"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_limits_of_a_key_are_finite(limit: str, value: float) -> None:
    # JSON has no infinity: the key file could not be read again, and no key would be valid
    with pytest.raises(ValueError, match=limit):
        Key(name="ann", **{limit: value})


def test_the_first_request_of_a_key_is_allowed_at_any_rate() -> None:
    take = RequestCounter().take
    assert take("ann", 0.5) == 0
    assert 119 < take("ann", 0.5) <= 120


def test_a_key_has_its_collections_and_its_rate(running: Running) -> None:
    secret = running.keys.add(Key(name="strict", collections=("payroll",), per_minute=3))
    client = httpx.Client(base_url=running.address, headers={"Authorization": f"Bearer {secret}"})
    assert client.get("/v1/models").json()["data"] == []
    assert client.post("/v1/search", json={"query": "leave", "model": "handbook"}).status_code == 404
    assert client.post("/v1/search", json={"query": "leave"}).status_code == 404
    start = time.monotonic()
    refused = client.get("/v1/models")
    assert time.monotonic() - start < 5  # refused at once, instead of delayed for as long as `Retry-After`
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 20
    running.keys.revoke("strict")


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [((), []), (("read",), ["search"]), (("write",), ["upload", "delete"]), (("metrics",), ["metrics"])],
)
def test_a_key_may_do_what_its_scopes_say(running: Running, scopes: tuple[Any, ...], allowed: list[str]) -> None:
    secret = running.keys.add(Key(name="scoped", scopes=scopes))
    client = httpx.Client(base_url=running.address, headers={"Authorization": f"Bearer {secret}"}, timeout=60)
    said = {
        "search": client.post("/v1/search", json={"query": "leave"}),
        "upload": client.post("/v1/documents", files={"file": ("a.txt", b"a")}),
        "delete": client.delete("/v1/documents/.uploads/0123456789abcdef/a.txt"),
        "metrics": client.get("/metrics"),
    }
    running.keys.revoke("scoped")
    assert [name for name, response in said.items() if response.status_code != 403] == allowed
    refused = {response.json()["error"]["code"] for response in said.values() if response.status_code == 403}
    assert refused == {"missing_scope"}


def test_an_expired_key_is_refused_and_logged(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    secret = running.keys.add(Key(name="old", expires=datetime.now(UTC) - timedelta(seconds=1)))
    with caplog.at_level("INFO", logger="ragfm.server.requests"):
        said = httpx.get(f"{running.address}/v1/models", headers={"Authorization": f"Bearer {secret}"})
        (line,) = eventually(lambda: request_lines(caplog))
    running.keys.revoke("old")
    assert line["key"] == "old"
    assert (said.status_code, said.json()["error"]["code"]) == (401, "expired_api_key")


def test_after_a_rotation_both_secrets_are_valid_during_the_overlap(tmp_path: Path) -> None:
    shell, keys = InProcessShell(), ("--keys", str(tmp_path / "keys.json"))
    old = shell.json("keys", "add", "ann", "--groups", "hr", "--days", "9", *keys)["key"]
    new = shell.json("keys", "rotate", "ann", "--overlap", "1", *keys)["key"]
    file = KeyFile(tmp_path / "keys.json")
    (key,) = file.keys()
    assert file.find(old) == file.find(new) == key
    assert (key.groups, key.expires is None) == (("hr",), False)
    newest = shell.json("keys", "rotate", "ann", "--overlap", "0", *keys)["key"]
    assert [file.find(secret) for secret in (old, new)] == [None, None]
    assert file.find(newest)
    assert "There is no key 'bob'" in shell("keys", "rotate", "bob", *keys, code=1)


def test_the_list_of_keys_says_when_each_was_last_used(running: Running) -> None:
    shell, options = InProcessShell(), ("--keys", str(running.keys.path))
    secret = running.keys.add(Key(name="seldom"))
    used = lambda: {key["name"]: key["last_used"] for key in shell.json("keys", "list", *options)["keys"]}  # noqa: E731
    assert used()["seldom"] is None
    httpx.get(f"{running.address}/v1/models", headers={"Authorization": f"Bearer {secret}"})
    assert datetime.now(UTC) - datetime.fromisoformat(used()["seldom"]) < timedelta(minutes=10)
    running.keys.revoke("seldom")
    time.sleep(1.1)  # the time of creation is in seconds
    running.keys.add(Key(name="seldom"))
    assert used()["seldom"] is None
    running.keys.revoke("seldom")


def test_a_key_is_for_collections_that_are_served(tmp_path: Path) -> None:
    shell, keys = InProcessShell(), ("--keys", str(tmp_path / "keys.json"))
    served = ("-c", f"a={tmp_path / 'one'}", "-c", str(tmp_path / "b"))
    said = shell("keys", "add", "ann", "--collections", "a,nosuch", *served, *keys, code=1)
    assert "the collection 'nosuch' is not among a, b." in said
    assert not (tmp_path / "keys.json").exists()
    shell("keys", "add", "ann", "--collections", "a,b", *served, *keys)


def test_serve_names_a_missing_collection_and_the_command_that_adds_a_key(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = InProcessShell()
    assert "There is no collection at" in shell("serve", "-c", f"x={tmp_path / 'none'}", code=1)
    (tmp_path / "served").symlink_to(running.folder)
    monkeypatch.chdir(tmp_path)
    for options in (("-c", "x=served"), ("--keys", "some keys.json")):
        if "-c" not in options:
            monkeypatch.setenv("RAGFM_COLLECTION", "served")
        said = str(CliRunner().invoke(ragfm, ["serve", *options], standalone_mode=False).exception)
        (command,) = re.findall("Create one with `ragfm (.+?)`", said)
        shell(*shlex.split(command.replace("NAME", "ann")))
        assert key_store(options[1] if "--keys" in options else None, "served").keys()[0].name == "ann"


def test_groups_decide_what_is_found_asked_and_listed(running: Running) -> None:
    for key, sees in (("hr", True), ("guest", False)):
        client = running.client(key)
        found = client.post("/v1/search", json={"query": "salary of the director", "k": 50}).text
        answer = running.openai(key).chat.completions.create(
            model="handbook",
            messages=[{"role": "user", "content": "What is the salary of the director?"}],
            extra_body={"ragfm": {"k": 50}},
        )
        listed = client.get("/v1/documents").json()["data"]
        assert (SECRET in found) == sees
        assert ("98765" in answer.model_dump_json()) == sees
        assert ("docs/hr/salaries.txt" in [card["uri"] for card in listed]) == sees
        assert (client.get("/v1/documents/docs/hr/salaries.txt").status_code == 200) == sees


def test_hidden_and_missing_documents_give_the_same_error(running: Running) -> None:
    hr, guest = running.client("hr"), running.client("guest")
    stored = hr.post("/v1/documents", files={"file": ("mine.txt", b"98765 is a secret.")}).json()["uri"]
    for uri in ("docs/hr/salaries.txt", stored):
        for method in ("GET", "DELETE"):
            hidden = guest.request(method, f"/v1/documents/{uri}")
            absent = guest.request(method, f"/v1/documents/{uri}x")
            assert hidden.status_code == absent.status_code == 404
            assert hidden.json()["error"]["message"] + "x" == absent.json()["error"]["message"].replace("x'", "'") + "x"
    assert hr.delete("/v1/documents/docs/hr/salaries.txt").status_code == 403  # visible, but not an upload
    refused = guest.post("/v1/documents", files={"file": ("a.txt", b"a")}, data={"groups": ["hr"]})
    assert refused.status_code == 400
    assert stored not in [one["uri"] for one in guest.get("/v1/documents?mine=true").json()["data"]]


def probe(running: Running, client: httpx.Client, chance: random.Random, uris: list[str]) -> httpx.Response:
    """One attempt of a guest to see a closed document."""
    uri = chance.choice(uris)
    words = chance.choice(["salary of the director", "98765 crowns", "director", "board plans boat spring", "secret"])
    filters = [
        None,
        f"uri = '{uri}'",
        "source = 'docs'",
        "media_type = 'text/plain'",
        "title = 'x' or chars > 1",
        f"not uri = '{uri}x'",
        f"uri in ('{uri}', 'docs/hours.txt')",
    ]
    filter = chance.choice(filters)
    number = f"{chance.getrandbits(64):016x}"
    paths = [
        uri,
        uri.upper(),
        f"{uri}/",
        f"./{uri}",
        f"%2e/{uri}",
        uri.replace("/", "%2f"),
        f"docs/../{uri}",
        f"{uri}%00",
        f".uploads/{number}/mine.txt",
        uri.rpartition("/")[0],
    ]
    path = f"/v1/documents/{chance.choice(paths)}"
    kind = chance.randrange(8)
    if kind == 0:
        mode = chance.choice(["hybrid", "dense", "keyword"])
        return client.post("/v1/search", json={"query": words, "k": 200, "mode": mode, "filter": filter})
    if kind == 1:
        options = {"k": 50, "filter": filter}
        asked = {
            "model": "handbook",
            "messages": [{"role": "user", "content": words}],
            "ragfm": options,
            "stream": chance.random() < 0.5,
        }
        return client.post("/v1/chat/completions", json=asked)
    if kind == 2:
        return client.get(path)
    if kind == 3:
        return client.delete(path)
    if kind == 4:
        return client.get("/v1/documents", params={"limit": 1000, "after": chance.choice(["", uri[:-1], "docs/"])})
    if kind == 5:
        groups = {"groups": [chance.choice(["hr", "board", "key:hr", "key:guest", "*"])]}
        return client.post("/v1/documents", files={"file": ("a.txt", b"a")}, data=groups)
    if kind == 6:
        path = path.replace("documents", chance.choice(["pages", "boxes"]), 1)
        return client.get(path, params={"page": 1, "start": 0, "end": 9})
    return client.post("/v1/ratings", json={"rating": f"handbook/{chance.randrange(50)}", "thumbs": "up"})


def probes(running: Running, count: int) -> None:
    hr, client, chance = running.client("hr"), running.client("guest"), random.Random(count)
    stored = hr.post("/v1/documents", files={"file": ("mine.txt", b"98765 is a secret.")}).json()["uri"]
    uris = [stored, "docs/hr/salaries.txt", "docs/board/plans.txt"]
    before = {card["uri"]: card["state"] for card in hr.get("/v1/documents").json()["data"]}
    statuses: dict[int, int] = {}
    for _ in range(count):
        said = probe(running, client, chance, uris)
        statuses[said.status_code] = statuses.get(said.status_code, 0) + 1
        body = said.text.replace(said.request.url.path.removeprefix("/v1/documents/"), "")
        for word in ("98765", "sell the boat", "mine.txt", "salaries.txt", "plans.txt"):
            asked = said.request.read().decode() + str(said.request.url)
            assert word not in body or word in asked, (said.request.url, body)
        assert said.status_code < 500
        if said.status_code == 200 and said.request.url.path.startswith("/v1/documents/"):
            assert said.json()["uri"] in ("docs/hours.txt", "docs/leave.md")
    after = {card["uri"] for card in hr.get("/v1/documents").json()["data"]}
    assert set(before) <= after
    assert statuses[200] > count // 5
    assert statuses[404] > count // 5


def test_probes_find_nothing(running: Running) -> None:
    probes(running, 250)


@pytest.mark.slow
def test_four_thousand_probes_find_nothing(running: Running) -> None:
    probes(running, 4_000)


def test_the_log_names_deleted_documents_and_leaves_probes_out(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    client = running.client()
    eventually(lambda: client.get("/readyz").status_code == 200, 300)
    with caplog.at_level("INFO", logger="ragfm.server.requests"):
        for path in ("/healthz", "/readyz", "/metrics"):
            client.get(path)
        client.delete("/v1/documents/docs/leave.md")
        (line,) = eventually(lambda: [line for line in request_lines(caplog) if line["method"] == "DELETE"])
    assert (line["method"], line["document"], line["status"]) == ("DELETE", "docs/leave.md", 403)


def test_the_log_has_no_keys_and_no_text_of_documents(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="ragfm.server"):
        running.client().post("/v1/search", json={"query": "salary of the director"})
        running.openai().chat.completions.create(model="handbook", messages=QUESTION)
        httpx.get(f"{running.address}/v1/models?key=hidden", headers={"Authorization": "Bearer ragfm-hidden"})
        eventually(lambda: len(request_lines(caplog)) >= 3)  # a response is sent before its line is written
    lines: dict[str, Any] = {line["route"]: line for line in request_lines(caplog)}
    assert lines["/v1/chat/completions"]["completion_tokens"] > 5
    assert lines["/v1/search"]["key"] == "hr"
    refused = lines["none"]
    assert (refused["status"], refused["client"], refused["code"]) == (401, "127.0.0.1", "invalid_api_key")
    everything = str([vars(record) for record in caplog.records])
    for word in ("director", "leave", "98765", "hidden", running.secrets["hr"]):
        assert word not in everything


class RemoteKeys(KeyFile):
    """Keys that count how often they are looked up, as if each time cost a query."""

    remote = True
    lookups = 0

    def find(self, secret: str) -> Key | None:
        self.lookups += 1
        return super().find(secret)


def test_a_flood_of_invalid_keys_is_not_looked_up(tmp_path: Path) -> None:
    keys, limits = RemoteKeys(tmp_path / "keys.json"), replace(LIMITS, attempts_per_minute=5, refusal_seconds=0.0)
    with serve(tmp_path, ScriptedReader(["Yes."]), store=keys, limits=limits) as it:
        assert it.client("hr").get("/v1/models").status_code == 200
        before = keys.lookups
        refused = [
            it.client(None).get("/v1/models", headers={"Authorization": f"Bearer ragfm-{n}"}).status_code
            for n in range(100)
        ]
        assert refused[0] == 401
        assert refused[-1] == 429
        assert keys.lookups - before < 50
        assert it.client("hr").get("/v1/models").status_code == 200  # from the same address, but it was valid before
        elsewhere = {"X-Forwarded-For": "192.0.2.7"}
        assert it.client("guest").get("/v1/models", headers=elsewhere).status_code == 200
        keys.revoke("hr")
        assert it.client("hr").get("/v1/models").status_code in (401, 429)
        before = keys.lookups
        assert it.client("hr").get("/v1/models").status_code in (401, 429)
        assert keys.lookups - before <= 1
