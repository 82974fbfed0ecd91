from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from support.tiny_gguf import write_lora

from ragfm.core.config import load_settings
from ragfm.core.errors import (
    ConfigError,
    ContextOverflowError,
    DamagedModelError,
    ModelNotFoundError,
    UnknownPluginError,
    UnsupportedError,
)
from ragfm.core.types import Message, Sampling, Stream, Usage
from ragfm.generation.json_schema import OutputSchema
from ragfm.generation.readers import load_reader, reader_options, stream_until_stop
from ragfm.generation.readers.engine import PREFILL_BLOCK
from ragfm.generation.readers.llama_cpp_reader import LlamaCppReader
from ragfm.models.model_lookup import find_model
from ragfm.testing import ScriptedReader, check_reader

# One thread: llama.cpp's threads wait for each other by spinning, which takes very long on a machine that is busy.
ASKED = [Message("user", "Is water wet? Answer yes or no.")]


@pytest.fixture(scope="module")
def reader() -> LlamaCppReader:
    return LlamaCppReader("bundled", threads=1)


def test_options_of_an_unknown_reader_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAGFM_READER_OPTIONS__LLAMA_CPP__SLOTS", "2")
    assert reader_options("bundled", load_settings(tmp_path)) == {"context_tokens": 4096, "slots": "2"}
    assert reader_options("openai:m", load_settings(tmp_path)) == {"context_tokens": 4096}
    (tmp_path / "ragfm.toml").write_text('[reader_options.open-ai]\nbase_url = "http://localhost:8000/v1"\n')
    with pytest.raises(ConfigError, match=r"no reader 'open-ai'.*openai"):  # its passages would go to OpenAI
        reader_options("openai:m", load_settings(tmp_path))


def read(reader: LlamaCppReader, messages: Sequence[Message], **sampling: object) -> str:
    return "".join(reader.stream(messages, Sampling(**{"max_tokens": 12} | sampling)))  # type: ignore[arg-type]


def answer(reader: LlamaCppReader, messages: Sequence[Message]) -> tuple[str, tuple[float, ...]]:
    stream = reader.stream(messages, Sampling(max_tokens=12, logprobs=True))
    return "".join(stream), stream.logprobs


# --- limits and stop strings -------------------------------------------------------------------------------------


def collect(pieces: Sequence[str], limit: int, *stop: str) -> tuple[list[str], int, str]:
    said = []
    generator = stream_until_stop(iter(pieces), limit, stop)
    while True:
        try:
            said.append(next(generator))
        except StopIteration as end:
            return said, *end.value


def test_a_stop_string_is_found_however_the_text_is_split() -> None:
    text, stop = "abaabcd", "abc"
    for cuts in product([False, True], repeat=len(text) - 1):
        pieces = [text[0]]
        for character, cut in zip(text[1:], cuts, strict=True):
            if cut:
                pieces.append(character)
            else:
                pieces[-1] += character
        said, _, reason = collect(pieces, 99, stop)
        assert ("".join(said), reason) == ("aba", "stop")


def test_the_first_stop_string_in_the_text_counts() -> None:
    assert collect(["one two three"], 9, "three", "two")[0] == ["one "]


def test_only_a_possible_start_of_a_stop_string_is_held_back() -> None:
    assert collect(["Hello.", "\n", "\n", "Q"], 9, "\n\nX")[0] == ["Hello.", "\n\nQ"]
    assert collect(["Hello.", "\n"], 9, "\n\n")[0] == ["Hello.", "\n"]


def test_no_token_beyond_the_limit_is_generated() -> None:
    def pieces() -> Iterator[str]:
        yield from ("a", "b")
        pytest.fail("a third token was generated")

    generator = stream_until_stop(pieces(), 2, ())
    assert list(generator) == ["a", "b"]
    assert collect(["a", "b"], 2)[1:] == (2, "length")
    assert collect(["a", "b"], 3)[1:] == (2, "stop")
    assert collect([], 0) == ([], 0, "length")


# --- names -------------------------------------------------------------------------------------------------------


