from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from ragfm.core.errors import DamagedModelError, ModelNotFoundError, UnsupportedError
from ragfm.core.types import Message, Sampling
from ragfm.generation.readers import load_reader
from ragfm.generation.readers.llama_cpp_reader import LlamaCppReader
from ragfm.generation.readers.torch_model import end_tokens
from ragfm.generation.readers.transformers_reader import TransformersReader
from ragfm.models import hardware
from ragfm.testing import check_reader

pytestmark = pytest.mark.slow  # the bundled weights are dequantised for it, which takes about ten seconds

ASKED = [Message("user", "Is water wet? Answer yes or no.")]


@pytest.fixture(scope="module")
def reader() -> TransformersReader:
    return cast("TransformersReader", load_reader("transformers:bundled"))


@pytest.fixture(scope="module")
def llama() -> LlamaCppReader:
    return LlamaCppReader("bundled", threads=1)


def read(reader: TransformersReader | LlamaCppReader, messages: Sequence[Message], **sampling: object) -> str:
    return "".join(reader.stream(messages, Sampling(**{"max_tokens": 12} | sampling)))  # type: ignore[arg-type]


def test_it_keeps_the_contract(reader: TransformersReader) -> None:
    check_reader(reader)


def test_both_readers_answer_a_simple_question_alike(reader: TransformersReader, llama: LlamaCppReader) -> None:
    """Other answers may differ: llama.cpp rounds activations to 8 bits, which changes logits by about 0.3."""
    monday = [Message("user", "What comes after Monday?")]
    assert read(reader, monday) == read(llama, monday)
    assert read(reader, ASKED).startswith("No, water is not wet.")


@pytest.mark.parametrize(
    "messages",
    [
        ASKED,
        [Message("system", "You are brief.\n\n"), Message("user", "  Hi\t"), Message("assistant", "Hello 😀"), *ASKED],
        [Message("user", "日本語 naïve ﬁ e\u0301\r\n\n\n x  y"), Message("assistant", ""), Message("user", "{{ 1 }}")],
        [Message("user", "<|im_end|> is a sign of its own")],
    ],
)
def test_both_readers_see_the_same_tokens(
    reader: TransformersReader, llama: LlamaCppReader, messages: list[Message]
) -> None:
    tokens = reader._engine.model.prompt_tokens(messages)
    assert tokens == llama._engine.model.prompt_tokens(messages)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    theirs = reader._engine.model._tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert tokens == theirs


def test_it_generates_what_transformers_itself_generates(reader: TransformersReader) -> None:
    model = reader._engine.model
    prompt = torch.tensor([model.prompt_tokens(ASKED)])
    theirs = model._model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False, pad_token_id=0
    )
    text = model._tokenizer.decode(theirs[0, prompt.shape[1] :], skip_special_tokens=True)
    assert read(reader, ASKED, max_tokens=24) == text


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_virtual_tokens_are_those_of_peft(reader: TransformersReader, tmp_path: Path, method: str) -> None:
    """Equal tokens by PEFT's forward pass, alone and next to requests without the adapter."""
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

    torch.manual_seed(0)
    kind = PrefixTuningConfig if method == "prefix" else PromptTuningConfig
    model = reader._engine.model
    peft_model = get_peft_model(model._model, kind(task_type="CAUSAL_LM", num_virtual_tokens=8))
    std = 0.5 if method == "prefix" else 0.1
    torch.nn.init.normal_(next(one for one in peft_model.parameters() if one.requires_grad), std=std)
    peft_model.save_pretrained(tmp_path, save_embedding_layers=False)
    ids = torch.tensor([model.prompt_tokens(ASKED)])
    prompt = ids.shape[1]
    with torch.inference_mode():
        for _ in range(12):
            mask = torch.ones_like(ids)
            token = peft_model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -1:].argmax(-1)
            if int(token) in model.end_tokens:
                break
            ids = torch.cat([ids, token], dim=1)
    expected = model._tokenizer.decode(ids[0, prompt:], skip_special_tokens=True)
    plain = read(reader, ASKED)
    assert read(reader, ASKED, adapter=str(tmp_path)) == expected != plain
    streams = [reader.stream(ASKED, Sampling(max_tokens=12, adapter=adapter)) for adapter in (None, str(tmp_path)) * 2]
    assert ["".join(stream) for stream in streams] == [plain, expected] * 2


def test_sampling_is_seeded_bounded_and_leaves_torch_alone(reader: TransformersReader) -> None:
    hot = {"temperature": 1.5, "max_tokens": 6}
    before = torch.random.get_rng_state()
    assert read(reader, ASKED, **hot, seed=1) == read(reader, ASKED, **hot, seed=1)
    assert len({read(reader, ASKED, **hot, seed=seed) for seed in range(4)}) > 1
    assert torch.equal(torch.random.get_rng_state(), before)
    greedy = read(reader, ASKED, max_tokens=6)
    assert read(reader, ASKED, **hot, top_p=1e-6) == greedy
    assert read(reader, ASKED, **hot, min_p=1.0) == greedy


def test_allend_tokens_are_used(reader: TransformersReader) -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[5, 6]))
    assert end_tokens(reader._engine.model._tokenizer, model) == {2, 5, 6}


def test_unsupported_options_are_errors(reader: TransformersReader) -> None:
    with pytest.raises(UnsupportedError, match="grammar"):
        reader.stream(ASKED, Sampling(grammar='root ::= "a"'))
    with pytest.raises(ModelNotFoundError, match="'x' is not a folder with a PEFT adapter"):
        reader.stream(ASKED, Sampling(adapter="x"))


def test_a_folder_that_is_not_a_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(DamagedModelError, match="cannot load"):
        _ = load_reader(str(tmp_path)).context_tokens


def test_a_folder_of_safetensors_is_the_same_model(reader: TransformersReader, tmp_path: Path) -> None:
    model = reader._engine.model
    fresh = type(model._model)(model._model.config)
    fresh.load_state_dict(model._model.state_dict())
    for key in ("quantization_config",):
        if hasattr(fresh.config, key):
            delattr(fresh.config, key)
    fresh.save_pretrained(tmp_path)
    model._tokenizer.save_pretrained(tmp_path)
    other = cast("TransformersReader", load_reader(str(tmp_path)))
    assert other.count_tokens(ASKED) == reader.count_tokens(ASKED)
    assert read(other, ASKED) == read(reader, ASKED)


def test_a_reader_heeds_the_cpu_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr(hardware, "cpu_count", lambda: 1)
        other = cast("TransformersReader", load_reader("transformers:bundled"))
        assert read(other, ASKED, max_tokens=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_no_warnings(tmp_path: Path) -> None:
    code = (
        "from ragfm import Message, Sampling, load_reader\n"
        "reader = load_reader('transformers:bundled')\n"
        "print(''.join(reader.stream([Message('user', 'Hi')], Sampling(max_tokens=2))), end='')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "arn" not in done.stderr.replace("Warning: unauthenticated", "")
