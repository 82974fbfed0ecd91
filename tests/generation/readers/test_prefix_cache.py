"""Evaluated prompt prefixes on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from support.tiny_gguf import write_lora, write_tiny

from ragfm.core.types import Hit, Message, Sampling, Usage
from ragfm.generation.prompt import build_prompt, prompt_prefix
from ragfm.generation.prompt_template import load_strategy
from ragfm.generation.readers import prefix_cache
from ragfm.generation.readers.llama_cpp_reader import LlamaCppReader
from ragfm.testing import ScriptedReader

PREFIX = [Message("system", "Say what stands in the passages. " * 6)]  # two blocks and a bit
PROMPT = [*PREFIX, Message("user", "[1] The bees are asleep." * 3)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ragfm" / "beginnings"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf")


def answer(model: Path, *, begin: list[Message] = PREFIX, slots: int = 1, **how: Any) -> tuple[str, Usage]:
    """Text and usage of a newly loaded reader."""
    reader = LlamaCppReader(str(model), threads=1, context_tokens=512)
    for n in range(slots if slots > 1 else 0):
        reader.stream([Message("user", f"{n}")], Sampling(max_tokens=2))
    reader.keep(begin)
    stream = reader.stream(PROMPT, Sampling(max_tokens=16, **how))
    return "".join(stream), stream.usage


def test_a_new_reader_loads_the_prefix(model: Path, folder: Path) -> None:
    plain, usage = answer(model, begin=[])
    assert usage.cached_tokens == 0
    assert not folder.exists()
    assert answer(model) == (plain, usage)
    (file,) = folder.iterdir()
    text, usage = answer(model)
    assert (text, usage.cached_tokens) == (plain, 256)
    text, usage = answer(model, slots=3)  # in a context of another shape
    assert (text, usage.cached_tokens) == (plain, 256)
    assert list(folder.iterdir()) == [file]


def test_damaged_files_are_replaced(model: Path, folder: Path) -> None:
    plain = answer(model)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:-9], b"", whole[:-300] + bytes([whole[-300] ^ 1]) + whole[-299:]):
        file.write_bytes(damaged)
        assert answer(model) == plain
        assert file.read_bytes() == whole
    assert answer(model)[1].cached_tokens == 256


def test_each_model_and_adapter_has_its_own_file(model: Path, folder: Path, tmp_path: Path) -> None:
    answer(model)
    adapter = write_lora(tmp_path / "lora.gguf", layer=0, size=64)
    assert answer(model, adapter=str(adapter))[1].cached_tokens == 0
    assert answer(model, adapter=str(adapter))[1].cached_tokens == 256
    os.utime(model, ns=(1, 1))  # counts as another file
    assert answer(model)[1].cached_tokens == 0
    assert len(list(folder.iterdir())) == 3


def test_a_replaced_model_or_adapter_has_its_own_file(model: Path, folder: Path, tmp_path: Path) -> None:
    """This includes files of a process that had loaded the earlier model."""
    adapter = write_lora(tmp_path / "lora.gguf", layer=0, size=64)
    how = Sampling(max_tokens=16, adapter=str(adapter))
    running = LlamaCppReader(str(model), threads=1, context_tokens=512)
    list(running.stream(PROMPT, how))
    write_tiny(tmp_path / "other.gguf", seed=1).replace(model)
    write_lora(tmp_path / "stronger.gguf", layer=0, size=64, scale=3.0).replace(adapter)
    running.keep(PREFIX)
    list(running.stream(PROMPT, how))  # by the first model, and the second adapter
    assert len(list(folder.iterdir())) == 1
    plain, _ = answer(model, adapter=str(adapter), begin=[])
    text, usage = answer(model, adapter=str(adapter))
    assert (text, usage.cached_tokens) == (plain, 0)


def test_the_oldest_files_are_deleted(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(model)
    (old,) = folder.iterdir()
    monkeypatch.setattr(prefix_cache, "MAX_BYTES", old.stat().st_size + 1000)
    os.utime(old, (1, 1))
    answer(
        model, begin=[Message("system", PREFIX[0].content + "x" * 128)]
    )  # no prefix of the prompt: nothing is stored
    assert list(folder.iterdir()) == [old]
    os.utime(model, ns=(1, 1))
    answer(model)
    assert len(list(folder.iterdir())) == 1
    assert not old.exists()


def test_an_unwritable_folder_is_ignored(model: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    plain = answer(model, begin=[])
    folder.write_text("no folder", encoding="utf-8")
    assert answer(model) == plain


def test_all_prompts_of_a_strategy_share_the_prefix() -> None:
    strategy = load_strategy("few-shot")
    hits = [Hit("uri", "a secret", 0, 8, 1, None, {})]
    history = [Message("user", "before?"), Message("assistant", "Yes.")]
    begin = prompt_prefix(strategy)
    reader = ScriptedReader(context_tokens=10_000)
    prompt = build_prompt("Who?", hits, reader, history=history, strategy=strategy)
    assert list(prompt.messages[: len(begin)]) == begin
    assert len(begin) == 1 + 2 * len(strategy.examples) > 1