def test_names_select_the_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def plugin(kind: str, name: str) -> object:
        return lambda model, **options: asked.append((name, model, options))

    monkeypatch.setattr("ragfm.core.registry.load_plugin", plugin)
    names = [
        "bundled",
        "/x/y.gguf",
        "some/folder",
        "transformers:bundled",
        "llama-cpp:/x/y.gguf",
        "transformers",
        "mine:x",
    ]
    for name in [*names, r"C:\models\x", "./a:b.gguf"]:
        load_reader(name, context_tokens=9)
    assert [entry[:2] for entry in asked] == [
        ("llama-cpp", "bundled"),
        ("llama-cpp", "/x/y.gguf"),
        ("transformers", "some/folder"),
        ("transformers", "bundled"),
        ("llama-cpp", "/x/y.gguf"),
        ("transformers", "bundled"),
        ("mine", "x"),
        ("transformers", r"C:\models\x"),
        ("llama-cpp", "./a:b.gguf"),
    ]
    assert asked[0][2] == {"context_tokens": 9}


def test_unknown_names_fail_at_once() -> None:
    with pytest.raises(UnknownPluginError, match="llama-cpp"):
        load_reader("no-such-plugin:bundled")
    with pytest.raises(ModelNotFoundError, match="no-such"):
        load_reader("./no-such.gguf")
    assert isinstance(load_reader("bundled"), LlamaCppReader)


