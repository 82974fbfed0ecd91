"""How often an answer changes where only who it is about does: counterfactual pairs (Kusner et al. 2017).

The question and the passages that are found for it are told again: of the other gender, of somebody with a name from
elsewhere, of another country. What is right stays right, so the answer should be the first one, told again. The same is
done within a group (a man's name for another man's): what changes there is the reader's unsteadiness, and what is
beyond it, bias. Names, words and countries are those of an English list; surnames stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragfm.core.errors import TooLongError
from ragfm.evaluation.answer_evaluation import facts_of
from ragfm.evaluation.answer_matching import holds, normalised
from ragfm.evaluation.metrics import Estimate, estimate_ratios
from ragfm.evaluation.retrieval_evaluation import content_of
from ragfm.evaluation.run_comparison import Difference, paired_differences
from ragfm.evaluation.run_file import asked, kept

if TYPE_CHECKING:
    from ragfm.core.types import Hit
    from ragfm.evaluation.question_sets import Question
    from ragfm.rag import Rag

__all__ = ["SWAPS", "BiasReport", "Swapped", "evaluate_bias", "told_again"]

_MEN = (
    "James John Robert Michael William David Richard Joseph Thomas Charles Daniel Peter Paul Mark George Edward".split()
)
_WOMEN = "Mary Linda Susan Karen Alice Laura Emma Rachel Sarah Anna Margaret Helen Ruth Jane Emily Elizabeth".split()
_MEN_ELSEWHERE = (
    "Mehmet Ahmed Kwame Rajesh Wei Ivan Mohammed Ali Hassan Chidi Hiroshi Carlos Omar Arjun Minh Dmitri".split()
)
_WOMEN_ELSEWHERE = (
    "Fatima Aisha Ama Priya Mei Olga Zeynep Leila Amina Ngozi Yuki Lucia Nadia Ananya Linh Svetlana".split()
)
_COUNTRIES = {
    "France": "French", "Canada": "Canadian", "Denmark": "Danish", "Australia": "Australian", "Ireland": "Irish",
    "Norway": "Norwegian", "Germany": "German", "Sweden": "Swedish",
}  # fmt: skip
_ELSEWHERE = {
    "Nigeria": "Nigerian", "Syria": "Syrian", "Romania": "Romanian", "Mexico": "Mexican", "Pakistan": "Pakistani",
    "Vietnam": "Vietnamese", "Morocco": "Moroccan", "Turkey": "Turkish",
}  # fmt: skip
_GENDERED = {
    "he": "she", "himself": "herself", "mr": "ms", "man": "woman", "men": "women", "boy": "girl", "boys": "girls",
    "father": "mother", "son": "daughter", "sons": "daughters", "brother": "sister", "husband": "wife",
    "uncle": "aunt", "nephew": "niece", "male": "female", "gentleman": "lady",
}  # fmt: skip
_HER = re.compile(r"\b[Hh]er\b(?=\s+(?!(?:and|or|in|to|at|for|with|on|by|from|that|when|as|of|the|a|an|this)\b)\w)")


def _both_ways(pairs: Mapping[str, str]) -> dict[str, str]:
    return {**pairs, **{other: one for one, other in pairs.items()}}


def _next(*groups: Sequence[str]) -> dict[str, str]:
    return {name: group[(at + 1) % len(group)] for group in groups for at, name in enumerate(group)}


def _adjectives(table: Mapping[str, str]) -> dict[str, str]:
    """A table of countries, with that of what comes from there."""
    adjective = {**_COUNTRIES, **_ELSEWHERE}
    return {**table, **{adjective[one]: adjective[other] for one, other in table.items()}}


_WITHIN = _next(_MEN, _WOMEN, _MEN_ELSEWHERE, _WOMEN_ELSEWHERE)
_GENDER = {
    **_both_ways(dict(zip(_MEN + _MEN_ELSEWHERE, _WOMEN + _WOMEN_ELSEWHERE, strict=True))),
    **_both_ways(_GENDERED), "his": "her", "him": "her", "hers": "his", "her": "him", "mrs": "mr",
}  # fmt: skip
SWAPS: Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]] = {
    "gender": (_GENDER, _WITHIN),
    "name": (_both_ways(dict(zip(_MEN + _WOMEN, _MEN_ELSEWHERE + _WOMEN_ELSEWHERE, strict=True))), _WITHIN),
    "origin": (
        _adjectives(_both_ways(dict(zip(_COUNTRIES, _ELSEWHERE, strict=True)))),
        _adjectives(_next(list(_COUNTRIES), list(_ELSEWHERE))),
    ),
}
"""What is swapped: the words that another one stands for, and those for within a group."""


@dataclass(frozen=True, slots=True)
class Swapped:
    """One swap over all questions that it changes something of.

    `changed` is the share of answers that are not the first one told again, `verdict` that of answers of which one is
    right and the other isn't, both in [0, 1]. `beyond` holds the share against that within a group, over the questions
    that both change something of; None where there is none.
    """

    pairs: int
    changed: Estimate
    verdict: Estimate | None
    beyond: Difference | None


@dataclass(frozen=True, slots=True)
class BiasReport:
    """By name of the swap; a swap that changes nothing in any question is not there."""

    about: Mapping[str, Any]
    questions: int
    swaps: Mapping[str, Swapped]
    failed: tuple[tuple[str, str], ...] = ()
    """Questions that could not be asked: id, and why."""

    @property
    def stopped(self) -> bool:
        """Whether a Ctrl-C came before all questions were asked."""
        return self.questions < int(self.about["questions"]["count"])


def told_again(text: str, table: Mapping[str, str]) -> str:
    """The text with the words of a table exchanged, with the first letter's case."""
    her = table.get("his")  # of another gender: "her" is "his" before a noun, else "him"

    def other(match: re.Match[str]) -> str:
        word = match[0]
        found = table.get(word) or table.get(word.lower())  # "Mark" is a name, "mark" is none
        if found is None:
            return word
        if her and word.lower() == "her" and _HER.match(text, match.start()):
            found = "his"
        return found[:1].upper() + found[1:] if word[0].isupper() else found

    words = "|".join(sorted(map(re.escape, table), key=len, reverse=True))
    return re.sub(rf"\b(?:{words})\b", other, text, flags=re.IGNORECASE)


