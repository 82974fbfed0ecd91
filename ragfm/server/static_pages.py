"""The pages `/`, `/insights` and `/review`: static files that need no key. Their scripts call the API with a key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from fastapi import FastAPI, Request, Response

PAGE_HEADER = "x-ragfm-page"
"""The header of the page's requests, without which its cookie counts for nothing: other sites cannot send it."""
USER_HEADER = "x-ragfm-user"
"""The header of the responses to them, if users can sign in: who has, or nothing."""
_FOLDER = Path(__file__).parent / "page"
_ADDRESSES = {"index.html": "/", "insights.html": "/insights", "review.html": "/review"}  # others are below /page/
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# The browser loads from and connects to this server only, and refuses to turn a string into HTML or a script.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "cache-control": "no-cache",  # revalidated by ETag, so that a new version of the server serves its own page
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def _load_page() -> dict[str, tuple[bytes, dict[str, str]]]:
    files = {}
    for path in sorted(_FOLDER.rglob("*")):
        if path.suffix not in _MEDIA_TYPES:
            continue
        name = path.relative_to(_FOLDER).as_posix()
        body = path.read_bytes()
        headers = {
            **_HEADERS,
            "content-type": f"{_MEDIA_TYPES[path.suffix]}; charset=utf-8",
            "etag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        }
        files[_ADDRESSES.get(name, f"/page/{name}")] = body, headers
    return files


PAGE: Mapping[str, tuple[bytes, Mapping[str, str]]] = _load_page()
"""The files and their headers by URL path. They are small and do not change while the server runs."""


def add_page(app: FastAPI) -> None:
    """Add a route for each file. Any other path below `/page/` needs a key and gets 404."""
    for path in PAGE:
        app.add_api_route(path, _serve_file, methods=["GET", "HEAD"], include_in_schema=False)


async def _serve_file(request: Request) -> Response:
    body, headers = PAGE[request.scope["route"].path]
    known_tags = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if headers["etag"] in known_tags:
        return Response(None, 304, {name: value for name, value in headers.items() if name != "content-type"})
    return Response(body, headers=dict(headers))
