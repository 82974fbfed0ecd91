"""The filter language."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragfm import Collection
from ragfm.core.errors import FilterError
from ragfm.store.filters import quote_value

TAGS = {
    "a.txt": {"year": "2024", "team": "hr", "from": "2024-03-01"},
    "b.txt": {"year": "2026", "team": "legal", "from": "2026-01-15", "state": "in review"},
    "c.txt": {"year": "10", "team": "O'Neill", "number": "12345678901234567891"},
    "d.txt": {},
}


@pytest.fixture
def tagged(tmp_path: Path, collection: Collection) -> Collection:
    for name, tags in TAGS.items():
        (tmp_path / name).write_text(f"Text of {name}.")
        collection.sync(tmp_path / name, tags=tags)
    return collection


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("year=2026", "b"),
        ("year = 2026.0", "b"),
        ("year != 2026", "ac"),
        ("year < 100", "c"),  # as numbers: as text, 10 < 2024 < 100 would not hold
        ("year >= 2024 and team in (hr, legal)", "ab"),
        ("from < 2025-01-01", "a"),
        ("not year = 2026", "acd"),
        ("not (year = 2026 or team = hr)", "cd"),
        ("team = hr or team = legal and year = 2026", "ab"),
        ("(team = hr or team = legal) and year = 2026", "b"),
        ('state = "in review"', "b"),
        ("""team = "O'Neill" """, "c"),
        ("""team = 'O''Neill' """, "c"),
        ("team = " + quote_value("O'Neill"), "c"),
        ("uri = a.txt", "a"),
        ("source in (a.txt, 'd.txt')", "ad"),
        ("media_type = text/plain", "abcd"),
        ("team = '; DROP TABLE documents; --'", ""),
        ("from >= 2025", "b"),  # a text and a number compare as texts
        ("year != hr", "abc"),
        ("number = 12345678901234567891", "c"),
        ("number = 1_000", ""),
        ("YEAR = 2026", ""),  # keys are as they were given
        ("year = 2026 AND NOT team = hr", "b"),
    ],
)
def test_matching_documents(tagged: Collection, text: str, expected: str) -> None:
    assert [info.uri[0] for info in tagged.documents(text)] == list(expected)
    assert sorted(hit.uri[0] for hit in tagged.search("text", k=9, filter=text)) == list(expected)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("not " * 60 + "a=b", "levels"),
        ("(" * 3000, "levels"),
        (" or ".join(["a=b"] * 600), "comparisons"),
        ("a=" + "b" * 20_000, "characters"),
        ("a=\ud800", "printed"),
        ("", "character 1"),
        ("year", "character 5"),
        ("(a=b", "`)`"),
        ("a=b c", "'c'"),
        ("a ~ b", "'~'"),
        ("a in b", "`(`"),
        ("a in (b", "`)`"),
        ("= 3", "a key"),
        ('a = "b', "a value"),
        ("a=b)", "')'"),
    ],
)
def test_a_filter_error_names_the_position(tagged: Collection, text: str, where: str) -> None:
    with pytest.raises(FilterError) as raised:
        tagged.documents(text)
    assert where in str(raised.value)
