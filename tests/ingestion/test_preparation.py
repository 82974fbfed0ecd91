"""Documents are prepared in the order of the listing, and each entry has one outcome."""

from __future__ import annotations

from pathlib import Path

from ragfm_connectors.files import FilesConnector

from ragfm.chunking import ChunkSettings
from ragfm.core.types import Ref
from ragfm.ingestion.preparation import prepare
from ragfm.parsing import ParserChoice
from ragfm.testing import HashingEmbedder


def test_documents_come_in_order_whatever_takes_longer(tmp_path: Path, embedder: HashingEmbedder) -> None:
    texts = [f"{number}.txt" for number in range(5)]
    for name in ("first.html", *texts):  # the page is parsed in another process, the texts at once
        (tmp_path / name).write_text(f"<p>This is {name}.</p>")
    (tmp_path / "broken.docx").write_bytes(b"PK\x03\x04 not a document")
    entries = [(Ref(name), None) for name in ("first.html", "gone.txt", *texts, "broken.docx")]
    prepared = prepare(FilesConnector(tmp_path), ParserChoice(), ChunkSettings(), lambda: embedder, entries)
    outcomes = [(ref.path, outcome.kind) for ref, outcome in filter(None, prepared)]
    assert [path for path, kind in outcomes if kind == "document"] == ["first.html", *texts]
    assert {path: kind for path, kind in outcomes if kind != "document"} == {
        "gone.txt": "fetch",
        "broken.docx": "parse",
    }
