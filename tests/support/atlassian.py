"""A site of Atlassian for tests: what the references of Confluence's and Jira's REST APIs document, over HTTP."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

USER, TOKEN = "ann@example.org", "c4nary-t0ken/of:ann"
_EXPANDABLE = ("version", "space", "container", "ancestors", "metadata", "restrictions", "body")
_REFUSED: tuple[int, Any] = 404, {"message": "No content found"}


@dataclass
class AtlassianSite:
    """What a site holds, and the requests that it got. `answer` may give status and headers instead of the site."""

    is_cloud: bool = True
    port: int = 0
    page_size: int = 100
    contents: dict[str, dict[str, Any]] = field(default_factory=dict)  # of Confluence, by id
    spaces: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # permissions by key
    issues: dict[str, dict[str, Any]] = field(default_factory=dict)  # of Jira, by key
    comments: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by key of the issue
    schemes: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # permissions by key of the project
    levels: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # holders by id of the security level
    files: dict[str, bytes] = field(default_factory=dict)  # by path
    redirects: dict[str, str] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    authorized: list[str | None] = field(default_factory=list)
    answer: Callable[[str], tuple[int, dict[str, str]] | None] = lambda path: None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def location(self) -> str:
        return f"http://{USER.replace('@', '%40')}:${{ATLASSIAN_TOKEN}}@127.0.0.1:{self.port}"

    def asked(self, pattern: str) -> list[str]:
        """The requests since the last call that match a pattern from the start."""
        with self.lock:
            found = [path for path in self.log if re.match(pattern, path)]
            self.log.clear()
        return found

    def page(self, number: int, text: str = "<p>The text of all.</p>", **more: Any) -> dict[str, Any]:
        """Add or replace something in Confluence, a page unless `type` says otherwise."""
        old = self.contents.get(str(number), {"version": {"number": 0}})
        self.contents[str(number)] = content = {
            "id": str(number),
            "type": "page",
            "title": f"Page {number}",
            "space": {"id": 7, "key": "HR", "name": "People"},
            "version": {
                "number": old["version"]["number"] + 1,
                "when": "2026-01-02T03:04:05.000Z",
                "by": {"displayName": "Ann"},
            },
            "container": {"id": 7, "key": "HR"},
            "ancestors": [],
            "metadata": {"labels": {"results": []}},
            "restrictions": restricted(),
            "body": {"storage": {"value": text, "representation": "storage"}},
            "extensions": {},
            "_links": {"webui": f"/spaces/HR/pages/{number}", "base": f"{self.url}/wiki"},
            **more,
        }
        return content

    def attachment(self, number: int, page: int, name: str, data: bytes) -> None:
        path = f"/download/attachments/{page}/{quote(name)}"
        self.files[f"/wiki{path}"] = data
        extensions = {"mediaType": "text/plain", "fileSize": len(data)}
        links = {"webui": f"/pages/{page}", "download": f"{path}?version=1"}
        self.page(
            number, type="attachment", title=name, container={"id": str(page)}, extensions=extensions, _links=links
        )

    def issue(self, key: str, updated: str = "2026-01-02T03:04:05.000+0000", **fields: Any) -> None:
        """Add or replace an issue."""
        self.comments.setdefault(key, [])
        self.issues[key] = {
            "summary": f"Issue {key}",
            "description": "The *text* of all.",
            "project": {"key": key.partition("-")[0], "name": "Demo"},
            "status": {"name": "Open"},
            "reporter": {"displayName": "Ann", "accountId": "5b10-ann"},
            "labels": ["red", "blue"],
            "created": "2026-01-01T00:00:00.000+0000",
            "security": None,
            "attachment": [],
            "updated": updated,
            **fields,
        }

    def respond(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        """Status and JSON of a request."""
        part = path.split("/")
        if path == "/wiki/rest/api/content/search":
            return self._search(query)
        if found := re.fullmatch(r"/wiki/rest/api/content/(\w+)(/restriction/byOperation/read)?", path):
            if found[1] not in self.contents:
                return _REFUSED
            content = self.contents[found[1]]
            return 200, content["restrictions"]["read"] if found[2] else _expanded(content, query)
        if self.is_cloud and re.fullmatch(r"/wiki/api/v2/spaces/7/permissions", path):
            rules = self.spaces["HR"]
            middle = "cursor" not in query and len(rules) > 1
            links = {"next": "/wiki/api/v2/spaces/7/permissions?cursor=x"} if middle else {}
            return 200, {"results": rules[:1] if middle else rules[1:] if "cursor" in query else rules, "_links": links}
        if not self.is_cloud and path == "/wiki/rest/api/space/HR/permissions":
            return 200, self.spaces["HR"]
        if path == "/wiki/rest/api/group/by-id":
            return 200, {"type": "group", "name": query["id"].removeprefix("id-of-"), "id": query["id"]}
        if path == "/wiki/rest/api/user" and not self.is_cloud:
            return 200, {"type": "known", "username": query["key"].removeprefix("key-of-"), "userKey": query["key"]}
        if path == "/rest/api/2/serverInfo":
            return 200, {"deploymentType": "Cloud" if self.is_cloud else "Server"}
        if path == ("/rest/api/2/search/jql" if self.is_cloud else "/rest/api/2/search"):
            return self._search_issues(query)
        if found := re.fullmatch(r"/rest/api/2/issue/([\w-]+)(/comment)?", path):
            if found[1] not in self.issues:
                return 404, {"errorMessages": ["Issue does not exist"]}
            return 200, self._comments(found[1], query) if found[2] else self._issue(found[1], query)
        if path.startswith("/rest/api/2/attachment/"):
            files = [file for issue in self.issues.values() for file in issue["attachment"]]
            return 200, next(file for file in files if file["id"] == part[-1])
        if path.endswith("/permissionscheme") and part[5] in self.schemes:
            return 200, {"id": 10000, "permissions": self.schemes[part[5]]}
        if path.endswith("/role/10002"):
            group = {"type": "atlassian-group-role-actor", "name": "developers", "actorGroup": {"name": "developers"}}
            user = {"type": "atlassian-user-role-actor", "name": "eve", "actorUser": {"accountId": "5b10-eve"}}
            return 200, {"id": 10002, "actors": [group, user]}
        if path == "/rest/api/2/issuesecurityschemes/level/member" and self.is_cloud:
            found_levels = [{"id": str(n), "holder": it} for n, it in enumerate(self.levels[query["levelId"]])]
            return 200, {"startAt": 0, "total": len(found_levels), "isLast": True, "values": found_levels}
        return _REFUSED

    def _search(self, query: dict[str, str]) -> tuple[int, Any]:
        if found_id := re.fullmatch(r'id = "(\w+)"', query["cql"]):
            return 200, {"results": [_expanded(self.contents[found_id[1]], query)]}
        types = re.search(r"type in \((.*?)\)", query["cql"])
        spaces = re.search(r'space in \("(.*?)"\)', query["cql"])
        found = [
            content
            for content in self.contents.values()
            if types and content["type"] in types[1] and (not spaces or content["space"]["key"] == spaces[1])
        ]
        start = int(query.get("cursor", "at0")[2:]) if self.is_cloud else int(query.get("start", 0))
        size = min(int(query["limit"]), self.page_size)
        results = [_expanded(content, query) for content in found[start : start + size]]
        links = {"base": f"{self.url}/wiki", "context": "/wiki"}
        if start + size < len(found):
            place = f"cursor=at{start + size}" if self.is_cloud else f"start={start + size}"
            kept = "&".join(f"{key}={quote(query[key], safe='')}" for key in ("cql", "expand", "limit"))
            links["next"] = f"/rest/api/content/search?{kept}&{place}"
        return 200, {"results": results, "start": start, "limit": size, "size": len(results), "_links": links}

    def _search_issues(self, query: dict[str, str]) -> tuple[int, Any]:
        if "oops" in query["jql"]:
            return 400, {"errorMessages": ["Field 'oops' does not exist"]}
        keys = [key for key in self.issues if key.partition("-")[0] in query["jql"] or "project in" not in query["jql"]]
        start = int(query.get("nextPageToken", "at0")[2:]) if self.is_cloud else int(query.get("startAt", 0))
        end = start + min(int(query["maxResults"]), self.page_size)
        wanted = query["fields"].split(",")
        issues = [{"key": key, "fields": {name: self.issues[key][name] for name in wanted}} for key in keys[start:end]]
        if not self.is_cloud:
            return 200, {"startAt": start, "maxResults": end - start, "total": len(keys), "issues": issues}
        more = {"nextPageToken": f"at{end}"} if end < len(keys) else {}
        return 200, {"issues": issues, "isLast": not more, **more}

    def _comments(self, key: str, query: dict[str, str]) -> Any:
        start = int(query.get("startAt", 0))
        found = self.comments[key][start : start + self.page_size]
        return {"startAt": start, "maxResults": self.page_size, "total": len(self.comments[key]), "comments": found}

    def _issue(self, key: str, query: dict[str, str]) -> Any:
        fields = {name: self.issues[key].get(name) for name in query["fields"].split(",")}
        rendered = {"description": "<p>The <b>text</b> of all.</p>"}
        names = {"status": "Status", "customfield_7": "Severity"}
        return {
            "key": key,
            "fields": fields | {"updated": self.issues[key]["updated"]},
            "renderedFields": rendered,
            "names": names,
        }


def restricted(*who: str) -> dict[str, Any]:
    """The restrictions of reading, by `user:ID` and `group:NAME`."""
    users = [{"type": "known", "accountId": name[5:]} for name in who if name.startswith("user:")]
    groups = [
        {"type": "group", "name": name[6:], "id": f"id-of-{name[6:]}"} for name in who if name.startswith("group:")
    ]
    return {"read": {"operation": "read", "restrictions": {"user": {"results": users}, "group": {"results": groups}}}}


def space_reader(kind: str, identity: str) -> dict[str, Any]:
    """A permission to read a space, as the cloud lists it."""
    return {"principal": {"type": kind, "id": identity}, "operation": {"key": "read", "targetType": "space"}}


def _expanded(content: dict[str, Any], query: dict[str, str]) -> dict[str, Any]:
    """Without what was not asked for."""
    asked = {name.partition(".")[0] for name in query.get("expand", "").split(",")}
    return {key: value for key, value in content.items() if key not in _EXPANDABLE or key in asked}


@contextmanager
def serve_atlassian(site: AtlassianSite) -> Iterator[AtlassianSite]:
    """Serve a site to one user: Confluence below `/wiki`, Jira at the root."""
    basic = f"Basic {base64.b64encode(f'{USER}:{TOKEN}'.encode()).decode()}"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # headers and body are two writes

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            with site.lock:
                site.log.append(self.path)
                site.authorized.append(self.headers.get("Authorization"))
            instead = site.answer(self.path)
            status, headers, data = 200, {"Content-Type": "application/json"}, b""
            if instead is not None:
                status, headers = instead
            elif parts.path in site.redirects:
                status, headers = 302, {"Location": site.redirects[parts.path]}
            elif self.headers.get("Authorization") not in (basic, f"Bearer {TOKEN}"):
                status = 401
            elif parts.path in site.files:
                data, headers = site.files[parts.path], {"Content-Type": "application/octet-stream"}
            else:
                query = {key: values[0] for key, values in parse_qs(parts.query).items()}
                status, answer = site.respond(parts.path, query)
                data = json.dumps(answer).encode()
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
