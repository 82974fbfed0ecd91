from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from support.parsed_documents import check_invariants, headings, marked

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.core.types import Blob
from ragfm.parsing import parse
from ragfm.parsing.own.office import legacy_office
from ragfm.parsing.sandbox.worker_pool import WorkerPool

OLD = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "WordDocument\0".encode("utf-16-le")


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not shutil.which("soffice"), reason="LibreOffice is not installed: DOC and PPT are not tested")
def test_legacy_formats_are_read_in_a_confined_worker(data: Path) -> None:
    folder = data / "documents" / "unstructured"
    workers = WorkerPool(count=1)
    try:
        names = ("duplicate-paragraphs.doc", "fake-doc-emphasized-text.doc", "fake-power-point.ppt")
        futures = [workers.submit(Blob((folder / name).read_bytes()), name) for name in names]
        paragraphs, table, slides = (future.result() for future in futures)
    finally:
        workers.close()
    check_invariants(paragraphs)
    assert headings(paragraphs) == [(1, "This document contains duplicates")]
    assert [mark.value for mark in paragraphs.marks if mark.kind == "page"] == ["1", "2"]
    assert marked(table, "table")[0].startswith("| Header Col 1 | Header Col 2 |")
    assert slides.media_type == "application/vnd.ms-powerpoint"
    assert headings(slides) == [(1, "Adding a Bullet Slide")]
    assert "    - Use _TextFrame.add_paragraph()" in slides.text


def test_failures_of_libreoffice_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soffice = tmp_path / "soffice"
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr(legacy_office, "_MAX_SECONDS", 1)
    for script, reason in (
        ("echo one >&2; echo source file could not be loaded >&2; exit 3", "source file could not be loaded"),
        ("exit 0", "ends with status 0"),
        ("exec sleep 60", "within 1 seconds"),
        ("exit 81", "ends with status 81"),
    ):
        soffice.write_text(f"#!/bin/sh\n{script}\n")
        soffice.chmod(0o755)
        began = time.monotonic()
        with pytest.raises(ParseError, match=reason):
            parse(Blob(OLD), "a.doc")
        assert time.monotonic() - began < 20


def test_without_libreoffice_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SkipDocument, match=r"a\.doc .*LibreOffice") as skipped:
        parse(Blob(OLD), "a.doc")
    assert "Install LibreOffice, or save the file as .docx" in skipped.value.hint
