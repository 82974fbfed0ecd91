"""Confidence: how likely an answer is right, from what the judge read.

    answers     log-odds that a passage has an answer to the question
    supports    log-odds that the passages support the answer: of its least supported sentence
    agrees      word overlap of the reader's output with the judge's likeliest answer
    silent      1 if the reader abstained and the judge found an answer, else 0
    exact       share of the answer's sentences that a unit supports and whose question has no period, number or
                identifier that is missing there
    closest     cosine of the unit that is closest to a question in another language than the documents
    words       share of the question's words in the unit that supports the answer, for languages that no judge reads

`benchmarks/bench_confidence.py fit` fits the logistic models below; `ragfm tune --confidence` fits one to a reader and
your documents.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ragfm.answering.units import words

if TYPE_CHECKING:
    from ragfm.answering.grounding import CitedAnswer

SIGNALS = ("answers", "supports", "agrees", "silent", "exact", "closest", "words")


def answer_signals(cited: CitedAnswer, question: str) -> dict[str, float]:
    """The signals of an answer; empty for an abstention."""
    if not cited.sentences:
        return {}
    sentences, signals = cited.sentences, dict[str, float]()
    if cited.readings:
        signals["answers"] = _log_odds(max(one.answers for one in cited.readings))
        signals["supports"] = _log_odds(min(one.likelihood for one in sentences))
        signals["agrees"] = cited.agreement
        signals["silent"] = float(cited.silent)
        sound = [any(one.supports and not one.missing for one in sentence.evidence) for sentence in sentences]
        signals["exact"] = sum(sound) / len(sound)
    else:
        asked = words(question)
        supporting = [one.unit for sentence in sentences for one in sentence.evidence if one.supports]
        shares = [len(asked & unit.all_words) / len(asked) for unit in supporting] if asked else []
        signals["words"] = max(shares, default=0.0)
    if cited.close:
        signals["closest"] = cited.close[0][0]
    return signals


def _log_odds(probability: float) -> float:
    bounded = min(max(probability, 1e-6), 1 - 1e-6)
    return math.log(bounded / (1 - bounded))
