"""What people ask and do not get: the questions of the answer log by day, grouped, worst first; sources and times."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any, Literal

from ragfm.core.types import AnswerStatus
from ragfm.evaluation.answer_matching import normalize_unicode
from ragfm.generation.log_entries import REDACTED

SAME_QUESTION = 0.8
"""Weighted Jaccard similarity of the words from which on two questions count as the same."""
_MAX_QUESTIONS = 200  # rows, the worst first
_MAX_ENTRIES = 20  # of a row
_MAX_DOCUMENTS = 100
_HAS_DIGIT = re.compile(r"\d")
_BAD = {"down": 0, "not_found": 1, "unsure": 2}


@dataclass(frozen=True, slots=True)
class LoggedQuestion:
    """A question of the log. `status` is None if the answer was stopped."""

    id: int
    at: str
    question: str
    status: AnswerStatus | None
    thumbs: Literal["up", "down"] | None

    @property
    def badness(self) -> int:
        """The lower the worse: rated down, not answered, unsure, others."""
        return min(_BAD.get(self.thumbs or "", 3), _BAD.get(self.status or "", 3))


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of answers: all, those without an answer, unsure ones, and those that were rated down and up."""

    asked: int
    unanswered: int
    unsure: int
    down: int
    up: int

    @classmethod
    def of(cls, questions: Sequence[LoggedQuestion]) -> Counts:
        """The numbers of these questions."""
        status, thumbs = Counter(one.status for one in questions), Counter(one.thumbs for one in questions)
        return cls(len(questions), status["not_found"], status["unsure"], thumbs["down"], thumbs["up"])


@dataclass(frozen=True, slots=True)
class Day:
    """The numbers of a day (UTC)."""

    day: str
    counts: Counts


@dataclass(frozen=True, slots=True)
class QuestionGroup:
    """Near-duplicate questions, the worst and then the newest first; up to 20 of them."""

    counts: Counts
    questions: list[LoggedQuestion]


@dataclass(frozen=True, slots=True)
class CitedDocument:
    """A document and the number of answers that cite it."""

    uri: str
    answers: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of a part of answering: `search`, `read` until the first piece of text, `write`, or `total`."""

    part: str
    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class Insights:
    """The numbers of all questions, and of each day; groups of questions, those with the most bad answers first.

    Up to 200 `groups` of `all_groups`, and 100 documents of each kind: `cited` are those that are cited most, `never`
    are some of the `uncited` ones that no answer cites.
    """

    counts: Counts
    days: list[Day]
    groups: list[QuestionGroup]
    all_groups: int
    cited: list[CitedDocument]
    never: list[str]
    uncited: int
    latency: list[Latency]


def insights(rows: Iterable[Sequence[Any]], documents: Sequence[str]) -> Insights:
    """The insights of rows of `AnswerLog.overview`. `documents` are the uris that may be named.

    Redacted questions count, but are in no group.
    """
    questions, by_day, cited = list[LoggedQuestion](), defaultdict[str, list[LoggedQuestion]](list), Counter[str]()
    times = defaultdict[str, list[float]](list)
    for number, at, question, status, thumbs, seconds, citations in rows:
        one = LoggedQuestion(number, at, question, status, thumbs)
        questions.append(one)
        by_day[at[:10]].append(one)
        cited.update({citation["uri"] for citation in citations})
        found, total = seconds.get("found", 0.0), seconds.get("total", 0.0)
        first = seconds.get("first", total)
        for part, value in (("search", found), ("read", first - found), ("write", total - first), ("total", total)):
            times[part].append(max(0.0, value))
    groups: dict[int, list[LoggedQuestion]] = defaultdict(list)
    named = [one for one in questions if REDACTED not in one.question]
    for one, group in zip(named, group_questions([one.question for one in named]), strict=True):
        groups[group].append(one)
    made = []
    for members in groups.values():
        members.sort(key=lambda one: (one.badness, -one.id))
        made.append(QuestionGroup(Counts.of(members), members[:_MAX_ENTRIES]))
    made.sort(
        key=lambda group: (
            -(group.counts.down + group.counts.unanswered),
            -group.counts.unsure,
            group.questions[0].badness,
            -group.questions[0].id,
        )
    )
    latency = []
    for part, values in times.items():
        cuts = quantiles([*values, *values], n=20, method="inclusive")  # at least two values
        latency.append(Latency(part, round(cuts[9], 3), round(cuts[18], 3)))
    counted = [CitedDocument(uri, cited[uri]) for uri in documents]
    counted.sort(key=lambda one: -one.answers)
    never = [one.uri for one in counted if not one.answers]
    return Insights(
        Counts.of(questions),
        [Day(day, Counts.of(members)) for day, members in sorted(by_day.items())],
        made[:_MAX_QUESTIONS],
        len(made),
        [one for one in counted[:_MAX_DOCUMENTS] if one.answers],
        never[:_MAX_DOCUMENTS],
        len(never),
        latency,
    )


def group_questions(questions: Sequence[str]) -> list[int]:
    """The number of each question's group of near-duplicates, which is the index of one of them.

    Questions are near-duplicates if their words are, weighted by how rare they are in these questions, and their
    numbers are the same. Each joins the most similar first question of a group. That one must have a word of its
    prefix: its rarest words, without which the others are too few (Bayardo et al. 2007), so that few are compared.
    """
    words = [frozenset(normalize_unicode(question).split()) for question in questions]
    frequency = Counter(word for some in words for word in some)
    weight = {word: math.log(1 + len(questions) / count) for word, count in frequency.items()}
    known: dict[frozenset[str], int] = {}
    with_prefix_word: dict[str, list[tuple[int, float]]] = defaultdict(list)  # first questions, with their weight
    for at, some in enumerate(words):
        if some in known:
            continue
        total, prefix, missing = sum(weight[word] for word in some), list[str](), 0.0
        for word in sorted(some, key=lambda word: (-weight[word], word)):
            if missing > (1 - SAME_QUESTION) * total:
                break
            prefix.append(word)
            missing += weight[word]
        best = (SAME_QUESTION, at)
        for first, other in {candidate for word in prefix for candidate in with_prefix_word[word]}:
            common = sum(weight[word] for word in some & words[first])
            similarity = common / (total + other - common)
            if similarity >= best[0] and not any(map(_HAS_DIGIT.search, words[first] ^ some)):
                best = (similarity, first)
        known[some] = best[1]
        if best[1] == at:
            for word in prefix:
                with_prefix_word[word].append((at, total))
    return [known[some] for some in words]
