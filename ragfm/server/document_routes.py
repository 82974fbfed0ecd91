"""`/v1/documents`: list, read, upload and delete documents; `/v1/outline` and `/v1/find`. A URI is a document's id."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Path, Query, Request, Response, UploadFile
from fastapi.routing import APIRoute
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.types import Message

from ragfm.collection import DocumentInfo
from ragfm.core.errors import AccessDeniedError, CollectionError, CollectionNotFound, CollectionReadOnlyError
from ragfm.server.api_errors import ApiError, ErrorBody, not_found, refuse_unknown_parameters
from ragfm.server.api_keys import Key
from ragfm.server.api_models import (
    Deleted,
    DocumentCard,
    DocumentList,
    DocumentText,
    IndexingProgress,
    Outline,
    TextPlaces,
)
from ragfm.server.document_parts import find_text, outline, part_span, read_document
from ragfm.server.json_logging import log_event
from ragfm.server.request_guard import UPLOADS_PATH
from ragfm.server.served_models import Model
from ragfm.server.service import Service, groups_of_key, service_of
from ragfm.store.uploads import UPLOADS_SOURCE, Upload, UploadQuotaError, UploadsWaitingError, upload_id


class _UriConvertor(PathConvertor):
    """A URI in a path. Unlike Starlette's `path`, it can contain line breaks, as file names can."""

    regex = "(?s:.*)"


register_url_convertor("uri", _UriConvertor())
router = APIRouter(dependencies=[Depends(refuse_unknown_parameters)])
ModelName = Annotated[str | None, Query(alias="model", max_length=200, description="Collection. Default: the first.")]
Uri = Annotated[str, Path(max_length=2000)]
Start = Annotated[int, Query(ge=0, le=2**31, description="First character of the text to return or search.")]
CONTENT_HEADERS = {
    "cache-control": "private, no-cache",  # the browser asks again each time, so that access is checked
    "content-disposition": "attachment",
    "content-security-policy": "default-src 'none'; sandbox",
    "vary": "authorization",
}
"""Headers of what documents contain: a browser that is led to it stores it, and shows nothing."""
_MB = 1_000_000
_FORM_BYTES = 2**16  # of an upload's body besides the file
_FORM_ESCAPES = {"%22": '"', "%0D": "\r", "%0A": "\n"}  # of file names, by the HTML standard
_log = logging.getLogger(__name__)
_WAITING_RETRY_SECONDS = 2  # about the time of a slice of indexing
_FAILED_RETRY_SECONDS = 60
_DELETE_SECONDS = 20.0
"""Time that a deletion waits for the index before it answers 202."""
_DELETE_RESPONSES: dict[int | str, dict[str, Any]] = {
    202: {"model": Deleted, "description": "The file is deleted. The index will follow."},
    403: {"model": ErrorBody, "description": "The key sees the document but has not uploaded it."},
}


class _UploadRoute(APIRoute):
    """Waits for a slot and checks the key's quota before FastAPI reads the body, which takes space on the disk."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_in_slot(request: Request) -> Response:
            service, key = service_of(request), request.state.key
            stores = [service.uploads[name] for name in {model.collection for model in service.served.for_key(key)}]

            def used_bytes() -> int:
                """Size of the key's uploads where they take least: the collection is named in the body."""
                return min(
                    (sum(upload.bytes for upload in store.owned_by(key.own_group)) for store in stores), default=0
                )

            async with service.served.upload_queue.slot(key.name):
                used, read = await service.served.run(used_bytes), 0
                most = key.uploads_mb * _MB - used + _FORM_BYTES

                def check(size: int) -> None:
                    if size > most:
                        raise _quota_error(key, used, size)

                async def receive() -> Message:
                    nonlocal read
                    message = await request.receive()
                    read += len(message.get("body", b""))
                    check(read)
                    return message

                check(int(request.headers.get("content-length", 0)))
                return await handle(Request(request.scope, receive))

        return handle_in_slot


