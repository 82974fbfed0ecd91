"""A WebDAV server for tests: wsgidav over HTTP, with ACLs and answers of a busy server on request."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from unittest.mock import patch
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from wsgidav.dav_provider import _DAVResource
from wsgidav.wsgidav_app import WsgiDAVApp
from wsgidav.xml_tools import string_to_xml

USER, PASSWORD, TOKEN = "ann", "c4nary/pass:w0rd@x", "c4nary-t0ken-of-ann"


@dataclass
class Share:
    """A folder that is served. `log` are the requests; `answer` may give status and headers instead of the server."""

    folder: Path
    port: int = 0
    log: list[tuple[str, str]] = field(default_factory=list)
    acls: dict[str, str] = field(default_factory=dict)  # XML by path; empty for a server without ACLs
    answer: Callable[[str, str], tuple[str, dict[str, str]] | None] = lambda method, path: None

    @property
    def location(self) -> str:
        return f"http://{USER}:${{DAV_PASSWORD}}@127.0.0.1:{self.port}/docs"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/docs"

    def asked(self, method: str) -> list[str]:
        """The paths that were requested by a method since the last call; the log is emptied."""
        paths = [path for verb, path in self.log if verb == method]
        self.log.clear()
        return paths

    def allow(self, path: str, *rules: str) -> None:
        """Set the ACL of a path: `+who` grants reading and `-who` refuses it."""
        aces = []
        for rule in rules:
            who = f"<D:{rule[1:]}/>" if rule[1:] in ("all", "authenticated") else f"<D:href>{rule[1:]}</D:href>"
            verb = "grant" if rule[0] == "+" else "deny"
            right = f"<D:{verb}><D:privilege><D:read/></D:privilege></D:{verb}>"
            aces.append(f"<D:ace><D:principal>{who}</D:principal>{right}</D:ace>")
        self.acls[path] = f'<D:acl xmlns:D="DAV:">{"".join(aces)}</D:acl>'


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *words: Any) -> None:
        pass


@contextmanager
def serve_share(folder: Path) -> Iterator[Share]:
    """Serve a folder at `/docs`, to one user."""
    share = Share(folder)
    app = WsgiDAVApp(
        {
            "provider_mapping": {"/docs": str(folder)},
            "simple_dc": {"user_mapping": {"*": {USER: {"password": PASSWORD}}}},
            "http_authenticator": {"accept_basic": True, "accept_digest": False, "default_to_digest": False},
            "logging": {"enable": False},
            "verbose": 0,
        }
    )

    def counted(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        share.log.append((method, path.removeprefix("/docs").strip("/")))
        instead = share.answer(method, share.log[-1][1])
        if environ.get("HTTP_AUTHORIZATION") == f"Bearer {TOKEN}":
            environ["HTTP_AUTHORIZATION"] = f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"
        if instead is not None:
            start_response(instead[0], list(instead[1].items()))
            return [b""]
        return app(environ, start_response)

    value = _DAVResource.get_property_value

    def get_property_value(self: _DAVResource, name: str) -> Any:
        acl = share.acls.get(self.path.strip("/")) if name == "{DAV:}acl" else None
        return string_to_xml(acl) if acl is not None else value(self, name)

    with (
        make_server("127.0.0.1", 0, counted, server_class=_Server, handler_class=_Quiet) as server,
        patch.object(_DAVResource, "get_property_value", get_property_value),
    ):
        share.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield share
        server.shutdown()
        thread.join()
