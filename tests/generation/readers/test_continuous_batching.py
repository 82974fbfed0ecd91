"""Continuous batching with llama.cpp: the evaluation thread, the slots and the queue."""

from __future__ import annotations

import gc
import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from support.tiny_gguf import write_lora, write_tiny

from ragfm.core.errors import DamagedModelError, ModelNotFoundError, RagfmError, ReaderBusyError
from ragfm.core.own_thread import in_own_thread
from ragfm.core.types import CLOSED, Message, Reader, Sampling, Stream
from ragfm.generation.readers import continuous_batching
from ragfm.generation.readers.engine import PREFILL_BLOCK, Adapter, BatchToken
from ragfm.generation.readers.generation_request import GenerationRequest
from ragfm.generation.readers.llama_context import LlamaContext
from ragfm.generation.readers.llama_cpp_reader import LlamaCppReader
from ragfm.generation.readers.llama_model import LlamaModel
from ragfm.generation.readers.sampling import LogitsSampler
from ragfm.generation.readers.slots import Slot, assign_slot
from ragfm.models.thread_count import ThreadCount

LONG = "The handbook says that employees get leave when they ask for it in time. "


def asked(text: str) -> list[Message]:
    return [Message("user", text)]


QUESTIONS = [
    asked("Is water wet? Answer yes or no."),
    asked(LONG * 10 + "Who gets leave?"),
    asked("Name three colours."),
    asked(LONG * 8 + "When do they ask?"),
    asked("Write a short poem about the sea."),
]
SAMPLINGS = [Sampling(max_tokens=8), Sampling(max_tokens=10, temperature=0.9, top_p=0.95, min_p=0.02, seed=7)]


@pytest.fixture(scope="module")
def reader() -> LlamaCppReader:
    return LlamaCppReader("bundled", threads=1, context_tokens=1024, slots=4)


@pytest.fixture
def single() -> LlamaCppReader:
    return LlamaCppReader("bundled", threads=1, context_tokens=256, slots=1, waiting=1)


def text(stream: Stream) -> str:
    return "".join(stream)


def logprobs(reader: Reader, messages: list[Message], **sampling: Any) -> tuple[float, ...]:
    """The log-probabilities of the first two tokens, which tell one adapter from another."""
    stream = reader.stream(messages, Sampling(max_tokens=2, logprobs=True, **sampling))
    text(stream)
    return stream.logprobs


def request_for(prompt: list[int], scope: str = "") -> GenerationRequest:
    return GenerationRequest(prompt, None, sampler=LogitsSampler(Sampling()), max_tokens=1, scope=scope)


