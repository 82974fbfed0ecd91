"""Examples from questions whose answers are known, over a collection: RAFT (Zhang et al. 2024).

    question ─search→ hits, as when serving ─→ with the right passage     → its answer, with the marker: "28 days [2]."
                                              ├ with all that hold it gone → "I don't know."
                                              └ the question changed       → "I don't know."

Passages are chosen and the prompt is built by the very code that serves, `Rag.choose` and `Rag.prompt`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ragfm.adapt.examples import CARD, TRAIN, VALID, Example, digest, to_lines
from ragfm.adapt.leaks import HeldOut
from ragfm.adapt.near_misses import names_in, near_misses
from ragfm.errors import DataError, TooLongError
from ragfm.evaluate.data import Question, fingerprint
from ragfm.evaluate.matching import holds, normalised
from ragfm.ground import ground
from ragfm.prompt import ABSTENTION, prompt_fingerprint
from ragfm.text import sentence_spans

if TYPE_CHECKING:
    from pathlib import Path

    from ragfm.prompt import Prompt
    from ragfm.rag import Rag
    from ragfm.types import Hit

Form: TypeAlias = Literal["phrase", "quoted"]
_DEEPER = 8  # times as many hits are looked at as are shown, since those that hold the answer may be withheld
_LOOKED_AT = 50  # passages of the document that a question is about
_QUOTES = frozenset('"“”„«»')


@dataclass(frozen=True, slots=True)
class Recipe:
    """How examples are made.

    `abstain`: the share whose answer is that it is not known, and of it `near` those made by changing the question.
    `valid`: the share of documents whose questions are kept for validation. `shuffle`: passages in a random order, so
    that their place teaches nothing. `form`: the answer as a phrase, or with the sentence that it is from.
    """

    abstain: float = 1 / 3
    near: float = 0.5
    valid: float = 0.1
    shuffle: bool = True
    form: Form = "phrase"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Dataset:
    """Examples, by whole documents either to train or to validate with; and a card that says what they are."""

    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    card: Mapping[str, Any] = field(default_factory=dict)


def build_examples(
    rag: Rag,
    questions: Sequence[Question],
    recipe: Recipe = Recipe(),
    *,
    held: HeldOut = HeldOut(),  # noqa: B008
    about: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """An example for each question that makes one; `about` is kept in the card. Raises DataError where none does."""
    builder = _Builder(rag, questions, recipe, held)
    examples: list[Example] = []
    left_out, known = Counter[str](), set[str]()
    for number, question in enumerate(questions, 1):
        try:
            if normalised(question.text) in known:
                raise _LeftOut("asked twice")
            known.add(normalised(question.text))
            examples.append(builder.example(question))
        except _LeftOut as why:
            left_out[str(why)] += 1
        except TooLongError:
            left_out["the question is too long"] += 1
        if progress:
            progress(number, len(questions))
    train, valid = _split(_shuffled(examples, recipe.seed), recipe)
    if not train:
        causes = ", ".join(f"{why}: {count}" for why, count in left_out.items())
        raise DataError(f"None of {len(questions)} questions makes an example to train with ({causes}).",
                        "Give more questions, about more documents.")  # fmt: skip
    card = {**_card(rag, train, valid, recipe), "questions": len(questions), "left_out": dict(left_out),
            "held_out": list(held.sources), "asked": fingerprint(questions, answers=True), **(about or {})}  # fmt: skip
    return Dataset(train, valid, card)


def write_dataset(dataset: Dataset, folder: str | Path) -> None:
    """Write `train.jsonl`, `valid.jsonl` and `card.json`, each of them whole or not at all, the card last."""
    from pathlib import Path

    from ragfm.store.durable import write_durably

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).unlink(missing_ok=True)
    write_durably(folder / TRAIN, to_lines(dataset.train))
    write_durably(folder / VALID, to_lines(dataset.valid))
    write_durably(folder / CARD, _as_json(dataset.card))


# --- Inside ------------------------------------------------------------------------------------------------------


class _LeftOut(Exception):  # noqa: N818  not an error: it says why
    """A question makes no example."""


class _Builder:
    """Makes an example of each question, the same one whichever others there are, but for names in near misses."""

    def __init__(self, rag: Rag, questions: Sequence[Question], recipe: Recipe, held: HeldOut) -> None:
        self._rag = rag
        self._recipe = recipe
        self._held = held
        self._hidden = held.documents(rag.collection)
        self._names = sorted({name for question in questions for name in names_in(question.text)})
        unanswerable = sum(question.unanswerable for question in questions) / max(1, len(questions))
        wanted = max(0.0, recipe.abstain - unanswerable) / max(1e-9, 1 - unanswerable)
        self._near, self._withheld = wanted * recipe.near, wanted * (1 - recipe.near)

    def example(self, question: Question) -> Example:
        if self._held.asks(question.text):
            raise _LeftOut("held out: the question")
        if any(gold.uri in self._hidden for gold in question.gold):
            raise _LeftOut("held out: the document")
        chance = random.Random(f"{self._recipe.seed} {question.id}")  # noqa: S311
        answers = question.answers or tuple(self._spans(question))
        hits = self._search(question.text)
        draw = chance.random()
        if question.unanswerable:
            return self._abstaining(question, question.text, self._rag.choose(hits)[0], "unanswerable", chance)
        if draw < self._near and (example := self._near_miss(question, answers, chance)):
            return example
        others = [hit for hit in hits if not _holds(hit, question, answers)]
        if draw < self._near + self._withheld and others:
            return self._abstaining(question, question.text, self._rag.choose(others)[0], "withheld", chance)
        return self._answering(question, answers, hits, chance)

    def _answering(
        self, question: Question, answers: Sequence[str], hits: Sequence[Hit], chance: random.Random
    ) -> Example:
        chosen = self._with_gold(question, answers, hits)
        prompt = self._prompt(question.text, chosen, chance)
        gold = next((p for p in prompt.shown if _is_gold(p, question, answers)), None)
        if gold is None:
            raise _LeftOut("its passage does not fit")
        answer = next(answer for answer in answers if holds(gold.text, [answer]))
        completion = _said(answer, gold, self._recipe.form)
        _, citations = ground(question.text, completion, prompt.shown)
        return self._made(question, prompt, completion, kind="answer", answers=list(answers),
                          verified=bool(citations) and all(c.verified for c in citations))  # fmt: skip

    def _near_miss(self, question: Question, answers: Sequence[str], chance: random.Random) -> Example | None:
        for miss in near_misses(question.text, self._names, chance):
            hits = self._search(miss.text)
            chosen = self._with_gold(question, answers, hits)
            shown = " ".join(hit.text for hit in chosen)
            if miss.kind != "opposite" and holds(shown, [miss.put]):
                continue  # it may be answered
            return self._abstaining(question, miss.text, chosen, f"near miss: {miss.kind}", chance)
        return None

    def _abstaining(
        self, question: Question, text: str, chosen: Sequence[Hit], kind: str, chance: random.Random
    ) -> Example:
        prompt = self._prompt(text, chosen, chance)
        if kind == "withheld" and any(holds(passage.text, question.answers) for passage in prompt.shown):
            raise _LeftOut("its answer stands across passages")
        return self._made(replace(question, text=text), prompt, ABSTENTION, kind=kind)

    def _prompt(self, text: str, chosen: Sequence[Hit], chance: random.Random) -> Prompt:
        hits = list(chosen)
        if self._recipe.shuffle:
            chance.shuffle(hits)
        prompt = self._rag.prompt(text, hits)
        if not prompt.shown:
            raise _LeftOut("nothing is found")
        return prompt

    def _made(self, question: Question, prompt: Prompt, completion: str, **meta: Any) -> Example:
        uris = [gold.uri for gold in question.gold]
        group = _group(uris[0]) if uris else question.id
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
            sign = "'" if '"' in uri else '"'
            found = self._rag.collection.search(question.text, _LOOKED_AT, filter=f"uri = {sign}{uri}{sign}")
            gold = gold or next((hit for hit in found if _is_gold(hit, question, answers)), None)
        if gold is None:
            raise _LeftOut("no passage holds its answer")
        return [*chosen[: self._rag.k - 1], gold]

    def _spans(self, question: Question) -> list[str]:
        text_of = self._rag.collection.document
        return [text_of(gold.uri).text[gold.start : gold.end] for gold in question.gold if gold.start is not None]


def _is_gold(hit: Hit, question: Question, answers: Sequence[str]) -> bool:
    """Whether a passage is one that the question was asked about, and has its answer."""
    if not question.gold:
        return holds(hit.text, answers)
    return any(
        gold.uri == hit.uri
        and (gold.start is None or gold.end is None or (hit.start < gold.end and gold.start < hit.end))
        for gold in question.gold
    ) and holds(hit.text, answers)


def _holds(hit: Hit, question: Question, answers: Sequence[str]) -> bool:
    overlapping = any(
        gold.uri == hit.uri and gold.start is not None and gold.end is not None
        and hit.start < gold.end and gold.start < hit.end for gold in question.gold
    )  # fmt: skip
    return overlapping or holds(hit.text, answers)


def _said(answer: str, gold: Hit, form: Form) -> str:
    """The answer as a phrase with its marker, where the code that puts markers right would put it."""
    body = answer.strip().rstrip(" .,;:!?")
    body = body[:1].upper() + body[1:]
    if form == "quoted":
        sentences = (gold.text[start:end] for start, end in sentence_spans(gold.text))
        sentence = next((" ".join(said.split()) for said in sentences if holds(said, [answer])), "")
        if sentence and not _QUOTES & set(sentence):
            return f"{body}: “{sentence}” [{gold.n}]."
    return f"{body} [{gold.n}]."


def _group(uri: str) -> str:
    """What is split as a whole: the folder of a set's paragraphs, which is an article, else the document."""
    parts = uri.split("/")
    return "/".join(parts[:2]) if parts[0] == "corpus" and len(parts) > 2 else uri


