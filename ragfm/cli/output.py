"""How the command line shows results: as JSON, and for people."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ragfm.core.types import Answer, Hit, Usage
    from ragfm.generation.structured_output import Extraction
    from ragfm.ingestion.sync import SyncReport
    from ragfm.maintenance.salvage import SalvageReport
    from ragfm.maintenance.verification import VerifyReport


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
MOST_SKIPPED = 20  # are listed one by one


def printable(text: str) -> str:
    """Text without control characters: a document must not be able to steer the terminal that shows it."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    click.echo(json.dumps(value, ensure_ascii=False))


def hit_json(hit: Hit) -> dict[str, Any]:
    """A hit as the command line's contract has it."""
    keys = ("uri", "page", "place", "start", "end", "headings", "text", "score", "scores", "chunk_id")
    return {key: getattr(hit, key) for key in keys}


def answer_json(answer: Answer) -> dict[str, Any]:
    """An answer as the command line's contract has it."""
    value = asdict(answer)
    value["answer"] = value.pop("text")
    value["hits"] = [{**hit_json(hit), "n": hit.n} for hit in answer.hits]
    order = "question query answer abstained confidence said citations hits dropped usage seconds unsupported log_id"
    thoughts = {"reasoning": answer.reasoning} if answer.reasoning else {}
    return {key: value[key] for key in order.split()} | {"usage": _usage_json(answer.usage)} | thoughts


def extraction_json(extraction: Extraction[Any]) -> dict[str, Any]:
    """A structured answer as the command line's contract has it."""
    value = asdict(replace(extraction, value=None))
    value["value"] = value.pop("data")
    value["hits"] = [{**hit_json(hit), "n": hit.n} for hit in extraction.hits]
    order = "question query value fields hits dropped usage seconds log_id"
    return {key: value[key] for key in order.split()} | {"usage": _usage_json(extraction.usage)}


def _usage_json(usage: Usage) -> dict[str, Any]:
    """The tokens, and what they cost where that is known."""
    return {key: value for key, value in asdict(usage).items() if value is not None}


def print_extraction(extraction: Extraction[Any]) -> None:
    """The object, and each value's quote."""
    click.echo(printable(json.dumps(extraction.data, ensure_ascii=False, indent=2)))
    for field in extraction.fields:
        said = "" if field.removed is None else f", where the reader said {json.dumps(field.removed)}"
        if not field.supported:
            click.echo(click.style(printable(f"  {field.path}: stands in no passage{said}"), dim=True))
        for citation in field.citations:
            quote = click.style(f"“{printable(' '.join(citation.quote.split()))}”", dim=True)
            click.echo(f"  {printable(field.path)}: [{citation.n}] {_one_line(citation.uri)}: {quote}")


def print_report(report: SyncReport) -> None:
    """What a sync did; what was left out goes to standard error."""
    click.echo(
        f"{report.added} added, {report.updated} updated, {report.removed} removed, {report.unchanged} unchanged, "
        f"{len(report.skipped)} skipped, {len(report.failed)} failed; "
        f"{report.chunks} chunks embedded in {report.seconds:.1f} s"
    )
    for skip in report.skipped[:MOST_SKIPPED]:
        click.echo(printable(f"skipped {_one_line(skip.uri)}: {skip.why}"), err=True)
    if len(report.skipped) > MOST_SKIPPED:
        click.echo(f"skipped {len(report.skipped) - MOST_SKIPPED} more; --json lists them", err=True)
    for failure in report.failed:
        still = "; an older version still serves" if failure.stale else ""
        click.echo(printable(f"failed {_one_line(failure.uri)} ({failure.stage}): {failure.error}{still}"), err=True)


