"""Ollama's Modelfile, with the model's chat template as a Go template.

The texts around the messages are extracted from conversations that the chat template renders. The result is used only
if it renders other conversations as the chat template does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ragfm.core.errors import UnsupportedError
from ragfm.core.types import Message
from ragfm.models.gguf_header import read_header
from ragfm.training.base_model import Base

MODELFILE = "Modelfile"
_CONTEXT_TOKENS = 4096  # as ragfm's readers by default; Ollama's own default may be shorter
_ROLES: tuple[Literal["system", "user", "assistant"], ...] = ("system", "user", "assistant")
_SAMPLES = (
    (Message("system", "Be short."), Message("user", "Why?")),
    tuple(Message(role, f"<{index}> {role}") for index, role in enumerate((*_ROLES, *_ROLES[1:], _ROLES[1]))),
)


def write_modelfile(folder: Path, adapter: Path, base: Base, model: Path) -> bool:
    """Write a Modelfile for a GGUF model with an adapter; returns whether it has the model's chat template.

    Without it, Ollama uses the template that it finds in the model.
    """
    lines = [f"FROM {model.resolve()}", f"ADAPTER ./{adapter.name}"]
    metadata = read_header(model).metadata
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", metadata.get("tokenizer.ggml.model") == "llama")
    turns = _read_turns(base, base.tokenizer.bos_token or "" if adds_bos else "")
    if turns is not None:
        texts, opening = turns
        branches = "{{ else }}".join(
            f'{{{{ if eq .Role "{role}" }}}}{_quote(before)}{{{{ .Content }}}}{_quote(after)}'
            for role, (before, after) in texts.items()
        )
        ends = "{{ end }}" * len(_ROLES)
        lines.append(f'TEMPLATE """{{{{ range .Messages }}}}{branches}{ends}{{{{ end }}}}{_quote(opening)}"""')
    stops = [base.tokenizer.decode([token]) for token in sorted(base.ends)]
    lines += [f'PARAMETER stop "{stop}"' for stop in stops if stop]
    lines += ["PARAMETER temperature 0", f"PARAMETER num_ctx {_CONTEXT_TOKENS}"]
    (folder / MODELFILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return turns is not None


def _read_turns(base: Base, bos: str = "") -> tuple[dict[str, tuple[str, str]], str] | None:
    """The texts before and after a message of each role, and the text that opens the answer; None if that varies.

    `bos` is what Ollama writes before each prompt.
    """
    start = _render(base, bos, _SAMPLES[0][:1], opens=False)
    marks = [f"\0{index}\0" for index in range(4)]
    marked = [Message(role, mark) for role, mark in zip((*_ROLES, _ROLES[1]), marks, strict=True)]
    conversation = _render(base, bos, marked, opens=True)
    if start is None or conversation is None or any(conversation.count(mark) != 1 for mark in marks):
        return None
    pieces: list[str] = []
    for mark in marks:
        piece, _, conversation = conversation.partition(mark)
        pieces.append(piece)
    # A turn's end and the next one's beginning are one text; the turn of the system alone shows where it is divided.
    before_system, _, after_system = start.partition(_SAMPLES[0][0].text)
    if before_system != pieces[0] or not pieces[1].startswith(after_system):
        return None
    before_user = pieces[1].removeprefix(after_system)
    if not pieces[3].endswith(before_user) or not conversation:
        return None
    after_assistant = pieces[3].removesuffix(before_user)
    after_user = after_system  # as in most templates
    if not (pieces[2].startswith(after_user) and conversation.startswith(after_user)):
        after_user = pieces[2].removesuffix(_common_end(pieces[2], conversation))
    opening = pieces[2].removeprefix(after_user)
    texts = {
        "system": (pieces[0], after_system),
        "user": (before_user, after_user),
        "assistant": (opening, after_assistant),
    }
    answer = conversation.removeprefix(after_user)
    for sample in _SAMPLES:
        rendered = "".join(texts[message.role][0] + message.text + texts[message.role][1] for message in sample)
        expected = _render(base, bos, sample, opens=True)
        if rendered + answer != expected:
            return None
    return texts, answer


def _render(base: Base, bos: str, messages: Sequence[Message], *, opens: bool) -> str | None:
    try:
        text = base.render(messages, opens_answer=opens)
    except UnsupportedError:
        return None
    return text.removeprefix(bos)


def _common_end(one: str, other: str) -> str:
    size = 0
    while size < min(len(one), len(other)) and one[-size - 1] == other[-size - 1]:
        size += 1
    return one[len(one) - size :]


def _quote(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')
