"""The judge: a network that reads a question, a statement and a text, and tells what the text says.

It gives the probability that the text answers the question, with the characters of the answer (Devlin et al. 2019,
Rajpurkar et al. 2018), and those that it supports the statement and that it contradicts it (Bowman et al. 2015). Each
token of question and statement has a score for being stated by the text; the least one takes part in both decisions. It
is the only part that decides about evidence by meaning. `benchmarks/train_judge.py` trains it; its weights are changes
of low rank that are added to those of an embedding model.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragfm.core.errors import DamagedModelError, ModelNotFoundError, UnsupportedError
from ragfm.core.tracing import span
from ragfm.embedders.bert import Bert, Layer, Linear, read_weights
from ragfm.embedders.model_folder import read_bert_folder
from ragfm.embedders.networks import BertNetwork
from ragfm.models import judge_base
from ragfm.models.model_lookup import BUNDLED, find_model, weights_sha256

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ragfm.core.types import Vectors
    from ragfm.embedders.sorted_batches import BertBackend

    Floats = NDArray[np.float32]

_log = logging.getLogger(__name__)

SHIPPED = Path(__file__).parents[1] / "models" / "shipped"
SMALL, LARGE, AUTO = "small", "base", "auto"
WEIGHTS = "judge.safetensors"
BASE = "base"
"""The key of its metadata for the hash of the embedding model that the weights are added to."""
WINDOW, QUESTION, STATEMENT, CONTEXT = 384, 96, 128, 96
"""Tokens that are read at once; maximum tokens of a question, of a statement, and of the end of a context.

A longer text is read in parts.
"""
_OVERLAP = 64  # tokens of a text that two parts share, at most half of a part
_AT_ONCE = 128  # texts
_ANSWER = 40  # tokens of an answer at most
_NARROW = 384  # numbers per token of a network that numpy runs in less time than another backend takes to load
MIN_TOKENS_TO_LOAD = 6_000
"""Tokens to rank per process below which the backend that loads at once is used."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """A text to read with a question, a statement, or both, and what stands above it: headings, a table's header."""

    text: str
    question: str = ""
    statement: str = ""
    context: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens that were read at once: their characters, and how likely the answer begins or ends with each.

    `nowhere` is how likely there is no answer. *Shape:* `spans` (tokens, 2), `first` and `last` (tokens,).
    """

    spans: NDArray[np.int64]
    first: Floats
    last: Floats
    nowhere: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the judge read in a text; probabilities in [0, 1]. `supports` and `contradicts` concern the statement."""

    parts: tuple[Part, ...]
    supports: float
    contradicts: float

    @property
    def answers(self) -> float:
        """How likely the text answers the question."""
        return max((1 - part.nowhere for part in self.parts), default=0.0)

    def within(self, start: int, end: int) -> float:
        """How likely the answer begins and ends between two characters of the text."""
        found = 0.0
        for part in self.parts:
            inside = (part.spans[:, 0] >= start) & (part.spans[:, 1] <= end)
            found = max(found, float(part.first[inside].sum() * part.last[inside].sum()))
        return found

    def best(self, bounds: Sequence[int]) -> tuple[float, int, int]:
        """The likeliest answer that crosses none of the bounds: how likely it is, and its characters."""
        found = (0.0, 0, 0)
        for part in self.parts:
            for start, end in pairwise(bounds):
                inside = np.flatnonzero((part.spans[:, 0] >= start) & (part.spans[:, 1] <= end))
                if not inside.size:
                    continue
                chances = np.outer(part.first[inside], part.last[inside])
                chances = np.triu(chances) - np.triu(chances, _ANSWER)
                first, last = np.unravel_index(chances.argmax(), chances.shape)
                characters = int(part.spans[inside[first], 0]), int(part.spans[inside[last], 1])
                found = max(found, (float(chances[first, last]), *characters))
        return found


