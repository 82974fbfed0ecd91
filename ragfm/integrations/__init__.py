"""Other frameworks: a collection as a retriever of LangChain or LlamaIndex, and checks of answers of other systems.

The results of a retriever are limited to what its handle may see.

    from ragfm.integrations import langchain_retriever
    retriever = langchain_retriever(Collection.open("handbook").as_groups({"hr"}), k=5)
    retriever.invoke("parental leave")

The metadata of each passage are `uri`, `page`, `place`, `start` and `end` (characters in the document's text),
`headings`, `score` (the cosine) and `chunk_id`.

`answer_check` checks answers, against passages that `passage_adapters` accepts from any system.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ragfm.core.errors import MissingExtraError

if TYPE_CHECKING:
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever as LangChainRetriever
    from llama_index.core.retrievers import BaseRetriever as LlamaIndexRetriever
    from llama_index.core.schema import NodeWithScore, QueryBundle

    from ragfm.collection import Collection
    from ragfm.core.types import Hit
    from ragfm.retrieval.search import Mode

__all__ = ["langchain_retriever", "llama_index_retriever"]

_METADATA_KEYS = ("uri", "page", "place", "start", "end", "headings", "score", "chunk_id")
_KEYS_FOR_MODELS = {"uri", "page"}  # LlamaIndex shows them to the language model with the text


def langchain_retriever(
    collection: Collection, *, k: int | None = None, mode: Mode = "hybrid", filter: str | None = None
) -> LangChainRetriever:
    """A LangChain retriever over the collection. The options are those of `Collection.search`."""
    try:
        from langchain_core.documents import Document
        from langchain_core.retrievers import BaseRetriever
    except ModuleNotFoundError as error:
        raise _missing("langchain-core", error) from error

    class CollectionRetriever(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
            hits = collection.search(query, k, mode=mode, filter=filter)
            return [Document(hit.text, id=str(hit.chunk_id), metadata=_metadata(hit)) for hit in hits]

    return CollectionRetriever()


def llama_index_retriever(
    collection: Collection, *, k: int | None = None, mode: Mode = "hybrid", filter: str | None = None
) -> LlamaIndexRetriever:
    """A LlamaIndex retriever over the collection. The options are those of `Collection.search`."""
    try:
        from llama_index.core.retrievers import BaseRetriever
        from llama_index.core.schema import NodeWithScore, TextNode
    except ModuleNotFoundError as error:
        raise _missing("llama-index-core", error) from error

    class CollectionRetriever(BaseRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            nodes = []
            for hit in collection.search(query_bundle.query_str, k, mode=mode, filter=filter):
                node = TextNode(
                    id_=str(hit.chunk_id),
                    text=hit.text,
                    metadata=_metadata(hit),
                    excluded_llm_metadata_keys=[name for name in _METADATA_KEYS if name not in _KEYS_FOR_MODELS],
                    excluded_embed_metadata_keys=list(_METADATA_KEYS),
                )
                nodes.append(NodeWithScore(node=node, score=hit.score))
            return nodes

    return CollectionRetriever()


def _metadata(hit: Hit) -> dict[str, Any]:
    return {name: getattr(hit, name) for name in _METADATA_KEYS}


def _missing(package: str, error: ModuleNotFoundError) -> MissingExtraError:
    return MissingExtraError(f"The retriever needs {error.name}.", f"Run `pip install {package}`.")
