"""`/v1/documents`: what a key sees, and what it uploads, lists and deletes. A document's uri is its id."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, File, Form, Path, Query, Request, Response, UploadFile

from ragfm.core.errors import CollectionError
from ragfm.server.api_errors import ApiError, ErrorBody, not_found
from ragfm.server.api_models import Deleted, DocumentCard, DocumentList, DocumentText
from ragfm.server.service import Service, service_of
from ragfm.server.uploads import NoRoomError, number_of
from ragfm.store.collection_store import UPLOADS_SOURCE

if TYPE_CHECKING:
    from ragfm.collection import DocumentInfo
    from ragfm.server.api_keys import Key
    from ragfm.server.served_models import Model
    from ragfm.server.uploads import Upload

__all__ = ["router"]

router = APIRouter()
Named = Annotated[str | None, Query(alias="model", max_length=200, description="The collection; else the first one.")]
Uri = Annotated[str, Path(max_length=2000)]
_MB = 1_000_000
_NO_ROOM = (
    "The uploads of this key take {taken:.1f} of {most:g} MB, and this one would take {wanted:.1f} MB more: delete "
    "others first, or have a key made with more (`ragfm keys add --uploads-mb N`)."
)
_UPLOADED = f"source = '{UPLOADS_SOURCE}'"
_PATIENCE = 20.0  # seconds that a deletion may take until it is said to go on


@router.post("/v1/documents", status_code=201)
async def upload(
    request: Request,
    file: Annotated[UploadFile, File()],
    model: Annotated[str | None, Form(max_length=200)] = None,
    groups: Annotated[list[str] | None, Form(description="Who else may see it: groups of the key.")] = None,
) -> DocumentCard:
    """Keep a file, and have it indexed; when this answers, no crash can lose it.

    Only the key that uploads it sees it, unless it names groups.
    """
    service, key = service_of(request), request.state.key
    chosen = service.model(key, model)
    request.state.noted = {"model": chosen.collection, "bytes": file.size}
    shared = [group for group in groups or [] if group]
    if strange := set(shared) - set(key.groups):
        raise ApiError(400, f"The key has no group {min(strange)!r}.", code="invalid_request", param="groups")
    if not file.filename:
        raise ApiError(400, "The file has no name.", code="invalid_request", param="file")
    uploads = service.uploads[chosen.collection]
    most = key.uploads_mb * _MB
    keep = partial(uploads.store, file.file, file.filename, [key.own_group, *shared], most=most)
    try:
        stored = await service.served.run(keep)
    except NoRoomError as error:
        raise ApiError(413, _NO_ROOM.format(
            taken=error.taken / _MB, wanted=error.wanted / _MB, most=key.uploads_mb
        ), code="uploads_full", param="file") from error  # fmt: skip
    service.metrics.uploads.inc()
    service.indexers[chosen.collection].want()
    return _waiting(service, chosen, stored)


@router.get("/v1/documents")
async def documents(
    request: Request,
    model: Named = None,
    after: Annotated[str | None, Query(max_length=2000, description="Only those behind this uri.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    mine: Annotated[bool, Query(description="Only what the key has uploaded.")] = False,
) -> DocumentList:
    """The documents that the key may see, and its uploads that are not indexed yet."""
    service, key = service_of(request), request.state.key
    chosen = service.model(key, model)
    cards = await service.served.run(partial(_cards, service, chosen, key, after=after or "", limit=limit, mine=mine))
    more = cards[limit - 1].uri if len(cards) > limit else None
    return DocumentList(data=cards[:limit], next=more, groups=list(key.groups))


@router.get("/v1/documents/{uri:path}")
async def document(
    request: Request,
    uri: Uri,
    model: Named = None,
    start: Annotated[int, Query(ge=0, le=2**31, description="Where the text that is wanted begins.")] = 0,
    length: Annotated[int, Query(ge=0, le=1_000_000, description="How many characters of it, at most.")] = 200_000,
) -> DocumentText:
    """A document with its text, or how far an upload is."""
    service, key = service_of(request), request.state.key
    chosen = service.model(key, model)
    return await service.served.run(_card, service, chosen, key, uri, slice(start, start + length))


@router.delete("/v1/documents/{uri:path}", responses={
    202: {"model": Deleted, "description": "It soon will be so."},
    403: {"model": ErrorBody, "description": "The key sees it, but has not uploaded it."},
})  # fmt: skip
async def delete(request: Request, response: Response, uri: Uri, model: Named = None) -> Deleted:
    """Delete an upload of the key's own."""
    service, key = service_of(request), request.state.key
    chosen = service.model(key, model)
    stored = await service.served.run(_own_upload, service, chosen, key, uri)
    try:
        await service.served.run(service.uploads[chosen.collection].remove, stored)
    except FileNotFoundError as error:  # deleted just now, by another request
        raise not_found("document", uri) from error
    indexer = service.indexers[chosen.collection]
    try:
        await asyncio.wait_for(indexer.done(indexer.want()), _PATIENCE)
    except TimeoutError:
        response.status_code = 202
    return Deleted(uri=uri, deleted=response.status_code != 202)


