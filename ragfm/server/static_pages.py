"""The page at `/`: static files, which everybody may have. What they show they ask the API for, with the user's key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request, Response

__all__ = ["PAGE", "add_page"]

_FOLDER = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Nothing comes from elsewhere, nothing is sent elsewhere, and no text can become HTML or a script."""
_HEADERS = {
    "cache-control": "no-cache",  # kept, and asked for by its ETag: another version of the server has another page
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    headers: Mapping[str, str]


def _read(path: Path) -> _File:
    body = path.read_bytes()
    media_type = f"{_TYPES[path.suffix]}; charset=utf-8"
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return _File(body, {**_HEADERS, "content-type": media_type, "etag": etag})


PAGE: Mapping[str, _File] = {
    "/" if path.name == "index.html" else f"/page/{path.name}": _read(path)
    for path in sorted(_FOLDER.iterdir())
    if path.suffix in _TYPES
}
"""By path. They are few and small, and don't change while the server runs."""


def add_page(app: FastAPI) -> None:
    """Serve the files; any other path below `/page/` needs a key, and then isn't there."""
    for path in PAGE:
        app.add_api_route(path, _serve, methods=["GET", "HEAD"], include_in_schema=False)


async def _serve(request: Request) -> Response:
    file = PAGE[request.scope["route"].path]
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if file.headers["etag"] in known:
        return Response(None, 304, {name: value for name, value in file.headers.items() if name != "content-type"})
    return Response(file.body, headers=dict(file.headers))
