"""Follow-up questions: make a question that depends on earlier ones stand alone, for the search and the prompt.

A question with a sign of dependence ("And for parents?", "Why?", "How much does it cost?") is appended to the earlier
one, and both are searched. The signs are English. A question without a sign is not changed, so a change of topic
carries nothing over; docs/decisions/010-follow-ups-by-rules.md has the figures.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

from ragfm.core.errors import TooLongError
from ragfm.core.types import Message, Reader, Sampling
from ragfm.generation.prompt import neutralize_control_tokens
from ragfm.generation.small_talk import is_greeting

Followup: TypeAlias = Literal["auto", "reader", "off"]
_MAX_TURNS = 8
_MAX_LENGTH = 300  # characters of the earlier question: two long questions may exceed an embedder's window
_MAX_PHRASE_WORDS = 7

# --- Signs of dependence -----------------------------------------------------------------------------------------

_ENGLISH = re.compile(
    r"\b(?:the|what|how|which|who|where|when|why|is|are|does|do|did|can|may|must|should|my|you|we|to|of|and)\b",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"(?:(?:and|but|or|so|ok(?:ay)?|well|thanks|thank you|now|also|hm+|right|then)\b[\s,.!…]*)+", re.IGNORECASE
)
_ABOUT = re.compile(r"(?:what|how)\s+(?:about|of|if)\b|same\b", re.IGNORECASE)
_AFTER_OPENING = re.compile(  # "And does Boeing?", "And if I am ill?", "And until when …?"
    r"if\b|\w+ (?:when|what|which|whom|how)\b"
    r"|(?:is|are|was|were|do|does|did|has|have|can|will)\s+(?!there\b)\S+(?:\s+\S+)?\W*$",
    re.IGNORECASE,
)
_SHORT_QUESTION = re.compile(  # "Why?", "For how long?", "Up to what wind?"
    r"(?:(?:up to|\w+)\s+)?(?:why|when|where|who|whom|which|what|how)(?:\s+(?!(?:is|are|was|were|do|does|did|can|may"
    r"|must|will|have|has|i|you|we|the|my)\b)[\w'-]+){0,3}[?.! ]*$",
    re.IGNORECASE,
)
_VERB_OR_QUESTION = re.compile(
    r"\b(?:am|is|are|was|were|be|been|do|does|did|have|has|had|can|could|(?-i:may)|might|must|shall|should|will|would"
    r"|\w+n't|what|which|who|whom|whose|when|where|why|how|i|you|we|they|he|she|it|tell|show|explain|list|give)\b",
    re.IGNORECASE,
)
_REFERENCE = re.compile(
    r"""\b(?: (?:he|she|him|his|her|hers|it|its|they|them|their|theirs)\b
    | (?:is|was|does|do|did|can|will|for|about|with|of|after|before|than|like|by|from|why|on|in|notice|mean)
      \ (?:that|this|these|those)(?=\W*$|\ (?:is|are|was|mean|work|apply|happen|too|to|for|in|on|at|true)\b)
    | (?<!is\ )(?<!are\ )(?<!was\ )(?<!were\ )(?<!be\ )there\b(?!\ (?:is|are|was|were)\b)
    | (?:which|first|second|third|last|latter|former)\ ones?\b
    | ones?\b(?=\W*$|\ (?:is|are|was|has|have|do|does|can|of|for|in|on|at|to|with)\b)
    | (?:others?|too|instead|more|details?|first|second|third|last|latter|former)\W*$ )
    | ^(?:that|this|these|those)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_EXPLETIVE = re.compile(
    r"\b(?:is|was|be|isn't) it (?:\w+ ){0,3}(?:to|that|if|when|whether|for \w+ to)\b|\bit (?:is|was) \w+ (?:to|that)\b"
    r"|\bit (?:take|takes|cost|costs) .*\bto\b|\b(?:raining|snowing|what time is it|what (?:day|date) is it)\b",
    re.IGNORECASE,
)

# --- The reader's rewriting --------------------------------------------------------------------------------------