def wait_until(holds: object, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end, "the condition was never met"
        time.sleep(0.01)


def unfinished(reader: LlamaCppReader) -> int:
    return reader._engine.batcher._loop.unfinished


# --- The same output alone and next to others --------------------------------------------------------------------


def test_the_text_is_the_same_alone_and_next_to_others(reader: LlamaCppReader) -> None:
    pairs = [
        *((question, SAMPLINGS[0]) for question in QUESTIONS),
        (QUESTIONS[0], SAMPLINGS[1]),
        (QUESTIONS[4], SAMPLINGS[1]),
    ]
    alone = [text(reader.stream(*pair)) for pair in pairs]
    streams = [reader.stream(*pair) for pair in pairs]  # more than there are slots
    assert [text(stream) for stream in streams] == alone
    assert len(reader._engine.batcher._loop._slots) == 4


@in_own_thread
def test_logits_are_bit_identical_alone_and_next_to_others(reader: LlamaCppReader) -> None:
    model = reader._engine.model
    prompts = [model.prompt_tokens(messages) for messages in QUESTIONS]
    context = LlamaContext(model, 5, 1024, ThreadCount(1))

    def read(slot: int) -> None:
        for start in range(0, len(prompts[slot]), PREFILL_BLOCK):
            part = prompts[slot][start : start + PREFILL_BLOCK]
            context.evaluate([BatchToken(token, start + at, slot, False) for at, token in enumerate(part)])

    def step(slots: Sequence[int]) -> dict[int, np.ndarray]:
        for slot in slots:
            assert context.truncate(slot, len(prompts[slot]))
        rows = context.evaluate([BatchToken(198, len(prompts[slot]), slot, True) for slot in slots])
        return dict(zip(slots, [row.copy() for row in rows], strict=True))

    for slot in range(5):
        read(slot)
    alone = {slot: step([slot])[slot] for slot in range(5)}
    for slots in ([0, 1, 2, 3, 4], [0, 2], [1, 4], [0, 3, 4], [1, 2]):  # with gaps, which are bridged or not
        together = step(slots)
        assert all(np.array_equal(together[slot], alone[slot]) for slot in slots)


@in_own_thread
def test_logits_are_bit_identical_with_any_number_of_threads(reader: LlamaCppReader) -> None:
    """The number changes while other programs are busy."""
    model = reader._engine.model
    prompts = [model.prompt_tokens(QUESTIONS[number]) for number in (3, 0)]  # more than a block, and less

    def logits(threads: int) -> np.ndarray:
        context, rows = LlamaContext(model, 2, 512, ThreadCount(threads)), []
        for slot, prompt in enumerate(prompts):
            for start in range(0, len(prompt), PREFILL_BLOCK):
                block = enumerate(prompt[start : start + PREFILL_BLOCK], start)
                rows += context.evaluate([BatchToken(token, at, slot, at == len(prompt) - 1) for at, token in block])
                rows = [row.copy() for row in rows]
        rows += context.evaluate([BatchToken(198, len(prompt), slot, True) for slot, prompt in enumerate(prompts)])
        rows = [row.copy() for row in rows]
        return np.stack([*rows, *context.evaluate([BatchToken(198, len(prompts[0]) + 1, 0, True)])])

    assert np.array_equal(logits(3), logits(1))


def record_scopes(reader: LlamaCppReader, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, list[str]]:
    """An event that evaluation waits for, and the list to which it adds the scope of each token."""
    evaluate, submitted, order = LlamaContext.evaluate, threading.Event(), list[str]()

    def recorded(context: LlamaContext, batch: Sequence[BatchToken]) -> object:
        submitted.wait(20)
        order.extend(reader._engine.batcher._loop._slots[token.slot].scope for token in batch)
        return evaluate(context, batch)

    monkeypatch.setattr(LlamaContext, "evaluate", recorded)
    return submitted, order


def test_scopes_get_equal_shares_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tiny = write_tiny(tmp_path / "tiny.gguf", context=2048)
    reader = LlamaCppReader(str(tiny), threads=1, context_tokens=2048, slots=4)
    submitted, order = record_scopes(reader, monkeypatch)
    monkeypatch.setattr(continuous_batching, "monotonic", lambda: len(order) / 1000)  # a millisecond for each token
    heavy = [
        reader.stream(asked(f"{number}. {LONG * 12}"), Sampling(max_tokens=1), scope="heavy") for number in range(3)
    ]
    light = reader.stream(asked(LONG * 5), Sampling(max_tokens=24), scope="light")
    submitted.set()
    for stream in (light, *heavy):
        text(stream)
    last = len(order) - order[::-1].index("light")
    ahead = PREFILL_BLOCK * 3  # the first block of all, the last one, and short ones that share a step
    assert order[:last].count("light") > PREFILL_BLOCK * 2
    assert order[:last].count("heavy") <= order.count("light") + ahead
    assert order.count("heavy") > 2 * order.count("light") + 2 * ahead


def test_a_scope_that_had_little_time_goes_before_one_that_is_always_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tiny = write_tiny(tmp_path / "tiny.gguf", context=2048)
    reader = LlamaCppReader(str(tiny), threads=1, context_tokens=2048, slots=8)
    evaluate, batches, light = LlamaContext.evaluate, list[list[str]](), list[Stream]()

    def recorded(context: LlamaContext, batch: Sequence[BatchToken]) -> object:
        batches.append([reader._engine.batcher._loop._slots[token.slot].scope for token in batch])
        if len(batches) in (10, 20):  # the heavy scope has had time
            light.append(reader.stream(asked(f"{len(batches)}. {LONG * 5}"), Sampling(max_tokens=1), scope="light"))
        return evaluate(context, batch)

    monkeypatch.setattr(LlamaContext, "evaluate", recorded)
    monkeypatch.setattr(continuous_batching, "monotonic", lambda: sum(map(len, batches)) / 1000)
    heavy = [
        reader.stream(asked(f"{number}. {LONG * 12}"), Sampling(max_tokens=1), scope="heavy") for number in range(6)
    ]
    for stream in heavy:
        text(stream)
    for stream in light:
        text(stream)
    of_light = [number for number, scopes in enumerate(batches) if "light" in scopes]
    first = [number for number in of_light if number < 20]
    assert len(first) >= 3
    assert first == list(range(10, 10 + len(first)))  # from the next step on, nothing comes between
    assert of_light[len(first) :] == list(range(20, 20 + len(of_light) - len(first)))
    assert len(batches) > of_light[-1] + 4  # while the heavy scope had more to evaluate


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LlamaCppReader:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return LlamaCppReader(
        str(write_tiny(tmp_path / "tiny.gguf", context=2048)), threads=1, context_tokens=2048, slots=8
    )


@pytest.mark.parametrize("patient", [True, False])
def test_the_scope_with_most_requests_lets_others_go_first(
    tiny: LlamaCppReader, monkeypatch: pytest.MonkeyPatch, patient: bool
) -> None:
    """Even if another one recently had more time, but not forever."""
    submitted, order = record_scopes(tiny, monkeypatch)
    seconds_per_token = 0.001 if patient else 2 * continuous_batching._PATIENCE / PREFILL_BLOCK
    monkeypatch.setattr(continuous_batching, "monotonic", lambda: len(order) * seconds_per_token)
    submitted.set()
    text(tiny.stream(asked(f"Before. {LONG * 15}"), Sampling(max_tokens=1), scope="light"))
    submitted.clear()
    alone = len(order)
    heavy = [
        tiny.stream(asked(f"{number}. {LONG * 12}"), Sampling(max_tokens=24), scope="heavy") for number in range(3)
    ]
    light = tiny.stream(asked(LONG * 12), Sampling(max_tokens=24), scope="light")
    submitted.set()
    for stream in (light, *heavy):
        text(stream)
    last = len(order) - order[::-1].index("light")
    of_heavy = order[alone:last].count("heavy")
    if patient:
        assert of_heavy <= PREFILL_BLOCK * 3  # the blocks before the light request was received
    else:
        assert of_heavy > PREFILL_BLOCK * 3


def test_other_work_counts_for_the_share_of_a_scope(tiny: LlamaCppReader, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted, order = record_scopes(tiny, monkeypatch)
    monkeypatch.setattr(continuous_batching, "monotonic", lambda: len(order) / 1000)
    tiny.count_tokens(asked("Load the model."))
    tiny.charge("busy", 5.0)
    streams = [
        tiny.stream(asked(f"{scope}. {LONG * 15}"), Sampling(max_tokens=1), scope=scope) for scope in ("busy", "other")
    ]
    submitted.set()
    for stream in streams:
        text(stream)
    last = len(order) - order[::-1].index("other")
    assert order[:last].count("busy") <= PREFILL_BLOCK  # the block before the other request was received


@pytest.mark.parametrize(("seconds_per_step", "seconds_per_answer"), [(0.0, 0.01), (0.01, 0.0)])
def test_answers_of_the_largest_scope_take_turns_with_others_if_steps_get_longer(
    tiny: LlamaCppReader, monkeypatch: pytest.MonkeyPatch, seconds_per_step: float, seconds_per_answer: float
) -> None:
    evaluate, batches, light = LlamaContext.evaluate, list[list[str]](), list[Stream]()
    submitted = threading.Event()

    def recorded(context: LlamaContext, batch: Sequence[BatchToken]) -> object:
        assert submitted.wait(60)
        batches.append([tiny._engine.batcher._loop._slots[token.slot].scope for token in batch])
        if len(batches) == 100:
            light.append(tiny.stream(asked("And?"), Sampling(max_tokens=60), scope="light"))
        return evaluate(context, batch)

    monkeypatch.setattr(LlamaContext, "evaluate", recorded)
    monkeypatch.setattr(
        continuous_batching,
        "monotonic",
        lambda: seconds_per_step * len(batches) + seconds_per_answer * sum(map(len, batches)),
    )
    heavy = [tiny.stream(asked(f"{number}?"), Sampling(max_tokens=300), scope="heavy") for number in range(4)]
    submitted.set()
    for stream in (*heavy, *light):
        text(stream)
    steps = [batch for batch in batches if len(batch) < 6]
    with_light = [number for number, batch in enumerate(steps) if "light" in batch]
    during = steps[with_light[0] : with_light[-1]]
    mixed = sum("light" in batch and "heavy" in batch for batch in during)
    if seconds_per_answer:  # four answers take as long as four steps of one
        alone, others = during.count(["light"]), len(during) - during.count(["light"])
        assert alone > 40
        assert 3 * others < alone < 6 * others
        assert mixed < 4
    else:
        assert mixed > 50


def test_adding_slots_keeps_their_content(reader: LlamaCppReader) -> None:
    """A stream continues with the same text when other requests add slots."""
    alone = text(reader.stream(QUESTIONS[3], Sampling(max_tokens=24)))
    growing = LlamaCppReader("bundled", threads=1, context_tokens=512)
    streams = [growing.stream(QUESTIONS[3], Sampling(max_tokens=24))]
    said = next(streams[0])
    assert len(growing._engine.batcher._loop._slots) == 1
    others = [growing.stream(QUESTIONS[0], SAMPLINGS[0]) for _ in range(2)]
    assert said + text(streams[0]) == alone
    assert len({text(other) for other in others}) == 1
    assert growing._engine.batcher._loop._resizable


def test_slots_that_cannot_be_moved_are_added_when_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    growing = LlamaCppReader("bundled", threads=1, context_tokens=256)
    monkeypatch.setattr(llama_cpp, "llama_state_seq_set_data", lambda *_: 0)
    streams = [growing.stream(QUESTIONS[0], SAMPLINGS[0]) for _ in range(4)]
    assert len({text(stream) for stream in streams}) == 1
    assert len(growing._engine.batcher._loop._slots) >= 2


@pytest.mark.parametrize("room", [3, 1])
def test_requests_wait_when_memory_is_short(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = LlamaCppReader("bundled", threads=1, context_tokens=256, slots=4)
    alone = text(reader.stream(QUESTIONS[0], SAMPLINGS[0]))
    make = llama_cpp.llama_init_from_model

    def little(model: object, settings: object) -> object:
        return make(model, settings) if settings.n_seq_max <= room else None  # type: ignore[attr-defined]

    monkeypatch.setattr(llama_cpp, "llama_init_from_model", little)
    for _ in range(2):
        streams = [reader.stream(QUESTIONS[0], SAMPLINGS[0]) for _ in range(4)]
        assert [text(stream) for stream in streams] == [alone] * 4
    assert len(reader._engine.batcher._loop._slots) <= room


def test_no_memory_for_one_request_is_an_error(single: LlamaCppReader, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(llama_cpp, "llama_init_from_model", lambda *_: None)
        with pytest.raises(RagfmError, match=r"with 1 slots: .* Try fewer context_tokens or slots"):
            text(single.stream(QUESTIONS[0], SAMPLINGS[0]))
    assert text(single.stream(QUESTIONS[0], SAMPLINGS[0]))


# --- The queue ---------------------------------------------------------------------------------------------------


@pytest.mark.timing
def test_the_queue_is_bounded_and_a_closed_stream_makes_room(single: LlamaCppReader) -> None:
    alone = text(single.stream(QUESTIONS[0], SAMPLINGS[0]))
    first = single.stream(QUESTIONS[0], Sampling(max_tokens=200))
    next(first)
    second = single.stream(QUESTIONS[0], SAMPLINGS[0])
    with pytest.raises(ReaderBusyError, match="serves 1 requests at once, and 1 more"):
        single.stream(QUESTIONS[2])
    first.close()
    assert text(second) == alone
    wait_until(lambda: unfinished(single) == 0)


@pytest.mark.timing
def test_another_thread_can_close_a_waiting_stream(single: LlamaCppReader) -> None:
    first = single.stream(QUESTIONS[0], Sampling(max_tokens=200))
    next(first)
    second, said = single.stream(QUESTIONS[2]), list[object]()

    def read() -> None:
        try:
            said.append(text(second))
        except RagfmError as error:
            said.append(error)

    reading = threading.Thread(target=read)
    reading.start()
    time.sleep(0.05)
    second.close()
    reading.join(20)
    assert [str(error) for error in said] == [CLOSED]  # no text that would pass for a whole one
    assert unfinished(single) == 1
    first.close()
    wait_until(lambda: unfinished(single) == 0)


@pytest.mark.timing
def test_a_stream_dropped_by_another_thread_frees_the_reader(single: LlamaCppReader) -> None:
    held = [single.stream(QUESTIONS[0], Sampling(max_tokens=200))]
    next(held[0])
    assert unfinished(single) == 1
    held.append(held)  # type: ignore[arg-type]  a cycle: only the garbage collector ends it
    del held
    collector = threading.Thread(target=gc.collect)
    collector.start()
    collector.join()
    wait_until(lambda: unfinished(single) == 0)


@pytest.mark.timing
def test_a_stream_that_was_never_read_frees_the_reader(single: LlamaCppReader) -> None:
    unread = single.stream(QUESTIONS[0], Sampling(max_tokens=200))
    assert unfinished(single) == 1
    del unread
    wait_until(lambda: unfinished(single) == 0)


@pytest.mark.timing
def test_running_streams_continue_while_a_long_prompt_is_evaluated(
    reader: LlamaCppReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    evaluate = LlamaContext.evaluate

    def watched(self: LlamaContext, rows: Sequence[BatchToken]) -> object:
        sizes.append(len(rows))
        return evaluate(self, rows)

    running = reader.stream(QUESTIONS[4], Sampling(max_tokens=60))
    next(running)
    monkeypatch.setattr(LlamaContext, "evaluate", watched)
    text(reader.stream(asked("Other words, so that nothing is shared. " * 45), Sampling(max_tokens=1)))
    running.close()
    blocks = [at for at, size in enumerate(sizes) if size > 2]
    assert len(blocks) >= 3
    assert all(later - earlier > 1 for earlier, later in itertools.pairwise(blocks))


# --- Prefix reuse ------------------------------------------------------------------------------------------------


def test_two_alternating_chats_keep_their_prefixes(reader: LlamaCppReader) -> None:
    long = asked(LONG * 18 + "Who gets leave?")  # the other chat has less than half of it
    for stream in [reader.stream(question, SAMPLINGS[0]) for question in (long, QUESTIONS[3])]:  # in two slots
        text(stream)
    for _ in range(2):
        for question in (long, QUESTIONS[3]):
            stream = reader.stream(question, Sampling(max_tokens=2))
            text(stream)
    assert stream.usage.cached_tokens == stream.usage.prompt_tokens - 2


def test_the_prefix_of_a_running_request_is_reused(reader: LlamaCppReader) -> None:
    alone = text(reader.stream(QUESTIONS[1], SAMPLINGS[0]))
    new = LlamaCppReader("bundled", threads=1, context_tokens=1024, slots=2)
    streams = [
        new.stream(asked(LONG * 10 + "Who is it that asks?"), SAMPLINGS[0]),
        new.stream(QUESTIONS[1], SAMPLINGS[0]),
    ]
    assert [text(stream) for stream in streams][1] == alone
    assert streams[1].usage.cached_tokens > PREFILL_BLOCK  # it waited for the other one to read what they share


def slot(number: int, held: Sequence[int], used: int = 0, prompt: Sequence[int] | None = None) -> Slot:
    request = None if prompt is None else request_for(list(prompt))
    return Slot(number, prompt=list(held), last_used=used, request=request)


def test_a_request_gets_the_slot_with_most_of_its_prompt() -> None:
    a, b, c = list(range(1000)), list(range(5000, 6000)), list(range(300)) + list(range(7000, 7700))
    request = request_for([*a, 1, 2, 3])
    slots = [slot(0, b, used=1), slot(1, a, used=9), slot(2, [], used=3)]
    assert assign_slot(slots, request, 1)[1:] == (slots[1], 1000)
    assert assign_slot(slots, request, PREFILL_BLOCK)[2] == 1000 // PREFILL_BLOCK * PREFILL_BLOCK
    # Of `a` only a third is of use to `c`: it is copied, not cut, and the empty slot is filled first.
    assert assign_slot(slots, request_for(c), 1) == (slots[2], slots[1], 300)
    assert assign_slot(slots[:2], request_for(c), 1) == (slots[0], slots[1], 300)
    # Nothing is shared: an empty one, else the one that was not used for longest.
    assert assign_slot(slots, request_for([1, 2, 3]), 1)[0] is slots[2]
    assert assign_slot(slots[:2], request_for([9, 9, 9]), 1)[0] is slots[0]
    slots[1].cache_key = (Adapter("other", "1"), "")
    assert assign_slot(slots, request, 1)[2] == 0


def test_a_scope_with_half_of_the_slots_replaces_its_own_prompts() -> None:
    slots = [slot(number, [number] * 200, used=number) for number in range(4)]
    for number in (0, 1):
        slots[number].cache_key = (None, "light")
    for number in (2, 3):
        slots[number].cache_key = (None, "heavy")
    request = request_for([9] * 200, "heavy")
    assert assign_slot(slots, request, 1)[0] is slots[2]
    slots[2].cache_key = (None, "light")  # heavy has less than half
    assert assign_slot(slots, request, 1)[0] is slots[0]
    slots[3].prompt = []
    assert assign_slot(slots, request, 1)[0] is slots[3]


def test_a_request_waits_for_a_slot_or_for_its_prefix() -> None:
    prompt = list(range(1000))
    assert assign_slot([slot(0, prompt, prompt=prompt)], request_for(prompt), 1) is None
    reading = [slot(0, prompt[:100], prompt=prompt), slot(1, [])]
    assert assign_slot(reading, request_for([*prompt, 7, 7]), 1) is None
    assert assign_slot(reading, request_for([3, 4, 5]), 1)[0] is reading[1]
    reading[0].prompt = list(prompt)
    assert assign_slot(reading, request_for([*prompt, 7, 7]), 1) == (reading[1], reading[0], 1000)


# --- Errors ------------------------------------------------------------------------------------------------------


def test_an_error_reaches_all_streams_and_the_next_one_works(
    reader: LlamaCppReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = text(reader.stream(QUESTIONS[0], SAMPLINGS[0]))
    streams = [reader.stream(question, Sampling(max_tokens=60)) for question in QUESTIONS]
    next(streams[0])
    with monkeypatch.context() as patch:
        patch.setattr(llama_cpp, "llama_decode", lambda *_: 1)
        for stream in streams:
            with pytest.raises(RagfmError, match="code 1"):
                list(stream)
    assert text(reader.stream(QUESTIONS[0], SAMPLINGS[0])) == alone
    wait_until(lambda: unfinished(reader) == 0)  # a request ends after its last token


def test_a_bug_in_the_thread_reaches_the_stream(reader: LlamaCppReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragfm.generation.readers.continuous_batching.assign_slot", lambda *_: 1 / 0)
    with pytest.raises(RagfmError, match="ZeroDivisionError"):
        text(reader.stream(QUESTIONS[0], SAMPLINGS[0]))


def test_a_failing_sampler_fails_only_its_own_request(reader: LlamaCppReader, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = text(reader.stream(QUESTIONS[0], SAMPLINGS[0]))
    good = reader.stream(QUESTIONS[0], SAMPLINGS[0])
    monkeypatch.setattr("ragfm.generation.readers.llama_sampler.LogitsSampler", lambda _: None)
    with pytest.raises(RagfmError, match="AttributeError"):
        text(reader.stream(QUESTIONS[2], SAMPLINGS[0]))
    assert text(good) == alone


@pytest.mark.timing
def test_ctrl_c_ends_the_stream(single: LlamaCppReader) -> None:
    stream = single.stream(QUESTIONS[0], Sampling(max_tokens=200))
    next(stream)
    timer = threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012  the key may come at once
        timer.start()
        time.sleep(10 * bool(list(stream)))  # where the model was faster than the key
    wait_until(lambda: unfinished(single) == 0)


def run(code: str) -> subprocess.CompletedProcess[str]:
    head = "import os, sys, threading\nfrom ragfm import Message, Sampling, load_reader\n"
    head += (
        "reader = load_reader('bundled', threads=1, context_tokens=256)\nasked = [Message('user', 'Count to ten.')]\n"
    )
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", head + code]  # Python 3.12 warns of forks
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("held", ["streams = ", "reader.a = reader.stream(asked); streams = "])
def test_the_program_may_end_while_streams_run(held: str) -> None:
    done = run(f"{held}[reader.stream(asked, Sampling(max_tokens=None)) for _ in range(3)]\nprint(next(streams[0]))\n")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_process_loads_its_own_model() -> None:
    done = run(
        "stream = reader.stream(asked, Sampling(max_tokens=40))\n"
        "said = next(stream)\n"
        "alone = ''.join(reader.stream(asked, Sampling(max_tokens=8)))\n"
        "if child := os.fork():\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "    assert (said + ''.join(stream)).startswith(alone)\n"
        "    print('parent')\n"
        "else:\n"
        "    assert ''.join(reader.stream(asked, Sampling(max_tokens=8))) == alone\n"
        "    try:\n"
        "        list(stream)\n"
        "    except Exception as error:\n"
        "        assert 'forked' in str(error), error\n"
        "        print('child', flush=True)\n"
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["child", "parent"], "")


@pytest.mark.timing
def test_the_thread_ends_with_the_reader() -> None:
    def threads() -> Iterator[threading.Thread]:
        return (thread for thread in threading.enumerate() if thread.name == "ragfm-reader")

    before = set(threads())
    passing = LlamaCppReader("bundled", threads=1, context_tokens=256)
    text(passing.stream(QUESTIONS[0], Sampling(max_tokens=1)))
    (thread,) = set(threads()) - before
    del passing
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts the threads of Linux")
def test_an_idle_reader_keeps_no_openmp_threads() -> None:
    """OpenMP stops spinning in all readers as soon as it has more threads than the machine has cores."""

    done = run(
        "import time\n"
        "from pathlib import Path\n"
        "from ragfm.models.thread_count import ThreadCount\n"
        "ThreadCount.count = property(lambda self: self.maximum)\n"  # however busy the machine is
        "threads = lambda: len(list(Path('/proc/self/task').iterdir()))\n"
        "pair = load_reader('bundled', threads=2, context_tokens=256)\n"
        "pair.count_tokens(asked)\n"
        "before, stream = threads(), pair.stream(asked, Sampling(max_tokens=200, grammar='root ::= [a-z]{1500}'))\n"
        "next(stream)\n"
        "assert threads() == before + 2, 'the evaluation thread, and the one of OpenMP'\n"
        "stream.close()\n"
        "end = time.monotonic() + 30\n"
        "while threads() != before + 1:\n"
        "    assert time.monotonic() < end\n"
        "    time.sleep(0.01)\n"
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- Adapters ----------------------------------------------------------------------------------------------------


def test_requests_with_several_adapters_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tiny = write_tiny(tmp_path / "tiny.gguf")
    adapters = [None, *(str(write_lora(tmp_path / f"{n}.gguf", layer=1, size=64, seed=n)) for n in range(2))]
    reader = LlamaCppReader(str(tiny), threads=1, context_tokens=256)
    alone = [logprobs(reader, QUESTIONS[2], adapter=adapter) for adapter in adapters]
    assert len(set(alone)) == 3
    used: list[str] = []
    set_adapter, asked = LlamaContext.set_adapter, threading.Event()

    def seen(context: LlamaContext, adapter: Adapter | None) -> None:
        assert asked.wait(60)  # until all have asked: otherwise the first is rightly far ahead
        used.append(adapter.path if adapter else "")
        set_adapter(context, adapter)

    monkeypatch.setattr(LlamaContext, "set_adapter", seen)
    streams = [reader.stream(QUESTIONS[2], Sampling(max_tokens=60, adapter=adapter)) for adapter in adapters]
    asked.set()
    together = [logprobs(reader, QUESTIONS[2], adapter=adapter) for adapter in adapters]
    for found, expected in zip(together, alone, strict=True):
        assert found == pytest.approx(expected, abs=1e-3)
    for stream in streams:
        text(stream)
    switches = sum(before != after for before, after in itertools.pairwise(used))
    assert switches < len(used) / 4  # to switch costs time
    assert used.index(str(adapters[2])) < 4 * 8  # and nobody waits until another one has ended


def test_a_damaged_adapter_fails_only_its_own_request(
    reader: LlamaCppReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lora(tmp_path / "adapter.gguf", layer=1, size=64)  # of another model
    alone = text(reader.stream(QUESTIONS[0], SAMPLINGS[0]))
    good = reader.stream(QUESTIONS[0], SAMPLINGS[0])
    with pytest.raises(DamagedModelError, match=r"adapter.gguf' is not a LoRA adapter for .*: .*shape"):
        reader.stream(QUESTIONS[0], Sampling(adapter=str(path)))
    monkeypatch.setattr(
        "ragfm.generation.readers.llama_cpp_reader.probe_model", lambda *_: None
    )  # and where only this process finds out
    bad = reader.stream(QUESTIONS[0], Sampling(adapter=str(path)))
    with pytest.raises(DamagedModelError, match=r"adapter.gguf' is not a LoRA adapter"):
        text(bad)
    monkeypatch.undo()
    assert text(good) == alone
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DamagedModelError, match=r"adapter.gguf' is damaged"):
        reader.stream(QUESTIONS[0], Sampling(adapter=str(path)))


def test_no_prompt_is_shared_between_adapters_scales_or_scopes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither counts nor latencies may reveal that a prompt begins like another user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    reader = LlamaCppReader(str(write_tiny(tmp_path / "tiny.gguf")), threads=1, context_tokens=512, slots=9)
    weak, strong = (str(write_lora(tmp_path / f"{scale}.gguf", layer=0, size=64, scale=scale)) for scale in (1.0, 3.0))
    kinds = [(adapter, scope) for adapter in (None, weak, strong) for scope in ("", "a", "b")]
    prompt, cached, found = asked(LONG * 4), list[int](), dict[str | None, tuple[float, ...]]()
    for adapter in (weak, strong):
        logprobs(reader, asked("Hi"), adapter=adapter)  # tried once, which takes longer than an answer
    evaluate, submitted = LlamaContext.evaluate, threading.Event()
    with monkeypatch.context() as held:  # until nine requests are there, so that there are nine slots
        held.setattr(LlamaContext, "evaluate", lambda *args: submitted.wait(20) and evaluate(*args))
        at_once = [reader.stream(asked(f"Hi {n}"), Sampling(max_tokens=2)) for n in range(9)]
        submitted.set()
        for stream in at_once:
            text(stream)
    assert len(reader._engine.batcher._loop._slots) == 9
    for _ in range(2):
        streams = [reader.scoped(scope).stream(prompt, Sampling(max_tokens=1, adapter=of)) for of, scope in kinds]
        cached += [stream.usage.cached_tokens for stream in streams if text(stream) is not None]
        for adapter, scope in kinds:
            first = logprobs(reader.scoped(scope), prompt, adapter=adapter)
            assert found.setdefault(adapter, first) == first
    assert cached[:9] == [0] * 9
    assert min(cached[9:]) > 250
    assert len(set(found.values())) == 3
    assert reader.scoped("a").count_tokens(prompt) == reader.count_tokens(prompt)
    assert reader.scoped("a").context_tokens == 512
    with pytest.raises(ModelNotFoundError, match=r"1\.0\.gguf:0\.5"):
        reader.stream(prompt, Sampling(adapter=f"{weak}:0.5"))


def test_a_replaced_adapter_file_is_a_different_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tiny, path = write_tiny(tmp_path / "tiny.gguf"), tmp_path / "lora.gguf"
    running = LlamaCppReader(str(tiny), threads=1, context_tokens=512)
    prompt, found = asked(LONG * 4), list[tuple[float, ...]]()
    for scale in (1.0, 3.0):
        write_lora(path, layer=0, size=64, scale=scale)
        fresh = LlamaCppReader(str(tiny), threads=1, context_tokens=512)
        stream = running.stream(prompt, Sampling(max_tokens=1, adapter=str(path)))
        text(stream)
        assert stream.usage.cached_tokens == 0
        found.append(logprobs(running, prompt, adapter=str(path)))
        assert found[-1] == logprobs(fresh, prompt, adapter=str(path))
    assert found[0] != found[1]
    waiting = Adapter.from_path(path)
    write_lora(path, layer=0, size=64, scale=5.0)
    with pytest.raises(ModelNotFoundError, match="replaced before it was loaded"):
        LlamaModel(tiny).adapter_handle(waiting)


def test_the_program_ends_after_the_weights_are_freed(tmp_path: Path) -> None:
    """The evaluation thread frees them if the reader is dropped just before the exit."""
    code = (
        "import sys, time\n"
        "from ragfm import Message, Sampling, load_reader\n"
        "from ragfm.generation.readers.llama_model import LlamaModel\n"
        "LlamaModel.__del__ = lambda self: (time.sleep(1), print('freed', flush=True))\n"
        "reader = load_reader(sys.argv[1], threads=1)\n"
        "list(reader.stream([Message('user', 'Hi')], Sampling(max_tokens=2)))\n"
        "del reader\n"
        "time.sleep(0.3)\n"
    )
    command = [sys.executable, "-c", code, str(write_tiny(tmp_path / "tiny.gguf"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "freed\n"
