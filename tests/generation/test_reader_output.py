"""The output of different model families, normalised at once and piece by piece.

Outputs marked "own" are of models that were run for this test; the others have the shape that their source documents.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_models import SPECIAL, alphabet, tiny_config, tiny_gguf, tiny_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from ragfm import Collection, Rag
from ragfm.core.types import Message
from ragfm.generation.reader_output import OutputNormalizer
from ragfm.generation.readers.llama_model import LlamaModel
from ragfm.generation.readers.torch_model import TorchModel
from ragfm.rag import CUT_OFF
from ragfm.testing import ScriptedReader
from ragfm.training.gguf_lora import ModelShape

PASSAGES = 3
MARKERS = [
    ("You get 28 days [1].", "You get 28 days [1]."),
    ("You get 28 days [1, 2].", "You get 28 days [1, 2]."),
    ("You get 28 days [1][2].", "You get 28 days [1][2]."),
    ("You get 28 days [1，2].", "You get 28 days [1, 2]."),  # deeplethe/utopia, pull request 649
    ("You get 28 days [1-3].", "You get 28 days [1, 2, 3]."),
    ("You get 28 days [1–2] a year.", "You get 28 days [1, 2] a year."),
    ("You get 28 days [[2]].", "You get 28 days [2]."),
    ("You get 28 days [^2].", "You get 28 days [2]."),
    ("You get 28 days [Source 2].", "You get 28 days [2]."),  # Mistral Small 3.2: linagora/openrag, pull request 351
    ("You get 28 days [Passage 1].", "You get 28 days [1]."),
    ("You get 28 days [passages 1 and 3].", "You get 28 days [1, 3]."),
    ("You get 28 days [Document 1, Document 2].", "You get 28 days [1, 2]."),
    ("You get 28 days (Passage 1).", "You get 28 days [1]."),
    ("You get 28 days (see source 1).", "You get 28 days [1]."),
    ("You get 28 days (1).", "You get 28 days [1]."),
    ("You get 28 days (1, 2). Parents get more (3)", "You get 28 days [1, 2]. Parents get more [3]"),
    ("You get 28 days **[1]**.", "You get 28 days [1]."),
    ("You get **28 days [1]** *[2]*", "You get **28 days [1]** [2]"),
    ("You get 28 days 【1】.", "You get 28 days [1]."),
    ("You get 28 days【4:1†source】.", "You get 28 days[1]."),  # OpenAI: Chainlit/openai-assistant, issue 4
    ("You get 28 days【4:2†leave.pdf】.", "You get 28 days[2]."),  # OpenAI: glific/glific, pull request 4011
]
NO_MARKERS = [
    "It was founded in [2019] (see above).",
    "The ratio is 1.21 (1.4 in 2019).",
    "Class (9) is the largest.",
    "Sites (9).",  # there are three passages
    "(1) Fill in the form. (2) Pin the receipts to it.",
    "See section 4(1).",
    "The range is 12 (3) [1].",
    "**[1] Leave** and **pay**",
    "Read [the handbook](https://example.org).",
    "f(x) = [a, b]",
    "an open bracket [1",
    "See [2-9].",
    "Block's (formerly known as Square) FY2016 working capital ratio is 1.21.",  # own: Qwen2.5-Coder-0.5B-Instruct
]
PREAMBLES = [
    ("Based on the passages, you get 28 days [1].", "You get 28 days [1]."),
    ("Based on the provided passages, you get 28 days [1].", "You get 28 days [1]."),
    ("According to the passages above, you get 28 days.", "You get 28 days."),
    ("According to passage [1], you get 28 days.", "You get 28 days."),
    ("According to the document, 28 days are given.", "28 days are given."),
    ("From the given context, you get 28 days.", "You get 28 days."),
    ("Answer: 28 days", "28 days"),
    ("**Answer:** 28 days", "28 days"),
    ("Final answer: 28 days", "28 days"),
    ("Answer: Based on the context, 28 days", "28 days"),
]
NO_PREAMBLES = [
    # own: Qwen2.5-Coder-0.5B-Instruct
    "According to PolitiFact, the top 400 richest Americans have more wealth than half of all Americans combined.",
    "Based on the tariff of 1846, duties fell.",
    "From the information desk, visitors go left.",
    "Answers are posted on Friday.",
    "**Two** weeks.",
    "Based on the passages,",
]
REASONING = [
    # Qwen 3 without thinking: huggingface.co/blog/qwen-3-chat-template-deep-dive
    ("<think>\n\n</think>\n\nYou get 28 days [1].", "", "You get 28 days [1]."),
    # Magistral, and models that are told to think in tags
    ("[THINK]Passage [1] says 28.[/THINK]You get 28 days [1].", "Passage [1] says 28.", "You get 28 days [1]."),
    ("<thinking>\nHm.\n</thinking>\n\nYou get 28 days [1].", "Hm.", "You get 28 days [1]."),
    ("[1] says so: 28 days.", "", "[1] says so: 28 days."),
    # Qwen 3 and SmolLM3 with thinking
    (
        "<think>\nPassage [1] says 28 days.\n</think>\n\nYou get 28 days.",
        "Passage [1] says 28 days.",
        "You get 28 days.",
    ),
    ("<think>\nHm.\n</think>\n\nBased on the passages, 28 days (1).", "Hm.", "28 days [1]."),
    # cut off by the limit of tokens
    ("<think>\nPassage [1] says", "Passage [1] says", ""),
]


@pytest.mark.parametrize(
    ("output", "wanted"), MARKERS + PREAMBLES + [(text, text) for text in NO_MARKERS + NO_PREAMBLES]
)
def test_markers_and_preambles(output: str, wanted: str) -> None:
    normalizer = OutputNormalizer(PASSAGES)
    assert normalizer.feed(output) + normalizer.finish() == wanted
    for size in (1, 2, 3, 7):
        normalizer = OutputNormalizer(PASSAGES)
        pieces = [normalizer.feed(output[at : at + size]) for at in range(0, len(output), size)]
        assert "".join([*pieces, normalizer.finish()]) == wanted, size


@pytest.mark.parametrize(("output", "reasoning", "answer"), REASONING)
def test_reasoning_is_kept_apart(output: str, reasoning: str, answer: str) -> None:
    for size in (1, 5, len(output)):
        normalizer = OutputNormalizer(PASSAGES)
        pieces = [normalizer.feed(output[at : at + size]) for at in range(0, len(output), size)]
        assert "".join([*pieces, normalizer.finish()]) == answer
        assert normalizer.reasoning == reasoning


def test_a_reader_that_starts_within_its_reasoning() -> None:
    """DeepSeek R1's template has the opening tag: deepseek-ai/DeepSeek-R1, issue 352."""
    output = 'Alright, the user just said "hello."\n</think>\n\nHello! How can I assist you today?'
    normalizer = OutputNormalizer(PASSAGES, in_reasoning=True)
    assert normalizer.feed(output) + normalizer.finish() == "Hello! How can I assist you today?"
    assert normalizer.reasoning == 'Alright, the user just said "hello."'


