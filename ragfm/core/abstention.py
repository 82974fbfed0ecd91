"""Abstentions: the answer where the passages have none, and how readers phrase it."""

from __future__ import annotations

import re

from ragfm.core.status_sentences import ENGLISH, UNKNOWN
from ragfm.core.text import MARKER

ABSTENTION = ENGLISH.unknown
"""The answer where the passages do not have one."""

_SHOWN = r"(?:passages?|texts?|context|excerpts?)"  # what the reader calls nothing but what it was shown
_FILES = r"(?:documents?|sources?|information)"  # what a question may be about, too
_SOURCES = rf"(?:\w+\ )?(?:{_SHOWN}|{_FILES})"
_TELL = r"(?:mention|say|state|specify|answer|tell|explain|indicate|describe)"
_HOLD = r"(?:contain|provide|include|give|have)"
_PLACED = r"(?:\ (?:above|below|given|provided))"
_GIVEN = (
    r"(?:answered|available|clear|contained|derived|described|determined|found|given|included|inferred|known|listed"
    r"|mentioned|present|provided|shown|specified|stated|supported)"
)
_NOT = r"(?:do(?:es)?\ not|don't|doesn't)\ (?:\w+ly\ )?"
_ABSTAINS = re.compile(
    rf"""(?:(?:i(?:'|\ a)m\ sorry|sorry|unfortunately|(?:based\ on|according\ to)\ [\w\ ]+?)[,.]?\ (?:but\ )?)?
    (?: i(?:'m|\ am)\ not\ (?:sure|certain)
      | i\ (?:do\ not|don't)\ (?:know|have\ (?:enough|any|that|the)\b)
      | i\ (?:cannot|can't|could\ not|couldn't|am\ unable\ to|am\ not\ able\ to)\ (?:answer|find|determine|tell|say)
      | none\ of\ the\ {_SOURCES}{_PLACED}?
        \ (?:{_TELL}s? | {_HOLD}s?(?=.*\b(?:information|answer|details?|mention|about|it|this|that)\b)
          | (?:is|are)\ (?:relevant|about))
      | (?:the|these|those)\ {_SOURCES}{_PLACED}?\ (?:{_NOT}{_TELL} | {_TELL}s?\ (?:no|nothing))
      | (?:the|these|those)
        \ (?:(?:\w+\ )?{_SHOWN}{_PLACED}?
          | (?:provided|given)\ {_FILES} | {_FILES}{_PLACED}
          | (?:\w+\ )?{_FILES}(?=.*\b(?:information|answer|details?|mention|about)\b))
        \ (?:{_NOT}{_HOLD} | {_HOLD}s?\ (?:no|nothing) | has\ no)
      | there\ is\ (?:no|not\ enough)\ (?:mention|answer
          | information(?=\W*$|,|\ (?:about|on|in|regarding|concerning|available|given|provided|that|to|as|of|for)\b))
      | (?:the|this|that)\ (?:answer|information)\ (?:is\ not|isn't|cannot\ be|can't\ be|could\ not\ be)
        \ (?:\w+ly\ )?(?:{_GIVEN}|in\ (?:the|these|those|any)\ {_SOURCES})
      | (?:it|this|that)\ is\ not\ (?:(?:known|stated|mentioned|specified)(?=\W*$)
          | (?:stated|mentioned|specified)\ (?:who|what|when|where|why|how|which|whether|if)
          | (?:known|stated|mentioned|specified|given|provided)\ (?:in|by)\ (?:the|these|those)\ {_SOURCES})
    )\b""",
    re.VERBOSE,
)
_TURN = re.compile(r"\b(?:but|however|although|though|except|instead|only)\b")


def is_abstention(text: str) -> bool:
    """Whether an answer as a whole says that the answer is not known, in these or similar words.

    An answer that says this about one point and then answers another is not an abstention.
    """
    plain = MARKER.sub("", text.replace("’", "'")).strip().lower()
    sentences = [sentence for sentence in re.split(r"(?<=[.!?])\s+|\n+", plain) if sentence.strip()]
    if plain in UNKNOWN:
        return True
    return bool(sentences) and all(
        (match := _ABSTAINS.match(sentence)) and not _TURN.search(sentence, match.end()) for sentence in sentences
    )
