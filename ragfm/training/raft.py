"""Examples from questions whose answers are known, over a collection: RAFT (Zhang et al. 2024).

    question ─search→ hits, as when serving ─→ with the right passage     → its answer, with the marker: "28 days [2]."
                                              ├ with all that hold it gone → "I don't know."
                                              └ the question changed       → "I don't know."

Passages are chosen and the prompt is built by the very code that serves, `Rag.choose` and `Rag.prompt`.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ragfm.citations.decision import ground
from ragfm.core.abstention import ABSTENTION
from ragfm.core.errors import TooLongError
from ragfm.core.text import sentence_spans
from ragfm.core.types import embedded_text
from ragfm.evaluation.answer_matching import contains_answer, is_yes_no, normalise, passage_has_answer
from ragfm.evaluation.question_sets import Question, fingerprint
from ragfm.store.filters import quote_value
from ragfm.training.dataset import Dataset, Form, Recipe, as_dataset, group_of
from ragfm.training.examples import Example
from ragfm.training.held_out import HeldOut
from ragfm.training.unanswerable_questions import names_in, near_misses

if TYPE_CHECKING:
    from ragfm.core.types import Hit
    from ragfm.generation.prompt import Prompt
    from ragfm.rag import Rag

_DEEPER = 8  # times as many hits are looked at as are shown, since those that hold the answer may be withheld
_LOOKED_AT = 50  # passages of the document that a question is about
_MANY = 2  # of the questions about a document that are withheld, and of those that aren't, where both are to be
_ABBREVIATION = re.compile(r"(?:\b[^\W\d_]\.){2,}$")
"""At the end of an answer; the last full stop is part of it."""
_QUOTES = frozenset('"“”„«»')


def build_examples(
    rag: Rag,
    questions: Sequence[Question],
    recipe: Recipe = Recipe(),  # noqa: B008
    *,
    held: HeldOut = HeldOut(),  # noqa: B008
    about: Mapping[str, Any] | None = None,
    alone: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """An example for each question that makes one; `about` is kept in the card.

    Raises DataError where none does; not where it is not `alone`, but to be given to `with_examples`.
    """
    builder = _Builder(rag, questions, recipe, held)
    examples: list[Example] = []
    left_out, known = Counter[str](), set[str]()
    for number, question in enumerate(questions, 1):
        try:
            if normalise(question.text) in known:
                raise _LeftOut("asked twice")
            known.add(normalise(question.text))
            examples.append(builder.example(question))
        except _LeftOut as why:
            left_out[str(why)] += 1
        except TooLongError:
            left_out["the question is too long"] += 1
        if progress:
            progress(number, len(questions))
    facts = {"questions": len(questions), "held_out": list(held.sources), "asked": fingerprint(questions, answers=True),
             **(about or {})}  # fmt: skip
    return as_dataset(rag, examples, recipe, left_out, facts, alone=alone)


# --- Inside ------------------------------------------------------------------------------------------------------


class _LeftOut(Exception):  # noqa: N818  not an error: it says why
    """A question makes no example."""


class _Builder:
    """Makes an example of each question."""

    def __init__(self, rag: Rag, questions: Sequence[Question], recipe: Recipe, held: HeldOut) -> None:
        self._rag = rag
        self._recipe = recipe
        self._held = held
        self._hidden = held.documents(rag.collection)
        self._names = sorted({name for question in questions for name in names_in(question.text)})
        self._known: dict[tuple[str, bool], list[list[Hit]]] = {}
        unanswerable = sum(question.unanswerable for question in questions) / max(1, len(questions))
        wanted = max(0.0, recipe.abstain - unanswerable) / max(1e-9, 1 - unanswerable)
        withheld = wanted * (1 - recipe.near)
        self._withheld = self._drawn([question for question in questions if not question.unanswerable], withheld)
        self._near = wanted * recipe.near / max(1e-9, 1 - withheld)  # of those that are not withheld

    def example(self, question: Question) -> Example:
        if self._held.asks(question.text):
            raise _LeftOut("held out: the question")
        if any(gold.uri in self._hidden for gold in question.gold):
            raise _LeftOut("held out: the document")
        chance = self._chance(question.id)
        answers = question.answers or tuple(self._spans(question))
        verdict = is_yes_no(answers)  # changed in a word, such a question often has another answer, but has one
        if verdict and not question.gold:
            raise _LeftOut("yes or no, of no document")
        if question.unanswerable:
            return self._abstaining(question, question.text, self._passages(question, answers), "unanswerable")
        if question.id in self._withheld:
            others = self._passages(question, answers, withheld=True)
            if others:
                return self._abstaining(question, question.text, others, "withheld")
        if chance.random() < self._near and not verdict and (example := self._near_miss(question, answers, chance)):
            return example
        return self._answering(question, answers)

    def _drawn(self, questions: Sequence[Question], share: float) -> frozenset[str]:
        """The questions whose answer is to be withheld: of all a share, and of those about a document that has many.

        The few about another document are all drawn or none, so that they are learned over the same passages.
        """
        about: dict[str, list[str]] = {}
        for question in questions:
            whole = question.gold and self._recipe.together
            about.setdefault(question.gold[0].uri if whole else question.id, []).append(question.id)
        drawn, seen = set[str](), 0

        def by_chance(name: str) -> float:
            return self._chance(f"{name} withheld").random()

        for uri in sorted(about, key=by_chance):
            ids = sorted(about[uri], key=by_chance)
            seen += len(ids)
            if min(share, 1 - share) * len(ids) >= _MANY:
                drawn.update(ids[: round(share * len(ids))])
            elif len(drawn) + len(ids) / 2 < share * seen:
                drawn.update(ids)
        return frozenset(drawn)

    def _answering(self, question: Question, answers: Sequence[str]) -> Example:
        prompt = self._prompt(question.text, self._passages(question, answers))
        gold = next((p for p in prompt.shown if _is_gold(p, question, answers)), None)
        if gold is None:
            raise _LeftOut("its passage does not fit")
        answer = next(answer for answer in answers if passage_has_answer(gold, question, [answer]))
        completion = _said(answer, gold, self._recipe.form)
        _, citations = ground(question.text, completion, prompt.shown)
        return self._made(question, prompt, completion, kind="answer", answers=list(answers),
                          verified=bool(citations) and all(c.verified for c in citations))  # fmt: skip

    def _near_miss(self, question: Question, answers: Sequence[str], chance: random.Random) -> Example | None:
        chosen = self._passages(question, answers)
        shown = " ".join(embedded_text(hit.context, hit.text) for hit in chosen)
        for miss in near_misses(question.text, self._names, chance):
            if miss.kind in ("opposite", "negation") or not contains_answer(
                shown, [miss.put]
            ):  # else it may be answered
                return self._abstaining(question, miss.text, chosen, f"near miss: {miss.kind}")
        return None

    def _abstaining(self, question: Question, text: str, chosen: Sequence[Hit], kind: str) -> Example:
        prompt = self._prompt(text, chosen)
        if kind == "withheld" and any(_holds(passage, question, question.answers) for passage in prompt.shown):
            raise _LeftOut("its answer stands across passages")
        changed = {} if text == question.text else {"changed_from": question.text}
        return self._made(replace(question, text=text), prompt, ABSTENTION, kind=kind, **changed)

    def _prompt(self, text: str, chosen: Sequence[Hit]) -> Prompt:
        prompt = self._rag.prompt(text, chosen)
        if not prompt.shown:
            raise _LeftOut("nothing is found")
        return prompt

    def _passages(self, question: Question, answers: Sequence[str], *, withheld: bool = False) -> list[Hit]:
        """What to show, in this order: what was shown to a question about the same text, if it does, or what is found.

        The passage that answers is among them, or none that does where they are `withheld`.
        """
        known: list[list[Hit]] = []
        if question.gold and self._recipe.together:
            known = self._known.setdefault((question.gold[0].uri, withheld), [])
        for hits in known:
            if withheld:
                does = not any(_holds(hit, question, answers) for hit in hits)
            else:
                does = question.unanswerable or any(_is_gold(hit, question, answers) for hit in hits)
            if does:
                return hits
        found = self._search(question.text)
        if withheld:
            chosen = self._rag.choose([hit for hit in found if not _holds(hit, question, answers)])[0]
        elif question.unanswerable:
            chosen = self._rag.choose(found)[0]
        else:
            chosen = self._with_gold(question, answers, found)
        if self._recipe.shuffle:
            self._chance(f"{question.id} order").shuffle(chosen)
        if chosen:
            known.append(chosen)
        return chosen

    def _chance(self, of: str) -> random.Random:
        return random.Random(f"{self._recipe.seed} {of}")  # noqa: S311

    def _made(self, question: Question, prompt: Prompt, completion: str, **meta: Any) -> Example:
        uris = [gold.uri for gold in question.gold]
        group = group_of(uris[0]) if uris else question.id
        meta |= {"id": question.id, "question": question.text, "uris": uris, "group": group,
                 "shown": [passage.uri for passage in prompt.shown]}  # fmt: skip
        return Example(prompt.messages, completion, meta)

    def _search(self, text: str) -> list[Hit]:
        hits = self._rag.collection.search(text, _DEEPER * self._rag.k)
        return [hit for hit in hits if hit.uri not in self._hidden]

    def _with_gold(self, question: Question, answers: Sequence[str], hits: Sequence[Hit]) -> list[Hit]:
        """The hits to show; where the passage that answers is not among them, it takes the last one's place."""
        chosen = self._rag.choose(hits)[0]
        if any(_is_gold(hit, question, answers) for hit in chosen):
            return chosen
        gold = next((hit for hit in hits if _is_gold(hit, question, answers)), None)
        for uri in [] if gold else dict.fromkeys(gold.uri for gold in question.gold):
            found = self._rag.collection.search(question.text, _LOOKED_AT, filter=f"uri = {quote_value(uri)}")
            gold = gold or next((hit for hit in found if _is_gold(hit, question, answers)), None)
        if gold is None:
            raise _LeftOut("no passage holds its answer")
        return [*chosen[: self._rag.k - 1], gold]

    def _spans(self, question: Question) -> list[str]:
        text_of = self._rag.collection.document
        return [text_of(gold.uri).text[gold.start : gold.end] for gold in question.gold if gold.start is not None]


