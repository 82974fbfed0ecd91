"""The verifier: a small network that reads question and passage, and says whether and where the answer is.

A BERT reads the question with a passage, and gives each token a score for being the first of the answer, and one for
being the last; the very first token stands for "not here" (Devlin et al. 2019, Rajpurkar et al. 2018). The
reader's answer is then compared with its result (Hu et al. 2019). Reading takes as long as embedding the passages.

The shipped verifier is the bundled embedding model, fine-tuned on SQuAD by low-rank matrices that are added to its
weights. It knows English only. `benchmarks/train_verifier.py` trains it; see docs/answers.md.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ragfm.answering.judge import with_learned
from ragfm.core.errors import DamagedModelError, ModelNotFoundError, UnsupportedError
from ragfm.core.text import is_english
from ragfm.embedders.bert import read_weights
from ragfm.embedders.model_folder import read_bert_folder
from ragfm.embedders.networks import BertNetwork
from ragfm.models.model_lookup import find_model, weights_sha256

if TYPE_CHECKING:
    from ragfm.core.types import Hit, Vectors
    from ragfm.embedders.sorted_batches import BertBackend

    Floats = NDArray[np.float32]

_log = logging.getLogger(__name__)

SHIPPED = Path(__file__).parents[1] / "models" / "shipped" / "minilm-verifier"
WEIGHTS = "verifier.safetensors"
BASE = "base"
"""The key of its metadata for the hash of the embedding model that the weights are added to."""
WINDOW = 384
"""Tokens of question and passage that are read at once; a longer passage is read in parts."""
MIN_TOKENS_TO_LOAD = 6_000
"""Tokens to rank per process below which numpy is used."""
_OVERLAP = 64
BUNDLED = "bundled"
_ANSWER = 16  # tokens of an answer at most
_QUESTION = 96  # tokens; the rest of a longer one is not read
_BLOCK_END = re.compile(r"\n[^\S\n]*(?=\n)|\n(?=\|)|\|")  # a blank line, or the border of a table's row or cell


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens that were read at once: their characters, and how likely the answer begins or ends with each.

    `nowhere` is how likely there is no answer.

    *Shape:* `spans` (tokens, 2), `first` and `last` (tokens,).
    """

    spans: NDArray[np.int64]
    first: Floats
    last: Floats
    nowhere: float

    def within(self, start: int, end: int) -> float:
        """How likely the answer begins and ends between two characters of the passage."""
        inside = (self.spans[:, 0] >= start) & (self.spans[:, 1] <= end)
        return float(self.first[inside].sum() * self.last[inside].sum())

    def best_within(self, start: int, end: int) -> tuple[float, int, int]:
        """The likeliest answer of at most 16 tokens between two characters: how likely it is, and its characters."""
        inside = np.flatnonzero((self.spans[:, 0] >= start) & (self.spans[:, 1] <= end))
        if not inside.size:
            return 0.0, 0, 0
        chances = np.outer(self.first[inside], self.last[inside])
        chances = np.triu(chances) - np.triu(chances, _ANSWER)
        first, last = np.unravel_index(chances.argmax(), chances.shape)
        return float(chances[first, last]), int(self.spans[inside[first], 0]), int(self.spans[inside[last], 1])


@dataclass(frozen=True, slots=True)
class Reading:
    """A passage, read with a question."""

    passage: Hit
    parts: tuple[Part, ...]

    def within(self, start: int, end: int) -> float:
        """How likely the answer stands between two characters of the passage, in [0, 1]."""
        return max((part.within(start, end) for part in self.parts), default=0.0)

    @property
    def best(self) -> tuple[float, int, int]:
        """The likeliest answer: how likely it is, and its characters."""
        return self.best_within(0, len(self.passage.text))

    def best_within(self, start: int, end: int) -> tuple[float, int, int]:
        """The likeliest answer between two characters of the passage: how likely it is, and its characters.

        It never continues after a blank line or the border of a table cell.
        """
        breaks = [0, *(match.end() for match in _BLOCK_END.finditer(self.passage.text)), len(self.passage.text)]
        blocks = [(max(start, first), min(end, last)) for first, last in pairwise(breaks)]
        return max((part.best_within(*block) for part in self.parts for block in blocks), default=(0.0, 0, 0))

    @property
    def anywhere(self) -> float:
        """How likely the answer occurs in the passage, in [0, 1]."""
        return max((1 - part.nowhere for part in self.parts), default=0.0)