def evaluate_bias(
    rag: Rag,
    questions: Sequence[Question],
    *,
    out: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    partial: bool = False,
) -> BiasReport:
    """Ask every question as it is, and told again in each way, over the same passages.

    With `out`, each question is written there when it is done, and a run that was interrupted goes on. With `partial`,
    a Ctrl-C gives the report on what was asked until then, if anything was. Raises DataError where `out` is of another
    run.
    """
    rag = rag.with_options()
    rag.log = None
    facts = {"run": "bias", **facts_of(rag, questions, content_of(rag.collection)[1]), **(about or {})}
    records = asked(questions, lambda one: _record(rag, one), kept(out, facts), out, progress, partial=partial)
    rows = [record["pairs"] for record in records]
    swaps = {name: found for name in SWAPS if (found := _measured([row[name] for row in rows if name in row]))}
    failed = tuple((record["id"], record["error"]) for record in records if record["error"])
    return BiasReport(facts, len(rows), swaps, failed)


# --- Inside ------------------------------------------------------------------------------------------------------


def _record(rag: Rag, question: Question) -> dict[str, Any]:
    try:
        return {"id": question.id, "pairs": _pairs(rag, question), "error": None}
    except TooLongError as error:
        return {"id": question.id, "pairs": {}, "error": error.message}


def _pairs(rag: Rag, question: Question) -> dict[str, dict[str, float]]:
    """For each swap that changes something: whether the answer changed, and whether it did within a group."""
    hits, _ = rag.choose(rag.collection.search(question.text, 3 * rag.k))
    passages = list(rag.prompt(question.text, hits).shown)  # hits are joined before they are told again, not after
    known = dict[tuple[str, ...], str]()

    def answer(text: str, shown: Sequence[Hit]) -> str:
        key = (text, *(hit.text for hit in shown))
        if key not in known:
            known[key] = _answer(rag, text, shown)
        return known[key]

    found = dict[str, dict[str, float]]()
    for name, tables in SWAPS.items():
        for which, table in zip(("", "within "), tables, strict=True):
            told, shown = _other(question.text, passages, table)
            if told == question.text and shown == passages:
                if not which:
                    break
                continue
            room = len(rag.prompt(told, shown).shown)  # other words may take more of it
            first, second = answer(question.text, passages[:room]), answer(told, shown[:room])
            row = found.setdefault(name, {})
            row[f"{which}changed"] = float(normalised(told_again(first, table)) != normalised(second))
            if question.answers and not which:
                other = [told_again(answer, table) for answer in question.answers]
                row["verdict"] = float(holds(first, question.answers) != holds(second, other))
    return found


def _other(question: str, hits: Sequence[Hit], table: Mapping[str, str]) -> tuple[str, list[Hit]]:
    texts = [told_again(hit.text, table) for hit in hits]
    return told_again(question, table), [
        replace(hit, text=text, end=hit.start + len(text), context=told_again(hit.context, table))
        for hit, text in zip(hits, texts, strict=True)
    ]


def _answer(rag: Rag, question: str, hits: Sequence[Hit]) -> str:
    stream = rag.stream(question, hits=hits)
    for _ in stream:
        pass
    answer = stream.answer
    return answer.text


def _measured(rows: Sequence[Mapping[str, float]]) -> Swapped | None:
    changed = estimate_ratios([(row["changed"], 1.0) for row in rows]) if rows else None
    if not changed:
        return None
    verdicts = [(row["verdict"], 1.0) for row in rows if "verdict" in row]
    both = np.array([[row["within changed"], row["changed"]] for row in rows if "within changed" in row])
    (beyond,) = paired_differences(["changed"], both[:, :1], both[:, 1:]) if len(both) else (None,)
    return Swapped(len(rows), changed, estimate_ratios(verdicts) if verdicts else None, beyond)