class Judge:
    """The weights in `folder`, added to those of the embedding model in `base`. Thread-safe; loads on first use.

    Raises DamagedModelError on first use for weights that cannot be read, and UnsupportedError if they belong to
    another embedding model.
    """

    def __init__(self, folder: Path, base: Path) -> None:
        self._folder, self._base = folder, base
        self._lock = threading.Lock()
        self._fast: BertBackend | None = None
        self._warm = False
        self._ranked_tokens = 0

    def load(self) -> None:
        """Load the weights, which is otherwise done when the first text is read."""
        _ = self._exact

    def warm_up(self) -> None:
        """Load the backends that read many texts fastest, which takes seconds, for a long-lived process."""
        with self._lock:
            if not self._warm:
                fast = self._load_fast()
                self._exact = fast if self._is_wide else self._backend(self._network.fast_exact_backend)
                self._warm = True

    def likelihoods(self, question: str, texts: Sequence[str]) -> Vectors:
        """How likely each text answers the question, by the fastest backend. *Shape:* (len(texts),), in [0, 1]."""
        judgements = self.read([Evidence(text, question) for text in texts], fast=True)
        return np.array([one.answers for one in judgements], dtype=np.float32)

    def read(self, evidence: Sequence[Evidence], *, fast: bool = False) -> list[Judgement]:
        """A judgement of each text, by the exact or the fastest backend."""
        if len(evidence) > _AT_ONCE:  # the states of all tokens are in memory
            batches = (evidence[at : at + _AT_ONCE] for at in range(0, len(evidence), _AT_ONCE))
            return [one for batch in batches for one in self.read(batch, fast=fast)]
        tokenizer, (start, end) = self._network.tokenizer, self._special
        encoded = [
            tokenizer.encode_batch([getattr(one, name) for one in evidence], add_special_tokens=False)
            for name in ("question", "statement", "context", "text")
        ]
        rows: list[list[int]] = []
        asked: list[tuple[int, int]] = []  # tokens of question and statement
        spans: list[NDArray[np.int64]] = []
        counts: list[int] = []
        for question, statement, context, text in zip(*encoded, strict=True):
            above = [
                start,
                *question.ids[:QUESTION],
                end,
                *statement.ids[:STATEMENT],
                end,
                *context.ids[-CONTEXT:],
                end,
            ]
            room = WINDOW - len(above) - 1
            offsets = np.array(text.offsets, dtype=np.int64).reshape(-1, 2)
            overlap = min(_OVERLAP, room // 2)
            starts = range(0, max(1, len(offsets) - overlap), room - overlap)
            rows += [[*above, *text.ids[at : at + room], end] for at in starts]
            spans += [offsets[at : at + room] for at in starts]
            asked += [(min(len(question.ids), QUESTION), min(len(statement.ids), STATEMENT))] * len(starts)
            counts.append(len(starts))
        backend = self._ranking_backend(sum(map(len, rows))) if fast else self._exact
        with span("judge", model=self._folder.name, texts=len(evidence), input_tokens=sum(map(len, rows))):
            states = backend.token_states(rows) if rows else []
        read = iter([self._part(*one) for one in zip(states, spans, asked, strict=True)])
        judgements = []
        for count in counts:
            parts = [next(read) for _ in range(count)]
            supports, contradicts = (max(float(stance[at]) for _, stance in parts) for at in (0, 1))
            judgements.append(Judgement(tuple(part for part, _ in parts), supports, contradicts))
        return judgements

    def _part(self, states: Floats, spans: NDArray[np.int64], asked: tuple[int, int]) -> tuple[Part, Floats]:
        """The part that was read, and the probabilities of its stance.

        `asked` is the number of tokens of the question, which come first, and of the statement.
        """
        heads = self._learned
        stated = states @ heads["stated.weight"][0] + heads["stated.bias"]
        question, statement = stated[1 : 1 + asked[0]], stated[2 + asked[0] : 2 + sum(asked)]
        weights = heads["least.weight"][:, 0]
        pooled = np.tanh(heads["pool.weight"] @ states[0] + heads["pool.bias"])
        stances = heads["stance.weight"] @ pooled + heads["stance.bias"]
        stance = _softmax(stances + weights[:3] * _least(np.concatenate([question, statement])))
        here = np.r_[0, len(states) - 1 - len(spans) : len(states) - 1]  # "not here", and the text
        scores = states[here] @ heads["span.weight"].T + heads["span.bias"]
        scores[0] += weights[3] * _least(question)
        chances = _softmax(scores)
        return Part(spans, chances[1:, 0], chances[1:, 1], float(chances[0].mean())), stance

    @cached_property
    def sha256(self) -> str:
        """The hash of its weights."""
        return weights_sha256(self._folder / WEIGHTS)

    @cached_property
    def _special(self) -> tuple[int, int]:
        """The tokens at the start and after each part."""
        tokenizer = self._network.tokenizer
        start, end = ("<s>", "</s>") if tokenizer.token_to_id("</s>") is not None else ("[CLS]", "[SEP]")
        return tokenizer.token_to_id(start), tokenizer.token_to_id(end)

    @cached_property
    def _learned(self) -> dict[str, Floats]:
        return read_learned(self._folder, self._base)

    @cached_property
    def _network(self) -> BertNetwork:
        folder = read_bert_folder(self._base)
        assert folder is not None
        return BertNetwork(folder, replace(with_learned(read_weights(folder.path), self._learned), pooled=False))

    @cached_property
    def _exact(self) -> BertBackend:
        if self._is_wide:
            with self._lock:
                return self._load_fast()
        return self._network.load_bert(self._network.exact_backend)

    @property
    def _is_wide(self) -> bool:
        """Whether the fastest backend loads and reads eight passages sooner than the exact one reads them."""
        return self._network.dim > _NARROW

    def _ranking_backend(self, tokens: int) -> BertBackend:
        """The backend for ranking. Those that are faster take seconds to load, so a single question uses another."""
        with self._lock:
            self._ranked_tokens += tokens
            if self._is_wide or self._ranked_tokens >= MIN_TOKENS_TO_LOAD:
                self._load_fast()
            return self._fast or self._exact

    def _load_fast(self) -> BertBackend:
        if self._fast is None:
            self._fast = self._backend(self._network.fast_backend)
        return self._fast

    def _backend(self, name: str) -> BertBackend:
        """Load a backend, or if it fails the exact one, which always works."""
        try:
            return self._network.load_bert(name)
        except Exception:  # libraries raise errors of any type when the hardware does not support them
            _log.info("The backend %s could not be loaded; using fp32.", name, exc_info=True)
            return self._network.load_bert(self._network.exact_backend)


def configured_judge(name: str, reader: str) -> Judge | None:
    """The judge of the setting `ask.verifier` next to a reader; None for `none`.

    `auto` is `base` if it is installed and the reader is slower than it: not the bundled one, nor `none`. Else it is
    `small`, or None if that is not installed. A judge that is named raises what `find_judge` raises.
    """
    if name == "none":
        return None
    if name != AUTO:
        return load_judge(name)
    for judge in (SMALL,) if reader in ("bundled", "none") else (LARGE, SMALL):
        with suppress(ModelNotFoundError):
            return load_judge(judge)
    return None


@cache
def load_judge(name: str) -> Judge:
    """The judge `small`, `base` or that of a folder, with weights that all callers share; they are read on first use.

    Raises what `find_judge` raises.
    """
    return Judge(*find_judge(name))


def find_judge(name: str) -> tuple[Path, Path]:
    """The folder of a judge, by its name or path, and that of the embedding model that its weights are added to.

    Raises ModelNotFoundError if one of them is missing, DamagedModelError, and UnsupportedError if the embedding model
    is an unknown one.
    """
    folder = SHIPPED / f"judge-{name}" if name in (SMALL, LARGE) else Path(name).expanduser()
    if not (folder / WEIGHTS).is_file():
        raise ModelNotFoundError(f"There is no judge in '{name}'.", f"Use a folder with one, `{SMALL}` or `{LARGE}`.")
    with _opened(folder) as file:
        base = (file.metadata() or {}).get(BASE)
    if base == BUNDLED["embedder"].sha256:
        return folder, find_model("bundled", "embedder")
    if base == judge_base.FILES[judge_base.WEIGHTS]:
        return folder, judge_base.find_judge_base()
    raise UnsupportedError(
        f"The judge in '{folder}' belongs to an unknown embedding model, with the sha256 '{base}'.",
        f"Train it again from the bundled one or '{judge_base.NAME}'.",
    )


class JudgeReranker:
    """Ranks passages by how likely they answer an English question, as the judge reads them.

    This likelihood and the score of the search, added, rank better than either; see docs/retrieval.md.
    """

    weight = 0.4
    calibrated = True

    def __init__(self, name: str = SMALL) -> None:
        """`name` is that of `load_judge`, whose errors this raises."""
        self._judge = load_judge(name)

    def rerank(self, query: str, texts: Sequence[str]) -> Vectors:
        """Likelihoods in [0, 1]. *Shape:* (len(texts),)."""
        return self._judge.likelihoods(query, texts)


def _least(scores: Floats) -> float:
    """The soft minimum of scores; 0 without any."""
    if not scores.size:
        return 0.0
    lowest = float(scores.min())
    return lowest - float(np.log(np.exp(lowest - scores).sum()))


def _softmax(scores: Floats) -> Floats:
    """Probabilities along the first axis."""
    chances = np.exp(scores - scores.max(axis=0))
    found: Floats = chances / chances.sum(axis=0)
    return found


@contextmanager
def _opened(folder: Path) -> Iterator[Any]:
    """The weights of a judge. Raises DamagedModelError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS, framework="np") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise DamagedModelError(f"{folder / WEIGHTS} cannot be read: {error}.", "Train it again.") from error


def read_learned(folder: Path, base: Path) -> dict[str, Floats]:
    """The learned changes of a judge, see `with_learned`, and its heads.

    Raises DamagedModelError, and UnsupportedError if they belong to another embedding model than `base`.
    """
    with _opened(folder) as file:
        expected = (file.metadata() or {}).get(BASE)
        learned = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
    if expected != weights_sha256(base):
        raise UnsupportedError(
            f"The judge in '{folder}' was trained from another model than '{base}'.", "Train it again."
        )
    return learned


def with_learned(bert: Bert, learned: Mapping[str, Floats]) -> Bert:
    """The weights with the learned changes added: a vector as it is, a matrix as the product of two thin ones."""

    def linear(name: str, by: Linear) -> Linear:
        left, right = (learned.get(f"{name}.{side}") for side in ("left", "right"))
        more = left @ right if left is not None and right is not None else learned.get(f"{name}.weight", 0)
        return Linear(by.weight + more, by.bias + learned.get(f"{name}.bias", 0))

    layers = tuple(
        Layer(**{part.name: linear(f"{number}.{part.name}", getattr(layer, part.name)) for part in fields(Layer)})
        for number, layer in enumerate(bert.layers)
    )
    return replace(bert, layers=layers)