GRAMMAR = 'root ::= [^ \\n?] [^\\n?]* "?"'
_MAX_TOKENS = 64
_SHOWN_TURNS = 2
_MAX_ANSWER = 300  # characters of each answer in the prompt
_MAX_GROWTH = 3  # relative to the length of the last two questions
_MAX_NEW_WORDS = 1  # of five letters or more: words of grammar are shorter
_SYSTEM = (
    "You rewrite the last question of a conversation so that it can be understood without the conversation. "
    "Change as little as you can. A question that can be understood alone stays as it is."
)
_EXAMPLES = (
    ("Q: When does the museum open?\nA: At ten o'clock.\nQ: And on Mondays?", "When does the museum open on Mondays?"),
    ("Q: Who made the clock?\nA: Anna Ritter.\nQ: Where was she born?", "Where was Anna Ritter born?"),
    ("Q: How much is a ticket?\nA: Nine euros.\nQ: Where can I park?", "Where can I park?"),
)


def stand_alone(
    question: str, history: Sequence[Message], *, how: Followup = "auto", reader: Reader | None = None
) -> str:
    """The stand-alone form of a question; unchanged if it stands alone.

    `history` holds the earlier turns, oldest first. `auto` appends a question that depends on the earlier one to it, in
    English only. With `reader`, the reader rewrites all questions; if its output is not plausible, `auto` applies.
    Raises UnsupportedError for `reader` with a reader without grammars.
    """
    turns: list[tuple[str, str]] = []  # questions with their answers, empty if there is none
    for message in history:
        if message.role == "user":
            turns.append((message.text, ""))
        elif message.role == "assistant" and turns:
            turns[-1] = (turns[-1][0], message.text)
    before: list[tuple[str, str]] = []
    for asked, answer in [turn for turn in turns if turn[0].strip() and not is_greeting(turn[0])][-_MAX_TURNS:]:
        before.append((_append(asked, before[-1][0]) if before else asked, answer))
    if not before or how == "off":
        return question
    rewritten = _rewrite(question, before, reader) if reader and how == "reader" else None
    return rewritten or _append(question, before[-1][0])


def _append(question: str, previous: str) -> str:
    """The previous question and this one, if this one depends on it; of a longer chain, the first and the last two."""
    previous = previous.strip()
    if len(previous) > _MAX_LENGTH or not _ENGLISH.search(previous) or not _depends(question.strip()):
        return question
    sentences = re.findall(r"[^?]+\?", previous)
    kept = f"{sentences[0].strip()} {sentences[-1].strip()}" if len(sentences) > 2 else previous
    added = question.strip()
    return f"{kept}{'' if kept[-1] in '?.!' else '?'} {added[0].upper()}{added[1:]}"


def _depends(question: str) -> bool:
    """Whether an English question shows a sign that it depends on an earlier one."""
    opening = _OPENING.match(question)
    rest = question[opening.end() :] if opening else question
    words = rest.rstrip("?.! ").split()
    is_phrase = len(words) <= _MAX_PHRASE_WORDS and not _VERB_OR_QUESTION.search(rest)
    return bool(words) and bool(
        _ABOUT.match(rest)
        or (is_phrase and (opening or rest.endswith("?")))
        or (opening and _AFTER_OPENING.match(rest))
        or _SHORT_QUESTION.match(rest)
        or _REFERENCE.search(_EXPLETIVE.sub(" ", rest))
    )


def _rewrite(question: str, before: Sequence[tuple[str, str]], reader: Reader) -> str | None:
    """The reader's stand-alone form of a question, one line under a grammar; None if it is not plausible."""
    conversation = [f"Q: {asked}\nA: {answer[:_MAX_ANSWER]}" for asked, answer in before[-_SHOWN_TURNS:]]
    messages = [Message("system", _SYSTEM)]
    for example, rewritten in _EXAMPLES:
        messages += [Message("user", example), Message("assistant", rewritten)]
    messages.append(Message("user", neutralize_control_tokens("\n".join([*conversation, f"Q: {question}"]))))
    try:
        with reader.stream(messages, Sampling(max_tokens=_MAX_TOKENS, grammar=GRAMMAR)) as stream:
            output = "".join(stream).strip()
    except TooLongError:
        return None
    known = {word for text in (question, *(text for turn in before for text in turn)) for word in _words(text)}
    new = [word for word in set(_words(output)) - known if len(word) >= 5]
    plausible = (
        stream.finish_reason == "stop"
        and output
        and len(output) <= _MAX_GROWTH * (len(question) + len(before[-1][0]))
        and all(_words(output) != _words(asked) for asked, _ in before)
        and len(new) <= _MAX_NEW_WORDS
    )
    return output if plausible else None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
