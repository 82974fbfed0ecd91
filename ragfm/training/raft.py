"""Training examples from questions with known answers, in the manner of RAFT (Zhang et al. 2024).

    question ─search→ hits ─┬→ with the gold passage           → the answer with its marker: "28 days [2]."
                            ├→ without passages that answer it → "I don't know."
                            └→ with a changed question         → "I don't know."

An answer that no passage has word for word, such as an explanation, is learned from passages that support it: its
sentences with the marker of a passage that says so, without those that no passage supports.

`Rag.choose` and `Rag.prompt`, which also serve, choose the passages and build the prompt.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from ragfm.answering.decision import ground
from ragfm.core.abstention import ABSTENTION
from ragfm.core.errors import CollectionError, TooLongError
from ragfm.core.progress import Progress, ProgressCallback, ignore_progress
from ragfm.core.types import Hit, embedded_text
from ragfm.evaluation.answer_matching import contains_answer, is_yes_no, normalize, passage_has_answer
from ragfm.evaluation.question_sets import Question
from ragfm.generation.prompt import Prompt
from ragfm.rag import Rag
from ragfm.store.filters import quote_value
from ragfm.training.dataset import Recipe, group_of
from ragfm.training.examples import Example, supported_answer
from ragfm.training.held_out import HeldOut
from ragfm.training.unanswerable_questions import names_in, near_misses

_DEPTH_FACTOR = 8  # hits searched for each passage that is shown, since those that hold the answer may be withheld
_DOCUMENT_DEPTH = 50  # hits searched within the document that a question is about
_MIN_PER_SIDE = 2  # a document's questions are split into withheld and answered ones if both sides get this many
_ABBREVIATION = re.compile(r"(?:\b[^\W\d_]\.){2,}$")
"""An abbreviation such as "U.S." at the end of an answer, whose last full stop stays."""


def examples_from_questions(
    rag: Rag,
    questions: Sequence[Question],
    recipe: Recipe = Recipe(),  # noqa: B008  frozen
    *,
    held_out: HeldOut = HeldOut(),  # noqa: B008  frozen
    progress: ProgressCallback | None = None,
) -> tuple[list[Example], Counter[str]]:
    """An example for each question, with the prompts of `rag`; and counts of the other questions by reason.

    Progress has the stage "make examples".
    """
    report = progress or ignore_progress
    builder = _ExampleBuilder(rag, questions, recipe, held_out)
    examples: list[Example] = []
    left_out, seen = Counter[str](), set[str]()
    for number, question in enumerate(questions, 1):
        try:
            if normalize(question.text) in seen:
                raise _LeftOut("asked twice")
            seen.add(normalize(question.text))
            examples.append(builder.build(question))
        except _LeftOut as reason:
            left_out[str(reason)] += 1
        except TooLongError:
            left_out["the question is too long"] += 1
        report(Progress("make examples", number, len(questions)))
    return examples, left_out


class _LeftOut(Exception):  # noqa: N818  not an error
    """The reason why a question does not become an example."""


class _ExampleBuilder:
    def __init__(self, rag: Rag, questions: Sequence[Question], recipe: Recipe, held_out: HeldOut) -> None:
        self._rag, self._recipe, self._held_out = rag, recipe, held_out
        self._hidden = held_out.document_uris(rag.collection)
        self._names = sorted({name for question in questions for name in names_in(question.text)})
        self._shown_before: dict[tuple[str, bool], list[list[Hit]]] = {}
        reranker = rag.collection.settings.ask.reranker
        self._search = lru_cache(1)(partial(rag.collection.search, k=_DEPTH_FACTOR * rag.k, rerank=reranker))
        unanswerable = sum(question.unanswerable for question in questions) / max(1, len(questions))
        abstain = max(0.0, recipe.abstain - unanswerable) / max(1e-9, 1 - unanswerable)
        withheld = abstain * (1 - recipe.near)
        self._withheld = self._choose_withheld(questions, withheld)
        self._near_share = abstain * recipe.near / max(1e-9, 1 - withheld)  # of the questions that are not withheld

    def build(self, question: Question) -> Example:
        """The example of a question. Raises _LeftOut and TooLongError."""
        if self._held_out.contains_question(question.text):
            raise _LeftOut("held out: the question")
        if any(gold.uri in self._hidden for gold in question.gold):
            raise _LeftOut("held out: the document")
        answers = question.answers
        if not answers:  # the spans of the document are the answers
            text_of = self._rag.collection.document
            try:
                answers = tuple(
                    text_of(gold.uri).text[gold.start : gold.end] for gold in question.gold if gold.start is not None
                )
            except CollectionError as error:
                raise _LeftOut("its document is not in the collection") from error
        verdict = is_yes_no(answers)
        if verdict and not question.gold:
            raise _LeftOut("yes or no, of no document")
        contains = partial(passage_has_answer, question=question, answers=answers)
        if question.unanswerable:
            prompt = self._prompt(question.text, self._passages(question, contains) or [])
            return self._abstaining(question, question.text, prompt, "unanswerable")
        example = self._answerable(question, answers, contains)
        if example is None and not verdict:

            def supports(hit: Hit) -> bool:
                """Whether a passage supports a sentence of one of the answers."""
                passages = [replace(hit, n=1)]
                judge = self._rag.judge
                grounded = [ground(question.text, answer, passages, None, judge)[1] for answer in answers]
                return any(one.supports for citations in grounded for one in citations)

            example = self._answerable(question, answers, supports, explains=True)
        if example is None:
            raise _LeftOut("no passage holds its answer")
        return example

    def _answerable(
        self, question: Question, answers: Sequence[str], has_answer: Callable[[Hit], bool], *, explains: bool = False
    ) -> Example | None:
        """The example of a question with answers that passages contain or, if it `explains`, support; None without."""
        passages = self._passages(question, has_answer)
        if passages is None:
            return None
        if question.id in self._withheld and (others := self._passages(question, has_answer, withheld=True)):
            prompt = self._prompt(question.text, others)
            if any(_may_answer(hit, question, has_answer) for hit in prompt.shown):
                raise _LeftOut("its answer stands across passages")
            return self._abstaining(question, question.text, prompt, "withheld")
        rng = self._rng(question.id)
        # A yes-no question that is changed in a word has an answer, though often a different one.
        if rng.random() < self._near_share and not is_yes_no(answers):
            shown = " ".join(embedded_text(hit.context, hit.text) for hit in passages)
            for miss in near_misses(question.text, self._names, rng):
                # If a passage holds the new number or name, it may answer the changed question.
                if miss.kind in ("opposite", "negation") or not contains_answer(shown, [miss.inserted]):
                    prompt = self._prompt(miss.text, passages)
                    return self._abstaining(question, miss.text, prompt, f"near miss: {miss.kind}")
        prompt = self._prompt(question.text, passages)
        if explains:
            found = [supported_answer(question.text, answer, prompt.shown, self._rag.judge) for answer in answers]
            composed = next(filter(None, found), None)
            if composed is None:
                return None
            completion, citations = composed.text, composed.citations
        else:
            gold = _first_gold(prompt.shown, question, has_answer)
            if gold is None:
                raise _LeftOut("its passage does not fit")
            answer = next(answer for answer in answers if passage_has_answer(gold, question, [answer]))
            completion = _format_answer(answer, gold)
            _, citations = ground(question.text, completion, prompt.shown, None, self._rag.judge)
        verified = bool(citations) and all(citation.verified for citation in citations)
        meta = {"kind": "answer", "answers": list(answers), "verified": verified}
        return self._example(question, prompt, completion, meta)

    def _choose_withheld(self, questions: Sequence[Question], share: float) -> frozenset[str]:
        """The questions whose answer is withheld: a share of all, and of those about a document that has many.

        Of a document with few questions all or none are chosen, so that they share their passages.
        """
        by_document: dict[str, list[str]] = {}
        for question in questions:
            if not question.unanswerable:
                by_document.setdefault(question.gold[0].uri if question.gold else question.id, []).append(question.id)

        def random_key(name: str) -> float:
            return self._rng(f"{name} withheld").random()

        chosen, seen = set[str](), 0
        for uri in sorted(by_document, key=random_key):
            ids = sorted(by_document[uri], key=random_key)
            seen += len(ids)
            if min(share, 1 - share) * len(ids) >= _MIN_PER_SIDE:
                chosen.update(ids[: round(share * len(ids))])
            elif len(chosen) + len(ids) / 2 < share * seen:
                chosen.update(ids)
        return frozenset(chosen)

    def _abstaining(self, question: Question, text: str, prompt: Prompt, kind: str) -> Example:
        meta: dict[str, Any] = {"kind": kind}
        if text != question.text:
            meta["changed_from"] = question.text
        return self._example(replace(question, text=text), prompt, ABSTENTION, meta)

    def _prompt(self, text: str, passages: Sequence[Hit]) -> Prompt:
        prompt = self._rag.prompt(text, passages, pictures=False)
        if not prompt.shown:
            raise _LeftOut("nothing is found")
        return prompt

    def _example(self, question: Question, prompt: Prompt, completion: str, meta: Mapping[str, Any]) -> Example:
        uris = [gold.uri for gold in question.gold]
        facts = {
            "id": question.id,
            "question": question.text,
            "uris": uris,
            "group": group_of(uris[0]) if uris else question.id,
            "shown": [hit.uri for hit in prompt.shown],
        }
        return Example(prompt.messages, completion, {**meta, **facts})

    def _passages(
        self, question: Question, has_answer: Callable[[Hit], bool], *, withheld: bool = False
    ) -> list[Hit] | None:
        """The passages to show, in order: those of an earlier question about the document if they serve, else hits.

        One of them answers the question, or none if `withheld`. None if no passage has the answer.
        """
        before: list[list[Hit]] = []
        if question.gold:
            before = self._shown_before.setdefault((question.gold[0].uri, withheld), [])
        for passages in before:
            if withheld:
                serves = not any(_may_answer(hit, question, has_answer) for hit in passages)
            else:
                serves = question.unanswerable or _first_gold(passages, question, has_answer) is not None
            if serves:
                return passages
        hits = [hit for hit in self._search(question.text) if hit.uri not in self._hidden]
        if withheld:
            hits = [hit for hit in hits if not _may_answer(hit, question, has_answer)]
        passages = self._rag.choose(hits)[0]
        if not (withheld or question.unanswerable or _first_gold(passages, question, has_answer)):
            gold = _first_gold(hits, question, has_answer)
            for uri in dict.fromkeys(gold.uri for gold in question.gold):
                if gold is None:
                    within = f"uri = {quote_value(uri)}"
                    found = self._rag.collection.search(question.text, _DOCUMENT_DEPTH, filter=within)
                    gold = _first_gold(found, question, has_answer)
            if gold is None:
                return None
            passages = [*passages[: self._rag.k - 1], gold]
        self._rng(f"{question.id} order").shuffle(passages)  # the model must not learn from their position
        if passages:
            before.append(passages)
        return passages

    def _rng(self, name: str) -> random.Random:
        return random.Random(f"{self._recipe.seed} {name}")  # noqa: S311


def _first_gold(hits: Sequence[Hit], question: Question, has_answer: Callable[[Hit], bool]) -> Hit | None:
    """The first hit that the question was asked about and that has an answer."""
    for hit in hits:
        about = not question.gold or any(gold.overlaps(hit) for gold in question.gold)
        if about and has_answer(hit):
            return hit
    return None


def _may_answer(hit: Hit, question: Question, has_answer: Callable[[Hit], bool]) -> bool:
    """Whether a passage, with the headings that the reader sees above it, may answer the question."""
    if any(gold.start is not None and gold.overlaps(hit) for gold in question.gold):
        return True
    return has_answer(replace(hit, text=embedded_text(hit.context, hit.text)))


def _format_answer(answer: str, gold: Hit) -> str:
    """The answer with its marker where grounding would put it."""
    body = answer.strip().rstrip(" ,;:!?")
    body = body if _ABBREVIATION.search(body) else body.rstrip(" .,;:!?")
    if body.partition(" ")[0].islower():
        body = body[:1].upper() + body[1:]
    return f"{body} [{gold.n}]."
