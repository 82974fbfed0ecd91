"""The filter language."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ragfm import Collection, Settings
from ragfm.core.errors import FilterError
from ragfm.store.filters import quote_value
from ragfm.testing import HashingEmbedder

TAGS: dict[str, dict[str, str | float | bool]] = {
    "a.txt": {"year": "2024", "team": "hr", "from": "2024-03-01", "score": 9.5, "name": "Screenshot at 9.41\u202fAM"},
    "b.txt": {
        "year": "2026",
        "team": "legal",
        "from": "2026-01-15",
        "state": "in review",
        "score": 10.123456789012345,
        "name": "\u6771\u4eac\u3000\u5927\u962a",
    },
    "c.txt": {"year": "10", "team": "O'Neill", "number": "12345678901234567891", "open": True},
    "d.txt": {},
}


def fill(collection: Collection, folder: Path) -> None:
    for name, tags in TAGS.items():
        (folder / name).write_text(f"Text of {name}.")
        collection.sync(folder / name, tags=tags)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collection]:
    folder = tmp_path_factory.mktemp("tagged")
    with Collection.open(folder / ".ragfm", settings=Settings(), embedder=HashingEmbedder()) as collection:
        fill(collection, folder)
        yield collection


MATCHES = [
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
    ("number = 12345678901234567892", ""),  # an identifier, which a float would round
    ("score > 9.5", "b"),
    ("name = 'Screenshot at 9.41\u202fAM'", "a"),
    ("name =\n\t'\u6771\u4eac\u3000\u5927\u962a'", "b"),
    ("score < 10.123456789012346", "ab"),
    ("score = 10.123456789012345", "b"),
    ("open = true", "c"),
    ("open = True", "c"),
    ("open != FALSE", "c"),
    ("open = False", ""),
    ("year = 2026 AND NOT team = hr", "b"),
    ("team not in (hr, legal)", "c"),
    ("uri like 'A%'", "a"),
    ("uri like '_.TXT'", "abcd"),
    ("uri not like 'a%' and not uri like 'b%'", "cd"),
    ("source like 'a%' or source like '%B.txt%'", "ab"),
    ("media_type like text/%", "abcd"),
    ("year like '202_'", "ab"),
    ("year NOT LIKE '2024'", "bc"),  # a document without the key meets no comparison
    ("not year like '2024'", "bcd"),
    ("team like '%'", "abc"),
    ("team like '%''%'", "c"),
    ("team like ''", ""),
    ("state like 'in%re\\view'", "b"),
    ("state like '%\\%%'", ""),
    ("state like 'in\\_review'", ""),
    ("team like '%''; DROP TABLE documents; --'", ""),
    ("team like '%%%%__%%%%'", "abc"),
    ("uri like '[a-c]%' or uri like '?%' or uri like '*'", ""),
]


@pytest.mark.parametrize(("text", "expected"), MATCHES)
def test_matching_documents(tagged: Collection, text: str, expected: str) -> None:
    assert [info.uri[0] for info in tagged.documents(text)] == list(expected)
    assert sorted(hit.uri[0] for hit in tagged.search("text", k=9, filter=text)) == list(expected)


def test_matching_documents_on_postgresql(tmp_path: Path, address: str) -> None:
    collection = Collection.open(address, settings=Settings(), embedder=HashingEmbedder())
    fill(collection, tmp_path)
    found = {text: "".join(info.uri[0] for info in collection.documents(text)) for text, _ in MATCHES}
    assert found == dict(MATCHES)
    for text, expected in MATCHES:
        assert sorted(hit.uri[0] for hit in collection.search("text", k=9, filter=text)) == list(expected)


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
        ("a like", "a pattern"),
        ("a like = b", "a pattern"),
        ("a not = b", "`in` or `like`"),
        ("a like '%\\'", "after the last"),
        ("a like '\\\\\\'", "after the last"),
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


@pytest.mark.both_databases
def test_like_finds_wildcards_quotes_and_backslashes_literally(tmp_path: Path, collection: Collection) -> None:
    for number, value in enumerate(["100%", "100 of 1000", "a_b", "axb", "a\\b", 'say "yes"']):
        (tmp_path / f"{number}.txt").write_text(f"Text {number}.")
        collection.sync(tmp_path / f"{number}.txt", tags={"value": value})
    expected = {
        "value like '100%'": "01",
        "value like '100\\%'": "0",
        "value like 'a_b'": "234",
        "value like 'a\\_b'": "2",
        "value like 'a\\\\b'": "4",
        """value like '%"Y%"'""": "5",
    }
    assert {text: "".join(info.uri[0] for info in collection.documents(text)) for text in expected} == expected


def test_like_with_many_wildcards_takes_little_time(tmp_path: Path, collection: Collection) -> None:
    (tmp_path / "a.txt").write_text("Text.")
    collection.sync(tmp_path / "a.txt", tags={"long": "a" * 1000})
    assert collection.documents(f"long like '{'%a' * 4000}%b'") == []  # exponential backtracking would never end


@pytest.mark.parametrize(
    ("key", "listed"),
    [
        ("yaer", "Keys: year, from, "),
        ("Year", "Keys: year, "),
        ("URI", "Keys: uri, "),
        ("x", "Keys: from, modified, name, number, open, score, state, team, year, uri, source, media_type."),
    ],
)
def test_a_key_that_no_document_has_is_an_error(tagged: Collection, key: str, listed: str) -> None:
    for filter in (f"{key} = 1", f"team = hr or not ({key} like '%a%')", f"{key} not in (a)"):
        with pytest.raises(FilterError, match=repr(key)) as raised:
            tagged.documents(filter)
        with pytest.raises(FilterError):
            tagged.search("text", filter=filter)
        assert listed in raised.value.hint


def test_unknown_keys_without_documents_are_not_an_error(tmp_path: Path, collection: Collection) -> None:
    (tmp_path / "a.txt").write_text("Text.")
    collection.sync(tmp_path / "a.txt", tags={"year": 2024})
    collection.remove("a.txt")
    assert collection.documents("year = 2024") == collection.documents("other = 1") == []
    assert collection.search("text", filter="other = 1") == []


@pytest.mark.both_databases
def test_the_error_names_only_keys_of_visible_documents(tmp_path: Path, collection: Collection) -> None:
    for name, tags, allow in (("a.txt", {"secret": "1"}, ["board"]), ("b.txt", {"team": "hr"}, [])):
        (tmp_path / name).write_text("Text.")
        collection.sync(tmp_path / name, tags=tags, allow=allow)
    assert collection.as_groups({"board"}).documents("secret = 1")
    with pytest.raises(FilterError, match="'secret'") as raised:
        collection.as_groups({"staff"}).documents("secret = 1")
    assert raised.value.hint == "Keys: modified, team, uri, source, media_type."
    collection.remove("b.txt")
    assert collection.as_groups({"staff"}).documents("secret = 1") == []  # it sees no document at all
