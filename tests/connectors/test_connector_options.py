"""Connector options: converted to the annotated types, refused if unknown, and documented."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from ragfm import Collection
from ragfm.core.errors import ConfigError, SourceError
from ragfm.core.registry import load_plugin, plugins
from ragfm.ingestion.connector_options import build_connector

DOCS = Path(__file__).parents[2] / "docs/connectors.md"


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "r.jsonl"
    path.write_text('{"id": 1, "text": "Oaks"}\n')
    return path


@pytest.mark.parametrize("name", sorted(plugins("connectors")))
def test_every_option_is_documented(name: str) -> None:
    section = DOCS.read_text(encoding="utf-8").partition(f"\n## `{name}`")[2].partition("\n## ")[0]
    parameters = inspect.signature(load_plugin("connectors", name)).parameters.values()
    options = [at.name for at in parameters if at.kind is at.KEYWORD_ONLY and at.name not in ("include", "exclude")]
    assert [option for option in options if f"`{option}`" not in section] == []


def test_values_are_read_as_they_are_annotated(records: Path) -> None:
    made: Any = build_connector(
        "jsonl", str(records), {"max_bytes": "5", "text": "text", "include": []}, {"max_bytes": 7, "x": 1}
    )
    assert (made._max_bytes, made._fields.text) == (5, ("text",))
    made = build_connector("jsonl", str(records), {}, {"max_bytes": 7, "x": 1})
    assert made._max_bytes == 7
    made = build_connector("files", str(records), {"hidden": "true", "include": ["*.md"]})
    assert made.hidden is True
    with pytest.raises(ConfigError, match="no option 'texts'") as caught:
        build_connector("jsonl", str(records), {"texts": "x"})
    assert "max_bytes" in caught.value.hint
    with pytest.raises(ConfigError, match=r"`jsonl\.max_bytes`") as caught:
        build_connector("jsonl", str(records), {"max_bytes": "s3cret"})
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ConfigError, match="no option 'include'"):
        build_connector("sql", "sqlite://#x", {"include": ["*.md"]})


def test_options_stay_until_others_are_given(records: Path, collection: Collection) -> None:
    collection.sync(records, connector="jsonl", options={"title": "head"}, name="r")
    collection.sync(records, exclude=["x"])
    (source,) = collection.status().sources
    assert (source["options"], source["exclude"]) == ({"title": "head"}, ["x"])
    collection.sync(records, options={"metadata": ["a"]})
    (source,) = collection.status().sources
    assert (source["options"], source["exclude"]) == ({"metadata": ["a"]}, ["x"])
    with pytest.raises(ConfigError):
        collection.sync(records, options={"oops": "a"})
    assert collection.status().sources[0]["options"] == {"metadata": ["a"]}


def test_the_default_connector_depends_on_the_address(collection: Collection) -> None:
    with pytest.raises(SourceError, match=r"No connector is set for s3://…"):
        collection.sync("s3://bucket/x")
    pytest.importorskip("protego", reason="needs the extra web")
    with pytest.raises(SourceError, match="not a public address"):
        collection.sync("http://127.0.0.1:9/", options={"retries": "0"})
    assert not collection.path.exists() or not collection.documents()
