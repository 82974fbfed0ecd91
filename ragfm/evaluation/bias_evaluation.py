"""Evaluate bias: how often an answer changes when only the person or country in question and passages changes.

Counterfactual pairs (Kusner et al. 2017): each question is asked again with names, gendered words or countries swapped
in it and in its passages. The expected answer is the first one with the same swap. A swap within a group (a man's name
for another man's name) measures how unstable the reader is; bias is the difference beyond that. The lists are English;
surnames are not swapped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ragfm.core.errors import TooLongError
from ragfm.core.progress import ProgressCallback
from ragfm.core.types import Hit
from ragfm.evaluation.answer_evaluation import answer_run_facts
from ragfm.evaluation.answer_matching import contains_answer, normalize
from ragfm.evaluation.metrics import Estimate, estimate_ratios
from ragfm.evaluation.question_sets import Question
from ragfm.evaluation.retrieval_evaluation import collection_content
from ragfm.evaluation.run_comparison import Difference, paired_differences
from ragfm.evaluation.run_file import load_finished, run_questions
from ragfm.rag import Rag

# fmt: off
_MEN = ("James John Robert Michael William David Richard Joseph Thomas Charles Daniel Peter Paul Mark George "
        "Edward").split()
_WOMEN = ("Mary Linda Susan Karen Alice Laura Emma Rachel Sarah Anna Margaret Helen Ruth Jane Emily "
          "Elizabeth").split()
_FOREIGN_MEN = ("Mehmet Ahmed Kwame Rajesh Wei Ivan Mohammed Ali Hassan Chidi Hiroshi Carlos Omar Arjun Minh "
                "Dmitri").split()
_FOREIGN_WOMEN = ("Fatima Aisha Ama Priya Mei Olga Zeynep Leila Amina Ngozi Yuki Lucia Nadia Ananya Linh "
                  "Svetlana").split()
_COUNTRIES = {
    "France": "French", "Canada": "Canadian", "Denmark": "Danish", "Australia": "Australian", "Ireland": "Irish",
    "Norway": "Norwegian", "Germany": "German", "Sweden": "Swedish",
}
_OTHER_COUNTRIES = {
    "Nigeria": "Nigerian", "Syria": "Syrian", "Romania": "Romanian", "Mexico": "Mexican", "Pakistan": "Pakistani",
    "Vietnam": "Vietnamese", "Morocco": "Moroccan", "Turkey": "Turkish",
}
_GENDERED_WORDS = {
    "he": "she", "himself": "herself", "mr": "ms", "man": "woman", "men": "women", "boy": "girl", "boys": "girls",
    "father": "mother", "son": "daughter", "sons": "daughters", "brother": "sister", "husband": "wife",
    "uncle": "aunt", "nephew": "niece", "male": "female", "gentleman": "lady",
}
# fmt: on
# "her" before a noun, where a man's word is "his", not "him".
_POSSESSIVE_HER = re.compile(
    r"\b[Hh]er\b(?=\s+(?!(?:and|or|in|to|at|for|with|on|by|from|that|when|as|of|the|a|an|this)\b)\w)"
)


def _symmetric(pairs: Mapping[str, str]) -> dict[str, str]:
    return {**pairs, **{second: first for first, second in pairs.items()}}


def _rotated(*groups: Sequence[str]) -> dict[str, str]:
    """Each member of a group to the next one of the same group."""
    return {name: group[(index + 1) % len(group)] for group in groups for index, name in enumerate(group)}


def _with_adjectives(countries: Mapping[str, str]) -> dict[str, str]:
    adjectives = {**_COUNTRIES, **_OTHER_COUNTRIES}
    return {**countries, **{adjectives[first]: adjectives[second] for first, second in countries.items()}}


_NAMES_WITHIN_GROUP = _rotated(_MEN, _WOMEN, _FOREIGN_MEN, _FOREIGN_WOMEN)
_GENDER = {
    **_symmetric(dict(zip(_MEN + _FOREIGN_MEN, _WOMEN + _FOREIGN_WOMEN, strict=True))),
    **_symmetric(_GENDERED_WORDS),
    "his": "her",
    "him": "her",
    "hers": "his",
    "her": "him",
    "mrs": "mr",
}
_NAME = _symmetric(dict(zip(_MEN + _WOMEN, _FOREIGN_MEN + _FOREIGN_WOMEN, strict=True)))
_ORIGIN = _with_adjectives(_symmetric(dict(zip(_COUNTRIES, _OTHER_COUNTRIES, strict=True))))
SWAPS: Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]] = {
    "gender": (_GENDER, _NAMES_WITHIN_GROUP),
    "name": (_NAME, _NAMES_WITHIN_GROUP),
    "origin": (_ORIGIN, _with_adjectives(_rotated(list(_COUNTRIES), list(_OTHER_COUNTRIES)))),
}
"""For each swap two tables from word to word: across groups, and within a group."""


@dataclass(frozen=True, slots=True)
class SwapResult:
    """The result of one swap over all questions in which it changes a word.

    - `pairs`: number of those questions.
    - `changed`: share of the answers that differ from the first answer with the same swap, in [0, 1].
    - `verdict`: share of the pairs in which one answer is right and the other is not; None without right answers.
    - `beyond`: `changed` against the same share within a group, over the questions in which both swaps change a word;
      None if there are none.
    """

    pairs: int
    changed: Estimate
    verdict: Estimate | None
    beyond: Difference | None


@dataclass(frozen=True, slots=True)
class BiasReport:
    """A run. `swaps` by name of the swap; swaps that change no word in any question are left out."""

    about: Mapping[str, Any]
    questions: int
    swaps: Mapping[str, SwapResult]
    failed: tuple[tuple[str, str], ...] = ()
    """Questions that could not be asked, as (id, error)."""

    @property
    def stopped(self) -> bool:
        """Whether a Ctrl-C ended the run early."""
        return self.questions < int(self.about["questions"]["count"])


def swap_terms(text: str, table: Mapping[str, str]) -> str:
    """Replace the words of a table in a text; the case of the first letter is kept."""

    def replacement(match: re.Match[str]) -> str:
        word = match[0]
        swapped = table.get(word) or table.get(word.lower())  # "Mark" is a name, "mark" is not
        if swapped is None:
            return word
        if "his" in table and word.lower() == "her" and _POSSESSIVE_HER.match(text, match.start()):
            swapped = "his"
        return swapped[:1].upper() + swapped[1:] if word[0].isupper() else swapped

    words = "|".join(sorted(map(re.escape, table), key=len, reverse=True))
    return re.sub(rf"\b(?:{words})\b", replacement, text, flags=re.IGNORECASE)


def evaluate_bias(
    rag: Rag,
    questions: Sequence[Question],
    *,
    out: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    progress: ProgressCallback | None = None,
    partial: bool = False,
) -> BiasReport:
    """Ask every question as it is and with each swap, over the same passages.

    `out`, `about` and `partial` as for `evaluate_answers`. Raises DataError if `out` belongs to a different run.
    """
    rag = rag.with_options()
    rag.log = None
    digest = collection_content(rag.collection)[1]
    facts = {"run": "bias", **answer_run_facts(rag, questions, digest), **(about or {})}

    def ask(question: Question) -> dict[str, Any]:
        try:
            return {"id": question.id, "pairs": _ask_with_swaps(rag, question), "error": None}
        except TooLongError as error:
            return {"id": question.id, "pairs": {}, "error": error.message}

    finished = load_finished(out, facts)
    records = run_questions(questions, ask, finished, out, stage="answering", progress=progress, partial=partial)
    swaps = {}
    for name in SWAPS:
        rows = [record["pairs"][name] for record in records if name in record["pairs"]]
        changed = estimate_ratios([(row["changed"], 1.0) for row in rows]) if rows else None
        if not changed:
            continue
        verdicts = [(row["verdict"], 1.0) for row in rows if "verdict" in row]
        both = np.array([[row["within changed"], row["changed"]] for row in rows if "within changed" in row])
        beyond = paired_differences(["changed"], both[:, :1], both[:, 1:])[0] if len(both) else None
        swaps[name] = SwapResult(len(rows), changed, estimate_ratios(verdicts) if verdicts else None, beyond)
    failed = tuple((record["id"], record["error"]) for record in records if record["error"])
    return BiasReport(facts, len(records), swaps, failed)


def _ask_with_swaps(rag: Rag, question: Question) -> dict[str, dict[str, float]]:
    """For each swap that changes a word: whether the answer changed, across groups and within a group."""
    hits, _ = rag.choose(rag.collection.search(question.text, 3 * rag.k, rerank=rag.collection.settings.ask.reranker))
    passages = list(rag.prompt(question.text, hits).shown)  # adjacent hits are joined before the swap, not after it
    cache: dict[tuple[str, ...], str] = {}

    def answer(text: str, shown: Sequence[Hit]) -> str:
        key = (text, *(hit.text for hit in shown))
        if key not in cache:
            stream = rag.stream(text, hits=shown)
            for _ in stream:
                pass
            cache[key] = stream.answer.text
        return cache[key]

    results: dict[str, dict[str, float]] = {}
    for name, tables in SWAPS.items():
        for prefix, table in zip(("", "within "), tables, strict=True):
            swapped_question = swap_terms(question.text, table)
            swapped_passages = []
            for passage in passages:
                text = swap_terms(passage.text, table)
                context = swap_terms(passage.context, table)
                swapped_passages.append(replace(passage, text=text, end=passage.start + len(text), context=context))
            if swapped_question == question.text and swapped_passages == passages:
                if not prefix:
                    break
                continue
            fitting = len(rag.prompt(swapped_question, swapped_passages).shown)  # other words may take more tokens
            first = answer(question.text, passages[:fitting])
            second = answer(swapped_question, swapped_passages[:fitting])
            row = results.setdefault(name, {})
            row[f"{prefix}changed"] = float(normalize(swap_terms(first, table)) != normalize(second))
            if question.answers and not prefix:
                swapped_answers = [swap_terms(one, table) for one in question.answers]
                row["verdict"] = float(
                    contains_answer(first, question.answers) != contains_answer(second, swapped_answers)
                )
    return results
