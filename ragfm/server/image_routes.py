"""`/v1/pages`, `/v1/boxes`, `/v1/images`: pages of documents as images, places of quotes on them, and figures."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Query, Request, Response

from ragfm.core.errors import CollectionError, ConnectorError, ParseError
from ragfm.server.api_errors import ApiError, ErrorBody, not_found
from ragfm.server.api_keys import Key
from ragfm.server.api_models import PageBoxes
from ragfm.server.document_routes import CONTENT_HEADERS, ModelName, Uri
from ragfm.server.json_logging import log_event
from ragfm.server.served_models import Model
from ragfm.server.service import service_of

router = APIRouter()
T = TypeVar("T")
PageNumber = Annotated[int, Query(ge=1, le=100_000, description="The page, from 1.")]
Offset = Annotated[int, Query(ge=0, le=2**31)]
_UNAVAILABLE: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorBody, "description": "The file cannot be read, or is not the version that was indexed."}
}
_IMAGE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {}}, "description": "The image."},
    304: {"description": "The client has the image."},
}
_FIGURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {f"image/{kind}": {} for kind in ("png", "jpeg", "webp")}, "description": "The image."}
}
_log = logging.getLogger(__name__)


@router.get("/v1/pages/{uri:uri}", response_class=Response, responses={**_IMAGE, **_UNAVAILABLE})
async def page_image(
    request: Request,
    uri: Uri,
    page: PageNumber,
    model: ModelName = None,
    width: Annotated[int, Query(ge=100, le=2400, description="Pixels.")] = 1200,
) -> Response:
    """A page of a PDF document or image, as PNG."""
    known_tags = request.headers.get("if-none-match", "")

    def render(key: Key, target: Model) -> Response:
        handle = target.handle(key)
        info = _found(partial(handle.info, uri), not_found("document", uri))
        tag = f'"{blake2b(repr((info.digest, page, width)).encode(), digest_size=16).hexdigest()}"'
        headers = {**CONTENT_HEADERS, "etag": tag}
        if tag in known_tags:
            return Response(None, 304, headers)
        image = _found(partial(handle.page_image, info.uri, page, width=width), not_found("page", str(page)))
        return Response(image, media_type="image/png", headers=headers)

    return await service_of(request).read_files(request, model, render)


@router.get("/v1/boxes/{uri:uri}", responses=_UNAVAILABLE)
async def page_boxes(
    request: Request, uri: Uri, page: PageNumber, start: Offset, end: Offset, model: ModelName = None
) -> PageBoxes:
    """Where the characters from `start` to `end` of a document's text stand on a page."""

    def find(key: Key, target: Model) -> PageBoxes:
        handle = target.handle(key)
        _found(partial(handle.info, uri), not_found("document", uri))
        boxes = _found(partial(handle.page_boxes, uri, page, start, end), not_found("page", str(page)))
        return PageBoxes(page=page, boxes=boxes)

    return await service_of(request).read_files(request, model, find)


@router.get("/v1/images/{image}", response_class=Response, responses=_FIGURE)
async def figure(
    request: Request, image: Annotated[str, Path(pattern="^[0-9a-f]{32}$")], model: ModelName = None
) -> Response:
    """The picture of a figure, by the hash that a hit or citation has as `image`."""

    def read(key: Key, target: Model) -> Response:
        found = _found(partial(target.handle(key).image, image), not_found("image", image))
        return Response(found.data, media_type=found.media_type, headers=CONTENT_HEADERS)

    return await service_of(request).read_files(request, model, read)


def _found(read: Callable[[], T], missing: ApiError) -> T:
    """Read from a collection. Raises `missing` for what it does not have, 409 for a file that cannot be shown."""
    try:
        return read()
    except CollectionError as error:
        if type(error) is CollectionError:  # not one that the collection itself has
            raise missing from error
        raise
    except (ConnectorError, ParseError) as error:
        log_event(_log, logging.WARNING, "page_unavailable", str(error))  # it may name paths of this machine
        message = "The page cannot be shown: its file cannot be read, or is not the version that was indexed."
        raise ApiError(409, message, code="page_unavailable", param="page") from error
