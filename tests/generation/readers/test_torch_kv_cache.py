"""The transformers reader with concurrent requests: its tokens are those of transformers' own `generate`.

The models are tiny and have random weights. Masks and caches are those of large models.
"""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from support.openai_server import wait_until
from support.tiny_models import tiny_model

from ragfm.core.config import Settings
from ragfm.core.errors import (
    AdapterMismatchError,
    ConfigError,
    ContextOverflowError,
    DamagedModelError,
    ModelNotFoundError,
    RagfmError,
    ReaderBusyError,
    UnsupportedError,
)
from ragfm.core.types import Message, Sampling
from ragfm.generation.prompt import prompt_fingerprint
from ragfm.generation.readers import configured_reader, load_reader
from ragfm.generation.readers.generation_request import GenerationRequest
from ragfm.generation.readers.sampling import LogitsSampler
from ragfm.generation.readers.transformers_reader import TransformersReader
from ragfm.models.adapters import RECORD, AdapterRecord, serving_adapter, trained_weights_sha256
from ragfm.models.model_lookup import weights_sha256

ARCHITECTURES = {
    "llama": {},
    "mistral": {"sliding_window": 20},
    "qwen2": {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    "phi3": {"sliding_window": 30},
    "gemma2": {"sliding_window": 24},
    "deepseek_v3": {"num_key_value_heads": 4},
}
ASKED = [[Message("user", "abc " * times + f"what {times}?")] for times in (3, 40, 9, 25, 60)]


def make_reader(folder: Path, kind: str = "llama", **options: Any) -> TransformersReader:
    tiny = tiny_model(folder, kind, **ARCHITECTURES[kind])
    return cast("TransformersReader", load_reader(str(tiny), **{"context_tokens": 512, "slots": 4} | options))


def submit(reader: TransformersReader, messages: list[Message], adapter: str | None = None) -> GenerationRequest:
    model = reader._engine.model
    request = GenerationRequest(
        model.prompt_tokens(messages), reader._adapter(adapter), sampler=LogitsSampler(Sampling()), max_tokens=12
    )
    reader._engine.batcher.submit(request)
    return request


def generate(reader: TransformersReader, messages: list[Message], model: Any = None) -> list[int]:
    ours = reader._engine.model
    prompt = torch.tensor([ours.prompt_tokens(messages)])
    whole = (model or ours._model).generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return list(whole[0, prompt.shape[1] :].tolist())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_concurrent_requests_match_generate(kind: str, tmp_path: Path) -> None:
    reader = make_reader(tmp_path, kind)
    reader._engine.model.end_tokens = set()
    expected = [generate(reader, messages) for messages in ASKED]
    assert len({tuple(tokens) for tokens in expected}) > 1
    requests = [submit(reader, messages) for messages in ASKED]
    assert [list(request.results()) for request in requests] == expected
    again = [submit(reader, messages) for messages in reversed(ASKED)]  # with prefix reuse, in other slots
    assert [list(request.results()) for request in again] == expected[::-1]
    assert sum(request.cached_tokens for request in again) > 200


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> TransformersReader:
    return make_reader(tmp_path_factory.mktemp("tiny"))


def test_a_model_without_batching_runs_one_request_at_a_time(tmp_path: Path) -> None:
    reader = make_reader(tmp_path, waiting=2)
    engine_of = TransformersReader._engine.fget  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ragfm.generation.readers.torch_model.can_batch", lambda config: False)
        engine_of(reader)
    reader._engine.model.end_tokens = set()
    requests = [submit(reader, messages) for messages in ASKED]
    assert [list(request.results()) for request in requests] == [generate(reader, messages) for messages in ASKED]


def test_a_closed_stream_ends_within_a_step(reader: TransformersReader, monkeypatch: pytest.MonkeyPatch) -> None:
    model, loop = reader._engine.model, reader._engine.batcher._loop
    model.end_tokens = set()
    compute, steps, closed = model._model, itertools.count(), threading.Event()
    monkeypatch.setattr(
        model, "_model", lambda *args, **named: (next(steps) < 200 or closed.wait(60)) and compute(*args, **named)
    )
    stream = reader.stream(ASKED[0], Sampling(max_tokens=400))
    next(stream)
    stream.close()
    closed.set()
    wait_until(lambda: not loop.unfinished)
    assert loop._slots
    assert all(slot.generated < 210 for slot in loop._slots)


def logprob(reader: TransformersReader, **sampling: Any) -> float:
    """The log-probability of the likeliest token after `ASKED[1]`."""
    reader._engine.model.end_tokens = set()
    stream = reader.stream(ASKED[1], Sampling(max_tokens=1, logprobs=True, **sampling))
    list(stream)
    return stream.logprobs[0]


def test_log_probabilities_are_those_of_the_model(reader: TransformersReader) -> None:
    model = reader._engine.model
    with torch.inference_mode():
        every = model._model(torch.tensor([model.prompt_tokens(ASKED[1])])).logits[0, -1].log_softmax(-1)
    assert logprob(reader) == pytest.approx(float(every.max()), abs=1e-4)


def lora(reader: TransformersReader, folder: Path, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(reader._path)
    adapted = get_peft_model(
        base, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(folder)
    return adapted.eval()


def test_adapters_are_switched_by_request(tmp_path: Path) -> None:
    reader = make_reader(tmp_path / "base")
    reader._engine.model.end_tokens = set()
    expected = {None: generate(reader, ASKED[1])}
    for seed in (1, 2):
        folder = str(tmp_path / f"adapter{seed}")
        expected[folder] = generate(reader, ASKED[1], lora(reader, Path(folder), seed))
    assert len({tuple(tokens) for tokens in expected.values()}) == 3
    for _ in range(2):
        requests = {adapter: submit(reader, ASKED[1], adapter) for adapter in expected}
        assert {adapter: list(request.results()) for adapter, request in requests.items()} == expected
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text("{}")
    (broken / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(DamagedModelError, match="is not an adapter for"):
        list(reader.stream(ASKED[0], Sampling(adapter=str(broken))))
    assert list(submit(reader, ASKED[1]).results()) == expected[None]


@torch.no_grad()
def greedy(model: Any, prompt: list[int]) -> list[int]:
    """Twelve tokens, each by a forward pass of PEFT's over the whole text."""
    tokens = list(prompt)
    for _ in range(12):
        ids = torch.tensor([tokens])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def virtual(reader: TransformersReader, folder: Path, method: str, tokens: int) -> Any:
    """Write a prefix or prompt tuning adapter with random values; returns PEFT's model with it."""
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(tokens)
    kind = PrefixTuningConfig if method == "prefix" else PromptTuningConfig
    base = AutoModelForCausalLM.from_pretrained(reader._path)
    adapted = get_peft_model(base, kind(task_type="CAUSAL_LM", num_virtual_tokens=tokens))
    torch.nn.init.normal_(next(one for one in adapted.parameters() if one.requires_grad), std=0.5)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return adapted.eval()


@pytest.mark.parametrize(("kind", "batches"), [("llama", True), ("mistral", True), ("mistral", False)])
def test_virtual_tokens_match_peft(
    *, kind: str, batches: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With other adapters and without, alone and next to other requests, with new and with reused prefixes.

    PEFT's forward pass is the reference. Its `generate` (0.21) loses the virtual tokens in the cache of transformers 5.
    """
    monkeypatch.setattr("ragfm.generation.readers.torch_model.can_batch", lambda config: batches)
    monkeypatch.setitem(ARCHITECTURES, "mistral", {"sliding_window": 90})  # some prompts are longer
    reader = make_reader(tmp_path / "base", kind)
    reader._engine.model.end_tokens = set()
    models: dict[str | None, Any] = {None: None}
    for name, method, tokens in (("a", "prefix", 7), ("b", "prompt", 11), ("c", "prefix", 30)):
        models[str(tmp_path / name)] = virtual(reader, tmp_path / name, method, tokens)
    models[str(tmp_path / "lora")] = lora(reader, tmp_path / "lora", 1)
    # Without layers of LoRA in it, which the reader inserts into its model.
    models[None] = models[str(tmp_path / "a")].get_base_model()
    expected = {
        (adapter, number): greedy(model, reader._engine.model.prompt_tokens(messages))
        for adapter, model in models.items()
        for number, messages in enumerate(ASKED)
    }
    assert len({str([expected[adapter, number] for number in range(len(ASKED))]) for adapter in models}) == 5
    for adapter in models:  # alone
        assert list(submit(reader, ASKED[1], adapter).results()) == expected[adapter, 1]
    for order in (sorted(expected, key=str), sorted(expected, key=str, reverse=True)):  # together, and once more
        requests = {key: submit(reader, ASKED[key[1]], key[0]) for key in order}
        found = {key: list(request.results()) for key, request in requests.items()}
        assert found == expected
    if batches:
        assert sum(request.cached_tokens for request in requests.values()) > 200


def test_virtual_tokens_take_their_room_from_the_window(tmp_path: Path) -> None:
    plain = make_reader(tmp_path / "base")
    virtual(plain, tmp_path / "prefix", "prefix", 30)
    reader = cast("TransformersReader", load_reader(str(tmp_path / "base"), context_tokens=512, virtual_tokens=30))
    assert (plain.context_tokens, reader.context_tokens) == (512, 482)
    name = f"transformers:{tmp_path / 'base'}"
    assert configured_reader(name, Settings(), str(tmp_path / "prefix")).context_tokens == 482  # as `Rag` makes it
    assert plain.count_tokens(ASKED[0]) == reader.count_tokens(ASKED[0])
    reader._engine.model.end_tokens = set()
    words = [Message("user", "x" * (480 - reader.count_tokens([Message("user", "")])))]
    assert reader.count_tokens(words) == 480
    stream = reader.stream(words, Sampling(adapter=str(tmp_path / "prefix")))
    list(stream)
    assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (480, 2)
    longer = [Message("user", words[0].content + "xx")]
    with pytest.raises(ContextOverflowError, match="482 tokens, and the reader's window of 482"):
        reader.stream(longer, Sampling(adapter=str(tmp_path / "prefix")))
    assert abs(logprob(reader, adapter=str(tmp_path / "prefix")) - logprob(reader)) > 1e-3


def test_no_prompt_is_shared_between_adapter_scales(tmp_path: Path) -> None:
    reader, folder = make_reader(tmp_path / "base"), tmp_path / "adapter"
    lora(reader, folder, 1)
    config, found = folder / "adapter_config.json", list[float]()
    for alpha in (8, 32):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": alpha}))
        for cached in (0, reader.count_tokens(ASKED[1]) - 2):
            stream = reader.stream(ASKED[1], Sampling(max_tokens=2, adapter=str(folder)))
            list(stream)
            assert stream.usage.cached_tokens == cached
        found.append(logprob(reader, adapter=str(folder)))
        assert found[-1] == pytest.approx(logprob(make_reader(tmp_path / "base"), adapter=str(folder)))
    assert abs(found[0] - found[1]) > 1e-3


def test_an_adapter_folder_is_served_directly(tmp_path: Path) -> None:
    reader = make_reader(tmp_path / "base")
    lora(reader, tmp_path / "adapter", 1)
    base = {"name": "tiny", "sha256": weights_sha256(tmp_path / "base")}
    record = AdapterRecord("lora", base, prompt_fingerprint(), trained_weights_sha256(tmp_path / "adapter"))
    (tmp_path / "adapter" / RECORD).write_bytes(record.to_json())
    for name in (str(tmp_path / "base"), f"transformers:{tmp_path / 'base'}"):
        found = serving_adapter(tmp_path / "adapter", name, prompt_fingerprint())
        assert found == str(tmp_path / "adapter")
        assert list(reader.stream(ASKED[0], Sampling(max_tokens=2, adapter=found))) is not None
        with pytest.raises(AdapterMismatchError, match="a different prompt"):
            serving_adapter(tmp_path / "adapter", name, "few-shot")
    with pytest.raises(AdapterMismatchError, match="different weights"):
        serving_adapter(tmp_path / "adapter", "transformers:bundled", prompt_fingerprint())
    with pytest.raises(ModelNotFoundError, match=r"has no adapter\.gguf"):
        serving_adapter(tmp_path / "adapter", "bundled", prompt_fingerprint())
    assert serving_adapter("a-name", "openai:m", "few-shot") == "a-name"
    assert serving_adapter(tmp_path / "adapter", "openai:m", prompt_fingerprint()) == str(tmp_path / "adapter")
    with pytest.raises(AdapterMismatchError, match="a different prompt"):
        serving_adapter(tmp_path / "adapter", "openai:m", "few-shot")


def test_excess_requests_wait_or_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = make_reader(tmp_path, slots=1, waiting=1)
    compute, may_compute = reader._engine.model._model, threading.Event()
    monkeypatch.setattr(
        reader._engine.model, "_model", lambda *args, **named: may_compute.wait(60) and compute(*args, **named)
    )
    streams = [reader.stream(ASKED[4], Sampling(max_tokens=100)) for _ in range(2)]
    with pytest.raises(ReaderBusyError, match="serves 1 requests"):
        reader.stream(ASKED[4])
    may_compute.set()
    for stream in streams:
        stream.close()


def test_no_memory_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = make_reader(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(reader._engine.model, "_model", full)
        with pytest.raises(RagfmError, match="not enough memory"):
            list(reader.stream(ASKED[0]))
    assert reader.stream(ASKED[0], Sampling(max_tokens=2)).usage.prompt_tokens == 0


@pytest.mark.parametrize(
    "option",
    [
        {"device": "cuda:9"},
        {"device": "none"},
        {"dtype": "none"},
        {"dtype": "int8"},
        {"dtype": "Tensor"},
    ],
)
def test_an_invalid_option_is_an_error(option: dict[str, str], tmp_path: Path) -> None:
    (value,) = option.values()
    with pytest.raises(ConfigError, match=value):
        _ = make_reader(tmp_path, **option).context_tokens


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"x" * 1000),
        ("model.safetensors", None),
        ("config.json", b"[]"),
        ("tokenizer.json", b"{}"),
    ],
)
def test_a_damaged_folder_is_an_error(file: str, content: bytes | None, tmp_path: Path) -> None:
    reader = make_reader(tmp_path)
    data = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(data[: len(data) // 2] if content is None else content)
    with pytest.raises(DamagedModelError, match="cannot load"):
        _ = reader.context_tokens


def test_a_damaged_adapter_fails_only_its_own_request(tmp_path: Path) -> None:
    reader, folder = make_reader(tmp_path / "model"), tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"})
    )
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 100)
    good = reader.stream(ASKED[0], Sampling(max_tokens=40))
    bad = reader.stream(ASKED[0], Sampling(adapter=str(folder)))
    with pytest.raises(DamagedModelError, match="is not an adapter for"):
        list(bad)
    list(good)
    assert good.usage.completion_tokens == 40 or good.finish_reason == "stop"


def test_an_endless_template_and_unpaired_surrogates(tmp_path: Path) -> None:
    reader = make_reader(tmp_path)
    assert reader.count_tokens([Message("user", "a\ud800b")]) == reader.count_tokens([Message("user", "a?b")])
    reader._engine.model._tokenizer.chat_template = "{{ 9 ** (9 ** 9) }}"
    with pytest.raises(UnsupportedError, match="its process"):
        reader.count_tokens(ASKED[0])
