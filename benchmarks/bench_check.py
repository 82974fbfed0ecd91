"""Measure `ragfm check` on answers of a LlamaIndex and a Haystack pipeline, by labels of their sentences.

    python benchmarks/bench_check.py
    python benchmarks/bench_check.py --answers READER.gguf     # new answers, without labels; goes on where it ended

Both pipelines answer the same 68 questions, a third of them without an answer, over six of the 25 reported articles of
SQuAD 2.0 dev: LlamaIndex with its vector index, Haystack with BM25, both with the bundled reader, which is often wrong.
The answers are in labels/check.jsonl, with the passages as [article, start, end] and the sentences as [start, end,
whether the passages state it]. They were labelled by reading, before any check; null is no claim, a repetition or a
doubtful case. Precision and recall are those of "not supported": contradicted or not found. Seconds are CPU time. The
last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data import DATA
from measure import VERSIONS, about, save

from ragfm import check
from ragfm.core.text import sentence_spans
from ragfm.embedders import load_embedder

FILE = Path(__file__).parent / "labels" / "check.jsonl"
TUNING = 10  # number of articles, by title
ARTICLES = 6  # a random sample
ANSWERABLE, UNANSWERABLE, OTHERS = 40, 20, 8
PASSAGES = 2
WORDS = 80  # of a passage, about
TOKENS = 100  # of an answer
FORM = "Answer in two or three complete sentences."
PROMPT = """Context information is below.
---------------------
{context}
---------------------
Given the context information and not prior knowledge, answer the query. FORM
Query: {query}
Answer: """.replace("FORM", FORM)
Answer = Callable[[str], tuple[str, list[list[Any]]]]
"""From a question to the answer and its passages."""


def load_articles() -> tuple[dict[str, str], dict[str, tuple[str, bool]]]:
    """Texts by title, and by id the questions, each with whether it has an answer."""
    data = json.loads(gzip.decompress((DATA / "squad" / "squad-v2.0-dev.json.gz").read_bytes()))["data"]
    data = sorted(data, key=lambda article: str(article["title"]))[TUNING:]
    data = random.Random(0).sample(data, ARTICLES)
    texts = {one["title"]: "\n\n".join(paragraph["context"] for paragraph in one["paragraphs"]) for one in data}
    questions = {
        qa["id"]: (qa["question"].strip(), not qa["is_impossible"])
        for one in data
        for paragraph in one["paragraphs"]
        for qa in paragraph["qas"]
    }
    return texts, questions


# --- Pipelines ---------------------------------------------------------------------------------------------------


def load_reader(path: str) -> Callable[[str], str]:
    import llama_cpp

    model = llama_cpp.Llama(path, n_ctx=2048, n_threads=1, n_threads_batch=1, verbose=False)

    def generate(prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        reply: Any = model.create_chat_completion(messages, max_tokens=TOKENS, temperature=0)
        return str(reply["choices"][0]["message"]["content"]).strip()

    return generate


def llama_index(texts: dict[str, str], generate: Callable[[str], str]) -> Answer:
    """A `VectorStoreIndex` with ragfm's embedder and the default number of passages."""
    from llama_index.core import Document, PromptTemplate, VectorStoreIndex
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
    from llama_index.core.node_parser import SentenceSplitter

    embedder = load_embedder("bundled")

    class Embedding(BaseEmbedding):
        def _get_query_embedding(self, query: str) -> list[float]:
            return list(embedder.embed_queries([query])[0].tolist())

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_query_embedding(query)

        def _get_text_embedding(self, text: str) -> list[float]:
            return self._get_text_embeddings([text])[0]

        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            return list(embedder.embed_passages(texts).tolist())

    class Reader(CustomLLM):
        @property
        def metadata(self) -> LLMMetadata:
            return LLMMetadata(context_window=2048, num_output=TOKENS)

        def complete(self, prompt: str, **_: Any) -> CompletionResponse:
            return CompletionResponse(text=generate(prompt))

        def stream_complete(self, prompt: str, **_: Any) -> Any:
            yield self.complete(prompt)

    documents = [Document(text=text, metadata={"title": title}) for title, text in texts.items()]
    splitter = SentenceSplitter(chunk_size=int(1.5 * WORDS), chunk_overlap=0)
    index = VectorStoreIndex.from_documents(documents, embed_model=Embedding(), transformations=[splitter])
    template = PromptTemplate(PROMPT.replace("{context}", "{context_str}").replace("{query}", "{query_str}"))
    engine = index.as_query_engine(llm=Reader(), similarity_top_k=PASSAGES, text_qa_template=template)

    def answer(question: str) -> tuple[str, list[list[Any]]]:
        response: Any = engine.query(question)
        nodes = [one.node for one in response.source_nodes]
        return str(response), [[n.metadata["title"], n.start_char_idx, n.end_char_idx] for n in nodes]

    return answer