async def upload(
    request: Request,
    file: Annotated[UploadFile, File()],
    model: Annotated[str | None, Form(max_length=200)] = None,
    groups: Annotated[list[str] | None, Form(description="Groups of the key that may see it, too.")] = None,
) -> DocumentCard:
    """Store a file and index it. After the response, no crash can lose the file.

    Only the key sees its upload unless `groups` are given.
    """
    service, key = service_of(request), request.state.key
    target = service.model(key, model)
    request.state.log_fields = {"model": target.collection, "bytes": file.size}
    shared = [group for group in groups or [] if group]
    groups_of_key(key, shared, "groups")
    if len((await request.form()).getlist("file")) > 1:
        message = "The form has more than one `file`. Send a request for each file."
        raise ApiError(400, message, code="invalid_request", param="file")
    if not file.filename:
        raise ApiError(400, "The file has no name.", code="invalid_request", param="file")
    name = file.filename
    for code, character in _FORM_ESCAPES.items():
        name = name.replace(code, character)
    store, max_waiting = service.uploads[target.collection].store, service.limits.uploads_waiting
    limits = {"max_bytes": key.uploads_mb * _MB, "max_waiting": max_waiting}
    groups = [key.own_group, *shared]
    try:
        async with service.served.document_queue.slot(key.name):
            stored = await service.served.run_to_end(partial(store, file.file, name, groups, **limits))
    except UploadsWaitingError as error:
        message = f"{max_waiting} uploads of this key wait to be indexed, which is the limit. "
        why, seconds = service.index_supervisors[target.collection].reason, _WAITING_RETRY_SECONDS
        if why is not None:
            message, seconds = f"{message}Indexing fails and is retried: {why} ", _FAILED_RETRY_SECONDS
        message += f"Try again in {seconds} s."
        raise ApiError(429, message, code="uploads_waiting", retry_after=seconds) from error
    except (AccessDeniedError, CollectionNotFound, CollectionReadOnlyError) as error:
        log_event(_log, logging.ERROR, "uploads_unavailable", str(error))
        message = "This server cannot store uploads in the database of the collection."
        raise ApiError(503, message, code="uploads_unavailable") from error
    except UploadQuotaError as error:
        raise _quota_error(key, error.used, error.size) from error
    service.metrics.uploads.inc()
    request.state.log_fields["document"] = stored.uri
    service.index_supervisors[target.collection].request_run()
    return _pending_card(service, target, stored, None)


router.add_api_route(UPLOADS_PATH, upload, methods=["POST"], status_code=201, route_class_override=_UploadRoute)


