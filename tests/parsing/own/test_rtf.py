from __future__ import annotations

import sys

import pytest
from support.parsed_documents import document

from ragfm.core.errors import MissingExtraError
from ragfm.core.types import Blob
from ragfm.parsing import parse

RTF = rb"{\rtf1\ansi{\fonttbl{\f0 Arial;}}{\*\generator x;}\pard Red is \b port\b0 .\par Gr\u252?\'dfe\par}"


def test_paragraphs() -> None:
    assert document(RTF, "a.rtf").text == "Red is port.\n\nGrüße"
    assert document(RTF, "really.doc").text.startswith("Red")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "striprtf.striprtf", None)
    with pytest.raises(MissingExtraError, match=r"ragfm\[documents\]"):
        parse(Blob(RTF), "a.rtf")
