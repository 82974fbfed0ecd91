"""The period that a report covers, as its first page states it in English: "for the year ended June 30, 2023"."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_FIRST_PAGE = 4_000  # characters
_STATED = re.compile(
    r"\b(?:year|period|quarter|months?|weeks?)\s+(?:ended|ending):?\s+"
    r"(?P<first>[a-z]+|\d{1,2})\.?\s+(?P<second>[a-z]+|\d{1,2}),?\s+(?P<year>(?:19|20)\d\d)\b",
    re.IGNORECASE,
)


def stated_period(text: str) -> str | None:
    """The last day of the period, as `2023-06-30`; None if the first page states none."""
    for match in _STATED.finditer(text, 0, _FIRST_PAGE):
        month, day = match["first"], match["second"]
        if month.isdigit():
            month, day = day, month
        for form in ("%B %d %Y", "%b %d %Y"):
            try:
                stated = datetime.strptime(f"{month} {day} {match['year']}", form).replace(tzinfo=UTC)
            except ValueError:  # another form, or no date
                continue
            return stated.date().isoformat()
    return None