def _is_gold(hit: Hit, question: Question, answers: Sequence[str]) -> bool:
    """Whether a passage is one that the question was asked about, and has its answer."""
    about = not question.gold or any(
        gold.uri == hit.uri
        and (gold.start is None or gold.end is None or (hit.start < gold.end and gold.start < hit.end))
        for gold in question.gold
    )
    return about and passage_has_answer(hit, question, answers)


def _holds(hit: Hit, question: Question, answers: Sequence[str]) -> bool:
    """Whether the question may be answered from a passage as the reader sees it, below its headings."""
    overlapping = any(
        gold.uri == hit.uri and gold.start is not None and gold.end is not None
        and hit.start < gold.end and gold.start < hit.end for gold in question.gold
    )  # fmt: skip
    return overlapping or passage_has_answer(replace(hit, text=embedded_text(hit.context, hit.text)), question, answers)


def _said(answer: str, gold: Hit, form: Form) -> str:
    """The answer as a phrase with its marker, where the code that puts markers right would put it."""
    body = answer.strip().rstrip(" ,;:!?")
    body = body if _ABBREVIATION.search(body) else body.rstrip(" .,;:!?")
    if body.partition(" ")[0].islower():
        body = body[:1].upper() + body[1:]
    if form == "quoted" and not is_yes_no([answer]):
        sentences = (gold.text[start:end] for start, end in sentence_spans(gold.text))
        sentence = next((" ".join(said.split()) for said in sentences if contains_answer(said, [answer])), "")
        if sentence and not _QUOTES & set(sentence):
            return f"{body}: “{sentence}” [{gold.n}]."
    return f"{body} [{gold.n}]."