def print_verify(report: VerifyReport, saved: SalvageReport | None) -> None:
    """What a verification found, what was mended, and what can be saved."""
    for done in report.mended:
        click.echo(printable(f"repair: {done}"))
    for finding in report.findings:
        click.echo(printable(
            f"{finding.file}: {_one_line(finding.what)}: expected {finding.expected}, found {finding.found}"
        ))  # fmt: skip
    if not report.damaged:
        click.echo(f"All is whole: {report.documents} documents, {report.chunks} chunks, {report.views} views, "
                   f"generation {report.generation}, in {report.seconds:.1f} s.")  # fmt: skip
    if saved is not None:
        click.echo(printable(f"{saved.documents} documents, {saved.chunks} chunks are saved in {saved.path}."))
        for left in saved.left:
            click.echo(printable(f"left behind: {_one_line(left.uri or 'a document without a name')}: {left.why}"))
    elif any(finding.file == "catalog.db" for finding in report.findings):
        click.echo(f"The catalog is damaged. `ragfm verify --salvage OUT` can save {report.whole} of "
                   f"{report.documents} documents into a new collection.")  # fmt: skip
        for uri in report.lost[:MOST_SKIPPED]:
            click.echo(printable(f"lost: {_one_line(uri)}"))
    elif report.damaged:
        click.echo("The catalog is whole: `ragfm verify --repair` makes anew what is damaged, with no embedding.")


def print_keywords(words: Mapping[str, Any]) -> None:
    """The language of the words, and how much they count in hybrid search."""
    weight = "" if words["weight"] is None else f"cosine {words['weight']:g} (search.weight), words the rest: "
    click.echo(f"words     {words['kind']}, language {words['language'] or 'not known yet'}")
    click.echo(f"          in hybrid search {weight}{words['why']}")


def print_index(index: Mapping[str, Any], chunks: int) -> None:
    """An index's kind and why it is that, its state, and what of the catalog is dead."""
    if index["saved"]:
        click.echo(f"index     {index['kind']}, {index['vectors']} vectors, {index['state']}, "
                   f"of generation {index['generation']}")  # fmt: skip
    else:
        click.echo(f"index     none saved, {index['pending']} vectors in memory only")
    next_one = "" if index["kind"] in (index["wanted"], None) else f"the next one is {index['wanted']}: "
    click.echo(f"          {next_one}{index['why']}")
    share = index["dead"] / max(1, index["dead"] + chunks)
    click.echo(f"space     {share:.0%} of the chunks are dead; generations from {index['floor']} on can be read")


_FAULTS = {
    "fabricated": "does not say so, nor does another passage",
    "misattributed": "does not say so, another passage does",
    "stitched": "does not say so; its parts stand in several places",
    "irrelevant": "says so, but that is hardly what was asked for",
    "uncertain": "says so; see whether that is what was asked for",
}


def print_answer(answer: Answer) -> None:
    """An answer and its citations."""
    click.echo(printable(answer.text))
    print_citations(answer)


def print_citations(answer: Answer) -> None:
    """Each citation with its quote, and whether it holds; and it is said where none does."""
    for citation in answer.citations:
        page = f", page {citation.page}" if citation.page else ""
        mark = f" ({_FAULTS[citation.fault]})" if citation.fault else ""
        quote = click.style(f"“{printable(' '.join(citation.quote.split()))}”", dim=True)
        click.echo(f"  [{citation.n}] {_one_line(citation.uri)}{page}: {quote}{mark}")
    if not answer.abstained and not any(citation.supports for citation in answer.citations):
        click.echo(click.style("  (no passage supports this answer)", dim=True))
        return
    if answer.abstained and answer.confidence is not None:
        click.echo(click.style(f"  (an answer was withheld, whose confidence was {answer.confidence:.2f}; "
                               "`ask.min_confidence` sets how much it takes)", dim=True))  # fmt: skip
    for start, end in answer.unsupported:
        click.echo(
            click.style(f"  (no passage supports: “{printable(' '.join(answer.text[start:end].split()))}”)", dim=True)
        )


def where(hit: Hit) -> str:
    """A hit's document, page, place and headings."""
    page = f", page {hit.page}" if hit.page else ""
    place = f", {hit.place}" if hit.place else ""
    headings = f"  {' > '.join(hit.headings)}" if hit.headings else ""
    return printable(f"{_one_line(hit.uri)}{page}{place}{headings}")


def indented(text: str) -> str:
    """Text set in by three spaces."""
    return "\n".join(f"   {printable(line)}" for line in text.splitlines())


def _one_line(text: str) -> str:
    return printable(text.replace("\n", "\\n"))
