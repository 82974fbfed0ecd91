"""Documents are prepared in the order of the listing, and each entry has one outcome."""

from __future__ import annotations

import threading
from pathlib import Path

from ragfm_connectors.files import FilesConnector

from ragfm.chunking import ChunkSettings
from ragfm.core.errors import ConnectorError
from ragfm.core.types import Blob, Ref
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


class _Parallel:
    """A connector whose fetches wait for each other: three at a time."""

    parallel_fetches = 3
    root = "memory:"

    def __init__(self) -> None:
        self.together = threading.Barrier(3, timeout=20)
        self.running = self.most = 0
        self.lock = threading.Lock()

    def refs(self) -> list[Ref]:
        return [Ref(str(number)) for number in range(12)]

    def fetch(self, ref: Ref) -> Blob:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.together.wait()
        with self.lock:
            self.running -= 1
        if ref.path == "7":
            raise ConnectorError("It is gone.")
        return Blob(f"This is number {ref.path}.".encode(), "text/plain")


def test_so_many_documents_are_fetched_at_once_as_the_connector_says(embedder: HashingEmbedder) -> None:
    connector = _Parallel()
    entries = [(ref, None) for ref in connector.refs()]
    prepared = prepare(connector, ParserChoice(), ChunkSettings(), lambda: embedder, entries)
    outcomes = {ref.path: outcome for ref, outcome in filter(None, prepared)}
    assert list(outcomes) == [str(number) for number in range(12)]
    assert [path for path, outcome in outcomes.items() if outcome.document is None] == ["7"]
    assert connector.most == 3