# --- Inside ------------------------------------------------------------------------------------------------------


def _cards(service: Service, model: Model, key: Key, *, after: str, limit: int, mine: bool) -> list[DocumentCard]:
    """The first ones after a uri, in order, and one more where there are more."""
    own = {str(number_of(upload.uri)): upload for upload in service.uploads[model.collection].of(key.own_group)}
    if mine:  # no other key can be given this group
        infos = model.as_groups({key.own_group}).documents(_UPLOADED, after=after, limit=limit + 1)
    else:
        infos = model.handle(key).documents(after=after, limit=limit + 1)
    cards = [_indexed(info, number_of(info.uri) in own) for info in infos]
    indexed = {number_of(info.uri) for info in infos}
    end = infos[-1].uri if len(infos) > limit else None
    cards += [
        _waiting(service, model, upload)
        for number, upload in own.items()
        if number not in indexed and upload.uri > after and (end is None or upload.uri < end)
    ]
    return sorted(cards, key=lambda card: card.uri)[: limit + 1]


def _card(service: Service, model: Model, key: Key, uri: str, part: slice) -> DocumentText:
    """Raises ApiError where there is no document, or none for this key."""
    handle = model.handle(key)
    own = _mine(service, model, key, uri)
    try:
        card, text = _indexed(handle.info(uri), own is not None), handle.document(uri).text
        return DocumentText(**card.model_dump(), start=part.start, text=text[part])
    except CollectionError as error:
        if own is None or own.uri != uri:
            raise not_found("document", uri) from error
    inside = handle.documents(below=own.uri)
    if inside:
        return DocumentText(uri=uri, state="ready", yours=True, chunks=sum(info.chunks for info in inside))
    return DocumentText(**_waiting(service, model, own).model_dump())


def _own_upload(service: Service, model: Model, key: Key, uri: str) -> Upload:
    own = _mine(service, model, key, uri)
    if own is not None and own.uri == uri:
        return own
    try:
        model.handle(key).info(uri)
    except CollectionError as error:
        raise not_found("document", uri) from error
    raise ApiError(403, "Only what was uploaded with this key can be deleted.", code="not_yours", param="uri")


def _mine(service: Service, model: Model, key: Key, uri: str) -> Upload | None:
    found = service.uploads[model.collection].find(uri)
    return found if found and found.owner == key.own_group else None


def _indexed(info: DocumentInfo, yours: bool) -> DocumentCard:
    return DocumentCard(
        uri=info.uri, state="ready", yours=yours, source=info.source, media_type=info.media_type,
        characters=info.characters, chunks=info.chunks, metadata=dict(info.metadata),
    )  # fmt: skip


def _waiting(service: Service, model: Model, upload: Upload) -> DocumentCard:
    state, progress, error = service.indexers[model.collection].state(upload.uri)
    return DocumentCard(uri=upload.uri, state=state, yours=True, progress=progress, error=error)
