"""Codes and numbers among look-alikes, end to end with the real embedder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.lookalike_documents import codes, questions, texts

from ragfm import Collection, Settings
from ragfm.core.config import SearchSection
from ragfm.retrieval.fusion_weight import weight_for


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collection]:
    folder = tmp_path_factory.mktemp("stock")
    (folder / "docs").mkdir()
    for number, (_, _, text) in enumerate(texts()):
        (folder / "docs" / f"{number:03}.txt").write_text(text)
    with Collection.open(folder / ".ragfm", settings=Settings()) as collection:
        collection.sync(folder / "docs")
        yield collection


def _wrong(collection: Collection) -> list[str]:
    return [
        f"{question} found {found}"
        for question, number in questions()
        if (found := collection.search(question, k=1)[0].uri) != f"docs/{number:03}.txt"
    ]


@pytest.mark.slow
def test_the_right_code_is_first_among_similar_ones(stock: Collection) -> None:
    assert len(questions()) > 250
    assert _wrong(stock) == []


@pytest.mark.slow
def test_embeddings_alone_do_not_find_the_code(stock: Collection) -> None:
    """Otherwise the corpus proves nothing."""
    search = SearchSection(weight=1.0, code_weight=1.0)
    with Collection.open(stock.path, settings=Settings(search=search)) as dense:
        assert len(_wrong(dense)) > 100


@pytest.mark.parametrize(
    "code",
    [
        *("ERR_CONN_0x3F", "p53", "M2HB", "16GB", "2026-0471", "2019-20-A", "v2020.1", "Q2-117", "AB1234"),
        *(code for c in codes().values() for code in c),
    ],
)
def test_a_code_lowers_the_weight_of_the_cosine(code: str) -> None:
    assert weight_for(f"what about {code}?", SearchSection()) == 0.4
    assert weight_for(code, SearchSection(code_weight=0.2)) == 0.2
    assert weight_for(code, SearchSection(weight=0.3)) == 0.3
    assert weight_for(code, SearchSection(weight=0.9, code_weight=0.9)) == 0.9


@pytest.mark.parametrize(
    "query",
    [
        "Who complained in 1572?",
        "28 days of leave",
        "what is well-known?",
        "chapter 3, page 12.",
        "2014年的比赛",
        "",
        "Best Buy's revenue in FY2018, FY2019 and FY21?",
        "the 1950s, 1945-1949 and 2003/04",
        "sales of Q2, Q2 2023, Q22023 and 3Q23",
        "the 3rd Earl on the 21st of May",
    ],
)
def test_plain_numbers_and_words_do_not_lower_the_weight(query: str) -> None:
    assert weight_for(query, SearchSection()) == 0.6
