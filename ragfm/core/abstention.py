"""Abstentions: the answer where the passages have none, and how readers phrase it."""

from __future__ import annotations

import re

from ragfm.core.status_sentences import ENGLISH, UNKNOWN
from ragfm.core.text import MARKER

ABSTENTION = ENGLISH.unknown
"""The answer where the passages do not have one."""

SOURCES = r"(?:passages?|texts?|context|excerpts?|documents?|sources?|information)"
"""What readers call the passages."""
_ABSTAINS = re.compile(
    rf"""(?:(?:i(?:'|\ a)m\ sorry|sorry|unfortunately)[,.]?\ (?:but\ )?)?
    (?!.*\b(?:but|however|although|though|except|instead|only)\b)
    (?: i(?:'m|\ am)\ (?:not|unable) | i\ (?:do\ not|don't|cannot|can't|could\ not|couldn't)
      | there\ is\ (?:no|not\ enough)\ (?:answer | mention | information(?=\W*$|\ (?:about|available|in|on|to)\b))
      | (?: none\ of\ the\ {SOURCES}\b
          | (?:the|these|those)\ (?:\w+\ )?(?!information){SOURCES}\b.*\b(?:no|not|\w+n't)\b )
        .*\b(?:mentions?|says?|states?|specify|answer|information)
      | (?:it|this|that|the\ answer)\ (?:information\ )?(?:is\ not|isn't|cannot|can't)\b
        .*\b(?:mentioned|stated|specified|answered|determined|(?:in|by)\ the\ {SOURCES})
    )\b""",
    re.VERBOSE,
)
"""Without it, `answer.abstained` misses the readers that do not say `ABSTENTION`: the measures of abstention fall."""


def is_abstention(text: str) -> bool:
    """Whether an answer as a whole says that the answer is not known, in these or similar words.

    An answer that says this about one point and then answers another is not an abstention.
    """
    plain = MARKER.sub("", text.replace("’", "'")).strip().lower()
    sentences = [sentence for sentence in re.split(r"(?<=[.!?])\s+|\n+", plain) if sentence.strip()]
    return plain in UNKNOWN or (bool(sentences) and all(map(_ABSTAINS.match, sentences)))
