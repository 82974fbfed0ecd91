"""The pipeline from question to answer, with a scripted reader."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.judges import ScriptedJudge

from ragfm import Answer, Collection, Message, Rag, Sampling, Settings
from ragfm.core.abstention import ABSTENTION
from ragfm.core.config import AskSection
from ragfm.core.errors import ContextOverflowError, FilterError, RagfmError, UnsupportedError
from ragfm.core.types import CLOSED, Stream
from ragfm.generation.answer_log import AnswerLog, Origin
from ragfm.testing import HashingEmbedder, ScriptedReader


@pytest.fixture
def handbook(shared_handbook: Collection) -> Collection:
    return shared_handbook


def test_an_answer_carries_its_evidence(handbook: Collection) -> None:
    reader = ScriptedReader(["You get 28 days of leave."])
    answer = Rag(handbook, reader=reader, k=4).ask("How many days of leave do I get?")
    assert not answer.abstained
    (citation,) = answer.citations
    assert answer.text == f"You get 28 days of leave [{citation.n}]."
    assert citation.verified
    document = handbook.document(citation.uri)
    assert document.text[citation.start : citation.end] == citation.quote == "You get 28 days of leave."
    cited = next(hit for hit in answer.hits if hit.n == citation.n)
    assert cited.uri == citation.uri == "docs/leave.md"
    assert [hit.n for hit in answer.hits] == [1, 2, 3, 4]
    assert answer.usage.prompt_tokens == reader.count_tokens(reader.prompts[0])
    assert answer.usage.completion_tokens > 0
    assert answer.seconds >= 0


def test_passages_and_question_reach_the_reader_in_order(handbook: Collection) -> None:
    reader = ScriptedReader(["Yes."])
    answer = Rag(handbook, reader=reader, k=2).ask("When does the office open?")
    prompt = "\n".join(message.content for message in reader.prompts[0])
    places = [prompt.index(hit.text) for hit in answer.hits]
    assert places == sorted(places)
    assert "When does the office open?" in prompt


def test_history_reaches_the_reader(handbook: Collection) -> None:
    reader = ScriptedReader(["Yes."])
    history = [Message("user", "Are cats welcome?"), Message("assistant", "Cats are not mentioned.")]
    Rag(handbook, reader=reader).ask("When does the office open?", history=history)
    assert "\n\nQ: Are cats welcome?\nA: Cats are not mentioned.\n\nUsing" in reader.prompts[0][1].content


def test_an_empty_collection_abstains_without_a_reader(tmp_path: Path, collection: Collection) -> None:
    (tmp_path / "empty").mkdir()
    collection.sync(tmp_path / "empty")
    reader = ScriptedReader(["never"])
    answer = Rag(collection, reader=reader).ask("Anything?")
    assert (answer.abstained, answer.text, answer.hits, answer.citations) == (True, "I don't know.", (), ())
    assert reader.prompts == []


@pytest.mark.parametrize("said", ["I don't know.", "", "  \n"])
def test_abstention_has_no_citations(handbook: Collection, said: str) -> None:
    answer = Rag(handbook, reader=ScriptedReader([said])).ask("What is the wifi password?")
    assert (answer.abstained, answer.citations) == (True, ())
    assert answer.text == "I don't know."


@pytest.mark.parametrize("said", ["In short: what is the wifi password?", "What is the  Wifi password? [1]"])
def test_an_answer_that_repeats_the_question_is_none(handbook: Collection, said: str) -> None:
    stream = Rag(handbook, reader=ScriptedReader([said])).stream("In short: what is the wifi password?")
    assert "".join(stream).endswith("\nI don't know.")
    assert (stream.answer.status, stream.answer.text) == ("not_found", "I don't know.")


def test_an_answer_of_words_of_the_question_is_one(handbook: Collection) -> None:
    answer = Rag(handbook, reader=ScriptedReader(["Twelve."])).ask("Is it eleven or twelve?")
    assert (answer.status, answer.text) == ("answered", "Twelve.")


def test_passages_that_do_not_fit_are_reported(tmp_path: Path, collection: Collection) -> None:
    for number in range(8):
        (tmp_path / f"{number}.txt").write_text(f"Passage {number}. " + "word " * 40)
    collection.sync(f"{tmp_path}/*.txt")
    reader = ScriptedReader(["Yes."], context_tokens=500)
    answer = Rag(collection, reader=reader, k=8).ask("Which passage has a word?")
    shown = [hit for hit in answer.hits if hit.n is not None]
    assert 0 < len(shown) < 8
    assert [dropped.chunk_id for dropped in answer.dropped] == [hit.chunk_id for hit in answer.hits[len(shown) :]]
    assert all("fit" in dropped.why for dropped in answer.dropped)
    assert reader.count_tokens(reader.prompts[0]) + 256 <= 500


def test_no_passage_fits_so_no_reader_is_asked(tmp_path: Path, collection: Collection) -> None:
    (tmp_path / "long.txt").write_text("word " * 60)
    collection.sync(tmp_path / "long.txt")
    reader = ScriptedReader(["From memory."], context_tokens=330)
    answer = Rag(collection, reader=reader).ask("Which word?")
    assert (answer.abstained, reader.prompts, len(answer.hits), len(answer.dropped)) == (True, [], 1, 1)


def test_a_question_over_the_window_is_an_error(handbook: Collection) -> None:
    reader = ScriptedReader(["Yes."], context_tokens=300)
    with pytest.raises(ContextOverflowError):
        Rag(handbook, reader=reader).ask("word " * 60)


def test_a_stream_gives_pieces_then_the_answer(handbook: Collection) -> None:
    stream = Rag(handbook, reader=ScriptedReader(["You get 28 days of leave."])).stream("How much leave?")
    with pytest.raises(RuntimeError):
        _ = stream.answer
    assert "".join(stream) == "You get 28 days of leave."
    assert stream.answer.citations
    assert list(stream) == []
    assert stream.answer.citations


def test_a_closed_stream_ends_the_readers_stream(handbook: Collection) -> None:
    closed = []

    class Watched(ScriptedReader):
        def stream(self, *given: object) -> object:  # type: ignore[override]
            stream = super().stream(*given)  # type: ignore[arg-type]
            close = stream.close
            stream.close = lambda: (closed.append(True), close())[1]  # type: ignore[method-assign]
            return stream

    stream = Rag(handbook, reader=Watched(["one two three"])).stream("How much leave?")
    next(stream)
    stream.close()
    assert closed


def test_another_thread_closes_an_answer_that_is_waited_for(handbook: Collection) -> None:
    began, closed = threading.Event(), threading.Event()

    class Silent(ScriptedReader):
        def stream(self, messages: Sequence[Message], *_: Sampling) -> Stream:
            def pieces() -> Generator[str, None, Any]:
                began.set()
                closed.wait(20)
                yield "late"

            return Stream(pieces(), cancel=closed.set)

    rag = Rag(handbook, reader=Silent())
    rag.log = AnswerLog.for_collection(handbook.path)
    stream, errors = rag.stream("How much leave?"), list[str]()

    def read() -> None:
        try:
            next(stream)
        except RagfmError as error:
            errors.append(str(error))

    reading = threading.Thread(target=read)
    reading.start()
    assert began.wait(20)
    stream.close()
    reading.join(20)
    assert errors == [CLOSED]
    assert [entry.finished for entry in rag.log.entries()] == [False]


def test_an_answer_that_is_closed_before_it_begins_asks_no_reader_for_long(handbook: Collection) -> None:
    stream = Rag(handbook, reader=ScriptedReader(["Yes."])).stream("How much leave?")
    stream._handle.close()  # as by a thread that comes just before the reader's stream is there
    with pytest.raises(RagfmError, match="closed"):
        next(stream)


def test_options_make_another_rag_and_leave_the_first(handbook: Collection) -> None:
    rag = Rag(handbook, reader=ScriptedReader(["Yes."]), k=2)
    closed = handbook.as_groups(set())
    other = rag.with_options(collection=closed, k=1, sampling=Sampling(max_tokens=7))
    assert (other.collection, other.k, other.sampling.max_tokens, other.reader) == (closed, 1, 7, rag.reader)
    assert (rag.collection, rag.k, rag.with_options().k) == (handbook, 2, 2)
    assert rag.sampling.max_tokens == 256
    for make in (rag.with_options, partial(Rag, handbook, reader=ScriptedReader([]))):
        with pytest.raises(ValueError, match="k is 0"):
            make(k=0)


def test_an_answer_says_whether_it_was_cut_off(handbook: Collection) -> None:
    rag = Rag(handbook, reader=ScriptedReader(["You get 28 days of leave."]))
    assert rag.ask("How much leave?").finish_reason == "stop"
    assert rag.with_options(sampling=Sampling(max_tokens=2)).ask("How much leave?").finish_reason == "length"


def test_a_filter_narrows_what_the_reader_sees(handbook: Collection) -> None:
    answer = Rag(handbook, reader=ScriptedReader(["Yes."])).ask("leave?", filter="uri = docs/pets.markdown")
    assert {hit.uri for hit in answer.hits} == {"docs/pets.markdown"}
    with pytest.raises(FilterError):
        Rag(handbook, reader=ScriptedReader(["Yes."])).ask("leave?", filter="uri")


def test_lone_surrogates_are_refused(handbook: Collection) -> None:
    rag = Rag(handbook, reader=ScriptedReader(["Yes."]))
    broken = "leave \ud800"
    for ask in (
        lambda: handbook.search(broken),
        lambda: handbook.search(broken, mode="keyword"),
        lambda: rag.ask(broken),
        lambda: rag.ask("Leave?", history=[Message("user", broken), Message("assistant", "28 days.")]),
    ):
        with pytest.raises(UnsupportedError, match="surrogate"):
            ask()


def test_an_empty_question_is_refused(handbook: Collection) -> None:
    with pytest.raises(ValueError, match="empty"):
        Rag(handbook, reader=ScriptedReader(["Yes."])).ask("  ")


def asked_in(
    mode: str, collection: Collection, docs: Path, reader: ScriptedReader, question: str
) -> list[str | Answer]:
    settings = Settings(ask=AskSection(mode=mode))  # type: ignore[arg-type]
    collection.sync(docs)
    with Collection.open(collection.location, settings=settings, embedder=HashingEmbedder()) as handle:
        rag = Rag(handle, reader=reader)
        rag.judge = ScriptedJudge(contradicts=lambda one: 0.9 if "30 days" in one.text else 0.0)
        stream = rag.stream(question)
        return [*stream, stream.answer]


def test_strict_answers_contain_only_supported_sentences(collection: Collection, docs: Path) -> None:
    reader = ScriptedReader(["You get 28 days of leave. Cats sleep a lot."])
    *pieces, answer = asked_in("strict", collection, docs, reader, "How much leave do I get?")
    assert isinstance(answer, Answer)
    assert answer.text == f"You get 28 days of leave [{answer.citations[0].n}]."
    assert pieces == [answer.text]  # nothing is shown that is taken back
    reader = ScriptedReader(["Cats sleep a lot. Yes."])
    *pieces, answer = asked_in("strict", collection, docs, reader, "How much leave do I get?")
    assert isinstance(answer, Answer)
    assert (answer.text, answer.abstained, answer.citations) == (ABSTENTION, True, ())
    assert pieces == [ABSTENTION]


def test_contradictions_are_data_and_not_streamed(collection: Collection, docs: Path) -> None:
    (docs / "new.md").write_text("In 2026 you get 30 days of leave.\n")
    reader = ScriptedReader(["You get 28 days of leave. It is so."])
    *pieces, answer = asked_in("prefer", collection, docs, reader, "How many days of leave do I get?")
    assert isinstance(answer, Answer)
    assert "".join(pieces) == "You get 28 days of leave. It is so.\n\nI am not sure of this."
    assert answer.text == "You get 28 days of leave [1]. It is so."
    (contradiction,) = answer.contradictions
    assert contradiction.quote == "In 2026 you get 30 days of leave."
    assert answer.text[contradiction.answer_start : contradiction.answer_end] == "You get 28 days of leave [1]."


def test_citations_are_anchored_in_the_answer_and_in_the_streamed_text(handbook: Collection) -> None:
    said = " <think>Hm.</think> You get 28 days of leave. [1] Parents get 16 weeks more, too."
    stream = Rag(handbook, reader=ScriptedReader([said]), k=3).stream("How much leave is there?")
    streamed = "".join(stream)
    assert [stream.answer.text[c.answer_start : c.answer_end] for c in stream.answer.citations] == [
        "You get 28 days of leave [1].",
        "Parents get 16 weeks more, too [2].",
    ]
    assert [streamed[start:end].strip() for start, end in stream.cited_spans] == [
        "You get 28 days of leave. [1]",
        "Parents get 16 weeks more, too.",
    ]


def test_an_answer_in_a_loop_ends_and_one_without_words_is_none(handbook: Collection) -> None:
    empty_rows = Rag(handbook, reader=ScriptedReader(["|  |  |\n" * 200])).stream("How much leave do I get?")
    assert "".join(empty_rows).count("\n") < 20
    assert empty_rows.answer.abstained
    words = Rag(handbook, reader=ScriptedReader(["You get 28 days " + "of leave " * 200])).ask(
        "How much leave do I get?"
    )
    assert words.text.count("of leave") == 1


def test_after_an_earlier_question_the_source_that_supports_comes_first(handbook: Collection) -> None:
    history = [Message("user", "How many days of leave do I get?"), Message("assistant", "28 days [1].")]
    reader = ScriptedReader(["Dogs are welcome on Fridays [1]."])
    answer = Rag(handbook, reader=reader).ask("And for dogs?", history=history)
    assert [citation.supports for citation in answer.citations] == [True, False]
    assert answer.citations[0].quote == "Dogs are welcome on Fridays."


def test_unsupported_sentences_are_marked_by_default(collection: Collection, docs: Path) -> None:
    reader = ScriptedReader(["You get 28 days of leave. Cats sleep a lot."])
    *_, answer = asked_in("prefer", collection, docs, reader, "How much leave do I get?")
    assert isinstance(answer, Answer)
    ((start, end),) = answer.unsupported
    assert answer.text[start:end] == "Cats sleep a lot."


def test_an_open_answer_needs_no_passage(collection: Collection, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    reader = ScriptedReader(["Paris."])
    *_, answer = asked_in("open", collection, empty, reader, "What is the capital of France?")
    assert isinstance(answer, Answer)
    assert (answer.text, answer.abstained, answer.unsupported) == ("Paris.", False, ((0, 6),))
    assert "only" not in reader.prompts[0][-1].content


def test_an_answer_that_repeats_itself_ends_there(handbook: Collection) -> None:
    said = "You get 28 days of leave. Yes. Yes. Dogs are welcome on Fridays. You get 28 days of leave. Never."
    stream = Rag(handbook, reader=ScriptedReader([said])).stream("How much leave do I get?")
    pieces = "".join(stream)
    assert "Never" not in pieces
    assert "Yes. Yes." in stream.answer.text
    assert stream.answer.text.count("28 days") == 1
    assert stream.answer.usage.completion_tokens > 0
    short = Rag(handbook, reader=ScriptedReader(["The 23 January. " * 40])).ask("When do I get leave?")
    assert short.text.count("23 January") == 1


def test_handles_of_different_groups_share_no_prompt_cache(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    scopes = []

    class Scoping(ScriptedReader):
        def scoped(self, scope: str) -> ScriptedReader:
            scopes.append(scope)
            return self

    for groups in ({"b", "a"}, {"a", "b"}, {"a"}, set()):
        Rag(collection.as_groups(groups), reader=Scoping(["Yes."]))
    rag = Rag(collection, reader=Scoping(["Yes."]))
    assert scopes == ["groups\na\nb", "groups\na\nb", "groups\na", "groups"]
    for key in ("ann", "bob"):  # of a server, whose requests are restricted to the same group
        rag.with_options(collection=collection.as_groups({"a"}), origin=Origin(key))
    assert scopes[4:] == ["groups of ann\na", "groups of bob\na"]
