"""Follow-up questions: rewrite a question that depends on earlier ones, so that it stands alone for the search.

english_rules     by rules, for English
noun_phrases      the noun phrases of a question
list_items        the items that an answer lists
reader_rewrite    by the reader
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from ragfm.core.types import Message, Reader
from ragfm.generation.followups.english_rules import Turn, rewrite_with_rules
from ragfm.generation.followups.reader_rewrite import rewrite_with_reader

Followup: TypeAlias = Literal["rules", "reader", "off"]
_MAX_TURNS = 8


def stand_alone(
    question: str, history: Sequence[Message], *, how: Followup = "rules", reader: Reader | None = None
) -> str:
    """The stand-alone form of a question; unchanged if it stands alone.

    `history` holds the earlier turns, oldest first. `rules` are for English and do not change other languages. With
    `reader`, the reader rewrites the question; if its output is not plausible, the rules apply. Raises UnsupportedError
    for a reader without grammars.
    """
    turns: list[tuple[str, str]] = []  # questions with their answers, empty if there is none
    for message in history:
        if message.role == "user":
            turns.append((message.content, ""))
        elif message.role == "assistant" and turns:
            turns[-1] = (turns[-1][0], message.content)
    before: list[Turn] = []
    for asked, answer in [turn for turn in turns if turn[0].strip()][-_MAX_TURNS:]:
        before.append(Turn(rewrite_with_rules(asked, before) if before else asked, answer))
    if not before or how == "off":
        return question
    if how == "reader" and reader and (rewritten := rewrite_with_reader(question, before, reader)):
        return rewritten
    return rewrite_with_rules(question, before)
