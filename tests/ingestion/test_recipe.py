"""Recipes: documents of an older version serve until they are parsed again, and may be kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa
from support.shell import Shell

from ragfm import Collection
from ragfm.ingestion.recipe import with_versions_of
from ragfm.store.tables import documents
from ragfm.testing import HashingEmbedder


def make_older(path: Path) -> None:
    """Mark all documents as those of an older chunker."""
    with Collection.open(path) as collection, collection._store.writing() as catalog, catalog.write() as connection:
        for number, recipe in connection.execute(sa.select(documents.c.id, documents.c.recipe)).all():
            older = json.dumps(json.loads(recipe) | {"chunker": "0"}, sort_keys=True)
            connection.execute(documents.update().where(documents.c.id == number).values(recipe=older))


def test_a_recipe_with_the_versions_of_another() -> None:
    recipe = json.dumps({"parser": "2", "chunker": "2", "tags": {"a": 1}})
    known = json.dumps({"parser": "1", "chunker": "1", "tags": {"b": 1}})
    assert json.loads(with_versions_of(recipe, known)) == {"parser": "1", "chunker": "1", "tags": {"a": 1}}
    assert json.loads(with_versions_of(recipe, "")) == json.loads(recipe)


def test_older_documents_serve_are_kept_on_request_and_then_parsed_again(
    collection: Collection, docs: Path, embedder: HashingEmbedder, caplog: pytest.LogCaptureFixture
) -> None:
    collection.sync(docs)
    assert collection.status().older == 0
    make_older(collection.path)
    hits = collection.search("days of leave", 3)
    assert hits
    assert collection.status().older == 4
    assert collection.as_groups(set()).status().older == 0
    kept = collection.sync(docs, keep_recipe=True)
    assert (kept.updated, kept.unchanged) == (0, 4)
    (docs / "hours.txt").write_text("The office never closes.\n")  # a changed document is parsed all the same
    kept = collection.sync(docs, keep_recipe=True)
    assert (kept.updated, kept.unchanged, collection.status().older) == (1, 3, 3)
    tagged = collection.sync(docs, keep_recipe=True, tags={"team": "hr"})  # tags change without parsing
    assert (tagged.updated, tagged.chunks, collection.status().older) == (4, 0, 3)
    assert len(collection.documents("team = 'hr'")) == 4
    assert "older version" not in caplog.text
    assert (collection.sync(docs).updated, collection.status().older) == (3, 0)
    assert "3 documents with 4 chunks of docs were prepared by an older version" in caplog.text
    assert "--keep-recipe" in caplog.text
    assert [hit.text for hit in collection.search("days of leave", 3)] == [hit.text for hit in hits]


def test_at_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "boat.md").write_text("The boat leaves at nine.")
    shell = Shell(tmp_path)
    shell("ingest", "docs")
    assert "older" not in shell("status").stdout
    make_older(tmp_path / ".ragfm")
    assert "1 document of an older version" in shell("status").stdout
    assert shell.json("ingest", "--keep-recipe")["unchanged"] == 1
    done = shell("ingest")
    assert "prepared by an older version" in done.stderr
    assert shell.json("status")["older"] == 0
