"""Outline, pages, sections and places of a text over HTTP, and who may read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.running_server import Running, serve
from support.written_pdf import lines, pdf

from ragfm import Collection, Settings
from ragfm.testing import ScriptedReader

GUIDE = """# Guide

Read this first.

## Boats

The boat leaves at nine.

### Fares

A ticket for the boat costs 5 crowns.

## Trains

The train leaves at ten. The BOAT waits for it.
"""
FIRST, SECOND = "The pilot boards large ships.", "The keeper writes down every ship."


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with a guide in Markdown and a manual in PDF for all, and a plan for the group `hr`."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "docs" / "hr").mkdir(parents=True)
    (folder / "docs" / "guide.md").write_text(GUIDE)
    (folder / "docs" / "long.md").write_text("".join(f"# Part {number}\n\nA word.\n\n" for number in range(450)))
    (folder / "docs" / "manual.pdf").write_bytes(pdf(lines(FIRST), lines(SECOND)))
    (folder / "docs" / "hr" / "plan.md").write_text("# Plan\n\nA secret plan.\n")
    (folder / "docs" / "hr" / ".ragfm-access").write_text("hr")
    Collection.open(folder / "handbook", settings=Settings(), embedder="hashing").sync(folder / "docs")
    with serve(folder, ScriptedReader(["-"]), collection=folder / "handbook") as it:
        yield it


def get(library: Running, path: str, key: str = "guest", **parameters: Any) -> Any:
    with library.client(key) as client:
        return client.get(path, params=parameters)


def test_an_outline_has_the_spans_of_all_sections(library: Running) -> None:
    outline = get(library, "/v1/outline/docs/guide.md").json()
    text = get(library, "/v1/documents/docs/guide.md").json()["text"]
    begins = [text[one["start"] : one["end"]].splitlines()[0] for one in outline["sections"]]
    assert begins == ["# Guide", "## Boats", "### Fares", "## Trains"]
    assert [one["headings"] for one in outline["sections"]] == [
        ["Guide"],
        ["Guide", "Boats"],
        ["Guide", "Boats", "Fares"],
        ["Guide", "Trains"],
    ]
    boats, fares, trains = outline["sections"][1:]
    assert boats["end"] == fares["end"] == trains["start"]
    assert (outline["characters"], outline["pages"], outline["next"]) == (len(text), 0, None)


def test_an_outline_continues_where_the_one_before_ended(library: Running) -> None:
    titles, start = list[str](), 0
    while start is not None:
        part = get(library, "/v1/outline/docs/long.md", start=start).json()
        titles += [one["headings"][-1] for one in part["sections"]]
        start = part["next"]
    assert titles == [f"Part {number}" for number in range(450)]


def test_a_page_of_a_document_is_read(library: Running) -> None:
    whole = get(library, "/v1/documents/docs/manual.pdf").json()["text"]
    page = get(library, "/v1/documents/docs/manual.pdf", page=2).json()
    assert page["text"].strip() == SECOND
    assert whole[page["start"] :].startswith(page["text"])
    assert get(library, "/v1/outline/docs/manual.pdf").json()["pages"] == 2


@pytest.mark.parametrize("section", ["Boats", "guide >  boats", "Guide > Boats"])
def test_a_section_is_read_with_its_subsections(library: Running, section: str) -> None:
    text = get(library, "/v1/documents/docs/guide.md", section=section).json()["text"]
    assert text.startswith("## Boats")
    assert text.rstrip().endswith("costs 5 crowns.")


def test_a_part_is_cut_by_start_and_length(library: Running) -> None:
    section = get(library, "/v1/documents/docs/guide.md", section="Trains").json()
    part = get(library, "/v1/documents/docs/guide.md", section="Trains", start=section["start"] + 3, length=6).json()
    assert part["text"] == "Trains"
    assert get(library, "/v1/documents/docs/guide.md", section="Boats", start=section["start"]).json()["text"] == ""


def test_a_text_is_found_in_any_case_with_its_headings_and_page(library: Running) -> None:
    found = get(library, "/v1/find/docs/guide.md", text="the  boat").json()
    text = get(library, "/v1/documents/docs/guide.md").json()["text"]
    assert [text[one["start"] : one["end"]] for one in found["places"]] == ["The boat", "the boat", "The BOAT"]
    assert [one["headings"][-1] for one in found["places"]] == ["Boats", "Fares", "Trains"]
    assert all(text[one["start"] : one["end"]] in one["text"] for one in found["places"])
    (place,) = get(library, "/v1/find/docs/manual.pdf", text="every ship").json()["places"]
    assert place["page"] == 2
    assert get(library, "/v1/find/docs/guide.md", text="plane").json()["places"] == []


def test_a_search_in_a_document_continues_where_the_one_before_ended(library: Running) -> None:
    places, start = list[int](), 0
    while start is not None:
        part = get(library, "/v1/find/docs/long.md", text="a word", start=start).json()
        places += [one["start"] for one in part["places"]]
        start = part["next"]
    assert len(places) == len(set(places)) == 450


@pytest.mark.parametrize(
    ("path", "parameters"),
    [("/v1/outline", {}), ("/v1/documents", {"section": "Plan"}), ("/v1/find", {"text": "secret"})],
    ids=["outline", "section", "find"],
)
def test_only_those_who_may_see_a_document_read_its_parts(
    library: Running, path: str, parameters: dict[str, str]
) -> None:
    assert get(library, f"{path}/docs/hr/plan.md", key="hr", **parameters).status_code == 200
    hidden = get(library, f"{path}/docs/hr/plan.md", **parameters)
    missing = get(library, f"{path}/docs/hr/none.md", **parameters)
    assert hidden.status_code == missing.status_code == 404
    assert hidden.json()["error"]["code"] == missing.json()["error"]["code"] == "document_not_found"
    with library.client(None) as nobody:
        assert nobody.get(f"{path}/docs/guide.md", params=parameters).status_code == 401


@pytest.mark.parametrize(
    ("path", "parameters", "status", "code"),
    [
        ("/v1/documents", {"page": 1}, 404, "page_not_found"),
        ("/v1/documents", {"section": "Planes"}, 404, "section_not_found"),
        ("/v1/documents", {"pages": 1}, 400, "invalid_request"),
        ("/v1/find", {}, 400, "invalid_request"),
        ("/v1/find", {"text": " "}, 400, "invalid_request"),
        ("/v1/outline", {"start": -1}, 400, "invalid_request"),
    ],
)
def test_a_part_that_does_not_exist_is_named(
    library: Running, path: str, parameters: dict[str, Any], status: int, code: str
) -> None:
    refused = get(library, f"{path}/docs/guide.md", **parameters)
    assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
