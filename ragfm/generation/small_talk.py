"""Messages that a short answer does not fit: greetings, and requests that a small reader cannot meet."""

from __future__ import annotations

import re

GREETING = "Ask a question about the documents, such as “How many days of leave do I get?”."
NEEDS_LARGER_READER = (
    "This reader is small: it only finds short answers. Summaries, lists, comparisons and explanations need a larger "
    "one; `ragfm models recommend` lists some."
)

_GREETING = re.compile(
    r"\W*(?:(?:hello|hi|hey|hallo|bonjour|hola|ciao|good (?:morning|afternoon|evening|day)|thanks|thank you|bye|goodbye"
    r"|how are you|who are you|what can you do|help|test)\b(?:\s+(?:there|all|you|very much|a lot))*\W*)+",
    re.IGNORECASE,
)
_REQUEST = re.compile(
    r"\W*(?:please\s+|(?:can|could|would|will) you\s+(?:please\s+)?)?"
    r"(?:summari[sz]e|compare|contrast|describe|explain|outline|translate|rewrite|rephrase|draft|write|compose"
    r"|list(?!\s+price)|(?:make|create)\s+(?:me\s+)?(?:an?|the|all)\b"
    r"|(?:give|show)\s+(?:me\s+)?(?:an?|all|the\s+(?:\w+\s+){0,2}(?:lists?|summary|overview|differences?|details))\b)",
    re.IGNORECASE,
)
_INSTRUCTIONS = re.compile(
    r"\W*(?:please\s+)?(?:(?:tell|show) me\s+)?"
    r"(?:how\s+to\b|how\s+(?:do|can|could|may|might|must|shall|should|would)\s+(?:i|we|you|one|people)\b"
    r"|what\s+(?:do|can|must|shall|should)\s+(?:i|we|you|one|people)\s+(?:(?:have|need)\s+to\s+)?do\b)",
    re.IGNORECASE,
)


def is_greeting(message: str) -> bool:
    """Whether a message is small talk, such as "Hello" or "Thank you"."""
    return bool(_GREETING.fullmatch(message))


def needs_larger_reader(request: str) -> bool:
    """Whether an English message asks for a new text, such as a summary, rather than for a fact."""
    return bool(_REQUEST.match(request))


def asks_how(question: str) -> bool:
    """Whether an English question asks how to do something, which takes more than a few words of a passage."""
    return bool(_INSTRUCTIONS.match(question))
