"""A corpus of look-alike texts that differ only in a code or a number."""

from __future__ import annotations

import random
from itertools import product

TOPICS = {
    "part": "The spare part {} is kept on shelf {} of the workshop, and it is {}.",
    "error": "When {} appears, the relay on board {} has lost contact: {}.",
    "data": "The measurements of buoy {1} are published as {0}, and cite it when you use them: {2}.",
    "release": "Release {} mends the clock of logger {}, and one should know: {}.",
    "invoice": "Invoice {} of the boatyard was for engine {}, and it was {}.",
    "phone": "The number {} rings in room {}, where one {}.",
}
REMARKS = (
    "ordered by the dozen",
    "checked every spring",
    "asked for by the harbour master",
    "not to be mixed up",
    "written down in the blue book",
    "seldom of any trouble",
    "known to last ten years",
    "best left to the engineer",
)
QUESTIONS = {
    "part": ("{}", "where is {} kept?", "On which shelf of the workshop do I find the spare part {}?"),
    "error": ("{}", "what does {} mean?", "Which relay has lost contact when {} appears?"),
    "data": ("{}", "whose measurements are {}?", "Which buoy's measurements are published as {}?"),
    "release": ("{}", "what is new in {}", "Which logger's clock is mended by release {}?"),
    "invoice": ("{}", "what was invoice {} for?", "For which engine was the boatyard's invoice {}?"),
    "phone": ("{}", "who is at {}", "In which room does the number {} ring?"),
}


def codes() -> dict[str, list[str]]:
    """Similar codes by topic: with swapped, repeated and missing digits, other letters, and of other lengths."""
    return {
        "part": [f"{a}-{n}/{v}" for a, n, v in product(("AB", "BA", "AC"), (1234, 1243, 123), (5, 6, 55))],
        "error": [f"ERR_{where}_0x{n}{c}" for where, n, c in product(("CONN", "COMM"), (1, 3, 13), "0AF")],
        "data": [f"10.{a}/zenodo.{n}" for a, n in product((5281, 5218), (12, 123, 132, 1230, 1234, 321))],
        "release": [f"v{a}.{b}.{c}" for a, b, c in product((1, 2, 3), (2, 3, 31), (1, 10))],
        "invoice": [f"2026-{n:05}" for n in (4711, 4117, 47110, 471, 1471, 711, 4712, 4710, 40711, 47011)],
        "phone": [f"+44 1595 {n}" for n in (696001, 696010, 690601, 696100, 69600, 966001, 696002)],
    }


def texts() -> list[tuple[str, str, str]]:
    """The topic, code and text of each document."""
    rng = random.Random(0)
    documents = []
    for topic, topic_codes in codes().items():
        for code in topic_codes:
            text = TOPICS[topic].format(code, rng.randrange(2, 90), rng.choice(REMARKS))
            documents.append((topic, code, text))
    return documents


def questions() -> list[tuple[str, int]]:
    """Each question, with the number of the text that answers it."""
    return [
        (question.format(code), number)
        for number, (topic, code, _) in enumerate(texts())
        for question in QUESTIONS[topic]
    ]
