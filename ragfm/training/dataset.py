"""Examples as a whole: how they are made, parted by document, counted, and written."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ragfm.core.errors import DataError
from ragfm.evaluation.answer_matching import normalise
from ragfm.evaluation.question_sets import CORPUS
from ragfm.generation.prompt import prompt_fingerprint
from ragfm.training.examples import CARD, TRAIN, VALID, Example, digest, to_lines
from ragfm.training.grouping import linked

if TYPE_CHECKING:
    from pathlib import Path

    from ragfm.rag import Rag

Form: TypeAlias = Literal["phrase", "quoted"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How examples are made.

    `abstain`: the share whose answer is that it is not known, and of it `near` those made by changing the question.
    `valid`: the share of documents whose questions are kept for validation. `shuffle`: passages in a random order, so
    that their place teaches nothing. `together`: questions about the same text are asked over the passages that were
    found for one of them, which training then computes once for all. `form`: the answer as a phrase, or with the
    sentence that it is from.
    """

    abstain: float = 1 / 3
    near: float = 0.5
    valid: float = 0.1
    shuffle: bool = True
    together: bool = True
    form: Form = "phrase"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Dataset:
    """Examples, by whole documents either to train or to validate with; and a card that says what they are."""

    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    card: Mapping[str, Any] = field(default_factory=dict)


def as_dataset(
    rag: Rag, examples: Sequence[Example], recipe: Recipe, left_out: Mapping[str, int], about: Mapping[str, Any], *,
    alone: bool = True,
) -> Dataset:  # fmt: skip
    """Examples parted by document, and their card. Raises DataError where there is none to train with.

    One that is not `alone` may be without: others come to it by `with_examples`.
    """
    train, valid = _split(_shuffled(examples, recipe.seed), recipe)
    if not train and not alone:
        return Dataset((), (), {"left_out": dict(left_out), **about})
    if not train:
        causes = ", ".join(f"{why}: {count}" for why, count in left_out.items())
        raise DataError(f"Nothing makes an example to train with ({causes or 'none was given'}).",
                        "Give more questions, about more documents.")  # fmt: skip
    return Dataset(train, valid, {**_card(rag, train, valid, recipe), "left_out": dict(left_out), **about})


def with_examples(
    rag: Rag, dataset: Dataset | None, examples: Sequence[Example], recipe: Recipe, left_out: Mapping[str, int], *,
    sources: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]],
) -> Dataset:  # fmt: skip
    """A dataset with more examples, parted and counted anew; of these the later one of two questions counts.

    `sources` are the card's for these, which stand behind those of the dataset; `held_out` is kept apart from all.
    """
    before = [*dataset.train, *dataset.valid] if dataset else []
    by_question = {normalise(str(example.meta.get("question", at))): example
                   for at, example in enumerate([*before, *examples])}  # fmt: skip
    card: dict[str, Any] = dict(dataset.card) if dataset else {"questions": 0, "reader": rag.reader_name}
    facts = {key: card[key] for key in card if key in ("questions", "asked", "reader", "limit")}
    given = card.get("sources", []) if before else []
    facts |= {"sources": [*given, *sources], "held_out": list(held_out)}
    counts = Counter(card.get("left_out", {})) + Counter(left_out)
    return as_dataset(rag, list(by_question.values()), recipe, counts, facts)


def group_of(uri: str) -> str:
    """What is parted as a whole: the folder of a set's paragraphs, which is an article, else the document."""
    parts = uri.split("/")
    return "/".join(parts[:2]) if parts[0] == CORPUS and len(parts) > 2 else uri


def write_dataset(dataset: Dataset, folder: str | Path) -> None:
    """Write `train.jsonl`, `valid.jsonl` and `card.json`, each of them whole or not at all, the card last."""
    from ragfm.core.durable_files import write_durably
    from ragfm.core.output_folder import make_output

    folder = make_output(folder)
    (folder / CARD).unlink(missing_ok=True)
    write_durably(folder / TRAIN, to_lines(dataset.train))
    write_durably(folder / VALID, to_lines(dataset.valid))
    write_durably(folder / CARD, _as_json(dataset.card))


# --- Inside ------------------------------------------------------------------------------------------------------


def _split(examples: Sequence[Example], recipe: Recipe) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Those to train and those to validate with: they share no document, and there is one at least to train with."""
    names = [sorted({str(example.meta["group"]), *map(group_of, example.meta["uris"])}) for example in examples]
    groups = {min(name for at in group for name in names[at]): group for group in linked(names)}
    wanted, valid = recipe.valid * len(examples), set[int]()
    for first in sorted(groups, key=lambda first: blake2b(f"{recipe.seed} {first}".encode()).digest()):
        if len(valid) + len(groups[first]) <= wanted * 1.2:
            valid.update(groups[first])
    smallest = min(groups.values(), key=len, default=[])
    if recipe.valid and not valid and len(groups) > 1 and len(smallest) <= len(examples) / 2:
        valid.update(smallest)
    return (
        tuple(example for at, example in enumerate(examples) if at not in valid),
        tuple(example for at, example in enumerate(examples) if at in valid),
    )


def _shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    mixed = list(examples)
    random.Random(seed).shuffle(mixed)  # noqa: S311
    return mixed


def _as_json(values: Mapping[str, Any]) -> bytes:
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
        "prompt": prompt_fingerprint(documents_only=settings.ask.mode != "open", strategy=rag.strategy),
        "settings": settings.model_dump(mode="json", include={"ask", "search", "chunk"}),
        "embedder": dict(rag.collection.status().embedder),
        "digests": {"train": digest(train), "valid": digest(valid)},
    }
