"""Numbered passages, and answers that are checked against them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ragfm import Hit
from ragfm.answering.decision import ground
from ragfm.answering.grounding import CitedAnswer, Grounding, cite_answer
from ragfm.answering.judge import Judge
from ragfm.core.types import Citation
from support.judges import ScriptedJudge

JUDGE = ScriptedJudge()


def passages(*texts: str, uri: str = "", context: str = "") -> list[Hit]:
    """The passages [1], [2] …, each of a document and a page of its own; `uri` puts them into one document."""
    return [
        Hit(uri or f"docs/{n}.md", text, 100 * n, 100 * n + len(text), n, 0.5, {}, page=n, n=n, context=context)
        for n, text in enumerate(texts, 1)
    ]


def grounded(
    question: str, output: str, hits: Sequence[Hit], judge: Judge | None = JUDGE, language: str = "en"
) -> tuple[str, tuple[Citation, ...]]:
    """The text and the citations of an answer that a scripted judge checks."""
    return ground(question, output, hits, language, judge)


def cited_answer(
    question: str,
    output: str,
    hits: Sequence[Hit],
    judge: Judge | None = JUDGE,
    *,
    language: str = "en",
    corrects: bool = False,
    **options: Any,
) -> CitedAnswer:
    """An answer with the readings of a scripted judge."""
    return cite_answer(Grounding(question, hits, language, judge), output, corrects=corrects, **options)