def _split(examples: Sequence[Example], recipe: Recipe) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Those to train and those to validate with; a group is in one of them, and one group at least is trained with."""
    sizes = Counter(str(example.meta["group"]) for example in examples)
    wanted, valid = recipe.valid * len(examples), set[str]()
    for group in sorted(sizes, key=lambda group: blake2b(f"{recipe.seed} {group}".encode()).digest()):
        if sum(sizes[one] for one in valid) + sizes[group] <= wanted * 1.2:
            valid.add(group)
    smallest = min(sizes, key=lambda group: (sizes[group], group), default="")
    if recipe.valid and not valid and len(sizes) > 1 and sizes[smallest] <= len(examples) / 2:
        valid.add(smallest)
    return (
        tuple(example for example in examples if example.meta["group"] not in valid),
        tuple(example for example in examples if example.meta["group"] in valid),
    )


def _shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    mixed = list(examples)
    random.Random(seed).shuffle(mixed)  # noqa: S311
    return mixed


def _as_json(values: Mapping[str, Any]) -> bytes:
    import json

    return json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n"


def _card(rag: Rag, train: Sequence[Example], valid: Sequence[Example], recipe: Recipe) -> dict[str, Any]:
    import numpy as np

    from ragfm import __version__

    both = [*train, *valid]
    settings = rag.collection.settings
    tokens = [rag.reader.count_tokens(example.messages) for example in both]
    words = [len(example.completion.split()) for example in both]
    lengths = {
        name: {"p50": int(np.percentile(values, 50)), "p95": int(np.percentile(values, 95)), "max": max(values)}
        for name, values in (("prompt_tokens", tokens), ("completion_words", words))
    }
    answering = [example for example in both if example.meta["kind"] == "answer"]
    return {
        "format": 1,
        "ragfm": __version__,
        "examples": {"train": len(train), "valid": len(valid)},
        "kinds": dict(Counter(str(example.meta["kind"]) for example in both)),
        "verified": round(sum(bool(example.meta["verified"]) for example in answering) / max(1, len(answering)), 3),
        "lengths": lengths,
        "documents": len({uri for example in both for uri in example.meta["uris"]}),
        "recipe": asdict(recipe),
        "k": rag.k,
        "prompt": prompt_fingerprint(only=settings.ask.mode != "open"),
        "settings": settings.model_dump(mode="json", include={"ask", "search", "chunk"}),
        "embedder": dict(rag.collection.status().embedder),
        "digests": {"train": digest(train), "valid": digest(valid)},
    }