@router.get("/v1/documents", response_model=DocumentList)
async def documents(
    request: Request,
    model: ModelName = None,
    after: Annotated[str | None, Query(max_length=2000, description="Only documents after this URI.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    mine: Annotated[bool, Query(description="Only the key's own uploads.")] = False,
) -> Response:
    """List the documents that the key may see, and its uploads that are not indexed yet."""
    service, key = service_of(request), request.state.key
    target, previous = service.model(key, model), after or ""

    def list_page() -> str:
        """The response in JSON. It is made here and not by the event loop, which all requests share."""
        own = {upload_id(upload.uri): upload for upload in service.uploads[target.collection].owned_by(key.own_group)}
        if mine:
            infos = _own_documents(target, key, after=previous, limit=limit + 1)
        else:
            infos = target.handle(key).documents(after=previous, limit=limit + 1)
        cards = [_indexed_card(info, yours=upload_id(info.uri) in own) for info in infos]
        indexed = {upload_id(info.uri) for info in infos}
        end = infos[-1].uri if len(infos) > limit else None
        pending = [
            upload
            for number, upload in own.items()
            if number not in indexed and upload.uri > previous and (end is None or upload.uri < end)
        ]
        progress = _progress(target, key, own.values()) if pending else None
        cards += [_pending_card(service, target, upload, progress) for upload in pending]
        target.handles.saw_newest(key)
        cards.sort(key=lambda card: card.uri)
        following = cards[limit - 1].uri if len(cards) > limit else None
        return DocumentList(data=cards[:limit], next=following, groups=list(key.groups)).model_dump_json()

    return Response(await service.served.compute(key, list_page), media_type="application/json")


@router.get("/v1/documents/{uri:uri}")
async def document(
    request: Request,
    response: Response,
    uri: Uri,
    model: ModelName = None,
    page: Annotated[int | None, Query(ge=1, le=100_000, description="Only the text of this page.")] = None,
    section: Annotated[
        str | None, Query(min_length=1, max_length=2000, description="Only the text below this heading.")
    ] = None,
    start: Start = 0,
    length: Annotated[int, Query(ge=0, le=1_000_000, description="Maximum number of characters.")] = 200_000,
) -> DocumentText:
    """A document with its text, or the state of an upload."""
    response.headers.update(CONTENT_HEADERS)
    service = service_of(request)

    def read_text(key: Key, target: Model) -> DocumentText:
        handle = target.handle(key)
        own = service.uploads[target.collection].find(uri, key.own_group)
        try:
            card, found = _indexed_card(handle.info(uri), yours=own is not None), handle.document(uri)
            target.handles.saw_newest(key)
            first, end = part_span(found, page, section)
            first = max(first, start)
            text = found.text[first : min(first + length, end)]
            return DocumentText(**card.model_dump(), start=first, text=text)
        except CollectionError as error:
            if own is None or own.uri != uri:
                raise not_found("document", uri) from error
        members = handle.documents(below=own.uri)
        target.handles.saw_newest(key)
        if members:  # an indexed archive
            chunks = sum(info.chunks for info in members)
            return DocumentText(uri=uri, name=uri, state="ready", yours=True, chunks=chunks)
        progress = _progress(target, key, service.uploads[target.collection].owned_by(key.own_group))
        return DocumentText(**_pending_card(service, target, own, progress).model_dump())

    return await service.read_files(request, model, read_text)


@router.get("/v1/outline/{uri:uri}")
async def document_outline(
    request: Request, response: Response, uri: Uri, model: ModelName = None, start: Start = 0
) -> Outline:
    """The headings of a document with the characters and pages of their sections, from `start` on."""
    response.headers.update(CONTENT_HEADERS)
    return await service_of(request).read_files(
        request, model, lambda key, target: outline(read_document(target, key, uri), start)
    )


@router.get("/v1/find/{uri:uri}")
async def find_in_document(
    request: Request,
    response: Response,
    uri: Uri,
    text: Annotated[str, Query(min_length=1, max_length=1000, description="Words, in any case.")],
    model: ModelName = None,
    start: Start = 0,
) -> TextPlaces:
    """The places where a text occurs in a document, from `start` on."""
    response.headers.update(CONTENT_HEADERS)
    return await service_of(request).read_files(
        request, model, lambda key, target: find_text(read_document(target, key, uri), text, start)
    )


@router.delete("/v1/documents/{uri:uri}", responses=_DELETE_RESPONSES)
async def delete(request: Request, response: Response, uri: Uri, model: ModelName = None) -> Deleted:
    """Delete one of the key's own uploads."""
    service, key = service_of(request), request.state.key
    target = service.model(key, model)
    request.state.log_fields = {"model": target.collection, "document": uri}

    def remove_upload() -> Upload:
        uploads = service.uploads[target.collection]
        own = uploads.find(uri, key.own_group)
        if own is None or own.uri != uri:
            try:
                target.handle(key).info(uri)
            except CollectionError as error:
                raise not_found("document", uri) from error
            raise ApiError(403, "Only uploads of this key can be deleted.", code="not_yours", param="uri")
        try:
            uploads.remove(own)
        except FileNotFoundError as error:  # deleted by another request
            raise not_found("document", uri) from error
        return own

    async with service.served.document_queue.slot(key.name):
        removed = await service.served.run_to_end(remove_upload)
    supervisor = service.index_supervisors[target.collection]
    supervisor.request_run()
    try:
        await asyncio.wait_for(supervisor.wait_until_settled(removed), _DELETE_SECONDS)
        await service.served.run(target.handles.saw_newest, key)
    except TimeoutError:
        response.status_code = 202
    return Deleted(uri=uri, deleted=response.status_code != 202)


def _quota_error(key: Key, used: int, size: int) -> ApiError:
    message = (
        f"The uploads of this key take {used / _MB:.1f} of {key.uploads_mb:g} MB, and this upload needs "
        f"{size / _MB:.1f} MB more. Delete other uploads, or ask for a key with a higher limit "
        "(`ragfm keys add --uploads-mb N`)."
    )
    return ApiError(413, message, code="uploads_full", param="file")


def _indexed_card(info: DocumentInfo, *, yours: bool) -> DocumentCard:
    return DocumentCard(**asdict(info), state="ready", yours=yours)


def _pending_card(service: Service, model: Model, upload: Upload, progress: IndexingProgress | None) -> DocumentCard:
    state, error = service.index_supervisors[model.collection].state(upload)
    shown = progress if state == "indexing" else None
    return DocumentCard(uri=upload.uri, name=upload.uri, state=state, yours=True, progress=shown, error=error)


def _own_documents(model: Model, key: Key, **page: Any) -> list[DocumentInfo]:
    """The documents of the key's own uploads: no other key can have its group."""
    return model.handles.as_groups({key.own_group}).documents(f"source = '{UPLOADS_SOURCE}'", **page)


def _progress(model: Model, key: Key, own: Iterable[Upload]) -> IndexingProgress:
    """The progress of the key's own uploads. What others upload is not the key's business."""
    infos, uploads = _own_documents(model, key), list(own)
    indexed = {upload_id(info.uri) for info in infos}
    done = sum(upload.error is not None or upload_id(upload.uri) in indexed for upload in uploads)
    return IndexingProgress(documents=done, total=len(uploads), chunks=sum(info.chunks for info in infos))
