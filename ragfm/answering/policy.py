"""What a reader may do with the documents' words: its answer policy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AnswerPolicy:
    """What a reader may do.

    - `corrects`: where the reader and the judge differ, the judge's answer replaces the reader's.
    - `quotes`: an answer is shown with the sentence or row of the documents that it is from, or replaced by it.
    - `streams`: the text is shown while it is generated, before it is checked.
    """

    corrects: bool
    quotes: bool
    streams: bool


SMALL = AnswerPolicy(corrects=True, quotes=True, streams=False)
"""For a reader that is smaller than the judge's task: the judge decides, and users see the documents' own words."""
LARGE = AnswerPolicy(corrects=False, quotes=False, streams=True)
"""For a reader that users chose for its own words."""
