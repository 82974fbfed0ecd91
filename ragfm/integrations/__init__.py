"""A collection as a retriever of other frameworks; what its handle may see, they see.

    from ragfm.integrations import langchain_retriever
    retriever = langchain_retriever(Collection.open("handbook").as_groups({"hr"}), k=5)
    retriever.invoke("parental leave")

What they get of a passage beside its text is `uri`, `page`, `place`, `start` and `end` (characters in the document's
text), `headings`, `score` (the cosine) and `chunk_id`.
"""

from __future__ import annotations

from functools import partial
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

_ABOUT = ("uri", "page", "place", "start", "end", "headings", "score", "chunk_id")
_SHOWN = {"uri", "page"}  # to a model, beside the text


def langchain_retriever(
    collection: Collection, *, k: int | None = None, mode: Mode = "hybrid", filter: str | None = None
) -> LangChainRetriever:
    """The collection as a retriever of LangChain, with what `Collection.search` takes."""
    try:
        from langchain_core.documents import Document
        from langchain_core.retrievers import BaseRetriever
    except ModuleNotFoundError as error:
        raise _missing("langchain-core", error) from error

    class CollectionRetriever(BaseRetriever):
        def _get_relevant_documents(
            self, query: str, *, run_manager: CallbackManagerForRetrieverRun
        ) -> list[Document]:  # fmt: skip
            hits = collection.search(query, k, mode=mode, filter=filter)
            return [Document(hit.text, id=str(hit.chunk_id), metadata=_about(hit)) for hit in hits]

    return CollectionRetriever()


def llama_index_retriever(
    collection: Collection, *, k: int | None = None, mode: Mode = "hybrid", filter: str | None = None
) -> LlamaIndexRetriever:
    """The collection as a retriever of LlamaIndex, with what `Collection.search` takes."""
    try:
        from llama_index.core.retrievers import BaseRetriever
        from llama_index.core.schema import NodeWithScore, TextNode
    except ModuleNotFoundError as error:
        raise _missing("llama-index-core", error) from error
    hidden = [name for name in _ABOUT if name not in _SHOWN]
    node = partial(TextNode, excluded_llm_metadata_keys=hidden, excluded_embed_metadata_keys=list(_ABOUT))

    class CollectionRetriever(BaseRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            hits = collection.search(query_bundle.query_str, k, mode=mode, filter=filter)
            return [
                NodeWithScore(node=node(id_=str(hit.chunk_id), text=hit.text, metadata=_about(hit)), score=hit.score)
                for hit in hits
            ]

    return CollectionRetriever()


def _about(hit: Hit) -> dict[str, Any]:
    return {name: getattr(hit, name) for name in _ABOUT}


def _missing(package: str, error: ModuleNotFoundError) -> MissingExtraError:
    return MissingExtraError(f"This needs {error.name}.", f"Run `pip install {package}`.")
