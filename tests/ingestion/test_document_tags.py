"""Tags: by source, and by rules in ragfm.toml."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from ragfm import Collection, Settings
from ragfm.core.errors import ConfigError
from ragfm.ingestion import preparation
from ragfm.ingestion.document_tags import matches_uri
from ragfm.maintenance.salvage import salvage
from ragfm.testing import HashingEmbedder


@pytest.mark.parametrize(
    ("pattern", "uri", "expected"),
    [
        ("reports/BESTBUY*", "reports/BESTBUY_2023.pdf", True),
        ("reports/BESTBUY*", "/home/u/reports/BESTBUY_2023.pdf", True),
        ("/home/*/reports", "/home/u/reports/BESTBUY_2023.pdf", True),
        ("BESTBUY*", "reports/BESTBUY/2023.pdf", True),
        ("reports", "reports/BESTBUY/2023.pdf", True),
        ("reports/", "reports/BESTBUY/2023.pdf", True),
        ("reports/*.pdf", "reports/2023/a.pdf", False),
        ("reports/**/*.pdf", "reports/2023/q1/a.pdf", True),
        ("reports/**/*.pdf", "reports/a.pdf", True),
        ("orts/BESTBUY*", "reports/BESTBUY_2023.pdf", False),
        ("reports/bestbuy*", "reports/BESTBUY_2023.pdf", False),
        ("a[1].txt", "docs/a[1].txt", True),
        ("a[1].txt", "docs/a1.txt", True),
        ("https://example.org/docs/*", "https://example.org/docs/a.html", True),
        ("*", "a.txt", True),
        ("**", "a/b.txt", True),
    ],
)
def test_patterns(pattern: str, uri: str, expected: bool) -> None:
    assert matches_uri(pattern, uri) == expected


def _values(collection: Collection, key: str) -> dict[str, object]:
    infos = collection.documents()
    return {Path(info.uri).name: info.metadata[key] for info in infos if key in info.metadata}


def _with_rules(
    collection: Collection, embedder: HashingEmbedder, *rules: tuple[str, Mapping[str, object]]
) -> Collection:
    tables = [{"match": pattern, "tags": tags} for pattern, tags in rules]
    return Collection.open(collection.location, settings=Settings(tags=tables), embedder=embedder)


def _forbid_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a document is parsed")

    monkeypatch.setattr(preparation, "chunk_document", fail)


def test_rules_apply_to_new_and_unchanged_documents_without_parsing(
    collection: Collection, docs: Path, embedder: HashingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection.sync(docs)
    rules = ("docs/*.md", {"team": "hr", "year": 2025}), ("leave*", {"year": 2026, "final": True})
    with monkeypatch.context() as patch:
        _forbid_parsing(patch)
        tagged = _with_rules(collection, embedder, *rules)
        report = tagged.sync()
        assert (report.updated, report.unchanged, report.chunks) == (1, 3, 0)
        assert tagged.sync().unchanged == 4
    assert _values(collection, "team") == {"leave.md": "hr"}
    assert _values(collection, "year") == {"leave.md": 2026}
    assert [info.uri for info in collection.documents("year = 2026 and final = true")] == ["docs/leave.md"]
    assert {hit.uri for hit in collection.search("leave", k=9, filter="team = hr")} == {"docs/leave.md"}
    (docs / "new.md").write_text("# New\n")
    assert tagged.sync().added == 1
    assert _values(collection, "year") == {"leave.md": 2026, "new.md": 2025}
    assert not collection.verify().damaged


def test_a_rule_that_is_gone_brings_the_documents_own_value_back(
    collection: Collection, docs: Path, embedder: HashingEmbedder
) -> None:
    collection.sync(docs)
    own = _values(collection, "title")
    assert own["leave.md"] == "Leave"
    _with_rules(collection, embedder, ("*.md", {"title": "Holidays", "team": "hr"})).sync()
    assert _values(collection, "title") == own | {"leave.md": "Holidays"}
    report = collection.sync()
    assert (report.updated, report.chunks) == (1, 0)
    assert _values(collection, "title") == own
    assert not _values(collection, "team")
    assert collection.sync().unchanged == 4


def test_rules_override_the_tags_of_sources(collection: Collection, docs: Path, embedder: HashingEmbedder) -> None:
    collection.sync(docs, tags={"team": "all"})
    _with_rules(collection, embedder, ("*.md", {"team": "hr"})).sync()
    teams = _values(collection, "team")
    assert teams.pop("leave.md") == "hr"
    assert set(teams.values()) == {"all"}


def test_a_rule_that_matches_nothing_is_reported(
    collection: Collection, docs: Path, embedder: HashingEmbedder, caplog: pytest.LogCaptureFixture
) -> None:
    tagged = _with_rules(collection, embedder, ("docs/*", {"a": 1}), ("nowhere/*", {"a": 1}))
    tagged.sync(docs)  # the rule may be for another source
    assert not caplog.messages
    with caplog.at_level(logging.WARNING):
        tagged.sync()
    assert [message for message in caplog.messages if "'nowhere/*'" in message] == caplog.messages != []


def test_reserved_names_are_refused(collection: Collection, docs: Path, embedder: HashingEmbedder) -> None:
    collection.sync(docs)
    with pytest.raises(ConfigError, match="'uri' is reserved"):
        _with_rules(collection, embedder, ("*", {"uri": "a"})).sync()
    with pytest.raises(ConfigError, match="'source' is reserved"):
        collection.sync(docs, tags={"source": "a"})
    with pytest.raises(TypeError, match="must be a string"):
        collection.sync(docs, tags={"a": [1]})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="JSON cannot represent"):
        collection.sync(docs, tags={"score": math.nan})


def test_tags_survive_salvage(collection: Collection, docs: Path, tmp_path: Path, embedder: HashingEmbedder) -> None:
    collection.sync(docs, tags={"team": "all"})
    salvage(collection.store, tmp_path / "saved")
    saved = Collection.open(tmp_path / "saved", embedder=embedder)
    assert _values(saved, "team") == _values(collection, "team")
    assert saved.sync().unchanged == 4
    assert not saved.verify().damaged
