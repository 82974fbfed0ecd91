"""What of the hits a reader is shown: near-duplicates, neighbours, order, and what the answer says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from ragfm import Collection, Rag, Settings
from ragfm.core.config import AskSection, ChunkSection, SearchSection
from ragfm.core.types import Hit
from ragfm.retrieval.passages import arrange, distinct, table_around
from ragfm.testing import HashingEmbedder, ScriptedReader

TEXT = "The boat leaves at nine. It comes back at five.\n\nDogs stay ashore. Cats may come along, in a box."
RULE = "Every employee may bring a guest to the canteen on Fridays, if the guest was announced by noon the day before"


def hit(start: int, end: int, uri: str = "a.md", text: str = TEXT, **more: object) -> Hit:
    return Hit(uri, text[start:end], start, end, hash((uri, start, end)), 0.5, {"dense": 0.5}, **more)  # type: ignore[arg-type]


def said(text: str, uri: str = "a.md") -> Hit:
    return hit(0, len(text), uri, text)


def spans(hits: Sequence[Hit]) -> list[tuple[str, int, int]]:
    return [(h.uri, h.start, h.end) for h in hits]


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (f"{RULE}.", True),
        (f"  {RULE.upper()}!\n", True),
        (RULE.replace("guest to", "guest\nto").replace("-", " "), True),
        (f"{RULE}. The cook is told.", False),  # says more
        (RULE.replace("employee", "visitor"), False),
        ("Quite another matter", False),
    ],
)
def test_a_near_duplicate_is_skipped_and_the_next_hit_used(other: str, same: bool) -> None:
    hits = [said(RULE), said(other, "b.md"), said("Dogs stay ashore.", "c.md"), said("Cats too.", "d.md")]
    chosen, dropped = distinct(hits, 2)
    assert [h.uri for h in chosen] == (["a.md", "c.md"] if same else ["a.md", "b.md"])
    assert [d.chunk_id for d in dropped] == ([hits[1].chunk_id] if same else [])
    assert all("a.md" in d.why for d in dropped)


def test_texts_with_different_numbers_are_not_duplicates() -> None:
    long = " ".join(f"word{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(200))
    pumps = [said(f"Pump P-{n} runs at {n} bar: {long}", f"{n}.md") for n in (10, 11, 10)]
    chosen, dropped = distinct(pumps, 3)
    assert [h.uri for h in chosen] == ["10.md", "11.md"]
    assert len(dropped) == 1
    (first, second) = (said(f"He runs it: {long}"), said(f"She runs it: {long}"))
    assert len(distinct([first, second], 2)[0]) == 1  # two words of hundreds


def test_adjacent_chunks_are_one_passage_without_repeated_text() -> None:
    one, two, three = hit(0, 24), hit(25, 47), hit(49, 66)
    joined = arrange([three, one, two], {"a.md": TEXT}.__getitem__)
    assert spans(joined) == [("a.md", 0, 66)]
    assert joined[0].text == TEXT[0:66]
    assert joined[0].chunk_id == three.chunk_id  # the best of them
    overlapping = arrange([hit(0, 47), hit(25, 66)], {"a.md": TEXT}.__getitem__)
    assert overlapping[0].text == TEXT[0:66]
    assert TEXT[0:66].count("comes back") == overlapping[0].text.count("comes back") == 1
    inside = arrange([hit(0, 66), hit(25, 47)], {"a.md": TEXT}.__getitem__)
    assert spans(inside) == [("a.md", 0, 66)]


def test_chunks_that_are_not_adjacent_stay_separate() -> None:
    texts = {"a.md": TEXT, "b.md": TEXT}.__getitem__
    for other in (
        hit(49, 66),  # a sentence lies between
        hit(25, 47, "b.md"),
        hit(25, 47, page=2),
        hit(25, 47, place="A5"),
        hit(25, 47, headings=("Boats",)),
    ):
        assert len(arrange([hit(0, 24), other], texts)) == 2
    assert len(arrange([hit(0, 24), hit(25, 47)], texts, merge=False)) == 2
    changed = {"a.md": f"t{TEXT[1:]}"}.__getitem__
    assert len(arrange([hit(0, 24), hit(25, 47)], changed)) == 2


def test_passages_are_ordered_by_their_best_hit_or_by_document() -> None:
    texts = {"a.md": TEXT, "b.md": TEXT}.__getitem__
    hits = [hit(49, 66), hit(0, 24, "b.md"), hit(0, 24), hit(67, 95)]
    by_rank = arrange(hits, texts)
    assert spans(by_rank) == [("a.md", 49, 95), ("b.md", 0, 24), ("a.md", 0, 24)]
    by_place = arrange(hits, texts, order="document")
    assert spans(by_place) == [("a.md", 0, 24), ("a.md", 49, 95), ("b.md", 0, 24)]


def _asked(tmp_path: Path, files: dict[str, str], question: str, **ask: object) -> tuple[ScriptedReader, object]:
    for name, text in files.items():
        (tmp_path / "docs").mkdir(exist_ok=True)
        (tmp_path / "docs" / name).write_text(text)
    section = AskSection(reranker="none", **ask)  # type: ignore[arg-type]
    settings = Settings(chunk=ChunkSection(size=16), search=SearchSection(), ask=section)
    collection = Collection.open(tmp_path / ".ragfm", settings=settings, embedder=HashingEmbedder())
    collection.sync(tmp_path / "docs")
    reader = ScriptedReader(["It leaves at nine [1]. Dogs stay ashore."])
    return reader, Rag(collection, reader=reader).ask(question)


def test_an_answer_has_the_passage_number_of_each_hit_and_exact_quotes(tmp_path: Path) -> None:
    files = {"boat.txt": TEXT, "copy.txt": TEXT, "tea.txt": "Tea is served at four, with dogs."}
    reader, answer = _asked(tmp_path, files, "When does the boat leave, and what of dogs?", k=3)
    texts = dict(files)
    shown = reader.prompts[0][-1].content
    assert shown.count("The boat leaves at nine.") == 1
    assert answer.hits[0].n is not None  # type: ignore[attr-defined]
    twice = [dropped for dropped in answer.dropped if "near-duplicate" in dropped.why]  # type: ignore[attr-defined]
    assert twice
    numbers = {h.chunk_id: h.n for h in answer.hits}  # type: ignore[attr-defined]
    assert all(numbers[dropped.chunk_id] is None for dropped in twice)
    assert sum(n is not None for n in numbers.values()) == 3
    joined = [h for h in answer.hits if h.uri == "docs/boat.txt" and h.n]  # type: ignore[attr-defined]
    assert len({h.n for h in joined}) < len(joined)  # neighbours share a number
    for citation in answer.citations:  # type: ignore[attr-defined]
        text = texts[citation.uri.removeprefix("docs/")]
        assert text[citation.start : citation.end] == citation.quote


ROWS = "\n".join(f"| Ship {number} | {number}00 tons | harbour {number} |" for number in range(12))
REPORT = f"# Fleet\n\nAll ships:\n\n| Ship | Load | Place |\n| --- | --- | --- |\n{ROWS}\n\nNo ship was sold.\n"


def test_a_table_is_found_from_each_of_its_rows_and_from_its_introduction() -> None:
    first, last = REPORT.index("| Ship |"), REPORT.index("\n\nNo ship")
    for row in (0, 5, 11):
        start = REPORT.index(f"| Ship {row} ")
        assert table_around(REPORT, start, REPORT.index("\n", start)) == (first, last)
    introduction = REPORT.index("All ships")
    assert table_around(REPORT, introduction, REPORT.index(":") + 1) == (introduction, last)
    after = REPORT.index("No ship")
    assert table_around(REPORT, after, len(REPORT)) == (after, len(REPORT))
    pieces = f"| a | b |\n\n{REPORT[first:last]}\n\n| c | d |\n"  # one table, as parsers cut it
    assert table_around(pieces, 20, 40) == (20, len(pieces) - 1)
    assert table_around(pieces, 11, 12)[0] == 0
    assert table_around("| a |", 0, 5) == (0, 5)


class _WideReader(ScriptedReader):
    passages = 8


def test_a_reader_sees_the_whole_table_that_a_row_is_from(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "fleet.md").write_text(REPORT)
    settings = Settings(chunk=ChunkSection(size=48), ask=AskSection(reranker="none"))
    with Collection.open(
        tmp_path / ".ragfm", settings=settings, embedder=HashingEmbedder(max_tokens=128)
    ) as collection:
        collection.sync(tmp_path / "docs")
        hit = next(hit for hit in collection.search("harbour 6", 20) if "harbour 6" in hit.text)
        after, *before = (chunk.text for chunk in collection.table_chunks([hit]))
        assert after.startswith("| Ship 10 ")
        assert [text.partition(" |\n")[0] for text in before] == [
            "| Ship 2 | 200 tons | harbour 2",
            "| Ship | Load | Place",
        ]
        reader = _WideReader(["600 tons [1]."])
        Rag(collection, reader=reader, k=1).ask("What does the ship in harbour 6 carry, 600 tons?")
    shown = reader.prompts[0][-1].text
    assert [number for number in range(12) if f"harbour {number} " in shown] == list(range(12))
