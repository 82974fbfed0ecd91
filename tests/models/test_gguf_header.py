"""GGUF headers, and damaged files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from support.tiny_gguf import damage, write_lora, write_tiny

from ragfm.core.errors import DamagedModelError, ModelNotFoundError, RagfmError
from ragfm.core.types import Message, Sampling
from ragfm.generation.readers.llama_cpp_reader import LlamaCppReader
from ragfm.models.gguf_header import read_header
from ragfm.models.model_lookup import find_model

ASKED = [Message("user", "Hello")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ragfm" / "tried"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf")


def test_header_of_the_bundled_model() -> None:
    metadata = read_header(find_model("bundled", "reader"))
    assert metadata["general.architecture"] == "llama"
    assert metadata["general.license"] == "apache-2.0"
    assert metadata["llama.context_length"] == 8192
    assert metadata["tokenizer.ggml.tokens"] is None


def patched(data: bytes, at: int, form: str, value: int) -> bytes:
    return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


def test_impossible_headers_are_errors(tiny: Path) -> None:
    whole = tiny.read_bytes()
    key = whole.index(b"llama.context_length") + 20
    name = whole.index(b"token_embd.weight") + 17
    damaged = {
        "version is 9": patched(whole, 4, "<I", 9),
        r"announces \d+ bytes of tensors and values": patched(whole, 8, "<Q", 2**40),
        "tensors and values at byte 24": patched(whole, 16, "<Q", 2**63),
        "unknown type 77": patched(whole, key, "<I", 77),
        "has 9 dimensions": patched(whole, name, "<I", 9),
        "its tensors end at byte": patched(whole, name + 4, "<Q", 2**62),
        "and ends at 200": whole[:200],
        "'tokenizer.ggml.bos_token_id' twice": whole.replace(b"ggml.eos_token_id", b"ggml.bos_token_id"),
        "same name": whole.replace(b"blk.1.attn_q.", b"blk.0.attn_q."),
        "begins with b'GGML'": b"GGML" + whole[4:],
    }
    for said, data in damaged.items():
        tiny.write_bytes(data)
        with pytest.raises(DamagedModelError, match=said):
            read_header(tiny)
    with pytest.raises(ModelNotFoundError):
        read_header(tiny.with_name("none.gguf"))


def test_a_new_file_is_loaded_once_in_a_child_process(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = LlamaCppReader(str(tiny), threads=1, context_tokens=256)
    assert not cache.exists()  # it is loaded on first use
    text = "".join(reader.stream(ASKED, Sampling(max_tokens=4)))
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr("ragfm.models.model_probe.subprocess.run", None)
    again = LlamaCppReader(str(tiny), threads=1, context_tokens=256)
    assert "".join(again.stream(ASKED, Sampling(max_tokens=4))) == text
    find = LlamaCppReader("bundled", context_tokens=256)  # it is pinned
    assert find.count_tokens(ASKED)


def test_a_missing_file_of_a_split_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_header = GGUFWriter.write_header_to_file

    def write_split_header(writer: GGUFWriter) -> None:
        writer.add_uint16("split.no", 0)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", 21)
        write_header(writer)

    monkeypatch.setattr(GGUFWriter, "write_header_to_file", write_split_header)
    path = write_tiny(tmp_path / "model-00001-of-00002.gguf")
    with pytest.raises(DamagedModelError, match=r"model-00002-of-00002\.gguf.*all files of the model"):
        _ = LlamaCppReader(str(path)).context_tokens


def test_the_reason_of_llama_cpp_is_in_the_message(tiny: Path, cache: Path) -> None:
    tiny.write_bytes(tiny.read_bytes().replace(b"blk.1.ffn_down", b"blk.1.ffn_none"))
    with pytest.raises(DamagedModelError, match=r"tiny.gguf': .*'blk.1.ffn_down.weight' not found"):
        _ = LlamaCppReader(str(tiny)).context_tokens
    assert not cache.exists()


@pytest.mark.parametrize("how", [{"dtype": np.int32}, {"depth": 2}])
def test_an_adapter_that_aborts_llama_cpp_is_an_error(tiny: Path, cache: Path, how: dict[str, Any]) -> None:
    reader = LlamaCppReader(str(tiny), threads=1, context_tokens=256)
    good = write_lora(tiny.with_name("good.gguf"), layer=1, size=64)
    bad = write_lora(tiny.with_name("bad.gguf"), layer=1, size=64, **how)
    expected = "".join(reader.stream(ASKED, Sampling(max_tokens=4, adapter=str(good))))
    assert len(list(cache.iterdir())) == 2
    with pytest.raises(DamagedModelError, match=r"bad.gguf' is not a LoRA adapter for .*tiny.gguf"):
        reader.stream(ASKED, Sampling(adapter=str(bad)))
    assert "".join(reader.stream(ASKED, Sampling(max_tokens=4, adapter=str(good)))) == expected
    assert len(list(cache.iterdir())) == 2


def answers(path: Path) -> bool:
    """Whether the model answers. Anything but an answer or a RagfmError fails the test or crashes its process."""
    try:
        reader = LlamaCppReader(str(path), threads=1, context_tokens=64)
        list(reader.stream(ASKED, Sampling(max_tokens=4)))
    except RagfmError:
        return False
    return True


@pytest.mark.slow
def test_damaged_files_do_not_crash_the_process(tiny: Path) -> None:
    whole = tiny.read_bytes()
    answered = 0
    for seed in range(50):
        tiny.write_bytes(damage(whole, seed))
        answered += answers(tiny)
    assert 0 < answered < 25  # some damage is in the weights, where it cannot be detected