class Verifier:
    """Reads passages with a question: the bundled embedding model plus the weights in `folder`. Thread-safe.

    Raises ModelNotFoundError on first use if that model is not installed.
    """

    def __init__(self, folder: Path = SHIPPED) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._fast: BertBackend | None = None
        self._warm = False
        self._ranked_tokens = 0

    def read(self, question: str, passages: Sequence[Hit], language: str | None = None) -> list[Reading]:
        """A reading for each passage; its context is read as well, but the answer is never in it.

        No readings if the question or the texts, which are in `language`, are not in English.
        """
        if not is_english(question, language):
            return []
        texts = [(f"{passage.context}\n" if passage.context else "", passage.text) for passage in passages]
        parts = self._read(question, texts)
        return [Reading(passage, of_passage) for passage, of_passage in zip(passages, parts, strict=True)]

    def load(self) -> None:
        """Load the weights, which is otherwise done when the first passage is read."""
        _ = self._exact

    def warm_up(self) -> None:
        """Load the backends that read many passages fastest, which takes seconds, for a long-lived process."""
        with self._lock:
            if not self._warm:
                self._exact = self._load(self._network.fast_exact_backend)
                self._load_fast()
                self._warm = True

    def likelihoods(self, question: str, texts: Sequence[str]) -> Vectors:
        """How likely each text has the answer, by the fastest backend. *Shape:* (len(texts),), in [0, 1]."""
        parts = self._read(question, [("", text) for text in texts], fast=True)
        found = [max((1 - part.nowhere for part in of_text), default=0.0) for of_text in parts]
        return np.array(found, dtype=np.float32)

    def _read(self, question: str, texts: Sequence[tuple[str, str]], *, fast: bool = False) -> list[tuple[Part, ...]]:
        """The parts of texts, each given with its context, by the exact or the fastest backend."""
        start, end = map(self._tokenizer.token_to_id, ("[CLS]", "[SEP]"))
        asked = [start, *self._tokenizer.encode(question, add_special_tokens=False).ids[:_QUESTION], end]
        room = WINDOW - len(asked) - 1
        cut: list[list[tuple[list[int], NDArray[np.int64]]]] = []  # of each text: the tokens and spans of each part
        encodings = self._tokenizer.encode_batch([above + text for above, text in texts], add_special_tokens=False)
        for (above, _), encoding in zip(texts, encodings, strict=True):
            spans = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) - len(above)
            starts = range(0, max(1, len(spans) - _OVERLAP), room - _OVERLAP)
            cut.append([([*encoding.ids[at : at + room], end], spans[at : at + room]) for at in starts])
        ids = [asked + part for parts in cut for part, _ in parts]
        backend = self._backend(sum(map(len, ids))) if fast else self._exact
        head = self._learned
        states = backend.token_states(ids) if ids else ()
        scores = iter([one @ head["head.weight"].T + head["head.bias"] for one in states])
        return [tuple(_part(next(scores), spans) for _, spans in parts) for parts in cut]

    @cached_property
    def _tokenizer(self) -> Any:
        return self._network.tokenizer

    @cached_property
    def _network(self) -> BertNetwork:
        folder = read_bert_folder(find_model("bundled", "embedder"))
        assert folder is not None
        return BertNetwork(folder, replace(with_learned(read_weights(folder.path), self._learned), pooled=False))

    @cached_property
    def _learned(self) -> dict[str, Floats]:
        return read_learned(self._folder)

    @cached_property
    def _exact(self) -> BertBackend:
        return self._network.load_bert("numpy-fp32")

    def _backend(self, tokens: int) -> BertBackend:
        """The backend for ranking. Backends other than numpy take seconds to load, so a single question uses numpy."""
        with self._lock:
            self._ranked_tokens += tokens
            if self._ranked_tokens >= MIN_TOKENS_TO_LOAD:
                self._load_fast()
            return self._fast or self._exact

    def _load_fast(self) -> None:
        if self._fast is None:
            self._fast = self._load(self._network.fast_backend)

    def _load(self, name: str) -> BertBackend:
        """Load a backend, or if it fails the exact one, which always works."""
        try:
            return self._network.load_bert(name)
        except Exception:  # libraries raise errors of any type when the hardware does not support them
            _log.info("The backend %s could not be loaded; using fp32.", name, exc_info=True)
            return self._exact


