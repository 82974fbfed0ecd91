"""Chat templates: the Jinja program in a model file that writes a conversation as the prompt the model was trained on.

Templates come with the weights, from untrusted sources. They run in Jinja's sandbox and with a time limit.
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

Template: TypeAlias = Callable[[list[dict[str, str]]], str]

_THINK = "<think>"
_NO_THOUGHT = "\n\n</think>\n\n"

SECONDS = 2.0
"""CPU time limit of a template. The slowest known template takes 10 ms."""


@lru_cache
def check_template(source: str) -> None:
    """Raise TemplateError for a template that uses the power operator.

    `9 ** (9 ** 9)` takes years, and Jinja may evaluate it at compile time, where the time limit does not apply. No
    known template uses the operator. `**` before keyword arguments of a call is allowed.
    """
    before = ""
    for _, kind, word in Environment(autoescape=False).lex(source):  # noqa: S701  only tokenized, not rendered
        if kind == "operator" and word == "**" and before not in "(,":
            raise TemplateError("it uses the power operator, which could run forever")
        before = word.strip() or before


def render_chat(template: Template, messages: Sequence[Message], model: Path, *, thinking: bool = False) -> str:
    """Render a conversation. `model` is the path for error messages.

    If the template rejects or ignores a system message, its text is put at the start of the first user message.
    Without `thinking`, an empty reasoning follows a template that opens the model's reasoning, like DeepSeek R1's.
    Raises UnsupportedError if the template rejects the messages, fails, or exceeds the time limit.
    """
    system = messages[0].content.strip() if messages and messages[0].role == "system" else ""
    try:
        text = _render(template, messages, model)
    except UnsupportedError:
        if not system:
            raise
        text = ""
    if system not in text:
        first, *others = messages
        for index, message in enumerate(others):
            if message.role == "user":
                others[index] = replace(message, content=f"{first.content}\n\n{message.content}")
                break
        text = _render(template, others, model)
    return text if thinking else close_thinking(text)


def opens_thinking(prompt: str) -> bool:
    """Whether a rendered conversation ends with the start of the model's reasoning, which its output then lacks."""
    return prompt.rstrip().endswith(_THINK)


def close_thinking(prompt: str) -> str:
    """A rendered conversation, with an empty reasoning if it opens the model's reasoning."""
    return prompt.rstrip() + _NO_THOUGHT if opens_thinking(prompt) else prompt


def _render(template: Template, messages: Sequence[Message], model: Path) -> str:
    try:
        with _time_limit():
            return template([{"role": message.role, "content": message.content} for message in messages])
    except Exception as error:  # a template may raise anything
        reason = str(error) or type(error).__name__
        raise UnsupportedError(f"The chat template of '{model}' rejects these messages: {reason}") from error


@contextmanager
def _time_limit() -> Iterator[None]:
    """Raise TimeoutError in a template once this thread has used too much CPU time."""
    end, previous_trace = time.thread_time() + SECONDS, sys.gettrace()

    def trace(frame: FrameType, *_: Any) -> Any:
        if time.thread_time() > end:
            raise TimeoutError(f"it takes longer than {SECONDS:.0f} seconds")
        return trace if frame.f_code.co_filename == "<template>" else None

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(previous_trace)
