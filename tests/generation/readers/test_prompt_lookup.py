"""Drafts copied from the prompt: the same text as without them, in fewer steps, and only for a request alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ragfm import Collection, Rag, Settings
from ragfm.core.config import AskSection
from ragfm.core.types import Message, Sampling
from ragfm.generation.readers.engine import BatchToken
from ragfm.generation.readers.llama_context import LlamaContext
from ragfm.generation.readers.llama_cpp_reader import LlamaCppReader
from ragfm.generation.readers.prompt_lookup import PromptLookup
from ragfm.testing import HashingEmbedder

LIST = (
    "The keys of the north gate are with Ms Tamura. The keys of the south gate are with Mr Okafor. The keys of the "
    "boathouse are with the harbour master, who is in the office from eight to noon. "
)
QUESTIONS = [
    [Message("user", LIST + "Repeat this text word for word.")],
    [Message("user", LIST + "Who has the keys of the boathouse?")],
    [Message("user", "Name three colours.")],
]
GREEDY = Sampling(max_tokens=60)


@pytest.fixture(scope="module")
def readers() -> tuple[LlamaCppReader, LlamaCppReader]:
    """The bundled reader without drafts, as it is by default, and with them."""
    options = {"threads": 1, "context_tokens": 512, "slots": 4}
    return LlamaCppReader("bundled", **options), LlamaCppReader("bundled", drafts="true", **options)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[BatchToken]]:
    """The batches whose tokens all have logits: steps of answers."""
    seen: list[list[BatchToken]] = []
    evaluate = LlamaContext.evaluate

    def recorded(context: LlamaContext, batch: Sequence[BatchToken]) -> object:
        if all(entry.wants_logits for entry in batch):
            seen.append(list(batch))
        return evaluate(context, batch)

    monkeypatch.setattr(LlamaContext, "evaluate", recorded)
    return seen


def test_a_draft_is_what_followed_the_last_tokens() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 9, 2, 3, 7])
    lookup.add(2)
    assert lookup.draft(10) == []
    lookup.add(3)
    assert lookup.draft(10) == [7, 2, 3]  # the latest of two places
    assert lookup.draft(1) == [7]
    lookup.add(4)
    assert lookup.draft(10) == [5, 6, 7, 8, 9, 10, 11]  # more after three known tokens
    assert lookup.draft(0) == []
    for token in (1, 3, 4):
        lookup.add(token)
    assert lookup.draft(10) == [1, 3, 4]
    assert PromptLookup([1]).draft(5) == []


def test_the_text_is_the_same_with_drafts_in_fewer_steps(
    readers: tuple[LlamaCppReader, LlamaCppReader], batches: list[list[BatchToken]]
) -> None:
    results, steps = [], []
    for reader in readers:
        batches.clear()
        stream = reader.stream(QUESTIONS[0], GREEDY)
        results.append((list(stream), stream.finish_reason, stream.usage.completion_tokens))
        steps.append(len(batches))
    assert results[0] == results[1]
    assert 2 * steps[1] < steps[0]
    assert steps[1] == steps[0] - stream.usage.accepted_tokens
    assert sum(len(batch) - 1 for batch in batches) == stream.usage.drafted_tokens


def test_drafts_change_nothing_but_the_rounding_of_a_batch(
    readers: tuple[LlamaCppReader, LlamaCppReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = LlamaContext.evaluate

    def one_by_one(context: LlamaContext, batch: Sequence[BatchToken]) -> object:
        if not all(entry.wants_logits for entry in batch):
            return evaluate(context, batch)
        return [evaluate(context, [entry])[0].copy() for entry in batch]

    monkeypatch.setattr(LlamaContext, "evaluate", one_by_one)
    for question in QUESTIONS:
        plain, drafted = (reader.stream(question, replace(GREEDY, logprobs=True)) for reader in readers)
        assert list(plain) == list(drafted)
        assert plain.logprobs == drafted.logprobs
        assert plain.usage.drafted_tokens == 0
        assert 0 <= drafted.usage.accepted_tokens <= drafted.usage.drafted_tokens
        assert (drafted.usage.completion_tokens, drafted.finish_reason) == (
            plain.usage.completion_tokens,
            plain.finish_reason,
        )


def test_a_grammar_and_stop_strings_hold_with_drafts(readers: tuple[LlamaCppReader, LlamaCppReader]) -> None:
    grammar = 'root ::= "The keys of the north gate are with M" [sr] " " [A-Z] [a-z]+ "."'
    for sampling in (Sampling(max_tokens=40, grammar=grammar), Sampling(max_tokens=40, stop=("Okafor",))):
        plain, drafted = (list(reader.stream(QUESTIONS[0], sampling)) for reader in readers)
        assert plain == drafted


def test_drafts_are_in_the_usage_of_an_answer_its_log_and_the_debug_log(
    readers: tuple[LlamaCppReader, LlamaCppReader], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "keys.md").write_text(LIST)
    settings = Settings(ask=AskSection(log=True, reranker="none"))
    collection = Collection.open(tmp_path / ".ragfm", settings=settings, embedder=HashingEmbedder())
    collection.sync(tmp_path / "docs")
    rag = Rag(collection, reader=readers[1])
    with caplog.at_level(logging.DEBUG, "ragfm.generation"):
        answer = rag.ask("Who has the keys of the south gate, and who has the keys of the north gate?")
    assert answer.usage.drafted_tokens > 0
    assert str(answer.usage) in caplog.text
    assert answer.log_id is not None
    assert rag.log is not None
    assert rag.log.entry(answer.log_id).usage == asdict(answer.usage)  # type: ignore[union-attr]


def test_sampled_text_is_not_drafted(readers: tuple[LlamaCppReader, LlamaCppReader]) -> None:
    stream = readers[1].stream(QUESTIONS[0], Sampling(max_tokens=30, temperature=0.7, seed=3))
    assert "".join(stream)
    assert stream.usage.drafted_tokens == 0


def test_weights_with_reproducible_output_are_not_drafted_by_default(
    readers: tuple[LlamaCppReader, LlamaCppReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = readers[0]
    assert not reader._drafts(reader._engine.model)
    monkeypatch.setattr(reader._engine.model, "prefix_multiple", 128)  # as for Q4_K_M
    assert reader._drafts(reader._engine.model)
    monkeypatch.setattr(reader._engine.model, "can_truncate", False)
    assert not reader._drafts(reader._engine.model)


def test_nothing_is_drafted_next_to_another_request(
    readers: tuple[LlamaCppReader, LlamaCppReader], batches: list[list[BatchToken]]
) -> None:
    reader = readers[1]
    other = reader.stream(QUESTIONS[2], Sampling(max_tokens=400, grammar="root ::= [a-z]{1500}"))
    next(iter(other))
    stream = reader.stream(QUESTIONS[0], Sampling(max_tokens=20))
    assert "".join(stream)
    other.close()
    assert stream.usage.drafted_tokens == 0
    slots = [[entry.slot for entry in batch] for batch in batches]
    both = [index for index, numbers in enumerate(slots) if len(set(numbers)) == 2]
    assert slots[both[0] : both[-1] + 1] == [[0, 1]] * 19


def test_a_closed_stream_frees_the_reader_and_leaves_a_usable_prompt(
    readers: tuple[LlamaCppReader, LlamaCppReader],
) -> None:
    plain, drafting = readers
    stream = drafting.stream(QUESTIONS[0], Sampling(max_tokens=200))
    next(iter(stream))
    stream.close()
    end = time.monotonic() + 20
    while drafting._engine.batcher._loop.unfinished:
        assert time.monotonic() < end
        time.sleep(0.01)
    again = drafting.stream(QUESTIONS[0], GREEDY)
    assert "".join(again) == "".join(plain.stream(QUESTIONS[0], GREEDY))
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 2
