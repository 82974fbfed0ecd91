"""Check of a source: whether it can be listed and read, and whether its identities are mapped. Nothing is ingested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from ragfm.core.errors import CollectionError, RagfmError
from ragfm.core.text import counted, without_secrets
from ragfm.ingestion.ingest_report import document_uri
from ragfm.ingestion.preparation import fetch
from ragfm.ingestion.source_request import SourceEntry, known_sources, resolve_source, source_name, stored_location
from ragfm.ingestion.source_schedule import failed_sources
from ragfm.store.uploads import UPLOADS_SOURCE

if TYPE_CHECKING:
    from ragfm.store.collection_store import Store

MAX_LISTED = 1_000
"""Maximum number of entries that a check lists; some connectors read a whole folder before the first one."""
_MAX_FETCHED = 10


@dataclass(frozen=True, slots=True)
class SourceCheck:
    """What a check found. `error` and `hint` are empty if the source can be ingested.

    `listed` counts the entries that are not skipped, of up to `MAX_LISTED`; `fetched` is the uri of a document that was
    fetched, of `bytes` bytes; `unmapped` are the identities without a group in these entries.
    """

    name: str
    listed: int = 0
    fetched: str | None = None
    bytes: int = 0
    unmapped: Sequence[str] = ()
    error: str = ""
    hint: str = ""


def find_sources(store: Store, name: str | None) -> list[SourceEntry]:
    """The known source of that name or location; all of them, without the uploads of a server, for None.

    Raises CollectionError if there is none.
    """
    found = [entry for entry in known_sources(store) if source_name(store, entry) != UPLOADS_SOURCE]
    if name is not None:
        wanted = name.rstrip("/")
        found = [
            e for e in found if wanted in (source_name(store, e).rstrip("/"), stored_location(store, e).rstrip("/"))
        ]
        if not found:
            hint = "`ragfm sources` lists them; others are in ragfm.toml."
            raise CollectionError(f"There is no source {without_secrets(name)!r}.", hint)
    return found


def check_source(store: Store, entry: SourceEntry) -> SourceCheck:
    """List a source, up to a limit, and fetch one of its documents."""
    name, blob, error, hint = source_name(store, entry), None, "", ""
    try:
        connector = resolve_source(store, entry).connector
        refs = list(islice(connector.refs(), MAX_LISTED))
        for ref in [ref for ref in refs if ref.error is None and ref.skip is None][:_MAX_FETCHED]:
            blob, outcome = fetch(connector, ref, None)
            if outcome.kind != "ignored":  # too large, for example; the next one may be readable
                error = outcome.reason
                break
    except (RagfmError, OSError) as failure:
        message = failure.message if isinstance(failure, RagfmError) else str(failure)
        return SourceCheck(name, error=message, hint=getattr(failure, "hint", ""))
    if not error and (problems := [ref for ref in refs if ref.error is not None]):
        error = f"{counted(item=len(problems))} cannot be listed, such as {problems[0].path!r}: {problems[0].error}"
    if not error and (failed := [failure.error for failure in failed_sources(store) if failure.uri == name]):
        error, hint = f"The last sync failed: {failed[0]}", "It can be read now: run `ragfm ingest`."
    identities = getattr(connector, "identities", None)
    unmapped = sorted(identities.unmapped) if identities is not None else []
    fetched, size = (document_uri(name, ref.path), len(blob.data)) if blob is not None else (None, 0)
    return SourceCheck(name, sum(ref.skip is None for ref in refs), fetched, size, unmapped, error, hint)
