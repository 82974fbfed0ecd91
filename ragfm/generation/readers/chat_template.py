"""A model's chat template: its own program, which writes a conversation as the prompt that it was trained with.

It comes with the weights, from anybody. It runs in Jinja's sandbox, and for a short time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

from jinja2 import Environment, TemplateError

from ragfm.core.errors import UnsupportedError
from ragfm.core.types import Message

__all__ = ["check_template", "rendered"]

Template: TypeAlias = Callable[[list[dict[str, str]]], str]

SECONDS = 2.0
"""Of the processor; the longest known template takes 10 ms."""


@lru_cache
def check_template(source: str) -> None:
    """Raises TemplateError for one with a power: Jinja works it out while it compiles, or later, and nothing ends that.

    `9 ** (9 ** 9)` takes years. No known template has one; `**` before the options of a call is something else.
    """
    before = ""
    for _, kind, word in Environment(autoescape=False).lex(source):  # noqa: S701  it is read, not rendered
        if kind == "operator" and word == "**" and before not in "(,":
            raise TemplateError("it has a power, which could take for ever")
        before = word.strip() or before


def rendered(template: Template, messages: Sequence[Message], model: Path) -> str:
    """The prompt, as the model's template writes it.

    Where the template refuses or leaves out a system message, it stands at the beginning of the first question instead.
    Raises UnsupportedError where the template refuses the messages, fails, or does not end.
    """
    system = messages[0].content.strip() if messages and messages[0].role == "system" else ""
    try:
        text = _run(template, messages, model)
    except UnsupportedError:
        if not system:
            raise
        text = ""
    return text if system in text else _run(template, _folded(messages), model)


def _folded(messages: Sequence[Message]) -> list[Message]:
    system, *others = messages
    first = next((at for at, message in enumerate(others) if message.role == "user"), None)
    if first is not None:
        others[first] = replace(others[first], content=f"{system.content}\n\n{others[first].content}")
    return others


def _run(template: Template, messages: Sequence[Message], model: Path) -> str:
    try:
        with _short():
            return template([{"role": message.role, "content": message.content} for message in messages])
    except Exception as error:  # a template may raise whatever it likes
        why = str(error) or type(error).__name__
        raise UnsupportedError(f"The chat template of {model} refuses these messages: {why}") from error


@contextmanager
def _short() -> Iterator[None]:
    """Raise TimeoutError at a line of a template, or a call, once this thread has worked for too long."""
    end, before = time.thread_time() + SECONDS, sys.gettrace()

    def check(frame: FrameType, *_: Any) -> Any:
        if time.thread_time() > end:
            raise TimeoutError(f"it takes longer than {SECONDS:.0f} seconds")
        return check if frame.f_code.co_filename == "<template>" else None

    sys.settrace(check)
    try:
        yield
    finally:
        sys.settrace(before)
