"""`ragfm status`, `sources`, `documents` and `remove`."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click

from ragfm.cli.options import FAILED, NON_EMPTY, OK, collection_options, filter_option
from ragfm.cli.output import megabytes, one_line, print_json, print_table, print_text, unmapped_sentence
from ragfm.collection import Collection
from ragfm.core.errors import CollectionError
from ragfm.core.text import counted, without_secrets


@click.command()
@collection_options
def status(collection: str, as_json: bool) -> None:
    """Show the size of the collection, its models and indexes, and failed documents."""
    from ragfm.store.display_names import DisplayNames

    with Collection.open(collection) as store:
        status = store.status()
        ask = store.settings.ask
        promises = {"guarantee": ask.guarantee, "answered_guarantee": ask.answered_guarantee}
        guarantees = {
            name: promise.guarantee(store.answer_log.why_lapsed(promise)) if promise else None
            for name, promise in promises.items()
        }
    if as_json:
        print_json({**asdict(status), **{name: one and asdict(one) for name, one in guarantees.items()}})
        return
    print_text(f"{counted(document=status.documents, chunk=status.chunks)}, generation {status.generation}")
    rows = [("embedder", f"{status.embedder['model']}, {status.embedder['dim']} dimensions")]
    vectors, keywords = status.indexes[:2]

    if vectors["saved"]:
        kind = f"{vectors['kind']}, {counted(vector=vectors['vectors'])}, {vectors['state']}"
        rows.append(("index", f"{kind}, of generation {vectors['generation']}"))
    else:
        rows.append(("index", f"none saved, {counted(vector=vectors['pending'])} in memory only"))
    following = "" if vectors["kind"] in (vectors["wanted"], None) else f"the next one is {vectors['wanted']}: "
    rows.append(("", f"{following}{vectors['why']}"))
    dead = vectors["dead"] / max(1, vectors["dead"] + status.chunks)
    rows.append(("space", f"{dead:.0%} of the chunks are dead; generations from {vectors['floor']} on can be read"))

    if status.images:
        rows.append(("images", f"{counted(picture=status.images)}, {megabytes(status.image_bytes)}"))
    rows.append(("keywords", f"{keywords['kind']}, language {keywords['language'] or 'not detected yet'}"))
    weight = "" if keywords["weight"] is None else f"weight of the cosine {keywords['weight']:g} (search.weight): "
    rows.append(("", f"hybrid search: {weight}{keywords['why']}"))

    for name, guarantee in guarantees.items():
        if guarantee is None:
            continue
        days = (datetime.now(UTC) - datetime.fromisoformat(guarantee.date)).days
        rows.append(("promise", f"{guarantee.sentence} ({counted(day=days)} ago)"))
        if guarantee.lapsed:
            how = "`ragfm log review` and `ragfm tune --verified`" if name == "guarantee" else "`ragfm tune --answered`"
            rows.append(("", f"lapsed: {guarantee.lapsed}; {how} to renew it"))

    rows += [
        ("source", f"{it['name']}  {counted(document=it['documents'])} by {it['connector']}") for it in status.sources
    ]
    for it in status.sources:
        if it["unmapped"]:
            rows.append(("unmapped", f"{it['name']}  {unmapped_sentence(it['unmapped'])}"))
    formats: dict[str, list[str]] = {}
    for entry in status.parsers:
        formats.setdefault(", then ".join(entry["parsers"]) or "none", []).append(entry["format"])
    rows += [("parser", f"{names}: {', '.join(sorted(read))}") for names, read in formats.items()]
    if status.older:
        older = f"{counted(document=status.older)} of an older version or another parser"
        rows.append(("older", f"{older}; `ragfm ingest` parses and embeds them again"))
    names = DisplayNames(source["name"] for source in status.sources)
    rows += [("failed", f"{names.name_of(failure.uri)}  {failure.stage}: {failure.error}") for failure in status.failed]
    print_table(["", ""], rows)


@click.command()
@click.argument("source", required=False, type=NON_EMPTY)
@click.option("--check", is_flag=True, help="List each source and fetch one document, without ingesting anything.")
@collection_options
def sources(collection: str, as_json: bool, source: str | None, check: bool) -> int:
    """List the sources, or SOURCE: their location, options and failed documents.

    With --check, test addresses, credentials, permissions and the mapping of identities, and the sources of ragfm.toml
    that have not been ingested, too. The exit code is 1 if something fails.
    """
    from ragfm.ingestion.source_schedule import failed_sources

    if check:
        return _check_sources(collection, as_json, source)
    with Collection.open(collection) as store:
        status = store.status()
        failed = {failure.uri for failure in failed_sources(store.store)}
    failures: dict[str, list[dict[str, Any]]] = {one["name"]: [] for one in status.sources}
    by_length = sorted(failures, key=lambda name: (name == ".", -len(name)))  # "." has all that belong to no other one
    for failure in status.failed:
        if failure.uri in failed - failures.keys():  # a source of ragfm.toml that was never synced
            continue
        for name in by_length:
            if name == "." or failure.uri == name or failure.uri.startswith(f"{name.rstrip('/')}/"):
                failures[name].append(asdict(failure))
                break
    listed = [{**one, "failures": failures[one["name"]]} for one in status.sources]
    if source is not None:
        listed = [one for one in listed if one["name"].rstrip("/") == source.rstrip("/")]
        if not listed:
            raise CollectionError(f"There is no source {without_secrets(source)!r}.", "`ragfm sources` lists them.")
    if as_json:
        print_json({"sources": listed})
        return OK
    for one in listed:
        print_text((one["name"], "bold"), f"  {counted(document=one['documents'])} by {one['connector']}")
        for name in ("location", "connector", "options", "include", "exclude", "tags", "allow"):
            value = one.get(name)
            if isinstance(value, dict):
                value = [f"{key}={item}" for key, item in value.items()]
            if value:
                print_text(f"    {name:<9} {value if isinstance(value, str) else ', '.join(value)}")
        if one["unmapped"]:
            print_text(f"    unmapped  {unmapped_sentence(one['unmapped'])}")
        for failure in one["failures"]:
            print_text(f"    failed    {failure['uri']}  {failure['stage']}: {failure['error']}")
    if not listed:
        print_text("No sources. `ragfm ingest FOLDER` adds one.")
    return OK


def _check_sources(collection: str, as_json: bool, name: str | None) -> int:
    from ragfm.ingestion.source_check import MAX_LISTED, check_source, find_sources

    with Collection.open(collection) as store:
        checks = [check_source(store.store, entry) for entry in find_sources(store.store, name)]
    ok = not any(check.error for check in checks)
    if as_json:
        print_json({"ok": ok, "sources": [asdict(check) for check in checks]})
        return OK if ok else FAILED
    for check in checks:
        if check.error:
            found = f"{check.error} {check.hint}".rstrip()
        else:
            found = f"{'at least ' * (check.listed == MAX_LISTED)}{counted(item=check.listed)} listed"
            found += f", {check.fetched} fetched ({check.bytes:,} bytes)" if check.fetched else ", no document to fetch"
        if check.unmapped:
            found += f"; {len(check.unmapped)} not mapped: {unmapped_sentence(check.unmapped)}"
        print_text(f"{'failed' if check.error else 'ok    '}  {one_line(check.name)}  {one_line(found)}")
    if not checks:
        print_text("No sources. `ragfm ingest FOLDER` adds one.")
    return OK if ok else FAILED


@click.command()
@click.argument("uri", required=False, metavar="[DOCUMENT]")
@filter_option
@collection_options
def documents(collection: str, as_json: bool, uri: str | None, filter: str | None) -> None:
    """List the documents, or print the text of DOCUMENT, a name or URI.

    A name is a short form of a URI: the path that starts at the ingested folder.
    """
    with Collection.open(collection) as store:
        if uri is not None:
            document = store.document(uri)
            if as_json:
                found = {key: value for key, value in asdict(document).items() if key not in ("marks", "images")}
                print_json({**found, "name": store.info(uri).name})
            else:
                print_text(document.text)
            return
        infos = store.documents(filter)
    if as_json:
        print_json({"documents": [asdict(info) for info in infos]})
    else:
        rows = [(info.name, info.media_type, f"{info.characters}", f"{info.chunks}") for info in infos]
        print_table(["document", "type", ">characters", ">chunks"], rows)


@click.command()
@click.argument("name", metavar="SOURCE|DOCUMENT", type=NON_EMPTY)
@collection_options
def remove(collection: str, as_json: bool, name: str) -> None:
    """Remove a source with all its documents, or one document, by name or URI."""
    with Collection.open(collection) as store:
        report = store.remove(name)
    if as_json:
        print_json(asdict(report))
    elif report.uri is not None:
        print_text(f"Removed {report.uri}, {counted(chunk=report.chunks)}.")
        print_text(
            f"The next ingest of {report.source} adds it again, unless it is deleted there or excluded with --exclude."
        )
    else:
        print_text(f"Removed {report.source}: {counted(document=report.documents, chunk=report.chunks)}.")
        if report.listed:
            print_text("The source is listed in ragfm.toml: delete it there, or the next `ragfm ingest` adds it again.")
