"""Strategies: in which words a reader is asked, with which examples, and where in what it says the answer begins.

Each is a TOML file: those that ship are in `strategies/`, beside this one.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfm.core.errors import ConfigError, DataError
from ragfm.core.types import Message

if TYPE_CHECKING:
    from ragfm.core.types import KeywordIndex

__all__ = ["STRATEGIES", "Strategy", "load_strategy", "numbered"]

_FOLDER = Path(__file__).parent / "prompt_templates"
STRATEGIES = tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))
_KEYS = {"system", "ask", "open", "examples", "pool", "pick", "answer_after", "thinking_tokens"}
_PICK = 3
_THOUGHT = "</think>"
"""What reasoning models write between their thoughts and their answer."""


@dataclass(frozen=True, slots=True)
class Words:
    """The system message, and what is asked after the passages, with `{question}` in it."""

    system: str
    ask: str


@dataclass(frozen=True, slots=True)
class Shot:
    """A question with its passages, as it would be asked, and its answer. `topic` is what it is found by."""

    topic: str
    turns: tuple[Message, ...]


@dataclass(frozen=True)
class Strategy:
    """How a reader is asked: by the words `strict` from the passages alone, by `free` from what it knows as well.

    `shots` are shown with every question, and of `pool` the `pick` most like it. `answer_after` stands between
    thoughts, which may have `thinking_tokens`, and the answer.
    """

    name: str
    strict: Words
    free: Words
    shots: tuple[Shot, ...] = ()
    pool: tuple[Shot, ...] = field(default=(), repr=False)
    pick: int = _PICK
    answer_after: str | None = None
    thinking_tokens: int = 0

    def words(self, *, only: bool) -> Words:
        """Those for a reader that may use the passages alone, or not."""
        return self.strict if only else self.free

    def turns(self, question: str) -> list[Message]:
        """The examples to show before a question, the one most like it last."""
        return [turn for shot in (*self.shots, *reversed(self._nearest(question))) for turn in shot.turns]

    def parted(self, said: str) -> tuple[str, str]:
        """What a reader said, as its thoughts and its answer."""
        thoughts, mark, answer = said.rpartition(_THOUGHT)
        if self.answer_after and self.answer_after in answer:
            more, _, answer = answer.rpartition(self.answer_after)
            thoughts += more
        return thoughts.removeprefix("<think>").strip(), answer.strip() if thoughts or mark else said.strip()

    @property
    def fingerprint(self) -> str:
        """A hash of the pool; empty without one."""
        return blake2b(repr(self.pool).encode(), digest_size=16).hexdigest() if self.pool else ""

    @property
    def known_as(self) -> str:
        """By what calibrations and runs know it: its name where it ships, else its file's with a hash of its words."""
        if self.name in STRATEGIES:
            return self.name
        says = [getattr(self, one.name) for one in fields(self) if one.name != "name"]
        return f"{Path(self.name).name} {blake2b(repr(says).encode(), digest_size=8).hexdigest()}"

    def _nearest(self, question: str) -> list[Shot]:
        if not self.pool:
            return []
        _, ids = self._index.search([question], self.pick)
        return [self.pool[at] for at in ids[0].tolist() if at >= 0]

    @cached_property
    def _index(self) -> KeywordIndex:
        import numpy as np

        from ragfm.core.registry import load_plugin

        kind: type[KeywordIndex] = load_plugin("keyword_indexes", "bm25")
        return kind.build(np.arange(len(self.pool)), [shot.topic for shot in self.pool])


def numbered(passages: Sequence[str]) -> list[str]:
    """The passages, with numbers from 1."""
    return [f"[{n}] {passage}" for n, passage in enumerate(passages, 1)]


@lru_cache
def load_strategy(name: str = "zero-shot", folder: Path = Path()) -> Strategy:
    """The strategy of a name, or of a file, whose path is relative to `folder`.

    Raises ConfigError for one that can't be read, DataError for a pool that can't.
    """
    path = _FOLDER / f"{name}.toml" if name in STRATEGIES else folder / Path(name).expanduser()
    if not path.is_file():
        hint = f"Name one of {', '.join(STRATEGIES)}, or a TOML file; see docs/answers.md."
        raise ConfigError(f"There is no strategy {name!r}.", hint)
    try:
        return _strategy(name, tomllib.loads(path.read_text(encoding="utf-8")), path.parent)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ConfigError(f"The strategy {path} can't be read: {why}.", "docs/answers.md has its form.") from error


def _strategy(name: str, says: Mapping[str, Any], folder: Path) -> Strategy:
    if unknown := set(says) - _KEYS:
        raise ValueError(f"there is no key `{min(unknown)}`")
    strict = _words(says)
    examples = tuple(_shot(example, strict) for example in says.get("examples", ()))
    return Strategy(
        name,
        strict,
        _words(says.get("open", says)),
        examples,
        tuple(_pool(folder / says["pool"], strict)) if "pool" in says else (),
        int(says.get("pick", _PICK)),
        says.get("answer_after"),
        int(says.get("thinking_tokens", 0)),
    )


def _words(says: Mapping[str, Any]) -> Words:
    words = Words(str(says["system"]), str(says["ask"]))
    if "{question}" not in words.ask:
        raise ValueError("`ask` has no {question} in it")
    return words


def _shot(example: Mapping[str, Any], words: Words) -> Shot:
    """An example with `passages`, `question` and `answer`; or one that `ragfm adapt data` has made."""
    if "messages" in example:
        turns = [Message(turn["role"], turn["content"]) for turn in example["messages"] if turn["role"] != "system"]
        topic, answer = turns[-1].content.rpartition("\n\n")[2], example["completion"]
    else:
        topic, answer = example["question"], example["answer"]
        asked = words.ask.replace("{question}", topic)
        turns = [Message("user", "\n\n".join([*numbered(example["passages"]), asked]))]
    if not all(isinstance(text, str) and text for text in (topic, answer)):
        raise ValueError("question and answer of an example are texts, and not empty")
    return Shot(topic, (*turns, Message("assistant", answer)))


def _pool(path: Path, words: Words) -> list[Shot]:
    if not path.is_file():
        raise DataError(f"There is no file of examples {path}.", "It is named by `pool` in the strategy's file.")
    shots = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):  # JSON may have U+2028 in it
        if line.strip():
            try:
                shots.append(_shot(json.loads(line), words))
            except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
                raise DataError(f"{path}, line {number} is no example: {error!r}.", "See docs/answers.md.") from error
    return shots
