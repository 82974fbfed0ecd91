"""A server with the part of the Hugging Face hub's API that a download uses, for one repository."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c" * 40


class LocalHub:
    """Serves `files` of the repository `me/tiny`, and records the ranges that are requested.

    `etags` replaces the checksums that it states, and `cut` ends one transfer after that number of bytes.
    """

    def __init__(self, files: dict[str, bytes], licence: str | None = "apache-2.0") -> None:
        self.files, self.licence = files, licence
        self.etags: dict[str, str] = {}
        self.ranges: list[str | None] = []
        self.cut: int | None = None
        self.address = ""

    @contextmanager
    def running(self) -> Iterator[LocalHub]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                if self.path.startswith("/api/models/me/tiny/tree/"):
                    tree = [
                        {"type": "file", "path": name, "size": len(data), "oid": sha256(data).hexdigest()}
                        for name, data in hub.files.items()
                    ]
                    self.respond(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
                    return
                if self.path.startswith("/api/models/me/tiny"):
                    card = {"license": hub.licence} if hub.licence else {}
                    data = json.dumps({"id": "me/tiny", "sha": COMMIT, "cardData": card, "siblings": []}).encode()
                    self.respond(200, data, {"Content-Type": "application/json"})
                    return
                name = self.path.removeprefix("/me/tiny/resolve/").partition("/")[2]
                if not self.path.startswith("/me/tiny/resolve/") or name not in hub.files:
                    self.respond(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                    return
                data = hub.files[name]
                etag = hub.etags.get(name, sha256(data).hexdigest())
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
                wanted = self.headers.get("Range")
                if self.command == "GET":
                    hub.ranges.append(wanted)
                if wanted:
                    start = int(wanted.removeprefix("bytes=").partition("-")[0])
                    headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                    self.respond(206, data[start:], headers)
                else:
                    self.respond(200, data, headers)

            def respond(self, status: int, data: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    if hub.cut is not None:
                        data, hub.cut = data[: hub.cut], None
                        self.close_connection = True
                    self.wfile.write(data)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        self.address = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
