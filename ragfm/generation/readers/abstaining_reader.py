"""The reader `none`, for answers without a language model: the judge finds the words that answer."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from typing import Literal

from ragfm.core.abstention import ABSTENTION
from ragfm.core.errors import UnsupportedError
from ragfm.core.types import Message, Sampling, Stream, Usage
from ragfm.generation.readers import check_images, completion_limit

_TOKEN = re.compile(r"\w+|[^\w\s]")


class AbstainingReader:
    """Abstains from each question, so that the judge answers alone, with quotes. It has no model.

    Tokens are words and punctuation characters.
    """

    def __init__(self, model: str = "", *, context_tokens: int = 4096) -> None:
        self.context_tokens = context_tokens

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """See Reader."""
        check_images(messages, vision=False, reader="'none'")
        return sum(len(_TOKEN.findall(message.text)) for message in messages)

    def stream(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Stream:
        """See Reader. Raises UnsupportedError for a grammar or a schema."""
        if sampling.grammar is not None or sampling.schema is not None:
            raise UnsupportedError(
                "The reader 'none' cannot write an object or a question: it only quotes documents.",
                "Use a reader with a model: see docs/readers.md.",
            )
        completion_limit(self.count_tokens(messages), self.context_tokens, sampling.max_tokens)

        def pieces() -> Generator[str, None, tuple[Usage, Literal["stop", "length"]]]:
            yield ABSTENTION
            return Usage(), "stop"

        return Stream(pieces())