def _part(scores: Floats, spans: NDArray[np.int64]) -> Part:
    before = len(scores) - len(spans) - 1
    here = np.r_[0, before : len(scores) - 1]  # "not here", and the passage
    chances = np.exp(scores[here] - scores[here].max(axis=0))
    chances /= chances.sum(axis=0)
    chances[1:][spans[:, 0] < 0] = 0  # the context above it
    return Part(spans, chances[1:, 0], chances[1:, 1], float(chances[0].mean()))


@cache
def load_verifier(name: str = BUNDLED) -> Verifier:
    """The verifier `bundled`, or that of a folder, with weights that all callers share; they are read on first use.

    Raises ModelNotFoundError if the folder has none.
    """
    return Verifier(find_verifier(name))


def find_verifier(name: str) -> Path:
    """The folder of a verifier, by its name or path. Raises ModelNotFoundError if the folder has none."""
    folder = SHIPPED if name == BUNDLED else Path(name).expanduser()
    if not (folder / WEIGHTS).is_file():
        raise ModelNotFoundError(
            f"There is no verifier in '{name}'.",
            "Use a folder with one, or `bundled`.",
        )
    return folder


class VerifierReranker:
    """Ranks passages by how likely they hold the answer to an English question, as the bundled verifier reads them.

    This likelihood and the score of the search, added, rank better than either; see docs/retrieval.md.
    """

    weight = 0.5
    calibrated = True

    def __init__(self, name: str = BUNDLED) -> None:
        """`name` is that of `load_verifier`, whose errors this raises."""
        self._verifier = load_verifier(name)
        self._seconds_per_character = 0.0  # of the last batch; 0 before the first

    def rerank(self, query: str, texts: Sequence[str], *, budget_ms: float | None = None) -> Vectors:
        """Likelihoods in [0, 1]. *Shape:* (len(texts),); NaN for texts beyond the time budget.

        With a budget, a batch of four is started only if the speed of the last one predicts that it ends in time. The
        time for loading the network does not count.
        """
        verifier = self._verifier
        if budget_ms is None:
            return verifier.likelihoods(query, texts)
        verifier.load()
        deadline = time.monotonic() + budget_ms / 1000
        scores = np.full(len(texts), np.nan, dtype=np.float32)
        for at in range(0, len(texts), 4):
            batch = texts[at : at + 4]
            characters, began = sum(map(len, batch)), time.monotonic()
            if began + characters * self._seconds_per_character >= deadline:
                if not at:  # the estimate may be that of a busy moment: the next call tries again
                    self._seconds_per_character = 0.0
                break
            scores[at : at + 4] = verifier.likelihoods(query, batch)
            self._seconds_per_character = (time.monotonic() - began) / max(characters, 1)
        return scores


def read_learned(folder: Path) -> dict[str, Floats]:
    """The learned changes of a verifier, see `with_learned`.

    Raises DamagedModelError, and UnsupportedError if they belong to another embedding model than the bundled one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS, framework="np") as file:
            base = (file.metadata() or {}).get(BASE)
            learned = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedModelError(f"{folder / WEIGHTS} cannot be read: {error}.", "Train it again.") from error
    if base and base != weights_sha256(find_model("bundled", "embedder")):
        raise UnsupportedError(f"The verifier in {folder} was trained from another embedding model.", "Train it again.")
    return learned
