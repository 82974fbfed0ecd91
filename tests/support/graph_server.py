"""A replay of Microsoft Graph for tests: one site with libraries, its token endpoint, and a host of downloads.

The answers have the shapes of the public reference: https://learn.microsoft.com/graph/api/resources/driveitem. The
server has not been compared with the live service.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

SECRET, DOWNLOAD_SECRET = "c4nary-secret~of.app", "tempauth=c4nary-download"
SITE = "https://contoso.sharepoint.com/sites/handbook"
SITE_ID = "contoso.sharepoint.com,2C712604-1370,2D2244C3-251A"
Answer = tuple[int, dict[str, str], Any]


@dataclass
class Item:
    """A file or, without data, a folder. Without `permissions`, it has those of its folder."""

    id: str
    data: bytes | None
    version: int = 1
    permissions: list[dict[str, Any]] | None = None


@dataclass
class Site:
    """A site. `items` by path, of which the first part is the library; `log` are the requests."""

    url: str = ""
    downloads: str = ""
    items: dict[str, Item] = field(default_factory=dict)
    log: list[tuple[str, str, str]] = field(default_factory=list)  # kind, path, Authorization
    page_size: int = 200
    hierarchical: bool = True
    uses_of_a_token: int = 10**9
    expires_in: int = 3599
    tokens: dict[str, int] = field(default_factory=dict)  # uses left
    answer: Callable[[str, str], Answer | None] = lambda kind, path: None
    """May answer instead of the server."""
    made: int = 0

    def put(self, path: str, text: str = "The text of all.") -> None:
        """Create or replace a file, with its folders."""
        parts = path.split("/")
        for end in range(1, len(parts)):
            self._create("/".join(parts[:end]), None)
        if path in self.items:
            self.items[path].data = text.encode()
            self.items[path].version += 1
        else:
            self._create(path, text.encode())

    def _create(self, path: str, data: bytes | None) -> None:
        if path not in self.items:
            self.made += 1
            root = [grant("everyone@contoso.com")] if "/" not in path else None
            self.items[path] = Item(f"01ITEM{self.made}", data, permissions=root)

    def move(self, old: str, new: str) -> None:
        """Move a file or a folder with all that it contains. It keeps its id."""
        for path in [path for path in self.items if f"{path}/".startswith(f"{old}/")]:
            self.items[new + path.removeprefix(old)] = self.items.pop(path)

    def permit(self, path: str, *permissions: dict[str, Any]) -> None:
        """Give an item permissions of its own."""
        self.items[path].permissions = list(permissions)

    def asked(self, kind: str) -> list[str]:
        """The paths of the requests of a kind since the last call; the log is emptied."""
        paths = [path for asked, path, _ in self.log if asked == kind]
        self.log.clear()
        return paths

    def describe(self, path: str) -> dict[str, Any]:
        """The driveItem of a path."""
        item, folder = self.items[path], path.rpartition("/")[0]
        facts: dict[str, Any] = {
            "id": item.id,
            "name": path.rpartition("/")[2] if folder else "root",
            "eTag": f'"{{{item.id}}},{item.version}"',
            "lastModifiedDateTime": "2026-01-02T03:04:05Z",
            "parentReference": {"driveType": "documentLibrary", "driveId": drive_id(path.partition("/")[0])},
        }
        if folder:
            facts["parentReference"]["id"] = self.items[folder].id
        else:
            facts["root"] = {}
        if item.data is None:
            facts["folder"] = {"childCount": 0}
        else:
            digest = blake2b(item.data, digest_size=20).hexdigest()
            facts |= {"file": {"mimeType": "text/plain", "hashes": {"quickXorHash": digest}}, "size": len(item.data)}
        if item.permissions is not None or not self.hierarchical:
            facts["shared"] = {"scope": "users"} if item.permissions else {}
        return facts

    def permissions(self, path: str) -> list[dict[str, Any]]:
        """The effective permissions of a path."""
        permissions = self.items[path].permissions
        return permissions if permissions is not None else self.permissions(path.rpartition("/")[0])

    def respond(self, method: str, target: str, headers: Any, body: bytes) -> Answer:
        """The answer to a request."""
        parts = urlsplit(target)
        path, query = unquote(parts.path), parse_qs(parts.query)
        authorization = headers.get("Authorization", "")
        if path.endswith("/oauth2/v2.0/token"):
            form = parse_qs(body.decode())
            self.log.append(("token", path, authorization))
            if form["client_secret"] != [SECRET]:
                return (
                    401,
                    {},
                    {"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret."},
                )
            self.tokens[f"token{len(self.tokens)}"] = self.uses_of_a_token
            token = f"token{len(self.tokens) - 1}"
            return 200, {}, {"token_type": "Bearer", "expires_in": self.expires_in, "access_token": token}
        kind, item = self._route(path)
        self.log.append((kind, item, authorization))
        instead = self.answer(kind, item)
        if instead is not None:
            return instead
        token = authorization.removeprefix("Bearer ")
        if self.tokens.get(token, 0) <= 0:
            return 401, {}, error("InvalidAuthenticationToken")
        self.tokens[token] -= 1
        if kind == "site":
            return 200, {}, {"id": SITE_ID}
        if kind == "drives":
            libraries = [path for path in self.items if "/" not in path]
            drives = [{"id": drive_id(name), "name": "Other", "webUrl": f"{SITE}/{quote(name)}"} for name in libraries]
            return 200, {}, {"value": drives}
        if kind == "delta":
            return self._delta(item, int(query.get("token", ["0"])[0]), headers)
        if item not in self.items:
            return 404, {}, error("itemNotFound")
        if kind == "permissions":
            return 200, {}, {"value": self.permissions(item)}
        if kind == "content":
            location = f"{self.downloads}/{self.items[item].id}?{DOWNLOAD_SECRET}"
            return 302, {"Location": location}, {}
        return 200, {}, self.describe(item)

    def _route(self, path: str) -> tuple[str, str]:
        if path == "/v1.0/sites/contoso.sharepoint.com:/sites/handbook:":
            return "site", ""
        if path == f"/v1.0/sites/{SITE_ID}/drives":
            return "drives", ""
        drive, _, rest = path.removeprefix("/v1.0/drives/").partition("/")
        library = next((path for path in self.items if "/" not in path and drive_id(path) == drive), "?")
        if rest == "root/delta":
            return "delta", library
        if rest.startswith("root:/"):
            inside, colon, kind = rest.removeprefix("root:/").partition(":/")
            return (kind if colon else "item"), f"{library}/{inside}"
        _, item, kind = rest.split("/")
        return kind, next((path for path, found in self.items.items() if found.id == item), "?")

    def _delta(self, library: str, start: int, headers: Any) -> Answer:
        paths = [path for path in self.items if f"{path}/".startswith(f"{library}/")]
        end = start + self.page_size
        page: dict[str, Any] = {"value": [self.describe(path) for path in paths[start:end]]}
        link = f"{self.url}/v1.0/drives/{drive_id(library)}/root/delta?token={end}"
        page["@odata.nextLink" if end < len(paths) else "@odata.deltaLink"] = link
        applied = self.hierarchical and headers.get("Prefer") == "hierarchicalsharing"
        return 200, {"Preference-Applied": "hierarchicalsharing"} if applied else {}, page

    def download(self, method: str, target: str, headers: Any, body: bytes) -> Answer:
        """The answer of the host of downloads."""
        path = next(path for path, item in self.items.items() if item.id == urlsplit(target).path.strip("/"))
        self.log.append(("download", path, headers.get("Authorization", "")))
        instead = self.answer("download", path)
        return instead or (200, {"Content-Type": "text/plain"}, self.items[path].data)


def drive_id(library: str) -> str:
    """The id of a library."""
    return f"b!{blake2b(library.encode(), digest_size=8).hexdigest()}"


def error(code: str) -> dict[str, Any]:
    """The body of an error."""
    return {"error": {"code": code, "message": f"The message of {code}."}}


def grant(mail: str, *, role: str = "read", kind: str = "user") -> dict[str, Any]:
    """A permission of a user or group with a mail address."""
    identity = {"id": f"id-of-{mail}", "displayName": mail, "email": mail}
    return {"id": "aTowIy5m", "roles": [role], "grantedToV2": {kind: identity}}


def link(scope: str, *mails: str) -> dict[str, Any]:
    """A sharing link, for specific people if `scope` is `users`."""
    people = [{"siteUser": {"id": "7", "email": mail, "loginName": f"i:0#.f|membership|{mail}"}} for mail in mails]
    facet = {"scope": scope, "type": "view", "webUrl": "https://contoso.sharepoint.com/:t:/s/handbook/EY50"}
    return {"id": "8c2c9168", "roles": ["read"], "link": facet, "grantedToIdentitiesV2": people}


@contextmanager
def serve_site() -> Iterator[Site]:
    """Serve Graph and its token endpoint at `url`, and downloads at another port."""
    site = Site()
    servers = [_server(site.respond), _server(site.download)]
    site.url, site.downloads = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield site
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


def _server(respond: Callable[[str, str, Any, bytes], Answer]) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # headers and body are two writes

        def reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, answer = respond(self.command, self.path, self.headers, body)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers, "Content-Length": len(data)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = reply  # noqa: N815  the names of the base class

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    return server