def haystack(texts: dict[str, str], generate: Callable[[str], str]) -> Answer:
    """A pipeline of a BM25 retriever, a prompt builder and the reader."""
    from haystack import Document, Pipeline, component
    from haystack.components.builders import PromptBuilder
    from haystack.components.preprocessors import DocumentSplitter
    from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    @component
    class Reader:
        @component.output_types(reply=str)
        def run(self, prompt: str) -> dict[str, str]:
            return {"reply": generate(prompt)}

    store = InMemoryDocumentStore()
    splitter = DocumentSplitter(split_by="word", split_length=WORDS, split_overlap=0)
    documents = [Document(content=text, meta={"title": title}) for title, text in texts.items()]
    store.write_documents(splitter.run(documents)["documents"])
    template = PROMPT.replace("{context}", "{% for one in documents %}{{ one.content }}\n\n{% endfor %}")
    pipeline = Pipeline()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store, top_k=PASSAGES))
    pipeline.add_component(
        "builder",
        PromptBuilder(template=template.replace("{query}", "{{ query }}"), required_variables=["documents", "query"]),
    )
    pipeline.add_component("reader", Reader())
    pipeline.connect("retriever.documents", "builder.documents")
    pipeline.connect("builder", "reader")

    def answer(question: str) -> tuple[str, list[list[Any]]]:
        asked = {"retriever": {"query": question}, "builder": {"query": question}}
        found: Any = pipeline.run(asked, include_outputs_from={"retriever"})
        starts = [(one.meta, one.meta["split_idx_start"], one.content) for one in found["retriever"]["documents"]]
        return found["reader"]["reply"], [[meta["title"], start, start + len(text)] for meta, start, text in starts]

    return answer


def write_answers(reader: str) -> None:
    """Let both pipelines answer the questions that the file does not have yet."""
    texts, questions = load_articles()
    pick, generate = random.Random(0), load_reader(reader)
    asked = [
        id_
        for answerable, count in ((True, ANSWERABLE), (False, UNANSWERABLE))
        for id_ in pick.sample(sorted(id_ for id_, (_, has) in questions.items() if has is answerable), count)
    ]
    pick.shuffle(asked)  # so that a part of them is a sample, too
    asked += pick.sample(sorted(questions.keys() - asked), OTHERS)
    done = {(line["pipeline"], line["id"]) for line in read_lines()}
    pipelines = {"Haystack": haystack(texts, generate), "LlamaIndex": llama_index(texts, generate)}
    for id_ in asked:
        for name, answer in pipelines.items():
            if (name, id_) in done:
                continue
            text, passages = answer(questions[id_][0])
            sentences = [[start, end, None] for start, end in sentence_spans(text)]
            line = {"pipeline": name, "id": id_, "answer": text, "passages": passages, "sentences": sentences}
            with FILE.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


# --- Checks ------------------------------------------------------------------------------------------------------


def read_lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()] if FILE.exists() else []


def figures(counts: Counter[tuple[bool, bool]]) -> dict[str, Any]:
    """Precision and recall of "not supported", from counts of (supported by the label, by the check)."""
    found, missed, false = counts[False, False], counts[False, True], counts[True, False]
    return {
        "sentences": counts.total(),
        "not supported": found + missed,
        "precision": round(found / max(1, found + false), 3),
        "recall": round(found / max(1, found + missed), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", metavar="READER", help="let the pipelines answer with this GGUF file")
    parser.add_argument(
        "--show", action="store_true", help="print the sentences that are judged otherwise than labelled"
    )
    args = parser.parse_args()
    if args.answers:
        write_answers(args.answers)
        return
    texts, questions = load_articles()
    counts: dict[str, Counter[tuple[bool, bool]]] = {}
    seconds, checked_sentences = 0.0, 0
    check("The judge is loaded.", ["The judge is loaded."])
    for line in read_lines():
        labels = {(start, end): right for start, end, right in line["sentences"] if right is not None}
        if not labels:
            continue
        passages = [texts[title][start:end] for title, start, end in line["passages"]]
        before = time.process_time()
        checked = check(line["answer"], passages, question=questions[line["id"]][0])
        seconds, checked_sentences = seconds + time.process_time() - before, checked_sentences + len(checked)
        verdicts = {(one.start, one.end): one.status == "supported" for one in checked}
        for span, right in labels.items():
            if span not in verdicts:
                raise SystemExit(f"{line['id']}: {span} is not a sentence any more. Label the answer again.")
            for name in (line["pipeline"], "both"):
                counts.setdefault(name, Counter())[right, verdicts[span]] += 1
            if args.show and right != verdicts[span]:
                print(f"labelled {right}: {line['id']} {line['answer'][slice(*span)]}")
    parts = {name: figures(counts[name]) for name in sorted(counts, key=str.casefold, reverse=True)}
    result = {
        **about("check", (*VERSIONS, "llama-index-core", "haystack-ai")),
        "seconds": round(seconds / max(1, checked_sentences), 3),
        "pipelines": parts,
    }
    for name, one in parts.items():
        print(f"{name:12}", one)
    save(result, "check")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
