"""Pictures of figures in prompts: next to their passage, within the room, and every one that is left out named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ragfm.core.errors import UnsupportedError
from ragfm.core.types import Hit, ImagePart, Message
from ragfm.generation.prompt import EarlierTurn, Prompt, build_prompt
from ragfm.testing import ScriptedReader

WORDS = 30
IMAGE_TOKENS = 64
LABEL_TOKENS = 7  # The picture of [2]:
PICTURES = {name: ImagePart(name.encode(), "image/png") for name in "abc"}


def hit(number: int, image: str | None = None) -> Hit:
    text = f"Passage {number}. " + "word " * WORDS
    return Hit(f"{number}.md", text, 0, len(text), number, None, {}, image=image)


def build(hits: Sequence[Hit], room: int = 4096, **options: Any) -> Prompt:
    reader = ScriptedReader(context_tokens=room + 16, vision=True, image_tokens=IMAGE_TOKENS)
    prompt = build_prompt("Which?", hits, reader, answer_tokens=16, **{"picture_of": PICTURES.get, **options})
    assert reader.count_tokens(prompt.messages) <= room
    return prompt


def layout(prompt: Prompt) -> list[str]:
    """The request's passages and pictures in order."""
    request = prompt.messages[-1]
    return [
        name.strip()
        for part in request.parts
        for name in ([part.data.decode()] if isinstance(part, ImagePart) else part.split("\n\n"))
        if name.strip()
    ]


def tokens(hits: Sequence[Hit], images: int = 0) -> int:
    """Tokens of a prompt with some hits and pictures."""
    messages = build(hits, picture_of=None).messages
    return ScriptedReader().count_tokens(messages) + images * (IMAGE_TOKENS + LABEL_TOKENS)


def test_a_picture_follows_its_passage() -> None:
    prompt = build([hit(1), hit(2, "a"), hit(3), hit(4, "b")])
    assert prompt.messages[-1].images == (PICTURES["a"], PICTURES["b"])
    names = layout(prompt)
    assert names[1].endswith("The picture of [2]:")
    assert names[1].startswith("[2] Passage 2.")
    assert names[2] == "a"
    assert names[3].startswith("[3]")
    assert names[5] == "b"
    assert (prompt.pictured, prompt.dropped) == (frozenset({2, 4}), ())


def test_without_pictures_the_prompt_is_a_text() -> None:
    hits = [hit(1), hit(2)]
    plain = build_prompt("Which?", hits, ScriptedReader())
    assert build(hits).messages == plain.messages
    figures = build([hit(1, "a"), hit(2, "b")], picture_of=None)
    assert figures.messages == plain.messages
    assert figures.pictured == frozenset()


def test_pictures_and_passages_share_the_room_by_rank() -> None:
    hits = [hit(1), hit(2, "a"), hit(3, "b"), hit(4)]
    full = tokens(hits, 2)
    assert build(hits, full).dropped == ()
    # The last passage gives way to the picture of a better one.
    prompt = build(hits, full - 1)
    assert [dropped.chunk_id for dropped in prompt.dropped] == [4]
    assert prompt.pictured == {2, 3}
    # With room for one picture, the second is left out, and its text stays.
    prompt = build(hits, tokens(hits[:3], 1))
    assert prompt.pictured == {2}
    assert [hit.chunk_id for hit in prompt.shown] == [1, 2, 3]
    assert [(one.chunk_id, one.why.partition(":")[0]) for one in prompt.dropped] == [
        (3, "only its picture, which its text stands for"),
        (4, "does not fit"),
    ]
    # With room for none, the texts are those of a reader without vision.
    room = tokens(hits[:2])
    prompt = build(hits, room)
    assert prompt.messages == build(hits, room, picture_of=None).messages
    assert [one.chunk_id for one in prompt.dropped] == [2, 3, 4]


def test_a_smaller_picture_of_a_worse_hit_may_still_fit() -> None:
    class Reader(ScriptedReader):
        def count_tokens(self, messages: Sequence[Message]) -> int:
            large = sum(image == PICTURES["a"] for message in messages for image in message.images)
            return super().count_tokens(messages) + 5000 * large

    prompt = build_prompt("Which?", [hit(1, "a"), hit(2, "b")], Reader(vision=True), picture_of=PICTURES.get)
    assert prompt.pictured == {2}
    assert [one.chunk_id for one in prompt.dropped] == [1]


def test_pictures_that_are_gone_or_damaged_are_named() -> None:
    class Reader(ScriptedReader):
        def count_tokens(self, messages: Sequence[Message]) -> int:
            if any(message.images for message in messages):
                raise UnsupportedError("Cannot read the image b: it is damaged.")
            return super().count_tokens(messages)

    prompt = build_prompt("Which?", [hit(1, "z"), hit(2, "b")], Reader(vision=True), picture_of=PICTURES.get)
    gone, damaged = (one.why for one in prompt.dropped)
    assert "no longer in the collection" in gone
    assert "it is damaged" in damaged
    assert prompt.messages[-1].images == ()


def test_one_picture_of_several_passages_is_shown_once() -> None:
    prompt = build([hit(1, "a"), hit(2, "a")])
    assert prompt.messages[-1].images == (PICTURES["a"],)
    assert prompt.pictured == {1, 2}


def test_a_follow_up_keeps_the_pictures_in_their_places() -> None:
    past = [Message("user", "What is this?"), Message("assistant", "A chart [1].")]
    earlier = [EarlierTurn("What is this?", [hit(1, "a")], 0)]
    prompt = build([hit(1, "a"), hit(2, "b")], history=past, earlier=earlier)
    before = build([hit(1, "a")])
    assert prompt.messages[-1].images == (PICTURES["a"], PICTURES["b"])
    assert prompt.messages[-1].parts[:2] == before.messages[-1].parts[:2]
    assert prompt.pictured == {1, 2}


def test_images_of_the_user_precede_the_question() -> None:
    asked = ImagePart(b"asked", "image/png")
    past = [Message("user", ("And this?", PICTURES["c"])), Message("assistant", "A photo.")]
    prompt = build([hit(1, "a")], images=[asked], history=past)
    parts = prompt.messages[-1].parts
    assert prompt.messages[-1].images == (PICTURES["a"], PICTURES["c"], asked)
    assert str(parts[2]).strip() == "Q: And this?\nA: A photo."
    assert str(parts[-1]).strip().endswith("Which?")


def test_neighbours_are_filled_up_with_text() -> None:
    near = [hit(number) for number in range(10, 20)]
    filled = build([hit(1, "a")], widening=[(lambda hits: near, 120)])
    plain = build([hit(1)], widening=[(lambda hits: near, 120)])
    assert len(filled.shown) == len(plain.shown) == 3
    assert filled.pictured == {1}


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_images_of_other_roles_are_refused(role: Any) -> None:
    with pytest.raises(UnsupportedError, match="Put images in the user's messages"):
        ScriptedReader(vision=True).count_tokens([Message(role, (PICTURES["a"],))])
