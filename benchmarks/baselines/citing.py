"""Citations by LlamaIndex's CitationQueryEngine and Haystack's AnswerBuilder: `python citing.py TASK`.

TASK is a JSON file with `items`: a question, its passages, and a reply made from them. Prompts for the model are
written to standard output as JSON lines; its answers are read from standard input as JSON lines. The last line is the
result.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from pathlib import Path
from typing import Any

_MARKER = re.compile(r"\[(\d+)\]")


def ask(prompt: str) -> str:
    print(json.dumps({"prompt": prompt}), flush=True)
    return str(json.loads(sys.stdin.readline())["text"])


def llamaindex(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from llama_index.core.callbacks import CallbackManager
    from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
    from llama_index.core.query_engine import CitationQueryEngine
    from llama_index.core.response_synthesizers import get_response_synthesizer
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, TextNode

    class Model(CustomLLM):
        @property
        def metadata(self) -> LLMMetadata:
            return LLMMetadata(context_window=4096, num_output=128, model_name="reader")

        def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
            return CompletionResponse(text=ask(prompt))

        def stream_complete(self, prompt: str, formatted: bool = False, **_: Any) -> Any:
            yield self.complete(prompt)

    passages: list[str] = []

    class Given(BaseRetriever):
        def _retrieve(self, _: Any) -> list[NodeWithScore]:
            return [NodeWithScore(node=TextNode(text=text), score=1.0) for text in passages]

    from llama_index.core.query_engine.citation_query_engine import CITATION_QA_TEMPLATE, CITATION_REFINE_TEMPLATE

    model = Model()
    synthesizer = get_response_synthesizer(
        llm=model,
        text_qa_template=CITATION_QA_TEMPLATE,
        refine_template=CITATION_REFINE_TEMPLATE,
        response_mode="compact",
        callback_manager=CallbackManager([]),
    )
    engine = CitationQueryEngine(retriever=Given(), llm=model, response_synthesizer=synthesizer)
    found = []
    for item in items:
        passages[:] = item["passages"]
        response = engine.query(item["question"])
        sources = [node.node.get_content().partition("\n")[2].strip() for node in response.source_nodes]
        named = {int(n) for n in _MARKER.findall(str(response))}
        cited = [text for n, text in enumerate(sources, 1) if n in named]
        found.append({"text": str(response), "cited": cited, "listed": sources})
    return found


def haystack(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from haystack import Document
    from haystack.components.builders import AnswerBuilder

    by_marker, plain = AnswerBuilder(reference_pattern=r"\[(\d+)\]"), AnswerBuilder()
    found = []
    for item in items:
        documents = [Document(content=text) for text in item["passages"]]
        asked = {"query": item["question"], "replies": [item["reply"]], "documents": documents}
        answers = [builder.run(**asked)["answers"][0] for builder in (by_marker, plain)]
        cited, listed = ([document.content for document in answer.documents] for answer in answers)
        found.append({"text": item["reply"], "cited": cited, "listed": listed})
    return found


def main() -> None:
    sys.path[0] = str(Path(__file__).parents[1])
    items = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["items"]
    result = {"LlamaIndex": llamaindex(items), "Haystack": haystack(items)}
    versions = {name: importlib.metadata.version(name) for name in ("llama-index-core", "haystack-ai")}
    print(json.dumps({"result": result, "versions": versions}))


if __name__ == "__main__":
    main()
