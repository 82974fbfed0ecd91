"""Datasets of training examples: split by document, described by a data card, written to a folder."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ragfm import __version__
from ragfm.core.durable_files import write_durably
from ragfm.core.errors import DataError
from ragfm.core.output_folder import make_output
from ragfm.evaluation.question_sets import CORPUS
from ragfm.generation.prompt import prompt_fingerprint
from ragfm.rag import Rag
from ragfm.training.examples import CARD, TRAIN, VALID, Example, examples_digest, examples_to_jsonl


@dataclass(frozen=True, slots=True)
class Recipe:
    """How examples are made from questions.

    - `abstain`: share of examples whose completion is an abstention.
    - `near`: share of these that are near misses, made by changing the question.
    - `valid`: share of examples that are kept for validation, by whole documents.
    - `seed`: random seed.
    """

    abstain: float = 1 / 3
    near: float = 0.5
    valid: float = 0.1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Dataset:
    """Training and validation examples, which share no document, and the data card that describes them."""

    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    card: Mapping[str, Any] = field(default_factory=dict)


def build_dataset(
    rag: Rag,
    examples: Sequence[Example],
    recipe: Recipe,
    left_out: Mapping[str, int],
    about: Mapping[str, Any] = MappingProxyType({}),
) -> Dataset:
    """Split examples by document and describe them in a data card, which includes `about`.

    `left_out` counts, by reason, the questions without an example. Raises DataError if there is no example to train
    with.
    """
    shuffled = list(examples)
    random.Random(recipe.seed).shuffle(shuffled)  # noqa: S311
    # Examples that share a document are a group. Whole groups are kept for validation, in the order of a hash.
    names = [sorted({str(example.meta["group"]), *map(group_of, example.meta["uris"])}) for example in shuffled]
    groups = {min(name for index in group for name in names[index]): group for group in connected_groups(names)}
    wanted, chosen = recipe.valid * len(shuffled), set[int]()
    for name in sorted(groups, key=lambda name: blake2b(f"{recipe.seed} {name}".encode()).digest()):
        if len(chosen) + len(groups[name]) <= wanted * 1.2:
            chosen.update(groups[name])
    smallest = min(groups.values(), key=len, default=[])
    if recipe.valid and not chosen and len(groups) > 1 and len(smallest) <= len(shuffled) / 2:
        chosen.update(smallest)
    train = tuple(example for index, example in enumerate(shuffled) if index not in chosen)
    valid = tuple(example for index, example in enumerate(shuffled) if index in chosen)
    if not train:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.items())
        raise DataError(
            f"There is no example to train with ({reasons or 'no question was given'}).",
            "Add questions about more documents.",
        )

    settings = rag.collection.settings
    lengths = {
        name: {"p50": int(np.percentile(values, 50)), "p95": int(np.percentile(values, 95)), "max": max(values)}
        for name, values in (
            ("prompt_tokens", [rag.reader.count_tokens(example.messages) for example in shuffled]),
            ("completion_words", [len(example.completion.split()) for example in shuffled]),
        )
    }
    answering = [example for example in shuffled if example.meta["kind"] == "answer"]
    card = {
        "format": 1,
        "ragfm": __version__,
        "examples": {"train": len(train), "valid": len(valid)},
        "kinds": dict(Counter(str(example.meta["kind"]) for example in (*train, *valid))),
        "verified": round(sum(bool(example.meta["verified"]) for example in answering) / max(1, len(answering)), 3),
        "lengths": lengths,
        "documents": len({uri for example in shuffled for uri in example.meta["uris"]}),
        "recipe": asdict(recipe),
        "k": rag.k,
        "prompt": prompt_fingerprint(documents_only=settings.ask.mode != "open", strategy=rag.strategy),
        "settings": settings.model_dump(mode="json", include={"ask", "search", "chunk"}),
        "embedder": dict(rag.collection.status().embedder),
        "digests": {"train": examples_digest(train), "valid": examples_digest(valid)},
        "left_out": dict(left_out),
    }
    return Dataset(train, valid, {**card, **about})


def group_of(uri: str) -> str:
    """The unit that is never split: the article of a question set's paragraph, else the document itself."""
    parts = uri.split("/")
    return "/".join(parts[:2]) if parts[0] == CORPUS and len(parts) > 2 else uri


def connected_groups(names: Sequence[Sequence[str]]) -> list[list[int]]:
    """The connected components of items that share a name: lists of indices. `names` has the names of each item."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # A graph of items and names, with an edge from each item to each of its names.
    nodes = {name: len(names) + n for n, name in enumerate(dict.fromkeys(name for own in names for name in own))}
    edges = [(index, nodes[name]) for index, own in enumerate(names) for name in own]
    size = len(names) + len(nodes)
    graph = coo_array((np.ones(len(edges)), tuple(np.array(edges, dtype=int).reshape(-1, 2).T)), shape=(size, size))
    groups: dict[int, list[int]] = {}
    for index, component in enumerate(connected_components(graph, directed=False)[1][: len(names)].tolist()):
        groups.setdefault(component, []).append(index)
    return list(groups.values())


def write_dataset(dataset: Dataset, folder: str | Path) -> None:
    """Write `train.jsonl`, `valid.jsonl` and, last, `card.json`; each file is replaced atomically."""
    folder = make_output(folder)
    (folder / CARD).unlink(missing_ok=True)
    write_durably(folder / TRAIN, examples_to_jsonl(dataset.train))
    write_durably(folder / VALID, examples_to_jsonl(dataset.valid))
    write_durably(folder / CARD, json.dumps(dataset.card, indent=2, ensure_ascii=False).encode() + b"\n")