@pytest.mark.parametrize("end", ["</think>", "</thinking>", "[/THINK]"])
def test_a_server_whose_output_starts_within_the_reasoning(collection: Collection, docs: Path, end: str) -> None:
    collection.sync(docs)
    reader = ScriptedReader([f"Passage 1 says 25 or 28.\n{end}\n\nYou get 28 days of leave [1]."])
    answer = Rag(collection, reader=reader, k=1).ask("How many days of leave do I get?")
    assert (answer.text, answer.reasoning) == ("You get 28 days of leave [1].", "Passage 1 says 25 or 28.")


def test_a_reader_that_is_cut_off_in_its_reasoning_is_noted(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    reader = ScriptedReader(["<think>\n" + "Passage 1 says so. " * 200])
    answer = Rag(collection, reader=reader, k=1).ask("How many days of leave do I get?")
    assert (answer.status, answer.notes) == ("not_found", (CUT_OFF,))
    assert answer.reasoning.startswith("Passage 1 says so.")


def test_tags_that_are_control_tokens_are_text(tmp_path: Path) -> None:
    """As in Magistral's tokenizer: without them, its reasoning would be part of the answer."""
    tags = ["[THINK]", "[/THINK]"]
    config = tiny_config(vocab_size=len(alphabet()) + len(tags))
    model = AutoModelForCausalLM.from_config(config)
    path = tiny_gguf(model, tmp_path / "model.gguf", ModelShape.from_config(config), extra_special=tags)
    folder = tiny_model(tmp_path / "model", vocab_size=config.vocab_size)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [SPECIAL[1], *tags]})
    tokenizer.save_pretrained(folder)
    said = f"[THINK]Hm.[/THINK]28 days.{SPECIAL[1]}"
    for loaded in (LlamaModel(path), TorchModel(folder)):
        tokens = loaded.prompt_tokens([Message("user", said)])
        text = "".join(loaded.detokenize(iter(tokens)))
        assert "[THINK]Hm.[/THINK]28 days." in text
        assert SPECIAL[1] not in text


def test_an_answer_streams_normalised(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    said = "<think>\nPassage 1 says so.\n</think>\n\nBased on the passages, you get 28 days of leave [Source 1]."
    stream = Rag(collection, reader=ScriptedReader([said]), k=1).stream("How many days of leave do I get?")
    assert "".join(stream) == "You get 28 days of leave [1]."
    answer = stream.answer
    assert (answer.text, answer.reasoning) == ("You get 28 days of leave [1].", "Passage 1 says so.")
    assert [citation.n for citation in answer.citations] == [1]
    ((start, end),) = stream.cited_spans
    assert "You get 28 days of leave [1]."[start:end].startswith("You get 28 days")


def test_text_is_held_back_only_while_it_is_not_certain() -> None:
    normalizer = OutputNormalizer(PASSAGES)
    assert normalizer.feed("You") == "You"
    assert normalizer.feed(" get 28 days") == " get 28 days"
    assert normalizer.feed(" [") == " "
    assert normalizer.feed("1]") == ""
    assert normalizer.feed(". Then (as") == "[1]. Then "
    assert normalizer.feed(" a rule of long standing that nobody remembers") == (
        "(as a rule of long standing that nobody remembers"
    )
    assert normalizer.finish() == ""
