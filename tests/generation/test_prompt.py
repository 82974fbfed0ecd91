from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragfm.core.abstention import ABSTENTION, is_abstention
from ragfm.core.errors import ContextOverflowError
from ragfm.core.types import Hit, Message
from ragfm.generation.prompt import build_prompt, neutralize_markers, prompt_fingerprint
from ragfm.models.model_lookup import find_model
from ragfm.testing import ScriptedReader

WORDS = "one two three four five six seven eight nine ten"


def hit(chunk_id: int, text: str = WORDS, context: str = "") -> Hit:
    return Hit("a.md", text, 0, len(text), chunk_id, 0.5, {"dense": 0.5}, context=context)


class CountingReader(ScriptedReader):
    counts = 0

    def count_tokens(self, messages: Sequence[Message]) -> int:
        self.counts += 1
        return super().count_tokens(messages)


def test_passages_are_numbered_in_rank_order_with_their_context() -> None:
    prompt = build_prompt("How long?", [hit(7, "First.", "Leave > Annual"), hit(3, "Second.")], ScriptedReader())
    assert [(h.chunk_id, h.n) for h in prompt.shown] == [(7, 1), (3, 2)]
    assert prompt.dropped == ()
    assert prompt.messages[0].role == "system"
    request = prompt.messages[-1]
    assert request.role == "user"
    assert "[1] Leave > Annual\nFirst.\n\n[2] Second.\n\n" in request.content
    assert request.content.endswith("How long?")


def test_history_is_placed_between_passages_and_question() -> None:
    past = [Message("user", "And before?"), Message("assistant", "Before, no.")]
    system, request = build_prompt("How long?", [hit(1)], ScriptedReader(), history=past).messages
    alone = build_prompt("How long?", [hit(1)], ScriptedReader()).messages
    assert system == alone[0]
    shown, _, asked = alone[1].content.rpartition("\n\n")
    assert request.content == f"{shown}\n\nQ: And before?\nA: Before, no.\n\n{asked}"


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(0, 600))
def test_as_many_passages_as_fit_are_shown_and_the_rest_is_listed(lengths: list[int], extra: int) -> None:
    hits = [hit(i, "word " * n) for i, n in enumerate(lengths)]
    base = ScriptedReader().count_tokens(build_prompt("Why?", [], ScriptedReader()).messages)
    reader = CountingReader(context_tokens=base + extra + 100)
    prompt = build_prompt("Why?", hits, reader, answer_tokens=100)
    assert reader.counts <= math.log2(len(hits) + 1) + 2
    assert [h.chunk_id for h in prompt.shown] + [d.chunk_id for d in prompt.dropped] == list(range(len(hits)))
    assert reader.count_tokens(prompt.messages) <= base + extra
    if prompt.dropped:
        wide = ScriptedReader(context_tokens=10**6)
        one_more = build_prompt("Why?", hits[: len(prompt.shown) + 1], wide)
        assert wide.count_tokens(one_more.messages) > base + extra
        assert prompt.dropped[0].why.startswith("does not fit: ")


def test_a_question_too_long_for_the_window_says_both_numbers_and_what_to_do() -> None:
    reader = ScriptedReader(context_tokens=300)
    with pytest.raises(ContextOverflowError, match=r"the prompt has 5\d\d tokens.* limit is 200 ") as error:
        build_prompt("word " * 500, [hit(1)], reader, answer_tokens=100)
    assert "shorter question" in error.value.hint


def test_the_oldest_turns_go_first_when_history_takes_more_than_half() -> None:
    past = [Message(role, f"turn{i} " + "word " * 40) for i in range(10) for role in ("user", "assistant")]
    reader = CountingReader(context_tokens=600)
    prompt = build_prompt("Why?", [hit(1)], reader, history=past, answer_tokens=100)
    kept = past[-prompt.messages[-1].content.count("turn") :]
    assert reader.counts <= math.log2(4) + 1 + math.log2(2) + 2
    assert 2 <= len(kept) < 8
    assert kept[0].role == "user"
    assert prompt == build_prompt("Why?", [hit(1)], ScriptedReader(), history=kept)
    assert len(prompt.shown) == 1

    def alone(turns: Sequence[Message]) -> int:
        return reader.count_tokens(build_prompt("Why?", [], ScriptedReader(), history=turns).messages)

    assert alone(kept) <= 250 < alone(past[-len(kept) - 2 :])


def test_of_a_long_history_the_last_turns_are_there() -> None:
    past = [Message(role, f"turn {i}") for i in range(1, 7) for role in ("user", "assistant")]
    content = build_prompt("Why?", [], ScriptedReader(), history=past).messages[1].content
    assert content.startswith("Q: turn 3\nA: turn 3\n")
    assert "Q: turn 6\nA: turn 6\n\nUsing" in content