@pytest.mark.parametrize(
    "option",
    [
        {"slots": 0},
        {"slots": 1.5},
        {"waiting": -1},
        {"context_tokens": 0},
        {"context_tokens": "many"},
        {"threads": -1},
        {"threads": 100_000},
        {"slots": None},
    ],
)
def test_an_invalid_option_is_an_error(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(ConfigError, match=f"Invalid reader option {name}: "):
        load_reader("bundled", **option)


def test_options_may_be_text_as_in_the_environment(reader: LlamaCppReader) -> None:
    other = LlamaCppReader("bundled", slots="2", waiting="1", context_tokens="256", threads="1")  # type: ignore[arg-type]
    assert other.slots == 2
    assert other.context_tokens == 256
    with pytest.raises(ConfigError, match="-1 is negative"):
        reader.stream(ASKED, Sampling(max_tokens=-1))


# --- the contract ------------------------------------------------------------------------------------------------


def test_the_llama_cpp_reader_keeps_the_contract(reader: LlamaCppReader) -> None:
    check_reader(reader)


def test_the_scripted_reader_keeps_the_contract() -> None:
    check_reader(ScriptedReader(lambda messages: f"I was asked: {messages[-1].content}"))


class Forgetful(ScriptedReader):
    """Releases its lock only if a stream is read to its end."""

    def __init__(self) -> None:
        super().__init__(lambda messages: f"I was asked: {messages[-1].content}")
        self.turn = threading.Lock()

    def stream(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Stream:
        inner = super().stream(messages, sampling)

        def pieces() -> Iterator[str]:
            self.turn.acquire()
            yield from inner
            self.turn.release()
            return inner.usage, inner.finish_reason

        return Stream(pieces())


class Loud(ScriptedReader):
    def stream(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Stream:
        return super().stream(messages, Sampling(max_tokens=sampling.max_tokens))


class Miscounting(ScriptedReader):
    def count_tokens(self, messages: Sequence[Message]) -> int:
        return len(self.prompts) + super().count_tokens(messages)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (Forgetful(), "stuck"),
        (Loud(lambda messages: "one two three four"), "stop string"),
        (Miscounting(lambda messages: "one two three four"), "count_tokens"),
        (ScriptedReader(["one two three", "four five six"]), "the same prompt"),
        (ScriptedReader([""]), "said nothing"),
        (ScriptedReader(lambda messages: "torn \ufffd sign that is"), "torn"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_contract_detects_broken_readers(
    broken: ScriptedReader, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragfm.testing.reader_contract._SECONDS", 0.3)
    with pytest.raises(AssertionError, match=said):
        check_reader(broken)


# --- llama.cpp ---------------------------------------------------------------------------------------------------


def test_it_answers(reader: LlamaCppReader) -> None:
    stream = reader.stream(ASKED, Sampling(max_tokens=40, stop=(".",)))
    assert "".join(stream).startswith("No, water is not ")
    assert stream.finish_reason == "stop"


def test_earlier_prompts_change_nothing(reader: LlamaCppReader) -> None:
    """With a reused prefix, the output is bit-identical to that of a fresh evaluation."""
    shared = "The handbook says that employees get leave. " * 20
    first, second = ([Message("user", shared + end)] for end in ("Who gets leave, and when?", "What does it say?"))
    fresh = LlamaCppReader("bundled", threads=1, context_tokens=1024)
    text, logprobs = answer(fresh, second)
    read(reader, ASKED)
    stream = reader.stream(first, Sampling(max_tokens=4))
    list(stream)
    assert stream.usage == Usage(reader.count_tokens(first), stream.usage.cached_tokens, 4)
    stream = reader.stream(second, Sampling(max_tokens=12, logprobs=True))
    assert ("".join(stream), stream.logprobs) == (text, logprobs)
    stream = reader.stream(second, Sampling(max_tokens=12))
    assert "".join(stream) == text
    assert stream.usage.cached_tokens == stream.usage.prompt_tokens - 2  # the last ones are evaluated for their logits


@pytest.mark.parametrize("tokens", [PREFILL_BLOCK - 1, PREFILL_BLOCK, PREFILL_BLOCK + 1, PREFILL_BLOCK + 2])
def test_prompts_of_about_a_block_give_the_same_logprobs_twice(reader: LlamaCppReader, tokens: int) -> None:
    words = next(n for n in range(tokens) if reader.count_tokens([Message("user", "word " * n)]) == tokens)
    asked = [Message("user", "word " * words)]
    first = answer(reader, asked)
    assert answer(reader, asked) == first


def test_the_window_is_used_to_the_last_token() -> None:
    small = LlamaCppReader("bundled", threads=1, context_tokens=64)
    assert small.context_tokens == 64
    stream = small.stream(ASKED, Sampling(max_tokens=None))
    list(stream)
    if stream.finish_reason == "length":
        assert stream.usage.prompt_tokens + stream.usage.completion_tokens == 64
    with pytest.raises(ContextOverflowError, match="64"):
        small.stream([Message("user", "word " * 40)])
    assert LlamaCppReader("bundled", context_tokens=1_000_000).context_tokens == 8192


def test_a_grammar_is_enforced_and_no_character_is_split(reader: LlamaCppReader) -> None:
    either = {"grammar": 'root ::= "yes" | "maybe"'}
    assert read(reader, ASKED, **either) in ("yes", "maybe")
    assert {read(reader, ASKED, **either, temperature=9.0, seed=seed) for seed in range(8)} == {"yes", "maybe"}
    signs = "😀日本é"
    for limit in range(1, 12):
        text = read(reader, ASKED, grammar=f'root ::= "{signs}"', max_tokens=limit)
        assert signs.startswith(text)
    assert text == signs
    with pytest.raises(ConfigError, match="grammar"):
        reader.stream(ASKED, Sampling(grammar="root ::= nothing-of-that-name"))


def test_a_schema_is_enforced(reader: LlamaCppReader) -> None:
    schema = {
        "type": "object",
        "properties": {"wet": {"type": "boolean"}, "kind": {"enum": ["sea", "lake"]}},
        "required": ["wet", "kind"],
    }
    said = json.loads(read(reader, ASKED, schema=schema, max_tokens=64))
    assert (type(said["wet"]), said["kind"] in ("sea", "lake")) == (bool, True)
    assert OutputSchema.of(OutputSchema.of(schema).bounded) == OutputSchema(
        OutputSchema.of(schema).bounded, OutputSchema.of(schema).bounded
    )
    with pytest.raises(ConfigError, match="only one of them"):
        reader.stream(ASKED, Sampling(schema=schema, grammar='root ::= "a"'))
    with pytest.raises(ConfigError, match="not a JSON schema"):
        reader.stream(ASKED, Sampling(schema={"type": 3}))


def test_logprobs_of_stopped_and_constrained_answers(reader: LlamaCppReader) -> None:
    stream = reader.stream(ASKED, Sampling(max_tokens=6, logprobs=True, stop=("is not",)))
    assert stream.logprobs == ()
    text = "".join(stream)
    assert len(stream.logprobs) == stream.usage.completion_tokens
    assert text + "is not" in "".join(reader.stream(ASKED, Sampling(max_tokens=6)))
    grammar = reader.stream(ASKED, Sampling(max_tokens=1, logprobs=True, grammar='root ::= "zebra"'))
    assert "".join(grammar)[0] == "z"
    assert grammar.logprobs[0] < -5  # of the model, not of what the grammar leaves
    assert read(reader, ASKED)
    plain = reader.stream(ASKED, Sampling(max_tokens=2))
    list(plain)
    assert plain.logprobs == ()


def test_long_tokens_are_whole(reader: LlamaCppReader) -> None:
    model = reader._engine.model
    longest = max(range(model.vocab_size), key=lambda token: len(model.token_bytes(token)))
    assert len(model.token_bytes(longest)) > 32  # what llama-cpp-python's own detokenize() can hold


def test_an_unpaired_surrogate_is_a_question_mark(reader: LlamaCppReader) -> None:
    assert reader.count_tokens([Message("user", "a\ud800b")]) == reader.count_tokens([Message("user", "a?b")])


def test_sampling_is_seeded_and_bounded(reader: LlamaCppReader) -> None:
    hot = {"temperature": 1.5}
    assert read(reader, ASKED, **hot, seed=1) == read(reader, ASKED, **hot, seed=1)
    assert len({read(reader, ASKED, **hot, seed=seed) for seed in range(4)}) > 1
    greedy = read(reader, ASKED)
    assert read(reader, ASKED, **hot, top_p=1e-6) == greedy
    assert read(reader, ASKED, **hot, min_p=1.0) == greedy


def test_it_is_quiet() -> None:
    code = (
        "from ragfm import Message, Sampling, load_reader\n"
        "reader = load_reader('bundled', threads=1, context_tokens=512)\n"
        "print(''.join(reader.stream([Message('user', 'Hi')], Sampling(max_tokens=2))), end='')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout
    assert "\n" not in done.stdout


def test_files_that_are_not_models_are_errors(tmp_path: Path) -> None:
    damaged = tmp_path / "model.gguf"
    damaged.write_bytes(b"<html>404</html>")
    with pytest.raises(DamagedModelError, match=r"model.gguf' is not a GGUF"):
        load_reader(str(damaged))
    damaged.write_bytes(find_model("bundled", "reader").read_bytes()[:2_000_000])
    with pytest.raises(DamagedModelError, match=r"model.gguf' is damaged: its tensors end at"):
        _ = load_reader(str(damaged)).context_tokens
    with pytest.raises(UnsupportedError, match="folder"):
        LlamaCppReader(str(find_model("bundled", "embedder")))


def test_a_missing_or_refusing_template_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(llama_cpp, "llama_model_chat_template", lambda *_: None)
        with pytest.raises(UnsupportedError, match="no chat template"):
            LlamaCppReader("bundled").count_tokens(ASKED)
    refusing = b"{{ raise_exception('roles must alternate') }}"
    monkeypatch.setattr(llama_cpp, "llama_model_chat_template", lambda *_: refusing)
    with pytest.raises(UnsupportedError, match="roles must alternate"):
        LlamaCppReader("bundled").count_tokens(ASKED)


def lora(path: Path, architecture: str = "llama") -> str:
    return str(write_lora(path, layer=20, size=576, architecture=architecture))


@pytest.mark.slow
def test_an_adapter_changes_only_the_answer_of_its_request(reader: LlamaCppReader, tmp_path: Path) -> None:
    asked = [Message("user", "Water flows. " * PREFILL_BLOCK), *ASKED]  # whole blocks of it stay in memory
    plain = read(reader, asked)
    adapter = lora(tmp_path / "adapter.gguf")
    stream = reader.stream(asked, Sampling(max_tokens=12, adapter=adapter))
    adapted = "".join(stream)
    assert stream.usage.cached_tokens == 0  # what was evaluated without the adapter is of no use with it
    assert adapted != plain
    assert read(reader, asked) == plain
    assert read(reader, asked, adapter=adapter) == adapted
    with pytest.raises(DamagedModelError, match="not a LoRA adapter"):
        read(reader, asked, adapter=lora(tmp_path / "other.gguf", "gpt2"))
    with pytest.raises(ModelNotFoundError, match=r"none\.gguf"):
        reader.stream(ASKED, Sampling(adapter=str(tmp_path / "none.gguf")))
    assert read(reader, asked) == plain
