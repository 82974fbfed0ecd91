"""The connector for readers of LlamaIndex, with those of its core."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_index.core", reason="llama-index-core is not installed (extra dev)")

from ragfm_connectors.llamahub import LlamahubConnector
from support.shell import Shell

from ragfm import Collection
from ragfm.core.errors import ConfigError, MissingExtraError, SourceError
from ragfm.testing import check_connector

FOLDER, TEXTS = "llamahub://core/SimpleDirectoryReader", "llamahub://core/StringIterableReader"


def _texts(*texts: str, **options: Any) -> LlamahubConnector:
    return LlamahubConnector(TEXTS, load={"texts": list(texts)}, **options)


def test_what_a_reader_loads(tmp_path: Path, collection: Collection) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"# This is number {number}.\n")
    options = {"arguments": {"input_dir": str(tmp_path)}, "id": "file_name", "metadata": ["file_name", "file_size"]}
    check_connector(LlamahubConnector(FOLDER, **options))  # type: ignore[arg-type]
    report = collection.sync(FOLDER, connector="llamahub", name="folder", options=options)
    assert (report.added, report.failed) == (3, ())
    document = collection.document("folder/1.txt")
    assert (document.text, document.media_type) == ("# This is number 1.\n", "text/plain")
    assert document.metadata["file_size"] == 20
    (tmp_path / "1.txt").write_text("It has changed.")
    (tmp_path / "2.txt").unlink()
    report = collection.sync()
    assert (report.added, report.updated, report.removed, report.unchanged) == (0, 1, 1, 1)


def test_documents_without_an_id_are_known_by_their_content(collection: Collection) -> None:
    check_connector(_texts("One.", "Two."))
    assert [ref.skip for ref in _texts("One.", "One.").refs()] == [None, "another document has the same id"]
    assert len({ref.path for ref in _texts("a", "b", id="id_").refs()}) == 2  # a new one each time
    first = {ref.path for ref in _texts("One.", "Two.").refs()}
    assert len(first & {ref.path for ref in _texts("Two.", "Three.").refs()}) == 1


def test_from_the_shell(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    load = json.dumps({"texts": ["Oaks are trees.", "Bees fly."]})
    done = shell("ingest", TEXTS, "--connector", "llamahub", "--name", "texts", "--option", f"load={load}")
    assert "2 added" in done.stdout + done.stderr


def test_errors_are_clear_and_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for location in ("os:system", "llamahub://core", "llamahub://../x/Reader", ""):
        with pytest.raises(ConfigError, match="not the address of a reader"):
            LlamahubConnector(location)
    with pytest.raises(ConfigError, match="no class 'Nothing'"):
        list(LlamahubConnector("llamahub://core/Nothing").refs())
    with pytest.raises(MissingExtraError, match="cannot be imported") as caught:
        list(LlamahubConnector("llamahub://wikipedia/WikipediaReader").refs())
    assert "pip install llama-index-readers-wikipedia" in caught.value.hint
    with pytest.raises(ConfigError, match="contains a secret"):
        LlamahubConnector(TEXTS, arguments={"auth": {"api_token": "c4nary"}})
    monkeypatch.setenv("READER_TOKEN", "c4nary-token")
    connector = LlamahubConnector(FOLDER, arguments={"input_dir": "/none/${READER_TOKEN}"})
    with pytest.raises(SourceError, match="the reader fails with ValueError") as failed:
        list(connector.refs())
    assert "c4nary" not in str(failed.value)
    assert "c4nary" not in str(connector.root)


def test_one_reader_with_other_arguments_is_another_source() -> None:
    assert _texts("One.").root != _texts("Two.").root
    assert _texts("One.").root == _texts("One.").root
