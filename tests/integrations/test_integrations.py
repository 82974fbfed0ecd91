"""Retrievers for LangChain and LlamaIndex, with the real libraries."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ragfm import Collection
from ragfm.core.errors import FilterError, MissingExtraError
from ragfm.integrations import langchain_retriever, llama_index_retriever

QUERY = "leave for parents"


@pytest.fixture
def handbook(collection: Collection, docs: Path) -> Collection:
    (docs / "hr").mkdir()
    (docs / "hr" / ".ragfm-access").write_text("hr")
    (docs / "hr" / "parents.txt").write_text("Leave for parents who work for the board is 20 weeks.\n")
    collection.sync(docs)
    return collection


def test_langchain_gets_what_a_search_finds(handbook: Collection) -> None:
    documents = langchain_retriever(handbook, k=2).invoke(QUERY)
    assert asyncio.run(langchain_retriever(handbook, k=2).ainvoke(QUERY)) == documents
    hits = handbook.search(QUERY, 2)
    assert [document.page_content for document in documents] == [hit.text for hit in hits]
    for document, hit in zip(documents, hits, strict=True):
        about = document.metadata
        assert (about["uri"], about["page"], about["score"]) == (hit.uri, hit.page, hit.score)
        assert handbook.document(hit.uri).text[about["start"] : about["end"]] == document.page_content


def test_langchain_puts_it_into_a_chain(handbook: Collection) -> None:
    from langchain_core.runnables import RunnableLambda

    chain = langchain_retriever(handbook, k=1) | RunnableLambda(lambda found: found[0].metadata["uri"])
    assert chain.invoke("dogs on Fridays") == "docs/pets.markdown"


def test_llama_index_gets_what_a_search_finds(handbook: Collection) -> None:
    nodes = llama_index_retriever(handbook, k=2).retrieve(QUERY)
    assert [node.node_id for node in asyncio.run(llama_index_retriever(handbook, k=2).aretrieve(QUERY))] == [
        node.node_id for node in nodes
    ]
    hits = handbook.search(QUERY, 2)
    assert [(node.text, node.score) for node in nodes] == [(hit.text, pytest.approx(hit.score)) for hit in hits]
    for node in nodes:
        about = node.metadata
        assert handbook.document(about["uri"]).text[about["start"] : about["end"]] == node.text


def test_llama_index_shows_a_model_where_a_passage_is_from_and_no_more(handbook: Collection) -> None:
    from llama_index.core.schema import MetadataMode

    (node,) = llama_index_retriever(handbook, k=1, mode="dense").retrieve("dogs on Fridays")
    assert node.node.get_content(MetadataMode.LLM).splitlines()[0] == "uri: docs/pets.markdown"
    assert "chunk_id" not in node.node.get_content(MetadataMode.LLM)
    assert node.node.get_content(MetadataMode.EMBED) == node.text


@pytest.mark.parametrize(
    "found",
    [
        lambda handle, **options: [d.metadata["uri"] for d in langchain_retriever(handle, **options).invoke(QUERY)],
        lambda handle, **options: [n.metadata["uri"] for n in llama_index_retriever(handle, **options).retrieve(QUERY)],
    ],
    ids=["langchain", "llama-index"],
)
def test_retrievers_see_what_the_handle_sees(handbook: Collection, found: Callable[..., list[str]]) -> None:
    assert "docs/hr/parents.txt" in found(handbook)
    assert "docs/hr/parents.txt" not in found(handbook.as_groups(set()))
    assert found(handbook, filter="modified < 1970") == []
    with pytest.raises(FilterError):
        found(handbook, filter="((")


@pytest.mark.parametrize(
    ("retriever", "package"), [(langchain_retriever, "langchain_core"), (llama_index_retriever, "llama_index")]
)
def test_a_missing_package_is_named(
    collection: Collection, retriever: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match="pip install"):
        retriever(collection)
