"""Prompt strategies: the texts and examples of a prompt, and where the answer starts in the reader's output.

Each strategy is a TOML file; those that ship are in `prompt_templates/`. docs/readers.md describes the format.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ragfm.core.errors import ConfigError, DataError
from ragfm.core.types import KeywordIndex, Message

_FOLDER = Path(__file__).parent / "prompt_templates"
STRATEGIES = tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))
_KEYS = {"system", "ask", "open", "examples", "pool", "pick", "answer_after", "thinking_tokens"}
_PICK = 3
_END_OF_REASONING = "</think>"


@dataclass(frozen=True, slots=True)
class PromptTexts:
    """The system message, and the request after the passages, which contains `{question}`."""

    system: str
    ask: str


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its passages and its answer, as turns of a chat. A pool is searched by `topic`."""

    topic: str
    turns: tuple[Message, ...]


@dataclass(frozen=True)
class Strategy:
    """Texts and examples of a prompt.

    `strict` are the texts for answers from the passages alone, `free` those for answers that may use the reader's own
    knowledge. `examples` are shown with every question, and the `pick` examples of `pool` that are most similar to it.
    `answer_after` separates the reasoning, which has up to `thinking_tokens`, from the answer.
    """

    name: str
    strict: PromptTexts
    free: PromptTexts
    examples: tuple[Example, ...] = ()
    pool: tuple[Example, ...] = field(default=(), repr=False)
    pick: int = _PICK
    answer_after: str | None = None
    thinking_tokens: int = 0

    def texts(self, *, documents_only: bool) -> PromptTexts:
        """The texts for a reader that may use the passages alone, or its own knowledge too."""
        return self.strict if documents_only else self.free

    def example_turns(self, question: str) -> list[Message]:
        """The turns of all examples to show before a question, the most similar one last."""
        similar: list[Example] = []
        if self.pool:
            _, ids = self._pool_index.search([question], self.pick)
            similar = [self.pool[at] for at in ids[0].tolist() if at >= 0]
        return [turn for example in (*self.examples, *reversed(similar)) for turn in example.turns]

    def split_reasoning(self, output: str) -> tuple[str, str]:
        """Split a reader's output into its reasoning and its answer."""
        reasoning, marker, answer = output.rpartition(_END_OF_REASONING)
        if self.answer_after and self.answer_after in answer:
            more, _, answer = answer.rpartition(self.answer_after)
            reasoning += more
        text = answer if reasoning or marker else output
        return reasoning.removeprefix("<think>").strip(), text.strip()

    @property
    def fingerprint(self) -> str:
        """A hash of the pool; empty without one."""
        return blake2b(_stable_repr(self.pool).encode(), digest_size=16).hexdigest() if self.pool else ""

    @property
    def label(self) -> str:
        """The name that calibrations and runs store: of a file, its name with a hash of its content."""
        if self.name in STRATEGIES:
            return self.name
        values = [getattr(self, one.name) for one in fields(self) if one.name != "name"]
        return f"{Path(self.name).name} {blake2b(_stable_repr(values).encode(), digest_size=8).hexdigest()}"

    @cached_property
    def _pool_index(self) -> KeywordIndex:
        import numpy as np

        from ragfm.core.registry import load_plugin

        index: type[KeywordIndex] = load_plugin("keyword_indexes", "bm25")
        return index.build(np.arange(len(self.pool)), [example.topic for example in self.pool])


def _stable_repr(value: object) -> str:
    """A representation whose hash stays the same when classes are renamed: adapters and calibrations store it."""
    return repr(value).replace("PromptTexts(system=", "Words(system=").replace("Example(topic=", "Shot(topic=")


def number_passages(passages: Sequence[str]) -> list[str]:
    """Prefix each passage with its number: `[1]`, `[2]`, and so on."""
    return [f"[{n}] {passage}" for n, passage in enumerate(passages, 1)]


@lru_cache
def load_strategy(name: str = "zero-shot", folder: Path = Path()) -> Strategy:
    """Load a strategy by name, or from a file whose path is relative to `folder`.

    Raises ConfigError if it cannot be read, DataError if its pool cannot.
    """
    path = _FOLDER / f"{name}.toml" if name in STRATEGIES else folder / Path(name).expanduser()
    if not path.is_file():
        hint = f"Name one of {', '.join(STRATEGIES)}, or a TOML file; see docs/readers.md."
        raise ConfigError(f"Unknown strategy {name!r}.", hint)
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        if unknown := set(config) - _KEYS:
            raise ValueError(f"there is no key `{min(unknown)}`")
        strict = _prompt_texts(config)
        return Strategy(
            name,
            strict,
            _prompt_texts(config.get("open", config)),
            tuple(_example(example, strict) for example in config.get("examples", ())),
            tuple(_read_pool(path.parent / config["pool"], strict)) if "pool" in config else (),
            int(config.get("pick", _PICK)),
            config.get("answer_after"),
            int(config.get("thinking_tokens", 0)),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ConfigError(f"The strategy {path} cannot be read: {why}.", "docs/readers.md has its format.") from error


def _prompt_texts(config: Mapping[str, Any]) -> PromptTexts:
    texts = PromptTexts(str(config["system"]), str(config["ask"]))
    if "{question}" not in texts.ask:
        raise ValueError("`ask` has no {question} in it")
    return texts


def _example(example: Mapping[str, Any], texts: PromptTexts) -> Example:
    """An example with `passages`, `question` and `answer`, or one in the format of `ragfm adapt data`."""
    if "messages" in example:
        turns = [Message(turn["role"], turn["content"]) for turn in example["messages"] if turn["role"] != "system"]
        topic, answer = turns[-1].text.rpartition("\n\n")[2], example["completion"]
    else:
        topic, answer = example["question"], example["answer"]
        request = texts.ask.replace("{question}", topic)
        turns = [Message("user", "\n\n".join([*number_passages(example["passages"]), request]))]
    if not all(isinstance(text, str) and text for text in (topic, answer)):
        raise ValueError("question and answer of an example must be non-empty strings")
    return Example(topic, (*turns, Message("assistant", answer)))


def _read_pool(path: Path, texts: PromptTexts) -> list[Example]:
    if not path.is_file():
        raise DataError(f"The file of examples '{path}' does not exist.", "Correct `pool` in the strategy's file.")
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):  # JSON may contain U+2028
        if line.strip():
            try:
                examples.append(_example(json.loads(line), texts))
            except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
                raise DataError(
                    f"{path}, line {number} is not an example: {error!r}.", "docs/readers.md has the format."
                ) from error
    return examples
