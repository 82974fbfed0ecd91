"""Chat templates: the readers render what transformers renders, byte for byte, and stop hostile templates.

The templates are those of llama.cpp's own tests. They are in llama-cpp-python's source distribution, which pip
downloads once.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from typing import cast

import llama_cpp
import pytest
from support.tiny_models import tiny_model

from ragfm.core.errors import UnsupportedError
from ragfm.core.types import Message, Sampling
from ragfm.generation.readers import chat_template, load_reader
from ragfm.generation.readers.chat_template import close_thinking, opens_thinking
from ragfm.generation.readers.llama_model import LlamaModel
from ragfm.generation.readers.transformers_reader import TransformersReader
from ragfm.models.model_lookup import find_model
from ragfm.parsing.sandbox.confined_service import ConfinedService
from ragfm.parsing.sandbox.worker_process import Limits

FAMILIES = {
    "SmolLM": ("HuggingFaceTB-SmolLM3-3B", "llama"),
    "Llama 3.1": ("meta-llama-Llama-3.1-8B-Instruct", "llama"),
    "Llama 3.2": ("meta-llama-Llama-3.2-3B-Instruct", "llama"),
    "Llama 3.3": ("meta-llama-Llama-3.3-70B-Instruct", "llama"),
    "Mistral Nemo": ("mistralai-Mistral-Nemo-Instruct-2407", "mistral"),
    "Mistral Small": ("Mistral-Small-3.2-24B-Instruct-2506", "mistral"),
    "Qwen 2.5": ("Qwen-Qwen2.5-7B-Instruct", "qwen2"),
    "Qwen 3": ("Qwen-Qwen3-0.6B", "qwen3"),
    "Phi": ("microsoft-Phi-3.5-mini-instruct", "phi3"),
    "DeepSeek V3": ("deepseek-ai-DeepSeek-V3.1", "deepseek_v3"),
    "DeepSeek R1": ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "llama"),
    "Gemma": ("google-gemma-2-2b-it", "gemma2"),
}
CHATS = {
    "question": [Message("user", "  Is water <|wet|>?\n")],
    "system": [Message("system", "You are brief.\n\n"), Message("user", "日本語 naïve e\u0301")],
    "turns": [Message("user", "a"), Message("assistant", "<think>hm</think>b {{ 1 }}"), Message("user", "c\r\n\n d")],
    "all": [Message("system", "s"), Message("user", "a"), Message("assistant", "b"), Message("user", "")],
}


@pytest.fixture(scope="module")
def templates() -> Path:
    """The folder with the templates, cached between test runs."""
    name = f"llama_cpp_python-{version('llama-cpp-python')}"
    kept = Path.home() / ".cache" / "ragfm-tests" / name
    if not kept.is_dir():
        part = kept.with_name(f"{name}.part")
        part.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            "llama-cpp-python",
            "-d",
            str(part),
            name.replace("-", "=="),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not (archives := list(part.glob("*.tar.gz"))):
            pytest.skip(f"llama-cpp-python's sources can't be fetched: {done.stderr.strip()[-200:]}")
        with tarfile.open(archives[0]) as archive:
            for member in archive:
                if "/models/templates/" in member.name and member.name.endswith(".jinja"):
                    source = archive.extractfile(member)
                    assert source is not None
                    (part / Path(member.name).name).write_bytes(source.read())
        archives[0].unlink()
        part.replace(kept)
    return kept


@pytest.fixture(scope="module")
def bundled() -> LlamaModel:
    return LlamaModel(find_model("bundled", "reader"))


def with_template(model: LlamaModel, source: str, monkeypatch: pytest.MonkeyPatch) -> LlamaModel:
    model.__dict__.pop("_template", None)
    monkeypatch.setattr(llama_cpp, "llama_model_chat_template", lambda *_: source.encode())
    return model


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_both_readers_write_what_transformers_writes(
    family: str, templates: Path, bundled: LlamaModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, architecture = FAMILIES[family]
    source = (templates / f"{name}.jinja").read_text(encoding="utf-8")
    reader = cast(
        "TransformersReader",
        load_reader(
            str(
                tiny_model(tmp_path, architecture, **({"num_key_value_heads": 4} if "deepseek" in architecture else {}))
            ),
            context_tokens=512,
        ),
    )
    theirs = reader._engine.model._tokenizer
    theirs.chat_template = source
    theirs.bos_token, theirs.eos_token = "<|im_start|>", "<|im_end|>"  # those of the bundled model
    llama = with_template(bundled, source, monkeypatch)
    for what, messages in CHATS.items():
        if family == "Gemma" and messages[0].role == "system":  # it refuses them
            messages = [Message("user", f"{messages[0].content}\n\n{messages[1].content}"), *messages[2:]]
        turns = [{"role": message.role, "content": message.content} for message in messages]
        expected = close_thinking(
            theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        )
        assert not opens_thinking(expected)
        assert reader._engine.model.render(CHATS[what]) == expected, what
        assert llama.render(CHATS[what]) == expected, what
    theirs.chat_template = "{{ messages[-1].content }}"
    stream = reader.stream([Message("user", "abc")], Sampling(max_tokens=4))
    text = "".join(stream)
    assert stream.usage.completion_tokens == 4 or stream.finish_reason == "stop"
    assert text == "".join(reader.stream([Message("user", "abc")], Sampling(max_tokens=4)))


def test_without_a_system_role_its_text_goes_to_the_question(
    bundled: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    dropping = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    messages = [
        Message("system", "Be brief.\n"),
        Message("user", "Hi"),
        Message("assistant", "Yes?"),
        Message("user", "x"),
    ]
    for source in (refusing + dropping, dropping):
        model = with_template(bundled, source, monkeypatch)
        assert model.render(messages) == "<user>Be brief.\n\n\nHi<assistant>Yes?<user>x"


# Only the parts about reasoning. Qwen 3: huggingface.co/blog/qwen-3-chat-template-deep-dive; R1: issue 352 of
# deepseek-ai/DeepSeek-R1; SmolLM3: huggingface.co/HuggingFaceTB/SmolLM3-3B.
QWEN_3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
)
SMOLLM_3 = (
    "{% set thinks = enable_thinking if enable_thinking is defined else true %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if not thinks %}<think>\n\n</think>\n{% endif %}"
)
DEEPSEEK_R1 = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|Assistant|><think>\n"


@pytest.mark.parametrize("source", [QWEN_3, SMOLLM_3, DEEPSEEK_R1])
def test_a_model_thinks_only_if_it_is_told_to(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, question = find_model("bundled", "reader"), [Message("user", "Hi")]
    silent = with_template(LlamaModel(path), source, monkeypatch).render(question)
    assert silent.rstrip().endswith("<think>\n\n</think>")
    thinking = with_template(LlamaModel(path, thinking=True), source, monkeypatch).render(question)
    assert "</think>" not in thinking
    assert opens_thinking(thinking) == (source == DEEPSEEK_R1)
    assert not opens_thinking(silent)


def test_the_reasoning_ends_with_the_tag_of_its_family(monkeypatch: pytest.MonkeyPatch) -> None:
    source, question = DEEPSEEK_R1.replace("<think>", "[THINK]"), [Message("user", "Hi")]
    path = find_model("bundled", "reader")
    assert with_template(LlamaModel(path), source, monkeypatch).render(question).endswith("[THINK]\n\n[/THINK]\n\n")
    assert opens_thinking(with_template(LlamaModel(path, thinking=True), source, monkeypatch).render(question))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "recursion"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ range(1000000000) }}", "too big"),
        ("{{ 'a' * 1000000 * messages | length * 1000000 }}", "memory"),
        (
            "{% set ns = namespace(t='a' * 1000) %}{% for a in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
            "memory",
        ),
        ("{{ '%1000000000d' % messages | length }}", "memory"),
        ("{% for %}", "Cannot read the chat template"),
    ],
)
def test_a_hostile_template_is_an_error(
    source: str, said: str, bundled: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnsupportedError, match=said):
        with_template(bundled, source, monkeypatch).render([Message("user", "Hi")])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert with_template(bundled, "{{ messages[0].content }}", monkeypatch).render([Message("user", "Hi")]) == "Hi"


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set n = messages | length + 8 %}{{ n ** (n ** n) }}",
    ],
)
def test_an_endless_template_is_stopped(source: str, bundled: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    # The time does not include the start of the process, which may be slow.
    limits = Limits(stall_seconds=0.3, seconds=0.3, memory=chat_template.MEMORY, model_memory=chat_template.MEMORY)
    service = ConfinedService("ragfm.generation.readers.template_service", limits=limits)
    monkeypatch.setattr(chat_template, "_service", service)
    with pytest.raises(UnsupportedError, match=r"its process (made no progress for|did not finish within) 0.3 s"):
        with_template(bundled, source, monkeypatch).render([Message("user", "Hi")])
    service.close()


def test_a_template_may_use_blocks_for_training_and_loop_controls(
    bundled: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %} {{ {'a': '<ü>'} | tojson }}\n{% endfor %}"
        "{{ strftime_now('%Y') | length }}{{ tools is none }}{{ eos_token }}"
    )
    messages = [Message("user", "one"), Message("assistant", "t\ud800o"), Message("user", "three")]
    rendered = with_template(bundled, source, monkeypatch).render(messages)
    assert rendered == 'one {"a": "<ü>"}\nt\ud800o {"a": "<ü>"}\n4True<|im_end|>'