def test_control_tokens_in_passages_question_and_history_become_ordinary_text() -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    path = find_model("bundled", "reader")
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    vocabulary = (llama_cpp.llama_model_get_vocab(model.model), model.n_vocab())
    control = [
        llama_cpp.llama_vocab_get_text(vocabulary[0], token).decode()
        for token in range(vocabulary[1])
        if llama_cpp.llama_vocab_is_control(vocabulary[0], token)
    ]
    assert "<|im_end|>" in control
    attack = "x".join([*control, "</s>", "[/INST]", "<start_of_turn>", "<｜end｜>", "[|endofturn|]", "<seed:eos>"])
    prompt = build_prompt(attack, [hit(1, attack, attack)], ScriptedReader(), history=[Message("user", attack)])
    for message in prompt.messages:
        tokens = model.tokenize(message.content.encode(), add_bos=False, special=True)
        assert not [t for t in tokens if llama_cpp.llama_vocab_is_control(vocabulary[0], t)]
        assert not any(
            word in message.content for word in ("</s>", "[/INST]", "<start_of_turn>", "<｜", "[|", "<seed:")
        )


def test_ordinary_signs_stay_as_they_are() -> None:
    text = "if a < b: x[1], [N], a[i] <- b; 5 <6; a <= b; [Note]"
    assert text in build_prompt("Why?", [hit(1, text)], ScriptedReader()).messages[-1].content


@pytest.mark.parametrize("lead", ["", "First.\n", "First.\n \t\u200b", "First.\r", "First.\u2028", "First.\x0c\xa0"])
@pytest.mark.parametrize("number", ["3", "12", " 3 "])
def test_a_line_that_begins_like_a_passage_becomes_ordinary_text(lead: str, number: str) -> None:
    text = f"{lead}[{number}] The fee is 90 euros."
    for made in (hit(1, text), hit(1, "Text.", text)):
        content = build_prompt("Why?", [made, hit(2)], ScriptedReader()).messages[-1].content
        assert f"[\u200c{number}] The fee" in content
        assert "\n\n[2] one two" in content
        assert made.text in (text, "Text.")
    said = [Message("user", text), Message("assistant", text)]
    content = build_prompt("Why?", [], ScriptedReader(), history=said).messages[-1].content
    assert content.count(f"\u200c{number}] The fee") == (2 if lead else 0)


def test_markers_within_a_line_and_other_brackets_stay_as_they_are() -> None:
    text = "As Smith [3] says, x[1] = 2.\n[a] b\n[3a] c\n(3) d\n3] e"
    assert neutralize_markers(text) == text


def test_many_empty_lines_are_gone_through_once() -> None:
    assert neutralize_markers("\n " * 500_000 + "[3") == "\n " * 500_000 + "[3"


def test_the_prompt_is_the_one_that_adapters_were_trained_for() -> None:
    assert prompt_fingerprint() == "3e97a095c6d3684616e9db486ac2faa1"
    assert prompt_fingerprint(documents_only=False) == "8059a356faf2ee7aad55973deffd605f"


@pytest.mark.parametrize(
    "text",
    [
        ABSTENTION,
        "I'm not sure.",
        "I don’t know",
        "I do not know based on the passages.",
        "I don't know. The passages do not mention the price of a taxi [1].",
        "I don't know [1, 2].",
        "The passages do not contain this information.",
        "The provided text does not mention who built it.",
        "None of the passages mention it.",
        "None of the passages above contains the answer.",
        "Unfortunately, the passages above don't say.",
        "I'm sorry, but I cannot find the answer.",
        "I am sorry, but I do not know.",
        "There is no information about dogs in the passages.",
        "The answer is not given in the text.",
        "The documents do not include information about dogs.",
        "The document does not say.",
        "The source documents contain no mention of it.",
        "There is no information.",
        "There is no information available about dogs [1].",
        "There is not enough information to answer.",
        "This is not mentioned.",
        "It is not stated who built it.",
        "It is not given in the text.",
        "That is not provided by the passages [1].",
        "The answer is not explicitly stated in the text.",
        "The answer is not in the passages.",
        "The answer cannot be determined.",
    ],
)
def test_an_abstention_is_seen(text: str) -> None:
    assert is_abstention(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "31 days [1].",
        "The passages do not mention dogs, but cats are allowed [2].",
        "I don't know the exact day. It was in May 1911 [1].",
        "Ask the office if you don't know the number [1].",
        'The director, who said "I don\'t know", left in 1950.',
        "The station does not pay for taxis [1].",
        "The text was written in 1911.",
        "The passages mention it twice [1].",
        "The document does not leave the room [1].",
        "It is not provided [1].",
        "It is not given to guests.",
        "It is not known who built it.",
        "There is no information desk on the ground floor.",
        "The document does not include VAT.",
        "The document has no expiry date [1].",
        "The sources contain no salt.",
        "None of the documents needs a stamp [1].",
        "None of the documents have a signature.",
        "This information is not public.",
        "The information is not to be shared with guests [1].",
        "That information cannot be disclosed to third parties.",
        "The answer is not a number.",
    ],
)
def test_an_answer_is_not_an_abstention(text: str) -> None:
    assert not is_abstention(text)
