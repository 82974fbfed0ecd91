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


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (rb"Red{\v  and {\b green\}}} is port.", "Red is port."),
        (rb"Red\v  and green\v0  is port.", "Red is port."),
        (rb"Red\v  and\par green\plain  is port.", "Red\n\nis port."),
        (rb"Red {\deleted and green }is port.", "Red is port."),
        (rb"\viewkind4\v0 Red is port.", "Red is port."),
        (rb"{\v a\cell}b\cell\row", "|b|"),
        (rb"Red{\super\chftn{\footnote\pard\plain {\super\chftn} Or left.}} is port.", "Red [Or left.] is port."),
        (rb"Red{\super\chftn{\*\footnote\chftn\pard Or {\v right}left.}} is port.", "Red [Or left.] is port."),
    ],
)
def test_hidden_text_and_footnotes(source: bytes, expected: str) -> None:
    assert document(rb"{\rtf1\ansi " + source + rb"\par}", "a.rtf").text == expected


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "striprtf.striprtf", None)
    with pytest.raises(MissingExtraError, match=r"\.\[documents\]"):
        parse(Blob(RTF), "a.rtf")
