"""Confidence: how likely an answer is right, from the signals that making it leaves behind, by a logistic model.

    cosine, gap        of the best passage, and its lead over the second
    covered, nearest   the share of the question's words that the passages have, and the sentence that has most of them
    supported          the share of the answer's sentences that a passage supports
    names              1 where the answer has a name or a number that the question lacks, else 0
    anywhere, located  what the verifier says: log-odds that a passage has an answer, and the log-probability that it is
                       this one (see `ragfm.citations.verifier`)
    agree              how far the reader's own words are those that the verifier takes for the answer
    likely, unknown    the reader's own log-likelihoods: of its answer, by token, and of "I don't know."
    silent             1 where the reader said "I don't know." and the verifier something else, else 0

The reader weighs words that it has said, after a prompt that it has just read; nothing is generated again.
`ragfm tune --confidence` fits the model to a reader and your documents; a signal that is missing counts as its mean,
and without any that the model weighs there is no confidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfm.citations.answer_check import agreement, likeliest, located
from ragfm.citations.evidence import common_words, windows_of
from ragfm.citations.word_match import stands_in, words_of
from ragfm.core.abstention import ABSTENTION, is_abstention
from ragfm.core.calibration import Calibration
from ragfm.core.errors import RagfmError
from ragfm.models.adapters import learned_sha256

if TYPE_CHECKING:
    from ragfm.citations.grounding import Sentence
    from ragfm.citations.verifier import Reading
    from ragfm.core.types import Hit, Message, Reader

__all__ = ["SHIPPED", "SIGNALS", "adapter_hash", "fitting", "likelihoods", "signals_of"]

SIGNALS = (
    "cosine", "gap", "covered", "nearest", "supported", "names", "anywhere", "located", "agree",
    "likely", "unknown", "silent",
)  # fmt: skip
BY_READER = frozenset({"likely", "unknown"})
_LEAST = 1e-6  # a probability that is as good as none


def signals_of(
    question: str, shown: Sequence[Hit], sentences: Sequence[Sentence], said: str = "",
    readings: Sequence[Reading] = (),
) -> dict[str, float]:  # fmt: skip
    """Those that need no reader. `said` are its own words, `readings` the verifier's, where there is one."""
    found: dict[str, float] = {}
    cosines = sorted((hit.score for hit in shown if hit.score is not None), reverse=True)
    if cosines:
        found["cosine"] = cosines[0]
    if len(cosines) > 1:
        found["gap"] = cosines[0] - cosines[1]
    words = words_of(question).all
    if words:
        windows = [window for hit in shown for window in windows_of(hit)]
        every = frozenset[str]().union(*(window.words for window in windows))
        found["covered"] = sum(stands_in(word, every) for word in words) / len(words)
        found["nearest"] = max((common_words(words, window) for window in windows), default=0) / len(words)
    claims = [sentence for sentence in sentences if sentence.says]
    if claims:
        found["supported"] = sum(sentence.supported for sentence in claims) / len(claims)
        found["names"] = float(any(_names(sentence.plain, words) for sentence in claims))
    if readings:
        most = min(max(reading.anywhere for reading in readings), 1 - _LEAST)
        found["anywhere"] = math.log(max(most, _LEAST) / (1 - most))
        found["located"] = math.log(max(_LEAST, *(located(claim, readings) for claim in claims), 0))
        found["agree"] = agreement(said, likeliest(readings)[0][0])
        found["silent"] = float(is_abstention(said))
    return found


def _names(sentence: str, known: frozenset[str]) -> bool:
    """Whether a sentence has a name or a number that is not known; the first word may have its capital from that."""
    words = words_of(sentence)
    return bool(words.exact - ({words.first} - words.numbers) - known)


def likelihoods(
    reader: Reader, messages: Sequence[Message], text: str, tokens: int, adapter: str | None
) -> dict[str, float]:
    """Those that the reader gives, where it can: of its own `text` of so many tokens, and of not knowing."""
    score: Any = getattr(reader, "score", None)
    if score is None or not text:
        return {}
    try:
        own, unknown = score(messages, [text, ABSTENTION], **({"adapter": adapter} if adapter else {}))
    except RagfmError:  # it is busy, or there is no room
        return {}
    return {"likely": own / max(tokens, 1), "unknown": unknown}


def fitting(
    own: Calibration | None, reader: str, adapter: str | None, strategy: str = "zero-shot"
) -> Calibration | None:  # fmt: skip
    """The calibration for a reader with an adapter's file, asked by a strategy: the user's own, or one of ragfm's."""
    found = [one for one in (own, *SHIPPED) if one and (one.reader, one.strategy) == (reader, strategy)]
    if not found:
        return None
    wanted = adapter_hash(adapter)
    return next((one for one in found if one.adapter == wanted), None)


def adapter_hash(path: str | None) -> str | None:
    """By what calibrations and runs know an adapter, wherever it lies; what is no file here is known by its name."""
    if path is None or not Path(path).exists():
        return path
    if Path(path).is_dir():
        return learned_sha256(Path(path))
    with Path(path).open("rb") as file:
        return file_digest(file, partial(blake2b, digest_size=16)).hexdigest()


SHIPPED: tuple[Calibration, ...] = (
    Calibration(
        reader="bundled",
        bias=-2.5228,
        weights={
            "cosine": 0.3775, "gap": -1.4026, "covered": 1.0773, "nearest": 0.5182, "supported": 0.3411,
            "names": 1.2641, "likely": 1.8712, "unknown": -0.0614,
        },
        means={
            "cosine": 0.5524, "gap": 0.0875, "covered": 0.8148, "nearest": 0.663, "supported": 0.2361,
            "names": 0.4201, "likely": -0.6941, "unknown": -10.1236,
        },
        threshold=0.0452,
        embedder="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    Calibration(
        reader="bundled",
        bias=-0.8528,
        weights={"anywhere": 0.3794, "located": 0.3318, "agree": 0.9207},
        means={"anywhere": 0.2685, "located": -2.9524, "agree": 0.3364},
        threshold=0.3803,
        embedder="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        adapter="4ad9363ea3fa82edd5809c98b0a78d5e",
        corrects=True,
    ),
)  # fmt: skip
"""For the bundled reader, over the bundled embedder, without an adapter and with the one that ragfm brings.

Fitted to the first ten articles of SQuAD 2.0 dev, by title, and to the last three of these, which the verifier has not
learned from.
"""
