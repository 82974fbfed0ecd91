"""Follow-up questions: rewrite a question that depends on earlier ones, so that it stands alone for the search.

english_rules     by rules, for English
list_items        the items that an answer lists
reader_rewrite    by the reader
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from ragfm.core.types import Message, Reader
from ragfm.generation.followups.english_rules import Turn, rewrite_with_rules
from ragfm.generation.followups.reader_rewrite import can_rewrite, rewrite_with_reader
from ragfm.generation.small_talk import is_greeting

Followup: TypeAlias = Literal["auto", "rules", "reader", "off"]
_MAX_TURNS = 8


def stand_alone(
    question: str, history: Sequence[Message], *, how: Followup = "rules", reader: Reader | None = None
) -> str:
    """The stand-alone form of a question; unchanged if it stands alone.

    `history` holds the earlier turns, oldest first. `rules` are for English and do not change other languages; where
    they are not certain, the result is the earlier question followed by this one. With `auto`, the reader rewrites
    these questions if it passes a check; with `reader`, it rewrites all. If its output is not plausible, the rules
    apply. Raises UnsupportedError for `reader` with a reader without grammars.
    """
    turns: list[tuple[str, str]] = []  # questions with their answers, empty if there is none
    for message in history:
        if message.role == "user":
            turns.append((message.text, ""))
        elif message.role == "assistant" and turns:
            turns[-1] = (turns[-1][0], message.text)
    before: list[Turn] = []
    for asked, answer in [turn for turn in turns if turn[0].strip() and not is_greeting(turn[0])][-_MAX_TURNS:]:
        before.append(Turn(rewrite_with_rules(asked, before).text if before else asked, answer))
    if not before or how == "off":
        return question
    by_rules = rewrite_with_rules(question, before)
    if reader and (how == "reader" or (how == "auto" and not by_rules.certain and can_rewrite(reader))):
        return rewrite_with_reader(question, before, reader) or by_rules.text
    return by_rules.text
