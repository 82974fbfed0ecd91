"""Messages that a short answer does not fit: greetings, and questions how to do something."""

from __future__ import annotations

import re

GREETING = "Ask a question about the documents, such as “How many days of leave do I get?”."
SMALL_TALK = ("Hello!", "Thank you!")
"""A message without a question mark that is closer to one of these than to any passage is small talk."""

_INSTRUCTIONS = re.compile(
    r"\W*(?:please\s+)?(?:(?:tell|show) me\s+)?"
    r"(?:how\s+to\b|how\s+(?:do|can|could|may|might|must|shall|should|would)\s+(?:i|we|you|one|people)\b"
    r"|what\s+(?:do|can|must|shall|should)\s+(?:i|we|you|one|people)\s+(?:(?:have|need)\s+to\s+)?do\b)",
    re.IGNORECASE,
)


def asks_how(question: str) -> bool:
    """Whether an English question asks how to do something, which takes more than a few words of a passage.

    What a small reader shows is useful for 26 of 46 such questions instead of 14 (decision 059).
    """
    return bool(_INSTRUCTIONS.match(question))
