"""Chat templates: the Jinja program in a model file that writes a conversation as the prompt the model was trained on.

Templates come with the weights, from untrusted sources. They run in Jinja's sandbox, in a confined process with limits
on time and memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ragfm.core.errors import RagfmError, UnsupportedError, WorkerError
from ragfm.core.types import Message
from ragfm.generation.reader_output import REASONING_TAGS
from ragfm.parsing.sandbox.confined_service import ConfinedService
from ragfm.parsing.sandbox.worker_process import Limits

SECONDS = 2.0
"""Time limit of a template, not counting time spent waiting for a processor. The slowest known one takes 10 ms."""
MEMORY = 128 << 20
"""Limit of the resident memory of the process that renders, in bytes. It needs about a quarter of that itself."""
_MAX_TEXT = 32 << 20
_service = ConfinedService(
    "ragfm.generation.readers.template_service",
    limits=Limits(stall_seconds=SECONDS, seconds=SECONDS, memory=MEMORY, model_memory=MEMORY),
)


class ChatTemplate:
    """The chat template of a model. `variables` are its special tokens by name, `model` the path for error messages.

    `thinking` lets the model reason before it answers, if it can. Raises UnsupportedError if the template is not valid.
    """

    def __init__(self, source: str, variables: Mapping[str, Any], model: Path, *, thinking: bool = False) -> None:
        self.source, self._model, self._thinking = source, model, thinking
        unset = dict.fromkeys(("tools", "documents", "functions", "function_call", "tool_choice"))
        self._variables: dict[str, Any] = {
            **unset,
            "add_generation_prompt": True,
            "enable_thinking": thinking,
            **variables,
        }
        try:
            self._call(None)
        except UnsupportedError as error:
            raise UnsupportedError(
                f"Cannot read the chat template of '{model}': {error.message}", "Use another model."
            ) from error

    @classmethod
    def of_tokenizer(
        cls, tokenizer: Any, model: Path, *, thinking: bool = False, opens_answer: bool = True
    ) -> ChatTemplate:
        """The template of a tokenizer of transformers; with `opens_answer`, prompts end where the answer starts.

        Raises UnsupportedError.
        """
        tokens = {name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
        variables = {**tokens, "add_generation_prompt": opens_answer}
        return cls(tokenizer.get_chat_template(), variables, model, thinking=thinking)

    def render(self, messages: Sequence[Message]) -> str:
        """Render a conversation.

        If the template rejects or ignores a system message, its text is put at the start of the first user message.
        Without `thinking`, an empty reasoning follows a template that opens the model's reasoning, like DeepSeek R1's.
        Raises UnsupportedError if the template rejects the messages, fails, or exceeds its limits.
        """
        system = messages[0].text.strip() if messages and messages[0].role == "system" else ""
        try:
            text = self._render(messages)
        except UnsupportedError:
            if not system:
                raise
            text = ""
        if system not in text:
            first, *others = messages
            for index, message in enumerate(others):
                if message.role == "user":
                    others[index] = replace(message, content=f"{first.text}\n\n{message.text}")
                    break
            text = self._render(others)
        return text if self._thinking else close_thinking(text)

    def _render(self, messages: Sequence[Message]) -> str:
        try:
            return self._call([{"role": message.role, "content": message.text} for message in messages])
        except UnsupportedError as error:
            raise UnsupportedError(
                f"The chat template of '{self._model}' rejects these messages: {error.message}"
            ) from error

    def _call(self, turns: Sequence[Mapping[str, Any]] | None) -> str:
        try:
            _, data = _service.call(self.source, self._variables, turns, max_bytes=_MAX_TEXT)
        except WorkerError:
            raise
        except RagfmError as error:
            raise UnsupportedError(error.message) from error
        return data.decode("utf-8", "surrogatepass")


def opens_thinking(prompt: str) -> bool:
    """Whether a rendered conversation ends with the start of the model's reasoning, which its output then lacks."""
    return prompt.rstrip().endswith(tuple(REASONING_TAGS))


def close_thinking(prompt: str) -> str:
    """A rendered conversation, with an empty reasoning if it opens the model's reasoning."""
    opened = prompt.rstrip()
    end = next((end for start, end in REASONING_TAGS.items() if opened.endswith(start)), None)
    return f"{opened}\n\n{end}\n\n" if end else prompt
