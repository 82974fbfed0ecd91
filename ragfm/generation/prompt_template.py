"""Prompt strategies: the texts and examples of a prompt.

A strategy is a TOML file; docs/readers.md describes the format. `zero-shot.toml` is the default.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ragfm.core.errors import ConfigError
from ragfm.core.types import Message

DEFAULT = "zero-shot"
_KEYS = {"system", "ask", "open", "examples"}


@dataclass(frozen=True, slots=True)
class PromptTexts:
    """The system message, and the request after the passages, which contains `{question}`."""

    system: str
    ask: str


@dataclass(frozen=True, slots=True)
class Strategy:
    """Texts and examples of a prompt.

    `strict` are the texts for answers from the passages alone, `free` those for answers that may use the reader's own
    knowledge. `examples` are turns of a chat that are shown before every question. `label` is the name that
    calibrations and runs store: of a file, its name with a hash of its content.
    """

    label: str
    strict: PromptTexts
    free: PromptTexts
    examples: tuple[Message, ...] = ()

    def texts(self, *, documents_only: bool) -> PromptTexts:
        """The texts for a reader that may use the passages alone, or its own knowledge too."""
        return self.strict if documents_only else self.free


def number_passages(passages: Sequence[str]) -> list[str]:
    """Prefix each passage with its number: `[1]`, `[2]`, and so on."""
    return [f"[{n}] {passage}" for n, passage in enumerate(passages, 1)]


@lru_cache
def load_strategy(name: str = DEFAULT, folder: Path = Path()) -> Strategy:
    """Load the default strategy, or one from a file whose path is relative to `folder`.

    Raises ConfigError if it cannot be read.
    """
    path = Path(__file__).with_name("zero-shot.toml") if name == DEFAULT else folder / Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(f"Unknown strategy {name!r}.", f"Name {DEFAULT}, or a TOML file; see docs/readers.md.")
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        if unknown := set(config) - _KEYS:
            raise ValueError(f"there is no key `{min(unknown)}`")
        strict, free = _prompt_texts(config), _prompt_texts(config.get("open", config))
        turns = tuple(turn for example in config.get("examples", ()) for turn in _turns(example, strict))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ConfigError(f"The strategy {path} cannot be read: {why}.", "docs/readers.md has its format.") from error
    digest = blake2b(repr((strict, free, turns)).encode(), digest_size=8).hexdigest()
    return Strategy(DEFAULT if name == DEFAULT else f"{path.name} {digest}", strict, free, turns)


def _prompt_texts(config: Mapping[str, Any]) -> PromptTexts:
    texts = PromptTexts(str(config["system"]), str(config["ask"]))
    if "{question}" not in texts.ask:
        raise ValueError("`ask` has no {question} in it")
    return texts


def _turns(example: Mapping[str, Any], texts: PromptTexts) -> tuple[Message, Message]:
    """The question of an example with its passages, and its answer."""
    passages, question, answer = example["passages"], example["question"], example["answer"]
    if not isinstance(passages, list) or not all(isinstance(passage, str) for passage in passages):
        raise ValueError("the passages of an example must be a list of strings")
    if not all(isinstance(text, str) and text for text in (question, answer)):
        raise ValueError("question and answer of an example must be non-empty strings")
    request = "\n\n".join([*number_passages(passages), texts.ask.replace("{question}", question)])
    return Message("user", request), Message("assistant", answer)
