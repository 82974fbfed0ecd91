"""What a follow-up's prompt goes on with: passages stay where they stood, but for who may see them, and as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.overlap_reranker import OverlapReranker

from ragfm import Collection, Message, Rag, Settings
from ragfm.core.config import AskSection
from ragfm.core.types import Answer, Hit
from ragfm.generation.prompt import EarlierTurn, Prompt, build_prompt
from ragfm.samples import copy_handbook
from ragfm.testing import HashingEmbedder, ScriptedReader

LEAVE, PARENTS, DOGS = "How many days of leave do I get?", "And for parents?", "Are dogs welcome on Fridays?"


def hit(chunk_id: int, text: str) -> Hit:
    return Hit("a.md", text, 100 * chunk_id, 100 * chunk_id + len(text), chunk_id, 0.5, {"dense": 0.5})


ONE, TWO, THREE = hit(1, "First."), hit(2, "Second."), hit(3, "Third.")
PAST = [Message("user", "How long?"), Message("assistant", "A day [1].")]
EARLIER = [EarlierTurn("How long?", [ONE, TWO], 0)]


def goes_on(prompt: Sequence[Message], before: Sequence[Message]) -> bool:
    """Whether a prompt begins with all that another one has, up to the end of its passages."""
    shown = re.split(r"\n\n(?=Q: |Using only)", before[-1].content)[0]
    return [*prompt[:-1]] == [*before[:-1]] and prompt[-1].content.startswith(f"{shown}\n\n") and "[1] " in shown


class Talk:
    """Questions one after the other, with what the reader was asked for each."""

    def __init__(self, rag: Rag, reader: ScriptedReader) -> None:
        self.rag, self.reader = rag, reader
        self.history: list[Message] = []

    def ask(self, question: str) -> Answer:
        answer = self.rag.ask(question, history=self.history)
        self.history += [Message("user", question), Message("assistant", answer.text)]
        return answer

    @property
    def prompts(self) -> list[str]:
        return ["\n".join(message.content for message in prompt) for prompt in self.reader.prompts]


def talk(collection: Collection, *answers: str, k: int = 2, context_tokens: int = 4096) -> Talk:
    reader = ScriptedReader(answers or ["Yes."], context_tokens=context_tokens)
    return Talk(Rag(collection, reader=reader, k=k), reader)


@pytest.fixture
def handbook(collection: Collection, docs: Path) -> Collection:
    collection.sync(docs)
    settings = Settings(ask=AskSection(reranker="none"))
    return Collection.open(collection.location, settings=settings, embedder=HashingEmbedder())


# --- The layout --------------------------------------------------------------------------------------------------


def test_a_follow_up_has_the_passages_of_the_prompt_before_and_then_the_new_ones() -> None:
    first = build_prompt("How long?", [ONE, TWO], ScriptedReader())
    prompt = build_prompt("And then?", [THREE, TWO], ScriptedReader(), history=PAST, earlier=EARLIER)
    assert goes_on(prompt.messages, first.messages)
    said = "\n\n[2] Second.\n\n[3] Third.\n\nQ: How long?\nA: A day [1].\n\nUsing only"
    assert said in prompt.messages[-1].content
    assert [(passage.chunk_id, passage.n) for passage in prompt.shown] == [(1, 1), (2, 2), (3, 3)]


def test_a_follow_up_without_new_passages_keeps_the_earlier_ones() -> None:
    prompt = build_prompt("And then?", [TWO], ScriptedReader(), history=PAST, earlier=EARLIER)
    assert prompt.messages[-1].content.startswith(
        "[1] First.\n\n[2] Second.\n\nQ: How long?\nA: A day [1].\n\nUsing only"
    )
    assert [passage.n for passage in prompt.shown] == [1, 2]


def test_a_hit_inside_an_earlier_passage_is_not_shown_again() -> None:
    whole = hit(1, "First. Second.")
    part = Hit("a.md", "Second.", 107, 114, 9, 0.5, {})
    elsewhere = Hit("b.md", "Second.", 107, 114, 10, 0.5, {})
    past = [EarlierTurn("How long?", [whole], 0)]
    shown = build_prompt("Why?", [part, elsewhere], ScriptedReader(), history=PAST, earlier=past).shown
    assert [(passage.chunk_id, passage.n) for passage in shown] == [(1, 1), (10, 2)]


def test_the_history_follows_the_passages() -> None:
    past = [Message("user", "Hello?"), Message("assistant", "Hello!"), *PAST]
    earlier = [EarlierTurn("How long?", [ONE, TWO], 2)]
    first = build_prompt("How long?", [ONE, TWO], ScriptedReader(), history=past[:2])
    prompt = build_prompt("And then?", [THREE], ScriptedReader(), history=past, earlier=earlier)
    assert goes_on(prompt.messages, first.messages)
    assert "\n\n[3] Third.\n\nQ: Hello?\nA: Hello!\nQ: How long?\nA: A day [1].\n\n" in prompt.messages[1].content


def test_a_full_window_restarts_the_prompt_and_the_next_turn_extends_it() -> None:
    wide = ScriptedReader(context_tokens=10**6)
    long = [hit(number, f"Passage {number}. " + "word " * 60) for number in range(1, 5)]
    past = [*PAST, Message("user", "And then?"), Message("assistant", "Two [2].")]
    earlier = [EarlierTurn("How long?", long[:2], 0), EarlierTurn("And then?", long[2:3], 2)]

    def asked(turns: int, reader: ScriptedReader) -> Prompt:
        given = [("How long?", long[:2]), ("And then?", long[2:3]), ("Why?", long[2:4])][turns]
        return build_prompt(*given, reader, history=past[: 2 * turns], earlier=earlier[:turns], answer_tokens=100)

    room = wide.count_tokens(asked(1, wide).messages) - 1
    narrow = ScriptedReader(context_tokens=room + 100)
    fresh = build_prompt("And then?", long[2:3], narrow, history=PAST, answer_tokens=100)
    assert asked(1, narrow) == fresh
    assert fresh.messages[1].content.startswith("[1] Passage 3.")
    assert goes_on(asked(2, narrow).messages, fresh.messages)
    assert [passage.chunk_id for passage in asked(2, narrow).shown] == [3, 4]
    for turns in range(3):
        assert narrow.count_tokens(asked(turns, narrow).messages) <= room


def test_an_earlier_question_that_no_longer_fits_is_not_an_error() -> None:
    reader = ScriptedReader(context_tokens=200)
    past = [Message("user", "word " * 300), Message("assistant", "No.")]
    earlier = [EarlierTurn(past[0].content, [ONE], 0)]
    prompt = build_prompt("Why?", [TWO], reader, history=past, earlier=earlier, answer_tokens=50)
    assert prompt == build_prompt("Why?", [TWO], reader, answer_tokens=50)


# --- In a conversation -------------------------------------------------------------------------------------------


def test_each_prompt_begins_with_the_one_before(handbook: Collection) -> None:
    chat = talk(handbook, "You get 28 days of leave.", "Parents get 16 weeks more.", "Yes.")
    for question in (LEAVE, PARENTS, "And for cats?"):
        chat.ask(question)
    first, second, third = chat.reader.prompts
    assert goes_on(second, first)
    assert goes_on(third, second)
    for passage in handbook.search(LEAVE, 2):
        assert chat.prompts[2].count(passage.text) == 1


def test_citations_hold_across_turns(handbook: Collection) -> None:
    said = ["You get 28 days of leave.", "Parents get 16 weeks more. You get 28 days of leave."]
    chat = talk(handbook, *said, k=1)
    chat.ask(LEAVE)
    answer = chat.ask("And weeks for parents?")
    (found,) = handbook.search(answer.query, 1)
    assert [(hit.uri, hit.n) for hit in answer.hits] == [("docs/leave.md", 2), ("docs/leave.md", 1)]
    assert answer.hits[0].chunk_id == found.chunk_id
    assert answer.text == "Parents get 16 weeks more [2]. You get 28 days of leave [1]."
    for citation in answer.citations:
        cited = next(hit for hit in answer.hits if hit.n == citation.n)
        assert citation.supports
        assert cited.uri == citation.uri
        assert handbook.document(citation.uri).text[citation.start : citation.end] == citation.quote
        assert f"[{citation.n}] {cited.context}\n{cited.text}".replace("] \n", "] ") in chat.prompts[-1]


def test_a_change_of_topic_takes_no_passages_along(handbook: Collection) -> None:
    chat = talk(handbook, "You get 28 days of leave.", "Yes.")
    chat.ask(LEAVE)
    answer = chat.ask(DOGS)
    hits = handbook.search(DOGS, 2)
    assert chat.reader.prompts[1] == build_prompt(DOGS, hits, ScriptedReader(), history=chat.history[:2]).messages
    assert [hit.chunk_id for hit in answer.hits] == [hit.chunk_id for hit in hits]
    chat.ask("What about cats?")
    assert goes_on(chat.reader.prompts[2], chat.reader.prompts[1])


def test_earlier_passages_are_dropped_when_access_is_withdrawn(handbook: Collection, docs: Path) -> None:
    chat = talk(handbook.as_groups({"hr"}), "You get 28 days of leave.", k=4)
    chat.ask(LEAVE)
    chat.ask(PARENTS)
    assert "28 days of leave.\n" in chat.prompts[1]
    handbook.sync(docs, allow=["board"])
    extra = docs.parent / "more"
    extra.mkdir()
    (extra / "parents.txt").write_text("Parents of twins get leave, too.\n")
    handbook.sync(extra)
    answer = chat.ask("And for twins?")
    assert {hit.uri for hit in answer.hits} == {"more/parents.txt"}
    assert not [text for text in ("# Leave", "Parents get 16", "opens at nine") if text in chat.prompts[2]]
    assert chat.prompts[2].count("Parents of twins") == 1


def test_cached_hits_are_not_shared_between_groups(handbook: Collection, docs: Path) -> None:
    handbook.sync(docs, allow=["board"])
    rag = Rag(handbook, reader=ScriptedReader(["Yes."]))
    assert rag.ask(LEAVE).hits
    for groups, sees in (({"board"}, True), ({"hr"}, False), (set[str](), False)):
        assert bool(rag.with_options(collection=handbook.as_groups(groups)).ask(LEAVE).hits) == sees
    handbook.sync(docs, allow=["hr"])
    for groups, sees in (({"board"}, False), ({"hr"}, True)):
        assert bool(rag.with_options(collection=handbook.as_groups(groups)).ask(LEAVE).hits) == sees


def test_a_document_that_changed_or_went_is_shown_as_it_is(handbook: Collection, docs: Path) -> None:
    chat = talk(handbook, "You get 28 days of leave.", k=4)
    chat.ask(LEAVE)
    (docs / "leave.md").write_text("# Leave\n\nYou get 31 days of leave.\n\n## Parents\n\nParents get 16 weeks more.\n")
    (docs / "hours.txt").unlink()
    handbook.sync(docs)
    answer = chat.ask(PARENTS)
    assert "31 days" in chat.prompts[1]
    assert "opens at nine" not in chat.prompts[1]
    assert chat.prompts[1].count("28 days") == 1  # the answer that was given
    assert all(handbook.document(hit.uri).text[hit.start : hit.end] == hit.text for hit in answer.hits)


def test_earlier_passages_meet_the_filter(handbook: Collection) -> None:
    chat = talk(handbook, k=4)
    chat.ask(LEAVE)
    answer = chat.rag.ask(PARENTS, history=chat.history, filter="uri = 'docs/leave.md'")
    assert {hit.uri for hit in answer.hits} == {"docs/leave.md"}
    assert "opens at nine" not in chat.prompts[1]


def test_given_hits_replace_all_passages(handbook: Collection) -> None:
    chat = talk(handbook)
    chat.ask(LEAVE)
    given = handbook.search(DOGS, 1, filter="uri = 'docs/rooms.csv'")
    answer = chat.rag.ask(PARENTS, history=chat.history, hits=given)
    assert [hit.chunk_id for hit in answer.hits] == [given[0].chunk_id]
    assert "28 days of leave.\n" not in chat.prompts[1]


def test_the_next_turn_searches_only_for_what_is_new(docs: Path, tmp_path: Path) -> None:
    queries: list[str] = []

    class Counting(OverlapReranker):
        def rerank(self, query: str, *given: object, **more: object) -> object:  # type: ignore[override]
            queries.append(query)
            return super().rerank(query, *given, **more)  # type: ignore[arg-type]

    collection = Collection.open(tmp_path / "c", settings=Settings(), embedder=HashingEmbedder(), reranker=Counting())
    collection.sync(docs)
    chat = talk(collection)
    for question in (LEAVE, PARENTS, "And for cats?"):
        chat.ask(question)
    assert len(queries) == 3
    (docs / "hours.txt").unlink()
    collection.sync(docs)
    chat.ask("And for dogs?")
    assert len(queries) == 3 + 4


# --- What is evaluated -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_only_new_tokens_of_a_follow_up_are_evaluated(tmp_path: Path) -> None:
    with Collection.open(tmp_path / ".ragfm", settings=Settings()) as collection:
        collection.sync(copy_handbook(tmp_path))
        rag = Rag(collection, reader="bundled")
        history: list[Message] = []

        def ask(question: str) -> Answer:
            answer = rag.ask(question, history=history)
            history.extend([Message("user", question), Message("assistant", answer.text)])
            return answer

        def evaluated(answer: Answer) -> int:
            return answer.usage.prompt_tokens - answer.usage.cached_tokens

        first = ask("How many people does Cirrus seat?")
        assert first.usage.prompt_tokens > 300
        answers, shown = [first], len(first.hits)
        for question in ("What about Stratus?", "And the library?"):
            answers.append(ask(question))
            new = [hit.context + hit.text for hit in answers[-1].hits if hit.n is not None and hit.n > shown]
            assert evaluated(answers[-1]) < rag.reader.count_tokens([Message("user", "\n".join(new))]) + 80
            shown += len(new)
        assert shown > len(first.hits)

        other = ask("Who is the safety officer?")
        assert evaluated(other) > 300
        for answer in (*answers, other):
            for citation in answer.citations:
                cited = next(hit for hit in answer.hits if hit.n == citation.n)
                assert cited.text[citation.start - cited.start : citation.end - cited.start] == citation.quote
