"""Display names: short, unambiguous, and translated back."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Literal
from unicodedata import normalize

import pytest

from ragfm import Collection
from ragfm.core.errors import CollectionError
from ragfm.store.display_names import DisplayNames
from ragfm.testing import HashingEmbedder


@pytest.mark.parametrize(
    ("sources", "uri", "name"),
    [
        (["/home/u/reports"], "/home/u/reports/BESTBUY_2023_10K.pdf", "reports/BESTBUY_2023_10K.pdf"),
        (["/home/u/reports"], "/home/u/reports/2023/a.pdf", "reports/2023/a.pdf"),
        (["/home/u/reports/"], "/home/u/reports/a.pdf", "reports/a.pdf"),
        (["/home/u/report.pdf"], "/home/u/report.pdf", "report.pdf"),
        (["docs"], "docs/leave.md", "docs/leave.md"),
        (["."], "docs/leave.md", "docs/leave.md"),
        (["finance/2024"], "finance/2024/a.pdf", "finance/2024/a.pdf"),
        (["/a/reports", "/b/reports"], "/a/reports/x.pdf", "a/reports/x.pdf"),
        (["/c/a/reports", "/d/a/reports", "/e/other"], "/d/a/reports/x.pdf", "d/a/reports/x.pdf"),
        (["/c/a/reports", "/d/a/reports", "/e/other"], "/e/other/x.pdf", "other/x.pdf"),
        (["/a/reports", "reports"], "/a/reports/x.pdf", "a/reports/x.pdf"),
        (["/a/reports", "reports/2024"], "/a/reports/2024/x.pdf", "a/reports/2024/x.pdf"),
        (["/a/reports", "."], "/a/reports/x.pdf", "/a/reports/x.pdf"),
        (["/a/r.pdf", "/b/r.pdf"], "/b/r.pdf", "b/r.pdf"),
        (["/"], "/etc/x.txt", "/etc/x.txt"),
        (["s3://archive/mails"], "s3://archive/mails/17.eml", "mails/17.eml"),
        (["https://example.org/docs"], "https://example.org/docs/a.html", "https://example.org/docs/a.html"),
        (["/a/reports"], "/a/reports2/x.pdf", "/a/reports2/x.pdf"),
        ([], "/a/reports/x.pdf", "/a/reports/x.pdf"),
    ],
)
def test_names(sources: list[str], uri: str, name: str) -> None:
    names = DisplayNames(sources)
    assert names.name_of(uri) == name
    assert names.uri_of(name) == uri


def test_names_are_unambiguous_and_translate_back() -> None:
    folders = ["/a", "/a/b", "/b/a", "/a/b/c", "b", "a/c", "s3://x/a", "s3://x/a/b", "c", "https://x/a"]
    for sources in combinations(folders, 4):
        names = DisplayNames(sources)
        uris = {f"{source}/{path}" for source in sources for path in ("x.txt", "b/x.txt", "c/x.txt", "a/b/x.txt")}
        shown = {names.name_of(uri) for uri in uris}
        assert len(shown) == len(uris), sources
        assert {names.uri_of(name) for name in shown} == uris, sources


def test_documents_are_found_by_name_and_uri(tmp_path: Path, embedder: HashingEmbedder) -> None:
    folder = tmp_path / "elsewhere" / "reports"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("The annual report.")
    inside = Collection.open(tmp_path / "elsewhere" / "x" / ".ragfm", embedder=embedder)
    inside.sync(folder)
    (hit,) = inside.search("report")
    (info,) = inside.documents()
    assert hit.name == info.name == "reports/a.txt"
    assert hit.uri == info.uri == str(folder / "a.txt")
    for name in (hit.name, hit.uri):
        assert inside.document(name).uri == inside.info(name).uri == hit.uri
    with pytest.raises(CollectionError, match="no document"):
        inside.document("reports/b.txt")
    assert inside.remove(hit.name).uri == hit.uri


@pytest.mark.parametrize(("stored", "typed"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_are_the_same_in_both_unicode_forms(
    tmp_path: Path, collection: Collection, stored: Literal["NFC", "NFD"], typed: Literal["NFC", "NFD"]
) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / normalize(stored, "Büro.txt")).write_text("The office.")
    collection.sync(folder)
    (info,) = collection.documents()
    name = normalize(typed, info.uri)
    assert name != info.uri
    assert collection.document(name).uri == info.uri
    assert collection.remove(name).uri == info.uri
