"""LlamaIndex or Haystack over a folder of PDF files: `python filings.py llamaindex|haystack TASK`.

TASK is a JSON file with `pdfs`, `keep` (path of the filled index), `questions`, and `answer`: the search to answer
from, or empty to run all searches. Both read PDF files with pypdf, in their own readers, and embed the file name with
each chunk, by ragfm's embedder, so that vectors of the same text are the same. Each result is a JSON line in which
passages are pairs of a file and its pages. Messages for the model are written as JSON lines, too, and its answers are
read from standard input.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from tokenizers import Tokenizer

from ragfm.embedders import load_embedder
from ragfm.models.model_lookup import find_model

TOP = 10
Passage: TypeAlias = tuple[str, list[int]]


def generate(messages: list[dict[str, str]]) -> str:
    print(json.dumps({"messages": messages}), flush=True)
    return str(json.loads(sys.stdin.readline())["text"])


class Embedder:
    """ragfm's embedder, for texts of any length: those over 256 tokens are cut, as by sentence-transformers."""

    def __init__(self) -> None:
        self._embedder = load_embedder("bundled")
        self._tokenizer = Tokenizer.from_file(str(find_model("bundled", "embedder") / "tokenizer.json"))
        self._tokenizer.no_truncation()

    def passages(self, texts: list[str]) -> list[list[float]]:
        cut = []
        for text, encoding in zip(texts, self._tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            ends = [end for _, end in encoding.offsets[: self._embedder.max_tokens]]
            cut.append(text[: ends[-1]] if ends else "")
        return [vector.tolist() for vector in self._embedder.embed_passages(cut)]

    def query(self, text: str) -> list[float]:
        vector: list[float] = self._embedder.embed_queries([text])[0].tolist()
        return vector


class LlamaIndex:
    """SimpleDirectoryReader, VectorStoreIndex and `as_query_engine`, with their defaults.

    One document per page; chunks of 1,024 tokens; the two best chunks are read by the model.
    """

    PACKAGES = (
        "llama-index-core",
        "llama-index-readers-file",
        "llama-index-retrievers-bm25",
        "pypdf",
    )

    def __init__(self, pdfs: Path, keep: Path) -> None:
        from llama_index.core import (
            Settings,
            SimpleDirectoryReader,
            StorageContext,
            VectorStoreIndex,
            load_index_from_storage,
        )
        from llama_index.core.embeddings import BaseEmbedding
        from llama_index.core.llms import MockLLM

        embedder = Embedder()

        class Embedding(BaseEmbedding):
            def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
                return embedder.passages(texts)

            def _get_text_embedding(self, text: str) -> list[float]:
                return self._get_text_embeddings([text])[0]

            def _get_query_embedding(self, query: str) -> list[float]:
                return embedder.query(query)

            async def _aget_query_embedding(self, query: str) -> list[float]:
                return self._get_query_embedding(query)

        Settings.embed_model = Embedding(embed_batch_size=512)
        Settings.llm = MockLLM()
        if keep.exists():
            self.index: Any = load_index_from_storage(StorageContext.from_defaults(persist_dir=str(keep)))
        else:
            documents = SimpleDirectoryReader(str(pdfs)).load_data()
            number: dict[str, int] = {}
            for document in documents:
                name = document.metadata["file_name"]
                number[name] = number.get(name, 0) + 1
                document.metadata["page"] = number[name]  # page labels are not always page numbers
                document.excluded_embed_metadata_keys.append("page")
                document.excluded_llm_metadata_keys.append("page")
            self.index = VectorStoreIndex.from_documents(documents)
            self.index.storage_context.persist(str(keep))

    def ways(self) -> dict[str, Callable[[str], list[Passage]]]:
        from llama_index.core.retrievers import QueryFusionRetriever
        from llama_index.retrievers.bm25 import BM25Retriever

        def retriever(mode: str | None, k: int) -> Any:
            dense = self.index.as_retriever(similarity_top_k=k)
            if mode is None:
                return dense
            words = BM25Retriever.from_defaults(docstore=self.index.docstore, similarity_top_k=k)
            # A single query: more of them need a language model.
            return QueryFusionRetriever([dense, words], similarity_top_k=k, num_queries=1, mode=mode, use_async=False)

        modes = {
            "default": None,
            "hybrid, reciprocal_rerank": "reciprocal_rerank",
            "hybrid, relative_score": "relative_score",
        }
        self.retriever = lambda way, k: retriever(modes[way], k)
        return {way: partial(self.search, retriever(mode, TOP)) for way, mode in modes.items()}

    def search(self, retriever: Any, question: str) -> list[Passage]:
        nodes = [found.node.metadata for found in retriever.retrieve(question)]
        return [(node["file_name"], [node["page"]]) for node in nodes]

    def answers(self, way: str) -> Callable[[str], tuple[str, list[Passage]]]:
        from llama_index.core.llms import ChatMessage, ChatResponse, CompletionResponse, CustomLLM, LLMMetadata
        from llama_index.core.query_engine import RetrieverQueryEngine

        class Model(CustomLLM):
            @property
            def metadata(self) -> LLMMetadata:
                return LLMMetadata(context_window=4096, num_output=512, is_chat_model=True, model_name="reader")

            def chat(self, messages: Any, **_: Any) -> ChatResponse:
                text = generate([{"role": one.role.value, "content": str(one.content)} for one in messages])
                return ChatResponse(message=ChatMessage(role="assistant", content=text))

            def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
                return CompletionResponse(text=generate([{"role": "user", "content": prompt}]))

            def stream_complete(self, prompt: str, formatted: bool = False, **_: Any) -> Any:
                yield self.complete(prompt)

        engine = RetrieverQueryEngine.from_args(self.retriever(way, 2), llm=Model())

        def ask(question: str) -> tuple[str, list[Passage]]:
            response = engine.query(question)
            nodes = [found.node.metadata for found in response.source_nodes]
            return str(response), [(node["file_name"], [node["page"]]) for node in nodes]

        return ask


class Haystack:
    """PyPDFToDocument, DocumentCleaner and DocumentSplitter with their defaults, in memory; file names are embedded.

    Chunks of 200 words; the ten best are read by the model, with the prompt of the tutorial "Creating Your First QA
    Pipeline with Retrieval-Augmentation".
    """

    PACKAGES = ("haystack-ai", "pypdf")
    PROMPT = (
        "Given the following information, answer the question.\n\nContext:\n{% for document in documents %}\n"
        "    {{ document.content }}\n{% endfor %}\n\nQuestion: {{question}}\nAnswer:"
    )

    def __init__(self, pdfs: Path, keep: Path) -> None:
        from haystack import Document
        from haystack.components.converters import PyPDFToDocument
        from haystack.components.preprocessors import DocumentCleaner, DocumentSplitter
        from haystack.document_stores.in_memory import InMemoryDocumentStore

        self.embedder = Embedder()

        self.store = InMemoryDocumentStore()
        for path in sorted(pdfs.glob("*.pdf")):
            kept = keep / f"{path.stem}.json"
            if not kept.exists():
                documents = PyPDFToDocument().run(sources=[path])["documents"]
                documents = DocumentCleaner().run(documents=documents)["documents"]
                splitter = DocumentSplitter()
                splitter.warm_up()
                documents = splitter.run(documents=documents)["documents"]
                # As SentenceTransformersDocumentEmbedder with `meta_fields_to_embed=["file_path"]`.
                vectors = self.embedder.passages([f"{one.meta['file_path']}\n{one.content}" for one in documents])
                rows = [
                    replace(one, embedding=vector).to_dict() for one, vector in zip(documents, vectors, strict=True)
                ]
                keep.mkdir(exist_ok=True)
                kept.write_text(json.dumps(rows), encoding="utf-8")
            rows = json.loads(kept.read_text(encoding="utf-8"))
            self.store.write_documents(list(map(Document.from_dict, rows)))

    def ways(self) -> dict[str, Callable[[str], list[Passage]]]:
        from haystack import Pipeline
        from haystack.components.joiners import DocumentJoiner
        from haystack.components.retrievers.in_memory import InMemoryBM25Retriever, InMemoryEmbeddingRetriever

        self.pipelines = {}
        for way, mode in {
            "default": None,
            "hybrid, reciprocal_rank_fusion": "reciprocal_rank_fusion",
            "hybrid, distribution_based_rank_fusion": "distribution_based_rank_fusion",
        }.items():
            pipeline = Pipeline()
            pipeline.add_component("dense", InMemoryEmbeddingRetriever(self.store, top_k=TOP))
            if mode:
                pipeline.add_component("words", InMemoryBM25Retriever(self.store, top_k=TOP))
                pipeline.add_component("joiner", DocumentJoiner(join_mode=mode))
                pipeline.connect("dense", "joiner")
                pipeline.connect("words", "joiner")
            self.pipelines[way] = partial(self.run, pipeline, bool(mode))
        return {way: partial(self.search, run) for way, run in self.pipelines.items()}

    def run(self, pipeline: Any, words: bool, question: str) -> list[Any]:
        inputs = {"dense": {"query_embedding": self.embedder.query(question)}}
        inputs |= {"words": {"query": question}} if words else {}
        return list(pipeline.run(inputs)["joiner" if words else "dense"]["documents"][:TOP])

    def search(self, run: Callable[[str], list[Any]], question: str) -> list[Passage]:
        return [self.passage(document) for document in run(question)]

    def passage(self, document: Any) -> Passage:
        first = document.meta["page_number"]
        return document.meta["file_path"], [*range(first, first + document.content.strip("\f").count("\f") + 1)]

    def answers(self, way: str) -> Callable[[str], tuple[str, list[Passage]]]:
        from haystack.components.builders import ChatPromptBuilder
        from haystack.dataclasses import ChatMessage

        builder = ChatPromptBuilder(template=[ChatMessage.from_user(self.PROMPT)], required_variables="*")

        def ask(question: str) -> tuple[str, list[Passage]]:
            documents = self.pipelines[way](question)
            (message,) = builder.run(documents=documents, question=question)["prompt"]
            reply = generate([{"role": "user", "content": str(message.text)}])
            return reply, [self.passage(document) for document in documents]

        return ask


def results(task: dict[str, Any], peer: type[LlamaIndex | Haystack]) -> Iterator[dict[str, Any]]:
    made = peer(Path(task["pdfs"]), Path(task["keep"]))
    ways = made.ways()
    if not task["answer"]:
        for way, search in ways.items():
            yield {"way": way, "found": [search(question) for question in task["questions"]]}
    else:
        ask = made.answers(task["answer"])
        for question in task["questions"]:
            text, read = ask(question)
            yield {"question": question, "text": text, "read": read}
    yield {"versions": {package: importlib.metadata.version(package) for package in peer.PACKAGES}}


def main() -> None:
    sys.path[0] = str(Path(__file__).parents[1])
    task = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    for result in results(task, {"llamaindex": LlamaIndex, "haystack": Haystack}[sys.argv[1]]):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
